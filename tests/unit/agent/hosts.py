"""Agents without a machine: each on a kernel in memory, all on one store in memory, in one event loop.

host1 10.0.0.1 ── host2 10.0.0.2 ── host3 10.0.0.3 ── ... on one layer-2 network, eth0 of each
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from muslin.agent.files import StateDirectory
from muslin.agent.node import Node, NodeOptions
from muslin.agent.reconcile import HostOptions, Reconciler
from muslin.agent.underlay import UnderlayOptions
from muslin.kernel.fake import FakeKernel
from muslin.lease.values import Rules
from muslin.model.kernel import Address, AnyObject, Link, OtherKind
from muslin.model.network import Tunnel
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.agent_api import TunnelStatus

NETWORK = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}


def config(backend: str = "vxlan", network: str = "10.5.0.0/16", **options: object) -> bytes:
    return json.dumps({"Network": network, "Backend": {"Type": backend, **options}}).encode()


class ToyTunnels:
    """A tunnel that runs as soon as it is asked to."""

    def __init__(self) -> None:
        self.running: Tunnel | None = None
        self.words = ""
        self.counters: dict[str, int] = {}

    def converge(self, tunnel: Tunnel | None) -> None:
        self.running = tunnel

    def check(self) -> str:
        return self.words

    def status(self) -> TunnelStatus | None:
        if self.running is None or not self.counters:
            return None
        return TunnelStatus(pid=1, device=self.running.device, listen="", peers=0, counters=self.counters)


class ToyWatch:
    """Says that something was changed when the test says so."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        os.write(self._write, b"!")

    def is_due(self, _: Reconciler) -> bool:
        return bool(os.read(self._read, 4096))

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Host:
    """A machine with one interface, and what an agent on it needs."""

    def __init__(self, number: int, directory: Path, data: MemoryData, bridge: str = "", resync_s: float = 60) -> None:
        self.name, self.directory = f"host{number}", directory / f"host{number}"
        self.kernel, self.watch, self.tunnels = FakeKernel(), ToyWatch(), ToyTunnels()
        self.store = MemoryStore(data)
        self.bridge, self.resync_s = bridge, resync_s
        self.put(Link(netns="", name="eth0", options=OtherKind(kind="ether"), mtu=1500, up=True))
        self.put(Address(netns="", link="eth0", address=f"10.0.0.{number}/24"))

    def put(self, obj: AnyObject) -> None:
        self.kernel.objects[obj.key] = obj

    def node(self, network_config: bytes = b"") -> Node:
        directory = StateDirectory(self.directory)
        host = HostOptions(name=self.name, bridge=self.bridge, underlay=UnderlayOptions(iface=("eth0",)))
        directory.path.mkdir(parents=True, exist_ok=True)
        reconciler = Reconciler(self.kernel, directory.journal(), self.tunnels, host)
        options = NodeOptions(
            name=self.name,
            store_kind="memory",
            subnet_file=self.directory / "subnet.env",
            network_config=network_config,
            rules=Rules(ttl_s=600, renew_margin_s=60),
            resync_s=self.resync_s,
        )
        return Node(options, self.store, reconciler, self.watch, directory)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    """The node's loop, ended as by SIGTERM."""
    task = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        await node.stop(release=False)
        await task


async def eventually(condition: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition; the test's own deadline would not say what was the matter."""
    try:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it did not come true: {why()}") from None
