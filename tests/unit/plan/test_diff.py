"""The diff: which steps, in which order, and what is left alone.

own netns ── br0        n1 ── a ═══ b ── n2        ═══ a veth, both ends Links
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings

from muslin.kernel.converge import MemoryJournal, converge
from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
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
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Delete, Op, Replace, SetLink
from muslin.model.state import DesiredState, Owned, Snapshot
from muslin.plan.diff import creations, diff
from tests.unit.plan.states import FOREIGN, foreign_kernel, look, settings_of, states

MAC = "02:00:00:00:00:01"
N1, N2 = Netns(netns="n1"), Netns(netns="n2")
A = Link(netns="n1", name="a", options=Veth(peer_netns="n2", peer="b"), mtu=1400, up=True)
B = Link(netns="n2", name="b", options=Veth(peer_netns="n1", peer="a"), mtu=1400, up=True)
BRIDGE = Link(netns="n1", name="br0", options=Bridge(), up=True)


def desired(*objects: AnyObject) -> DesiredState:
    return DesiredState(objects)


def seen(*objects: AnyObject) -> Snapshot:
    """These objects as the kernel shows them: every attribute of a link has a value."""

    def shown(obj: AnyObject) -> AnyObject:
        if not isinstance(obj, Link):
            return obj
        values = {"mtu": obj.mtu or 1500, "mac": obj.mac or MAC, "alias": obj.alias or ""}
        return msgspec.structs.replace(obj, **values, master=obj.master or "", up=bool(obj.up))

    return Snapshot.of(shown(obj) for obj in objects)


def owning(*objects: AnyObject) -> Owned:
    return Owned(frozenset(obj.key for obj in objects))


def words(ops: tuple[Op, ...]) -> list[str]:
    """Operations as short text: the verb, the kind and, for a link's attribute, which one."""
    return [
        " ".join(
            [
                type(op).__name__,
                *map(str, op.key[::2] if op.key[0] == "link" else op.key[:2]),
                *([op.attribute] if isinstance(op, SetLink) else []),
            ]
        )
        for op in ops
    ]


# ---- additions -------------------------------------------------------------------------------------------


def test_nothing_is_done_where_everything_stands() -> None:
    things = (N1, N2, A, B, BRIDGE, Address(netns="n1", link="a", address="fd16::1/64"))
    assert diff(desired(*things), seen(*things)) == ()


def test_creation_follows_what_things_stand_on() -> None:
    # Written down in just the wrong order.
    things: tuple[AnyObject, ...] = (
        NftTable(netns="n1", family="ip", name="t", text=""),
        Rule(netns="n1", family=4, priority=1, table=1),
        Route(netns="n1", destination="10.1.0.0/16", nexthop_id=1),
        FdbEntry(netns="n1", link="v", mac=MAC, destination="10.0.0.2"),
        Neighbour(netns="n1", link="v", address="10.0.0.2", mac=MAC),
        Nexthop(netns="n1", id=1, link="a"),
        Address(netns="n1", link="a", address="10.0.0.1/24"),
        Sysctl(netns="n1", name="net/ipv4/conf/a/rp_filter", value="0"),
        Link(netns="n1", name="v", options=Vxlan(vni=1, local="10.0.0.1", underlay="a")),
        msgspec.structs.replace(A, master="br0"),
        Link(netns="n1", name="br0", options=Bridge()),
        Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1"),
        N2,
        N1,
    )
    assert words(diff(desired(*things), Snapshot())) == [
        "Create netns n2",
        "Create netns n1",
        "Replace sysctl n1",  # before the links, which inherit
        "Create link a",
        "Create link br0",
        "Create link v",
        "SetLink link a master",
        "Create address n1",
        "Create nft n1",  # before anything is up that it looks at
        "Replace sysctl n1",  # of the link: before it is up
        "SetLink link a up",
        "Create nexthop n1",
        "Create neighbour n1",
        "Create fdb n1",
        "Create route n1",
        "Create rule n1",
    ]


def test_a_veth_is_created_once_and_its_far_end_is_set() -> None:
    far = msgspec.structs.replace(B, mac=MAC)
    assert words(diff(desired(N1, N2, A, far), seen(N1, N2))) == [
        "Create link a",
        # the message that makes the cable says size and MAC of its near end only
        "SetLink link b mtu",
        "SetLink link b mac",
        "SetLink link a up",
        "SetLink link b up",
    ]


