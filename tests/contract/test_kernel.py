"""What every kernel behind ``kernel.base.Kernel`` does, the fake and Linux alike.

Most tests build this, both families everywhere:

    node ── br0 172.16.0.1/24 ── v1 ═══ eth0 172.16.0.2/24 ── con      ═══ a veth
                fd16::1/64                   fd16::2/64
    node ── up0 (a bridge without ports) 10.0.0.1/24, fd10::1/64: the way out
"""

from __future__ import annotations

import errno

import msgspec
import pytest

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
from muslin.model.state import Owned
from tests.contract.kernels import World, created, undo, world

__all__ = ["world"]
pytestmark = pytest.mark.contract

MAC1, MAC2, MAC3 = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
FAMILIES: tuple[Family, ...] = (4, 6)
REMOTE = {4: "172.20.0.0/16", 6: "fd20::/64"}
GATEWAY = {4: "10.0.0.2", 6: "fd10::2"}
OTHER_GATEWAY = {4: "10.0.0.3", 6: "fd10::3"}
BEYOND = {4: "10.9.0.2", 6: "fd19::2"}
CHAIN = "chain forward {\ntype filter hook forward priority filter; policy accept;\ncounter accept\n}"


class Net:
    """The network of the drawing, with names of this test alone."""

    def __init__(self, world: World) -> None:
        self.node, self.con = world.netns("node"), world.netns("con")
        self.bridge = Link(netns=self.node, name="br0", options=Bridge(), up=True)
        self.uplink = Link(netns=self.node, name="up0", options=Bridge(), up=True)
        near, far = Veth(peer_netns=self.con, peer="eth0"), Veth(peer_netns=self.node, peer="v1")
        self.near = Link(
            netns=self.node, name="v1", options=near, mtu=1400, mac=MAC1, alias="cable", master="br0", up=True
        )
        self.far = Link(netns=self.con, name="eth0", options=far, mtu=1400, mac=MAC2, alias="con", up=True)
        self.vxlan = Link(
            netns=self.node,
            name="vx0",
            options=Vxlan(vni=7, local="10.0.0.1", underlay="up0"),
            mtu=1450,
            mac=MAC3,
            up=True,
        )
        self.tun = Link(netns=self.node, name="tun0", options=Tun(), mtu=1472, up=True)
        self.addresses = [
            *self.address(self.node, "br0", "172.16.0.1/24", "fd16::1/64"),
            *self.address(self.node, "up0", "10.0.0.1/24", "fd10::1/64"),
            *self.address(self.con, "eth0", "172.16.0.2/24", "fd16::2/64"),
        ]
        self.settings = [
            Sysctl(netns=self.node, name="net/ipv4/ip_forward", value="1"),
            Sysctl(netns=self.node, name="net/ipv6/conf/all/forwarding", value="1"),
            Sysctl(netns=self.node, name="net/ipv4/conf/v1/rp_filter", value="2"),
        ]
        self.routes = [
            Route(netns=self.con, destination="0.0.0.0/0", via="172.16.0.1", link="eth0"),
            Route(netns=self.con, destination="::/0", via="fd16::1", link="eth0"),
        ]

    @staticmethod
    def address(netns: str, link: str, *texts: str) -> list[Address]:
        return [Address(netns=netns, link=link, address=text) for text in texts]

    @property
    def base(self) -> list[AnyObject]:
        """Everything in the drawing."""
        return [
            Netns(netns=self.node),
            Netns(netns=self.con),
            Link(netns=self.con, name="lo", options=Loopback(), up=True),
            self.bridge,
            self.uplink,
            self.near,
            self.far,
            *self.settings,
            *self.addresses,
            *self.routes,
        ]

    @property
    def rich(self) -> list[AnyObject]:
        """And one of every other kind, in both families where it has one."""
        more: list[AnyObject] = [self.vxlan, self.tun]
        for family in FAMILIES:
            more += [
                self.route(family, destination=REMOTE[family]),
                Nexthop(netns=self.node, id=family, link="up0", via=GATEWAY[family]),
                self.route(family, destination={4: "172.21.0.0/16", 6: "fd21::/64"}[family], nexthop_id=family),
                Route(netns=self.node, destination={4: "172.22.0.0/16", 6: "fd22::/64"}[family], kind="blackhole"),
                Rule(netns=self.node, family=family, priority=100, table=100),
                Rule(netns=self.node, family=family, priority=100, table=101, source=REMOTE[family], iif="br0"),
                Neighbour(netns=self.node, link="vx0", address=BEYOND[family], mac=MAC1),
            ]
        # A vxlan device speaks to other hosts in the family of its own address only.
        more.append(FdbEntry(netns=self.node, link="vx0", mac=MAC1, destination=GATEWAY[4]))
        more.append(NftTable(netns=self.node, family="inet", name="ours", text=CHAIN))
        return [*self.base, *more]

    def route(self, family: Family, destination: str | None = None, nexthop_id: int | None = None) -> Route:
        """A route of the node by the way out."""
        where = destination or REMOTE[family]
        if nexthop_id:
            return Route(netns=self.node, destination=where, nexthop_id=nexthop_id)
        return Route(netns=self.node, destination=where, via=GATEWAY[family], link="up0")


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
    from muslin.kernel.converge import converge
    from muslin.model.state import DesiredState

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


