"""A node that only says what a test wants it to say, and a status as a real one would have it."""

from __future__ import annotations

from typing import Any

from muslin.agent.events import EventLog
from muslin.agent.metrics import Counters
from muslin.wire.agent_api import (
    AgentStatus,
    Container,
    KernelStatus,
    LeaseStatus,
    NetworkStatus,
    PeerStatus,
    StoreStatus,
    UnderlayStatus,
)

NOW = 1_000_000.0


def make_peer(number: int, **more: Any) -> PeerStatus:
    """``10.0.0.N`` with ``10.5.N.0/24``."""
    values: dict[str, Any] = {
        "name": f"10.5.{number}.0-24",
        "addresses": (f"10.0.0.{number}",),
        "subnets": (f"10.5.{number}.0/24",),
        "backend": "vxlan",
        "state": "programmed",
        "changed_at": NOW - 200,
    }
    return PeerStatus(**values | more)


def make_network(**more: Any) -> NetworkStatus:
    """vxlan on an underlay with an MTU of 1500."""
    values: dict[str, Any] = {"networks": ("10.5.0.0/16",), "backend": "vxlan", "mtu": 1450, "port": 8472}
    return NetworkStatus(**values | more)


def make_status(**more: Any) -> AgentStatus:
    """A node with two peers, all well."""
    values: dict[str, Any] = {
        "version": "0.1.0",
        "name": "node1",
        "pid": 4711,
        "started_at": NOW - 11_520,
        "now": NOW,
        "ready": True,
        "healthy": True,
        "lease": LeaseStatus(state="holding", subnets=("10.5.1.0/24",), expires_at=NOW + 82_000),
        "store": StoreStatus(kind="etcd", revision=57),
        "kernel": KernelStatus(objects=24, passes=120, last_pass_at=NOW - 4, last_pass_s=0.012, strangers_dropped=0),
        "underlay": UnderlayStatus(link="eth0", mtu=1500, addresses=("10.0.0.1",), public_addresses=("10.0.0.1",)),
        "network": make_network(),
        "peers": (make_peer(2), make_peer(3)),
    }
    return AgentStatus(**values | more)


class FakeNode:
    """Says what it is told to say."""

    def __init__(self, status: AgentStatus | None = None) -> None:
        self.now = status or make_status()
        self.events = EventLog(clock=lambda: NOW)
        self.counters = Counters()
        self.stops: list[bool] = []
        self.failure: Exception | None = None
        self.refreshed = 0
        self.containers: tuple[Container, ...] = ()

    async def list_containers(self) -> tuple[Container, ...]:
        return self.containers

    def status(self) -> AgentStatus:
        if self.failure is not None:
            raise self.failure
        return self.now

    async def refresh(self) -> None:
        self.refreshed += 1

    def health(self) -> tuple[bool, str]:
        return self.now.healthy, "" if self.now.healthy else "no pass has ended for 90 s"

    async def stop(self, release: bool) -> None:
        self.stops.append(release)
