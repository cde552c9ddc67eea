"""Leases in one SQLite file: for a machine with many lab nodes, or with a single node.

Theory of operation: each node's process opens the file itself; SQLite's locks make their transactions one after the
other. A write is one ``BEGIN IMMEDIATE`` transaction that ends leases whose time has come, compares, writes, and
counts the revision up. Readers see the last commit and never wait (write-ahead log). A process killed at any point
leaves either its whole transaction or nothing of it.

* ``synchronous=NORMAL``: what was committed outlives every process, but the last commits before a power cut may be
  lost. All nodes of this store lose their power together, so none is left that could rely on a lost lease.
* **News.** After its commit a writer touches the file (its times, not its content); inotify tells the others within
  a millisecond, and an idle watch costs nothing. Should a writer be killed between the two, or a lease end, a look
  every two seconds finds it. Without inotify (its instances are limited a user) the look comes every 50 ms.
* SQLite is called in one thread of its own, so that waiting for a lock or a disk never stops the event loop.
* The file is made on first use, for its owner alone (0600), and never again by a client that had it open: a file
  that vanished or was replaced is an outage until it is back, not an empty network.
* Clocks: ``expires_at`` is in seconds since the epoch, as it must survive a reboot. A clock that is set forward ends
  leases early; holders learn it as ``LeaseLost``.

Not handled: network file systems, which do not carry SQLite's locks.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

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
    went_back,
)
from muslin.store.sqlite_file import FileWatch, explain, open_file

LOOK_S = 2.0
"""How often a watch looks without having been told."""
LOOK_WITHOUT_INOTIFY_S = 0.05

Result = TypeVar("Result")


class _Seen:
    """What a watch has read: all leases at this revision."""

    def __init__(self) -> None:
        self.leases = LeaseMap()
        self.revision = 0


class SqliteStore(TroubleTeller):
    """A client of the store in the file at ``path``."""

    def __init__(self, path: str | Path, *, now: Clock = time.time) -> None:
        super().__init__()
        self._path = Path(path)
        self._now = now
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="muslin-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._closed = False
        self._watches: set[FileWatch] = set()

    # ---- the protocol ------------------------------------------------------------------------------------

    async def snapshot(self, *, deadline_s: float = DEADLINE_S) -> ClusterSnapshot:
        """All leases now."""
        return await self._run(lambda connection: self._read(connection, _Seen())[0], deadline_s)

    async def watch(self) -> AsyncIterator[ClusterSnapshot]:
        """A snapshot now and after each change."""
        with FileWatch(self._path) as news:
            self._watches.add(news)
            seen = _Seen()
            try:
                while not self._closed:
                    news.clear()
                    snapshot, next_end_s = await self._look(seen)
                    if snapshot is not None:
                        yield snapshot
                    else:
                        await news.wait(_pause_s(news.is_told, next_end_s))
            finally:
                self._watches.discard(news)

    async def create(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease that ends."""
        return await self._create(lease, self._now() + ttl_s, deadline_s)

    async def reserve(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease without end."""
        return await self._create(lease, None, deadline_s)

    async def renew(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """Move the end; a changed advertisement is a new revision."""
        name, value = encode_lease(lease)

        def write(connection: sqlite3.Connection) -> Lease:
            entry = self._find(connection, lease)
            expires_at = None if entry.expires_at is None else self._now() + ttl_s
            revision = entry.revision if value == entry.value else self._count_up(connection)
            connection.execute(
                "UPDATE lease SET value = ?, expires_at = ?, revision = ? WHERE name = ?",
                (value, expires_at, revision, name),
            )
            return _with(lease, expires_at, revision)

        return await self._write(write, deadline_s)

    async def delete(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> None:
        """Remove the lease."""

        def write(connection: sqlite3.Connection) -> None:
            entry = self._find(connection, lease)
            connection.execute("DELETE FROM lease WHERE name = ?", (entry.name,))
            self._count_up(connection)

        await self._write(write, deadline_s)

    async def write_config(self, config: bytes, *, deadline_s: float = DEADLINE_S) -> None:
        """Replace the configuration."""

        def write(connection: sqlite3.Connection) -> None:
            changed = connection.execute("UPDATE store SET config = ? WHERE config IS NOT ?", (config, config))
            if changed.rowcount:
                self._count_up(connection)

        await self._write(write, deadline_s)

    async def close(self) -> None:
        """End the watches, close the file."""
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            watch.wake()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    # ---- one transaction ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], Result], deadline_s: float) -> Result:
        """Do ``work`` in the store's thread, with a connection to the file that was opened first."""
        if self._closed:
            raise StoreUnavailable("the store is closed")

        def call() -> Result:
            with explain(self._path, deadline_s):
                connection = self._connect()
                connection.execute(f"PRAGMA busy_timeout = {max(int(deadline_s * 1000), 1)}")
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _write(self, work: Callable[[sqlite3.Connection], Result], deadline_s: float) -> Result:
        def transaction(connection: sqlite3.Connection) -> Result:
            with self._transaction(connection):
                self._expire(connection)
                return work(connection)

        return await self._run(transaction, deadline_s)

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """All or nothing, and the news of it."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        os.utime(self._path)

    def _connect(self) -> sqlite3.Connection:
        """The open connection; StoreUnavailable while the file is not the one that was opened."""
        if self._connection is None:
            self._connection = open_file(self._path)
            self._inode = os.stat(self._path).st_ino
        elif not self._path.exists() or os.stat(self._path).st_ino != self._inode:
            # Opening what lies there now could replay the old file's log into it.
            raise StoreUnavailable(
                f"{self._path} is gone or was replaced; what was known before is kept",
                f"Put it back; or stop the agents, remove {self._path}-wal and -shm, and start them again.",
            )
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- work, in the store's thread ---------------------------------------------------------------------

    def _read(self, connection: sqlite3.Connection, seen: _Seen) -> tuple[ClusterSnapshot, float | None]:
        """Bring ``seen`` to the present; also: in how many seconds does the next lease end?"""
        if connection.execute("SELECT 1 FROM lease WHERE expires_at <= ? LIMIT 1", (self._now(),)).fetchone():
            with self._transaction(connection):
                self._expire(connection)
        connection.execute("BEGIN")
        try:
            revision, config, count, end = connection.execute(
                "SELECT revision, config, (SELECT count(*) FROM lease), (SELECT min(expires_at) FROM lease) FROM store"
            ).fetchone()
            changed = "SELECT name, value, expires_at, revision FROM lease WHERE revision > ? ORDER BY name"
            for row in connection.execute(changed, (seen.revision,)):
                seen.leases.put(Entry(*row))
            # Nothing that is there is missing now, so an equal number means that nothing is too much.
            if len(seen.leases) != count:
                seen.leases.retain({name for (name,) in connection.execute("SELECT name FROM lease")})
        finally:
            connection.execute("COMMIT")
        seen.revision = revision
        return seen.leases.snapshot(revision, config), self._in_s(end)

    def _read_news(self, connection: sqlite3.Connection, seen: _Seen) -> tuple[ClusterSnapshot | None, float | None]:
        """``_read`` if there is another revision or a lease is due; a look without news costs one query."""
        revision, end = connection.execute("SELECT revision, (SELECT min(expires_at) FROM lease) FROM store").fetchone()
        if revision < seen.revision:
            raise StoreUnavailable(went_back(str(self._path), seen.revision, revision))
        next_end_s = self._in_s(end)
        if revision == seen.revision and (next_end_s is None or next_end_s > 0):
            return None, next_end_s
        return self._read(connection, seen)

    def _in_s(self, end: float | None) -> float | None:
        """Seconds from now until ``end``."""
        return None if end is None else max(end - self._now(), 0.0)

    def _expire(self, connection: sqlite3.Connection) -> None:
        if connection.execute("DELETE FROM lease WHERE expires_at <= ?", (self._now(),)).rowcount:
            self._count_up(connection)

    def _count_up(self, connection: sqlite3.Connection) -> int:
        row = connection.execute("UPDATE store SET revision = revision + 1 RETURNING revision").fetchone()
        return int(row[0])

    def _find(self, connection: sqlite3.Connection, lease: Lease) -> Entry:
        row = connection.execute(
            "SELECT name, value, expires_at, revision FROM lease WHERE name = ? AND revision = ?",
            (lease.name, lease.revision),
        ).fetchone()
        if row is None:
            raise lease_lost(lease.name)
        return Entry(*row)

    async def _create(self, lease: Lease, expires_at: float | None, deadline_s: float) -> Lease:
        name, value = encode_lease(lease)

        def write(connection: sqlite3.Connection) -> Lease:
            if connection.execute("SELECT 1 FROM lease WHERE name = ?", (name,)).fetchone():
                raise lease_taken(name)
            revision = self._count_up(connection)
            connection.execute("INSERT INTO lease VALUES (?, ?, ?, ?)", (name, value, expires_at, revision))
            return _with(lease, expires_at, revision)

        return await self._write(write, deadline_s)

    # ---- watching ----------------------------------------------------------------------------------------

    async def _look(self, seen: _Seen) -> tuple[ClusterSnapshot | None, float | None]:
        """What is new since ``seen``, if anything, and when the next lease ends; trouble is told, not raised."""
        try:
            snapshot, next_end_s = await self._run(lambda connection: self._read_news(connection, seen), DEADLINE_S)
        except StoreUnavailable as error:
            self.tell(None if self._closed else error.what)
            return None, None
        self.tell(None)
        return snapshot, next_end_s


def _pause_s(is_told: bool, next_end_s: float | None) -> float:
    """How long to wait for news: until a lease ends or it is time to look anyway."""
    pause_s = LOOK_S if is_told else LOOK_WITHOUT_INOTIFY_S
    return pause_s if next_end_s is None else max(min(pause_s, next_end_s), 0.001)


def _with(lease: Lease, expires_at: float | None, revision: int) -> Lease:
    return Lease(subnets=lease.subnets, advertisement=lease.advertisement, expires_at=expires_at, revision=revision)