def test_namespaces_that_do_not_exist_are_simply_not_seen(world: World, net: Net) -> None:
    assert world.look(*net.rich) == {}


def test_everything_goes_when_nothing_is_desired(world: World, net: Net) -> None:
    world.build(net.rich)
    report = world.build([])
    assert {type(result.op) for result in report.results} <= {Delete, Replace}
    assert [result.op for result in report.results if isinstance(result.op, Delete)] == [
        Delete(Netns(netns=net.node)),
        Delete(Netns(netns=net.con)),
    ]
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
    for wanted in (direct, old, msgspec.structs.replace(old, mtu=1300), old):
        report = world.build([*net.base, wanted])
        assert [result.op.key for result in report.results] == ([] if wanted is old and report.ok and not report.results
                                                                else [old.key])  # fmt: skip


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


def test_a_route_over_a_link_that_is_down_fails_by_errno(world: World, net: Net) -> None:
    down = msgspec.structs.replace(net.uplink, up=False)
    objects = [down if obj is net.uplink else obj for obj in net.base]
    report = world.converge([*objects, *(net.route(family) for family in FAMILIES)])
    assert [result.errno for result in report.failed][:1] == [errno.ENETDOWN]
    assert len(report.failed) == 2
    assert all(isinstance(result.op.object, Route) for result in report.failed)


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
        assert [(result.op, result.errno) for result in report.failed] == [(Create(net.tun), errno.EEXIST)]
        assert [result.op for result in report.skipped] == [Create(address)]
    there = world.look(foreign)
    assert there[foreign.key].satisfied_by(foreign) or getattr(there[foreign.key], "options", None) == Bridge()
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
    before = world.look(*net.settings)
    world.build(net.base)
    assert world.look(*net.settings) != before
    report = world.build(bare)
    assert {result.op.key for result in report.results} == {setting.key for setting in net.settings}
    assert world.look(*net.settings) == before
    assert not world.journal.owned.sysctls


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
    texts = (CHAIN, CHAIN.replace("counter accept", "counter drop"), "", CHAIN)
    for text in texts:
        ours = NftTable(netns=net.node, family="inet", name="ours", text=text)
        report = world.build([*net.base, ours])
        assert [result.op for result in report.results if isinstance(result.op.object, NftTable)] == [
            report.results[-1].op
        ]
        assert world.look(ours)[theirs.key] == theirs
    spoiled = NftTable(netns=net.node, family="inet", name="ours", text="chain else {\n}")
    world.change_by_hand(Replace(spoiled))
    report = world.build([*net.base, ours])
    assert [result.op.key for result in report.results] == [ours.key]
    world.build(net.base)
    assert [key for key in world.look(ours) if key[0] == "nft"] == [theirs.key]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_peer_moves_to_another_mac_and_another_host(world: World, net: Net, family: Family) -> None:
    vxlan = msgspec.structs.replace(net.vxlan, options=Vxlan(vni=7, local={4: "10.0.0.1", 6: "fd10::1"}[family]))
    for mac, host in ((MAC1, GATEWAY), (MAC2, GATEWAY), (MAC2, OTHER_GATEWAY), (MAC1, GATEWAY)):
        neighbour = Neighbour(netns=net.node, link="vx0", address=BEYOND[family], mac=mac)
        entry = FdbEntry(netns=net.node, link="vx0", mac=mac, destination=host[family])
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
        assert (by_one.key in there) is any(isinstance(obj, Route) for obj in step)


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_come_and_go_one_by_one_and_those_of_others_stay(world: World, net: Net, family: Family) -> None:
    theirs = Rule(netns=net.node, family=family, priority=50, table=50, protocol=3)
    rules = [
        Rule(netns=net.node, family=family, priority=100, table=100),
        Rule(netns=net.node, family=family, priority=100, table=101, source=REMOTE[family]),
        Rule(netns=net.node, family=family, priority=100, table=100, destination=REMOTE[family]),
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
