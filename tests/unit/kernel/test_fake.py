"""What the fake kernel itself must get right; tests/contract/test_kernel.py holds it to what Linux does.

n1 ── a ═══ b ── n2      a is a port of br0
"""

from __future__ import annotations

import errno

import pytest

from muslin.kernel.base import Scope
from muslin.kernel.fake import FakeKernel
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Delete, Op, Replace, SetLink
from muslin.model.state import DesiredState, Owned

MAC = "02:00:00:00:00:01"
A = Link(netns="n1", name="a", options=Veth(peer_netns="n2", peer="b"), master="br0", up=True)
B = Link(netns="n2", name="b", options=Veth(peer_netns="n1", peer="a"), up=True)
BRIDGE = Link(netns="n1", name="br0", options=Bridge(), up=True)
ADDRESS = Address(netns="n1", link="a", address="10.0.0.1/24")


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    ops: list[Op] = [Create(Netns(netns="n1")), Create(Netns(netns="n2")), Create(A), Create(BRIDGE)]
    ops += [SetLink(A, "master"), SetLink(A, "up"), SetLink(B, "up"), Create(ADDRESS)]
    assert errnos(made, *ops) == [0] * 8
    return made


def errnos(kernel: FakeKernel, *ops: Op) -> list[int]:
    return [result.errno for result in kernel.apply(ops)]


def link_at(kernel: FakeKernel, netns: str, name: str) -> Link:
    found = kernel.objects["link", netns, name]
    assert isinstance(found, Link)
    return found


def test_a_namespace_comes_with_a_loopback_that_is_down(kernel: FakeKernel) -> None:
    lo = link_at(kernel, "n1", "lo")
    assert (lo.options, lo.up) == (Loopback(), False)


def test_a_veth_comes_with_both_ends_and_goes_with_both(kernel: FakeKernel) -> None:
    assert link_at(kernel, "n2", "b").options == Veth(peer_netns="n1", peer="a")
    kernel.apply([Delete(B)])
    assert A.key not in kernel.objects
    assert ADDRESS.key not in kernel.objects


def test_a_taken_name_is_refused_at_either_end(kernel: FakeKernel) -> None:
    clash = Link(netns="n1", name="c", options=Veth(peer_netns="n2", peer="b"))
    assert errnos(kernel, Create(BRIDGE), Create(clash), Create(Netns(netns="n1"))) == [errno.EEXIST] * 3
    assert clash.key not in kernel.objects


def test_a_deleted_bridge_frees_its_ports(kernel: FakeKernel) -> None:
    kernel.apply([Delete(BRIDGE)])
    assert link_at(kernel, "n1", "a").master == ""


@pytest.mark.parametrize(
    "obj",
    [
        Link(netns="nowhere", name="x", options=Bridge()),
        Link(netns="n1", name="x", options=Veth(peer_netns="nowhere", peer="y")),
        Link(netns="n1", name="x", options=Vxlan(vni=1, local="10.0.0.1", underlay="nothing")),
        Address(netns="n1", link="nothing", address="10.0.0.1/24"),
        Route(netns="n1", destination="10.0.0.0/8", nexthop_id=9),
        Sysctl(netns="n1", name="net/ipv4/conf/nothing/rp_filter", value="0"),
    ],
)
def test_what_stands_on_nothing_is_refused(kernel: FakeKernel, obj: AnyObject) -> None:
    before = dict(kernel.objects)
    assert errnos(kernel, Replace(obj) if isinstance(obj, Sysctl) else Create(obj)) == [errno.ENODEV]
    assert kernel.objects == before


@pytest.mark.parametrize(
    ("route", "number"),
    [
        (Route(netns="n1", destination="10.1.0.0/16", via="10.0.0.2"), 0),
        (Route(netns="n1", destination="10.1.0.0/16", via="10.0.0.2", link="a"), 0),
        (Route(netns="n1", destination="10.1.0.0/16", via="10.0.0.2", link="br0"), errno.ENETUNREACH),
        (Route(netns="n1", destination="10.1.0.0/16", via="10.0.1.2"), errno.ENETUNREACH),
        (Route(netns="n1", destination="10.1.0.0/16", via="10.0.1.2", link="a", onlink=True), 0),
        (Route(netns="n1", destination="fd16::/64", via="fd10::2"), errno.EHOSTUNREACH),
        (Route(netns="n1", destination="fd16::/64", via="fe80::1", link="a"), 0),
        (Route(netns="n1", destination="fd16::/64", via="fe80::1", link="br0"), errno.ENETDOWN),
        (Route(netns="n1", destination="fd16::/64", link="lo"), errno.ENETDOWN),
        (Route(netns="n1", destination="10.1.0.0/16", kind="blackhole"), 0),
    ],
)
def test_a_gateway_must_be_within_reach(kernel: FakeKernel, route: Route, number: int) -> None:
    assert errnos(kernel, Create(route)) == [number]


