"""What every store of leases promises, and what the stores share.

Theory of operation: a store holds one network's configuration and the leases of its nodes, and gives each change a
number, its revision. Nodes meet nowhere else. Three promises matter more than speed:

* **A snapshot is whole or an error.** Nobody may mistake a failed, partial or empty-by-accident read for "all peers
  have left". While a store is away, ``watch`` yields nothing at all, and ``trouble`` says in one sentence why.
* **A write compares.** ``create`` only where nothing is, ``renew`` and ``delete`` only what nobody else has changed
  (``Lease.revision``). So an answer that got lost is no danger: the store looks again, recognises its own earlier
  try, and otherwise says ``LeaseTaken`` or ``LeaseLost``.
* **Revisions rise.** The snapshots of a watch have strictly rising revisions. A store that comes back with an older
  past (restored from a backup, emptied, another one at the same address) is trouble, not news: what it says is held
  back until it has caught up or the caller opens the store anew.

Reservations: a lease without an end has ``expires_at`` None; only ``reserve`` makes one, and ``renew`` leaves it
one. A store that knows that a lease ends but was not told when (etcd, for other nodes' leases: asking would cost a
call a lease) says ``END_UNKNOWN``. Ending leases is the store's work alone: no reader compares ``expires_at`` with
a clock. A renewal that changes nothing but the end makes no new revision, so it wakes nobody.

Leases that hold garbage stand in ``ClusterSnapshot.unreadable`` by name and harm nobody.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Container, Iterable
from typing import NamedTuple, Protocol

from muslin.errors import MuslinError
from muslin.model.lease import ClusterSnapshot, Lease
from muslin.wire.flannel_lease import encode_name, encode_value, parse_name, parse_value

DEADLINE_S = 10.0
"""How long a call may take, all its retries together, unless the caller says otherwise."""
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
END_UNKNOWN = 253402300799.0
"""The end of a lease that has one which nobody asked for: the last second of the year 9999. Not infinity, which
JSON cannot hold: a snapshot on disk would turn such leases into reservations."""

Clock = Callable[[], float]
"""Seconds since the epoch; injected, so that tests need not wait for a lease to end."""


class StoreUnavailable(MuslinError):
    """The store gave no answer that could be trusted; what it held before still counts."""


class LeaseTaken(MuslinError):
    """Somebody else holds a lease of that name."""


class LeaseLost(MuslinError):
    """Somebody else has changed or removed the lease, or it has ended."""


class Store(Protocol):
    """One client of one datastore. ``deadline_s`` bounds a call with all its retries."""

    trouble: str | None
    """What keeps ``watch`` from knowing the present, in one sentence; None while it does."""
    on_trouble: Callable[[str | None], None] | None
    """Called with the new ``trouble`` whenever it changes."""

    async def snapshot(self, *, deadline_s: float = DEADLINE_S) -> ClusterSnapshot:
        """All that the store knows now; raises StoreUnavailable."""
        ...

    def watch(self) -> AsyncIterator[ClusterSnapshot]:
        """The present, then a whole snapshot after each change (bursts as one), until ``close``.

        It never raises because of the store. Close the iterator (``aclosing``) when leaving the loop early.
        """
        ...

    async def create(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File the lease under its name; raises LeaseTaken, StoreUnavailable, ValueError (not a lease)."""
        ...

    async def renew(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """Move the lease's end and write its advertisement; raises LeaseLost. A reservation stays without end."""
        ...

    async def delete(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> None:
        """Give the lease back; raises LeaseLost."""
        ...

    async def reserve(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> Lease:
        """``create`` without an end."""
        ...

    async def write_config(self, config: bytes, *, deadline_s: float = DEADLINE_S) -> None:
        """Replace the network's configuration; what it must look like is not the store's business."""
        ...

    async def close(self) -> None:
        """Let go of connections and files; watches end, leases stay."""
        ...


class Backoff:
    """Growing pauses between tries: doubled from 100 ms to 5 s, each cut by up to half at random."""

    def __init__(self, minimum_s: float = BACKOFF_MIN_S, maximum_s: float = BACKOFF_MAX_S) -> None:
        self._minimum_s, self._maximum_s = minimum_s, maximum_s
        self._next_s = minimum_s

    def reset(self) -> None:
        """Begin again with the shortest pause."""
        self._next_s = self._minimum_s

    def pause_s(self) -> float:
        """How long to wait before the next try. At random, so that a thousand nodes do not come back as one."""
        pause_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._maximum_s)
        return pause_s


class TroubleTeller:
    """The part of a store that says what is wrong with it."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.on_trouble: Callable[[str | None], None] | None = None

    def tell(self, trouble: str | None) -> None:
        """Set the present trouble, and pass on a change of it."""
        if trouble == self.trouble:
            return
        self.trouble = trouble
        if self.on_trouble is not None:
            self.on_trouble(trouble)


class Entry(NamedTuple):
    """A lease as a datastore holds it: flannel's value under flannel's name."""

    name: str
    value: bytes
    expires_at: float | None
    revision: int


def read_entry(entry: Entry) -> Lease | None:
    """The lease that an entry holds, None if it holds garbage."""
    try:
        subnets, advertisement = parse_name(entry.name), parse_value(entry.value)
    except ValueError:
        return None
    return Lease(subnets=subnets, advertisement=advertisement, expires_at=entry.expires_at, revision=entry.revision)


class LeaseMap:
    """Leases by name, decoded as they come; a snapshot shares with the one before whatever did not change.

    The names are kept sorted, because sorting 10,000 of them anew for each change would cost more than the change.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._leases: dict[str, Lease | None] = {}
        self._names: list[str] = []
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return len(self._leases)

    def put(self, entry: Entry) -> None:
        """Take what the entry holds in place of what its name held."""
        if entry.name not in self._leases:
            insort(self._names, entry.name)
        self._leases[entry.name] = read_entry(entry)

    def remove(self, name: str) -> None:
        """Forget that name, if it was there."""
        if name in self._leases:
            del self._leases[name]
            del self._names[bisect_left(self._names, name)]

    def retain(self, names: Container[str]) -> None:
        """Forget all other names."""
        for name in [name for name in self._names if name not in names]:
            self.remove(name)

    def snapshot(self, revision: int, config: bytes | None) -> ClusterSnapshot:
        """What is there, in the order of names."""
        return ClusterSnapshot(
            revision=revision,
            config=config,
            leases=tuple(lease for name in self._names if (lease := self._leases[name]) is not None),
            unreadable=tuple(name for name in self._names if self._leases[name] is None),
        )


def encode_lease(lease: Lease) -> tuple[str, bytes]:
    """The name and the value that a lease is filed under; ValueError if it could not be read again."""
    return encode_name(lease.subnets), encode_value(lease.advertisement)


def lease_taken(name: str) -> LeaseTaken:
    """The error for a name that is not free."""
    return LeaseTaken(f"the lease {name} is taken")


def lease_lost(name: str) -> LeaseLost:
    """The error for a lease that is no longer as its holder knew it."""
    return LeaseLost(f"the lease {name} was changed, removed or has ended since it was last read")


def went_back(name: str, known: int, told: int) -> str:
    """The trouble with a store whose revisions fell."""
    return (
        f"{name} went back from revision {known} to {told}; it was restored, emptied or replaced. What was known "
        "before is kept. If this was meant, restart the agents"
    )