def test_a_new_tun_device_gets_its_size_afterwards_and_a_new_bridge_with_its_creation() -> None:
    tun = Link(netns="n1", name="tun0", options=Tun(), mtu=1472)
    bridge = Link(netns="n1", name="br0", options=Bridge(), mtu=1400, mac=MAC, alias="", master="", up=False)
    assert words(diff(desired(tun, bridge), seen(N1))) == [
        "Create link tun0",
        "Create link br0",
        "SetLink link tun0 mtu",
    ]


def test_a_loopback_is_never_created_only_set() -> None:
    lo = Link(netns="n1", name="lo", options=Loopback(), up=True)
    assert words(diff(desired(N1, lo), Snapshot())) == ["Create netns n1", "SetLink link lo up"]


def test_only_the_attributes_that_differ_are_set() -> None:
    there = Link(netns="n1", name="a", options=Bridge(), mtu=1500, mac=MAC, alias="x", master="", up=True)
    for attribute, value in (("mtu", 1400), ("mac", "02:00:00:00:00:02"), ("alias", ""), ("up", False)):
        wanted = msgspec.structs.replace(there, **{attribute: value})
        (op,) = diff(desired(wanted), Snapshot.of([there]))
        assert op == SetLink(wanted, attribute)  # type: ignore[arg-type]
    open_fields = Link(netns="n1", name="a", options=Bridge())
    assert diff(desired(open_fields), Snapshot.of([there])) == ()


def test_a_route_of_another_gateway_is_replaced_in_one_step() -> None:
    old = Route(netns="n1", destination="172.16.1.0/24", via="10.0.0.2", link="a")
    new = msgspec.structs.replace(old, via="10.0.0.3")
    assert diff(desired(new), seen(N1, old)) == (Replace(new, old),)


def test_a_route_of_another_metric_is_added_before_the_old_one_goes() -> None:
    old = Route(netns="n1", destination="172.16.1.0/24", link="a")
    new = msgspec.structs.replace(old, metric=5)
    assert diff(desired(new), seen(N1, old), owning(old)) == (Create(new), Delete(old))


@pytest.mark.parametrize("destination", ["10.1.0.0/16", "fd16:1::/64"])
def test_a_route_turns_to_another_link_in_one_step(destination: str) -> None:
    old = Route(netns="n1", destination=destination, link="a")
    new = msgspec.structs.replace(old, link="vx0")
    assert diff(desired(new), seen(N1, old), owning(old)) == (Replace(new, old),)


def test_a_next_hop_in_use_turns_when_its_new_neighbour_is_there() -> None:
    old = Nexthop(netns="n1", id=7, link="a", via="172.16.1.0", onlink=True)
    new = msgspec.structs.replace(old, link="vx0")
    route = Route(netns="n1", destination="172.16.1.0/24", nexthop_id=7)
    neighbour = Neighbour(netns="n1", link="vx0", address="172.16.1.0", mac=MAC)
    entry = FdbEntry(netns="n1", link="vx0", mac=MAC, destination="10.0.0.2")

    ops = diff(desired(new, route, neighbour, entry), seen(N1, old, route))

    assert ops == (Create(neighbour), Create(entry), Replace(new, old))


# ---- links in the way ------------------------------------------------------------------------------------


def test_a_link_of_ours_of_another_make_is_removed_and_made_again_with_all_that_stood_on_it() -> None:
    bridge = Link(netns="n1", name="x", options=Bridge(), up=True)
    tun = Link(netns="n1", name="x", options=Tun(), up=True)
    address = Address(netns="n1", link="x", address="10.0.0.1/24")
    ops = diff(desired(N1, tun, address), seen(N1, bridge, address), owning(N1, bridge, address))
    assert words(ops) == ["Delete link x", "Create link x", "Create address n1", "SetLink link x up"]


def test_what_stood_on_what_stood_on_a_removed_link_is_made_again_too() -> None:
    bridge = Link(netns="n1", name="x", options=Bridge(), up=True)
    tun = Link(netns="n1", name="x", options=Tun(), up=True)
    vxlan = Link(netns="n1", name="v", options=Vxlan(vni=1, local="10.0.0.1", underlay="x"), up=True)
    entry = FdbEntry(netns="n1", link="v", mac=MAC, destination="10.0.0.2")
    things = (N1, bridge, vxlan, entry)
    assert words(diff(desired(N1, tun, vxlan, entry), seen(*things), owning(*things))) == [
        "Delete link x",
        "Create link x",
        "Create link v",
        "SetLink link x up",
        "SetLink link v up",
        "Create fdb n1",
    ]


