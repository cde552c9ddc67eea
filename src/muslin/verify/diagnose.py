"""Why packets of a lab are lost or changed: each cause once, with the commands that mend it.

Theory of operation: every pair that ``check`` checks is walked (``explain``), with a small packet and, where that
arrives, with one as long as the sender's link allows, and by TCP and UDP where a packet filter may tell protocols
apart. Each drop, NAT and black hole is a cause; pairs with the same cause are one finding. Where the cause itself says
what mends it, that is it. Else the place at fault is compared with the lab's plan: what is missing or changed is put
back, what is there and should not be is taken away; and if that place is as it should be, all others are compared.
Commands are as a person types them, by ``muslin lab exec``. Nothing is changed here: what the plan would do is handed
in, as a check must not be able to write.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from muslin.explain.both import Question, explain
from muslin.explain.named import NamedSights
from muslin.explain.path import Cause, Drop, Explanation
from muslin.explain.types import BY_HAND, shown_destination
from muslin.kernel.programs import TUNNEL_MARK
from muslin.lab.enter import place_names
from muslin.lab.paths import DEFAULT_LAB
from muslin.lab.places import lab_network
from muslin.lab.plan import LabPlan, netns_of, plan
from muslin.lab.processes import missing_tunnels, tunnel_program
from muslin.lab.state import LabState
from muslin.model.address import family_of
from muslin.model.kernel import PROTOCOL_KERNEL, TABLE_MAIN, Address, Route
from muslin.model.network import Tunnel
from muslin.model.ops import Op
from muslin.model.state import DesiredState
from muslin.verify.lab_pairs import HopCounter, endpoints
from muslin.verify.matrix import Pair, all_pairs
from muslin.verify.trace import Trace
from muslin.wire.rtnetlink import RouteRecord
from muslin.wire.sight import Sight

CONSEQUENCES: tuple[Cause, ...] = ("no-route", "no-neighbour", "lost-frame", "martian", "reverse-path")
"""Causes that may follow from something else in the same place, the nearest to it first."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One cause: where, what is at fault, in one sentence, what mends it, and which pairs it hits."""

    cause: Cause
    place: str
    object: str
    sentence: str
    mend: tuple[str, ...]
    pairs: tuple[str, ...]
    proof: str = ""
    """What the kernel counted or traced of a packet that was sent for it; empty where none was, or it told nothing."""
    contradiction: str = ""
    """What of that speaks against it."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What ``diagnose -o json`` prints. ``pairs`` is how many were walked."""

    schema: Literal["muslin.lab-diagnosis/v1"] = "muslin.lab-diagnosis/v1"
    ok: bool
    pairs: int
    findings: tuple[Finding, ...]


class _Case(msgspec.Struct):
    """A drop and the pairs that met it."""

    drop: Drop
    question: Question
    """The first packet that met it."""
    pairs: list[str]


def diagnose(
    state: LabState,
    drift: Callable[[DesiredState], Sequence[Op]],
    only: Question | None = None,
    prove: Callable[[Question], Trace] | None = None,
) -> Diagnosis:
    """Walk all pairs of a lab that this process has entered, or ``only`` one.

    ``drift`` tells what would make the kernel agree with a state; it is asked where something is wrong. ``prove`` sends
    a packet: one for each finding, and for an ``only`` pair of which nothing was found.
    """
    with lab_network(state) as network:
        pairs, cases = _walk(state, network, only)
        repairs = _Repairs(state, network, drift) if cases else None
        told = _merged([(_finding(state, case, repairs), case.question) for case in cases if repairs])
    findings = [finding for finding, _ in told]
    if prove is not None:
        findings = [_proved(finding, prove(question)) for finding, question in told]
        if only is not None and not findings:
            findings = list(_seen_only(only, prove))
    return Diagnosis(ok=not findings, pairs=pairs, findings=tuple(findings))


def is_well(state: LabState) -> bool:
    """Whether no pair of a lab that this process has entered meets anything."""
    with lab_network(state) as network:
        return not _walk(state, network, None)[1]


def _proved(finding: Finding, found: Trace) -> Finding:
    """With what the kernel said, unless the packet met something else first."""
    proof = found.proof
    if finding.cause == "nat":
        seen = [line for line in found.lines if line.place == finding.place and line.direction == "out" and line.at_us]
        ends = dict.fromkeys(f"{line.source} > {line.destination}" for line in seen if line.leg == "request")
        proof = f"seen leaving {finding.place} as {' and '.join(ends)}" if ends else ""
    return msgspec.structs.replace(finding, proof=proof, contradiction=found.contradiction)


