"""What goes wrong with etcd, done to the real server: three members on loopback, a relay, SIGKILL and SIGSTOP.

watcher ──┐
          ├── m0 ── m1 ── m2        relay: watcher ── relay ── m0
writer ───┘
"""

import asyncio
import shutil
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.model.secret import Secret
from muslin.store.base import LeaseLost, LeaseTaken, StoreUnavailable
from muslin.store.etcd import EtcdOptions, EtcdStore
from tests.contract.asynchronous import asynchronous, until, until_true
from tests.contract.etcd_server import Cluster, Member, Relay, running_cluster, text64

pytestmark = [pytest.mark.contract, pytest.mark.slow]

TTL_S = 3600.0
SHORT_TTL_S = 2.0
PASSWORD = "correct horse"


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Member]:
    with running_cluster(tmp_path) as cluster:
        yield cluster.members[0]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("three"), size=3) as cluster:
        yield cluster


@pytest.fixture
def trio(three: Cluster) -> Iterator[Cluster]:
    """Three members, empty and in good health: an election is what takes time, so all tests share them."""
    yield three
    three.heal()
    three.members[0].ask("kv/deleterange", key=text64(b"\0"), range_end=text64(b"\0"))


@asynccontextmanager
async def open_store(*endpoints: str, **options: Any) -> AsyncIterator[EtcdStore]:
    """A client with little patience, so that tests are quick."""
    quick = {"attempt_s": 1.0, "heartbeat_s": 0.5} | options
    store = EtcdStore(EtcdOptions(endpoints=endpoints, **quick))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def watching(store: EtcdStore) -> AsyncIterator[AsyncIterator[ClusterSnapshot]]:
    iterator = store.watch()
    async with aclosing(iterator):  # type: ignore[type-var]
        yield iterator


