"""What an agent says of itself, as the documents of its API (JSON, versioned).

Theory of operation: ``AgentStatus`` is the whole of it; ``muslin status`` draws it, a program reads it from the unix
socket (``GET /v1/status``). ``Event`` is one line of the stream (``GET /v1/events``). Times are seconds since the
epoch, sentences are for people, and nothing in here is ever a secret.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muslin.model.kernel import Key

PeerState = Literal["programmed", "pending", "failed", "refused"]
"""``pending``: not tried yet; ``failed``: the kernel refused, it is tried again; ``refused``: its lease cannot be
followed, see the reason."""

ProbeOutcome = Literal["reached", "silent", "unreachable", "skipped"]


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one echo request. ``rtt_ms`` in milliseconds where there was an answer."""

    address: str
    outcome: ProbeOutcome
    rtt_ms: float | None = None
    detail: str = ""
    offender: str = ""
    """Who sent the ICMP error; empty where this host's own kernel refused, and where there was none."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another node as this one sees it. Probes are there only where they were asked for."""

    name: str
    """Of its lease: ``10.5.34.0-24``."""
    addresses: tuple[str, ...]
    """Of the underlay."""
    subnets: tuple[str, ...]
    backend: str
    state: PeerState
    reason: str = ""
    changed_at: float
    """When its lease or its state last changed, as far as this agent knows."""
    underlay: ProbeResult | None = None
    overlay: ProbeResult | None = None
    overlay_full: ProbeResult | None = None
    """As ``overlay``, by a packet as large as a container's may be that nobody may fragment."""
    sentence: str = ""
    """What is wrong between the two nodes, empty when nothing is known to be."""
    note: str = ""
    """What is worth knowing and may be as it has to be: a warning."""


class LeaseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The own lease. ``state`` is that of the lease machine (``lease.values.State``)."""

    state: str
    name: str = ""
    subnets: tuple[str, ...] = ()
    expires_at: float | None = None
    reservation: bool = False
    sentence: str = ""
    warning: str = ""


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where nodes find each other. ``from_disk``: the store is away and the last good snapshot serves."""

    kind: str
    revision: int = 0
    trouble: str | None = None
    from_disk: bool = False


class UnderlayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The interface that other nodes reach this one by; ``mtu`` in bytes."""

    link: str
    mtu: int
    addresses: tuple[str, ...]
    public_addresses: tuple[str, ...]


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The network's configuration as it is followed; ``mtu`` is that of containers, in bytes."""

    networks: tuple[str, ...]
    backend: str
    mtu: int
    port: int | None = None
    """The UDP port of encapsulated packets, None where nothing is encapsulated."""
    bridge: str = ""
    """The containers' bridge that the agent keeps, empty where it keeps none."""
    warning: str = ""
    """What is wrong with the configuration in the store; the last good one is followed meanwhile."""


class FailedOperation(msgspec.Struct, frozen=True, kw_only=True):
    """A change that the kernel refused; it is tried again."""

    key: Key
    command: str
    reason: str
    since: float


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody else had changed, put right."""

    at: float
    commands: tuple[str, ...]
    """At most ten of them; ``count`` says how many there were."""
    count: int


class KernelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the kernel agrees with what it should hold."""

    objects: int = 0
    """Wanted."""
    passes: int = 0
    """Whole looks so far."""
    last_pass_at: float | None = None
    last_pass_s: float | None = None
    last_pass_split: dict[str, float] = {}
    """What that is made of, in seconds: plan, observe, compare, apply."""
    repaired: int = 0
    """Operations since the start that put right what somebody else had changed."""
    repairs: tuple[Repair, ...] = ()
    """The latest ones."""
    failed: tuple[FailedOperation, ...] = ()
    strangers_dropped: int | None = None
    """Encapsulated packets from addresses without a lease; None where nothing is encapsulated."""


class TunnelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The process of the udp backend; ``counters`` by reason, empty while it does not tell."""

    pid: int
    device: str
    listen: str
    peers: int
    counters: dict[str, int] = {}
    peer_counters: dict[str, dict[str, int]] = {}
    """By endpoint and reason: of those that lose packets and of the busiest, 100 at most (``muslin tunnel stats`` has
    all). Empty of the tunnel in Python, which does not count by peer."""


class ContainersStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The containers that runtimes have had connected through CNI. ``socket``: where the plugin finds the agent."""

    socket: str
    bridge: str = ""
    """The bridge that they are ports of; empty: each has a route of its own."""
    connected: int = 0
    """Reservations; one container may have several interfaces."""
    free: dict[str, int] = {}
    """Addresses that are left, by subnet."""
    troubles: tuple[str, ...] = ()
    """What the last look at them found wrong, in sentences."""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a container."""

    container_id: str
    interface: str
    network: str
    """The name of the runtime's network configuration."""
    addresses: tuple[str, ...]
    mac: str
    mode: str
    cable: str
    """The name of the node's end of its cable."""
    netns: str
    """Where the runtime had its namespace."""
    since: float


class ContainerList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/containers``."""

    schema: Literal["muslin.agent-containers/v1"] = "muslin.agent-containers/v1"
    containers: tuple[Container, ...] = ()


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node, whole."""

    schema: Literal["muslin.agent-status/v1"] = "muslin.agent-status/v1"
    version: str
    name: str
    pid: int
    started_at: float
    now: float
    ready: bool
    """The own subnet is programmed, and with it every peer that was known then has been tried."""
    healthy: bool
    """The loop is alive."""
    problems: tuple[str, ...] = ()
    """A sentence for each thing that is wrong, the gravest first."""
    lease: LeaseStatus
    store: StoreStatus
    kernel: KernelStatus
    underlay: UnderlayStatus | None = None
    network: NetworkStatus | None = None
    tunnel: TunnelStatus | None = None
    containers: ContainersStatus | None = None
    """None where the agent serves no container runtime."""
    peers: tuple[PeerStatus, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Names of leases that hold garbage."""

    @property
    def programmed(self) -> int:
        """How many peers are programmed."""
        return sum(peer.state == "programmed" for peer in self.peers)

    @property
    def subnet_programmed(self) -> bool:
        """Whether the kernel has been made to agree with a lease at least once."""
        return bool(self.lease.subnets and self.kernel.objects and self.kernel.last_pass_at)


class PeerList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/peers``: the peers alone."""

    schema: Literal["muslin.agent-peers/v1"] = "muslin.agent-peers/v1"
    peers: tuple[PeerStatus, ...] = ()


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/health`` and ``/healthz``, with 503 where the loop is not alive. ``reason``: a sentence."""

    healthy: bool
    reason: str = ""


class PeerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many peers there are in which state."""

    total: int = 0
    programmed: int = 0
    pending: int = 0
    refused: int = 0
    failed: int = 0


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /readyz``, with 503 until the node is ready."""

    ready: bool
    subnet_programmed: bool
    peers: PeerCounts


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is an error."""

    error: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened: ``kind`` is one word, ``text`` a sentence."""

    number: int
    at: float
    kind: str
    text: str


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/stop``: end, and with ``release`` give the lease back first."""

    release: bool = False
