"""A host that others use too: what carries our mark is ours, and what is somebody else's is never taken.

The network of tests/contract/network.py, in which marks count (``Owned.marked``).
"""

from __future__ import annotations

import errno

import msgspec
import pytest

from muslin.kernel.converge import MemoryJournal
from muslin.model.address import Family
from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
    AnyObject,
    FdbEntry,
    Link,
    Neighbour,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Delete, Replace, SetLink
from muslin.model.state import LINK_MARK, OWN_TABLE, Owned
from tests.contract.kernels import World, world
from tests.contract.network import CHAIN, FAMILIES, GATEWAY, MAC1, MAC2, OTHER_GATEWAY, Net

__all__ = ["world"]
pytestmark = pytest.mark.contract

PROTOCOL_STATIC = 4  # rtnetlink.h RTPROT_STATIC
FAR: dict[Family, str] = {4: "10.77.0.0/24", 6: "fd77::/64"}
SETS = "set nodes4 {\ntype ipv4_addr\n}"


@pytest.fixture
def net(world: World) -> Net:
    """The network as somebody else made it: nothing of it is ours."""
    made = Net(world)
    world.build([*made.base, made.vxlan])
    world.journal = MemoryJournal(Owned(marked=True))
    return made


def pairs(net: Net) -> dict[str, tuple[AnyObject, AnyObject]]:
    """What others have, and what we would like to have in its place."""
    found: dict[str, tuple[AnyObject, AnyObject]] = {}
    for family in FAMILIES:
        route = msgspec.structs.replace(net.route(family), protocol=PROTOCOL_STATIC)
        found[f"route {family}"] = (route, msgspec.structs.replace(route, protocol=PROTOCOL_MUSLIN))
        other = msgspec.structs.replace(route, protocol=PROTOCOL_MUSLIN, via=OTHER_GATEWAY[family])
        found[f"gateway {family}"] = (route, other)
        hop = Nexthop(netns=net.node, id=family, link="up0", via=GATEWAY[family], protocol=PROTOCOL_STATIC)
        found[f"nexthop {family}"] = (hop, msgspec.structs.replace(hop, protocol=PROTOCOL_MUSLIN))
        neighbour = Neighbour(netns=net.node, link="up0", address=GATEWAY[family], mac=MAC1)
        found[f"neighbour {family}"] = (neighbour, msgspec.structs.replace(neighbour, mac=MAC2))
    entry = FdbEntry(netns=net.node, link="vx0", mac=MAC1, destination=GATEWAY[4])
    found["fdb"] = (entry, msgspec.structs.replace(entry, destination=OTHER_GATEWAY[4]))
    table = NftTable(netns=net.node, family="inet", name="theirs", text=CHAIN)
    found["table"] = (table, msgspec.structs.replace(table, text=CHAIN.replace("accept\n}", "drop\n}")))
    return found


@pytest.mark.parametrize(
    "kind",
    [*(f"{kind} {family}" for kind in ("route", "gateway", "nexthop", "neighbour") for family in FAMILIES), "fdb"],
)
def test_what_is_somebody_elses_stays_and_the_report_says_whose_it_is(world: World, net: Net, kind: str) -> None:
    refuses_to_take(world, *pairs(net)[kind])


def test_a_table_of_others_stays_and_the_report_shows_how_to_see_it(world: World, net: Net) -> None:
    refuses_to_take(world, *pairs(net)["table"])


def refuses_to_take(world: World, theirs: AnyObject, ours: AnyObject) -> None:
    world.change_by_hand(Create(theirs))
    there = world.look(theirs)[theirs.key]
    for _ in range(2):
        report = world.converge([ours])
        assert [(result.op.object, result.errno) for result in report.results] == [(ours, errno.EEXIST)]
        (result,) = report.failed
        assert "held by: " in result.reason
        assert theirs.netns in result.reason
        assert world.look(theirs)[theirs.key] == there
        assert world.journal.owned == Owned(marked=True)
    world.converge([])
    assert world.look(theirs)[theirs.key] == there
    world.change_by_hand(Delete(theirs))
    world.build([ours])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_sent_by_a_next_hop_of_others(world: World, net: Net, family: Family) -> None:
    """A route by its number would be taken by the kernel, and lead to a stranger."""
    theirs, ours = pairs(net)[f"nexthop {family}"]
    world.change_by_hand(Create(theirs))
    route = Route(netns=net.node, destination=FAR[family], nexthop_id=family, protocol=PROTOCOL_MUSLIN)
    report = world.converge([ours, route])
    outcomes = {result.op.key: result.outcome for result in report.results}
    assert (outcomes[ours.key], outcomes[route.key]) == ("failed", "skipped")
    assert route.key not in world.look(theirs, route)


def test_a_rule_of_others_that_says_the_same_serves_us_and_stays(world: World, net: Net) -> None:
    theirs = Rule(netns=net.node, family=4, priority=100, table=100, protocol=PROTOCOL_STATIC)
    world.change_by_hand(Create(theirs))
    world.build([msgspec.structs.replace(theirs, protocol=PROTOCOL_MUSLIN)])
    world.converge([Sysctl(netns=net.node, name="net/ipv4/ip_forward", value="1")])
    assert theirs.key in world.look(theirs)


