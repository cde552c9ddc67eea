"""A small network, some nodes, and a store that holds leases as `store.base` promises, one call at a time."""

from __future__ import annotations

from muslin.lease.values import CreateLease, DeleteLease, Machine, RenewLease, Rules
from muslin.model.config import NetworkConfig, SubnetPool
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease

NOW = 1_800_000_000.0
RULES = Rules()
HERE, THERE = "192.0.2.1", "192.0.2.2"

POOL = SubnetPool(network="10.5.0.0/16", subnet_length=24, subnet_min="10.5.1.0", subnet_max="10.5.255.0")
POOL_V6 = SubnetPool(network="fd00:5::/48", subnet_length=64, subnet_min="fd00:5:0:1::", subnet_max="fd00:5:0:ffff::")
SMALL = SubnetPool(network="10.5.0.0/29", subnet_length=31, subnet_min="10.5.0.2", subnet_max="10.5.0.6")
CONFIG = NetworkConfig(pools=(POOL,), backend="vxlan")
DUAL = NetworkConfig(pools=(POOL, POOL_V6), backend="vxlan")
OTHER = NetworkConfig(
    pools=(SubnetPool(network="10.6.0.0/16", subnet_length=24, subnet_min="10.6.1.0", subnet_max="10.6.255.0"),),
    backend="vxlan",
)


def says(address: str = HERE, mac: str = "02:00:00:00:00:01", backend: str = "vxlan") -> Advertisement:
    return Advertisement(addresses=(address,), backend=backend, data={"VNI": 1, "VtepMAC": mac})


def lease(
    *subnets: str,
    of: Advertisement | None = None,
    expires_at: float | None = NOW + RULES.ttl_s,
    revision: int = 5,
) -> Lease:
    return Lease(subnets=subnets, advertisement=of or says(), expires_at=expires_at, revision=revision)


def snapshot(*leases: Lease, revision: int = 10, unreadable: tuple[str, ...] = ()) -> ClusterSnapshot:
    return ClusterSnapshot(revision=revision, leases=leases, unreadable=unreadable)


def machine(previous: tuple[str, ...] = (), address: str = HERE) -> Machine:
    return Machine(advertisement=says(address), previous=previous)


class Taken(Exception):
    """LeaseTaken."""


class Lost(Exception):
    """LeaseLost."""


class ToyStore:
    """Leases by name. ``now`` is its own clock: leases end by it."""

    def __init__(self, *leases: Lease, now: float = NOW) -> None:
        self.leases = {lease.name: lease for lease in leases}
        self.revision = max((lease.revision for lease in leases), default=1)
        self.now = now

    def snapshot(self) -> ClusterSnapshot:
        ended = [
            name for name, held in self.leases.items() if held.expires_at is not None and held.expires_at <= self.now
        ]
        for name in ended:
            del self.leases[name]
            self.revision += 1
        return ClusterSnapshot(revision=self.revision, leases=tuple(self.leases[name] for name in sorted(self.leases)))

    def create(self, action: CreateLease) -> Lease:
        self.snapshot()
        if action.lease.name in self.leases:
            raise Taken
        return self._write(action.lease, self.now + action.ttl_s)

    def renew(self, action: RenewLease) -> Lease:
        there = self._compared(action.lease)
        return self._write(action.lease, None if there.expires_at is None else self.now + action.ttl_s)

    def delete(self, action: DeleteLease) -> None:
        self._compared(action.lease)
        del self.leases[action.lease.name]
        self.revision += 1

    def _compared(self, known: Lease) -> Lease:
        self.snapshot()
        there = self.leases.get(known.name)
        if there is None or there.revision != known.revision:
            raise Lost
        return there

    def _write(self, wanted: Lease, expires_at: float | None) -> Lease:
        before = self.leases.get(wanted.name)
        if before is None or before.advertisement != wanted.advertisement:
            self.revision += 1
            revision = self.revision
        else:
            revision = before.revision
        written = Lease(
            subnets=wanted.subnets, advertisement=wanted.advertisement, expires_at=expires_at, revision=revision
        )
        self.leases[written.name] = written
        return written