def test_a_foreign_link_that_holds_our_name_is_not_removed_and_nothing_is_done_to_it() -> None:
    foreign = Link(netns="", name="br0", options=OtherKind(kind="bond"), up=False)
    ours = Link(netns="", name="br0", options=Bridge(), mtu=1400, up=True)
    # The creation will be refused (EEXIST), and the report says so.
    there = seen(foreign).objects[foreign.key]
    assert diff(desired(ours), seen(foreign)) == (Create(ours, against=there),)


def test_a_veth_to_another_place_goes_once_whichever_end_is_in_the_way() -> None:
    c = Link(netns="n1", name="c", options=Bridge())
    new_a = msgspec.structs.replace(A, options=Veth(peer_netns="n1", peer="d"))
    d = Link(netns="n1", name="d", options=Veth(peer_netns="n1", peer="a"))
    ops = diff(desired(N1, N2, new_a, d, c), seen(N1, N2, A, B), owning(N1, N2, A, B))
    assert [op for op in words(ops) if op.startswith(("Delete", "Create"))] == [
        "Delete link a",
        "Create link a",
        "Create link c",
    ]


def test_both_ends_of_a_veth_in_the_way_take_one_removal() -> None:
    new_a, new_b = (Link(netns=end.netns, name=end.name, options=Bridge()) for end in (A, B))
    ops = diff(desired(N1, N2, new_a, new_b), seen(N1, N2, A, B), owning(A, B))
    assert words(ops) == ["Delete link a", "Create link a", "Create link b"]


# ---- removals --------------------------------------------------------------------------------------------


def test_nothing_unowned_is_ever_deleted() -> None:
    assert diff(DesiredState(), seen(N1, N2, A, B, BRIDGE, *FOREIGN)) == ()


def test_removal_goes_against_the_order_of_creation() -> None:
    things: tuple[AnyObject, ...] = (
        Address(netns="", link="eth0", address="10.0.0.1/24"),
        Nexthop(netns="", id=1, link="eth0"),
        Route(netns="", destination="10.1.0.0/16", link="eth0", nexthop_id=1),
        Rule(netns="", family=4, priority=1, table=1),
        NftTable(netns="", family="ip", name="t", text=""),
    )
    eth0 = FOREIGN[0]
    assert words(diff(DesiredState(), seen(eth0, *things), owning(*things))) == [
        "Delete rule ",
        "Delete route ",
        "Delete nexthop ",
        "Delete nft ",
        "Delete address ",
    ]


def test_a_namespace_takes_its_content_along() -> None:
    address = Address(netns="n1", link="a", address="10.0.0.1/24")
    things = (N1, A, B, BRIDGE, address, Rule(netns="n1", family=4, priority=1, table=1))
    # b, in a namespace that stays, would only go later, with the background work of the kernel.
    assert words(diff(DesiredState(), seen(N2, *things), owning(*things))) == ["Delete link b", "Delete netns n1"]
    assert diff(DesiredState(), seen(N2, *things), owning(N2, *things)) == (Delete(N1), Delete(N2))


def test_a_link_takes_addresses_routes_and_the_devices_on_it_along() -> None:
    vxlan = Link(netns="n1", name="v", options=Vxlan(vni=1, local="10.0.0.1", underlay="br0"))
    things = (
        BRIDGE,
        vxlan,
        FdbEntry(netns="n1", link="v", mac=MAC, destination="10.0.0.2"),
        Address(netns="n1", link="br0", address="fd16::1/64"),
        Route(netns="n1", destination="::/0", link="br0"),
    )
    (op,) = diff(desired(N1), seen(N1, *things), owning(*things))
    assert op.key == BRIDGE.key


def test_a_veth_has_two_ends_and_one_removal() -> None:
    assert words(diff(desired(N1, N2), seen(N1, N2, A, B), owning(A, B))) == ["Delete link a"]


def test_additions_come_before_removals() -> None:
    old = Address(netns="", link="eth0", address="10.0.0.1/24")
    new = Address(netns="", link="eth0", address="10.1.0.1/24")
    assert diff(desired(new), seen(FOREIGN[0], old), owning(old)) == (Create(new), Delete(old))


def test_neither_loopbacks_nor_links_that_muslin_does_not_build_are_deleted() -> None:
    lo = Link(netns="n1", name="lo", options=Loopback())
    bond = Link(netns="n1", name="bond0", options=OtherKind(kind="bond"))
    assert diff(DesiredState(), seen(N1, lo, bond), owning(lo, bond)) == ()


