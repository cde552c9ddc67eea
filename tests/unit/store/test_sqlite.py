"""The file of the SQLite store: who may read it, kill -9, damage, other processes, and what an idle watch costs."""

import asyncio
import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.store import sqlite_file
from muslin.store.base import LeaseLost, StoreUnavailable
from muslin.store.sqlite import SqliteStore
from tests.contract.asynchronous import asynchronous, until, until_true

ROOT = Path(__file__).parents[3]
TTL_S = 3600.0
LATENCY_S = 0.05
WRITER = """
import asyncio, sys
from muslin.model.lease import Advertisement, Lease
from muslin.store.sqlite import SqliteStore

async def main(path, start, count):
    store = SqliteStore(path)
    for number in range(start, start + count):
        who = Advertisement(addresses=("192.0.2.1",), backend="host-gw")
        subnet = f"10.{number // 256}.{number % 256}.0/24"
        lease = await store.create(Lease(subnets=(subnet,), advertisement=who), 3600)
        print(lease.name, flush=True)
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def watching(store: SqliteStore) -> AsyncIterator[AsyncIterator[ClusterSnapshot]]:
    iterator = store.watch()
    async with aclosing(iterator):  # type: ignore[type-var]
        yield iterator


def make_lease(number: int) -> Lease:
    return Lease(
        subnets=(f"10.0.{number}.0/24",), advertisement=Advertisement(addresses=("192.0.2.1",), backend="host-gw")
    )


def start_writer(path: Path, start: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(start), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@asynchronous
async def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.create(make_lease(0), TTL_S)
        assert {name.name: name.stat().st_mode & 0o777 for name in tmp_path.iterdir()} == {
            "store.db": 0o600,
            "store.db-wal": 0o600,
            "store.db-shm": 0o600,
        }


@pytest.mark.slow
@asynchronous
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path, acknowledged, seen = tmp_path / "store.db", set[str](), list[ClusterSnapshot]()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    async with open_store(path) as store, watching(store) as snapshots:
        collector = asyncio.ensure_future(gather_into(seen, snapshots))
        for wave, longest in enumerate((30, 100, 300, 1500)):
            # The longest has passed several checkpoints of the log.
            starts = (12_000 * wave + 3_000 * number for number in range(3))
            lives = [(start_writer(path, start, 3_000), dice.randrange(1, longest)) for start in starts]
            outputs = await asyncio.gather(*(asyncio.to_thread(kill_after, *life) for life in lives))
            acknowledged |= set[str]().union(*outputs)
        present = await store.snapshot()
        await until_true(lambda: seen and seen[-1].revision == present.revision)
        collector.cancel()
        await asyncio.wait({collector})
    assert len(acknowledged) > 10
    assert not acknowledged - {lease.name for lease in present.leases}
    assert [snapshot.revision for snapshot in seen] == sorted({snapshot.revision for snapshot in seen})
    assert all(len(snapshot.leases) == snapshot.revision - 1 for snapshot in seen), "each was whole"
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def kill_after(writer: subprocess.Popen[str], count: int) -> set[str]:
    """Kill a writer that has acknowledged ``count`` leases, wherever it is in the next; all that it acknowledged."""
    with writer:
        assert writer.stdout is not None
        names = [writer.stdout.readline() for _ in range(count)]
        writer.kill()
        return {name.strip() for name in (*names, *writer.stdout) if name.endswith("\n")}


async def gather_into(seen: list[ClusterSnapshot], snapshots: AsyncIterator[ClusterSnapshot]) -> None:
    """Keep every snapshot."""
    async for snapshot in snapshots:
        seen.append(snapshot)


@asynchronous
async def test_many_processes_write_at_once_from_the_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writers = [start_writer(path, 1000 * number, 20) for number in range(6)]
    outputs = await asyncio.gather(*(asyncio.to_thread(writer.communicate) for writer in writers))
    assert [len(output.split()) for output, _ in outputs] == [20] * 6
    async with open_store(path) as store:
        snapshot = await store.snapshot()
    assert len({lease.revision for lease in snapshot.leases}) == 120 == snapshot.revision - 1


@pytest.mark.parametrize("has_inotify", [True, False])
@asynchronous
async def test_other_processes_changes_are_seen_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_inotify: bool
) -> None:
    def refuse(_: Path) -> int:
        raise OSError("no inotify instance is left")

    if not has_inotify:
        monkeypatch.setattr(sqlite_file, "_open_inotify", refuse)
    path = tmp_path / "store.db"
    async with open_store(path) as store, watching(store) as snapshots:
        seen_s: dict[str, float] = {}
        collector = asyncio.ensure_future(collect(snapshots, seen_s))
        written_s: dict[str, float] = {}
        with start_writer(path, 0, 20) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                name = (await asyncio.to_thread(writer.stdout.readline)).strip()
                written_s[name] = time.monotonic()
        await until_true(lambda: len(seen_s) == 20)
        collector.cancel()
        await asyncio.wait({collector})
    delays_s = sorted(seen_s[name] - written_s[name] for name in written_s)
    assert delays_s[len(delays_s) // 2] < (LATENCY_S if has_inotify else 2 * LATENCY_S)


async def collect(snapshots: AsyncIterator[ClusterSnapshot], seen_s: dict[str, float]) -> None:
    """Note when each lease was first seen."""
    async for snapshot in snapshots:
        for lease in snapshot.leases:
            seen_s.setdefault(lease.name, time.monotonic())


@pytest.mark.slow
@asynchronous
async def test_an_idle_watch_costs_next_to_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store, watching(store) as snapshots:
        for number in range(100):
            await store.create(make_lease(number), TTL_S)
        await until(snapshots, lambda snapshot: len(snapshot.leases) == 100)
        rest = asyncio.ensure_future(anext(snapshots))
        used = [await measure_cpu(rest, 4.0)]
        # Whatever else this process still has to do is not the watch's.
        while used[-1] > 0.001 and len(used) < 4:
            used.append(await measure_cpu(rest, 4.0))
        rest.cancel()
        await asyncio.wait({rest})
    assert min(used) <= 0.001


async def measure_cpu(idle: asyncio.Future[ClusterSnapshot], stretch_s: float) -> float:
    """How much of a core this process uses while it waits; a stretch is long enough for two looks without news."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.wait({idle}, timeout=stretch_s)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / stretch_s


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"not a database at all, but long enough to be looked at" * 100, "damaged or no SQLite file")],
)
@asynchronous
async def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    async with open_store(path) as store, watching(store) as snapshots:
        with pytest.raises(StoreUnavailable, match=fault) as refusal:
            await store.snapshot()
        assert "move" in refusal.value.hint
        silence = asyncio.ensure_future(anext(snapshots))
        await until_true(lambda: store.trouble)
        silence.cancel()
        await asyncio.wait({silence})
    assert path.read_bytes() == content


