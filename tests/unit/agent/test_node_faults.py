"""The loop when things go wrong, in simulated time: no busy loops, no growth, files that cannot be, the end."""

from __future__ import annotations

import asyncio
import errno
import logging

import msgspec
import pytest

from muslin.agent.node import Node
from muslin.errors import MuslinError
from muslin.kernel.base import Scope
from muslin.model.kernel import Link, link_key
from muslin.model.lease import Lease
from muslin.model.network import Tunnel
from muslin.model.state import Snapshot
from tests.unit.agent.simulated import config, simulated, until
from tests.unit.agent.simulated_cluster import HOUR_S, Cluster, cluster, ring, routes

__all__ = ["cluster"]


# ---- what must not become a busy loop -------------------------------------------------------------------------


@simulated
async def test_a_kernel_that_refuses_for_ever_is_asked_about_once_a_minute(cluster: Cluster) -> None:
    host = cluster.host(1)
    host.kernel.refuse = lambda op: errno.ENOBUFS if isinstance(op.object, Link) else 0
    async with cluster.running(host, config()) as node:
        await asyncio.sleep(HOUR_S)
        assert node.looks < 130
        assert not node.status().ready
        assert any("No buffer space" in problem for problem in node.status().problems)
        host.kernel.refuse = lambda _: 0
        await until(lambda: node.status().ready and not node.status().problems, 61)


@simulated
async def test_a_kernel_that_cannot_be_read_is_asked_after_growing_pauses_and_nothing_goes(cluster: Cluster) -> None:
    host = cluster.host(1)
    tries = 0

    def fail(_: Scope) -> Snapshot:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOBUFS, "No buffer space available")

    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        before, observe = dict(host.kernel.objects), host.kernel.observe
        host.kernel.observe = fail  # type: ignore[assignment, method-assign]
        rain = asyncio.create_task(ring(host, 0.005))
        await asyncio.sleep(HOUR_S / 60)
        rain.cancel()
        assert tries < 60 * 4 + 2
        assert host.kernel.objects == before
        assert "No buffer space" in node.status().problems[0]
        host.kernel.observe = observe  # type: ignore[method-assign]
        await until(lambda: not node.status().problems, 61)
        assert node.status().kernel.repairs == ()


