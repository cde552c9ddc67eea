"""What every kernel behind ``kernel.base.Kernel`` does, the fake and Linux alike.

Most tests build the network that tests/contract/network.py draws.
"""

from __future__ import annotations

import errno

import msgspec
import pytest

from muslin.kernel.converge import converge
from muslin.model.address import Family
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    LinkAttribute,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Delete, Op, Replace, SetLink
from muslin.model.state import DesiredState, Owned
from tests.contract.kernels import World, created, undo, world
from tests.contract.network import (
    BEYOND,
    CHAIN,
    FAMILIES,
    GATEWAY,
    MAC1,
    MAC2,
    OTHER_GATEWAY,
    REMOTE,
    Net,
)

__all__ = ["world"]
pytestmark = pytest.mark.contract


@pytest.fixture
def net(world: World) -> Net:
    return Net(world)


# ---- building and repairing ------------------------------------------------------------------------------


def test_everything_is_built_in_one_pass_and_the_second_has_nothing_to_do(world: World, net: Net) -> None:
    world.build(net.rich)
    there = world.look(*net.rich)
    for obj in net.rich:
        assert obj.satisfied_by(there[obj.key]), there[obj.key]  # type: ignore[arg-type]
    assert world.converge(net.rich).results == ()


def test_one_by_one_builds_the_same(world: World, net: Net) -> None:
    heard: list[Op] = []
    report = converge(world.kernel, DesiredState(tuple(net.rich)), world.journal, heard.append, one_by_one=True)
    assert report.ok
    assert heard == [result.op for result in report.results]
    assert world.ops_left(net.rich) == []


def test_each_object_spoiled_by_hand_is_put_right_and_a_settled_network_stays(world: World, net: Net) -> None:
    world.build(net.rich)
    for obj in net.rich:
        if isinstance(obj, Link) and isinstance(obj.options, Loopback):
            continue
        world.change_by_hand(undo(obj))
        report = world.converge(net.rich)
        assert report.ok, (obj, [result.describe() for result in (*report.failed, *report.skipped)])
        assert obj.key in {result.op.key for result in report.results} or isinstance(obj, Link)
        assert world.ops_left(net.rich) == [], obj


ATTRIBUTES: list[tuple[LinkAttribute, object]] = [
    ("mtu", 1300),
    ("mac", "02:00:00:00:00:09"),
    ("alias", "else"),
    ("alias", ""),
    ("master", ""),
    ("master", "up0"),
    ("up", False),
]


@pytest.mark.parametrize(("attribute", "value"), ATTRIBUTES)
def test_an_attribute_changed_by_hand_goes_back_and_a_new_wish_goes_through(
    world: World, net: Net, attribute: LinkAttribute, value: object
) -> None:
    world.build(net.base)
    changed = msgspec.structs.replace(net.near, **{attribute: value})
    world.change_by_hand(SetLink(changed, attribute))
    assert world.converge(net.base).ok
    assert world.ops_left(net.base) == []
    wish = [changed if obj is net.near else obj for obj in net.base]
    report = world.build(wish)
    assert [result.op for result in report.results] == [SetLink(changed, attribute)]
    there = world.look(changed)[changed.key]
    assert getattr(there, attribute) == value


def test_a_namespace_deleted_and_made_again_by_hand_is_noticed_and_filled(world: World, net: Net) -> None:
    world.build(net.rich)
    node = Netns(netns=net.node)
    world.change_by_hand(Delete(node), Create(node))
    report = world.build(net.rich)
    assert node.key not in created(report)
    assert net.bridge.key in created(report)


def test_what_was_removed_by_hand_in_the_meantime_counts_as_removed(world: World, net: Net) -> None:
    world.build(net.rich)
    for obj in reversed(net.rich):
        if isinstance(obj, Sysctl) or (isinstance(obj, Link) and isinstance(obj.options, Loopback)):
            continue
        world.by_hand.apply([Delete(obj)])
        (result,) = world.kernel.apply([Delete(obj)])
        assert result.outcome == "done", result.describe()


def test_namespaces_that_do_not_exist_are_simply_not_seen(world: World, net: Net) -> None:
    assert world.look(*net.rich) == {}