def test_our_own_of_each_kind_is_replaced_as_ever(world: World, net: Net) -> None:
    vxlan = Link(
        netns=net.node, name="vx1", options=Vxlan(vni=8, local="10.0.0.1", underlay="up0"), alias="muslin: x", up=True
    )
    ours: list[AnyObject] = [vxlan, FdbEntry(netns=net.node, link="vx1", mac=MAC1, destination=GATEWAY[4])]
    ours.append(NftTable(netns=net.node, family="inet", name="muslin", text=CHAIN))
    changed: list[AnyObject] = [vxlan, FdbEntry(netns=net.node, link="vx1", mac=MAC1, destination=OTHER_GATEWAY[4])]
    changed.append(NftTable(netns=net.node, family="inet", name="muslin", text=""))
    for family in FAMILIES:
        hop = Nexthop(netns=net.node, id=family, link="up0", via=GATEWAY[family])
        route = msgspec.structs.replace(net.route(family), protocol=PROTOCOL_MUSLIN)
        neighbour = Neighbour(netns=net.node, link="vx1", address=GATEWAY[family], mac=MAC1)
        ours += [hop, route, neighbour]
        changed += [
            msgspec.structs.replace(hop, via=OTHER_GATEWAY[family]),
            msgspec.structs.replace(route, via=OTHER_GATEWAY[family]),
            msgspec.structs.replace(neighbour, mac=MAC2),
        ]
    world.build(ours)
    world.journal = MemoryJournal(Owned(marked=True))  # the record is lost: the marks are enough
    report = world.build(changed)
    assert [type(result.op) for result in report.results] == [Replace] * (len(ours) - 1)


# ---- marks -----------------------------------------------------------------------------------------------


def marked_things(net: Net) -> list[AnyObject]:
    """A link, a table and all that can lie on them."""
    family, name = OWN_TABLE
    vxlan = Vxlan(vni=8, local="10.0.0.1", underlay="up0")
    return [
        Link(netns=net.node, name="vx1", options=vxlan, alias=f"{LINK_MARK} an overlay", up=True),
        *net.address(net.node, "vx1", "172.18.0.0/32", "fd18::1/64"),
        *(Neighbour(netns=net.node, link="vx1", address=GATEWAY[family], mac=MAC1) for family in FAMILIES),
        FdbEntry(netns=net.node, link="vx1", mac=MAC1, destination=GATEWAY[4]),
        NftTable(netns=net.node, family=family, name=name, text=SETS),  # type: ignore[arg-type]
        NftElement(netns=net.node, family="inet", table=name, set="nodes4", address=GATEWAY[4]),
        NftElement(netns=net.node, family="inet", table=name, set="nodes4", address=OTHER_GATEWAY[4]),
    ]


def test_what_carries_our_mark_goes_though_the_record_was_lost(world: World, net: Net) -> None:
    things = marked_things(net)
    world.build(things)
    world.journal = MemoryJournal(Owned(marked=True))
    report = world.converge([net.vxlan])
    assert report.ok
    removed = {result.op.key for result in report.results if isinstance(result.op, Delete)}
    assert removed == {things[0].key, things[-3].key}, "what lies on them falls with them"
    left = world.look(*things, net.vxlan, net.uplink)
    assert not left.keys() & {obj.key for obj in things}
    assert {net.vxlan.key, net.uplink.key} <= left.keys(), "and nothing of others does"


def test_strays_on_what_is_ours_go_one_by_one_though_the_record_was_lost(world: World, net: Net) -> None:
    things = marked_things(net)
    world.build(things)
    world.journal = MemoryJournal(Owned(marked=True))
    wanted = [things[0], things[-3]]  # the link and the table: not one entry is wanted any more
    report = world.build(wanted)
    assert {result.op.key for result in report.results} == {obj.key for obj in things} - {obj.key for obj in wanted}


def test_a_link_of_others_that_serves_us_does_not_come_to_look_like_ours(world: World, net: Net) -> None:
    wanted = msgspec.structs.replace(net.bridge, alias=f"{LINK_MARK} a bridge", mtu=1300)
    report = world.build([wanted])
    assert [result.op for result in report.results] == [SetLink(wanted, "mtu")]
    assert getattr(world.look(wanted)[wanted.key], "alias", None) == ""
    world.build([net.uplink])
    assert wanted.key in world.look(wanted)


# ---- ports of a bridge that was made again ---------------------------------------------------------------


def test_a_cable_whose_far_end_nobody_looks_at_becomes_a_port_again(world: World, net: Net) -> None:
    world.change_by_hand(Delete(net.bridge), Create(net.bridge), SetLink(net.bridge, "up"))
    seen = world.look(net.bridge)[net.near.key]
    assert isinstance(seen, Link)
    assert (seen.options, seen.master) == (Veth(peer_netns="", peer=""), "")
    port = Link(netns=net.node, name=seen.name, options=seen.options, master="br0")
    report = world.build([net.bridge, port])
    assert [result.op for result in report.results] == [SetLink(port, "master")]
    assert getattr(world.look(net.bridge)[net.near.key], "master", None) == "br0"
    world.build([net.bridge])
    assert net.near.key in world.look(net.bridge), "it stays theirs"
