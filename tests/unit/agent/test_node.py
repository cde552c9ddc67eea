"""The loop: leases, kernel and store of several hosts together, on kernels in memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from muslin.agent.node import Node
from muslin.model.kernel import FdbEntry, Link, Nexthop, Route, Vxlan
from muslin.model.lease import Advertisement, Lease
from muslin.model.ops import Create, Op
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.flannel_lease import encode_value
from muslin.wire.subnet_env import parse_subnet_env
from tests.contract.asynchronous import asynchronous
from tests.unit.agent.hosts import Host, config, eventually, running


class Cluster:
    """Hosts on one store."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.data = directory, MemoryData()
        self.hosts: list[Host] = []

    def host(self, number: int, **options: object) -> Host:
        self.hosts.append(Host(number, self.directory, self.data, **options))  # type: ignore[arg-type]
        return self.hosts[-1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    for host in found.hosts:
        host.watch.close()


def routes(host: Host) -> set[str]:
    return {obj.destination for obj in host.kernel.objects.values() if isinstance(obj, Route)}


def ways(host: Host) -> dict[str, str]:
    """The link that each subnet is reached by."""
    hops = {obj.id: obj.link for obj in host.kernel.objects.values() if isinstance(obj, Nexthop)}
    found = (obj for obj in host.kernel.objects.values() if isinstance(obj, Route))
    return {obj.destination: hops[obj.nexthop_id or 0] for obj in found}


def subnets(*nodes: Node) -> set[str]:
    return {subnet for node in nodes for subnet in node.programmed}


def see_each_other(*pairs: tuple[Host, Node]) -> bool:
    every = subnets(*(node for _, node in pairs))
    return len(every) == len(pairs) and all(routes(host) == every - set(node.programmed) for host, node in pairs)


@asynchronous
async def test_three_hosts_find_each_other(cluster: Cluster) -> None:
    hosts = [cluster.host(number) for number in (1, 2, 3)]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(host.node(config()))) for host in hosts]
        await eventually(lambda: see_each_other(*zip(hosts, nodes, strict=True)), lambda: [n.status() for n in nodes])
        # The kernel has it a moment before the loop hears of it.
        await eventually(lambda: [peer.state for peer in nodes[0].status().peers] == ["programmed"] * 2)
        status = nodes[0].status()
        assert status.ready
        assert status.problems == ()
        assert nodes[0].counters.devices == ("vxlan1", "eth0")
        env = parse_subnet_env(nodes[0].options.subnet_file.read_bytes())
        assert (env.subnets, env.mtu, env.networks) == (nodes[0].programmed, 1450, ("10.5.0.0/16",))


