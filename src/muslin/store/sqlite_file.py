"""The SQLite store's file: making and opening it, saying what is wrong with it, and hearing when it was touched.

Theory of operation: a file that is not there is made empty with mode 0600, and whoever opens an empty file first
writes the schema, in a transaction. The application id marks the file as ours; the row in ``store`` says which
schema it has, and a newer one than ours is refused rather than guessed at. SQLite gives its two companions, ``-wal``
and ``-shm``, the file's own mode.

Only the making opens the file by other means than SQLite's: closing any descriptor of a file drops all of the
process's POSIX locks on it, and with them those of other connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from muslin.store.base import StoreUnavailable

APPLICATION_ID = 0x4D55534C
"""``MUSL``; SQLite keeps it at byte 68 of the file, where file(1) finds it."""
SCHEMA = 1
TABLES = (
    "CREATE TABLE store (schema INTEGER NOT NULL, revision INTEGER NOT NULL, config BLOB) STRICT",
    """
    CREATE TABLE lease (
        name TEXT PRIMARY KEY,       -- flannel's: 10.5.34.0-24&fc00:5:34::-64
        value BLOB NOT NULL,         -- flannel's JSON
        expires_at REAL,             -- seconds since the epoch; NULL for a reservation
        revision INTEGER NOT NULL    -- of its last change
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX lease_end ON lease (expires_at)",
    "CREATE INDEX lease_revision ON lease (revision)",
    f"INSERT INTO store VALUES ({SCHEMA}, 1, NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
OPEN_S = 5.0
"""How long to try: SQLite does not wait when several processes switch a new file to the write-ahead log."""

# From sys/inotify.h
IN_ATTRIB = 0x4
IN_MOVED_TO = 0x80
READ_BYTES = 65536


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to the store at ``path``, which is made if it is not there."""
    make_file(path)
    deadline = time.monotonic() + OPEN_S
    while True:
        connection = sqlite3.connect(path, isolation_level=None, timeout=OPEN_S)
        try:
            _prepare(connection, path)
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        except BaseException:
            connection.close()
            raise


def make_file(path: Path) -> None:
    """An empty file of mode 0600, if there is none; of an earlier one nothing is left beside it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    # A log that outlived its database would be replayed into the new one.
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if not _is_ours(connection):
        _write_tables(connection, path)
    (schema,) = connection.execute("SELECT schema FROM store").fetchone()
    if schema != SCHEMA:
        raise StoreUnavailable(
            f"{path} has schema {schema}, and this Muslin knows {SCHEMA}", "Run the newer Muslin that wrote it."
        )


def _is_ours(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID)


def _write_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Write the schema into an empty file, unless another process did meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _is_ours(connection):
            return
        if connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise StoreUnavailable(f"{path} is a database, but not one of Muslin's", "Name another file.")
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's code without the detail in its upper bits."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextlib.contextmanager
def explain(path: Path, deadline_s: float) -> Iterator[None]:
    """Turn what SQLite and the system say of the file into StoreUnavailable."""
    try:
        yield
    except sqlite3.Error as error:
        code = primary_code(error)
        if code == sqlite3.SQLITE_BUSY:
            raise StoreUnavailable(f"{path} was locked by another process for {deadline_s:g} s") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreUnavailable(
                f"{path} is damaged or no SQLite file ({error})",
                f"Stop the agents of this machine, move {path}* away, start them again: they file their leases anew.",
            ) from error
        raise StoreUnavailable(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be used: {error.strerror or error}") from error


class FileWatch:
    """Hears when a file was touched, from before the file exists and across its replacement; a context manager."""

    def __init__(self, path: Path) -> None:
        self._directory = path.parent
        self._news = asyncio.Event()
        self._fd = -1

    @property
    def is_told(self) -> bool:
        """Whether inotify works; where it does not, nothing is ever heard and the caller must look."""
        return self._fd >= 0

    def __enter__(self) -> FileWatch:
        # The directory and not the file: it stays when the file is replaced.
        with contextlib.suppress(OSError):
            self._fd = _open_inotify(self._directory)
            asyncio.get_running_loop().add_reader(self._fd, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _hear(self) -> None:
        os.read(self._fd, READ_BYTES)
        self.wake()

    def wake(self) -> None:
        """End a wait, and the next one if none goes on."""
        self._news.set()

    def clear(self) -> None:
        """Forget what was heard up to now."""
        self._news.clear()

    async def wait(self, pause_s: float) -> None:
        """Until something is heard, at most ``pause_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._news.wait()


def _open_inotify(directory: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    if libc.inotify_add_watch(fd, os.fsencode(directory), ctypes.c_uint32(IN_ATTRIB | IN_MOVED_TO)) < 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, "inotify_add_watch", str(directory))
    return fd
