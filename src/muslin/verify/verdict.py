"""From what was seen to what it means: each cell judged against R1, R2 and R3, and the totals.

Theory of operation: everything here is pure. ``probe`` delivers a ``CellResult`` per pair: one ``Exchange``
per protocol with what each end saw. ``judge`` turns it into faults. A cell is good when every exchange was
answered and

    own address = source address sent = source address seen,   address asked = address that it arrived at,

the TTL tells the expected number of routers, and no tunnel packet was fragmented outside. R1 and R2 demand
delivery without NAT; R3 demands that a container is seen by the address that it sees itself as. So a lost
packet breaks R1 or R2 and leaves R3 without proof; NAT breaks R1 or R2 ("without NAT") and R3 alike.

Each fault carries its ``cause`` in words that do not name the pair, by which a report groups equal ones. The
structs are many (six a cell) and never form cycles, so Python's garbage collector is told to leave them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from muslin.model.address import Family, family_of
from muslin.verify.matrix import REQUIREMENTS, Pair, Requirement

SCHEMA = "muslin.check/v1"
INITIAL_TTL = 64  # set on every probing socket; also Linux's own default, ip-sysctl.rst ip_default_ttl

Protocol = Literal["icmp", "tcp", "udp", "full-size udp"]
PROTOCOLS: tuple[Protocol, ...] = ("icmp", "tcp", "udp")
FULL_SIZE: Protocol = "full-size udp"
Outcome = Literal["answered", "lost", "error"]
FaultKind = Literal["lost", "refused", "unreachable", "nat", "ttl", "fragmented"]

_ROUTING_ERRORS: dict[Family, frozenset[tuple[int, int]]] = {
    4: frozenset({(3, 0), (3, 1), (11, 0)}),  # RFC 792: network, host unreachable; time exceeded
    6: frozenset({(1, 0), (1, 3), (3, 0)}),  # RFC 4443: no route, address unreachable; hop limit exceeded
}

FAULT_KINDS: tuple[FaultKind, ...] = ("lost", "refused", "unreachable", "nat", "ttl", "fragmented")


class ErrorSeen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An error that an exchange ended with.

    ``text`` is what the kernel or the ICMP message said, ``offender`` the address that the ICMP message came
    from; None when the source's own kernel refused to send. ``icmp`` holds type and code of the message.
    """

    text: str
    offender: str | None = None
    icmp: tuple[int, int] | None = None
    refused: bool = False


