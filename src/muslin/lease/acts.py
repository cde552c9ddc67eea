"""What the lease machine does: one function a cell of its table, more or less.

Theory of operation: an act takes the machine, the input and the turn (what time it is, and dice), and returns the
machine as it is afterwards and what to ask of the store. What is said to people and when to wake up stands in the
machine, and ``machine.step`` makes actions of it.

Two agents with one public address: the one that takes a lease over is taken for the restarted holder, as it nearly
always is. If the holder is alive it sees its lease rewritten, and writes its own words back, once a retry at most.
The newcomer sees that within ``settle_s`` of its taking over, and gives up. So a wrong ``--public-ip`` on a new node
does not end the network of an old one, both of them say what is wrong, and the lease does not swing for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from muslin.lease.allocate import Dice, Exhausted, allocate, reserved_in, taken_in
from muslin.lease.sight import find_own, is_ours, lease_named, look, overlapping
from muslin.lease.values import (
    Action,
    CreateLease,
    DeleteLease,
    Machine,
    Refresh,
    RenewLease,
    SnapshotSeen,
    Symbol,
)
from muslin.model.config import NetworkConfig
from muslin.model.lease import ClusterSnapshot, Lease

UNKNOWN_REVISION = 0  # no store gives it to a lease: the first change of all is number 1
MAX_RACES = 10  # lost in a row before the store is read anew; flannel's local_manager.go, raceRetries
FIRST_RETRY_S = 1.0  # doubled with each failure in a row, up to Rules.retry_s


class Turn(NamedTuple):
    """What an act may know of the world: seconds since the epoch, and dice."""

    now: float
    dice: Dice


Outcome = tuple[Machine, Sequence[Action]]
Act = Callable[[Machine, Any, Turn], Outcome]
"""The input is whichever the act's cell stands for."""

_with = msgspec.structs.replace


# Nothing, or nearly ------------------------------------------------------------------------------------------


def stay(machine: Machine, _event: Any, _turn: Turn) -> Outcome:
    """Nothing: what has happened changes nothing, or is a late answer that nobody waits for any more."""
    return machine, ()