def _seen_only(question: Question, prove: Callable[[Question], Trace]) -> Iterator[Finding]:
    """What is lost though nothing is wrong as far as one can read: then only the kernel knows why."""
    for protocol in ("icmp", "tcp", "udp"):
        found = prove(msgspec.structs.replace(question, protocol=protocol))
        if found.cause and not found.answered:
            yield Finding(
                cause="unpredicted",
                place=question.netns,
                object=f"{protocol} to {question.destination}",
                sentence=f"{protocol.upper()} is lost, though nothing that can be read here says so: {found.cause}",
                mend=(),
                pairs=(f"{question.netns} -> {question.destination}",),
            )


def _walk(state: LabState, network: NamedSights, only: Question | None) -> tuple[int, list[_Case]]:
    """How many pairs were walked, and what was met, each cause at each object once."""
    pairs = [
        pair
        for pair in all_pairs(endpoints(state.name, state.topology), HopCounter(state.topology))
        if only is None or (only.netns, only.destination) == (pair.source.name, pair.address)
    ]
    cases: dict[tuple[str, str, str], _Case] = {}
    for pair in pairs:
        for drop, question in _drops(network, pair):
            case = cases.setdefault((drop.cause, drop.netns, drop.object), _Case(drop, question, []))
            if pair.title not in case.pairs:
                case.pairs.append(pair.title)
    return len(pairs), list(cases.values())


def _drops(network: NamedSights, pair: Pair) -> Iterator[tuple[Drop, Question]]:
    """What a pair meets, each with the packet that meets it."""
    question = Question(netns=pair.source.name, destination=pair.address, expected=pair.destination.name)
    found = explain(network, question)
    yield from ((drop, question) for drop in _of(found))
    if found.ok:
        size = found.request.hops[0].mtu
        if size and size > question.size_bytes:
            long = msgspec.structs.replace(question, size_bytes=size)
            yield from ((drop, long) for drop in _of(explain(network, long)) if drop.cause == "black-hole")
        if any(network[hop.netns].nft for hop in found.request.hops):
            for other in (msgspec.structs.replace(question, protocol=name) for name in ("tcp", "udp")):
                yield from ((drop, other) for drop in _of(explain(network, other)))


def _of(found: Explanation) -> Iterator[Drop]:
    for path in (found.request, found.reply):
        if path is not None:
            yield from path.nat
            if path.drop:
                yield path.drop


_Told = tuple[Finding, Question]
"""A finding, and a packet that meets it."""


def _merged(told: Iterable[_Told]) -> list[_Told]:
    """What the same commands in the same place mend is one finding, called by the cause nearest to the fault."""
    groups: dict[tuple[str, tuple[str, ...]], list[_Told]] = {}
    for one in told:
        groups.setdefault((one[0].place, one[0].mend), []).append(one)
    merged = []
    for group in groups.values():
        first, question = min(group, key=lambda one: (_distance(one[0].cause), -len(one[0].pairs)))
        pairs = dict.fromkeys(pair for finding, _ in ((first, question), *group) for pair in finding.pairs)
        merged.append((msgspec.structs.replace(first, pairs=tuple(pairs)), question))
    return sorted(merged, key=lambda one: -len(one[0].pairs))


def _distance(cause: Cause) -> int:
    """How far from a fault a cause may be: 0 for one that is a fault itself."""
    return CONSEQUENCES.index(cause) + 1 if cause in CONSEQUENCES else 0


def _finding(state: LabState, case: _Case, repairs: _Repairs) -> Finding:
    drop = case.drop
    commands = [(drop.netns, drop.mend)] if drop.mend else repairs.of(drop.netns)
    if drop.cause == "no-route":  # any way would do; the plan knows which was meant
        commands = repairs.here(drop.netns) or commands
        drop = _behind(drop, commands)
    return Finding(
        cause=drop.cause,
        place=drop.netns,
        object=drop.object,
        sentence=drop.sentence,
        mend=tuple(typed(state.name, place, words) for place, words in commands),
        pairs=tuple(case.pairs),
    )


