"""The loop's state as the document of the API: a look at values, without any I/O.

Theory of operation: what is wrong is told as sentences, the gravest first, and each once: an operator reads the first
line. A peer's state follows from the last pass: its lease was refused, or the kernel did not take all of it, or it was
not seen yet, or else it is programmed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import muslin
from muslin.agent.attachment_plan import NodeFacts
from muslin.agent.node_plan import options_of
from muslin.backends import udp, vxlan
from muslin.model.lease import Lease
from muslin.model.ops import Op
from muslin.wire.agent_api import (
    AgentStatus,
    FailedOperation,
    KernelStatus,
    LeaseStatus,
    NetworkStatus,
    PeerStatus,
    Repair,
    StoreStatus,
    UnderlayStatus,
)

if TYPE_CHECKING:
    from muslin.agent.node import Node

SHOWN = 5
"""How many sentences of one kind are told in full."""
SHOWN_COMMANDS = 10


def status_of(node: Node) -> AgentStatus:
    """Everything, as of now."""
    healthy, reason = node.health()
    peers = tuple(_peers(node))
    ready = bool(node.programmed)
    return AgentStatus(
        version=muslin.__version__,
        name=node.options.name,
        pid=os.getpid(),
        started_at=node.started_at,
        now=time.time(),
        ready=ready,
        healthy=healthy,
        problems=tuple(_problems(node, peers, reason)),
        lease=_lease(node),
        store=StoreStatus(
            kind=node.options.store_kind,
            revision=node.network.snapshot.revision if node.network.snapshot else 0,
            trouble=node.store.trouble,
            from_disk=node.from_disk,
        ),
        kernel=_kernel(node),
        underlay=_underlay(node),
        network=_network(node),
        tunnel=node.tunnel_status,
        containers=node.containers.status() if node.containers else None,
        peers=peers,
        unreadable=node.network.snapshot.unreadable if node.network.snapshot else (),
    )


def facts_of(node: Node, bridge: str) -> NodeFacts:
    """What there is to know of the node for connecting a container."""
    config, last = node.network.config, node.last
    subnets = node.programmed  # read once: another thread may take them away
    ready, words = node.summary()
    ready &= bool(subnets)
    return NodeFacts(
        trouble="" if ready else words if words.startswith("not ready") else "not ready: the lease was given up",
        degraded=node.trouble if node.trouble and not ready and last is not None else "",
        subnets=subnets,
        networks=config.networks if config else (),
        mtu=last.mtu if last else 0,
        bridge=bridge,
        masquerade=node.options.masquerade,
    )


def repair_of(ops: Sequence[Op], at: float) -> Repair:
    """A repair as it is shown; ``at`` in seconds since the epoch."""
    return Repair(at=at, commands=tuple(op.describe() for op in ops[:SHOWN_COMMANDS]), count=len(ops))


def _lease(node: Node) -> LeaseStatus:
    news, lease = node.announced, node.lease_in_force()
    return LeaseStatus(
        state=node.keeper.machine.state if node.keeper else "idle",
        name=lease.name if lease else "",
        subnets=lease.subnets if lease else (),
        expires_at=lease.expires_at if lease else None,
        reservation=lease is not None and lease.expires_at is None,
        sentence=news.sentence if news else "",
        warning=news.warning if news else "",
    )


def _kernel(node: Node) -> KernelStatus:
    last, look = node.last, node.last_look
    return KernelStatus(
        objects=last.objects if last else 0,
        passes=node.looks,
        last_pass_at=node.last_look_at,
        last_pass_s=look.duration_s if look else None,
        last_pass_split=look.split if look else {},
        repaired=node.counters.repaired,
        repairs=tuple(node.repairs),
        failed=tuple(
            FailedOperation(
                key=failure.result.op.key,
                command=failure.result.op.describe(),
                reason=failure.words,
                since=failure.since,
            )
            for failure in (last.failures if last else ())
        ),
        strangers_dropped=node.strangers_dropped,
    )


def _underlay(node: Node) -> UnderlayStatus | None:
    underlay = node.last.underlay if node.last else node.reconciler.underlay
    if underlay is None:
        return None
    return UnderlayStatus(
        link=underlay.link,
        mtu=underlay.mtu,
        addresses=underlay.addresses,
        public_addresses=underlay.public_addresses,
    )


def _network(node: Node) -> NetworkStatus | None:
    config = node.network.config
    if config is None:
        return None
    options = options_of(config)
    return NetworkStatus(
        networks=config.networks,
        backend=config.backend,
        mtu=node.last.mtu if node.last else 0,
        bridge=node.reconciler.bridge,
        warning=node.network.warning,
        port=options.port if isinstance(options, vxlan.Options | udp.Options) else None,
    )


def _peers(node: Node) -> Iterator[PeerStatus]:
    lease, last = node.lease_in_force(), node.last
    own = lease.name if lease else ""
    refused = {refusal.peer: refusal.reason for refusal in last.refusals} if last else {}
    failed = last.failed_leases if last else {}
    for lease in node.network.others(own):
        yield _peer(node, lease, refused.get(lease.name, ""), failed.get(lease.name, ""))


def _peer(node: Node, lease: Lease, refused: str, failed: str) -> PeerStatus:
    name = lease.name
    known = node.known.get(name)
    is_new = known is None or known.advertisement != lease.advertisement
    return PeerStatus(
        name=name,
        addresses=lease.advertisement.addresses,
        subnets=lease.subnets,
        backend=lease.advertisement.backend,
        state="pending" if is_new else "refused" if refused else "failed" if failed else "programmed",
        reason=refused or failed,
        changed_at=node.changed_at.get(name, node.started_at),
    )


def _problems(node: Node, peers: tuple[PeerStatus, ...], unhealthy: str) -> Iterator[str]:
    """A sentence for each thing that is wrong, the gravest first."""
    news, last, network = node.announced, node.last, node.network
    yield from (unhealthy,) if unhealthy else ()
    if node.trouble:
        yield node.trouble
    if news is not None and news.lease is None and news.sentence:
        yield news.sentence
    if news is not None and news.warning:
        yield news.warning
    if network.warning:
        yield network.warning
    if node.store.trouble:
        yield node.store.trouble + (" (the last snapshot on disk serves)" if node.from_disk else "")
    if last is not None:
        yield from last.troubles
        by_lease = set(last.failed_leases.values())
        yield from _few([failure.words for failure in last.failures if failure.words not in by_lease])
    yield from _few([f"{peer.name}: {peer.reason}" for peer in peers if peer.state == "failed"])
    yield from _few([peer.reason for peer in peers if peer.state == "refused"])
    yield from node.containers.troubles if node.containers else ()
    if network.snapshot is not None and network.snapshot.unreadable:
        yield from _few([f"the lease {name} holds garbage and is passed over" for name in network.snapshot.unreadable])


def _few(sentences: list[str]) -> Iterator[str]:
    yield from sentences[:SHOWN]
    if len(sentences) > SHOWN:
        yield f"and {len(sentences) - SHOWN} more of this kind"
