"""A random walk among whole networks: from any to any, and each ends as if it had been built on nothing.

The networks are the lab's own, all under one lab name, so that they share namespaces, links and settings.
"""

from __future__ import annotations

import random

import pytest

from muslin.kernel.base import Scope
from muslin.lab.plan import plan
from muslin.lab.presets import preset
from muslin.model.kernel import AnyObject, Key, Link, Netns, NftTable, Sysctl
from muslin.model.state import DesiredState
from tests.contract.kernels import KERNELS, World, comparable

pytestmark = [pytest.mark.contract, pytest.mark.slow]

SEED = 20251123
STEPS = 60


def networks(lab: str) -> dict[str, DesiredState]:
    """The states of the walk."""
    topologies = {
        "step 1": preset(1, families=(4, 6)),
        "step 2": preset(2),
        "step 3": preset(3, families=(4, 6)),
        "step 3, IPv6": preset(3, families=(6,), containers=1),
        "step 4": preset(4, families=(4,)),
        "step 4, routed, IPv6": preset(4, families=(6,), containers=1, underlay="routed"),
        "vxlan": preset(3, backend="vxlan", families=(4,)),
        "vxlan, both": preset(3, backend="vxlan", families=(4, 6), containers=1),
    }
    found = {name: plan(lab, topology).state for name, topology in topologies.items()}
    filtered: list[AnyObject] = []
    for netns in found["step 2"].own_netns[:2]:
        text = "chain c {\ntype filter hook forward priority filter; policy accept;\n}"
        filtered.append(NftTable(netns=netns, family="inet", name="ours", text=text))
    found["step 2, filtered"] = found["step 2"] | DesiredState(tuple(filtered))
    found["nothing"] = DesiredState()
    return found


def full_scope(states: dict[str, DesiredState]) -> Scope:
    """All that any of the states could have left."""
    objects = [obj for state in states.values() for obj in state]
    names = tuple(dict.fromkeys(obj.netns for obj in objects if isinstance(obj, Netns)))
    return Scope(
        netns=names,
        sysctls=frozenset((obj.netns, obj.name) for obj in objects if isinstance(obj, Sysctl)),
        nft=frozenset((obj.netns, obj.family, obj.name) for obj in objects if isinstance(obj, NftTable)),
        neighbours=True,
        fdb=True,
        nexthops=True,
        rules=True,
    )


def content(world: World, states: dict[str, DesiredState], now: DesiredState) -> set[AnyObject]:
    macs: set[Key] = {obj.key for obj in now if isinstance(obj, Link) and obj.mac}
    return comparable(world.kernel.observe(full_scope(states)), world.prefix, macs)


def build_fresh(kind: str, name: str) -> set[AnyObject]:
    """What a network is when it is built on nothing."""
    world = World(kind)
    try:
        states = networks(world.lab)
        world.build(states[name])
        return content(world, states, states[name])
    finally:
        world.close()


@pytest.mark.parametrize("kind", KERNELS)
def test_every_network_of_a_random_walk_is_as_if_built_on_nothing(kind: str) -> None:
    rng = random.Random(SEED)
    world = World(kind)
    fresh: dict[str, set[AnyObject]] = {}
    try:
        states = networks(world.lab)
        path: list[str] = []
        for _ in range(STEPS):
            name = rng.choice(sorted(set(states) - set(path[-1:])))
            path.append(name)
            world.build(states[name])
            if name not in fresh:
                fresh[name] = build_fresh(kind, name)
            found = content(world, states, states[name])
            assert found == fresh[name], f"after {path[-3:]}"
        assert set(path) == set(states), "the walk should see every network"
        world.build(())
        assert content(world, states, DesiredState()) == set()
    finally:
        world.close()
