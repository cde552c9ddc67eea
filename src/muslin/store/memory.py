"""Leases in this process's memory: for tests, and for a lab that lives in one process.

Theory of operation: ``MemoryData`` is the datastore, and each ``MemoryStore`` on it one client, as a node would have
it. Every operation first ends the leases whose time has come. ``MemoryData.outage`` takes the store away as a lost
network would: operations fail with it, and watches fall silent and say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from muslin.model.lease import ClusterSnapshot, Lease
from muslin.store.base import (
    DEADLINE_S,
    Clock,
    Entry,
    LeaseMap,
    StoreUnavailable,
    TroubleTeller,
    encode_lease,
    lease_lost,
    lease_taken,
)


class MemoryData:
    """What several clients share. Belongs to one event loop."""

    def __init__(self, now: Clock = time.time) -> None:
        self.now = now
        self.revision = 1
        self.config: bytes | None = None
        self.entries: dict[str, Entry] = {}
        self._outage: str | None = None
        self._watchers: set[asyncio.Event] = set()

    @property
    def outage(self) -> str | None:
        """Why the store cannot be asked; None while it can."""
        return self._outage

    @outage.setter
    def outage(self, why: str | None) -> None:
        self._outage = why
        self.wake()

    def subscribe(self) -> asyncio.Event:
        """An event that is set whenever there may be something new."""
        event = asyncio.Event()
        self._watchers.add(event)
        return event

    def unsubscribe(self, event: asyncio.Event) -> None:
        """Forget that event."""
        self._watchers.discard(event)

    def wake(self) -> None:
        """Have every watch look again."""
        for event in self._watchers:
            event.set()

    def put(self, name: str, value: bytes, expires_at: float | None) -> int:
        """Write an entry as it is, without any comparison; returns its revision."""
        self.revision += 1
        self.entries[name] = Entry(name, value, expires_at, self.revision)
        self.wake()
        return self.revision

    def remove(self, name: str) -> None:
        """Remove an entry without any comparison."""
        del self.entries[name]
        self.revision += 1
        self.wake()

    def expire(self) -> None:
        """End the leases whose time has come."""
        now = self.now()
        for name in [entry.name for entry in self.entries.values() if entry.expires_at and entry.expires_at <= now]:
            self.remove(name)

    def next_end_s(self) -> float | None:
        """Seconds until the next lease ends, None if none does."""
        ends = [entry.expires_at for entry in self.entries.values() if entry.expires_at is not None]
        return max(min(ends) - self.now(), 0.0) if ends else None


class MemoryStore(TroubleTeller):
    """A client of a ``MemoryData``, of one of its own if none is given."""

    def __init__(self, data: MemoryData | None = None) -> None:
        super().__init__()
        self.data = data if data is not None else MemoryData()
        self._closed = False

    async def snapshot(self, *, deadline_s: float = DEADLINE_S) -> ClusterSnapshot:
        """All leases now."""
        self._look()
        return LeaseMap(self.data.entries.values()).snapshot(self.data.revision, self.data.config)

    async def watch(self) -> AsyncIterator[ClusterSnapshot]:
        """A snapshot now and after each change."""
        changed = self.data.subscribe()
        seen = 0
        try:
            while not self._closed:
                changed.clear()
                snapshot = await self._try_snapshot()
                if snapshot is not None and snapshot.revision > seen:
                    seen = snapshot.revision
                    yield snapshot
                else:
                    await self._wait(changed)
        finally:
            self.data.unsubscribe(changed)

    async def create(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease that ends."""
        return self._create(lease, self.data.now() + ttl_s)

    async def reserve(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease without end."""
        return self._create(lease, None)

    async def renew(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """Move the end; a changed advertisement is a new revision."""
        name, value = encode_lease(lease)
        entry = self._find(lease)
        expires_at = None if entry.expires_at is None else self.data.now() + ttl_s
        if value == entry.value:
            self.data.entries[name] = entry._replace(expires_at=expires_at)
            self.data.wake()
            revision = entry.revision
        else:
            revision = self.data.put(name, value, expires_at)
        return Lease(subnets=lease.subnets, advertisement=lease.advertisement, expires_at=expires_at, revision=revision)

    async def delete(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> None:
        """Remove the lease."""
        self.data.remove(self._find(lease).name)

    async def write_config(self, config: bytes, *, deadline_s: float = DEADLINE_S) -> None:
        """Replace the configuration."""
        self._look()
        if config != self.data.config:
            self.data.config = config
            self.data.revision += 1
            self.data.wake()

    async def close(self) -> None:
        """End the watches of this client."""
        self._closed = True
        self.data.wake()

    def _look(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self.data.outage is not None:
            raise StoreUnavailable(self.data.outage)
        self.data.expire()

    def _find(self, lease: Lease) -> Entry:
        self._look()
        entry = self.data.entries.get(lease.name)
        if entry is None or entry.revision != lease.revision:
            raise lease_lost(lease.name)
        return entry

    def _create(self, lease: Lease, expires_at: float | None) -> Lease:
        name, value = encode_lease(lease)
        self._look()
        if name in self.data.entries:
            raise lease_taken(name)
        revision = self.data.put(name, value, expires_at)
        return Lease(subnets=lease.subnets, advertisement=lease.advertisement, expires_at=expires_at, revision=revision)

    async def _try_snapshot(self) -> ClusterSnapshot | None:
        try:
            snapshot = await self.snapshot()
        except StoreUnavailable as error:
            self.tell(None if self._closed else error.what)
            return None
        self.tell(None)
        return snapshot

    async def _wait(self, changed: asyncio.Event) -> None:
        """Until something changes or a lease ends; an outage is waited out without looking at ends."""
        try:
            async with asyncio.timeout(None if self.data.outage else self.data.next_end_s()):
                await changed.wait()
        except TimeoutError:
            pass