def test_everything_goes_when_nothing_is_desired(world: World, net: Net) -> None:
    world.build(net.rich)
    report = world.build([])
    assert {type(result.op) for result in report.results} <= {Delete, Replace}
    removed = [result.op.object for result in report.results if isinstance(result.op, Delete)]
    assert sorted(obj.describe() for obj in removed) == [f"ip netns add {name}" for name in (net.con, net.node)]
    assert world.look(*net.rich) == {}
    assert world.journal.owned == Owned()


# ---- routes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_route_changes_its_gateway_in_one_step(world: World, net: Net, family: Family) -> None:
    old = net.route(family)
    new = msgspec.structs.replace(old, via=OTHER_GATEWAY[family])
    world.build([*net.base, old])
    report = world.build([*net.base, new])
    assert [type(result.op) for result in report.results] == [Replace]
    direct = msgspec.structs.replace(old, via=None)
    for wanted in (direct, old, msgspec.structs.replace(old, mtu=1300)):
        report = world.build([*net.base, wanted])
        assert [(type(result.op), result.op.key) for result in report.results] == [(Replace, old.key)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_route_changes_its_link_its_metric_and_its_kind(world: World, net: Net, family: Family) -> None:
    old = net.route(family)
    for wanted in (
        old,
        msgspec.structs.replace(old, link="br0", via=None),
        msgspec.structs.replace(old, metric=5),
        Route(netns=net.node, destination=REMOTE[family], kind="unreachable"),
        msgspec.structs.replace(old, table=100),
        old,
    ):
        world.build([*net.base, wanted])
        routes = {
            (obj.table, obj.destination, obj.effective_metric)
            for obj in world.look(*net.base).values()
            if isinstance(obj, Route) and obj.destination == REMOTE[family]
        }
        assert routes == {(wanted.table, wanted.destination, wanted.effective_metric)}


def test_a_route_has_the_scope_that_is_asked_for(world: World, net: Net) -> None:
    for scope in (0, 253, 200):  # global, link, site (rtnetlink.h RT_SCOPE_*)
        wanted = Route(netns=net.node, destination=REMOTE[4], link="up0", scope=scope)
        world.build([*net.base, wanted])
        assert getattr(world.look(wanted)[wanted.key], "scope", None) == scope


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deleted_link_takes_its_routes_and_addresses_along_in_one_operation(
    world: World, net: Net, family: Family
) -> None:
    world.build([*net.base, net.route(family)])
    kept = [obj for obj in net.base if obj is not net.uplink and getattr(obj, "link", "") != "up0"]
    report = world.build(kept)
    assert [result.op for result in report.results] == [Delete(report.results[0].op.object)]
    assert report.results[0].op.key == net.uplink.key
    there = world.look(*net.base)
    assert net.route(family).key not in there
    assert not [obj for obj in there.values() if getattr(obj, "link", "") == "up0"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gateway_out_of_reach_fails_by_errno_and_all_else_goes_on(world: World, net: Net, family: Family) -> None:
    lost = Route(netns=net.node, destination="172.30.0.0/16" if family == 4 else "fd30::/64", via=BEYOND[family])
    fine = net.route(family)
    report = world.converge([*net.base, lost, fine])
    assert [(result.op.key, result.errno) for result in report.failed] == [
        (lost.key, errno.ENETUNREACH if family == 4 else errno.EHOSTUNREACH)
    ]
    assert fine.key in {result.op.key for result in report.done}
    assert report.skipped == ()
    assert world.ops_left([*net.base, fine]) == []
    # The other way out once there is a network for it.
    there = Address(netns=net.node, link="up0", address=f"{BEYOND[family][:-1]}1/{24 if family == 4 else 64}")
    world.build([*net.base, lost, fine, there])


def test_routes_over_a_link_that_is_down_fail_by_errno(world: World, net: Net) -> None:
    down = msgspec.structs.replace(net.uplink, up=False)
    objects = [down if obj is net.uplink else obj for obj in net.base]
    by_gateway = [net.route(family) for family in FAMILIES]
    direct = [msgspec.structs.replace(route, via=None, metric=7) for route in by_gateway]
    report = world.converge([*objects, *by_gateway, *direct])
    assert {result.op.key: result.errno for result in report.failed} == {
        by_gateway[0].key: errno.ENETUNREACH,
        by_gateway[1].key: errno.EHOSTUNREACH,
        direct[0].key: errno.ENETDOWN,
        direct[1].key: errno.ENETDOWN,
    }


# ---- links -----------------------------------------------------------------------------------------------


def test_a_foreign_link_that_holds_our_name_is_refused_and_stays_and_nothing_is_put_on_it(
    world: World, net: Net
) -> None:
    world.build([Netns(netns=net.node)])
    foreign = Link(netns=net.node, name="tun0", options=Bridge())
    world.change_by_hand(Create(foreign))
    address = Address(netns=net.node, link="tun0", address="fd17::1/64")
    objects = [*net.base, net.tun, address]
    for _ in range(3):
        report = world.converge(objects)
        assert [(result.op.object, result.errno) for result in report.failed] == [(net.tun, errno.EEXIST)]
        assert f"held by: {foreign.describe().partition(' mtu')[0]}".partition(" type")[0] in report.failed[0].reason
        assert [result.op for result in report.skipped] == [Create(address)]
    there = world.look(foreign)
    assert getattr(there[foreign.key], "options", None) == Bridge()
    assert address.key not in there
    world.change_by_hand(Delete(foreign))
    world.build(objects)


def test_a_link_of_ours_becomes_another_make_under_the_same_name(world: World, net: Net) -> None:
    address = Address(netns=net.node, link="x", address="fd17::1/64")
    inner = Link(netns=net.con, name="y", options=Veth(peer_netns=net.node, peer="x"), up=True)
    makes: list[list[AnyObject]] = [
        [Link(netns=net.node, name="x", options=Bridge(), up=True)],
        [Link(netns=net.node, name="x", options=Tun(), up=True)],
        [Link(netns=net.node, name="x", options=Veth(peer_netns=net.con, peer="y"), up=True), inner],
        [Link(netns=net.node, name="x", options=Vxlan(vni=8, local="10.0.0.1", underlay="up0"), up=True)],
        [Link(netns=net.node, name="x", options=Vxlan(vni=9, local="fd10::1", port=4790), up=True)],
        [Link(netns=net.node, name="x", options=Bridge(), up=True)],
    ]
    for links in makes:
        world.build([*net.base, *links, address])
    assert not [key for key in world.look(*net.base) if key[0] == "link" and key[2] == "y"]


def test_a_cable_moves_to_another_name_and_namespace(world: World, net: Net) -> None:
    third = world.netns("third")
    for netns, name in ((net.con, "eth1"), (third, "eth1"), (net.node, "eth1"), (third, "eth1"), (net.con, "eth1")):
        near = Link(netns=net.node, name="v2", options=Veth(peer_netns=netns, peer=name), up=True)
        far = Link(netns=netns, name=name, options=Veth(peer_netns=net.node, peer="v2"), mtu=1300, up=True)
        address = Address(netns=netns, link=name, address="fd17::1/64")
        world.build([*net.base, Netns(netns=third), far, near, address])


def test_a_cable_made_again_from_one_side_is_found_on_the_other(world: World, net: Net) -> None:
    world.build(net.base)
    # Same names, other make of the near end, and back: the far end has a new number each time.
    for near, far in ((Bridge(), Bridge()), (net.near.options, net.far.options)):
        objects = [
            msgspec.structs.replace(obj, options=near, master="", mac=None, mtu=None)
            if obj is net.near
            else msgspec.structs.replace(obj, options=far, mac=None, mtu=None)
            if obj is net.far
            else obj
            for obj in net.base
        ]
        world.build(objects)


def test_two_cables_swap_their_ends(world: World, net: Net) -> None:
    def cables(*pairs: tuple[str, str]) -> list[AnyObject]:
        # All near ends first: so everything is made and removed from that side.
        return [
            *(Link(netns=net.node, name=a, options=Veth(peer_netns=net.con, peer=b), up=True) for a, b in pairs),
            *(Link(netns=net.con, name=b, options=Veth(peer_netns=net.node, peer=a), mtu=1300) for a, b in pairs),
        ]

    straight, crossed = cables(("a", "c"), ("b", "d")), cables(("a", "d"), ("b", "c"))
    for objects in (straight, crossed, straight, cables(("a", "d")), straight):
        world.build([*net.base, *objects])


def test_a_device_goes_with_the_link_it_stands_on_and_comes_back_with_all_its_entries(world: World, net: Net) -> None:
    world.build(net.rich)
    world.change_by_hand(Delete(net.uplink))
    assert net.vxlan.key not in world.look(net.vxlan)
    world.build(net.rich)


# ---- addresses and settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("10.5.0.1/24",), ("10.5.0.2/24",)),
        (("10.5.0.1/24", "10.5.0.2/24"), ("10.5.0.2/24",)),
        (("10.5.0.1/24", "10.5.0.2/24", "10.5.0.3/24"), ("10.5.0.3/24", "10.5.0.4/24")),
        (("10.5.0.1/24",), ("10.5.0.1/16",)),
        (("fd15::1/64",), ("fd15::2/64",)),
        (("fd15::1/64", "10.5.0.1/24"), ("fd15::1/48", "10.5.0.1/25")),
    ],
)
def test_addresses_change_within_their_subnet_and_routes_by_it_stay(
    world: World, net: Net, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    link = Link(netns=net.node, name="x", options=Bridge(), up=True)
    routes = [Route(netns=net.node, destination="172.20.0.0/16", via="10.5.0.9", link="x")]
    routes = [route for route in routes if any("." in text for text in before)]
    for texts in (before, after, before):
        world.build([*net.base, link, *net.address(net.node, "x", *texts), *routes])
        there = {key[3] for key in world.look(link) if key[0] == "address" and key[2] == "x"}
        assert {text for text in there if not str(text).startswith("fe80")} == set(texts)


def test_settings_go_back_to_what_they_were_when_wanted_no_more(world: World, net: Net) -> None:
    bare = [obj for obj in net.base if not isinstance(obj, Sysctl)]
    world.build(bare)
    before = settings_of(world, net)
    world.build(net.base)
    assert settings_of(world, net) != before
    report = world.build(bare)
    assert {result.op.key for result in report.results} == {setting.key for setting in net.settings}
    assert settings_of(world, net) == before
    assert not world.journal.owned.sysctls


def settings_of(world: World, net: Net) -> list[AnyObject]:
    """The settings as they are; addresses that Linux makes itself come a moment later."""
    there = world.look(*net.settings)
    return [there[setting.key] for setting in net.settings]


def test_settings_of_a_namespace_made_in_the_same_pass_go_back_too(world: World, net: Net) -> None:
    world.build(net.base)
    world.build([obj for obj in net.base if not isinstance(obj, Sysctl)])
    there = world.look(*net.settings)
    assert [getattr(there[setting.key], "value", None) for setting in net.settings] == ["0", "0", "0"]


# ---- tables, neighbours, next hops, rules ----------------------------------------------------------------


def test_a_packet_filter_table_is_replaced_as_one_and_others_stay(world: World, net: Net) -> None:
    theirs = NftTable(netns=net.node, family="ip", name="theirs", text="chain c {\ncounter accept\n}")
    world.build([Netns(netns=net.node)])
    world.change_by_hand(Create(theirs))
    ours = NftTable(netns=net.node, family="inet", name="ours", text=CHAIN)
    for text in (CHAIN, CHAIN.replace("counter accept", "counter drop"), "", CHAIN):
        ours = msgspec.structs.replace(ours, text=text)
        report = world.build([*net.base, ours])
        assert [result.op.object for result in report.results if isinstance(result.op.object, NftTable)] == [ours]
        assert world.look(ours, theirs)[theirs.key] == theirs
    spoiled = NftTable(netns=net.node, family="inet", name="ours", text="chain else {\n}")
    world.change_by_hand(Replace(spoiled))
    report = world.build([*net.base, ours])
    assert [result.op.key for result in report.results] == [ours.key]
    world.build(net.base)
    assert [key for key in world.look(ours, theirs) if key[0] == "nft"] == [theirs.key]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_peer_moves_to_another_mac_and_another_host(world: World, net: Net, family: Family) -> None:
    vxlan = msgspec.structs.replace(net.vxlan, options=Vxlan(vni=7, local={4: "10.0.0.1", 6: "fd10::1"}[family]))
    neighbour = Neighbour(netns=net.node, link="vx0", address=BEYOND[family], mac=MAC1)
    entry = FdbEntry(netns=net.node, link="vx0", mac=MAC1, destination=GATEWAY[family])
    for mac, host in ((MAC1, GATEWAY), (MAC2, GATEWAY), (MAC2, OTHER_GATEWAY), (MAC1, GATEWAY)):
        neighbour = msgspec.structs.replace(neighbour, mac=mac)
        entry = msgspec.structs.replace(entry, mac=mac, destination=host[family])
        world.build([*net.base, vxlan, neighbour, entry])
        there = world.look(neighbour, entry)
        assert [obj for obj in there.values() if isinstance(obj, FdbEntry)] == [entry]
        assert [obj for obj in there.values() if isinstance(obj, Neighbour)] == [neighbour]
    world.build([*net.base, vxlan])
    assert not [key for key in world.look(neighbour, entry) if key[0] in ("fdb", "neighbour")]


@pytest.mark.parametrize("family", FAMILIES)
def test_routes_by_a_nexthop_object_follow_it_and_go_alone_or_with_it(world: World, net: Net, family: Family) -> None:
    hops = [Nexthop(netns=net.node, id=number, link="up0", via=GATEWAY[family]) for number in (1, 2)]
    moved = msgspec.structs.replace(hops[0], via=OTHER_GATEWAY[family])
    by_one, by_two = (net.route(family, nexthop_id=number) for number in (1, 2))
    plain = net.route(family)
    steps: list[list[AnyObject]] = [
        [*hops, by_one],
        [*hops, by_two],
        [moved, hops[1], by_one],
        [*hops, by_one, msgspec.structs.replace(by_one, metric=5000)],
        [*hops, by_one],
        [*hops, plain],
        [*hops, by_two],
        [*hops],
        [hops[0], by_one],
        [],
    ]
    for step in steps:
        world.build([*net.base, *step])
        there = world.look(*hops, by_one)
        assert sorted(key[2] for key in there if key[0] == "nexthop") == sorted(
            obj.id for obj in step if isinstance(obj, Nexthop)
        )
        routes = {key for key in there if key[0] == "route" and key[3] == REMOTE[family]}
        assert routes == {obj.key for obj in step if isinstance(obj, Route)}


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_come_and_go_one_by_one_and_those_of_others_stay(world: World, net: Net, family: Family) -> None:
    theirs = Rule(netns=net.node, family=family, priority=50, table=50, protocol=3)
    rules = [
        Rule(netns=net.node, family=family, priority=100, table=100),
        Rule(netns=net.node, family=family, priority=100, table=101, source=REMOTE[family]),
        # Not table 100: for Linux a rule that says less than another is the same rule (rule_exists, fib_rules.c).
        Rule(netns=net.node, family=family, priority=100, table=102, destination=REMOTE[family]),
        Rule(netns=net.node, family=family, priority=100, table=1000, iif="br0", fwmark=7),
    ]
    world.build([Netns(netns=net.node)])
    world.change_by_hand(Create(theirs))
    for wanted in (rules, rules[1:], rules[:1], rules, rules[::2], []):
        world.build([*net.base, *wanted])
        there = {key for key in world.look(*rules) if key[0] == "rule"}
        assert {rule.key for rule in rules} & there == {rule.key for rule in wanted}
        assert theirs.key in there


def test_a_rule_that_others_wrote_serves_us_and_stays_theirs(world: World, net: Net) -> None:
    theirs = Rule(netns=net.node, family=4, priority=50, table=50, protocol=3)
    world.build([Netns(netns=net.node)])
    world.change_by_hand(Create(theirs))
    ours = msgspec.structs.replace(theirs, protocol=77)
    assert world.ops_left([*net.base, ours])[-1:] != [ours.describe()]
    world.build([*net.base, ours])
    world.build(net.base)
    assert theirs.key in world.look(ours)