@asynchronous
async def test_a_restart_takes_the_same_subnet_and_mac_and_changes_nothing(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(second.node(config())) as other:
        async with running(first.node()) as node:
            await eventually(lambda: see_each_other((first, node), (second, other)))
            subnet = node.programmed
        before = dict(first.kernel.objects)
        assert len(before) > 5
        first.store = MemoryStore(cluster.data)
        async with running(first.node()) as node:
            await eventually(lambda: node.last is not None)
            assert node.programmed == subnet
            assert node.last is not None
            assert node.last.done == ()
        assert first.kernel.objects == before


@asynchronous
async def test_a_leaving_host_gives_its_lease_back_and_is_forgotten(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node:
        async with running(second.node()) as other:
            await eventually(lambda: see_each_other((first, node), (second, other)))
            await other.stop(release=True)
            await eventually(lambda: routes(first) == set())
        assert not any(isinstance(obj, FdbEntry | Nexthop) for obj in first.kernel.objects.values())


@asynchronous
async def test_what_somebody_removes_is_put_back_and_told_as_a_repair(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node, running(second.node()) as other:
        await eventually(lambda: see_each_other((first, node), (second, other)))
        await eventually(lambda: node.looks > 0)
        device = next(obj for obj in first.kernel.objects.values() if isinstance(obj, Link) and obj.name == "vxlan1")
        first.kernel._remove(device.key)
        assert routes(first) == set()
        first.watch.ring()
        await eventually(lambda: see_each_other((first, node), (second, other)))
        await eventually(lambda: node.status().kernel.repaired)
        assert any("vxlan1" in command for repair in node.status().kernel.repairs for command in repair.commands)


@asynchronous
async def test_while_the_store_is_away_nothing_changes_and_it_is_said(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node, running(second.node()) as other:
        await eventually(lambda: see_each_other((first, node), (second, other)))
        before = dict(first.kernel.objects)
        cluster.data.outage = "no route to the store"
        await eventually(lambda: node.status().store.trouble)
        assert "no route to the store" in node.status().problems
        assert node.status().ready
        first.watch.ring()
        looks = node.looks
        await eventually(lambda: node.looks > looks)
        assert first.kernel.objects == before
        cluster.data.outage = None
        await eventually(lambda: node.status().problems == ())


@asynchronous
async def test_a_start_without_the_store_uses_the_last_snapshot(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(second.node(config())) as other:
        async with running(first.node()) as node:
            await eventually(lambda: see_each_other((first, node), (second, other)))
        expected = routes(first)
        cluster.data.outage = "the store burns"
        for key in [obj.key for obj in first.kernel.objects.values() if isinstance(obj, Route | Nexthop)]:
            first.kernel._remove(key)
        first.store = MemoryStore(cluster.data)
        async with running(first.node()) as node:
            await eventually(lambda: routes(first) == expected, lambda: node.status())
            assert node.status().store.from_disk
            cluster.data.outage = None
            await eventually(lambda: not node.status().store.from_disk)
            await eventually(lambda: see_each_other((first, node), (second, other)))


@asynchronous
async def test_a_change_of_backend_never_leaves_a_pair_without_a_way(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node, running(second.node()) as other:
        await eventually(lambda: see_each_other((first, node), (second, other)))
        seen: list[set[str]] = []
        apply = first.kernel.apply

        def watched(ops, *rest, **named):  # type: ignore[no-untyped-def]
            results = apply(ops, *rest, **named)
            seen.append(routes(first))
            return results

        first.kernel.apply = watched  # type: ignore[method-assign]
        await second.store.write_config(config("host-gw"))
        await eventually(lambda: set(ways(first).values()) == set(ways(second).values()) == {"eth0"})
        assert all(routes == set(other.programmed) for routes in seen)
        assert node.network.previous is not None, "a peer may still send in the old way"
        assert any(isinstance(obj, Link) and isinstance(obj.options, Vxlan) for obj in first.kernel.objects.values())
        node.network._linger_until = 0.0
        node.look()
        await eventually(lambda: not any(getattr(obj, "name", "") == "vxlan1" for obj in first.kernel.objects.values()))


@asynchronous
async def test_a_wrong_configuration_is_said_and_the_last_good_one_followed(cluster: Cluster) -> None:
    first = cluster.host(1)
    async with running(first.node(config())) as node:
        await eventually(lambda: node.programmed)
        before = dict(first.kernel.objects)
        for wrong, words in ((b"{", "JSON"), (config("warp"), "warp"), (config(VNI=-1), "VNI")):
            await first.store.write_config(wrong)
            await eventually(lambda words=words: any(words in problem for problem in node.status().problems))  # type: ignore[misc]
        assert first.kernel.objects == before
        await first.store.write_config(config(MTU=1400))
        await eventually(lambda: node.status().problems == ())
        await eventually(lambda: parse_subnet_env(node.options.subnet_file.read_bytes()).mtu == 1350)


@asynchronous
async def test_another_network_moves_every_node(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node, running(second.node()) as other:
        await eventually(lambda: see_each_other((first, node), (second, other)))
        await first.store.write_config(config(network="10.6.0.0/16"))
        await eventually(lambda: all(subnet.startswith("10.6.") for subnet in subnets(node, other)))
        await eventually(lambda: see_each_other((first, node), (second, other)))


@asynchronous
async def test_a_lost_lease_takes_all_that_is_ours_away(cluster: Cluster) -> None:
    first = cluster.host(1)
    before = dict(first.kernel.objects)
    async with running(first.node(config())) as node:
        await eventually(lambda: node.programmed)
        name = node.programmed[0].replace("/", "-")
        thief = Advertisement(
            addresses=("10.0.0.99",), backend="vxlan", data={"VNI": 1, "VtepMAC": "02:00:00:00:00:99"}
        )
        cluster.data.put(name, encode_value(thief), None)
        await eventually(lambda: not node.status().ready)
        await eventually(lambda: first.kernel.objects == before)
        assert "10.0.0.99" in node.status().problems[0]
        assert not node.options.subnet_file.exists()


@asynchronous
async def test_a_poisoned_lease_is_said_and_keeps_nobody_waiting(cluster: Cluster) -> None:
    first, second = cluster.host(1), cluster.host(2)
    async with running(first.node(config())) as node:
        await eventually(lambda: node.programmed)
        cluster.data.put("10.5.200.0-24", b"\0garbage", None)
        poison = Advertisement(addresses=("10.0.0.77",), backend="vxlan", data={"VNI": 1, "VtepMAC": "no mac"})
        cluster.data.put("10.5.201.0-24", encode_value(poison), None)
        async with running(second.node()) as other:
            await eventually(lambda: set(other.programmed) <= routes(first) and other.programmed)
            problems = " ".join(node.status().problems)
            assert "10.5.200.0-24" in problems
            assert "no mac" in problems
            assert node.status().ready


@asynchronous
async def test_what_the_kernel_refuses_is_said_and_tried_again(cluster: Cluster) -> None:
    first = cluster.host(1)
    refusing = True

    def refuse(op: Op) -> int:
        return errno.ENOBUFS if refusing and isinstance(op, Create) and isinstance(op.object, FdbEntry) else 0

    first.kernel.refuse = refuse
    second = cluster.host(2)
    async with running(first.node(config())) as node, running(second.node()) as other:
        await eventually(lambda: [peer.state for peer in node.status().peers] == ["failed"])
        assert any("No buffer space" in problem for problem in node.status().problems)
        assert node.status().ready
        refusing = False
        await eventually(lambda: see_each_other((first, node), (second, other)) and not node.status().problems)


@asynchronous
async def test_a_reservation_for_this_node_is_what_it_gets(cluster: Cluster) -> None:
    first = cluster.host(1)
    reserved = Lease(subnets=("10.5.77.0/24",), advertisement=Advertisement(addresses=("10.0.0.1",), backend=""))
    await first.store.reserve(reserved)
    async with running(first.node(config())) as node:
        await eventually(lambda: node.programmed == ("10.5.77.0/24",))
        assert node.status().lease.reservation


@asynchronous
async def test_a_bridge_made_anew_gets_its_ports_back(cluster: Cluster) -> None:
    first = cluster.host(1, bridge="muslin0")
    async with running(first.node(config())) as node:
        await eventually(lambda: node.programmed)
        from muslin.model.kernel import OtherKind

        port = Link(netns="", name="veth7", options=OtherKind(kind="veth"), mtu=1500, up=True, master="muslin0", mac="")
        first.put(port)
        node.look()
        looks = node.looks
        await eventually(lambda: node.looks > looks)
        first.kernel._remove(("link", "", "muslin0"))
        node.look()
        await eventually(lambda: getattr(first.kernel.objects.get(port.key), "master", "") == "muslin0")


@asynchronous
async def test_a_mac_that_is_asked_for_is_told_and_used(cluster: Cluster) -> None:
    first = cluster.host(1)
    node = first.node(config())
    node.options = msgspec.structs.replace(node.options, vtep_mac="6a:3f:aa:bb:cc:dd")
    async with running(node):
        await eventually(lambda: node.programmed)
        device = first.kernel.objects["link", "", "vxlan1"]
        assert isinstance(device, Link)
        assert device.mac == "6a:3f:aa:bb:cc:dd"
        (lease,) = (await first.store.snapshot()).leases
        assert lease.advertisement.data["VtepMAC"] == "6a:3f:aa:bb:cc:dd"