def note_snapshot(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """Remember it for later."""
    return _with(machine, snapshot=event.snapshot, avoid=()), ()


def note_config(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """Remember it; the answer that is awaited will be judged by it."""
    return _with(machine, config=event.config), ()


def note_advertisement(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """Remember it; the next write says it."""
    return _with(machine, advertisement=event.advertisement), ()


# Seeking -----------------------------------------------------------------------------------------------------


def seek_in_snapshot(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """There is news of what is free."""
    return seek(note_snapshot(machine, event, turn)[0], event, turn)


def seek_in_config(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """The network is known, or another one."""
    return seek(_with(machine, config=event.config), event, turn)


def seek(machine: Machine, _event: Any, turn: Turn) -> Outcome:
    """Take the own lease over, or ask for a new one."""
    machine = _with(machine, state="idle", lease=None, request=None)
    if machine.snapshot is None:
        return _with(machine, sentence="waits for the store to show its leases"), ()
    if machine.config is None:
        return _with(machine, sentence="waits for the network's configuration in the store"), ()
    own = find_own(machine.snapshot, machine.advertisement, machine.config)
    if own is None:
        return _claim_free(machine, machine.config, machine.snapshot, turn)
    if machine.config.accepts(own.subnets):
        return _take_over(machine, own, turn)
    if own.expires_at is not None:
        return _move(_with(machine, lease=own), _misfit(own, machine.config))
    left_alone, actions = _claim_free(machine, machine.config, machine.snapshot, turn)
    reservation = f"the reservation {own.name} for this node stays unused: {_misfit(own, machine.config)}"
    return _with(left_alone, warning=left_alone.warning or reservation), actions


def _misfit(lease: Lease, config: NetworkConfig) -> str:
    pools = " and ".join(f"{pool.network} in subnets of length {pool.subnet_length}" for pool in config.pools)
    return f"the network is now {pools}, of which {lease.name} is not one that can be leased"


def _take_over(machine: Machine, own: Lease, turn: Turn) -> Outcome:
    wanted = _with(own, advertisement=machine.advertisement)
    machine = _with(machine, taken_over_at=turn.now, confirmed=True)
    if own.expires_at is None and wanted == own:
        return _settle(machine, own, turn)
    request = RenewLease(wanted, machine.rules.ttl_s)
    return _with(machine, state="claiming", request=request, sentence=f"takes its own lease {own.name} over"), [request]


def _claim_free(machine: Machine, config: NetworkConfig, snapshot: ClusterSnapshot, turn: Turn) -> Outcome:
    taken = [*taken_in(snapshot), *machine.avoid]
    try:
        subnets = allocate(config, taken, turn.dice, reserved=reserved_in(snapshot), wanted=machine.previous)
    except Exhausted as error:
        return _try_later(machine, str(error), turn)
    request = CreateLease(Lease(subnets=subnets, advertisement=machine.advertisement), machine.rules.ttl_s)
    machine = _with(machine, state="claiming", request=request, sentence=f"asks for the lease {request.lease.name}")
    return _with(machine, confirmed=False, taken_over_at=None), [request]


def _try_later(machine: Machine, warning: str, turn: Turn, *actions: Action) -> Outcome:
    pause_s = min(FIRST_RETRY_S * 2 ** min(machine.attempts, 16), machine.rules.retry_s) * turn.dice.uniform(0.5, 1.0)
    machine = _with(machine, state="seeking", lease=None, request=None, attempts=machine.attempts + 1)
    return _with(machine, wake_at=turn.now + pause_s, sentence="has no lease", warning=warning), actions


# Claiming ----------------------------------------------------------------------------------------------------


def settle(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """The store has written our lease: hold it."""
    return _settle(machine, event.lease, turn)


def _settle(machine: Machine, lease: Lease, turn: Turn) -> Outcome:
    reserved = " (a reservation)" if lease.expires_at is None else ""
    twin = machine.defended_at is not None and abs(turn.now - machine.defended_at) < machine.rules.settle_s
    machine = _with(
        machine,
        state="holding",
        lease=lease,
        request=None,
        attempts=0,
        avoid=(),
        wake_at=_renewal_time(machine, lease, turn),
        sentence=f"holds the lease {lease.name}{reserved}",
        warning=machine.warning if twin else "",
    )
    if machine.config is not None and not machine.config.accepts(lease.subnets):
        return _leave(machine, machine.config, turn)
    return _renew(machine) if lease.advertisement != machine.advertisement else (machine, ())


def _renewal_time(machine: Machine, lease: Lease, turn: Turn) -> float | None:
    """TTL less margin, and less a part of what is left, so that nodes that start together part company."""
    if lease.expires_at is None:
        return None
    rules = machine.rules
    early_s = turn.dice.uniform(0.0, rules.renew_spread * (rules.ttl_s - rules.renew_margin_s))
    return max(turn.now, min(lease.expires_at, turn.now + rules.ttl_s) - rules.renew_margin_s - early_s)


def race_lost(machine: Machine, _event: Any, turn: Turn) -> Outcome:
    """Another node was faster: draw again among the others; after many such, see what the store says."""
    taken = machine.request.lease.subnets if machine.request else ()
    machine = _with(machine, avoid=(*machine.avoid, *taken), attempts=machine.attempts + 1)
    if machine.attempts < MAX_RACES:
        return seek(machine, None, turn)
    warning = f"{machine.attempts} subnets in a row were taken by other nodes while this one asked for them"
    return _try_later(machine, warning, turn, Refresh())


def claim_lost(machine: Machine, _event: Any, turn: Turn) -> Outcome:
    """Our own old lease is no longer as the snapshot had it: see what the store says."""
    return _try_later(machine, "the lease of this node changed while it was taken over", turn, Refresh())


def claim_failed(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Nobody knows; the next snapshot tells, or the next try."""
    return _try_later(machine, f"cannot have a lease written: {event.reason}", turn)


# Holding -----------------------------------------------------------------------------------------------------


def confirm(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """The first snapshot that has a lease that we made: make sure that it shares no subnet with an earlier one.

    A store tells names apart. Names of two subnets can differ in one of them and share the other.
    """
    machine = note_snapshot(machine, event, turn)[0]
    lease = machine.lease
    if machine.confirmed or lease is None:
        return machine, ()
    for other in overlapping(event.snapshot, lease.subnets, lease.name):
        if other.revision < lease.revision and not is_ours(other, machine.advertisement):
            reason = f"{other.name} of {_who(other)} was there before and shares a subnet with {lease.name}"
            return _move(_with(machine, avoid=other.subnets, previous=()), reason)
    return _with(machine, confirmed=True), ()


def renew(machine: Machine, _event: Any, _turn: Turn) -> Outcome:
    """It is time."""
    return _renew(machine)


def _renew(machine: Machine) -> Outcome:
    lease = _held(machine)
    request = RenewLease(_with(lease, advertisement=machine.advertisement), machine.rules.ttl_s)
    return _with(machine, state="renewing", request=request), [request]


def _held(machine: Machine) -> Lease:
    if machine.lease is None:
        raise ValueError(f"a machine that is {machine.state} holds no lease")
    return machine.lease


def readvertise(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """Say in the lease what has become of this node."""
    machine = _with(machine, advertisement=event.advertisement)
    return _renew(machine) if _held(machine).advertisement != event.advertisement else (machine, ())


def reconsider(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Another configuration: keep the lease if it fits."""
    machine = _with(machine, config=event.config)
    return (machine, ()) if event.config.accepts(_held(machine).subnets) else _leave(machine, event.config, turn)


def _leave(machine: Machine, config: NetworkConfig, turn: Turn) -> Outcome:
    """Give the lease back if it was ours to take, and seek another."""
    lease = _held(machine)
    if lease.expires_at is None:
        return seek(machine, None, turn)
    return _move(machine, _misfit(lease, config))


def _move(machine: Machine, reason: str) -> Outcome:
    lease = _held(machine)
    request = DeleteLease(lease)
    kept = tuple(subnet for subnet in lease.subnets if subnet not in machine.avoid)
    machine = _with(machine, state="moving", lease=None, request=request, previous=_unique(*kept, *machine.previous))
    return _with(machine, sentence=f"gives {lease.name} back and seeks another lease: {reason}"), [request]


def _unique(*subnets: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subnets))


def adopt(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Our own words under a revision that we had not been told of."""
    machine = note_snapshot(machine, event, turn)[0]
    held = _held(machine)
    seen = lease_named(event.snapshot, held.name) or held
    if (seen.expires_at is None) == (held.expires_at is None):
        # Its end was told when it was renewed; a snapshot need not know it (store.base, END_UNKNOWN).
        return _with(machine, lease=_with(seen, expires_at=held.expires_at)), ()
    wake_at = None if seen.expires_at is None else turn.now  # it has become a reservation, or is one no longer
    return _with(machine, lease=seen, wake_at=wake_at), ()


def defend(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Another agent has our public address: write our words back, or give up if we are the newcomer."""
    machine = note_snapshot(machine, event, turn)[0]
    lease, rules = _held(machine), machine.rules
    seen = lease_named(event.snapshot, lease.name) or lease
    twin = f"another agent uses this node's public address: it wrote {lease.name} at revision {seen.revision}"
    if machine.taken_over_at is not None and abs(turn.now - machine.taken_over_at) < rules.settle_s:
        return _lose(machine, f"{twin}, and it was there first; give one of them another --public-ip or --iface")
    machine = _with(machine, lease=_with(lease, revision=seen.revision))
    machine = _with(machine, warning=f"{twin}, and this one writes its own words back; stop one of them")
    if machine.defended_at is not None and abs(turn.now - machine.defended_at) < rules.retry_s:
        return _with(machine, wake_at=turn.now + rules.retry_s), ()
    return _renew(_with(machine, defended_at=turn.now))


def lose(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Our subnets stand in somebody else's lease."""
    machine = note_snapshot(machine, event, turn)[0]
    seen = lease_named(event.snapshot, _held(machine).name)
    return _lose(machine, f"it is now held by {_who(seen)}" if seen else "another node holds it")


def _lose(machine: Machine, reason: str) -> Outcome:
    name = machine.lease.name if machine.lease else ""
    machine = _with(machine, state="lost", lease=None, request=None)
    return _with(machine, sentence=f"lost the lease {name}: {reason}", warning=""), ()


def _who(lease: Lease) -> str:
    return "the node at " + " and ".join(lease.advertisement.addresses)


def reclaim(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """The lease is not there: it ended while the store was away, or was removed. Have it again if it is free."""
    machine = note_snapshot(machine, event, turn)[0]
    lease = _held(machine)
    others = list(overlapping(event.snapshot, lease.subnets))
    strangers = [other for other in others if not is_ours(other, machine.advertisement)]
    if strangers:
        return _lose(machine, f"it ended or was removed, and {strangers[0].name} is now held by {_who(strangers[0])}")
    if others or machine.config is None or not machine.config.accepts(lease.subnets):
        return seek(_with(machine, previous=_unique(*lease.subnets, *machine.previous)), event, turn)
    fresh = Lease(subnets=lease.subnets, advertisement=machine.advertisement)
    request = CreateLease(fresh, machine.rules.ttl_s)
    machine = _with(machine, state="reclaiming", request=request, confirmed=False, taken_over_at=None)
    return _with(machine, warning=f"the lease {lease.name} ended or was removed; asks for the same again"), [request]


# Renewing, reclaiming ----------------------------------------------------------------------------------------


def doubt(machine: Machine, _event: Any, turn: Turn) -> Outcome:
    """Somebody has changed or removed the lease: act on it if that has been seen already, else go and see."""
    snapshot, symbol = machine.snapshot, look(machine, machine.snapshot) if machine.snapshot else "snapshot"
    machine = _with(machine, request=None, lease=_with(_held(machine), revision=UNKNOWN_REVISION))
    machine = _with(machine, state="holding", wake_at=_retry_time(machine, turn))
    act = ON_CHANGE.get(symbol)
    if act is None or snapshot is None:
        return machine, [Refresh()]
    return act(machine, SnapshotSeen(snapshot), turn)


def renew_failed(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Try again soon. The lease stays in force even past its end: nobody has said that it is another's."""
    lease = _held(machine)
    left_s = None if lease.expires_at is None else lease.expires_at - turn.now
    end = "" if left_s is None else f"; it ends in {left_s:.0f} s" if left_s > 0 else "; its time is over"
    machine = _with(machine, state="holding", request=None, wake_at=_retry_time(machine, turn))
    return _with(machine, warning=f"cannot renew the lease {lease.name}: {event.reason}{end}"), ()


def _retry_time(machine: Machine, turn: Turn) -> float:
    rules = machine.rules
    return turn.now + min(rules.retry_s, rules.renew_margin_s / 2) * turn.dice.uniform(0.5, 1.0)


def reclaim_taken(machine: Machine, _event: Any, turn: Turn) -> Outcome:
    """It is there again. Whose it is stands in the store: another node's, or ours after all."""
    lease = _with(_held(machine), revision=UNKNOWN_REVISION)
    return _with(machine, state="holding", request=None, lease=lease, wake_at=_retry_time(machine, turn)), [Refresh()]


def reclaim_failed(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Nobody knows; go on with it and see."""
    held = _with(_held(machine), revision=UNKNOWN_REVISION)
    return renew_failed(_with(machine, lease=held), event, turn)


# Moving, releasing, lost -------------------------------------------------------------------------------------


def moved(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """The old lease is gone, though the last snapshot still has it."""
    if machine.snapshot is not None and machine.request is not None:
        gone = machine.request.lease.name
        leases = tuple(lease for lease in machine.snapshot.leases if lease.name != gone)
        machine = _with(machine, snapshot=_with(machine.snapshot, leases=leases))
    return seek(machine, event, turn)


def move_failed(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Look again: the lease has been changed, or the store is away."""
    return _try_later(machine, f"cannot give the old lease back: {event.reason}", turn, Refresh())


def stop(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """Leave the lease for the next start, or give it back."""
    if not event.release:
        return _with(
            machine, state="released", request=None, sentence="stopped; the lease stays for the next start"
        ), ()
    if machine.request is not None:
        return _with(machine, state="releasing", lease=None, release=True, sentence="stops; awaits an answer"), ()
    if machine.lease is None:
        return _with(machine, state="released", sentence="stopped; there was no lease to give back"), ()
    return _release(machine, machine.lease)


def release_late(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """The lease that we no longer want has been written after all."""
    return _release(machine, event.lease)


def _release(machine: Machine, lease: Lease) -> Outcome:
    machine = _with(machine, lease=None, request=None)
    if lease.expires_at is None:
        sentence = f"stopped; {lease.name} stays, as it is a reservation"
        return _with(machine, state="released", sentence=sentence), ()
    request = DeleteLease(lease)
    sentence = f"stops and gives {lease.name} back"
    return _with(machine, state="releasing", request=request, release=True, sentence=sentence), [request]


def released(machine: Machine, _event: Any, _turn: Turn) -> Outcome:
    """There is nothing left to give back."""
    return _with(machine, state="released", lease=None, request=None, sentence="stopped; holds no lease"), ()


def release_failed(machine: Machine, event: Any, _turn: Turn) -> Outcome:
    """It will end by itself."""
    sentence = "stopped; the lease could not be given back and will end by itself"
    machine = _with(machine, state="released", lease=None, request=None, sentence=sentence)
    return _with(machine, warning=getattr(event, "reason", "")), ()


def seek_by_address(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """With another address this is another node, and may have a lease; a new MAC changes nothing."""
    same = machine.advertisement.addresses == event.advertisement.addresses
    machine = _with(machine, advertisement=event.advertisement)
    return (machine, ()) if same else seek(machine, event, turn)


def seek_in_other_network(machine: Machine, event: Any, turn: Turn) -> Outcome:
    """In another network the lost subnets mean nothing; a new backend changes nothing."""
    same = machine.config is not None and machine.config.pools == event.config.pools
    return note_config(machine, event, turn) if same else seek_in_config(machine, event, turn)


ON_CHANGE: dict[Symbol, Act] = {
    "own_adopted": adopt,
    "own_rewritten": defend,
    "own_taken": lose,
    "own_gone": reclaim,
}
"""What a holder does when it sees that its lease has changed."""
