"""What to ask a peer, and what is wrong when it answers so: pure.

Theory of operation: three questions, each an echo request. Its underlay address: is the host there? An address behind
it that its agent keeps: does the container network reach it? The same with a packet as large as a container's may be,
which nobody may fragment: does the path carry what the MTU promises? The answers together name the likely cause,
because each of the usual ones breaks another of the three:

    underlay  behind it  full size
    silent    silent     -          the node is down or cut off, or a filter drops both
    answers   silent     -          a filter drops the encapsulated packets, or no agent runs there
    answers   answers    silent     something on the way has a smaller MTU: long transfers hang
    silent    answers    answers    a filter drops ICMP between the hosts; nothing is broken

The address behind a peer is, with an overlay, the ``.0`` of its subnet: the device of its end has it, flannel's too.
With host-gw it is the gateway ``.1``, which is there only where containers are; so an error by the peer itself is as
good as an answer, and silence is a note and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from muslin.backends import BACKENDS, host_gw, udp, vxlan
from muslin.model.address import family_of, nth_address
from muslin.wire.agent_api import (
    AgentStatus,
    FailedOperation,
    NetworkStatus,
    PeerStatus,
    ProbeOutcome,
    ProbeResult,
)

OVERLAYS = (vxlan.NAME, udp.NAME)
_GRAVEST: tuple[ProbeOutcome, ...] = ("unreachable", "silent", "skipped", "reached")


class Target(NamedTuple):
    """One echo request: ``size_bytes`` of the whole IP packet, 0 for a small one; ``source`` binds an own address."""

    address: str
    size_bytes: int = 0
    source: str = ""


class Questions(NamedTuple):
    """All that one peer is asked."""

    underlay: tuple[Target, ...] = ()
    behind: tuple[Target, ...] = ()
    full: tuple[Target, ...] = ()

    @property
    def all(self) -> tuple[Target, ...]:
        """One after the other."""
        return self.underlay + self.behind + self.full


def plan_questions(peer: PeerStatus, network: NetworkStatus | None) -> Questions:
    """What to ask this peer: nothing where its lease cannot be followed."""
    if network is None or peer.state == "refused":
        return Questions()
    try:
        behind = tuple(_address_behind(subnet, network.backend) for subnet in _asked_behind(peer, network))
    except ValueError:
        behind = ()  # a subnet of one address has no gateway
    return Questions(
        underlay=tuple(Target(address) for address in peer.addresses),
        behind=tuple(Target(address) for address in behind),
        full=tuple(Target(address, network.mtu) for address in behind),
    )


def _asked_behind(peer: PeerStatus, network: NetworkStatus) -> tuple[str, ...]:
    return peer.subnets if network.backend in (*OVERLAYS, host_gw.NAME) else ()


def _address_behind(subnet: str, backend: str) -> str:
    return nth_address(subnet, 1 if backend == host_gw.NAME else 0)


def with_answers(
    peer: PeerStatus, questions: Questions, answers: dict[Target, ProbeResult], status: AgentStatus
) -> PeerStatus:
    """The peer with what it answered and what that means."""
    asked = msgspec.structs.replace(
        peer,
        underlay=_gravest(questions.underlay, answers),
        overlay=_gravest(questions.behind, answers),
        overlay_full=_gravest(questions.full, answers),
    )
    return explain_peer(asked, status)


def _gravest(targets: Sequence[Target], answers: dict[Target, ProbeResult]) -> ProbeResult | None:
    """Of a peer with two families the worse answer counts."""
    found = [answers[target] for target in targets if target in answers]
    return min(found, key=lambda result: _GRAVEST.index(result.outcome), default=None)


def explain(status: AgentStatus) -> AgentStatus:
    """The status with a sentence for each peer of which something is known to be wrong."""
    return msgspec.structs.replace(status, peers=tuple(explain_peer(peer, status) for peer in status.peers))


def explain_peer(peer: PeerStatus, status: AgentStatus) -> PeerStatus:
    """The peer with its sentence or note, unless it has a sentence already."""
    if peer.sentence:
        return peer
    if peer.state == "refused":
        return msgspec.structs.replace(peer, sentence=_refused(peer))
    if peer.state == "failed":
        return msgspec.structs.replace(peer, sentence=_failed(peer))
    if status.network is None or peer.underlay is None:
        return peer
    sentence, note = _judge(peer, peer.underlay, status.network, status)
    return msgspec.structs.replace(peer, sentence=sentence, note=note)


class Faults(NamedTuple):
    """What is wrong, and what is not as it should be and breaks nothing now: a sentence each, none of them twice."""

    wrong: tuple[str, ...]
    warnings: tuple[str, ...]


def explain_faults(status: AgentStatus) -> Faults:
    """The agent's own sentences, those about peers, and what the kernel refuses, sorted out."""
    peers = [peer.sentence for peer in status.peers if peer.sentence]
    wrong = [
        text for text in status.problems if not _is_warning(text, status) and not any(text in one for one in peers)
    ]
    known = "\n".join((*wrong, *peers))
    wrong += [_refused_operation(one, status.now) for one in status.kernel.failed if one.command not in known]
    wrong += [sentence for sentence in peers if sentence not in wrong]
    return Faults(tuple(wrong), tuple(_warnings(status)))


def _is_warning(problem: str, status: AgentStatus) -> bool:
    """Whether a sentence of the agent's says what one of the warnings says."""
    warnings = (status.lease.warning, status.network.warning if status.network else "", status.store.trouble or "")
    garbage = any(name in problem and "garbage" in problem for name in status.unreadable)
    return garbage or any(text and text in problem for text in warnings)