def make_lease(number: int = 0) -> Lease:
    return Lease(
        subnets=(f"10.5.{number}.0/24",), advertisement=Advertisement(addresses=("192.0.2.1",), backend="host-gw")
    )


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel and wait for the end of it: an iterator cannot be closed while it is being asked."""
    task.cancel()
    await asyncio.wait({task})


def count(wanted: int) -> Any:
    return lambda snapshot: len(snapshot.leases) == wanted


async def restart(member: Member, cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, member)


# ---- members come and go ---------------------------------------------------------------------------------


@asynchronous
async def test_the_leader_is_killed(trio: Cluster) -> None:
    async with open_store(*trio.urls) as writer, open_store(*trio.urls) as watcher, watching(watcher) as snapshots:
        await writer.create(make_lease(0), TTL_S)
        await until(snapshots, count(1))
        trio.leader().kill()
        await writer.create(make_lease(1), TTL_S, deadline_s=20)
        assert len((await anext(snapshots)).leases) == 2
        await until_true(lambda: watcher.trouble is None)


@asynchronous
async def test_all_members_are_down_for_longer_than_the_ttl(trio: Cluster) -> None:
    async with open_store(*trio.urls) as holder, open_store(*trio.urls) as watcher, watching(watcher) as snapshots:
        await holder.create(make_lease(0), TTL_S)
        mine = await holder.create(make_lease(1), SHORT_TTL_S)
        seen = await until(snapshots, count(2))
        for member in trio.members:
            member.kill()
        silence = asyncio.ensure_future(anext(snapshots))
        await until_true(lambda: watcher.trouble)
        done, _ = await asyncio.wait({silence}, timeout=SHORT_TTL_S + 1)
        assert not done, "nothing is deleted while nobody can be asked"
        # etcd gives each lease its whole time again, so whoever renews at once keeps it.
        renewal = asyncio.ensure_future(holder.renew(mine, SHORT_TTL_S, deadline_s=40))
        await asyncio.to_thread(trio.start)
        assert (await renewal).revision == mine.revision
        last = await silence
        assert last.revision > seen.revision
        assert [lease.name for lease in last.leases] == ["10.5.0.0-24"], "and without renewal it ended in the end"
        assert watcher.trouble is None
        with pytest.raises(LeaseLost):
            await holder.renew(mine, TTL_S)
        assert (await holder.create(make_lease(1), TTL_S)).name == mine.name


@asynchronous
async def test_two_of_three_members_are_lost(trio: Cluster) -> None:
    alive, *others = trio.members
    async with open_store(alive.url) as watcher, watching(watcher) as snapshots:
        await anext(snapshots)
        for member in others:
            member.kill()
        # The one that is left answers, but it no longer knows what is true.
        await until_true(lambda: watcher.trouble)
        with pytest.raises(StoreUnavailable):
            await watcher.snapshot(deadline_s=1)
        silence = asyncio.ensure_future(anext(snapshots))
        await restart(others[0], trio)
        await watcher.create(make_lease(0), TTL_S, deadline_s=20)
        assert len((await silence).leases) == 1


@asynchronous
async def test_a_frozen_member_is_noticed(single: Member) -> None:
    async with open_store(single.url) as watcher, watching(watcher) as snapshots:
        await anext(snapshots)
        single.freeze()
        await until_true(lambda: watcher.trouble)
        single.thaw()
        await watcher.create(make_lease(0), TTL_S, deadline_s=20)
        assert len((await anext(snapshots)).leases) == 1
        await until_true(lambda: watcher.trouble is None)


@asynchronous
async def test_calls_leave_a_frozen_member_for_another(trio: Cluster) -> None:
    async with open_store(*trio.urls) as watcher, watching(watcher) as snapshots:
        await anext(snapshots)
        member_of(watcher, trio).freeze()
        await watcher.create(make_lease(0), TTL_S, deadline_s=20)
        assert len((await anext(snapshots)).leases) == 1
        await until_true(lambda: watcher.trouble is None)


def member_of(store: EtcdStore, cluster: Cluster) -> Member:
    """The member that a client is connected to."""
    link = store._client._link
    assert link is not None
    return next(member for member in cluster.members if member.url == link.endpoint)


@asynchronous
async def test_an_idle_watch_notices_a_freeze_by_itself(trio: Cluster) -> None:
    async with open_store(*trio.urls) as watcher, watching(watcher) as snapshots:
        await anext(snapshots)
        link, frozen = watcher._client._link, member_of(watcher, trio)
        frozen.freeze()
        await until_true(lambda: watcher._client._link is not link)
        others = [member.url for member in trio.members if member is not frozen]
        async with open_store(*others) as writer:
            await writer.create(make_lease(0), TTL_S, deadline_s=20)
        assert len((await anext(snapshots)).leases) == 1


@asynchronous
async def test_connection_refused_at_the_start(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with open_store(*cluster.urls) as store, watching(store) as snapshots:
        with pytest.raises(StoreUnavailable, match="Connect call failed"):
            await store.snapshot(deadline_s=0.3)
        first = asyncio.ensure_future(anext(snapshots))
        await until_true(lambda: store.trouble)
        with cluster:
            assert (await first).leases == ()
            await until_true(lambda: store.trouble is None)


@asynchronous
async def test_a_restart_loses_nothing(single: Member, tmp_path: Path) -> None:
    async with open_store(single.url) as store, watching(store) as snapshots:
        mine = await store.create(make_lease(0), TTL_S)
        await until(snapshots, count(1))
        single.kill()
        await restart(single, cluster_of(single))
        assert (await store.renew(mine, TTL_S, deadline_s=10)).revision == mine.revision
        await store.create(make_lease(1), TTL_S)
        assert len((await anext(snapshots)).leases) == 2


def cluster_of(member: Member) -> Cluster:
    """The cluster that has this one member."""
    cluster = Cluster(member.directory, size=0)
    cluster.members.append(member)
    return cluster


@asynchronous
async def test_an_emptied_etcd_is_not_believed(single: Member) -> None:
    async with open_store(single.url) as store, watching(store) as snapshots:
        for number in range(3):
            await store.create(make_lease(number), TTL_S)
        await until(snapshots, count(3))
        silence = asyncio.ensure_future(anext(snapshots))
        single.kill()
        shutil.rmtree(single.directory / single.name)
        await restart(single, cluster_of(single))
        await until_true(lambda: "went back" in (store.trouble or ""))
        assert not silence.done()
        await cancel(silence)


# ---- history, partitions, lost answers -------------------------------------------------------------------


@asynchronous
async def test_compaction_during_a_partition(single: Member) -> None:
    async with Relay(single.port) as relay, open_store(single.url) as writer, open_store(relay.url) as watcher:
        await writer.create(make_lease(0), TTL_S)
        async with watching(watcher) as snapshots:
            first = await anext(snapshots)
            relay.hold_answers()
            gone = first.leases[0]
            await writer.delete(gone)
            for number in range(1, 20):
                await writer.create(make_lease(number), TTL_S)
            present = await writer.snapshot()
            single.ask("kv/compaction", revision=present.revision, physical=True)
            await relay.cut()
            snapshot = await until(snapshots, count(19))
            assert snapshot.leases == tuple(
                msgspec.structs.replace(lease, expires_at=other.expires_at)
                for lease, other in zip(present.leases, snapshot.leases, strict=True)
            )


@pytest.mark.parametrize("limit_bytes", [100, 9_000, 30_000])
@asynchronous
async def test_half_a_listing_is_no_snapshot(single: Member, limit_bytes: int) -> None:
    async with Relay(single.port) as relay, open_store(single.url) as writer, open_store(relay.url) as watcher:
        await asyncio.gather(*(writer.reserve(make_lease(number)) for number in range(250)))
        relay.break_after(limit_bytes)
        with pytest.raises(StoreUnavailable):
            await watcher.snapshot(deadline_s=0.5)
        async with watching(watcher) as snapshots:
            first = asyncio.ensure_future(anext(snapshots))
            await until_true(lambda: watcher.trouble)
            assert not first.done()
            await relay.cut()
            assert len((await first).leases) == 250


@asynchronous
async def test_a_clock_that_jumps_ends_no_lease(single: Member) -> None:
    clock_s = [1_700_000_000.0]
    store = EtcdStore(EtcdOptions(endpoints=(single.url,)), now=lambda: clock_s[0])
    try:
        held = await store.create(make_lease(0), TTL_S)
        for jump_s in (10 * TTL_S, -20 * TTL_S):
            clock_s[0] += jump_s
            assert len((await store.snapshot()).leases) == 1
            renewed = await store.renew(held, TTL_S)
            assert (renewed.revision, renewed.expires_at) == (held.revision, clock_s[0] + TTL_S)
            held = renewed
    finally:
        await store.close()


@asynchronous
async def test_a_short_break_is_resumed_without_listing_again(single: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: object) -> None:
        raise AssertionError("listed again")

    async with (
        Relay(single.port) as relay,
        open_store(single.url) as writer,
        open_store(relay.url) as watcher,
        watching(watcher) as snapshots,
    ):
        await anext(snapshots)
        monkeypatch.setattr(watcher, "_list", refuse)
        await relay.cut()
        await writer.create(make_lease(0), TTL_S)
        assert len((await until(snapshots, count(1))).leases) == 1


@pytest.mark.parametrize("verb", ["create", "reserve", "renew", "delete"])
@asynchronous
async def test_a_write_whose_answer_was_lost_is_recognised(single: Member, verb: str) -> None:
    async with Relay(single.port) as relay, open_store(relay.url, attempt_s=5.0) as store:
        lease = make_lease(0)
        if verb in ("renew", "delete"):
            held = await store.create(lease, TTL_S)
            changed = Advertisement(addresses=("192.0.2.2",), backend="host-gw")
            lease = msgspec.structs.replace(held, advertisement=changed)
        await store.snapshot()
        before = (await store.snapshot()).revision
        calls = {"create": store.create, "renew": store.renew, "reserve": store.reserve, "delete": store.delete}
        ttl = (TTL_S,) if verb in ("create", "renew") else ()
        hold_at_write(store, relay)
        write = asyncio.ensure_future(calls[verb](lease, *ttl, deadline_s=20))  # type: ignore[operator]
        # Its own revision tells that the write was carried out, though nobody was told.
        await until_true(lambda: int(single.ask("kv/range", key=text64(b"x"))["header"]["revision"]) > before)
        await relay.cut()
        result = await write
        present = await store.snapshot()
        assert present.revision == before + 1, "it was carried out once"
        assert [lease.revision for lease in present.leases] == ([] if result is None else [result.revision])


def hold_at_write(store: EtcdStore, relay: Relay) -> None:
    """Have the relay hold answers from the moment that the first transaction is sent."""
    from muslin.store.etcd_api.methods import TXN

    ask = store._client.call

    async def call(method: Any, request: Any, call: Any) -> Any:
        if method is TXN:
            relay.hold_answers()
        return await ask(method, request, call)

    store._client.call = call  # type: ignore[method-assign]


# ---- who may ---------------------------------------------------------------------------------------------


@asynchronous
async def test_auth_is_enabled_under_way_and_tokens_die_with_the_server(single: Member) -> None:
    login = {"username": "root", "password": Secret(PASSWORD)}
    async with open_store(single.url, **login) as store, watching(store) as snapshots:
        await store.create(make_lease(0), TTL_S)
        await until(snapshots, count(1))
        await asyncio.to_thread(single.enable_auth, PASSWORD)
        await store.create(make_lease(1), TTL_S)
        assert len((await anext(snapshots)).leases) == 2
        single.kill()
        await restart(single, cluster_of(single))
        mine = await store.create(make_lease(2), TTL_S, deadline_s=10)
        assert len((await until(snapshots, count(3))).leases) == 3
        await store.renew(mine, TTL_S)
        await until_true(lambda: store.trouble is None)


@asynchronous
async def test_who_may_not_is_told_so_and_no_password_is_shown(single: Member) -> None:
    single.enable_auth(PASSWORD)
    async with open_store(single.url) as nobody:
        with pytest.raises(StoreUnavailable, match="user name") as refusal:
            await nobody.snapshot()
        assert refusal.value.hint
    wrong = Secret("a wrong guess")
    async with open_store(single.url, username="root", password=wrong) as stranger, watching(stranger) as snapshots:
        with pytest.raises(StoreUnavailable, match="authentication failed") as refusal:
            await stranger.snapshot()
        silence = asyncio.ensure_future(anext(snapshots))
        await until_true(lambda: stranger.trouble)
        await cancel(silence)
        shown = f"{refusal.value} {refusal.value.__cause__!r} {stranger._options!r} {stranger.trouble}"
        assert wrong.reveal() not in shown


def make_certificates(directory: Path) -> dict[str, str]:
    """An authority, and one certificate by it that serves as the server's and as the client's."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    make_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
    (directory / "extensions").write_text(extensions)
    for command in (
        f"req -x509 {make_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
        f"req {make_key} -keyout node.key -out node.csr -subj /CN=node",
        "x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2 -extfile extensions",
    ):
        subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)
    names = {"ca_file": "ca.pem", "cert_file": "node.pem", "key_file": "node.key"}
    return {option: str(directory / name) for option, name in names.items()}