def test_marked_routes_are_ours_where_marks_count() -> None:
    ours = Route(netns="", destination="10.1.0.0/16", link="eth0", protocol=PROTOCOL_MUSLIN)
    theirs = Route(netns="", destination="10.2.0.0/16", link="eth0")
    assert diff(DesiredState(), seen(FOREIGN[0], ours, theirs), Owned(marked=True)) == (Delete(ours),)


FOREIGN_AND_WANTED: list[tuple[AnyObject, AnyObject]] = [
    (
        Route(netns="", destination="10.1.0.0/16", via="192.0.2.8", link="eth0", protocol=4),
        Route(netns="", destination="10.1.0.0/16", via="192.0.2.9", link="eth0", protocol=PROTOCOL_MUSLIN),
    ),
    (
        Nexthop(netns="", id=1, link="eth0", via="192.0.2.8", protocol=4),
        Nexthop(netns="", id=1, link="eth0", via="192.0.2.9"),
    ),
    (
        Neighbour(netns="", link="eth0", address="192.0.2.8", mac=MAC),
        Neighbour(netns="", link="eth0", address="192.0.2.8", mac="02:00:00:00:00:02"),
    ),
    (
        FdbEntry(netns="", link="eth0", mac=MAC, destination="192.0.2.8"),
        FdbEntry(netns="", link="eth0", mac=MAC, destination="192.0.2.9"),
    ),
    (
        NftTable(netns="", family="inet", name="theirs", text="chain c {\n}"),
        NftTable(netns="", family="inet", name="theirs", text=""),
    ),
]


@pytest.mark.parametrize(("theirs", "wanted"), FOREIGN_AND_WANTED)
def test_what_is_somebody_elses_is_never_replaced_where_marks_count(theirs: AnyObject, wanted: AnyObject) -> None:
    observed = seen(FOREIGN[0], theirs)
    assert diff(desired(wanted), observed, Owned(marked=True)) == (Create(wanted, against=theirs),)
    assert diff(desired(wanted), observed) == (Replace(wanted, theirs),), "a lab has its namespaces to itself"
    recorded = Owned(frozenset({theirs.key}), marked=True)
    assert diff(desired(wanted), observed, recorded) == (Replace(wanted, theirs),)


def test_what_carries_our_mark_is_ours_without_a_record() -> None:
    marked = Link(netns="", name="vx", options=Vxlan(vni=1, local="10.0.0.1"), alias="muslin: vxlan", up=True)
    things: list[AnyObject] = [
        marked,
        Address(netns="", link="vx", address="10.1.0.0/32"),
        FdbEntry(netns="", link="vx", mac=MAC, destination="10.0.0.2"),
        NftTable(netns="", family="inet", name="muslin", text="chain c {\n}"),
        NftElement(netns="", family="inet", table="muslin", set="nodes4", address="10.0.0.2"),
    ]
    observed = seen(*FOREIGN, *things)
    table, element = things[-2:]
    assert words(diff(DesiredState(), observed, Owned(marked=True))) == ["Delete nft ", "Delete link vx"]
    assert diff(desired(marked, table), observed, Owned(marked=True)) == (
        Delete(things[2]),
        Delete(element),
        Delete(things[1]),
    )
    moved = msgspec.structs.replace(things[2], destination="10.0.0.3")
    assert diff(desired(moved, *things), observed, Owned(marked=True)) == ()
    assert diff(desired(*things, moved), observed, Owned(marked=True)) == (Replace(moved, things[2]),)


def test_elements_live_through_a_replacement_of_their_table_if_their_set_does() -> None:
    def table(*sets: tuple[str, str], chain: str = "c") -> NftTable:
        blocks = [f"set {name} {{\ntype {kind}\n}}" for name, kind in sets]
        text = "\n".join([*blocks, f"chain {chain} {{\n}}"])
        return NftTable(netns="", family="inet", name="t", text=text)

    def element(name: str, address: str) -> NftElement:
        return NftElement(netns="", family="inet", table="t", set=name, address=address)

    old = table(("a", "ipv4_addr"), ("b", "ipv4_addr"))
    kept, stale, lost = element("a", "10.0.0.1"), element("a", "10.0.0.2"), element("b", "10.0.0.3")
    observed = seen(old, kept, stale, lost)
    same_sets = table(("a", "ipv4_addr"), ("b", "ipv4_addr"), chain="d")
    assert diff(desired(same_sets, kept, lost), observed, owning(old, kept, stale, lost)) == (
        Replace(same_sets, old),
        Delete(stale),
    )
    fewer_sets = table(("a", "ipv4_addr"))
    assert diff(desired(fewer_sets, kept), observed, owning(old, kept, lost)) == (Replace(fewer_sets, old),)
    other_type = table(("a", "ipv4_addr"), ("b", "ipv6_addr"))
    new = element("b", "fd00::1")
    assert diff(desired(other_type, kept, new), observed) == (Replace(other_type, old), Create(new))


