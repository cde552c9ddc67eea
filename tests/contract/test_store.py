"""One suite that the stores in memory, in a file and in etcd all pass; etcd is the real server, one member.

A bench is a datastore with its clients. It can make a lease's time pass, write what no client would write, and take
the datastore away for a while.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.store.base import LeaseLost, LeaseTaken, Store, StoreUnavailable
from muslin.store.etcd import EtcdOptions, EtcdStore
from muslin.store.memory import MemoryData, MemoryStore
from muslin.store.sqlite import SqliteStore
from muslin.wire.flannel_lease import encode_lease_key
from tests.contract.asynchronous import asynchronous, until, until_true
from tests.contract.etcd_server import Cluster, running_cluster, text64

pytestmark = pytest.mark.contract

TTL_S = 3600.0
GARBAGE = b'{"PublicIP": "not an address"}'


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.time_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time_s


class Bench(Protocol):
    def client(self) -> Store: ...
    def end(self, lease: Lease) -> None: ...
    def plant(self, name: str, value: bytes) -> None: ...
    def take_away(self) -> None: ...
    def give_back(self) -> None: ...


class MemoryBench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.data = MemoryData(self.clock)

    def client(self) -> Store:
        return MemoryStore(self.data)

    def end(self, lease: Lease) -> None:
        assert lease.expires_at is not None
        self.clock.time_s = lease.expires_at
        self.data.wake()

    def plant(self, name: str, value: bytes) -> None:
        self.data.put(name, value, None)

    def take_away(self) -> None:
        self.data.outage = "the store is on holiday"

    def give_back(self) -> None:
        self.data.outage = None


class SqliteBench:
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path

    def client(self) -> Store:
        return SqliteStore(self.path, now=self.clock)

    def end(self, lease: Lease) -> None:
        assert lease.expires_at is not None
        self.clock.time_s = lease.expires_at
        self.path.touch()

    def plant(self, name: str, value: bytes) -> None:
        import sqlite3

        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute("UPDATE store SET revision = revision + 1")
            connection.execute("INSERT INTO lease SELECT ?, ?, NULL, revision FROM store", (name, value))
        connection.close()
        self.path.touch()

    def take_away(self) -> None:
        self.path.rename(self.path.with_suffix(".away"))

    def give_back(self) -> None:
        self.path.with_suffix(".away").rename(self.path)


class EtcdBench:
    def __init__(self, cluster: Cluster) -> None:
        self.member = cluster.members[0]
        self.options = EtcdOptions(
            endpoints=cluster.urls, prefix=f"/muslin-tests/{uuid.uuid4()}", attempt_s=0.5, heartbeat_s=0.3
        )

    def client(self) -> Store:
        return EtcdStore(self.options)

    def end(self, lease: Lease) -> None:
        """Revoke its etcd lease, which is what etcd itself does in the end."""
        key = text64(encode_lease_key(self.options.prefix, lease.name))
        pair = self.member.ask("kv/range", key=key)["kvs"][0]
        self.member.ask("lease/revoke", ID=pair["lease"])

    def plant(self, name: str, value: bytes) -> None:
        self.member.put(encode_lease_key(self.options.prefix, name).decode(), value)

    def take_away(self) -> None:
        self.member.freeze()

    def give_back(self) -> None:
        self.member.thaw()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    makers: dict[str, Callable[[], Bench]] = {
        "memory": MemoryBench,
        "sqlite": lambda: SqliteBench(tmp_path / "store.db"),
        "etcd": lambda: EtcdBench(request.getfixturevalue("etcd")),
    }
    return makers[request.param]()


@asynccontextmanager
async def two_clients(bench: Bench) -> AsyncIterator[tuple[Store, Store]]:
    """Two nodes' clients of one datastore."""
    one, other = bench.client(), bench.client()
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


@asynccontextmanager
async def watching(store: Store) -> AsyncIterator[AsyncIterator[ClusterSnapshot]]:
    """A watch that is closed in the end."""
    iterator = store.watch()
    async with aclosing(iterator):  # type: ignore[type-var]
        yield iterator


def make_lease(number: int = 0, *, address: str = "192.0.2.1", subnets: tuple[str, ...] = ()) -> Lease:
    return Lease(
        subnets=subnets or (f"10.5.{number}.0/24",),
        advertisement=Advertisement(addresses=(address,), backend="vxlan", data={"VNI": 1}),
    )


def with_address(lease: Lease, address: str) -> Lease:
    changed = make_lease(address=address).advertisement
    return Lease(subnets=lease.subnets, advertisement=changed, expires_at=lease.expires_at, revision=lease.revision)


def names(snapshot: ClusterSnapshot) -> list[str]:
    return [lease.name for lease in snapshot.leases]


# ---- reading and writing ---------------------------------------------------------------------------------


