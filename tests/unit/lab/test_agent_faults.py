"""What agents cannot run is refused with a sentence; what a living lab cannot become is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from muslin.lab.agent_faults import unchangeable
from muslin.lab.presets import preset
from muslin.lab.topology import Agents, Topology
from muslin.lab.validate import validate
from tests.unit.lab.test_validate import topology

TWO = [{"name": "a"}, {"name": "b"}]
ETCD = {"backend": "udp", "agents": {"store": "etcd"}}

FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"agents": {}}, "$.agents", "nothing to do with the backend none"),
    ({"backend": "udp", "agents": {"lease_ttl_s": 3}}, "$.agents.lease_ttl_s", "3 seconds: choose 10 to"),
    (
        {"backend": "udp", "agents": {}, "nodes": [{"name": "a", "attach": "direct"}]},
        "$.nodes[0].attach",
        "an agent makes a bridge",
    ),
    (
        {
            "backend": "vxlan",
            "agents": {},
            "nodes": [{"name": "a"}, {"name": "b", "subnets": ["172.16.4.0/22"]}],
        },
        "$.nodes",
        "one length, but here are /22, /24",
    ),
    (
        {"backend": "host-gw", "agents": {}, "networks": ["172.16.0.0/23"], "nodes": TWO},
        "$.networks",
        "cannot share out this network: SubnetLen is 24",
    ),
    ({**ETCD, "nodes": [{"name": "etcd2"}]}, "$.agents.store", "etcd2 is the name of a member"),
    ({**ETCD, "segments": [{"name": "etcd1"}]}, "$.agents.store", "etcd1 is the name of a member"),
    (
        {**ETCD, "segments": [{"name": "x", "prefixes": ["10.0.0.0/25"]}]},
        "$.agents.store",
        "has no numbers 251 to 253",
    ),
    (
        {**ETCD, "nodes": [{"name": "a", "links": [{"segment": "lan0", "addresses": ["10.0.0.252"]}]}]},
        "$.agents.store",
        "a has the address 10.0.0.252, which is that of etcd2",
    ),
    (
        {
            **ETCD,
            "segments": [{"name": "x", "prefixes": ["10.0.0.0/24"]}, {"name": "y", "prefixes": ["fd00::/64"]}],
            "nodes": [{"name": "a", "links": [{"segment": "y"}]}],
        },
        "$.agents.store",
        "no address family in common",
    ),
]


@pytest.mark.parametrize(("fields", "path", "words"), FAULTS)
def test_a_fault_is_found_where_it_is(fields: dict[str, Any], path: str, words: str) -> None:
    found = [problem for problem in validate(topology(**fields)) if words in problem.message]
    assert [problem.path for problem in found] == [path], validate(topology(**fields))


def test_an_agent_reaches_the_others_over_its_first_link_alone() -> None:
    fields: dict[str, Any] = {
        "backend": "udp",
        "segments": [{"name": "x"}, {"name": "y"}],
        "nodes": [
            {"name": "a", "links": [{"segment": "x"}]},
            {"name": "b", "links": [{"segment": "x"}]},
            {"name": "c", "links": [{"segment": "y"}, {"segment": "x"}]},
        ],
    }
    assert validate(topology(**fields)) == ()
    (problem,) = validate(topology(**fields, agents={}))
    assert problem.path == "$.nodes[2].links"
    assert "island" in problem.message


@pytest.mark.parametrize("backend", ["host-gw", "udp", "vxlan"])
@pytest.mark.parametrize("store", ["sqlite", "etcd"])
@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_every_preset_of_many_nodes_is_sound(backend: Any, store: Any, families: Any) -> None:
    for underlay in ("l2", "routed"):
        preset(4, nodes=30, agents=Agents(store=store), backend=backend, families=families, underlay=underlay)


OLD = preset(4, agents=Agents(store="etcd"))


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (preset(4), "with agents"),
        (preset(4, agents=Agents()), "with the store etcd"),
        (preset(4, agents=Agents(store="etcd"), networks="10.5.0.0/16"), "with the container network 172.16.0.0/16"),
        (preset(4, agents=Agents(store="etcd"), underlay="routed"), "with the members of etcd on another segment"),
        (preset(4, agents=Agents(store="etcd"), nodes=3, backend="vxlan", containers=5), ""),
        (preset(4, agents=Agents(store="etcd", lease_ttl_s=60), nodes=1), ""),
    ],
)
def test_what_agents_have_made_cannot_change_hands(new: Topology, word: str) -> None:
    assert unchangeable(OLD, new) == word


def test_a_lab_without_agents_becomes_any_other_without_them() -> None:
    assert unchangeable(preset(4), preset(1)) == ""
    assert unchangeable(preset(4), preset(4, agents=Agents())) == "without agents"


def test_a_node_keeps_its_subnet() -> None:
    first, second = OLD.nodes
    moved = msgspec.structs.replace(second, subnets=("172.16.7.0/24",), containers=())

    new = msgspec.structs.replace(OLD, nodes=(first, moved))
    assert unchangeable(OLD, new) == "with node2 holding 172.16.1.0/24"
    assert unchangeable(OLD, msgspec.structs.replace(OLD, nodes=(first,))) == ""
