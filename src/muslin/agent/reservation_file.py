"""The file in which a node's reservations outlive the agent: rows in, rows out.

Theory of operation: an SQLite file (``containers.db`` in the state directory, mode 0600), written by one agent. Each
change is one transaction in a write-ahead log with ``synchronous=NORMAL``, so ``kill -9`` at any moment leaves all of
it or nothing. A power cut may take the last changes along; it takes the containers along as well.

The file is a copy of what the agent knows, so nothing about it is fatal. What cannot be understood at the start (torn,
of another program, of a newer schema, no file at all) is set aside as ``NAME.broken`` and said, and an empty one is
begun. If the file is damaged, replaced or removed under a running agent, all is written anew. A disk that is full or
read-only is a ``MuslinError`` that names the file, and then nothing has changed.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from muslin.errors import MuslinError
from muslin.store.sqlite_file import make_file, primary_code

log = logging.getLogger("muslin.agent")

APPLICATION_ID = 0x4D555343
"""``MUSC``, for file(1)."""
SCHEMA = 1
TABLES = (
    """
    CREATE TABLE reservation (
        container_id TEXT NOT NULL,
        ifname TEXT NOT NULL,        -- in the container
        value TEXT NOT NULL,         -- JSON
        PRIMARY KEY (container_id, ifname)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE freed (
        turn INTEGER PRIMARY KEY,    -- the lower one was given back earlier
        address TEXT NOT NULL UNIQUE
    ) STRICT
    """,
    """
    CREATE TABLE pool (
        subnet TEXT PRIMARY KEY,
        cursor TEXT NOT NULL         -- a number, of up to 128 bits
    ) STRICT, WITHOUT ROWID
    """,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)
CURSOR_DIGITS = 39  # of 2 ** 128
LOCKED_S = 5.0
"""How long to wait while somebody looks into the file with another program."""

Row = tuple[str, str, str]
"""Container id, interface name, value."""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """All that a file holds. ``freed`` has the address first that was given back first."""

    rows: tuple[Row, ...] = ()
    freed: tuple[str, ...] = ()
    cursors: dict[str, int] = {}
    """By subnet."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction: rows to write and to drop, and addresses that join the end of the queue of freed ones.

    An address that is taken out of the queue stays in the file, where its reservation outweighs it. With
    ``new_pools`` this queue and these cursors are all that there are, and no others stay.
    """

    put: tuple[Row, ...] = ()
    drop: tuple[tuple[str, str], ...] = ()
    freed: tuple[str, ...] = ()
    cursors: dict[str, int] = {}
    new_pools: bool = False


class _Broken(Exception):
    """The file cannot be understood; the text says why."""


class ReservationFile:
    """The file at ``path``. ``contents`` is asked for everything when the file must be written anew."""

    def __init__(self, path: Path, contents: Callable[[], Contents]) -> None:
        self.path = path
        self._contents = contents
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._is_whole = True
        """Whether the file has all that the agent knows."""

    def open(self) -> Contents:
        """What the file holds, made if it is not there; MuslinError when the disk refuses."""
        try:
            return self._open()
        except _Broken as broken:
            log.warning(
                "%s %s; it is set aside as %s, and an empty one is begun", self.path, broken, self._set_aside().name
            )
        try:
            return self._open()
        except _Broken as broken:
            raise MuslinError(f"{self.path} was made anew and {broken}", "see the disk and the file's owner") from None

    def write(self, change: Change) -> None:
        """Make one change, whole or not at all; MuslinError naming the file."""
        if not self._is_there():
            log.warning("%s was removed or replaced, and is written anew", self.path)
            self._begin_anew()
        try:
            self._transact(change)
        except _Broken as broken:
            log.warning("%s %s, and is written anew", self.path, broken)
            self._begin_anew()
            self._transact(change)

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- opening -----------------------------------------------------------------------------------------

    def _open(self) -> Contents:
        with self._explained():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise _Broken("is no file")
            make_file(self.path)
            connection = sqlite3.connect(
                self.path, isolation_level=None, timeout=LOCKED_S, check_same_thread=False, cached_statements=32
            )
            try:
                contents = _prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._inode = connection, self.path.stat().st_ino
            return contents

    def _set_aside(self) -> Path:
        """Move the file away, over what was set aside before. Its log goes with the making of the next."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.broken")
        with self._explained():
            self.path.replace(aside)
        return aside

    def _is_there(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def _begin_anew(self) -> None:
        """An empty file; the next transaction writes all that the agent knows."""
        self._is_whole = False
        self.close()
        if self.path.exists():
            self._set_aside()
        self.open()

    # ---- writing -----------------------------------------------------------------------------------------

    def _transact(self, change: Change) -> None:
        with self._explained():
            if self._connection is None:
                raise _Broken("could not be made anew before")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                if not self._is_whole:
                    _apply(self._connection, _everything(self._contents()))
                _apply(self._connection, change)
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
        self._is_whole = True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What SQLite and the system say as _Broken, when the file is at fault, else as MuslinError."""
        try:
            yield
        except sqlite3.Error as error:
            if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
                raise _Broken(f"is damaged or none of ours ({error})") from error
            raise MuslinError(f"{self.path} cannot be written: {error}", "free some space, or see its owner") from error
        except UnicodeDecodeError as error:  # the sqlite3 module's own, of a damaged schema
            raise _Broken(f"is damaged ({error})") from error
        except OSError as error:
            reason = error.strerror or error
            raise MuslinError(f"{self.path} cannot be used: {reason}", "free some space, or see its owner") from error


def _everything(contents: Contents) -> Change:
    return Change(put=contents.rows, freed=contents.freed, cursors=contents.cursors, new_pools=True)


def _prepare(connection: sqlite3.Connection) -> Contents:
    connection.text_factory = _text
    is_empty = connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
    if not is_empty:  # look before the first change: what is not ours stays as it is
        _check(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if is_empty:
        connection.execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
    return Contents(
        rows=tuple(connection.execute("SELECT container_id, ifname, value FROM reservation")),
        freed=tuple(address for (address,) in connection.execute("SELECT address FROM freed ORDER BY turn")),
        cursors={
            subnet: int(cursor)
            for subnet, cursor in connection.execute("SELECT subnet, cursor FROM pool")
            if cursor.isdecimal() and len(cursor) <= CURSOR_DIGITS
        },
    )


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise _Broken("is a database, but not one of reservations")
    if schema != SCHEMA:
        raise _Broken(f"has schema {schema}, and this Muslin knows {SCHEMA}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _Broken(f"is damaged ({verdict})")


def _text(raw: bytes) -> str:
    """SQLite does not hold a TEXT against UTF-8, and one bad column should not take the others along."""
    return raw.decode("utf-8", "replace")


def _apply(connection: sqlite3.Connection, change: Change) -> None:
    if change.new_pools:
        connection.execute("DELETE FROM freed")
        connection.execute("DELETE FROM pool")
    connection.executemany("INSERT OR REPLACE INTO reservation VALUES (?, ?, ?)", change.put)
    connection.executemany("DELETE FROM reservation WHERE container_id = ? AND ifname = ?", change.drop)
    connection.executemany(
        "INSERT OR REPLACE INTO freed (address) VALUES (?)", [(address,) for address in change.freed]
    )
    cursors = [(subnet, str(cursor)) for subnet, cursor in change.cursors.items()]
    connection.executemany("INSERT OR REPLACE INTO pool VALUES (?, ?)", cursors)
