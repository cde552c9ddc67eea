"""What the loop promises to keep, to follow and to leave alone, in simulated time."""

from __future__ import annotations

import asyncio
import errno

import msgspec
import pytest

from muslin.model.kernel import PROTOCOL_MUSLIN, Address, Bridge, Link, Nexthop, Route, link_key
from muslin.model.lease import Advertisement, Lease
from muslin.model.ops import Delete, Op
from muslin.wire.flannel_lease import encode_value
from muslin.wire.subnet_env import parse_subnet_env
from tests.unit.agent.hosts import Host
from tests.unit.agent.simulated import config, simulated, until
from tests.unit.agent.simulated_cluster import Cluster, cluster, routes

__all__ = ["cluster"]


def own_route(destination: str, **more: object) -> Route:
    return Route(netns="", destination=destination, link="eth0", protocol=PROTOCOL_MUSLIN, **more)  # type: ignore[arg-type]


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
        known = node.memory.node.lease
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


# ---- restarts -------------------------------------------------------------------------------------------------


async def killed_after(cluster: Cluster, host: Host, turns: int, network_config: bytes) -> None:
    """Run an agent for some turns of the loop; then nothing of it happens any more, as after ``kill -9``."""
    node = cluster.node(host, network_config)

    async def nothing() -> None:
        return None

    node._end = nothing  # type: ignore[method-assign]
    task = asyncio.create_task(node.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if node.keeper is not None:
        await node.keeper.close()
    if node.memory._timer is not None:
        node.memory._timer.cancel()


@simulated
async def test_an_agent_that_was_killed_at_any_moment_is_where_it_would_have_been_after_a_restart(
    cluster: Cluster,
) -> None:
    cluster.put_lease("10.5.200.0/24", "10.0.0.77", VtepMAC="02:00:00:00:00:77")
    host = cluster.host(1)
    for turns in range(60):
        await killed_after(cluster, host, turns, config())
    async with cluster.running(host) as node:
        await until(lambda: node.programmed and "10.5.200.0/24" in routes(host))
        assert node.status().problems == ()
        subnet, objects = node.programmed, dict(host.kernel.objects)
    assert len(cluster.data.entries) == 2, "each start took the same lease over"
    await killed_after(cluster, host, 200, config())
    async with cluster.running(host) as node:
        await until(lambda: node.last is not None)
        assert node.last is not None
        assert (node.programmed, node.last.done) == (subnet, ())
        assert host.kernel.objects == objects
    fresh = Host(1, cluster.directory / "fresh", cluster.data)
    cluster.hosts.append(fresh)
    (fresh.directory).mkdir(parents=True)
    (host.directory / "node.json").rename(fresh.directory / "node.json")
    async with cluster.running(fresh) as node:
        await until(lambda: node.programmed and "10.5.200.0/24" in routes(fresh))
        assert fresh.kernel.objects == objects


@simulated
async def test_a_start_with_other_settings_or_another_backend_leaves_nothing_of_the_run_before(
    cluster: Cluster,
) -> None:
    host, fresh = cluster.host(1, bridge="muslin0"), Host(1, cluster.directory / "fresh", cluster.data)
    cluster.hosts.append(fresh)
    async with cluster.running(host, config()) as node:
        await until(lambda: node.programmed)
    assert link_key("", "muslin0") in host.kernel.objects
    host.bridge = ""
    await host.store.close()
    cluster.data.config = config("host-gw")
    cluster.data.revision += 1
    (host.directory / "owned.json").unlink()
    async with cluster.running(host) as node:
        await until(lambda: node.programmed)
        await asyncio.sleep(60)
        after = dict(host.kernel.objects)
        assert node.status().problems == ()
    async with cluster.running(fresh) as node:
        await until(lambda: node.programmed)
        assert after == fresh.kernel.objects
