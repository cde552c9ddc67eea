"""Every cell of the lease machine's table, whatever the machine holds: no crash, an allowed state, sane actions."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muslin.lease.machine import ROWS, STATES, SYMBOLS, TABLE, WAITING, step
from muslin.lease.sight import symbol_of
from muslin.lease.values import (
    Action,
    AdvertisementChanged,
    Announce,
    ConfigChanged,
    Created,
    CreateFailed,
    CreateLease,
    CreateTaken,
    Deleted,
    DeleteFailed,
    DeleteLease,
    Due,
    Input,
    Machine,
    ReadFailed,
    Renewed,
    RenewFailed,
    RenewLease,
    RenewLost,
    SnapshotSeen,
    State,
    Stop,
    Symbol,
    Wait,
)
from muslin.model.lease import ClusterSnapshot, Lease
from tests.unit.lease.examples import CONFIG, DUAL, HERE, NOW, OTHER, THERE, lease, says, snapshot

OWN = lease("10.5.7.0/24", revision=5)
WORDS = st.sampled_from([says(HERE), says(HERE, "02:00:00:00:00:09"), says(THERE, "02:00:00:00:00:02")])
NAMES = st.sampled_from(
    [("10.5.7.0/24",), ("10.5.8.0/24",), ("10.5.7.0/25",), ("10.6.1.0/24",), ("10.5.7.0/24", "fd00:5:0:7::/64")]
)
ENDS = st.sampled_from([None, NOW - 10.0, NOW + 100.0, NOW + 86400.0])
LEASES = st.builds(Lease, subnets=NAMES, advertisement=WORDS, expires_at=ENDS, revision=st.integers(1, 20))
SNAPSHOTS = st.builds(
    ClusterSnapshot,
    revision=st.integers(1, 30),
    leases=st.lists(LEASES, max_size=4, unique_by=lambda held: held.name).map(tuple),
    unreadable=st.sampled_from([(), ("10.5.9.0-24",), ("rubbish",)]),
)
CONFIGS = st.sampled_from([CONFIG, DUAL, OTHER])
HAS_LEASE: tuple[State, ...] = ("holding", "renewing", "reclaiming")
AWAITS: tuple[State, ...] = ("claiming", "renewing", "reclaiming", "moving", "releasing")


@st.composite
def machines(draw: st.DrawFn, state: State) -> Machine:
    held = draw(LEASES) if state in HAS_LEASE else None
    asked = draw(LEASES)
    kinds: dict[str, Any] = {
        "claiming": st.sampled_from([CreateLease(asked, 86400.0), RenewLease(asked, 86400.0)]),
        "renewing": st.just(RenewLease(asked, 86400.0)),
        "reclaiming": st.just(CreateLease(asked, 86400.0)),
        "moving": st.just(DeleteLease(asked)),
        "releasing": st.just(DeleteLease(asked)),
    }
    begun = state not in ("idle", "released", "lost")
    return Machine(
        advertisement=draw(WORDS),
        previous=draw(st.sampled_from([(), ("10.5.7.0/24",)])),
        state=state,
        config=draw(CONFIGS if begun else st.none() | CONFIGS),
        snapshot=draw(SNAPSHOTS if begun else st.none() | SNAPSHOTS),
        lease=held,
        request=draw(kinds[state]) if state in kinds else None,
        avoid=draw(st.sampled_from([(), ("10.5.8.0/24",)])),
        attempts=draw(st.integers(0, 12)),
        confirmed=draw(st.booleans()),
        taken_over_at=draw(st.sampled_from([None, NOW - 1.0, NOW - 9999.0])),
        defended_at=draw(st.sampled_from([None, NOW - 1.0, NOW - 9999.0])),
        wake_at=NOW + 5.0 if state in WAITING else None,
    )


INPUTS: st.SearchStrategy[Input] = st.one_of(
    st.builds(SnapshotSeen, SNAPSHOTS),
    st.builds(ReadFailed, st.just("the store is away")),
    st.builds(ConfigChanged, CONFIGS),
    st.builds(AdvertisementChanged, WORDS),
    st.builds(Created, LEASES),
    st.just(CreateTaken()),
    st.builds(CreateFailed, st.just("no answer")),
    st.just(Due()),
    st.builds(Renewed, LEASES),
    st.just(RenewLost()),
    st.builds(RenewFailed, st.just("no answer")),
    st.just(Deleted()),
    st.builds(DeleteFailed, st.just("no answer")),
    st.builds(Stop, st.booleans()),
)
PAIRS = st.sampled_from(STATES).flatmap(lambda state: st.tuples(machines(state), INPUTS))


def check(before: Machine, event: Input, after: Machine, actions: tuple[Action, ...]) -> None:
    cell = TABLE[before.state, symbol_of(before, event)]
    assert after.state in cell.to
    requests = [action for action in actions if isinstance(action, CreateLease | RenewLease | DeleteLease)]
    assert len(requests) <= 1, "one question at a time"
    if requests:
        assert after.request == requests[0]
        assert after.state in AWAITS
    # A reservation stays.
    assert all(action.lease.expires_at is not None for action in requests if isinstance(action, DeleteLease))
    assert (after.wake_at is None) or after.state in WAITING
    if after.state == "seeking":
        assert after.wake_at is not None or before.state == "seeking"
    if before.lease != after.lease:
        told = [action for action in actions if isinstance(action, Announce)]
        assert [action.lease for action in told] == [after.lease]
    if before.wake_at != after.wake_at:
        assert Wait(after.wake_at) in actions
    if after.state in HAS_LEASE:
        assert after.lease is not None


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PAIRS, st.integers(0, 1 << 32))
def test_any_input_in_any_state(pair: tuple[Machine, Input], seed: int) -> None:
    before, event = pair
    after, actions = step(before, event, NOW, random.Random(seed))
    check(before, event, after, actions)
    assert step(before, event, NOW, random.Random(seed)) == (after, actions), "the same in, the same out"


# One example of each symbol, for a machine that holds OWN or nothing: so that no cell is left to chance.
FOREIGN = lease("10.5.7.0/24", of=says(THERE, "02:00:00:00:00:02"), revision=12)
EXAMPLES: dict[Symbol, Input] = {
    "snapshot": SnapshotSeen(snapshot(OWN, revision=20)),
    "snapshot_outdated": SnapshotSeen(snapshot(revision=3)),
    "own_adopted": SnapshotSeen(snapshot(msgspec.structs.replace(OWN, revision=12), revision=20)),
    "own_rewritten": SnapshotSeen(
        snapshot(lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:09"), revision=12), revision=20)
    ),
    "own_taken": SnapshotSeen(snapshot(FOREIGN, revision=20)),
    "own_gone": SnapshotSeen(snapshot(revision=20)),
    "read_failed": ReadFailed("the store is away"),
    "config_changed": ConfigChanged(OTHER),
    "advertisement_changed": AdvertisementChanged(says(mac="02:00:00:00:00:08")),
    "created": Created(OWN),
    "create_taken": CreateTaken(),
    "create_failed": CreateFailed("no answer"),
    "due": Due(),
    "renewed": Renewed(OWN),
    "renew_lost": RenewLost(),
    "renew_failed": RenewFailed("no answer"),
    "deleted": Deleted(),
    "delete_failed": DeleteFailed("no answer"),
    "stop": Stop(),
}
REQUESTS: dict[State, CreateLease | RenewLease | DeleteLease] = {
    "claiming": CreateLease(OWN, 86400.0),
    "renewing": RenewLease(OWN, 86400.0),
    "reclaiming": CreateLease(OWN, 86400.0),
    "moving": DeleteLease(OWN),
    "releasing": DeleteLease(OWN),
}
FIRST: dict[State, Machine] = {
    state: Machine(
        advertisement=says(),
        state=state,
        config=CONFIG,
        snapshot=None if state == "idle" else snapshot(revision=10),
        lease=OWN if state in HAS_LEASE else None,
        request=REQUESTS.get(state),
        wake_at=NOW + 5.0 if state in WAITING else None,
    )
    for state in STATES
}


@pytest.mark.parametrize("symbol", SYMBOLS)
@pytest.mark.parametrize("state", STATES)
def test_each_cell(state: State, symbol: Symbol) -> None:
    before, event = FIRST[state], EXAMPLES[symbol]
    if symbol.startswith("own_") and before.lease is None:
        assert symbol not in ROWS[state], "who holds no lease cannot see it change"
        return
    after, actions = step(before, event, NOW, random.Random(1))
    if state == "idle" and symbol == "snapshot_outdated":
        return  # before the first snapshot, none can be outdated
    assert symbol_of(before, event) == symbol
    check(before, event, after, actions)
    if symbol not in ROWS[state]:
        assert (after, actions) == (before, ()), "what the table does not name changes nothing"


def test_the_table_is_whole() -> None:
    assert TABLE.keys() == {(state, symbol) for state in STATES for symbol in SYMBOLS}
    assert ROWS.keys() == set(STATES)


def test_a_failed_read_changes_nothing() -> None:
    for state in STATES:
        assert step(FIRST[state], ReadFailed("x"), NOW, random.Random(1)) == (FIRST[state], ())


def test_every_state_can_be_reached() -> None:
    ways: dict[State, set[State]] = defaultdict(set)
    for (state, _), cell in TABLE.items():
        ways[state] |= set(cell.to)
    seen: set[State] = {"idle"}
    while more := {to for state in seen for to in ways[state]} - seen:
        seen |= more
    assert seen == set(STATES)
