"""The journal's file: whatever is found in its place, nothing is fatal but a disk that refuses."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.agent.reservation_file import Change, Contents, ReservationFile
from muslin.agent.reservations import Reservations
from muslin.errors import MuslinError
from tests.unit.agent.reservation_examples import SUBNETS, known, reservation

FULL = Contents(
    rows=(("a", "eth0", "{}"), ("b", "eth0", "\u00e9")),
    freed=("10.5.3.9", "10.5.3.2"),
    cursors={"fd00::/64": 2**64 + 1},
)
CHANGE = Change(put=FULL.rows, freed=FULL.freed, cursors=FULL.cursors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "containers.db"


def opened(path: Path, memory: Contents = FULL) -> ReservationFile:
    file = ReservationFile(path, lambda: memory)
    file.open()
    return file


def read(path: Path) -> Contents:
    file = ReservationFile(path, Contents)
    contents = file.open()
    file.close()
    return contents


def aside(path: Path) -> Path:
    return path.with_name("containers.db.broken")


def test_a_new_file_is_empty_and_for_its_owner_alone(path: Path) -> None:
    file = opened(path / "deep" / "containers.db")
    assert {stat.S_IMODE(found.stat().st_mode) for found in file.path.parent.iterdir()} == {0o600}
    file.close()
    assert read(file.path) == Contents()
    assert [found.name for found in file.path.parent.iterdir()] == ["containers.db"]


def test_what_was_written_is_read_again(path: Path) -> None:
    file = opened(path)
    file.write(CHANGE)
    assert read(path) == FULL
    file.write(
        Change(
            put=(("a", "eth0", "[]"),),
            drop=(("b", "eth0"),),
            freed=("10.5.3.1", "10.5.3.9"),
            cursors={"x": 7},
        )
    )
    assert read(path) == Contents(
        rows=(("a", "eth0", "[]"),),
        freed=("10.5.3.2", "10.5.3.1", "10.5.3.9"),
        cursors={"fd00::/64": 2**64 + 1, "x": 7},
    )
    file.write(Change(freed=("10.5.9.9",), new_pools=True))
    assert read(path) == Contents(rows=(("a", "eth0", "[]"),), freed=("10.5.9.9",))
    file.close()


# ---- at the start ----------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()


def of_the_future(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()


def without_a_table(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE freed")
    connection.close()


def torn(path: Path) -> None:
    file = opened(path)
    file.write(CHANGE)
    file.close()
    path.write_bytes(path.read_bytes()[:4096])


def garbled(path: Path) -> None:
    file = opened(path)
    file.write(Change(put=tuple((f"{number}", "eth0", "x" * 500) for number in range(200))))
    file.close()
    text = bytearray(path.read_bytes())
    text[8192:24576] = os.urandom(16384)
    path.write_bytes(text)


def with_a_damaged_schema(path: Path) -> None:
    opened(path).close()
    text = path.read_bytes()
    path.write_bytes(text.replace(b"STRICT", b"\x80TRICT", 1))
    assert path.read_bytes() != text


CASES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("FLANNEL_NETWORK=10.5.0.0/16\n" * 100),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "a directory": lambda path: path.mkdir(),
    "a foreign database": foreign,
    "a newer schema": of_the_future,
    "a missing table": without_a_table,
    "a schema that is no text": with_a_damaged_schema,
    "half of it": torn,
    "garbled pages": garbled,
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_understood_is_set_aside_and_said(
    path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    CASES[case](path)
    was = path.read_bytes() if path.is_file() else None
    file = opened(path)
    assert f"{path} " in caplog.text
    assert "containers.db.broken" in caplog.text
    assert was is None or aside(path).read_bytes() == was
    file.write(CHANGE)
    file.close()
    assert read(path) == FULL


@pytest.mark.parametrize("left", [b"", b"S"])
def test_a_file_of_no_length_is_a_new_one(path: Path, left: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """host-local never frees what a torn write left empty."""
    file = opened(path)
    file.write(CHANGE)
    file.close()
    path.write_bytes(left)
    assert read(path) == Contents()
    assert not caplog.text


def test_the_log_of_an_earlier_file_is_not_replayed_into_a_new_one(path: Path) -> None:
    file = opened(path)
    file.write(CHANGE)
    log = Path(f"{path}-wal").read_bytes()
    file.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)
    assert read(path) == Contents()


def test_what_was_set_aside_before_gives_way(path: Path) -> None:
    for number in (b"1", b"2"):
        path.write_bytes(number * 1000)
        opened(path).close()
        assert aside(path).read_bytes() == number * 1000
        assert sorted(found.name for found in path.parent.iterdir()) == ["containers.db", "containers.db.broken"]


def test_text_that_is_no_utf_8_takes_nothing_else_along(path: Path) -> None:
    file = opened(path)
    file.write(CHANGE)
    file.close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO reservation VALUES ('c', 'eth0', CAST(x'ff' AS TEXT))")
        connection.execute("INSERT INTO pool VALUES ('c', CAST(x'ff' AS TEXT)), ('d', '٣'), ('e', ?)", ("9" * 5000,))
    connection.close()
    contents = read(path)
    assert contents.rows == (*FULL.rows, ("c", "eth0", "\ufffd"))
    assert contents.cursors == FULL.cursors | {"d": 3}


@settings(max_examples=60)
@given(st.data())
def test_no_file_at_all_is_fatal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("torn") / "containers.db"
    journal = Reservations.open(path, SUBNETS)
    for name in "abcde":
        journal.add(reservation(name))
    journal.remove(("a", "eth0"))
    journal.close()
    text = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        del text[at:]
    else:
        noise = data.draw(st.binary(min_size=1, max_size=64))
        text[at : at + len(noise)] = noise
    path.write_bytes(text)
    journal = Reservations.open(path, SUBNETS)
    made = journal.add(reservation("f"))
    journal.close()
    again = Reservations.open(path, SUBNETS)
    assert again.get("f", "eth0") == made
    again.close()


# ---- under a running agent -------------------------------------------------------------------------------


def lost(path: Path, _: sqlite3.Connection) -> None:
    path.unlink()


def replaced(path: Path, _: sqlite3.Connection) -> None:
    other = path.with_name("other")
    other.write_text("something else")
    other.replace(path)


def changed(path: Path, _: sqlite3.Connection) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE reservation")
    connection.close()


def overwritten(path: Path, connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA shrink_memory")  # what is in SQLite's memory hides what is in the file
    with path.open("r+b") as file:
        file.write(b"x" * path.stat().st_size)


@pytest.mark.parametrize("harm", [lost, replaced, changed, overwritten], ids=lambda harm: str(harm.__name__))
def test_a_file_that_is_harmed_under_a_running_agent_is_written_anew(
    path: Path, harm: Callable[[Path, sqlite3.Connection], None], caplog: pytest.LogCaptureFixture
) -> None:
    journal = Reservations.open(path, SUBNETS)
    for name in "abc":
        journal.add(reservation(name))
    journal.remove(("b", "eth0"))
    connection = journal._file._connection
    assert connection is not None
    harm(path, connection)
    journal.add(reservation("d"))
    assert "written anew" in caplog.text
    again = Reservations.open(path, SUBNETS)
    assert known(again) == known(journal)
    again.close()
    journal.close()


def test_an_agent_whose_file_could_not_be_made_anew_tries_again_with_all_it_knows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Reservations.open(path, SUBNETS)
    journal.add(reservation("a"))
    path.unlink()
    with monkeypatch.context() as patched:

        def refuse(*_: object, **__: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("disk full")

        patched.setattr(sqlite3, "connect", refuse)
        for _ in range(2):
            with pytest.raises(MuslinError, match=rf"{path} cannot be written: disk full"):
                journal.add(reservation("b"))
    assert [made.container_id for made in journal.all()] == ["a"]
    journal.add(reservation("c"))
    again = Reservations.open(path, SUBNETS)
    assert known(again) == known(journal)
    again.close()
    journal.close()


# ---- a disk that refuses ---------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_nothing_is_half_made(path: Path) -> None:
    journal = Reservations.open(path, SUBNETS)
    journal.add(reservation("a"))
    before, connection = known(journal), journal._file._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(MuslinError, match=rf"{path} cannot be written: .*full"):
        journal.add(reservation("b", netns_path="/" * 8192))
    assert known(journal) == before
    again = Reservations.open(path, SUBNETS)
    assert known(again) == before
    again.close()
    connection.execute("PRAGMA max_page_count = 1000000")
    journal.add(reservation("b", netns_path="/" * 8192))
    journal.close()


def test_a_file_that_may_not_be_written_is_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Reservations.open(path, SUBNETS)
    journal.add(reservation("a"))
    connection = journal._file._connection
    assert connection is not None
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(MuslinError, match=rf"{path} cannot be written: .*readonly"):
        journal.remove(("a", "eth0"))
    assert journal.get("a", "eth0") is not None
    connection.execute("PRAGMA query_only = OFF")
    journal.remove(("a", "eth0"))
    assert not caplog.text, "the next change finds the file as it was"
    journal.close()


def test_a_change_that_fails_half_way_is_undone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Reservations.open(path, SUBNETS)
    journal.add(reservation("a"))
    before, connection = known(journal), journal._file._connection
    assert connection is not None
    connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE INSERT ON freed BEGIN SELECT RAISE(ABORT, 'no more of these'); END"
    )
    with pytest.raises(MuslinError, match=rf"{path} cannot be written: no more of these"):
        journal.remove(("a", "eth0"))
    again = Reservations.open(path, SUBNETS)
    assert known(again) == known(journal) == before
    again.close()
    connection.execute("DROP TRIGGER refuse")
    journal.remove(("a", "eth0"))
    assert not caplog.text, "the next change finds the file as it was"
    journal.close()


def test_somebody_who_holds_the_file_is_waited_for_and_then_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muslin.agent.reservation_file.LOCKED_S", 0.05)
    file = opened(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(MuslinError, match="locked"):
        file.write(CHANGE)
    holder.execute("ROLLBACK")
    holder.close()
    file.write(CHANGE)
    file.close()
    assert read(path) == FULL


def test_a_place_where_no_file_can_be_is_named(path: Path) -> None:
    path.write_text("")
    with pytest.raises(MuslinError, match=rf"{path}/containers.db cannot be used: (File exists|Not a directory)"):
        opened(path / "containers.db")


def test_what_cannot_even_be_set_aside_is_named(path: Path) -> None:
    path.write_bytes(b"x" * 1000)
    aside(path).mkdir()
    with pytest.raises(MuslinError, match=rf"{path} cannot be used: Is a directory"):
        opened(path)
    assert path.read_bytes() == b"x" * 1000