@asynchronous
async def test_a_page_that_was_overwritten_is_an_error_and_not_a_smaller_network(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        for number in range(200):
            await store.create(make_lease(number), TTL_S)
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(4096 * 3))
    async with open_store(path) as store:
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.snapshot()


@asynchronous
async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    async with open_store(path) as store:
        with pytest.raises(StoreUnavailable, match="not one of Muslin's"):
            await store.snapshot()


@asynchronous
async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.snapshot()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE store SET schema = 2")
    connection.close()
    async with open_store(path) as store:
        with pytest.raises(StoreUnavailable, match="schema 2"):
            await store.snapshot()


@asynchronous
async def test_a_clock_that_jumps_forward_ends_leases_and_their_holders_learn_it(tmp_path: Path) -> None:
    clock_s = [1_700_000_000.0]
    store = SqliteStore(tmp_path / "store.db", now=lambda: clock_s[0])
    try:
        held = await store.create(make_lease(0), TTL_S)
        kept = await store.reserve(make_lease(1))
        clock_s[0] -= 20 * TTL_S
        held = await store.renew(held, TTL_S)
        assert held.expires_at == clock_s[0] + TTL_S
        clock_s[0] += 20 * TTL_S
        with pytest.raises(LeaseLost):
            await store.renew(held, TTL_S)
        assert (await store.snapshot()).leases == (kept,)
    finally:
        await store.close()


@asynchronous
async def test_a_vanished_file_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store, watching(store) as snapshots:
        await store.create(make_lease(0), TTL_S)
        await until(snapshots, lambda snapshot: bool(snapshot.leases))
        silence = asyncio.ensure_future(anext(snapshots))
        path.unlink()
        await until_true(lambda: "is gone" in (store.trouble or ""))
        with pytest.raises(StoreUnavailable, match="is gone"):
            await store.create(make_lease(1), TTL_S)
        assert not path.exists()
        async with open_store(path) as newcomer:
            assert (await newcomer.snapshot()).leases == ()
            with pytest.raises(StoreUnavailable, match="was replaced"):
                await store.snapshot()
        assert not silence.done()
        silence.cancel()
        await asyncio.wait({silence})


@asynchronous
async def test_a_replaced_file_is_not_mixed_with_the_old_ones_log(tmp_path: Path) -> None:
    path, other_path = tmp_path / "store.db", tmp_path / "other.db"
    async with open_store(other_path) as other:
        for number in range(10, 13):
            await other.create(make_lease(number), TTL_S)
    content = other_path.read_bytes()
    async with open_store(path) as store:
        await store.create(make_lease(0), TTL_S)
        other_path.rename(path)
        with pytest.raises(StoreUnavailable, match="was replaced") as refusal:
            await store.snapshot()
        assert "-wal" in refusal.value.hint
    assert path.read_bytes() == content


@asynchronous
async def test_a_store_that_went_back_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store, watching(store) as snapshots:
        await store.create(make_lease(0), TTL_S)
        await until(snapshots, lambda snapshot: bool(snapshot.leases))
        silence = asyncio.ensure_future(anext(snapshots))
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("DELETE FROM lease")
            connection.execute("UPDATE store SET revision = 1")
        connection.close()
        path.touch()
        await until_true(lambda: "went back" in (store.trouble or ""))
        assert not silence.done()
        silence.cancel()
        await asyncio.wait({silence})


@asynchronous
async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with open_store(tmp_path / "missing" / "store.db") as store:
        with pytest.raises(StoreUnavailable, match="No such file or directory"):
            await store.snapshot()


@asynchronous
async def test_waiting_for_a_lock_ends_at_the_deadline_and_stops_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.snapshot()
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        write = asyncio.ensure_future(store.create(make_lease(0), TTL_S, deadline_s=0.2))
        turns = 0
        while not write.done():
            await asyncio.sleep(0.01)
            turns += 1
        holder.close()
        with pytest.raises(StoreUnavailable, match="locked"):
            await write
        assert turns > 3
        await store.create(make_lease(0), TTL_S)
