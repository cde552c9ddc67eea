"""Several agents on one store, in simulated time; a test module takes the fixture ``cluster`` from here.

host1 10.0.0.1 ── host2 10.0.0.2 ── ... on one layer-2 network; a store in memory; kernels in memory
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from muslin.agent.node import Node
from muslin.model.kernel import Route
from muslin.model.lease import Advertisement
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.flannel_lease import encode_value
from tests.unit.agent.hosts import Host
from tests.unit.agent.simulated import without_thread

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


async def ring(host: Host, pause_s: float) -> None:
    while True:
        host.watch.ring()
        await asyncio.sleep(pause_s)
