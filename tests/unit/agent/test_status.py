"""The status as a document: what is wrong comes first, once, and in few words."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from muslin.agent.node import Node
from muslin.agent.status import SHOWN, SHOWN_COMMANDS, repair_of
from muslin.model.kernel import FdbEntry, Route
from muslin.model.lease import Advertisement
from muslin.model.ops import Create, Delete
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.agent_api import AgentStatus
from muslin.wire.flannel_lease import encode_value
from tests.unit.agent.hosts import Host
from tests.unit.agent.simulated import config, simulated, until, without_thread


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(1, tmp_path, MemoryData())
    yield found
    found.watch.close()


def put_peers(data: MemoryData, count: int, network: str = "10.5", first: int = 60) -> None:
    for number in range(first, first + count):
        mac = f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"
        says = Advertisement(addresses=(f"10.1.{number // 250}.{number % 250 + 1}",), backend="vxlan")
        says = msgspec.structs.replace(says, data={"VNI": 1, "VtepMAC": mac})
        data.put(f"{network}.{number}.0-24", encode_value(says), None)


async def started(node: Node) -> asyncio.Task[None]:
    """Run a node until its first look is over."""
    task = asyncio.create_task(node.run())
    await until(lambda: node.looks > 0)
    return task


async def ended(node: Node, task: asyncio.Task[None]) -> None:
    node.end()
    await task


@simulated
async def test_the_bridge_is_told_where_there_is_one(tmp_path: Path) -> None:
    data = MemoryData()
    data.config = config()
    host = Host(1, tmp_path, data, bridge="cni0")
    node = without_thread(host.node())
    node.network.take(await host.store.snapshot())
    network = node.status().network
    assert network is not None
    assert network.bridge == "cni0"
    host.watch.close()


@simulated
async def test_before_anything_is_known_there_is_a_status_and_it_says_what_is_waited_for(host: Host) -> None:
    node = without_thread(host.node())
    status = node.status()
    assert (status.ready, status.healthy, status.lease.state, status.peers) == (False, True, "idle", ())
    assert (status.network, status.underlay, status.kernel.last_pass_at) == (None, None, None)
    assert msgspec.json.decode(msgspec.json.encode(status), type=AgentStatus) == status
    assert node.summary() == (False, "not ready: starting")


@simulated
async def test_a_node_that_is_well_says_so_in_every_part(host: Host) -> None:
    put_peers(host.store.data, 2)
    node = without_thread(host.node(config()))
    task = await started(node)
    status = node.status()
    assert (status.ready, status.problems) == (True, ())
    assert [(peer.name, peer.state, peer.reason) for peer in status.peers] == [
        ("10.5.60.0-24", "programmed", ""),
        ("10.5.61.0-24", "programmed", ""),
    ]
    assert status.lease.sentence.startswith("holds the lease")
    assert status.underlay is not None
    assert (status.underlay.link, status.underlay.mtu) == ("eth0", 1500)
    assert status.network is not None
    assert (status.network.backend, status.network.mtu, status.network.port) == ("vxlan", 1450, 8472)
    assert status.network.bridge == ""
    assert status.kernel.objects > 10
    assert node.summary() == (True, f"{node.programmed[0]}, 2 of 2 peers programmed")
    await ended(node, task)


@simulated
async def test_what_fails_is_told_by_its_peer_and_only_the_first_few_in_full(host: Host) -> None:
    put_peers(host.store.data, 9)
    host.kernel.refuse = lambda op: errno.ENOBUFS if isinstance(op.object, FdbEntry) else 0
    node = without_thread(host.node(config()))
    task = await started(node)
    status = node.status()
    assert {peer.state for peer in status.peers} == {"failed"}
    assert len(status.problems) == SHOWN + 1
    assert status.problems[0].startswith("10.5.60.0-24: bridge fdb")
    assert status.problems[-1] == "and 4 more of this kind"
    assert len(status.kernel.failed) == 9
    assert status.kernel.failed[0].command in status.kernel.failed[0].reason
    assert node.summary()[1].endswith("0 of 9 peers programmed")
    await ended(node, task)


@simulated
async def test_refused_and_unreadable_leases_are_told_apart_from_those_that_fail(host: Host) -> None:
    put_peers(host.store.data, 1)
    says = Advertisement(addresses=("10.0.0.77",), backend="vxlan", data={"VNI": 1, "VtepMAC": "no mac"})
    host.store.data.put("10.5.201.0-24", encode_value(says), None)
    host.store.data.put("10.5.202.0-24", b"\0", None)
    node = without_thread(host.node(config()))
    task = await started(node)
    status = node.status()
    assert [(peer.name, peer.state) for peer in status.peers] == [
        ("10.5.201.0-24", "refused"),
        ("10.5.60.0-24", "programmed"),
    ]
    assert "no mac" in status.peers[0].reason
    assert status.unreadable == ("10.5.202.0-24",)
    assert ["no mac" in status.problems[0], "holds garbage" in status.problems[1]] == [True, True]
    await ended(node, task)


@simulated
async def test_a_lease_that_no_pass_has_seen_is_pending(host: Host) -> None:
    node = without_thread(host.node(config()))
    task = await started(node)
    put_peers(host.store.data, 1)
    node.network.take(await host.store.snapshot())
    assert [peer.state for peer in node.status().peers] == ["pending"]
    await ended(node, task)


@simulated
async def test_what_the_store_says_of_itself_is_the_problem(host: Host) -> None:
    node = without_thread(host.node(config()))
    task = await started(node)
    host.store.data.outage = "etcd at 10.0.0.5 refuses user muslin"
    await until(lambda: node.status().problems)
    assert node.status().problems == ("etcd at 10.0.0.5 refuses user muslin",)
    await ended(node, task)
    assert {path.name for path in host.directory.iterdir()} == {
        "node.json",
        "owned.json",
        "snapshot.json",
        "subnet.env",
    }


def test_a_repair_shows_its_first_commands_and_how_many_there_were() -> None:
    routes = [Route(netns="", destination=f"10.5.{number}.0/24", link="eth0") for number in range(30)]
    repair = repair_of([Create(route) for route in routes], 12.0)
    assert (repair.at, repair.count, len(repair.commands)) == (12.0, 30, SHOWN_COMMANDS)
    assert repair.commands[0] == Create(routes[0]).describe()
    assert repair_of([Delete(routes[0])], 1.0).commands == (Delete(routes[0]).describe(),)


@simulated
async def test_the_status_of_ten_thousand_peers_takes_a_moment(host: Host) -> None:
    data = MemoryData()
    for high in range(40):
        put_peers(data, 250, network=f"10.{100 + high}", first=0)
    data.config = b'{"Network": "10.0.0.0/8", "SubnetMin": "10.200.0.0", "SubnetMax": "10.200.9.0"}'
    host.store = MemoryStore(data)
    node = without_thread(host.node())
    node.network.take(await host.store.snapshot())
    node.known = {lease.name: lease for lease in node.network.others("")}
    assert len(node.known) == 10_000
    costs_s = []
    for _ in range(5):
        begun = time.process_time()
        assert len(node.status().peers) == 10_000
        costs_s.append(time.process_time() - begun)
    assert min(costs_s) < 0.1
