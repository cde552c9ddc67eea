"""Desired states, snapshots and ownership as values."""

from __future__ import annotations

import msgspec

from muslin.model.kernel import (
    PROTOCOL_BOOT,
    PROTOCOL_MUSLIN,
    Address,
    Bridge,
    Link,
    Netns,
    Nexthop,
    Route,
    Rule,
    Sysctl,
)
from muslin.model.state import DesiredState, Owned, Snapshot

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