def test_a_link_taken_down_loses_its_routes_and_keeps_its_addresses(kernel: FakeKernel) -> None:
    route = Route(netns="n1", destination="10.1.0.0/16", via="10.0.0.2", link="a")
    down = Link(netns="n1", name="a", options=A.options, up=False)
    kernel.apply([Create(route), SetLink(down, "up")])
    assert route.key not in kernel.objects
    assert ADDRESS.key in kernel.objects


def test_a_namespace_takes_everything_along_also_its_settings(kernel: FakeKernel) -> None:
    setting = Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1")
    kernel.apply([Replace(setting), Delete(Netns(netns="n1"))])
    assert {obj.netns for obj in kernel.objects.values()} == {"n2"}
    assert B.key not in kernel.objects
    kernel.apply([Create(Netns(netns="n1"))])
    scope = Scope(netns=("n1",), sysctls=frozenset({("n1", setting.name)}))
    seen = kernel.observe(scope).objects[setting.key]
    assert isinstance(seen, Sysctl)
    assert seen.value == "0"


def test_a_nexthop_takes_its_routes_along(kernel: FakeKernel) -> None:
    hop = Nexthop(netns="n1", id=1, link="a")
    route = Route(netns="n1", destination="10.1.0.0/16", nexthop_id=1)
    kernel.apply([Create(hop), Create(route), Delete(hop)])
    assert route.key not in kernel.objects


def test_removing_what_is_gone_is_done(kernel: FakeKernel) -> None:
    (result,) = kernel.apply([Delete(Netns(netns="nowhere"))])
    assert result.outcome == "done"


def test_a_setting_says_what_it_overwrote(kernel: FakeKernel) -> None:
    one, two = (Sysctl(netns="", name="net/ipv4/ip_forward", value=value) for value in "12")
    assert [result.previous for result in kernel.apply([Replace(one), Replace(two)])] == ["0", "1"]


def test_a_look_holds_just_what_was_asked_for(kernel: FakeKernel) -> None:
    more: tuple[AnyObject, ...] = (
        Nexthop(netns="n1", id=1, link="a"),
        Neighbour(netns="n1", link="a", address="10.0.0.9", mac=MAC),
        FdbEntry(netns="n1", link="a", mac=MAC, destination="10.0.0.9"),
        Rule(netns="n1", family=4, priority=1, table=1),
        NftTable(netns="n1", family="ip", name="t", text=""),
    )
    kernel.apply([Create(obj) for obj in more])
    plain = kernel.observe(Scope(netns=("n1",))).objects
    assert {key[0] for key in plain} == {"netns", "link", "address"}
    assert not [key for key in plain if key[1] == "n2"]
    full = Scope(
        netns=("n1",), nft=frozenset({("n1", "ip", "t")}), neighbours=True, fdb=True, nexthops=True, rules=True
    )
    assert set(kernel.observe(full).objects) - set(plain) == {obj.key for obj in more}
    assert kernel.observe(Scope(netns=("nowhere",))).objects == {}


def test_faults_can_be_played(kernel: FakeKernel) -> None:
    kernel.refuse = lambda op: errno.EPERM if isinstance(op.object, Address) else 0
    results = kernel.apply([Create(Address(netns="n1", link="a", address="fd16::1/64")), Delete(BRIDGE)])
    assert [(result.outcome, result.errno) for result in results] == [("failed", errno.EPERM), ("done", 0)]


# ---- Scope.of: what a diff needs to see -------------------------------------------------------------------