@simulated
async def test_a_storm_of_events_is_a_few_looks_a_second(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        looks = node.looks
        rain = asyncio.create_task(ring(host, 0.01))
        await asyncio.sleep(60)
        rain.cancel()
        assert 60 < node.looks - looks <= 60 * 4 + 2


@simulated
async def test_a_storm_while_there_is_no_interface_is_a_few_looks_a_second(cluster: Cluster) -> None:
    host = cluster.host(1)
    del host.kernel.objects[link_key("", "eth0")]
    looks = 0
    observe = host.kernel.observe

    def counted(scope: Scope) -> Snapshot:
        nonlocal looks
        looks += 1
        return observe(scope)

    host.kernel.observe = counted  # type: ignore[method-assign]
    async with cluster.running(host, config()) as node:
        rain = asyncio.create_task(ring(host, 0.01))
        await asyncio.sleep(60)
        rain.cancel()
        assert 30 < looks <= 60 * 4 + 2
        assert "--iface eth0" in node.status().problems[0]
        assert len(node.events.after(0)) == 1, "the same trouble is told once"


@simulated
async def test_a_tunnel_that_cannot_start_is_tried_after_growing_pauses_and_told_once(cluster: Cluster) -> None:
    host = cluster.host(1)

    def refuse(tunnel: Tunnel | None) -> None:
        host.tunnels.words = "the tunnel does not run: no such device"
        if tunnel is not None:
            raise MuslinError(host.tunnels.words)

    host.tunnels.converge = refuse  # type: ignore[method-assign]
    async with cluster.running(host, config("udp")) as node:
        await asyncio.sleep(HOUR_S)
        assert node.looks < 130
        assert "no such device" in node.status().problems[0]
        assert len(node.events.after(0)) < 20


@simulated
async def test_a_tunnel_that_keeps_ending_is_a_few_looks_a_second_at_most(cluster: Cluster) -> None:
    host = cluster.host(1)
    host.tunnels.words = "the tunnel does not run: it said nothing"
    async with cluster.running(host, config("udp")) as node:
        await asyncio.sleep(60)
        assert 10 < node.looks <= 60 * 4 + 2


@simulated
async def test_what_the_tunnel_begins_to_drop_is_an_event(cluster: Cluster) -> None:
    """Without anybody asking for the status; and the same is told once."""
    host = cluster.host(1)

    def told() -> list[str]:
        return [event.text for event in node.events.after(0) if event.kind == "drop"]

    async with cluster.running(host, config("udp")) as node:
        await until(lambda: node.programmed)
        await asyncio.sleep(HOUR_S)
        assert told() == []
        host.tunnels.counters = {"packets_to_peers": 9, "bad_source": 2}
        await until(told, 31)
        host.tunnels.counters = {"packets_to_peers": 9, "bad_source": 3}
        await asyncio.sleep(HOUR_S)
        assert len(told()) == 1
        assert told()[0].endswith("drops packets with a source that is not the sender's: 2 so far")


@simulated
async def test_a_dead_peer_that_follows_the_former_backend_costs_no_looks(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        cluster.put_lease("10.5.200.0/24", "10.0.0.77", VtepMAC="02:00:00:00:00:77")
        await until(lambda: "10.5.200.0/24" in routes(host))
        await host.store.write_config(config("host-gw"))
        await until(lambda: node.network.previous is not None)
        looks = node.looks
        await asyncio.sleep(HOUR_S)
        assert node.looks - looks < HOUR_S / host.resync_s + 3
        assert "10.5.200.0/24" in routes(host)
        cluster.data.remove("10.5.200.0-24")
        await until(lambda: node.network.previous is None, 6)
        await until(lambda: link_key("", "vxlan1") not in host.kernel.objects)


@simulated
async def test_nothing_grows_with_peers_that_come_and_go(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        for number in range(60, 120):
            cluster.put_lease(f"10.5.{number}.0/24", f"10.0.0.{number}", VtepMAC=f"02:00:00:00:00:{number - 50:02}")
            await until(lambda number=number: f"10.5.{number}.0/24" in routes(host))  # type: ignore[misc]
            cluster.data.remove(f"10.5.{number}.0-24")
            await until(lambda: routes(host) == set())
        await asyncio.sleep(host.resync_s)
        assert node.changed_at == {}
        assert node.counters.repaired == 0


# ---- files ----------------------------------------------------------------------------------------------------


@simulated
async def test_a_subnet_file_that_cannot_be_written_is_said_once_and_ends_nothing(cluster: Cluster) -> None:
    host = cluster.host(1)
    node = cluster.node(host, config())
    (host.directory / "file").write_text("")
    node.options = msgspec.structs.replace(node.options, subnet_file=host.directory / "file" / "subnet.env")
    task = asyncio.create_task(node.run())
    await until(lambda: node.looks > 0)
    for _ in range(5):
        node.look()
        await asyncio.sleep(1)
    assert any("subnet.env" in problem for problem in node.status().problems)
    assert len([event for event in node.events.after(0) if event.kind == "trouble"]) == 1
    cluster.put_lease(node.programmed[0], "10.0.0.99", VtepMAC="02:00:00:00:00:99")
    await until(lambda: not node.status().ready)
    assert not task.done()
    node.end()
    await task


@simulated
async def test_a_disk_that_is_full_costs_the_memory_and_not_the_network(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    host = cluster.host(1)
    node = cluster.node(host, config())

    def full(_: object) -> None:
        raise MuslinError("the file cannot be written: No space left on device")

    node.memory._directory.write_node = full  # type: ignore[assignment, method-assign]
    node.memory._directory.write_snapshot = full  # type: ignore[assignment, method-assign]
    task = asyncio.create_task(node.run())
    with caplog.at_level(logging.ERROR):
        await until(lambda: node.status().ready)
        await asyncio.sleep(10)
    assert "No space left" in caplog.text
    assert not task.done()
    node.end()
    await task


# ---- the end --------------------------------------------------------------------------------------------------


@simulated
async def test_a_stop_ends_it_at_every_stage_and_changes_nothing(cluster: Cluster) -> None:
    loop = asyncio.get_running_loop()
    host = cluster.host(1)
    link = host.kernel.objects.pop(link_key("", "eth0"))

    async def ended_within_s(node: Node, release: bool) -> float:
        begun = loop.time()
        await node.stop(release)
        await task
        return loop.time() - begun

    for release in (False, True):
        node = cluster.node(host, config())
        task = asyncio.create_task(node.run())
        await asyncio.sleep(5)
        assert await ended_within_s(node, release) < 0.1, "before there is an interface"
    host.put(link)
    for turns in range(40):  # wherever it has come to by then
        node = cluster.node(host, config())
        task = asyncio.create_task(node.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await ended_within_s(node, release=False) < 0.1
    node = cluster.node(host, config())
    task = asyncio.create_task(node.run())
    await until(lambda: node.programmed)
    before = dict(host.kernel.objects)
    cluster.data.outage = "the store burns"
    await until(lambda: node.store.trouble)
    assert await ended_within_s(node, release=False) < 0.1
    assert host.kernel.objects == before
    assert node.options.subnet_file.exists()


@simulated
async def test_a_stop_that_waits_for_the_store_is_cut_short_by_one_that_does_not(cluster: Cluster) -> None:
    host = cluster.host(1)
    node = cluster.node(host, config())
    task = asyncio.create_task(node.run())
    await until(lambda: node.programmed)

    async def hangs(*_: object, **__: object) -> None:
        await asyncio.sleep(HOUR_S)

    host.store.delete = hangs  # type: ignore[method-assign]
    await node.stop(release=True)
    await asyncio.sleep(5)
    assert not task.done()
    node.end()
    await asyncio.sleep(1)
    assert task.done()
    await task


@simulated
async def test_a_fault_of_ours_in_a_call_of_the_store_ends_the_agent_with_it(cluster: Cluster) -> None:
    host = cluster.host(1)
    node = cluster.node(host, config())

    async def broken(*_: object, **__: object) -> Lease:
        raise RuntimeError("not thought of")

    host.store.create = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not thought of"):
        await node.run()


@simulated
async def test_events_that_cannot_be_heard_any_more_are_made_up_for_by_the_timer(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    host = cluster.host(1)

    def broken(_: object) -> bool:
        raise OSError(errno.EBADF, "Bad file descriptor")

    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        host.watch.is_due = broken  # type: ignore[method-assign]
        host.watch.ring()
        await asyncio.sleep(1)
        looks = node.looks
        await asyncio.sleep(HOUR_S)
        assert HOUR_S / host.resync_s - 2 < node.looks - looks < HOUR_S / host.resync_s + 2
    assert caplog.text.count("cannot be heard any more") == 1