def _refused_operation(one: FailedOperation, now: float) -> str:
    reason = one.reason if one.command in one.reason else f"{one.command}: {one.reason}"
    return f"the kernel refuses a change, tried again for {round(now - one.since)} s now: {reason}"


def _warnings(status: AgentStatus) -> Iterator[str]:
    if status.lease.warning:
        yield status.lease.warning
    if status.network is not None and status.network.warning:
        yield status.network.warning
    if status.store.trouble:
        serves = "what was known last is followed" if status.store.from_disk else "nothing changes until it is back"
        yield f"the {status.store.kind} store does not answer: {status.store.trouble}; {serves}"
    if status.unreadable:
        names = ", ".join(status.unreadable)
        yield f"leases in the store that hold garbage and are left out: {names}; delete or mend them there"
    yield from (peer.note for peer in status.peers if peer.note)


# ---- the sentences -----------------------------------------------------------------------------------------


def _refused(peer: PeerStatus) -> str:
    reason = peer.reason or "its lease cannot be followed"
    named = reason if peer.name in reason else f"{peer.name} is left out: {reason}"
    return f"{named}. Mend that node's settings or its lease; this node follows by itself"


def _failed(peer: PeerStatus) -> str:
    reason = f": {peer.reason}" if peer.reason else ""
    return f"the kernel of this host refuses what it takes to reach {peer.name}{reason}; it is tried again and again"


def _judge(peer: PeerStatus, underlay: ProbeResult, network: NetworkStatus, status: AgentStatus) -> tuple[str, str]:
    """What is wrong, and what is merely worth knowing; at most one of them."""
    behind, full = peer.overlay, peer.overlay_full
    if underlay.outcome == "skipped":
        return "", ""
    if behind is None:
        return ("", "") if underlay.outcome == "reached" else (_host_away(underlay, None, network), "")
    if not _proves(behind, peer):
        if underlay.outcome != "reached":
            return _host_away(underlay, behind, network), ""
        if network.backend == host_gw.NAME and behind.outcome == "silent":
            return "", _no_gateway_yet(underlay, behind)
        return _cut_off_behind(underlay, behind, network), ""
    if full is not None and not _proves(full, peer):
        return _mtu_hole(full, network, status), ""
    return "", "" if underlay.outcome == "reached" else _icmp_filtered(underlay, behind)


def _proves(behind: ProbeResult, peer: PeerStatus) -> bool:
    """Whether an answer shows that the way to the peer's containers works."""
    return behind.outcome in ("reached", "skipped") or behind.offender in peer.addresses


def _port(network: NetworkStatus) -> str:
    return f"UDP port {network.port}" if network.port else f"the UDP port of {network.backend}"


def _host_away(underlay: ProbeResult, behind: ProbeResult | None, network: NetworkStatus) -> str:
    address = underlay.address
    if underlay.outcome == "unreachable" and not underlay.offender:
        return f"this host cannot send to {address}: {underlay.detail}; see `ip route get {address}`"
    if underlay.outcome == "unreachable":
        return (
            f"{address} is out of reach: {underlay.offender} says {underlay.detail}; the node is down, or has another "
            "address by now: see whether its agent runs"
        )
    nor = f", nor does {behind.address} behind it" if behind else ""
    also = f" and {_port(network)}" if network.backend in OVERLAYS else ""
    return (
        f"{address} does not answer{nor}: the node is down or cut off, or a packet filter drops ICMP{also}; "
        f"if it runs, let {'both' if also else 'ICMP'} pass between the two hosts"
    )


def _cut_off_behind(underlay: ProbeResult, behind: ProbeResult, network: NetworkStatus) -> str:
    start = f"{underlay.address} answers, but {behind.address} behind it"
    if behind.outcome == "unreachable" and not behind.offender:
        return (
            f"{start} cannot be sent to: {behind.detail}; this host's own routes or packet filter forbid it, see "
            f"`ip route get {behind.address}` and `nft list ruleset`"
        )
    if behind.outcome == "unreachable":
        return (
            f"{start} is unknown: {behind.offender} says {behind.detail}; the packets go astray, or the agent there "
            "does not run: see `muslin status` there"
        )
    port = _port(network)
    return (
        f"{start} does not: a packet filter between the two drops {port}, or no agent runs there; "
        f"let {port} pass both ways, and see `muslin status` there"
    )


def _no_gateway_yet(underlay: ProbeResult, behind: ProbeResult) -> str:
    return (
        f"{underlay.address} answers, but the gateway of its containers, {behind.address}, does not: either no "
        "container has run there yet, or a packet filter drops what is forwarded"
    )


def _mtu_hole(full: ProbeResult, network: NetworkStatus, status: AgentStatus) -> str:
    overhead = 0
    if network.backend in OVERLAYS and status.underlay is not None:
        overhead = BACKENDS[network.backend].overhead_bytes(family_of(status.underlay.addresses[0]))
    told = f" ({full.detail})" if full.outcome == "unreachable" else ""
    link = status.underlay.link if status.underlay else "the underlay interface"
    mend = f"lower the MTU of {link} on every node"
    if network.backend == vxlan.NAME:
        mend = f"set MTU in the Backend of the network configuration to what the path carries, or {mend}"
    return (
        f"small packets reach {full.address}, those of full size, {network.mtu} bytes, do not{told}: something on the "
        f"way carries less than {network.mtu + overhead} bytes, so long transfers hang; {mend}"
    )


def _icmp_filtered(underlay: ProbeResult, behind: ProbeResult) -> str:
    return (
        f"{underlay.address} does not answer echo requests, while {behind.address} behind it does: a packet filter "
        "drops ICMP between the hosts; containers are not affected"
    )
