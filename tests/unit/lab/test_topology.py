"""Defaults by position, and what a topology can be asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.errors import UsageError
from muslin.lab.topology import (
    SCHEMA,
    Agents,
    Attachment,
    Container,
    Node,
    Router,
    Segment,
    StaticRoute,
    Topology,
    full_name_of,
    nth_subnet,
    port_name,
    resolve,
)

NAMES = st.sampled_from(["", "a", "b", "lan0", "lan1", "node1", "con1", "x" * 50, "Ü b"])
TEXTS = st.sampled_from(
    [
        "172.16.0.0/16", "172.16.0.0/24", "172.16.1.0/30", "10.0.0.0/24", "10.0.0.20",
        "172.16.0.2", "172.16.0.3",
        "fd00:172:16::/48", "FD00:172:16:0::/64", "fd00:10::a", "172.16.0.1/24", "nonsense", "",
        "fe80::1%eth0", "0.0.0.0/0",
    ]
)  # fmt: skip
LISTS = st.lists(TEXTS, max_size=3).map(tuple)
LOSS = st.sampled_from([0.0, 10.0, -1.0, float("inf")])


def tuples(of: st.SearchStrategy[object], most: int = 3) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=most).map(tuple)


LINKS = st.builds(Attachment, segment=NAMES, addresses=LISTS, name=NAMES, loss_percent=LOSS)
CONTAINERS = st.builds(Container, name=NAMES, addresses=LISTS, loss_percent=LOSS)
TOPOLOGIES = st.builds(
    Topology,
    schema=st.just(SCHEMA),
    backend=st.sampled_from(["none", "host-gw", "udp", "vxlan"]),
    agents=st.sampled_from([None, None, Agents(), Agents(store="etcd", lease_ttl_s=-1)]),
    networks=LISTS,
    segments=tuples(st.builds(Segment, name=NAMES, prefixes=LISTS)),
    routers=tuples(
        st.builds(
            Router,
            name=NAMES,
            links=tuples(LINKS),
            routes=tuples(st.builds(StaticRoute, destination=TEXTS, via=TEXTS)),
        )
    ),
    nodes=tuples(
        st.builds(
            Node,
            name=NAMES,
            links=tuples(LINKS),
            subnets=LISTS,
            attach=st.sampled_from(["bridge", "direct"]),
            containers=tuples(CONTAINERS),
        )
    ),
)


def lab(*nodes: Node, **fields: object) -> Topology:
    return resolve(Topology(schema=SCHEMA, nodes=nodes, **fields))  # type: ignore[arg-type]


@given(TOPOLOGIES)
def test_resolve_is_idempotent_whatever_it_is_given(topology: Topology) -> None:
    once = resolve(topology)
    assert resolve(once) == once


def test_one_segment_for_all_when_none_is_named() -> None:
    topology = lab(Node(name="a"), Node(name="b"), networks=("172.16.0.0/16", "fd00:172:16::/48"))
    assert topology.segments == (Segment(name="lan0", prefixes=("10.0.0.0/24", "fd00:10::/64")),)
    assert [node.links[0].addresses for node in topology.nodes] == [
        ("10.0.0.10", "fd00:10::a"),
        ("10.0.0.20", "fd00:10::14"),
    ]
    assert [node.links[0].name for node in topology.nodes] == ["eth0", "eth0"]
    assert topology.nodes[1].subnets == ("172.16.1.0/24", "fd00:172:16:1::/64")


def test_a_crowded_segment_widens() -> None:
    topology = lab(*(Node(name=f"n{number}") for number in range(1, 27)))
    assert topology.segments[0].prefixes == ("10.0.0.0/16",)
    assert topology.nodes[25].links[0].addresses == ("10.0.1.4",)


def test_containers_get_the_next_free_addresses_and_never_number_100() -> None:
    asked = Container(name="web", addresses=("172.16.0.3",))
    topology = lab(Node(name="a", containers=(Container(), asked, *(Container(),) * 100)))
    addresses = [container.addresses[0] for container in topology.nodes[0].containers]
    assert addresses[:4] == ["172.16.0.2", "172.16.0.3", "172.16.0.4", "172.16.0.5"]
    assert "172.16.0.100" not in addresses
    assert [container.name for container in topology.nodes[0].containers[:3]] == ["con1", "web", "con3"]


def test_a_direct_container_may_have_a_host_prefix_of_its_own() -> None:
    topology = lab(Node(name="a", attach="direct", subnets=("172.16.0.1/32",), containers=(Container(),)))
    assert topology.nodes[0].containers[0].addresses == ("172.16.0.1",)
    assert topology.gateway_of(topology.nodes[0], 4) is None


def test_routers_count_on_each_segment() -> None:
    links = (Attachment(segment="x"), Attachment(segment="y"))
    topology = lab(
        segments=(Segment(name="x"), Segment(name="y")),
        routers=(Router(name="r", links=links), Router(name="s", links=links[:1])),
    )
    assert [link.addresses for router in topology.routers for link in router.links] == [
        ("10.0.0.1",),
        ("10.0.1.1",),
        ("10.0.0.2",),
    ]
    assert topology.router_address_on("x", 4) == "10.0.0.1"
    assert topology.router_address_on("x", 6) is None


def test_text_becomes_canonical() -> None:
    topology = lab(Node(name="a"), networks=("FD00:172:16:0::/48",))
    assert topology.networks == ("fd00:172:16::/48",)
    assert topology.families == (6,)


def test_addresses_with_a_meaning() -> None:
    topology = lab(Node(name="a", containers=(Container(),)), Node(name="b"))
    node = topology.node("b")
    assert topology.gateway_of(node, 4) == "172.16.1.1"
    assert topology.tunnel_address_of(node, 4) == "172.16.1.100"
    assert topology.tunnel_interface_of(node, 4) == "172.16.1.100/16"
    assert topology.gateway_of(node, 6) is None
    assert topology.underlay_address_of(node, 4) == "10.0.0.20"
    assert topology.interfaces_of(node.links[0]) == ("10.0.0.20/24",)
    assert full_name_of(*topology.containers[0]) == "con1.a"
    assert topology.container("con1.a") == topology.containers[0]


@pytest.mark.parametrize("ask", ["node", "segment", "router", "container"])
def test_asking_for_what_is_not_there_names_it(ask: str) -> None:
    with pytest.raises(UsageError, match=r"there is no .*'nix'"):
        getattr(lab(Node(name="a")), ask)("nix")


@pytest.mark.parametrize(
    ("prefix", "length", "index", "subnet"),
    [
        ("172.16.0.0/16", 24, 255, "172.16.255.0/24"),
        ("172.16.0.0/16", 24, 256, None),
        ("10.0.0.0/8", 24, 256, "10.1.0.0/24"),
        ("172.16.0.0/25", 24, 0, None),
        ("fd00:10::/32", 64, 16, "fd00:10:0:10::/64"),
        ("nonsense", 24, 0, None),
    ],
)
def test_nth_subnet(prefix: str, length: int, index: int, subnet: str | None) -> None:
    assert nth_subnet(prefix, length, index) == subnet


def test_ports_are_named_after_nodes_while_that_is_short_and_clear() -> None:
    link = Attachment(segment="x")
    assert port_name(Node(name="node1", links=(link,)), 0) == "node1"
    assert port_name(Node(name="a" * 15, links=(link,)), 0) == "a" * 15
    names = {
        port_name(Node(name="a" * 16, links=(link,)), 0),
        port_name(Node(name="a" * 17, links=(link,)), 0),
        port_name(Node(name="br0", links=(link,)), 0),
        port_name(Node(name="node1", links=(link, link)), 0),
        port_name(Node(name="node1", links=(link, link)), 1),
    }
    assert len(names) == 5
    assert all(len(name) <= 15 and name != "br0" for name in names)
