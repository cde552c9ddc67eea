"""Desired states, snapshots and ownership as values."""

from __future__ import annotations

import msgspec

from muslin.model.kernel import (
    PROTOCOL_BOOT,
    PROTOCOL_MUSLIN,
    Address,
    AnyObject,
    Bridge,
    Link,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Rule,
    Sysctl,
)
from muslin.model.state import OWN_TABLE, DesiredState, Owned, Snapshot
from muslin.plan import traffic
from muslin.plan.traffic import TrafficOptions

BRIDGE = Link(netns="n1", name="br0", options=Bridge(), up=True)
ADDRESS = Address(netns="n1", link="br0", address="fd16::1/64")
STATE = DesiredState((Netns(netns="n1"), BRIDGE, ADDRESS, Sysctl(netns="", name="net/ipv4/ip_forward", value="1")))


def test_states_join_in_order() -> None:
    other = DesiredState((Netns(netns="n2"),))
    assert list(STATE | other) == [*STATE, Netns(netns="n2")]
    assert (STATE | other).netns_names == ("n1", "", "n2")
    assert (STATE | other).own_netns == ("n1", "n2")


def test_of_two_objects_with_one_key_the_later_counts_at_the_place_of_the_first() -> None:
    down = msgspec.structs.replace(BRIDGE, up=False)
    by_key = (STATE | DesiredState((down,))).by_key
    assert by_key[BRIDGE.key] == down
    assert list(by_key)[1] == BRIDGE.key


def test_a_snapshot_is_found_by_key_and_by_namespace() -> None:
    snapshot = Snapshot.of(STATE)
    assert snapshot.objects[ADDRESS.key] == ADDRESS
    assert snapshot.in_netns("n1") == [Netns(netns="n1"), BRIDGE, ADDRESS]
    assert snapshot.in_netns("nowhere") == []


def test_states_survive_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(STATE), type=DesiredState) == STATE


def test_what_was_recorded_is_ours_and_nothing_else() -> None:
    owned = Owned(frozenset({BRIDGE.key}))
    assert owned.covers(BRIDGE)
    assert not owned.covers(ADDRESS)
    assert not Owned().covers(Route(netns="", destination="::/0", protocol=PROTOCOL_MUSLIN))


def test_marks_count_where_they_are_asked_for() -> None:
    owned = Owned(marked=True)
    assert owned.covers(Route(netns="", destination="::/0", protocol=PROTOCOL_MUSLIN))
    assert owned.covers(Rule(netns="", family=4, priority=1, table=1))
    assert owned.covers(Nexthop(netns="", id=1, link="a"))
    assert not owned.covers(Route(netns="", destination="::/0", protocol=PROTOCOL_BOOT))
    assert not owned.covers(BRIDGE)


MARKED = msgspec.structs.replace(BRIDGE, alias="muslin: the bridge of node n1")
NEIGHBOUR = Neighbour(netns="n1", link="br0", address="fd16::2", mac="02:00:00:00:00:01")
TABLE = NftTable(netns="n1", family="inet", name="muslin", text="")
ELEMENT = NftElement(netns="n1", family="inet", table="muslin", set="nodes4", address="10.0.0.1")


def test_a_marked_link_and_our_table_are_ours_with_all_that_lies_on_them() -> None:
    snapshot = Snapshot.of([MARKED, ADDRESS, NEIGHBOUR, TABLE, ELEMENT])
    owned = Owned(marked=True)
    assert owned.covers(MARKED)
    assert owned.covers(TABLE)
    found = owned.with_marks(snapshot)
    assert found.keys == {MARKED.key, TABLE.key}
    assert all(found.covers(obj) for obj in snapshot.objects.values())
    assert found.with_marks(snapshot) == found


def test_what_looks_like_ours_but_is_not() -> None:
    others: list[AnyObject] = [
        msgspec.structs.replace(BRIDGE, alias="not muslin: just a bridge"),
        msgspec.structs.replace(BRIDGE, alias=None, name="muslin:"),
        msgspec.structs.replace(TABLE, family="ip"),
        msgspec.structs.replace(TABLE, name="muslin2"),
    ]
    snapshot = Snapshot.of([*others, ADDRESS, msgspec.structs.replace(ELEMENT, table="muslin2")])
    found = Owned(marked=True).with_marks(snapshot)
    assert found == Owned(marked=True)
    assert not [obj for obj in snapshot.objects.values() if found.covers(obj)]


def test_marks_count_for_nothing_unless_they_are_asked_for() -> None:
    snapshot = Snapshot.of([MARKED, ADDRESS, TABLE])
    owned = Owned().with_marks(snapshot)
    assert owned == Owned()
    assert not [obj for obj in snapshot.objects.values() if owned.covers(obj)]


def test_our_table_is_the_one_that_plans_make() -> None:
    (table,) = traffic.plan("n1", TrafficOptions(networks=()), [])
    assert isinstance(table, NftTable)
    assert (table.family, table.name) == OWN_TABLE


def test_objects_are_found_by_kind_in_order() -> None:
    for value in (STATE, Snapshot.of(STATE)):
        assert value.only(Link) == [BRIDGE]
        assert value.only(NftTable) == []