@asynchronous
async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    server = ("--cert-file", files["cert_file"], "--key-file", files["key_file"])
    options = (*server, "--client-cert-auth", "--trusted-ca-file", files["ca_file"])
    member = Member("tls", tmp_path, options, scheme="https")
    try:
        await asyncio.to_thread(member.start, f"{member.name}={member.peer_url}")
        async with open_store(member.url, **files) as store, watching(store) as snapshots:
            await store.create(make_lease(0), TTL_S, deadline_s=20)
            await until(snapshots, count(1))
        async with open_store(member.url, ca_file=files["ca_file"]) as stranger:
            with pytest.raises(StoreUnavailable):
                await stranger.snapshot(deadline_s=1)
        async with open_store(member.url) as doubter:
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                await doubter.snapshot(deadline_s=1.5)
        async with open_store(member.url, ca_file=str(tmp_path / "missing.pem")) as careless:
            with pytest.raises(StoreUnavailable, match=r"no TLS.*No such file") as refusal:
                await careless.snapshot(deadline_s=1)
            assert not isinstance(refusal.value.__cause__, ssl.SSLError)
    finally:
        member.kill()


# ---- beside others ---------------------------------------------------------------------------------------


@asynchronous
async def test_foreign_keys_are_left_alone(single: Member) -> None:
    foreign = {f"/net/{name}".encode(): b"theirs" for name in ("custom", "note", "subnets-old/10.5.9.0-24", "zone")}
    foreign[b"/network/subnets/10.5.8.0-24"] = b"another network's"
    for key, value in foreign.items():
        single.put(key.decode(), value)
    async with open_store(single.url, prefix="/net/") as store, watching(store) as snapshots:
        assert (await anext(snapshots)).unreadable == ()
        lease = await store.create(make_lease(0), TTL_S)
        single.put("/net/note", b"changed")
        snapshot = await until(snapshots, count(1))
        await store.delete(lease)
        assert (snapshot.unreadable, snapshot.config) == ((), None)
    for key in foreign:
        assert single.ask("kv/range", key=text64(key))["count"] == "1"