def test_the_scope_is_as_large_as_the_question() -> None:
    plain = Scope.of(DesiredState((A, B, BRIDGE, ADDRESS)))
    assert plain == Scope(netns=("n1", "n2"), entry_links=frozenset())
    rich = Scope.of(
        DesiredState(
            (
                FdbEntry(netns="n1", link="a", mac=MAC, destination="10.0.0.9"),
                NftTable(netns="n2", family="ip", name="t", text=""),
                Sysctl(netns="", name="net/ipv4/ip_forward", value="1"),
            )
        )
    )
    assert set(rich.netns) == {"n1", "n2", ""}
    assert (rich.nft, rich.sysctls) == (frozenset({("n2", "ip", "t")}), frozenset({("", "net/ipv4/ip_forward")}))
    assert (rich.fdb, rich.neighbours, rich.nexthops, rich.rules) == (True, False, False, False)


def test_the_scope_holds_what_we_own_also_where_nothing_is_desired() -> None:
    setting = Sysctl(netns="n3", name="net/ipv4/ip_forward", value="1")
    keys = [
        A.key,
        Nexthop(netns="n4", id=1, link="a").key,
        Rule(netns="", family=4, priority=1, table=1).key,
        Neighbour(netns="", link="a", address="::1", mac=MAC).key,
        NftTable(netns="n5", family="ip", name="t", text="").key,
    ]
    scope = Scope.of(DesiredState(), Owned(frozenset(keys), {setting.key: "0"}))
    assert set(scope.netns) == {"n1", "n3", "n4", "", "n5"}
    assert scope.sysctls == {("n3", "net/ipv4/ip_forward")}
    assert scope.nft == {("n5", "ip", "t")}
    assert (scope.nexthops, scope.rules, scope.neighbours, scope.fdb) == (True, True, True, False)


def test_marks_are_looked_for_where_they_count() -> None:
    vxlan = Link(netns="n1", name="vx", options=Vxlan(vni=1, local="10.0.0.1"))
    state = DesiredState((vxlan, Link(netns="n1", name="br0", options=Bridge())))
    scope = Scope.of(state, Owned(marked=True))
    assert (scope.nexthops, scope.rules) == (True, True)
    assert scope.nft == {("n1", "inet", "muslin")}
    # The last peer's entries are still there when no other is wanted.
    assert (scope.neighbours, scope.fdb, scope.entry_links) == (True, True, frozenset({("n1", "vx")}))
    plain = Scope.of(state)
    assert (plain.nft, plain.neighbours, plain.fdb) == (frozenset(), False, False)


def test_only_links_that_can_have_entries_of_ours_are_asked_for_them() -> None:
    entry = FdbEntry(netns="n1", link="a", mac=MAC, destination="10.0.0.9")
    recorded = Neighbour(netns="n2", link="b", address="::1", mac=MAC)
    scope = Scope.of(DesiredState((A, B, BRIDGE, entry)), Owned(frozenset({recorded.key, BRIDGE.key})))
    assert scope.entry_links == frozenset({("n1", "a"), ("n2", "b")})


def test_the_sets_of_a_wanted_table_are_read_also_when_nothing_is_wanted_in_them() -> None:
    text = "set one {\ntype ipv4_addr\n}\nset two {\ntype ipv4_addr\nflags interval\n}\nchain c {\n}"
    table = NftTable(netns="n1", family="ip", name="t", text=text)
    element = NftElement(netns="n1", family="ip", table="other", set="s", address="10.0.0.1")
    scope = Scope.of(DesiredState((table, element)))
    assert scope.nft == {("n1", "ip", "t")}
    assert scope.nft_sets == {("n1", "ip", "t", "one"), ("n1", "ip", "other", "s")}


def test_the_far_end_of_a_cable_is_unknown_when_its_namespace_is_not_looked_at(kernel: FakeKernel) -> None:
    seen = kernel.observe(Scope(netns=("n1",))).objects[A.key]
    assert isinstance(seen, Link)
    assert seen.options == Veth(peer_netns="", peer="")
    assert kernel.observe(Scope(netns=("n1", "n2"))).objects[A.key] == link_at(kernel, "n1", "a")


def test_a_table_takes_its_elements_along(kernel: FakeKernel) -> None:
    table = NftTable(netns="n1", family="ip", name="t", text="set s {\ntype ipv4_addr\n}")
    element = NftElement(netns="n1", family="ip", table="t", set="s", address="10.0.0.1")
    kernel.apply([Create(table), Create(element), Delete(table)])
    assert element.key not in kernel.objects
