"""The loop when things go wrong, in simulated time: what it promises to keep, to say, to leave alone, and not to do.

host1 10.0.0.1 ── host2 10.0.0.2 ── ... on one layer-2 network; a store in memory; kernels in memory
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from muslin.agent.node import Node
from muslin.errors import MuslinError
from muslin.kernel.base import Scope
from muslin.model.kernel import PROTOCOL_MUSLIN, Address, Bridge, Link, Nexthop, Route, link_key
from muslin.model.lease import Advertisement, Lease
from muslin.model.network import Tunnel
from muslin.model.ops import Delete, Op
from muslin.model.state import Snapshot
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.flannel_lease import encode_value
from muslin.wire.subnet_env import parse_subnet_env
from tests.unit.agent.hosts import Host
from tests.unit.agent.simulated import config, simulated, until, without_thread

HOUR_S = 3600.0


class Cluster:
    """Hosts on one store, all in one simulated loop."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.data = directory, MemoryData()
        self.hosts: list[Host] = []

    def host(self, number: int, bridge: str = "") -> Host:
        self.hosts.append(Host(number, self.directory, self.data, bridge))
        return self.hosts[-1]

    def node(self, host: Host, network_config: bytes = b"") -> Node:
        host.store = MemoryStore(self.data)
        return without_thread(host.node(network_config))

    @asynccontextmanager
    async def running(self, host: Host, network_config: bytes = b"") -> AsyncIterator[Node]:
        node = self.node(host, network_config)
        task = asyncio.create_task(node.run())
        try:
            yield node
        finally:
            node.end()
            await task

    def put_lease(self, subnet: str, address: str, ends: float | None = None, **data: object) -> None:
        says = Advertisement(addresses=(address,), backend="vxlan", data={"VNI": 1, **data})
        self.data.put(subnet.replace("/", "-"), encode_value(says), ends)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    for host in found.hosts:
        host.watch.close()


def routes(host: Host) -> set[str]:
    return {obj.destination for obj in host.kernel.objects.values() if isinstance(obj, Route)}


def own_route(destination: str, **more: object) -> Route:
    return Route(netns="", destination=destination, link="eth0", protocol=PROTOCOL_MUSLIN, **more)  # type: ignore[arg-type]


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


async def ring(host: Host, pause_s: float) -> None:
    while True:
        host.watch.ring()
        await asyncio.sleep(pause_s)


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


# ---- the store ------------------------------------------------------------------------------------------------


