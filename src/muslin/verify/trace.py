"""Predict, then observe: one marked packet, and every link that it crosses.

Theory of operation: ``explain`` says where the packet and its answer should be seen; packet sockets in the lab's
namespaces (``kernel.tap``) say where they are. The packet is made whole by us and carries an identifier by which it and
all that answers it are known, also inside of a tunnel's packets. Listening ends when the answer is back at its source,
or an error is, or the time is up. A frame that a bridge floods is seen at ports where nobody takes it: a copy.

``ladder`` sends the packet with TTL 1, 2, 3, ... and tells who answers, beside who should: a router speaks with the
address from which it would reach the sender.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from muslin.explain.both import Question, explain
from muslin.explain.lookup import Query, lookup
from muslin.explain.named import NamedSights
from muslin.explain.path import Explanation, Hop
from muslin.explain.source import source_of
from muslin.explain.taps import Leg, Line, Seen, Sighting, compare, sightings
from muslin.kernel.tap import TapFrame, Taps, send_packet
from muslin.lab.enter import place_names
from muslin.lab.places import lab_network
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.wire.packet import Header, Inside, Probe, encode_probe, parse_frame

TUNNEL_PORTS: dict[int, Inside] = {9000: "ip", 8285: "ip", 8472: "vxlan", 4789: "vxlan"}
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
    ttl: int
    ok: bool
    arrived: bool
    answered: bool
    lines: tuple[Line, ...]
    cause: str = ""
    """Why it does not arrive, or its answer, in one sentence."""
    mend: str = ""
    refused: str = ""
    """What the source's own kernel said to it, where it would not send."""


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


class _Listener:
    """Turns frames into sightings of one probe and its answers."""

    def __init__(self, lab: str, probe: Probe) -> None:
        self.probe = probe
        self._prefix = netns_of(lab, "")

    def seen(self, frame: TapFrame) -> Seen | None:
        """What a frame shows of the probe or its answers; None when it is none of them."""
        header = parse_frame(frame.data, frame.ethernet, TUNNEL_PORTS)
        leg = self._leg(header.innermost) if header else None
        if header is None or leg is None:
            return None
        inner = header.innermost
        sighting = Sighting(
            leg=leg,
            place=frame.netns.removeprefix(self._prefix),
            link=frame.link,
            outgoing=frame.outgoing,
            ttl=inner.ttl,
            source=inner.source,
            destination=inner.destination,
            carried=header.inner is not None,
        )
        return Seen(sighting=sighting, header=header, at_s=frame.at_s)

    def _leg(self, header: Header) -> Leg | None:
        probe = self.probe
        if header.quoted is not None:
            ours = header.quoted.innermost.identity == probe.identity
            return None if not ours else "answer" if header.source == probe.destination else "error"
        if header.protocol in ("icmp", "icmpv6") and header.identity == probe.identity:
            return "request" if header.icmp_type in (8, 128) else "answer"
        if header.protocol == probe.protocol and header.source_port == probe.identity:
            return "request"
        if header.protocol == probe.protocol and header.destination_port == probe.identity:
            return "answer"
        return None


def probe_for(question: Question, explanation: Explanation, identity: int | None = None) -> Probe:
    """The packet that a question is about; its source is the one that the kernel would choose."""
    number = identity if identity is not None else FIRST_IDENTITY + int.from_bytes(os.urandom(2), "big") % 20000
    probe = Probe(
        source=question.source_address or explanation.request.source,
        destination=question.destination,
        identity=number,
        protocol=question.protocol,
        ttl=question.ttl,
        size_bytes=question.size_bytes,
    )
    return msgspec.structs.replace(probe, port=question.port) if question.port else probe


def trace(state: LabState, question: Question, timeout_s: float = 1.0) -> Trace:
    """Send one packet through a lab that this process has entered, and hold prediction and observation together."""
    with lab_network(state) as network:
        told = explain(network, question)
    predicted = sightings(told.request, "request")
    predicted += sightings(told.reply, "answer") if told.reply else []
    seen: list[Seen] = []
    refused = told.request.drop.sentence if not (told.request.source or question.source_address) else ""  # type: ignore[union-attr]
    if not refused:
        seen, refused = _observe(state, question, told, predicted, timeout_s)
    lines = compare(predicted, _with_copies(predicted, seen))
    # An ICMP error on its way back is no part of the prediction, and no difference either.
    lines = [msgspec.structs.replace(line, differs="") if line.leg == "error" else line for line in lines]
    drop = told.request.drop or (told.reply.drop if told.reply else None)
    return Trace(
        lab=state.name,
        source=told.request.source or question.source_address or "",
        destination=question.destination,
        protocol=question.protocol,
        size_bytes=question.size_bytes,
        ttl=question.ttl,
        ok=not any(line.differs for line in lines),
        arrived=_reached(seen, "request", question.expected),
        answered=_reached(seen, "answer", question.netns),
        lines=tuple(lines),
        cause=drop.sentence if drop else "",
        mend=f"{drop.netns}: {drop.mend}" if drop and drop.mend else "",
        refused=refused,
    )


def _observe(
    state: LabState, question: Question, told: Explanation, predicted: Sequence[Sighting], timeout_s: float
) -> tuple[list[Seen], str]:
    """What was seen, and what the own kernel said where it refused."""
    probe = probe_for(question, told)
    packet = encode_probe(probe)
    listener = _Listener(state.name, probe)
    last = predicted[-1].key if predicted else None
    with Taps(netns_of(state.name, place) for place in _places(state, told)) as taps:
        try:
            send_packet(netns_of(state.name, question.netns), packet, probe.destination)
        except OSError as error:
            return [], error.strerror or str(error)

        def is_last(frame: TapFrame) -> bool:
            found = listener.seen(frame)
            if found is None:
                return False
            one = found.sighting
            told_off = one.leg == "error" and one.place == question.netns and not one.outgoing
            return told_off or one.key == last

        # Where nothing is predicted to come back, waiting on just costs time; a little shows whether it is so.
        patience_s = timeout_s if told.reply is not None else min(timeout_s, 0.2)
        frames = taps.read(time.monotonic() + patience_s, is_last)
        frames += taps.read(time.monotonic() + SETTLE_S, lambda _: False)
    found = (listener.seen(frame) for frame in frames)
    seen = sorted((one for one in found if one), key=lambda one: one.at_s)
    # Times count from the first sighting: how long the way out of this program took is of no interest.
    return [msgspec.structs.replace(one, at_s=one.at_s - seen[0].at_s) for one in seen], ""


def _places(state: LabState, told: Explanation) -> list[str]:
    every = place_names(state)
    if len(every) <= MANY_PLACES:
        return every
    hops = [*told.request.hops, *(told.reply.hops if told.reply else ())]
    return list(dict.fromkeys(_names(hops)))


def _names(hops: Iterable[Hop]) -> Iterable[str]:
    for hop in hops:
        yield hop.netns
        if hop.carried:
            yield from _names(hop.carried.hops)


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
        seen, refused = _observe(state, asked, told, sightings(told.request, "request"), timeout_s)
        voice = next(
            (one for one in seen if one.sighting.leg != "request" and one.sighting.place == question.netns), None
        )
        what = refused or (_what(voice.header.innermost) if voice else "nothing is heard")
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
