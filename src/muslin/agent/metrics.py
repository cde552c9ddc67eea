"""What Prometheus scrapes: the agent's status and counters as metrics, made anew for each scrape.

Theory of operation: nothing is kept in the client library. The loop counts in ``Counters``, which costs it an addition;
a scrape turns counters, status and the kernel's own figures of our devices into the text. Only then is the library
imported: who has no Prometheus never pays for it (28 ms, 3 MB). The registry is private, so nothing that another
library might register gets out.

Devices are read from /proc/net/dev and not from /sys/class/net: the latter shows the namespace that mounted it, which
need not be ours.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from muslin.wire.agent_api import AgentStatus, ContainersStatus, PeerState, TunnelStatus

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # prometheus_client.CONTENT_TYPE_LATEST of that format
DEVICE_FIGURES = "/proc/self/net/dev"
PASS_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PassTimes:
    """A histogram of how long passes over the kernel took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(PASS_BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one pass."""
        self.counts[bisect.bisect_left(PASS_BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and how many passes took at most that long, as Prometheus counts."""
        total, found = 0, []
        for bound, count in zip((*map(str, PASS_BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Counters:
    """What the loop counts on top of what its status says; each only rises."""

    def __init__(self) -> None:
        self.applied = 0
        """Operations that the kernel took."""
        self.failed = 0
        """Operations that it refused."""
        self.repaired = 0
        """Those of the applied ones that put right what somebody else had changed."""
        self.store_errors = 0
        """Reads and writes that the store did not answer."""
        self.passes = PassTimes()
        self.devices: tuple[str, ...] = ()
        """Names of the links whose traffic is worth showing: those that the plan has, and the underlay's."""


def render(status: AgentStatus, counters: Counters) -> bytes:
    """The text that Prometheus reads. It takes 28 ms the first time, for the import: call it in a thread."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Scrape(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _of_node(status)
            yield from _of_kernel(status, counters)
            yield from _of_devices(counters.devices)
            if status.tunnel is not None:
                yield from _of_tunnel(status.tunnel)
            if status.containers is not None:
                yield from _of_containers(status.containers)

    registry = CollectorRegistry()
    ProcessCollector(namespace="muslin", registry=registry)
    registry.register(Scrape())
    text: bytes = generate_latest(registry)
    return text


def _gauge(name: str, help_text: str, value: float | None) -> Iterator[Metric]:
    """One value, or nothing where there is none."""
    from prometheus_client.core import GaugeMetricFamily

    if value is not None:
        yield GaugeMetricFamily(f"muslin_{name}", help_text, value=value)


def _family(kind: str, name: str, help_text: str, label: str, values: dict[str, float]) -> Iterator[Metric]:
    """A value for each value of a label; ``kind`` is gauge or counter."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family: Any = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(
        f"muslin_{name}", help_text, labels=[label]
    )
    for text, value in values.items():
        family.add_metric([text], value)
    yield family


def _counter(name: str, help_text: str, value: float | None) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    if value is not None:
        yield CounterMetricFamily(f"muslin_{name}", help_text, value=value)


def _of_node(status: AgentStatus) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    backend = status.network.backend if status.network else ""
    about = {"version": status.version, "node": status.name, "backend": backend, "store": status.store.kind}
    yield InfoMetricFamily("muslin_agent", "Which agent this is.", value=about)
    yield from _gauge("ready", "1 when the subnet is programmed and every peer was tried.", status.ready)
    yield from _gauge("healthy", "1 when the loop is alive.", status.healthy)
    yield from _gauge("lease_held", "1 when this node has a subnet.", bool(status.lease.subnets))
    end = status.lease.expires_at
    yield from _gauge("lease_expiry_timestamp_seconds", "When the lease ends unless it is renewed.", end)
    states: dict[str, float] = dict.fromkeys(get_args(PeerState), 0.0)
    for peer in status.peers:
        states[peer.state] += 1
    yield from _family("gauge", "peers", "Other nodes, by state.", "state", states)
    yield from _gauge("leases_unreadable", "Leases in the store that hold garbage.", len(status.unreadable))
    yield from _gauge("store_revision", "Of the last snapshot of the store.", status.store.revision)
    yield from _gauge("store_up", "1 when the store answers.", status.store.trouble is None)
    yield from _gauge("store_from_disk", "1 when the last good snapshot serves instead.", status.store.from_disk)


def _of_containers(containers: ContainersStatus) -> Iterator[Metric]:
    yield from _gauge("containers", "Interfaces of containers that runtimes have had connected.", containers.connected)
    free: dict[str, float] = dict(containers.free)
    yield from _family("gauge", "addresses_free", "Addresses that are left for containers.", "subnet", free)


def _of_kernel(status: AgentStatus, counters: Counters) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    kernel = status.kernel
    results: dict[str, float] = {"applied": counters.applied, "failed": counters.failed}
    yield from _family("counter", "operations", "Changes of the kernel, by result.", "result", results)
    yield from _counter("repairs", "Changes that put right what somebody else had changed.", counters.repaired)
    yield from _counter("store_errors", "Reads and writes that the store did not answer.", counters.store_errors)
    yield from _gauge("kernel_objects", "Objects that the kernel should hold.", kernel.objects)
    yield from _gauge("kernel_objects_failed", "Objects that the kernel refuses at this moment.", len(kernel.failed))
    what = "How long looking at the whole kernel and putting it right took."
    yield HistogramMetricFamily(
        "muslin_pass_duration_seconds", what, buckets=counters.passes.buckets(), sum_value=counters.passes.sum_s
    )
    yield from _gauge("last_pass_duration_seconds", "The last one of these.", kernel.last_pass_s)
    yield from _gauge("last_pass_timestamp_seconds", "When it ended.", kernel.last_pass_at)
    strangers = kernel.strangers_dropped
    what = "Encapsulated packets from addresses without a lease, dropped."
    yield from _counter("strangers_dropped_packets", what, strangers)


def _of_devices(devices: tuple[str, ...]) -> Iterator[Metric]:
    figures = read_devices(devices)
    for way, first in (("receive", 0), ("transmit", 8)):
        for offset, what in enumerate(("bytes", "packets", "errors", "drops")):
            values = {device: float(columns[first + offset]) for device, columns in figures.items()}
            if values:
                yield from _family(
                    "counter", f"device_{way}_{what}", f"As `ip -s link` shows {what}.", "device", values
                )


def read_devices(devices: tuple[str, ...]) -> dict[str, list[int]]:
    """The 16 figures of each of these links of the own namespace that exist (proc_pid_net(5), dev)."""
    with open(DEVICE_FIGURES, encoding="ascii", errors="replace") as file:
        lines = (line.strip().partition(":") for line in file)
        return {name: [int(word) for word in rest.split()] for name, _, rest in lines if name in devices}


def _of_tunnel(tunnel: TunnelStatus) -> Iterator[Metric]:
    """The tunnel's counters: ``bytes_`` by way, ``calls_`` by kind, all others packets by what became of them."""
    counts = {name: float(value) for name, value in tunnel.counters.items()}
    calls = {name.removeprefix("calls_"): counts.pop(name) for name in [*counts] if name.startswith("calls_")}
    sizes = {name.removeprefix("bytes_"): value for name, value in counts.items() if name.startswith("bytes_")}
    fates = {name.removeprefix("packets_"): value for name, value in counts.items() if not name.startswith("bytes_")}
    yield from _gauge("tunnel_peers", "Peers that the tunnel knows.", tunnel.peers)
    yield from _family("counter", "tunnel_bytes", "Inner bytes that the tunnel carried.", "way", sizes)
    yield from _family("counter", "tunnel_packets", "Packets by what became of them.", "fate", fates)
    yield from _family("counter", "tunnel_calls", "System calls that carrying took.", "kind", calls)
    yield from _of_tunnel_peers(tunnel)


def _of_tunnel_peers(tunnel: TunnelStatus) -> Iterator[Metric]:
    """The same by peer: of ``tunnel_counters.SHOWN_PEERS`` peers at most, and only what is not 0."""
    from prometheus_client.core import CounterMetricFamily

    which = "by peer, of those that lose packets and of the busiest"
    sizes = CounterMetricFamily("muslin_tunnel_peer_bytes", f"Inner bytes {which}.", labels=["peer", "way"])
    fates = CounterMetricFamily("muslin_tunnel_peer_packets", f"Packets {which}.", labels=["peer", "fate"])
    for peer, counters in tunnel.peer_counters.items():
        for name, value in counters.items():
            kind, _, rest = name.partition("_")
            family, label = (sizes, rest) if kind == "bytes" else (fates, rest if kind == "packets" else name)
            family.add_metric([peer, label], float(value))
    yield from (sizes, fates) if tunnel.peer_counters else ()
