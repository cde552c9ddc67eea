"""What goes into the lease machine, what comes out, and what it is.

Theory of operation: all are values. An input is something that happened (the store showed a snapshot, answered, or did
not; an operator changed something; a time came). An action is something to be done by whoever runs the machine: the
machine itself neither waits nor asks.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muslin.model.config import NetworkConfig
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease

State = Literal[
    "idle",  # has not seen the store or the configuration yet
    "seeking",  # wants subnets and has asked for nothing: waits for news or for the next try
    "claiming",  # has asked for a lease, or to take its own old one over
    "holding",  # has a lease
    "renewing",  # has a lease and has asked to renew it or to change what it says
    "reclaiming",  # its lease has vanished from the store, and it has asked to have the same again
    "moving",  # has asked to give back a lease that no longer fits, and will seek another
    "releasing",  # has asked to give its lease back for good, or waits for an answer in order to
    "lost",  # somebody else has its lease: the end, until address or network change
    "released",  # stopped: the end
]

TTL_S = 24 * 3600.0  # flannel's local_manager.go, subnetTTL
RENEW_MARGIN_S = 60 * 60.0  # flannel's --subnet-lease-renew-margin, 60 minutes
RETRY_S = 60.0  # flannel's local_manager.go: "trying again in 1 min"
RENEW_SPREAD = 0.1  # of the time between renewals; ours: flannel's nodes that start together renew together
SETTLE_S = 60.0  # ours: an agent that shares its address with another learns of it within one retry


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the machine; ValueError when a lease would have to be renewed before it is there."""

    ttl_s: float = TTL_S
    renew_margin_s: float = RENEW_MARGIN_S
    retry_s: float = RETRY_S
    renew_spread: float = RENEW_SPREAD
    settle_s: float = SETTLE_S

    def __post_init__(self) -> None:
        if not 0 < self.renew_margin_s < self.ttl_s:
            raise ValueError(
                f"the renewal margin is {self.renew_margin_s:g} s; expected more than 0 and less than the "
                f"lease's {self.ttl_s:g} s"
            )


# Inputs -----------------------------------------------------------------------------------------------------


class SnapshotSeen(msgspec.Struct, frozen=True):
    """The store showed all that it knows."""

    snapshot: ClusterSnapshot


class ReadFailed(msgspec.Struct, frozen=True):
    """The store showed nothing. It changes nothing."""

    reason: str = ""


class ConfigChanged(msgspec.Struct, frozen=True):
    """The network's configuration, at first and whenever it is another one. An unreadable one is not passed on."""

    config: NetworkConfig


class AdvertisementChanged(msgspec.Struct, frozen=True):
    """What this node says of itself is different: address, backend, MAC, port."""

    advertisement: Advertisement


class Created(msgspec.Struct, frozen=True):
    """CreateLease is done."""

    lease: Lease


class CreateTaken(msgspec.Struct, frozen=True):
    """CreateLease came too late: the name is somebody else's."""


class CreateFailed(msgspec.Struct, frozen=True):
    """Nobody knows what became of CreateLease."""

    reason: str = ""


class Due(msgspec.Struct, frozen=True):
    """What Wait asked for has come, by the clock or by a timer (clocks are sometimes put back)."""


class Renewed(msgspec.Struct, frozen=True):
    """RenewLease is done."""

    lease: Lease


class RenewLost(msgspec.Struct, frozen=True):
    """RenewLease found that somebody else has changed or removed the lease."""


class RenewFailed(msgspec.Struct, frozen=True):
    """Nobody knows what became of RenewLease."""

    reason: str = ""


class Deleted(msgspec.Struct, frozen=True):
    """DeleteLease is done."""


class DeleteFailed(msgspec.Struct, frozen=True):
    """Nobody knows what became of DeleteLease, or somebody else has changed the lease before."""

    reason: str = ""


class Stop(msgspec.Struct, frozen=True):
    """The agent ends. The lease stays, for the next start to find, unless it is to be given back (uninstall)."""

    release: bool = False


Input = (
    SnapshotSeen
    | ReadFailed
    | ConfigChanged
    | AdvertisementChanged
    | Created
    | CreateTaken
    | CreateFailed
    | Due
    | Renewed
    | RenewLost
    | RenewFailed
    | Deleted
    | DeleteFailed
    | Stop
)

Symbol = Literal[
    "snapshot",  # a snapshot, where no lease is held, or the one that is held stands in it as we know it
    "snapshot_outdated",  # a snapshot from before our own last write, or from before the last one
    "own_adopted",  # our lease has another revision, but says what we say: an answer of the store that was lost
    "own_rewritten",  # our lease has our address but says something else: another agent has the same address
    "own_taken",  # our subnets are in the lease of another address
    "own_gone",  # our lease is not there
    "read_failed",
    "config_changed",
    "advertisement_changed",
    "created",
    "create_taken",
    "create_failed",
    "due",
    "renewed",
    "renew_lost",
    "renew_failed",
    "deleted",
    "delete_failed",
    "stop",
]


# Actions ----------------------------------------------------------------------------------------------------


class CreateLease(msgspec.Struct, frozen=True):
    """File this lease where there is none. Answers: Created, CreateTaken, CreateFailed."""

    lease: Lease
    ttl_s: float


class RenewLease(msgspec.Struct, frozen=True):
    """Write what ``lease`` says and move its end, if the store has it at ``lease.revision``.

    A reservation stays one. Answers: Renewed, RenewLost, RenewFailed.
    """

    lease: Lease
    ttl_s: float


class DeleteLease(msgspec.Struct, frozen=True):
    """Give the lease back, if the store has it at ``lease.revision``. Answers: Deleted, DeleteFailed."""

    lease: Lease


class Refresh(msgspec.Struct, frozen=True):
    """Read the store now, whatever its watch shows. Answers: SnapshotSeen, ReadFailed."""


class Announce(msgspec.Struct, frozen=True, kw_only=True):
    """The lease that holds from now on (None: no subnet may be used), and what to tell people."""

    state: State
    lease: Lease | None
    sentence: str
    warning: str = ""
    """What is wrong, empty when nothing is."""


class Wait(msgspec.Struct, frozen=True):
    """Say Due at this time (seconds since the epoch); None: forget the one before. Each takes the last one's place."""

    until: float | None


Action = CreateLease | RenewLease | DeleteLease | Refresh | Announce | Wait


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of what the machine knows. A new one has ``advertisement``, ``rules`` and ``previous`` alone."""

    advertisement: Advertisement
    previous: tuple[str, ...] = ()
    """Subnets to take again if they are free: those of subnet.env, later those of a lease that was given up."""
    rules: Rules = Rules()
    state: State = "idle"
    config: NetworkConfig | None = None
    snapshot: ClusterSnapshot | None = None
    """The last whole one."""
    lease: Lease | None = None
    """The one in force, as the store confirmed it last. Revision 0: somebody has changed it, we do not know how."""
    request: CreateLease | RenewLease | DeleteLease | None = None
    """What was asked of the store and has no answer yet."""
    avoid: tuple[str, ...] = ()
    """Subnets that turned out to be taken though the last snapshot does not show it."""
    attempts: int = 0
    """Failures in a row."""
    confirmed: bool = True
    """False from creating a lease until a snapshot has shown it beside all others."""
    taken_over_at: float | None = None
    """When we took a lease over that we had not created; None when we created it."""
    defended_at: float | None = None
    """When we last wrote back what another agent with our address had written over."""
    release: bool = False
    """Whether ``releasing`` ends with the lease given back."""
    wake_at: float | None = None
    sentence: str = ""
    warning: str = ""