@asynchronous
async def test_keys_and_values_are_flannels_to_the_byte(single: Member) -> None:
    prefix = f"/{uuid.uuid4()}"
    advertisement = Advertisement(
        addresses=("192.0.2.1",), backend="vxlan", data={"VNI": 1, "VtepMAC": "6a:3f:aa:bb:cc:dd"}
    )
    async with open_store(single.url, prefix=prefix) as store:
        await store.create(Lease(subnets=("10.5.34.0/24",), advertisement=advertisement), 86400)
    key = text64(f"{prefix}/subnets/10.5.34.0-24".encode())
    (pair,) = single.ask("kv/range", key=key)["kvs"]
    assert pair["value"] == text64(
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"6a:3f:aa:bb:cc:dd"}}'
    )
    assert single.ask("lease/timetolive", ID=pair["lease"])["grantedTTL"] == "86400"


@asynchronous
async def test_a_lease_that_nobody_renews_ends(single: Member) -> None:
    async with open_store(single.url) as store, watching(store) as snapshots:
        mine = await store.create(make_lease(0), SHORT_TTL_S)
        await until(snapshots, count(1))
        await until(snapshots, count(0))
        with pytest.raises(LeaseLost):
            await store.renew(mine, SHORT_TTL_S)
        await store.create(make_lease(0), TTL_S)


@asynchronous
async def test_a_lost_race_leaves_no_etcd_lease_behind(single: Member) -> None:
    async with open_store(single.url) as store:
        await store.create(make_lease(0), TTL_S)
        with pytest.raises(LeaseTaken):
            await store.create(make_lease(0), TTL_S)
    assert len(single.ask("lease/leases")["leases"]) == 1
