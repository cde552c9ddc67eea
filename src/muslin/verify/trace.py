"""Predict, then observe: one marked packet, and every link that it crosses.

Theory of operation: ``explain`` says where the packet and its answer should be seen; packet sockets in the lab's
namespaces (``kernel.tap``) say where they are. The packet is made whole by us and carries an identifier by which it and
all that answers it are known, also inside of a tunnel's packets. Listening ends when the answer is back at its source,
or an error is, or the time is up. A frame that a bridge floods is seen at ports where nobody takes it: a copy.

The kernel is asked besides: what it counted meanwhile, and which rule ended the packet (``verify.witness``). That
confirms the cause that was predicted, contradicts it, or names one where none was.

``ladder`` sends the packet with TTL 1, 2, 3, ... and tells who answers, beside who should: a router speaks with the
address from which it would reach the sender.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import msgspec

from muslin.explain.both import Question, explain
from muslin.explain.evidence import Count, Evidence, Proof, Verdict, unpredicted, weigh
from muslin.explain.lookup import Query, lookup
from muslin.explain.named import NamedSights
from muslin.explain.path import Drop, Explanation, Hop
from muslin.explain.source import source_of
from muslin.explain.taps import Leg, Line, Seen, Sighting, compare, sightings
from muslin.kernel.tap import TapFrame, Taps, send_body, send_packet
from muslin.lab.enter import place_names
from muslin.lab.places import lab_network
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.model.address import family_of
from muslin.verify.listening import Listener
from muslin.verify.witness import Witness
from muslin.wire.packet import Header, Probe, body_of, encode_probe

MANY_PLACES = 24
"""In labs with more, only the places on the way are listened to: closing a packet socket takes the kernel some ms."""
SETTLE_S = 0.005
"""For what other sockets still hold when the last frame has been read."""
FIRST_IDENTITY = 40000
LONGEST_LADDER = 30


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trace -o json`` prints. ``ok``: all was seen as predicted, whether it arrives or not."""

    schema: Literal["muslin.trace/v1"] = "muslin.trace/v1"
    lab: str
    source: str
    destination: str
    protocol: str
    size_bytes: int
    fixed_size: bool = True
    """Whether it must not be cut (DF)."""
    ttl: int
    ok: bool
    arrived: bool
    answered: bool
    lines: tuple[Line, ...]
    cause: str = ""
    """Why it does not arrive, or its answer, in one sentence: as predicted, else as the kernel tells."""
    proof: str = ""
    """What the kernel counted or traced that confirms the predicted cause."""
    contradiction: str = ""
    """What it counted or traced that speaks against it."""
    mend: str = ""
    refused: str = ""
    """What the source's own kernel said to it, where it would not send."""
    counts: tuple[Count, ...] = ()
    """Counters of losses that moved on the way, whatever moved them."""
    verdicts: tuple[Verdict, ...] = ()
    """Rules of packet filters that ended the packet, by nftables' trace."""
    untraced: tuple[str, ...] = ()
    """Where the packet filter could not be traced, and why."""


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a ladder: who answered, as what, and who should have."""

    ttl: int
    predicted: str
    seen: str
    what: str
    differs: str = ""


class Ladder(msgspec.Struct, frozen=True, kw_only=True):
    """What ``trace --ladder -o json`` prints."""

    schema: Literal["muslin.trace-ladder/v1"] = "muslin.trace-ladder/v1"
    source: str
    destination: str
    ok: bool
    rungs: tuple[Rung, ...]


def _without_consequences(line: Line, drop: Drop | None) -> Line:
    """What follows from a drop is no part of the prediction, and no difference either.

    So an ICMP error on its way back, the answer of another one that has the address too, and pieces of a cut packet
    that are short enough where the others were not: they go on, and are of no use to anybody.
    """
    cause = drop.cause if drop else ""
    stolen = cause == "not-here" and line.leg == "answer"
    left_over = cause in ("too-big", "black-hole") and line.fragment and not line.predicted
    if left_over:
        line = msgspec.structs.replace(line, changes=("goes on without the others",))
    return msgspec.structs.replace(line, differs="") if line.leg == "error" or stolen or left_over else line


class _Observed(msgspec.Struct, frozen=True):
    """What became of a packet: where it was seen, in order, what the kernel says, and why it was not even sent."""

    seen: list[Seen]
    hops: list[Hop]
    evidence: Evidence
    refused: str = ""


def probe_for(question: Question, explanation: Explanation, identity: int | None = None) -> Probe:
    """The packet that a question is about; its source is the one that the kernel would choose."""
    number = identity if identity is not None else FIRST_IDENTITY + int.from_bytes(os.urandom(2), "big") % 20000
    six = family_of(question.destination) == 6
    probe = Probe(
        # Without a way there is no source either: the kernel is asked all the same, and says so.
        source=question.source_address or explanation.request.source or ("::" if six else "0.0.0.0"),
        destination=question.destination,
        identity=number,
        protocol=question.protocol,
        ttl=question.ttl,
        size_bytes=question.size_bytes,
        fixed_size=question.fixed_size,
    )
    return msgspec.structs.replace(probe, port=question.port) if question.port else probe


def trace(state: LabState, question: Question, timeout_s: float = 1.0) -> Trace:
    """Send one packet through a lab that this process has entered, and hold prediction and observation together."""
    question = msgspec.structs.replace(question, answer_bytes=answer_bytes(question))
    with lab_network(state) as network:
        told = explain(network, question)
        predicted = sightings(told.request, "request")
        predicted += sightings(told.reply, "answer") if told.reply else []
        found = _observe(state, question, told, predicted, timeout_s, network)
    lines = compare(predicted, _with_copies(predicted, found.seen))
    drop = told.request.drop or (told.reply.drop if told.reply else None)
    lines = [_without_consequences(line, drop) for line in lines]
    arrived = _reached(found.seen, "request", question.expected)
    answered = _reached(found.seen, "answer", question.netns)
    proof = _proof(question.netns, drop, found)
    cause = drop.sentence if drop else "" if answered else _unpredicted(found, arrived)
    return Trace(
        lab=state.name,
        source=told.request.source or question.source_address or "",
        destination=question.destination,
        protocol=question.protocol,
        size_bytes=question.size_bytes,
        fixed_size=question.fixed_size,
        ttl=question.ttl,
        ok=not (proof.contradicts or any(line.differs for line in lines)),
        arrived=arrived,
        answered=answered,
        lines=tuple(lines),
        cause=cause,
        proof=proof.confirms,
        contradiction=proof.contradicts,
        mend=f"{drop.netns}: {drop.mend}" if drop and drop.mend else "",
        refused=found.refused,
        counts=found.evidence.counts,
        verdicts=found.evidence.verdicts,
        untraced=found.evidence.untraced,
    )


def _proof(source: str, drop: Drop | None, found: _Observed) -> Proof:
    """What the kernel says of the drop that was predicted, or of none."""
    if found.refused:
        words = f"{source}'s own kernel refuses it: {found.refused}"
        return Proof(confirms=words) if drop and drop.netns == source else Proof(contradicts=words)
    if drop is None:
        return Proof()
    place = drop.lost_in or drop.netns
    if drop.cause == "not-here" and any(one.sighting.leg == "answer" for one in found.seen):
        return Proof(confirms=f"{place} answers, though the packet was not for it")
    came = not any(hop.drop == drop and hop.ttl_in is None for hop in found.hops)
    return weigh(drop, found.evidence, came and any(one.sighting.place == place for one in found.seen))


def _unpredicted(found: _Observed, arrived: bool) -> str:
    """Why a packet, or its answer, was lost of which that was not predicted: as far as the kernel tells."""
    if found.refused:
        return ""
    places = [one.sighting.place for one in reversed(found.seen)] + [hop.netns for hop in found.hops]
    told = unpredicted(found.evidence, list(dict.fromkeys(places)))
    if told or not found.seen:
        return told
    last = found.seen[-1].sighting
    if arrived and last.leg == "request":
        return ""  # nobody has to answer
    way = "out of" if last.outgoing else "into"
    return f"it was seen last going {way} {last.link} of {last.place}, and no counter and no rule says why"


def _observe(
    state: LabState,
    question: Question,
    told: Explanation,
    predicted: Sequence[Sighting],
    timeout_s: float,
    network: NamedSights,
) -> _Observed:
    """Send the packet; what was seen of it, and what the kernel says besides."""
    probe = probe_for(question, told)
    packet = encode_probe(probe)
    listener = Listener(state.name, probe)
    last = predicted[-1].key if predicted else None
    hops = list(_all_hops([*told.request.hops, *(told.reply.hops if told.reply else ())]))
    places = place_names(state)
    if len(places) > MANY_PLACES:
        places = list(dict.fromkeys(hop.netns for hop in hops))

    def is_last(frame: TapFrame) -> bool:
        return any(is_end(found.sighting) for found in listener.seen(frame))

    def is_end(one: Sighting) -> bool:
        told_off = one.leg == "error" and one.place == question.netns and not one.outgoing
        return told_off or one.key == last

    with (
        Witness(network, probe, hops, partial(netns_of, state.name)) as witness,
        Taps(netns_of(state.name, place) for place in places) as taps,
    ):
        try:
            _send(netns_of(state.name, question.netns), probe, packet)
        except OSError as error:
            return _Observed([], hops, witness.evidence(), error.strerror or str(error))
        # Where nothing is predicted to come back, waiting on just costs time; a little shows whether it is so.
        patience_s = timeout_s if told.reply is not None else min(timeout_s, 0.2)
        frames = taps.read(time.monotonic() + patience_s, is_last)
        frames += taps.read(time.monotonic() + SETTLE_S, lambda _: False)
        evidence = witness.evidence()
    frames.sort(key=lambda frame: frame.at_s)
    seen = [one for frame in frames for one in listener.seen(frame)]
    # Times count from the first sighting: how long the way out of this program took is of no interest.
    seen = [msgspec.structs.replace(one, at_s=one.at_s - seen[0].at_s) for one in seen]
    return _Observed(seen, hops, evidence)


def _send(netns: str, probe: Probe, packet: bytes) -> None:
    if probe.fixed_size:
        send_packet(netns, packet, probe.destination)
        return
    protocol, body = body_of(packet)
    send_body(netns, probe.source, probe.destination, protocol, probe.ttl, body)


def answer_bytes(question: Question) -> int:
    """How long the answer will be: an echo as long as its request, a reset, or an error that quotes the request.

    An ICMP error is of 576 bytes at most (RFC 1812, section 4.3.2.3), one of ICMPv6 of 1,280 (RFC 4443, section 2.4).
    """
    six = family_of(question.destination) == 6
    head = 40 if six else 20
    if question.protocol == "icmp":
        return question.size_bytes
    if question.protocol == "tcp":
        return head + 20
    return min(question.size_bytes + head + 8, 1280 if six else 576)


def _all_hops(hops: Iterable[Hop]) -> Iterable[Hop]:
    """The hops, and those of the packets that carry them."""
    for hop in hops:
        yield hop
        yield from _all_hops(hop.carried.hops if hop.carried else ())


def _with_copies(predicted: Sequence[Sighting], seen: Sequence[Seen]) -> list[Seen]:
    """What a bridge flooded: the very frame that goes its predicted way is also seen at other links."""
    keys = {one.key for one in predicted}
    on_the_way = {_frame(one) for one in seen if one.sighting.key in keys}
    return [
        msgspec.structs.replace(one, copy=one.sighting.key not in keys and _frame(one) in on_the_way) for one in seen
    ]


def _frame(one: Seen) -> tuple[str, str, str, int]:
    return one.sighting.leg, one.header.mac_source, one.header.mac_destination, one.header.innermost.ttl


def _reached(seen: Sequence[Seen], leg: Leg, place: str | None) -> bool:
    return any(
        one.sighting.leg == leg and one.sighting.place == place and not one.sighting.outgoing
        for one in seen
        if not one.sighting.carried
    )


def ladder(state: LabState, question: Question, timeout_s: float = 1.0) -> Ladder:
    """Send the packet with TTL 1, 2, ... until its destination answers."""
    rungs: list[Rung] = []
    source = ""
    for ttl in range(1, LONGEST_LADDER + 1):
        asked = msgspec.structs.replace(question, ttl=ttl)
        with lab_network(state) as network:
            told = explain(network, asked)
            source = source or told.request.source
            predicted = _predicted_voice(network, told, source)
            found = _observe(state, asked, told, sightings(told.request, "request"), timeout_s, network)
        voice = next(
            (one for one in found.seen if one.sighting.leg != "request" and one.sighting.place == question.netns), None
        )
        what = found.refused or (_what(voice.header.innermost) if voice else "nothing is heard")
        heard = voice.header.innermost.source if voice else ""
        differs = f"{predicted or 'nobody'} predicted, {heard or 'nobody'} heard" if predicted != heard else ""
        rungs.append(Rung(ttl=ttl, predicted=predicted, seen=heard, what=what, differs=differs))
        if voice is None or voice.sighting.leg == "answer":
            break
    ok = bool(rungs) and not any(rung.differs for rung in rungs)
    return Ladder(source=source, destination=question.destination, ok=ok, rungs=tuple(rungs))


def _predicted_voice(network: NamedSights, told: Explanation, source: str) -> str:
    """Who should answer: the destination, or the router that drops it, by the address that it speaks with."""
    drop = told.request.drop
    if drop is None:
        return told.request.destination if told.reply and told.reply.outcome == "arrives" else ""
    if drop.cause != "ttl-exceeded":
        return ""
    sight = network[drop.netns]
    return source_of(sight, lookup(sight, Query(destination=source))) or ""


def _what(header: Header) -> str:
    if header.quoted is None:
        return "answers"
    exceeded = (header.protocol, header.icmp_type) in (("icmp", 11), ("icmpv6", 3))
    return "time exceeded" if exceeded else f"ICMP type {header.icmp_type} code {header.icmp_code}"