class Exchange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One request and its answer, as both ends saw it.

    ``arrived``: the destination saw the request. ``sent``: the source address that the source's kernel used;
    ``seen``: the source address that the destination saw (``sent_port`` and ``seen_port`` likewise, told only
    where they differ); ``arrived_at``: the destination address that it saw; ``answered_from``: where the answer came
    from; ``ttl``: TTL or hop limit that the destination saw; ``rtt_s`` of the last try, in seconds;
    ``size_bytes``: the IP packet of a full-size probe.
    """

    protocol: Protocol
    outcome: Outcome
    tries: int = 1
    arrived: bool = False
    sent: str | None = None
    seen: str | None = None
    sent_port: int | None = None
    seen_port: int | None = None
    arrived_at: str | None = None
    answered_from: str | None = None
    ttl: int | None = None
    rtt_s: float | None = None
    size_bytes: int | None = None
    error: ErrorSeen | None = None


class CellResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What was seen for one pair.

    ``own`` are the source's own addresses of the family asked, ``path_mtu`` in bytes, ``outer_fragments`` the
    number of fragments that the source's node made of tunnel packets while this pair alone was probed.
    """

    pair: Pair
    own: tuple[str, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    path_mtu: int | None = None
    outer_fragments: int = 0


class Fault(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that is wrong with a cell: which requirements it breaks, by which protocols seen, and how."""

    kind: FaultKind
    breaks: tuple[Requirement, ...]
    protocols: tuple[Protocol, ...]
    cause: str
    sentence: str


class JudgedCell(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A cell and its faults; ``proved`` are the requirements that it proves to hold."""

    ok: bool
    proved: tuple[Requirement, ...]
    faults: tuple[Fault, ...]
    result: CellResult


class Total(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``passed`` of ``of`` cells prove a requirement; ``broken`` ones disprove it, the rest prove nothing."""

    passed: int
    broken: int
    of: int

    @property
    def unproven(self) -> int:
        """Cells that say nothing: no packet got through by which to tell."""
        return self.of - self.passed - self.broken


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """All cells judged. ``duration_s`` in seconds. A report without cells is not ok: it proves nothing."""

    schema: str = SCHEMA
    ok: bool
    duration_s: float
    totals: dict[Requirement, Total]
    cells: tuple[JudgedCell, ...]

    @property
    def failed(self) -> tuple[JudgedCell, ...]:
        """The cells with a fault."""
        return tuple(cell for cell in self.cells if not cell.ok)


def judge(result: CellResult) -> tuple[Fault, ...]:
    """Every fault of a cell, in the order in which a person would want to read them."""
    return (
        *_judge_lost(result),
        *_judge_errors(result),
        *_judge_nat(result),
        *_judge_ttl(result),
        *_judge_fragments(result),
    )


def judge_cell(result: CellResult) -> JudgedCell:
    """The cell with its faults and what it proves."""
    faults = judge(result)
    broken = {requirement for fault in faults for requirement in fault.breaks}
    if not any(exchange.outcome == "answered" for exchange in result.exchanges):
        broken.update(REQUIREMENTS)
    proved = result.pair.requirements
    if broken:
        proved = tuple(requirement for requirement in proved if requirement not in broken)
    return JudgedCell(ok=not faults and bool(proved), proved=proved, faults=faults, result=result)


def make_report(results: Iterable[CellResult], duration_s: float) -> CheckReport:
    """Judge all results and count them."""
    cells = tuple(judge_cell(result) for result in results)
    totals = {requirement: count_total(cells, requirement) for requirement in REQUIREMENTS}
    ok = bool(cells) and all(cell.ok for cell in cells)
    return CheckReport(ok=ok, duration_s=round(duration_s, 3), totals=totals, cells=cells)


def count_total(cells: Sequence[JudgedCell], requirement: Requirement) -> Total:
    """How many of the cells that speak of ``requirement`` prove it."""
    relevant = [cell for cell in cells if requirement in cell.result.pair.requirements]
    return Total(
        passed=sum(requirement in cell.proved for cell in relevant),
        broken=sum(any(requirement in fault.breaks for fault in cell.faults) for cell in relevant),
        of=len(relevant),
    )


def _fault(
    result: CellResult,
    kind: FaultKind,
    protocols: Sequence[Protocol],
    cause: str,
    detail: str = "",
    also: tuple[Requirement, ...] = (),
) -> Fault:
    breaks = (result.pair.requirement, *also)
    names = " and ".join(breaks)
    return Fault(
        kind=kind,
        breaks=breaks,
        protocols=tuple(protocols),
        cause=cause,
        sentence=f"{names} broken: {result.pair.title}: {detail or cause}",
    )


def _routing_error(result: CellResult) -> ErrorSeen | None:
    """What a router said about the way itself, whatever the protocol.

    Routers limit the rate of their ICMP errors (RFC 1812 4.3.2.8, RFC 4443 2.4 f): a request that is lost
    beside one that was answered by such an error met the same fate.
    """
    family = family_of(result.pair.address)
    errors = (exchange.error for exchange in result.exchanges if exchange.error is not None)
    return next((error for error in errors if is_routing_error(error, family)), None)


def is_routing_error(error: ErrorSeen, family: Family) -> bool:
    """Whether a router says that there is no way to the destination."""
    return error.icmp in _ROUTING_ERRORS[family]


def _judge_lost(result: CellResult) -> list[Fault]:
    faults = []
    known = _routing_error(result)
    for arrived, words in (
        (False, "the request never arrived"),
        (True, "the request arrived, the answer was lost"),
    ):
        lost = [e for e in result.exchanges if e.outcome == "lost" and e.arrived is arrived]
        if known and not arrived:
            continue
        protocols = [exchange.protocol for exchange in lost]
        if FULL_SIZE in protocols and protocols != [FULL_SIZE]:
            protocols.remove(FULL_SIZE)
        if protocols:
            faults.append(
                _fault(result, "lost", protocols, f"lost: no answer to {_join(protocols)}{_size(lost)}: {words}")
            )
    return faults


def _size(lost: list[Exchange]) -> str:
    sizes = [e.size_bytes for e in lost if e.size_bytes] if len(lost) == 1 else []
    return f" ({sizes[0]} bytes, and no ICMP message tells of a smaller MTU)" if sizes else ""


def _judge_errors(result: CellResult) -> list[Fault]:
    groups: dict[ErrorSeen, list[Protocol]] = {}
    known = _routing_error(result)
    for exchange in result.exchanges:
        if exchange.error is not None and exchange.outcome == "error":
            groups.setdefault(exchange.error, []).append(exchange.protocol)
        elif known and exchange.outcome == "lost" and not exchange.arrived:
            groups.setdefault(known, []).append(exchange.protocol)
    return [_error_fault(result, error, protocols) for error, protocols in groups.items()]


def _error_fault(result: CellResult, error: ErrorSeen, protocols: list[Protocol]) -> Fault:
    kind: FaultKind = "refused" if error.refused else "unreachable"
    code = f" (ICMP type {error.icmp[0]} code {error.icmp[1]})" if error.icmp else ""
    if error.offender is None:
        cause = f"{kind}: {error.text}{code}, says the source's own kernel ({_join(protocols)})"
        return _fault(result, kind, protocols, cause)
    by = f" from {error.offender}" if kind == "unreachable" else f" by {error.offender}"
    cause = f"{kind}{by}: {error.text}{code} ({_join(protocols)})"
    general = f"{kind} by the address asked: {error.text}{code} ({_join(protocols)})"
    return _fault(result, kind, protocols, general if error.offender == result.pair.address else cause, cause)


def _judge_nat(result: CellResult) -> list[Fault]:
    groups: dict[tuple[str, str], list[Protocol]] = {}
    for exchange in result.exchanges:
        for told in _nat_of(exchange, result):
            groups.setdefault(told, []).append(exchange.protocol)
    also: tuple[Requirement, ...] = () if result.pair.requirement == "underlay" else ("R3",)
    return [
        _fault(result, "nat", protocols, f"{cause} ({_join(protocols)})", f"{detail} ({_join(protocols)})", also)
        for (cause, detail), protocols in groups.items()
    ]


def _nat_of(exchange: Exchange, result: CellResult) -> list[tuple[str, str]]:
    """Each address that changed on the way, as its cause without the pair's own address, and in full."""
    address = result.pair.address
    found: list[tuple[str, str]] = []
    if exchange.sent and exchange.seen and exchange.seen != exchange.sent:
        found.append((f"NATed: seen as {exchange.seen}", f"NATed: sent as {exchange.sent}, seen as {exchange.seen}"))
    elif exchange.seen_port != exchange.sent_port:
        found.append(
            (
                "NATed: seen with another port",
                f"NATed: sent from port {exchange.sent_port}, seen as {exchange.seen_port}",
            )
        )
    if exchange.outcome == "answered" and exchange.seen is None:
        stranger = f"answered, but not by {result.pair.destination.name}, which never saw the request"
        found.append((stranger, stranger))
    if exchange.arrived_at and exchange.arrived_at != address:
        arrived = f"arrived at {exchange.arrived_at}"
        found.append((f"NATed: {arrived}", f"NATed: sent to {address}, {arrived}"))
    if exchange.answered_from and exchange.answered_from != address:
        answered = f"answered from {exchange.answered_from}"
        found.append((f"NATed: {answered}", f"NATed: asked at {address}, {answered}"))
    if exchange.outcome == "answered" and exchange.sent and exchange.sent not in result.own:
        stranger = f"sent as {exchange.sent}, which is no address of {result.pair.source.name}"
        found.append((stranger, f"{stranger} (own: {', '.join(result.own) or 'none'})"))
    return found


def _judge_ttl(result: CellResult) -> list[Fault]:
    if result.pair.expected_hops is None:
        return []
    expected = INITIAL_TTL - result.pair.expected_hops
    groups: dict[int, list[Protocol]] = {}
    for exchange in result.exchanges:
        if exchange.ttl is not None and exchange.ttl != expected and exchange.protocol != FULL_SIZE:
            groups.setdefault(exchange.ttl, []).append(exchange.protocol)
    return [
        _fault(result, "ttl", protocols, f"wrong TTL {ttl}, expected {expected} ({_join(protocols)})")
        for ttl, protocols in groups.items()
    ]


def _judge_fragments(result: CellResult) -> list[Fault]:
    if not result.outer_fragments:
        return []
    size = f"a packet of {result.path_mtu} bytes" if result.path_mtu else "a full-size packet"
    node = result.pair.source.node
    cause = f"fragmented outside: {size} left {node} in {result.outer_fragments} fragments"
    return [_fault(result, "fragmented", (FULL_SIZE,), cause)]


def _join(protocols: Iterable[Protocol]) -> str:
    return ", ".join(protocols)