@asynchronous
async def test_a_new_network_has_neither_config_nor_leases(bench: Bench) -> None:
    async with two_clients(bench) as (one, _):
        snapshot = await one.snapshot()
    assert (snapshot.config, snapshot.leases, snapshot.unreadable) == (None, (), ())
    assert snapshot.revision > 0


@pytest.mark.parametrize(
    "subnets", [("10.5.34.0/24",), ("10.5.34.0/24", "fc00:5:34::/64"), ("fc00:5:34::/64",)], ids=["4", "dual", "6"]
)
@asynchronous
async def test_what_one_creates_the_other_reads(bench: Bench, subnets: tuple[str, ...]) -> None:
    async with two_clients(bench) as (one, other):
        created = await one.create(make_lease(subnets=subnets), TTL_S)
        snapshot = await other.snapshot()
        (read,) = snapshot.leases
    assert (read.subnets, read.advertisement, read.revision) == (subnets, created.advertisement, created.revision)
    assert read.expires_at is not None
    assert created.revision <= snapshot.revision


@asynchronous
async def test_a_taken_name_is_refused_and_its_holder_not_touched(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        created = await one.create(make_lease(), TTL_S)
        with pytest.raises(LeaseTaken, match=r"10\.5\.0\.0-24"):
            await other.create(make_lease(address="192.0.2.2"), TTL_S)
        with pytest.raises(LeaseTaken):
            await other.reserve(make_lease(address="192.0.2.2"))
        assert (await other.snapshot()).leases[0].advertisement == created.advertisement


@asynchronous
async def test_of_many_who_want_one_subnet_exactly_one_gets_it(bench: Bench) -> None:
    stores = [bench.client() for _ in range(8)]
    attempts = [store.create(make_lease(address=f"192.0.2.{n}"), TTL_S) for n, store in enumerate(stores, 1)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    (winner,) = [result for result in results if isinstance(result, Lease)]
    assert sum(isinstance(result, LeaseTaken) for result in results) == len(stores) - 1
    assert (await stores[0].snapshot()).leases[0].advertisement == winner.advertisement
    for store in stores:
        await store.close()


@asynchronous
async def test_renewing_moves_the_end_and_is_no_news(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        created = await one.create(make_lease(), TTL_S)
        before = await other.snapshot()
        renewed = await one.renew(created, 2 * TTL_S - 1)
        again = await one.renew(renewed, 2 * TTL_S - 1)
        after = await other.snapshot()
    assert created.expires_at is not None
    assert renewed.expires_at is not None
    assert renewed.expires_at - created.expires_at > 0.9 * TTL_S
    assert again.revision == renewed.revision
    assert names(after) == names(before)


@asynchronous
async def test_a_new_advertisement_is_written_with_a_renewal(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        created = await one.create(make_lease(), TTL_S)
        renewed = await one.renew(with_address(created, "192.0.2.9"), TTL_S)
        assert renewed.revision > created.revision
        assert (await other.snapshot()).leases[0].advertisement.addresses == ("192.0.2.9",)
        assert (await one.renew(renewed, TTL_S)).revision == renewed.revision


@asynchronous
async def test_what_somebody_else_changed_is_neither_renewed_nor_removed(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        mine = await one.create(make_lease(), TTL_S)
        theirs = await other.renew(with_address(mine, "192.0.2.9"), TTL_S)
        with pytest.raises(LeaseLost):
            await one.renew(mine, TTL_S)
        with pytest.raises(LeaseLost):
            await one.renew(with_address(mine, "192.0.2.7"), TTL_S)
        with pytest.raises(LeaseLost):
            await one.delete(mine)
        assert (await one.snapshot()).leases[0].advertisement == theirs.advertisement


@asynchronous
async def test_a_removed_lease_is_lost_and_its_name_free(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        mine = await one.create(make_lease(), TTL_S)
        await other.delete(mine)
        assert (await one.snapshot()).leases == ()
        with pytest.raises(LeaseLost):
            await one.renew(mine, TTL_S)
        with pytest.raises(LeaseLost):
            await one.delete(mine)
        again = await one.create(make_lease(), TTL_S)
        assert again.revision > mine.revision


@asynchronous
async def test_a_lease_that_ended_is_gone_for_all(bench: Bench) -> None:
    async with two_clients(bench) as (one, other), watching(other) as snapshots:
        mine = await one.create(make_lease(), TTL_S)
        await until(snapshots, lambda snapshot: bool(snapshot.leases))
        bench.end(mine)
        gone = await until(snapshots, lambda snapshot: not snapshot.leases)
        assert gone.revision > mine.revision
        with pytest.raises(LeaseLost):
            await one.renew(mine, TTL_S)
        await other.create(make_lease(address="192.0.2.2"), TTL_S)


@asynchronous
async def test_a_reservation_has_no_end_and_stays_one(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        reserved = await one.reserve(make_lease())
        assert reserved.expires_at is None
        renewed = await other.renew(with_address(reserved, "192.0.2.9"), TTL_S)
        assert renewed.expires_at is None
        assert (await other.renew(renewed, TTL_S)).expires_at is None
        assert (await one.snapshot()).leases[0].expires_at is None
        await one.delete(renewed)


@asynchronous
async def test_the_config_is_bytes_that_nobody_judges(bench: Bench) -> None:
    async with two_clients(bench) as (one, other), watching(other) as snapshots:
        assert (await anext(snapshots)).config is None
        for config in (b'{"Network": "10.5.0.0/16"}', b"\xff not JSON"):
            await one.write_config(config)
            assert (await anext(snapshots)).config == config


@asynchronous
async def test_a_lease_that_could_not_be_read_again_is_not_written(bench: Bench) -> None:
    async with two_clients(bench) as (one, _):
        for lease in (make_lease(address="nowhere"), make_lease(subnets=("10.5.0.1/24",)), make_lease(subnets=("x",))):
            with pytest.raises(ValueError, match=r"\w"):
                await one.create(lease, TTL_S)
        snapshot = await one.snapshot()
        assert (snapshot.leases, snapshot.unreadable) == ((), ())


@asynchronous
async def test_garbage_is_named_and_harms_nobody(bench: Bench) -> None:
    async with two_clients(bench) as (one, other), watching(other) as snapshots:
        await one.create(make_lease(1), TTL_S)
        for name, value in (("10.5.7.0-24", GARBAGE), ("no-subnet", b"{}"), ("10.5.8.0-24", b"\xff\x00")):
            bench.plant(name, value)
        await one.create(make_lease(2), TTL_S)
        snapshot = await until(snapshots, lambda snapshot: len(snapshot.leases) == 2)
        assert snapshot.unreadable == ("10.5.7.0-24", "10.5.8.0-24", "no-subnet")
        assert names(snapshot) == ["10.5.1.0-24", "10.5.2.0-24"]
        with pytest.raises(LeaseTaken):
            await one.create(make_lease(7), TTL_S)


# ---- watching --------------------------------------------------------------------------------------------


@asynchronous
async def test_a_watch_tells_the_present_and_then_each_change(bench: Bench) -> None:
    async with two_clients(bench) as (one, other):
        await one.create(make_lease(0), TTL_S)
        async with watching(other) as snapshots:
            seen = [await anext(snapshots)]
            for number in (1, 2):
                await one.create(make_lease(number), TTL_S)
                seen.append(await anext(snapshots))
            await one.delete(seen[-1].leases[0])
            seen.append(await anext(snapshots))
    assert [len(snapshot.leases) for snapshot in seen] == [1, 2, 3, 2]
    assert [s.revision for s in seen] == sorted({s.revision for s in seen})


@asynchronous
async def test_a_burst_ends_in_one_whole_snapshot(bench: Bench) -> None:
    async with two_clients(bench) as (one, other), watching(other) as snapshots:
        seen = [await anext(snapshots)]
        await asyncio.gather(*(one.create(make_lease(number), TTL_S) for number in range(100)))
        async for snapshot in snapshots:
            seen.append(snapshot)
            if len(snapshot.leases) == 100:
                break
        present = await one.snapshot()
    assert names(seen[-1]) == names(present)
    assert len(seen) <= 101
    assert [s.revision for s in seen] == sorted({s.revision for s in seen})


@asynchronous
async def test_while_the_store_is_away_a_watch_says_nothing_but_why(bench: Bench) -> None:
    async with two_clients(bench) as (one, other), watching(other) as snapshots:
        mine = await one.create(make_lease(), TTL_S)
        await until(snapshots, lambda snapshot: bool(snapshot.leases))
        troubles: list[str | None] = []
        other.on_trouble = troubles.append
        bench.take_away()
        next_snapshot = asyncio.ensure_future(anext(snapshots))
        await until_true(lambda: other.trouble)
        with pytest.raises((StoreUnavailable, OSError)):
            await one.snapshot(deadline_s=0.3)
        with pytest.raises((StoreUnavailable, OSError)):
            await one.create(make_lease(1), TTL_S, deadline_s=0.3)
        assert not next_snapshot.done()
        bench.give_back()
        await one.create(make_lease(2), TTL_S)
        await one.delete(mine)
        snapshot = await next_snapshot
        while names(snapshot) != ["10.5.2.0-24"]:
            assert snapshot.leases, "at no moment was there none"
            snapshot = await anext(snapshots)
        await until_true(lambda: other.trouble is None)
    assert troubles[0]
    assert troubles[-1] is None


@asynchronous
async def test_close_ends_watches_and_refuses_calls(bench: Bench) -> None:
    one = bench.client()
    snapshots = one.watch()
    await anext(snapshots)
    rest = asyncio.ensure_future(anext(snapshots))
    await asyncio.sleep(0)
    await one.close()
    with pytest.raises(StopAsyncIteration):
        await rest
    with pytest.raises(StoreUnavailable):
        await one.snapshot(deadline_s=1)
    await one.close()