def test_a_link_of_others_that_serves_us_does_not_get_our_mark() -> None:
    bridge = Link(netns="", name="br0", options=Bridge(), alias="muslin: bridge", up=True)
    theirs = msgspec.structs.replace(bridge, alias="", up=False)
    marked = Owned(marked=True)
    assert diff(desired(bridge), seen(theirs), marked) == (SetLink(bridge, "up"),)
    assert words(diff(desired(bridge), Snapshot(), marked))[1:] == ["SetLink link br0 alias", "SetLink link br0 up"]
    ours = Owned(frozenset({bridge.key}), marked=True)
    assert words(diff(desired(bridge), seen(theirs), ours)) == ["SetLink link br0 alias", "SetLink link br0 up"]


# ---- settings --------------------------------------------------------------------------------------------

FORWARD = Sysctl(netns="", name="net/ipv4/ip_forward", value="1")


def test_a_setting_is_written_only_when_it_differs_and_the_old_value_is_named() -> None:
    off = msgspec.structs.replace(FORWARD, value="0")
    assert diff(desired(FORWARD), seen(off)) == (Replace(FORWARD, off),)
    assert diff(desired(FORWARD), seen(FORWARD)) == ()


def test_a_setting_that_could_not_be_seen_is_written() -> None:
    assert diff(desired(N1, msgspec.structs.replace(FORWARD, netns="n1")), Snapshot())[1:] == (
        Replace(msgspec.structs.replace(FORWARD, netns="n1")),
    )


def test_a_setting_no_longer_wanted_goes_back_to_what_it_was() -> None:
    owned = Owned(frozenset({FORWARD.key}), {FORWARD.key: "0"})
    assert diff(DesiredState(), seen(FORWARD), owned) == (
        Replace(msgspec.structs.replace(FORWARD, value="0"), FORWARD),
    )
    assert diff(DesiredState(), seen(msgspec.structs.replace(FORWARD, value="0")), owned) == ()
    assert diff(DesiredState(), Snapshot(), owned) == ()
    assert diff(desired(FORWARD), seen(FORWARD), owned) == ()


# ---- all of it -------------------------------------------------------------------------------------------


def test_creations_is_the_diff_from_nothing_and_refuses_a_state_that_needs_more() -> None:
    assert creations(desired(N1, BRIDGE)) == diff(desired(N1, BRIDGE), Snapshot())
    with pytest.raises(ValueError, match=r"\['', 'n2'\]"):
        creations(desired(N1, B, FORWARD))


@settings(max_examples=100)
@given(states(), states())
def test_any_state_follows_any_other_in_one_pass_and_nothing_foreign_is_touched(
    one: DesiredState, other: DesiredState
) -> None:
    kernel = foreign_kernel()
    before, values = look(kernel), settings_of(kernel, one, other)
    journal = MemoryJournal()
    for state in (one, other, one, DesiredState()):
        report = converge(kernel, state, journal)
        assert report.ok, [result.describe() for result in (*report.failed, *report.skipped)]
        assert converge(kernel, state, journal).results == ()
        fresh = foreign_kernel()
        assert converge(fresh, state).ok
        assert look(kernel) == look(fresh)
        for obj in FOREIGN:
            assert look(kernel).objects[obj.key] == before.objects[obj.key]
    assert look(kernel) == before
    assert settings_of(kernel, one, other) == values
    assert journal.owned == Owned()


@settings(max_examples=50)
@given(states(), states())
def test_links_of_others_that_hold_our_names_stay_through_everything(one: DesiredState, other: DesiredState) -> None:
    taken: tuple[AnyObject, ...] = tuple(
        Link(netns="", name=name, options=OtherKind(kind="dummy"), mtu=9000, up=True)
        for name in ("br0", "x", "v0", "vx0")
    )
    kernel = foreign_kernel((*FOREIGN, *taken))
    before = look(kernel)
    journal = MemoryJournal()
    for state in (one, one, other, one, DesiredState()):
        converge(kernel, state, journal)
        for obj in taken:
            assert look(kernel).objects[obj.key] == before.objects[obj.key]
    assert look(kernel) == before
