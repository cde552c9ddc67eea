"""What a snapshot says about the node's own lease: the symbol that the lease machine's table is read by.

Theory of operation: the lease in force is known by its name, its revision as the store confirmed it, and what it says.
A snapshot from before that revision is from before our own last write and says nothing, nor does one from before the
last that was seen (a store's watch and a read beside it may overtake each other). A lease with another revision was
changed by somebody. If it says what we say, the somebody was us: an answer of the store got lost, or is on its way. If
it has our address and says something else, another agent has our address. If it has another address, the subnets are
another node's. No clock is compared with any lease's end: that a lease has ended is for the store to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from muslin.lease.values import (
    AdvertisementChanged,
    ConfigChanged,
    Created,
    CreateFailed,
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
    RenewLost,
    SnapshotSeen,
    Stop,
    Symbol,
)
from muslin.model.address import family_of
from muslin.model.config import NetworkConfig, span_of
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease

SYMBOLS: dict[type[Input], Symbol] = {
    ReadFailed: "read_failed",
    ConfigChanged: "config_changed",
    AdvertisementChanged: "advertisement_changed",
    Created: "created",
    CreateTaken: "create_taken",
    CreateFailed: "create_failed",
    Due: "due",
    Renewed: "renewed",
    RenewLost: "renew_lost",
    RenewFailed: "renew_failed",
    Deleted: "deleted",
    DeleteFailed: "delete_failed",
    Stop: "stop",
}


def symbol_of(machine: Machine, event: Input) -> Symbol:
    """What the machine's table calls this input."""
    return look(machine, event.snapshot) if isinstance(event, SnapshotSeen) else SYMBOLS[type(event)]


def look(machine: Machine, snapshot: ClusterSnapshot) -> Symbol:
    """What the snapshot means for the lease in force."""
    own = machine.lease
    known = (own.revision if own else 0, machine.snapshot.revision if machine.snapshot else 0)
    if snapshot.revision < max(known):
        return "snapshot_outdated"
    if own is None:
        return "snapshot"
    seen = lease_named(snapshot, own.name)
    if seen is None:
        return "own_gone"
    if seen.revision == own.revision:
        return "snapshot"
    if seen.advertisement in _own_words(machine):
        return "own_adopted"
    ours = {address for words in _own_words(machine) for address in words.addresses}
    return "own_taken" if ours.isdisjoint(seen.advertisement.addresses) else "own_rewritten"


def _own_words(machine: Machine) -> list[Advertisement]:
    """What we say, said, or have asked to say: any of it may stand in the store."""
    words = [machine.advertisement]
    if machine.lease is not None:
        words.append(machine.lease.advertisement)
    if machine.request is not None and not isinstance(machine.request, DeleteLease):
        words.append(machine.request.lease.advertisement)
    return words


def lease_named(snapshot: ClusterSnapshot, name: str) -> Lease | None:
    """The lease that is filed under this name."""
    # Comparing the first subnet first: thousands of names need not be made for the one that is looked for.
    head = name.partition("&")[0].replace("-", "/")
    return next((lease for lease in snapshot.leases if lease.subnets[:1] == (head,) and lease.name == name), None)


def is_ours(lease: Lease, advertisement: Advertisement) -> bool:
    """Whether the lease is of a node with our public address, which is ourselves at an earlier time."""
    return not set(advertisement.addresses).isdisjoint(lease.advertisement.addresses)


def find_own(snapshot: ClusterSnapshot, advertisement: Advertisement, config: NetworkConfig) -> Lease | None:
    """The lease with our public address; of several the one that fits, then a reservation, then the latest."""
    own = (lease for lease in snapshot.leases if is_ours(lease, advertisement))
    return max(own, key=lambda lease: (*_merits(lease, config), lease.revision), default=None)


def _merits(lease: Lease, config: NetworkConfig) -> tuple[bool, bool]:
    fits, reserved = config.accepts(lease.subnets), lease.expires_at is None
    return fits, reserved == fits  # among those that do not fit, the ones that can be given back come first


def overlapping(snapshot: ClusterSnapshot, subnets: Iterable[str], name: str = "") -> Iterator[Lease]:
    """The leases, other than the one of this name, that share an address with one of the subnets."""
    spans = [(family_of(subnet), *span_of(subnet)) for subnet in subnets]
    for lease in snapshot.leases:
        for subnet in lease.subnets:
            family, (first, last) = family_of(subnet), span_of(subnet)
            if any(family == other and first <= high and low <= last for other, low, high in spans):
                if lease.name != name:
                    yield lease
                break
