"""Every kind of fault is found, named and located."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.errors import UsageError
from muslin.lab.presets import preset
from muslin.lab.topology import SCHEMA, Topology, port_name
from muslin.lab.validate import check, host_conflicts, validate
from muslin.model.address import network_of
from tests.unit.lab.test_topology import TOPOLOGIES

TWO = [{"name": "a"}, {"name": "b"}]
ISLANDS = {
    "backend": "udp",
    "segments": [{"name": "x"}, {"name": "y"}],
    "nodes": [{"name": "a", "links": [{"segment": "x"}]}, {"name": "b", "links": [{"segment": "y"}]}],
}
DUAL = ["172.16.0.0/16", "fd00:172:16::/48"]


def topology(**fields: Any) -> Topology:
    return msgspec.convert({"schema": SCHEMA, "nodes": [{"name": "a"}], **fields}, Topology)


def node(**fields: Any) -> dict[str, Any]:
    return {"nodes": [{"name": "a", **fields}]}


def link(**fields: Any) -> dict[str, Any]:
    return node(links=[{"segment": "lan0", **fields}])


def router(**route: str) -> dict[str, Any]:
    fields = {"name": "r", "links": [{"segment": "lan0"}], "routes": [route]}
    return {"segments": [{"name": "lan0"}], "routers": [fields]}


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"nodes": []}, "$.nodes", "no node"),
    ({"nodes": [*TWO, {"name": "a"}]}, "$.nodes[2].name", "same name"),
    ({"segments": [{"name": "a"}]}, "$.nodes[0].name", "same name"),
    ({"nodes": [{"name": "Big"}]}, "$.nodes[0].name", "lower case"),
    ({"nodes": [{"name": ""}]}, "$.nodes[0].name", "lower case"),
    ({"nodes": [{"name": "a\n"}]}, "$.nodes[0].name", "lower case"),
    ({"nodes": [{"name": "-a"}]}, "$.nodes[0].name", "lower case"),
    ({"nodes": [{"name": "a" * 41}]}, "$.nodes[0].name", "41 characters"),
    (node(containers=[{"name": "x"}, {"name": "x"}]), "$.nodes[0].containers[1].name", "same name"),
    (node(containers=[{"name": "x.y"}]), "$.nodes[0].containers[0].name", "lower case"),
    (link(name="a" * 16), "$.nodes[0].links[0].name", "16 bytes"),
    (link(name="tun0"), "$.nodes[0].links[0].name", "uses itself"),
    (link(name="a/b"), "$.nodes[0].links[0].name", "does not take"),
    (link(segment="lan1"), "$.nodes[0].links[0].segment", "did you mean lan0"),
    (link(addresses=["10.0.1.10"]), "$.nodes[0].links[0].addresses[0]", "not in segment lan0"),
    (link(addresses=["10.0.0.0"]), "$.nodes[0].links[0].addresses[0]", "network address"),
    (link(addresses=["10.0.0.255"]), "$.nodes[0].links[0].addresses[0]", "broadcast"),
    (link(addresses=["10.0.0.1/24"]), "$.nodes[0].links[0].addresses[0]", "write 10.0.0.1"),
    (link(addresses=["ten"]), "$.nodes[0].links[0].addresses[0]", "ten, which is none"),
    (link(addresses=["fe80::1%lo"]), "$.nodes[0].links[0].addresses[0]", "which is none"),
    (link(loss_percent=101), "$.nodes[0].links[0].loss_percent", "0 to 100"),
    (link(loss_percent=float("nan")), "$.nodes[0].links[0].loss_percent", "0 to 100"),
    (node(links=[{"segment": "lan0"}] * 2), "$.nodes[0].links[1].addresses[0]", "has already"),
    (
        node(
            links=[
                {"segment": "lan0", "name": "x"},
                {"segment": "lan0", "name": "x", "addresses": ["10.0.0.9"]},
            ]
        ),
        "$.nodes[0].links[1].name",
        "exists twice",
    ),
    ({"segments": [{"name": "x"}, {"name": "y"}]}, "$.nodes[0].links", "no links"),
    (
        {"segments": [{"name": "x", "prefixes": ["10.0.0.0"]}]},
        "$.segments[0].prefixes[0]",
        "without a length",
    ),
    (
        {"segments": [{"name": "x", "prefixes": ["10.0.0.1/24"]}]},
        "$.segments[0].prefixes[0]",
        "write 10.0.0.0/24",
    ),
    (
        {"segments": [{"name": "x", "prefixes": ["10.0.0.0/29"]}]},
        "$.nodes[0].links[0].addresses",
        "no address left",
    ),
    ({"segments": [{"name": "x", "prefixes": ["127.0.0.0/24"]}]}, "$.segments[0].prefixes[0]", "special"),
    ({"segments": [{"name": "x", "prefixes": ["172.16.0.0/20"]}]}, "$.nodes[0].subnets[0]", "overlaps"),
    ({"segments": [{"name": "x", "prefixes": ["172.16.9.0/24"]}]}, "$.segments[0].prefixes[0]", "overlaps"),
    ({"networks": ["nonsense"]}, "$.networks[0]", "nonsense, which is none"),
    ({"networks": ["10.9.0.0/16", "10.8.0.0/16"]}, "$.networks[1]", "second IPv4"),
    ({"networks": ["10.9.0.0/24"], "nodes": TWO}, "$.nodes[1].subnets", "no /24 number 2"),
    ({"networks": DUAL, **node(subnets=["172.16.0.0/24"])}, "$.nodes[0].subnets", "no IPv6 subnet"),
    (node(subnets=["192.168.0.0/24"]), "$.nodes[0].subnets[0]", "outside of the network"),
    (node(subnets=["172.16.0.0/24", "172.16.1.0/24"]), "$.nodes[0].subnets[1]", "second IPv4 subnet"),
    (
        node(subnets=["172.16.0.0/30"], containers=[{}, {}]),
        "$.nodes[0].subnets[0]",
        "2 usable addresses, and 3",
    ),
    ({"backend": "udp", **node(subnets=["172.16.0.0/26"])}, "$.nodes[0].subnets[0]", "choose /25"),
    (
        {"nodes": [{"name": "a"}, {"name": "b", "subnets": ["172.16.0.128/25"]}]},
        "$.nodes[1].subnets[0]",
        "overlaps the subnet of a",
    ),
    (
        node(containers=[{"addresses": ["172.16.0.1"]}]),
        "$.nodes[0].containers[0].addresses[0]",
        "the gateway's",
    ),
    (
        node(containers=[{"addresses": ["172.16.1.2"]}]),
        "$.nodes[0].containers[0].addresses[0]",
        "not in a subnet",
    ),
    (
        {"backend": "udp", **node(containers=[{"addresses": ["172.16.0.100"]}])},
        "$.nodes[0].containers[0].addresses[0]",
        "the tunnel's",
    ),
    (
        node(containers=[{"addresses": ["172.16.0.9"]}, {"addresses": ["172.16.0.9"]}]),
        "$.nodes[0].containers[1].addresses[0]",
        "has already",
    ),
    (node(containers=[{"mtu": 100}]), "$.nodes[0].containers[0].mtu", "576"),
    ({"mtu": 70000}, "$.mtu", "65535"),
    ({"mtu": 1000, "networks": DUAL}, "$.mtu", "1280"),
    (router(destination="10.9.0.0/16", via="10.7.0.1"), "$.routers[0].routes[0].via", "not in a segment"),
    (router(destination="10.9.0.1/16", via="10.0.0.9"), "$.routers[0].routes[0].destination", "host bits"),
    (router(destination="fd00::/64", via="10.0.0.9"), "$.routers[0].routes[0].via", "other family"),
    (ISLANDS, "$.nodes[1].links", "on an island"),
    (
        {
            "backend": "host-gw",
            "networks": DUAL,
            "segments": [{"name": "x", "prefixes": ["10.0.0.0/24"]}],
            "nodes": TWO,
        },
        "$.backend",
        "host-gw carries IPv6 over IPv6",
    ),
]


@pytest.mark.parametrize(("fields", "path", "message"), FAULTS)
def test_each_fault_is_found_where_it_is(fields: dict[str, Any], path: str, message: str) -> None:
    problems = validate(topology(**fields))
    assert [problem for problem in problems if problem.path == path and message in problem.message], problems


@pytest.mark.parametrize(
    "fields",
    [
        ISLANDS | {"backend": "none"},
        ISLANDS | {"routers": [{"name": "r", "links": [{"segment": "x"}, {"segment": "y"}]}]},
        link(down=True, loss_percent=100),
        node(containers=[{"addresses": ["172.16.0.100"]}]),
        node(attach="direct", subnets=["172.16.0.1/32"], containers=[{}]),
        node(subnets=["172.16.0.0/29"], containers=[{}] * 5),
    ],
)
def test_faults_to_study_and_tight_fits_are_allowed(fields: dict[str, Any]) -> None:
    assert validate(topology(**fields)) == ()


@given(TOPOLOGIES)
@settings(deadline=None)
def test_anything_at_all_is_judged_without_failing(anything: Topology) -> None:
    assert all(problem.path.startswith("$.") and problem.message for problem in validate(anything))


@given(st.data(), st.integers(2, 30), st.sampled_from(["subnets", "name", "links"]))
@settings(max_examples=50, deadline=None)
def test_what_two_nodes_share_is_always_a_problem(data: st.DataObject, count: int, field: str) -> None:
    sound = preset(4, nodes=count)
    one, other = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    nodes = list(sound.nodes)
    nodes[one] = msgspec.structs.replace(nodes[one], **{field: getattr(nodes[other], field)})
    assert validate(msgspec.structs.replace(sound, nodes=tuple(nodes)))


@given(st.data(), st.integers(8, 30))
@settings(max_examples=50, deadline=None)
def test_an_overlap_is_always_a_problem(data: st.DataObject, length: int) -> None:
    sound = preset(3, nodes=5)
    prefix = f"172.16.{data.draw(st.integers(0, 4))}.0"
    network = network_of(f"{prefix}/{length}")
    segments = (msgspec.structs.replace(sound.segments[0], prefixes=(*sound.segments[0].prefixes, network)),)
    assert validate(msgspec.structs.replace(sound, segments=segments))


def test_hashed_ports_that_collide_are_told() -> None:
    names: dict[str, str] = {}
    pair = None
    for number in range(100_000):
        name = f"a-name-that-is-too-long-{number}"
        port = port_name(topology(nodes=[{"name": name}]).nodes[0], 0)
        if port in names:
            pair = [{"name": names[port]}, {"name": name}]
            break
        names[port] = name
    problems = validate(topology(nodes=pair))
    assert [problem.path for problem in problems] == ["$.nodes[1].name"]
    assert "same bridge port" in problems[0].message


def test_check_lists_all_problems() -> None:
    with pytest.raises(UsageError, match=r"2 problems:\n  - .*same name.*\n  - .*MTU"):
        check(topology(mtu=1, nodes=[{"name": "a", "containers": [{"name": "x"}, {"name": "x"}]}]))
    with pytest.raises(UsageError, match=r"^the MTU of the underlay is 1: choose 576 to 65535$"):
        check(topology(mtu=1))


def test_what_the_host_routes_already() -> None:
    routes = [
        "default",
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "::/0",
        "10.0.0.0/8",
        "172.16.3.4",
        "fd01::/16",
    ]
    problems = host_conflicts(preset(4, families=(4, 6)), routes)
    assert [problem.path for problem in problems] == ["$.networks[0]", "$.segments[0].prefixes[0]"]
    assert "172.16.3.4/32, which this host already routes" in problems[0].message
    assert "--network" in problems[0].message
    assert "--underlay-network" in problems[1].message
    assert "--allow-overlap" in problems[1].message
    assert host_conflicts(preset(4), ["default", "0.0.0.0/1", "192.168.0.0/24", "junk"]) == ()