def _behind(drop: Drop, commands: Sequence[tuple[str, str]]) -> Drop:
    """A route that is not there because its link is down: the link is the cause."""
    down = next((words.split()[3] for _, words in commands if re.fullmatch(r"ip link set \S+ up", words)), None)
    if down is None:
        return drop
    sentence = f"{down} of {drop.netns} is down, and the routes by it went with it: {drop.sentence}"
    return msgspec.structs.replace(drop, cause="link-down", object=f"link {down}", sentence=sentence)


def typed(lab: str, place: str, words: str) -> str:
    """``muslin lab exec node2 -- sysctl -w ...``."""
    option = "" if lab == DEFAULT_LAB else f" --name {shlex.quote(lab)}"
    return f"muslin lab exec{option} {place} -- {words}"


class _Repairs:
    """What puts a place back to what the lab's plan says; asked once, of the whole lab."""

    def __init__(self, state: LabState, network: NamedSights, drift: Callable[[DesiredState], Sequence[Op]]) -> None:
        self._plan = plan(state.name, state.topology)
        self._network = network
        self._places = {netns_of(state.name, place): place for place in place_names(state)}
        self._missing = [
            (place, _bare(op.describe(), str(op.key[1])))
            for op in drift(self._plan.state)
            if (place := self._places.get(str(op.key[1])))
        ]
        self._tunnels = missing_tunnels(self._plan.tunnels, state.own_netns)

    def of(self, place: str) -> list[tuple[str, str]]:
        """The commands, by place; of all places where this one is as it should be."""
        here = self.here(place)
        everywhere = [command for other in self._places.values() if other != place for command in self.here(other)]
        commands = here or everywhere
        return commands or [(self._places[one.netns], _start_command(one)) for one in self._tunnels]

    def here(self, place: str) -> list[tuple[str, str]]:
        """Those of this place, what is missing first: with a link's last address the kernel takes its routes too."""
        missing = [command for command in self._missing if command[0] == place]
        netns = next(netns for netns, name in self._places.items() if name == place)
        return missing + [(place, words) for words in unwanted(self._plan, netns, self._network[place])]


def _start_command(tunnel: Tunnel) -> str:
    """What starts a tunnel as the lab does, marked as one (``lab.processes``)."""
    words = [sys.executable, "-I", "-S", tunnel_program(), *tunnel.arguments]
    line = f"{TUNNEL_MARK}=1 setsid {shlex.join(words)} >/dev/null 2>&1 &"
    return f"sh -c {shlex.quote(line)}"


def _bare(command: str, netns: str) -> str:
    """The command without the words that name its namespace."""
    for head, kept in ((f"ip -n {netns} ", "ip "), (f"bridge -n {netns} ", "bridge "), (f"ip netns exec {netns} ", "")):
        if command.startswith(head):
            return kept + command.removeprefix(head)
    return command


def unwanted(lab_plan: LabPlan, netns: str, sight: Sight) -> Iterator[str]:
    """Commands that remove addresses and routes which the plan does not have."""
    objects = [obj for obj in lab_plan.state if obj.netns == netns]
    addresses = {(obj.link, obj.address) for obj in objects if isinstance(obj, Address)}
    for one in sight.addresses:
        link = sight.name_of(one.ifindex)
        if link != "lo" and not one.address.startswith("fe80") and (link, one.address) not in addresses:
            yield f"ip addr del {one.address} dev {link}"
    routes = {(obj.destination, obj.effective_metric) for obj in objects if isinstance(obj, Route)}
    yield from (_removal(sight, one) for one in _foreign_routes(sight.routes, routes))


def _foreign_routes(routes: Iterable[RouteRecord], wanted: set[tuple[str, int]]) -> Iterator[RouteRecord]:
    for one in routes:
        by_hand = one.protocol in BY_HAND and one.protocol != PROTOCOL_KERNEL
        if one.table == TABLE_MAIN and by_hand and (one.destination, one.metric) not in wanted:
            yield one


def _removal(sight: Sight, route: RouteRecord) -> str:
    family = "-6 " if family_of(route.destination) == 6 else ""
    via = f" via {route.via}" if route.via else ""
    link = f" dev {sight.name_of(route.ifindex)}" if route.ifindex else ""
    return f"ip {family}route del {shown_destination(route)}{via}{link}"