@simulated
async def test_an_own_lease_that_somebody_deletes_is_had_again_and_nothing_flaps(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        subnet, before = node.programmed, dict(host.kernel.objects)
        removed: list[Op] = []
        apply = host.kernel.apply

        def watched(ops, *rest, **named):  # type: ignore[no-untyped-def]
            removed.extend(op for op in ops if isinstance(op, Delete))
            return apply(ops, *rest, **named)

        host.kernel.apply = watched  # type: ignore[method-assign]
        cluster.data.remove(subnet[0].replace("/", "-"))
        await until(lambda: subnet[0].replace("/", "-") in cluster.data.entries)
        await asyncio.sleep(120)
        assert (node.programmed, host.kernel.objects, removed) == (subnet, before, [])
        assert node.status().problems == ()


@simulated
async def test_a_configuration_that_somebody_deletes_is_followed_further_and_missed(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        before = dict(host.kernel.objects)
    cluster.data.config = None
    cluster.data.revision += 1
    async with cluster.running(host) as node:
        await until(lambda: node.programmed)
        await asyncio.sleep(60)
        assert host.kernel.objects == before
        assert "the store holds no configuration" in node.status().problems[0]


@simulated
async def test_of_two_agents_with_one_address_the_newcomer_gives_up(cluster: Cluster) -> None:
    first, twin = cluster.host(1), Host(1, cluster.directory / "twin", cluster.data)
    cluster.hosts.append(twin)
    untouched = dict(twin.kernel.objects)
    async with cluster.running(first, config()) as node:
        await until(lambda: node.programmed)
        subnet = node.programmed
        await asyncio.sleep(120)
        async with cluster.running(twin) as newcomer:
            await until(lambda: newcomer.status().lease.state == "lost", 120)
            await until(lambda: twin.kernel.objects == untouched)
            assert not newcomer.status().ready
            assert "--public-ip" in newcomer.status().problems[0]
            assert (node.programmed, node.status().ready) == (subnet, True)
            assert any("another agent" in problem for problem in node.status().problems)
            # The operator gives it another address: it is another node from then on.
            del twin.kernel.objects[Address(netns="", link="eth0", address="10.0.0.1/24").key]
            twin.put(Address(netns="", link="eth0", address="10.0.0.9/24"))
            twin.watch.ring()
            await until(lambda: newcomer.status().ready and newcomer.programmed != subnet, 120)


@simulated
async def test_a_lease_of_an_earlier_run_that_is_another_s_now_takes_all_away(cluster: Cluster) -> None:
    host = cluster.host(1)
    untouched = dict(host.kernel.objects)
    # One subnet alone: who has lost it gets no other.
    narrow = (
        b'{"Network": "10.5.0.0/16", "SubnetMin": "10.5.3.0", "SubnetMax": "10.5.3.0", "Backend": {"Type": "vxlan"}}'
    )
    async with cluster.running(host, narrow) as node:
        await until(lambda: node.programmed == ("10.5.3.0/24",))
        await asyncio.sleep(5)
    cluster.data.outage = "the store burns"
    async with cluster.running(host) as node:
        await until(lambda: node.programmed == ("10.5.3.0/24",))
        status = node.status()
        assert (status.ready, status.store.from_disk, status.lease.subnets) == (True, True, ("10.5.3.0/24",))
        assert status.peers == (), "the own lease is no peer"
        cluster.data.remove("10.5.3.0-24")
        cluster.put_lease("10.5.3.0/24", "10.0.0.66", VtepMAC="02:00:00:00:00:66")
        cluster.data.outage = None
        await until(lambda: not node.status().ready)
        assert host.kernel.objects == untouched
        assert not node.options.subnet_file.exists()
        assert node.status().problems != ()


@simulated
async def test_a_restart_while_the_lease_is_taken_over_slowly_changes_nothing(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        await asyncio.sleep(5)
    before = dict(host.kernel.objects)
    node = cluster.node(host)
    renew = host.store.renew

    async def slow(lease: Lease, ttl_s: float, *, deadline_s: float = 10) -> Lease:
        await asyncio.sleep(5)
        return await renew(lease, ttl_s)

    host.store.renew = slow  # type: ignore[method-assign]
    task = asyncio.create_task(node.run())
    await asyncio.sleep(3)
    assert (host.kernel.objects, node.looks) == (before, 0)
    await until(lambda: node.programmed)
    assert host.kernel.objects == before
    node.end()
    await task


# ---- the kernel and what is others' ---------------------------------------------------------------------------


@simulated
async def test_what_an_earlier_run_left_goes_by_its_marks_and_nothing_else_does(cluster: Cluster) -> None:
    host = cluster.host(1)
    stale = own_route("10.5.250.0/24")
    theirs = Route(netns="", destination="10.77.0.0/24", link="eth0", protocol=4)
    marked = Link(
        netns="", name="vxlan7", options=Bridge(), alias="muslin:vxlan7", mtu=1450, mac="", master="", up=True
    )
    for obj in (stale, theirs, marked):
        host.put(obj)
    async with cluster.running(host, config("host-gw")) as node:
        await until(lambda: node.programmed)
        assert stale.key not in host.kernel.objects
        assert marked.key not in host.kernel.objects
        assert host.kernel.objects[theirs.key] == theirs
        assert node.status().kernel.repairs == (), "what an earlier run left was not changed by anybody"


@simulated
async def test_a_route_of_others_with_our_key_is_told_and_never_removed(cluster: Cluster) -> None:
    host = cluster.host(1)
    theirs = Route(netns="", destination="10.5.200.0/24", link="eth0", protocol=4)
    host.put(theirs)
    async with cluster.running(host, config("host-gw")) as node:
        await until(lambda: node.programmed)
        cluster.data.put(
            "10.5.200.0-24", encode_value(Advertisement(addresses=("10.0.0.77",), backend="host-gw")), None
        )
        await until(lambda: [peer.state for peer in node.status().peers] == ["failed"])
        await until(lambda: any("held by" in problem for problem in node.status().problems))
        assert node.status().ready
        cluster.data.remove("10.5.200.0-24")
        await until(lambda: not node.status().problems)
        assert host.kernel.objects[theirs.key] == theirs


@simulated
async def test_a_next_hop_of_others_with_our_number_outlives_the_peer_that_wanted_it(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config("host-gw")) as node:
        await until(lambda: node.programmed)
        says = encode_value(Advertisement(addresses=("10.0.0.77",), backend="host-gw"))
        cluster.data.put("10.5.200.0-24", says, None)
        await until(lambda: "10.5.200.0/24" in routes(host))
        ours = next(obj for obj in host.kernel.objects.values() if isinstance(obj, Nexthop))
        cluster.data.remove("10.5.200.0-24")
        await until(lambda: ours.key not in host.kernel.objects)
        theirs = msgspec.structs.replace(ours, via="10.0.0.99", protocol=4)
        host.put(theirs)
        cluster.data.put("10.5.200.0-24", says, None)
        await until(lambda: [peer.state for peer in node.status().peers] == ["failed"])
        cluster.data.remove("10.5.200.0-24")
        await until(lambda: not node.status().problems)
        assert host.kernel.objects[theirs.key] == theirs


@simulated
async def test_a_bridge_of_others_is_used_and_stays_when_the_lease_is_lost(cluster: Cluster) -> None:
    host = cluster.host(1, bridge="cni0")
    bridge = Link(
        netns="", name="cni0", options=Bridge(), mtu=1500, mac="02:00:00:00:00:cc", alias="", master="", up=True
    )
    host.put(bridge)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        name = node.programmed[0].replace("/", "-")
        assert not getattr(host.kernel.objects[bridge.key], "alias", "")
        cluster.put_lease(node.programmed[0], "10.0.0.99", VtepMAC="02:00:00:00:00:99")
        await until(lambda: not node.status().ready)
        assert bridge.key in host.kernel.objects
        assert name in node.status().problems[0]
        assert link_key("", "vxlan1") not in host.kernel.objects


@simulated
async def test_what_of_a_lost_lease_the_kernel_will_not_let_go_is_tried_again(cluster: Cluster) -> None:
    host = cluster.host(1)
    untouched = dict(host.kernel.objects)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        host.kernel.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) else 0
        cluster.put_lease(node.programmed[0], "10.0.0.99", VtepMAC="02:00:00:00:00:99")
        await until(lambda: node.status().kernel.failed)
        assert not node.status().ready
        assert not node.options.subnet_file.exists()
        assert any("busy" in problem for problem in node.status().problems)
        host.kernel.refuse = lambda _: 0
        await until(lambda: host.kernel.objects == untouched)


# ---- the interface to other nodes -----------------------------------------------------------------------------


@simulated
async def test_a_start_without_the_interface_waits_for_it_and_says_so(cluster: Cluster) -> None:
    host = cluster.host(1)
    link = host.kernel.objects.pop(link_key("", "eth0"))
    async with cluster.running(host, config()) as node:
        await asyncio.sleep(30)
        assert (node.status().ready, len(node.status().problems)) == (False, 1)
        assert "eth0" in node.status().problems[0]
        host.put(link)
        await until(lambda: node.status().ready, 2)
        assert node.status().problems == ()


@simulated
async def test_an_interface_that_goes_while_running_is_said_and_the_plan_stays(cluster: Cluster) -> None:
    host = cluster.host(1)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
        before = dict(host.kernel.objects)
        link = host.kernel.objects.pop(link_key("", "eth0"))
        host.watch.ring()
        await until(lambda: any("no interface" in problem for problem in node.status().problems))
        cluster.put_lease("10.5.200.0/24", "10.0.0.77", VtepMAC="02:00:00:00:00:77")
        await until(lambda: "10.5.200.0/24" in routes(host))
        assert any("no interface" in problem for problem in node.status().problems), "a step does not unsay it"
        assert node.status().ready
        cluster.data.remove("10.5.200.0-24")
        host.put(link)
        await until(lambda: not node.status().problems and not node.status().peers)
        assert host.kernel.objects == before


@simulated
async def test_an_interface_that_is_renumbered_is_followed_by_lease_and_devices(cluster: Cluster) -> None:
    host, other = cluster.host(1), cluster.host(2)
    async with cluster.running(host, config()) as node, cluster.running(other) as peer:
        await until(lambda: node.programmed and peer.programmed and routes(other) == set(node.programmed))
        subnet = node.programmed
        del host.kernel.objects[Address(netns="", link="eth0", address="10.0.0.1/24").key]
        host.put(Address(netns="", link="eth0", address="10.0.0.101/24"))
        host.watch.ring()
        await until(lambda: [one.addresses for one in peer.status().peers] == [("10.0.0.101",)])
        await until(
            lambda: any(getattr(obj, "destination", "") == "10.0.0.101" for obj in other.kernel.objects.values())
        )
        device = host.kernel.objects[link_key("", "vxlan1")]
        assert isinstance(device, Link)
        assert getattr(device.options, "local", "") == "10.0.0.101"
        assert node.programmed == subnet
        assert node.status().problems == peer.status().problems == ()
        known = node.node_file.lease
        assert known is not None
        assert known.advertisement.addresses == ("10.0.0.101",), "uninstall finds the lease by its address"


@simulated
@pytest.mark.parametrize(
    "after",
    [
        config("host-gw"),
        config("udp"),
        config("alloc"),
        config(VNI=7),
        config(Port=4789),
        config(MTU=1400),
        config("udp", Port=9999),
        config(network="10.6"),
    ],
    ids=["host-gw", "udp", "alloc", "vni", "port", "mtu", "udp-port", "network"],
)
async def test_a_live_change_ends_where_a_fresh_start_would(cluster: Cluster, after: bytes) -> None:
    hosts = [cluster.host(1), cluster.host(2)]
    async with cluster.running(hosts[0], config()) as node, cluster.running(hosts[1]) as peer:
        await until(lambda: node.programmed and peer.programmed and routes(hosts[0]))
        await hosts[0].store.write_config(after)
        await asyncio.sleep(60)
        assert node.status().problems == peer.status().problems == ()
        assert node.status().ready
        changed = [dict(host.kernel.objects) for host in hosts]
        mtu = parse_subnet_env(node.options.subnet_file.read_bytes()).mtu
        assert node.status().network.mtu == mtu  # type: ignore[union-attr]
    fresh = [Host(number, cluster.directory, cluster.data) for number in (1, 2)]
    cluster.hosts += fresh
    async with cluster.running(fresh[0]) as node, cluster.running(fresh[1]):
        await asyncio.sleep(60)
        assert [dict(host.kernel.objects) for host in fresh] == changed
        assert parse_subnet_env(node.options.subnet_file.read_bytes()).mtu == mtu


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

    node.directory.write_node = full  # type: ignore[assignment, method-assign]
    node.directory.write_snapshot = full  # type: ignore[assignment, method-assign]
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
