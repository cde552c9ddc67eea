"""The life of a node's lease as a table: what happens in which state, and which states may follow.

Theory of operation: ``step(machine, event, now, dice)`` is the whole interface. It names the input (``sight`` reads
from a snapshot what it means for our lease), looks the cell up, lets its act make the next machine, and checks that
the state is one that the cell allows. The way of a lease:

    idle ──> seeking <──> claiming ──> holding <──> renewing         a time comes, or what the node says changes
                ^                       │ │ │
                │                       │ │ └<────> reclaiming       the lease has vanished from the store
                └─────── moving <───────┘ │                          it does not fit the network any more
                                          └───────> lost             another node has it
    any of them ──> releasing ──> released                           stop

What a store is trusted with is in ``store.base``: snapshots are whole, their revisions rise, a write compares. From
that follows: a failed read changes nothing; a snapshot without our lease means that it is gone; a lease is never
renewed or deleted as somebody else has left it. A lease whose end has passed stays in force until the store says that
it is another's: a store that is away must not take a network down.

Differences from flannel (pkg/subnet/etcd/local_manager.go), each on purpose: a lost race is tried again, among the
subnets that are left; a renewal compares; renewals are spread; a reservation is never given an end or deleted; a lease
that vanished is asked for again, and only when another node has it is there an end; a lease of a network that is no
more is given back, and the subnet of each family that still fits is asked for first.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import msgspec

from muslin.lease import acts
from muslin.lease.acts import Act, Turn
from muslin.lease.allocate import Dice
from muslin.lease.sight import symbol_of
from muslin.lease.values import Action, Announce, Input, Machine, State, Symbol, Wait


class Cell(NamedTuple):
    """What is done, and the states that it may lead to."""

    act: Act
    to: tuple[State, ...]


STATES: tuple[State, ...] = get_args(State)
SYMBOLS: tuple[Symbol, ...] = get_args(Symbol)
WAITING: tuple[State, ...] = ("seeking", "holding")
"""The states that a time ends; in the others something else is awaited."""

_SOUGHT: tuple[State, ...] = ("idle", "seeking", "claiming", "holding", "renewing", "moving")
"""Where seeking may lead: at once to a reservation, or to the giving back of a lease that does not fit."""
_STOPPED: tuple[State, ...] = ("releasing", "released")
_STOP = Cell(acts.stop, _STOPPED)

ROWS: dict[State, dict[Symbol, Cell]] = {
    "idle": {
        "snapshot": Cell(acts.seek_in_snapshot, _SOUGHT),
        "config_changed": Cell(acts.seek_in_config, _SOUGHT),
        "advertisement_changed": Cell(acts.note_advertisement, ("idle",)),
        "stop": _STOP,
    },
    "seeking": {
        "snapshot": Cell(acts.seek_in_snapshot, _SOUGHT),
        "config_changed": Cell(acts.seek_in_config, _SOUGHT),
        "advertisement_changed": Cell(acts.note_advertisement, ("seeking",)),
        "due": Cell(acts.seek, _SOUGHT),
        "stop": _STOP,
    },
    "claiming": {
        "snapshot": Cell(acts.note_snapshot, ("claiming",)),
        "config_changed": Cell(acts.note_config, ("claiming",)),
        "advertisement_changed": Cell(acts.note_advertisement, ("claiming",)),
        "created": Cell(acts.settle, _SOUGHT),
        "create_taken": Cell(acts.race_lost, _SOUGHT),
        "create_failed": Cell(acts.claim_failed, ("seeking",)),
        "renewed": Cell(acts.settle, _SOUGHT),
        "renew_lost": Cell(acts.claim_lost, ("seeking",)),
        "renew_failed": Cell(acts.claim_failed, ("seeking",)),
        "stop": _STOP,
    },
    "holding": {
        "snapshot": Cell(acts.confirm, ("holding", "moving")),
        "own_adopted": Cell(acts.adopt, ("holding",)),
        "own_rewritten": Cell(acts.defend, ("holding", "renewing", "lost")),
        "own_taken": Cell(acts.lose, ("lost",)),
        "own_gone": Cell(acts.reclaim, ("reclaiming", "lost", *_SOUGHT)),
        "config_changed": Cell(acts.reconsider, _SOUGHT),
        "advertisement_changed": Cell(acts.readvertise, ("holding", "renewing")),
        "due": Cell(acts.renew, ("renewing",)),
        "stop": _STOP,
    },
    "renewing": {
        "snapshot": Cell(acts.note_snapshot, ("renewing",)),
        "own_adopted": Cell(acts.adopt, ("renewing",)),
        # The store compares, so the answer that is on its way will say that the lease is not what it was.
        "own_rewritten": Cell(acts.note_snapshot, ("renewing",)),
        "own_taken": Cell(acts.note_snapshot, ("renewing",)),
        "own_gone": Cell(acts.note_snapshot, ("renewing",)),
        "config_changed": Cell(acts.note_config, ("renewing",)),
        "advertisement_changed": Cell(acts.note_advertisement, ("renewing",)),
        "renewed": Cell(acts.settle, _SOUGHT),
        "renew_lost": Cell(acts.doubt, ("reclaiming", "lost", *_SOUGHT)),
        "renew_failed": Cell(acts.renew_failed, ("holding",)),
        "stop": _STOP,
    },
    "reclaiming": {
        "snapshot": Cell(acts.note_snapshot, ("reclaiming",)),
        "own_adopted": Cell(acts.note_snapshot, ("reclaiming",)),
        "own_rewritten": Cell(acts.note_snapshot, ("reclaiming",)),
        "own_taken": Cell(acts.note_snapshot, ("reclaiming",)),
        "own_gone": Cell(acts.note_snapshot, ("reclaiming",)),
        "config_changed": Cell(acts.note_config, ("reclaiming",)),
        "advertisement_changed": Cell(acts.note_advertisement, ("reclaiming",)),
        "created": Cell(acts.settle, _SOUGHT),
        "create_taken": Cell(acts.reclaim_taken, ("holding",)),
        "create_failed": Cell(acts.reclaim_failed, ("holding",)),
        "stop": _STOP,
    },
    "moving": {
        "snapshot": Cell(acts.note_snapshot, ("moving",)),
        "config_changed": Cell(acts.note_config, ("moving",)),
        "advertisement_changed": Cell(acts.note_advertisement, ("moving",)),
        "deleted": Cell(acts.moved, _SOUGHT),
        "delete_failed": Cell(acts.move_failed, ("seeking",)),
        "stop": _STOP,
    },
    "releasing": {
        "created": Cell(acts.release_late, _STOPPED),
        "renewed": Cell(acts.release_late, _STOPPED),
        "create_taken": Cell(acts.released, ("released",)),
        "create_failed": Cell(acts.release_failed, ("released",)),
        "renew_lost": Cell(acts.release_failed, ("released",)),
        "renew_failed": Cell(acts.release_failed, ("released",)),
        "deleted": Cell(acts.released, ("released",)),
        "delete_failed": Cell(acts.release_failed, ("released",)),
    },
    "lost": {
        "snapshot": Cell(acts.note_snapshot, ("lost",)),
        "config_changed": Cell(acts.seek_in_other_network, ("lost", *_SOUGHT)),
        "advertisement_changed": Cell(acts.seek_by_address, ("lost", *_SOUGHT)),
        "stop": _STOP,
    },
    "released": {},
}
"""By state; what is not named changes nothing (failed reads, snapshots from before our own write, late answers)."""

TABLE: dict[tuple[State, Symbol], Cell] = {
    (state, symbol): ROWS[state].get(symbol, Cell(acts.stay, (state,))) for state in STATES for symbol in SYMBOLS
}


class Step(NamedTuple):
    """The machine afterwards, and what is to be done, in this order."""

    machine: Machine
    actions: tuple[Action, ...]


def step(machine: Machine, event: Input, now: float, dice: Dice) -> Step:
    """What ``event`` at ``now`` (seconds since the epoch) makes of the machine; AssertionError for a fault in it."""
    cell = TABLE[machine.state, symbol_of(machine, event)]
    after, actions = cell.act(machine, event, Turn(now, dice))
    if after.state not in cell.to:
        raise AssertionError(f"{machine.state} with {event} led to {after.state}; expected one of {cell.to}")
    if after.state not in WAITING:
        after = msgspec.structs.replace(after, wake_at=None)
    # What is asked of the store comes last, as its answer is the next input and brings news of its own.
    return Step(after, (*_news(machine, after), *actions))


def _news(before: Machine, after: Machine) -> list[Action]:
    news: list[Action] = []
    if (before.lease, before.sentence, before.warning) != (after.lease, after.sentence, after.warning):
        told = Announce(state=after.state, lease=after.lease, sentence=after.sentence, warning=after.warning)
        news.append(told)
    if before.wake_at != after.wake_at:
        news.append(Wait(after.wake_at))
    return news
