"""The four steps hold exactly the talk's addresses, and scale."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.errors import UsageError
from muslin.lab.presets import preset
from muslin.lab.topology import Agents, Topology, resolve
from muslin.lab.validate import validate

ONE_NODE = {"node1": ("10.0.0.10", "172.16.0.0/24")}
TWO_NODES = ONE_NODE | {"node2": ("10.0.0.20", "172.16.1.0/24")}
FOUR_CONTAINERS = {
    "con1.node1": "172.16.0.2",
    "con2.node1": "172.16.0.3",
    "con1.node2": "172.16.1.2",
    "con2.node2": "172.16.1.3",
}


def nodes_of(topology: Topology) -> dict[str, tuple[str, ...]]:
    return {node.name: (*node.links[0].addresses, *node.subnets) for node in topology.nodes}


def containers_of(topology: Topology) -> dict[str, str]:
    return {f"{held.name}.{node.name}": " ".join(held.addresses) for node, held in topology.containers}


def test_step_1_is_one_container_on_a_veth() -> None:
    topology = preset(1)
    assert (topology.step, topology.backend, topology.nodes[0].attach) == (1, "none", "direct")
    assert nodes_of(topology) == ONE_NODE
    assert containers_of(topology) == {"con.node1": "172.16.0.1"}
    assert topology.gateway_of(topology.nodes[0], 4) is None


def test_step_2_is_a_bridge() -> None:
    topology = preset(2)
    assert (topology.step, topology.backend, topology.nodes[0].attach) == (2, "none", "bridge")
    assert nodes_of(topology) == ONE_NODE
    assert containers_of(topology) == {"con1.node1": "172.16.0.2", "con2.node1": "172.16.0.3"}
    assert topology.gateway_of(topology.nodes[0], 4) == "172.16.0.1"


def test_step_3_is_two_nodes_with_routes() -> None:
    topology = preset(3)
    assert (topology.step, topology.backend) == (3, "host-gw")
    assert nodes_of(topology) == TWO_NODES
    assert containers_of(topology) == FOUR_CONTAINERS
    assert topology.networks == ("172.16.0.0/16",)
    assert [(segment.name, segment.prefixes) for segment in topology.segments] == [("lan0", ("10.0.0.0/24",))]


def test_step_4_is_the_same_with_an_overlay() -> None:
    topology = preset(4)
    assert (topology.step, topology.backend) == (4, "udp")
    assert nodes_of(topology) == TWO_NODES
    assert containers_of(topology) == FOUR_CONTAINERS
    assert [topology.tunnel_interface_of(node, 4) for node in topology.nodes] == [
        "172.16.0.100/16",
        "172.16.1.100/16",
    ]


def test_routed_underlay() -> None:
    topology = preset(4, underlay="routed", families=(4, 6))
    assert nodes_of(topology) == {
        "node1": ("10.0.1.10", "fd00:10:0:1::a", "172.16.0.0/24", "fd00:172:16::/64"),
        "node2": ("10.0.2.10", "fd00:10:0:2::a", "172.16.1.0/24", "fd00:172:16:1::/64"),
    }
    assert [link.addresses for link in topology.routers[0].links] == [
        ("10.0.1.1", "fd00:10:0:1::1"),
        ("10.0.2.1", "fd00:10:0:2::1"),
    ]
    assert [segment.name for segment in topology.segments] == ["lan1", "lan2"]


def test_largest_lab() -> None:
    topology = preset(3, nodes=256, containers=250)
    assert topology.segments[0].prefixes == ("10.0.0.0/16",)
    assert topology.nodes[255].subnets == ("172.16.255.0/24",)
    assert topology.nodes[255].containers[249].addresses == ("172.16.255.252",)
    assert preset(4, nodes=256, containers=1, underlay="routed").segments[255].prefixes == ("10.1.0.0/24",)


def test_own_networks() -> None:
    topology = preset(3, families=(4, 6), networks="192.168.0.0/16", underlay_prefix=["10.9.0.0/24"])
    assert topology.networks == ("192.168.0.0/16", "fd00:172:16::/48")
    assert topology.segments[0].prefixes == ("10.9.0.0/24", "fd00:10::/64")
    assert preset(3, underlay="routed", underlay_prefix="10.9.0.0/16").segments[1].prefixes == ("10.9.2.0/24",)


@given(
    st.sampled_from([1, 2, 3, 4]), st.integers(1, 60), st.integers(1, 30), st.sampled_from(["l2", "routed"]),
    st.sampled_from([(4,), (6,), (4, 6)]), st.sampled_from([None, "none", "host-gw", "udp", "vxlan"]),
    st.integers(1280, 9000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_preset_is_resolved_and_sound(
    step: Any, nodes: int, containers: int, underlay: Any, families: Any, backend: Any, mtu: int
) -> None:
    single = step < 3
    topology = preset(
        step,
        nodes=1 if single else nodes,
        containers=1 if step == 1 else containers,
        underlay=underlay,
        families=families,
        backend=None if single else backend,
        mtu=mtu,
    )
    assert resolve(topology) == topology
    assert validate(topology) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 5}, "no step 5.*\n.*1, 2, 3 and 4"),
        ({"step": 1, "nodes": 2}, "step 1 is a single node.*\n.*step 3"),
        ({"step": 2, "nodes": 3}, "step 2 is a single node, not 3.*\n.*step 3"),
        ({"step": 1, "containers": 2}, "single container.*\n.*step 2"),
        ({"step": 2, "backend": "udp"}, "no use for the backend udp"),
        ({"step": 3, "nodes": 0}, "0 nodes.*\n.*1 to 256"),
        ({"step": 3, "nodes": 257}, "257 nodes"),
        ({"step": 3, "containers": 251}, "251 containers"),
        ({"step": 3, "underlay": "l3"}, "no underlay 'l3'"),
        ({"step": 3, "backend": "ipip"}, "no backend 'ipip'"),
        ({"step": 3, "families": ()}, "families"),
        ({"step": 3, "networks": "nonsense"}, "'nonsense' is no prefix"),
        ({"step": 3, "networks": "10.8.0.0"}, "'10.8.0.0' is no prefix"),
        ({"step": 3, "networks": "fd00::/48"}, "is IPv6, but the lab is IPv4 only"),
        ({"step": 3, "networks": ["10.8.0.0/16", "10.9.0.0/16"]}, "two IPv4 network"),
        ({"step": 3, "networks": "10.0.0.0/16"}, "overlaps"),
        ({"step": 3, "networks": "192.168.0.0/24"}, r"192.168.0.0/24 holds no /24 number 2"),
        ({"step": 3, "underlay": "routed", "underlay_prefix": "10.9.0.0/24"}, "no /24 number 1, for node 1"),
        ({"step": 3, "mtu": 100}, "MTU of the underlay is 100"),
    ],
)
def test_requests_that_make_no_sense_name_the_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset(**arguments)


@pytest.mark.parametrize("step", [3, 4])
def test_agents_are_asked_to_make_the_steps_own_network(step: Any) -> None:
    topology = preset(step, agents=Agents(store="etcd"))

    assert topology == resolve(topology)
    assert topology.agents == Agents(store="etcd", lease_ttl_s=86400)
    assert (topology.backend, nodes_of(topology)) == (preset(step).backend, TWO_NODES)


@pytest.mark.parametrize(
    ("step", "options", "word"),
    [
        (1, {}, "step 1 is a single node, and agents are there to join several"),
        (2, {}, "step 2 is a single node, and agents are there to join several"),
        (3, {"backend": "none"}, "leaves agents nothing to do"),
    ],
)
def test_agents_without_a_task_are_refused(step: Any, options: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        preset(step, agents=Agents(), **options)
