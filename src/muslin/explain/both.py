"""There and back: the request's way, the answer's, and where they differ.

Theory of operation: the answer begins where the request was taken, with source and destination changed over. Most
faults sit on the way back, so that it is always shown. The two differ where a namespace takes the answer in by another
link than it sent the request out by, or where another namespace is on the way.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from muslin.errors import UsageError
from muslin.explain.frames import Network
from muslin.explain.lookup import Query, lookup, why_not
from muslin.explain.parcel import Parcel
from muslin.explain.path import Explanation, Hop, Path
from muslin.explain.walk import Walk, path_of
from muslin.model.address import family_of


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """From where to where. ``source_address`` None leaves the choice to the kernel, ``expected`` is who should take it.

    ``port`` is the destination's, for tcp and udp; ``size_bytes`` that of the whole IP packet.
    """

    netns: str
    destination: str
    source_address: str | None = None
    expected: str | None = None
    protocol: str = "icmp"
    port: int | None = None
    size_bytes: int = 84
    ttl: int = 64
    fixed_size: bool = True
    """Whether it must not be cut (DF); where it may, an IPv6 packet is cut by its source alone."""
    answer_bytes: int | None = None
    """Of the answer; None for as many as the request."""
    why_not: str = ""


def with_packet(question: Question, **packet: object) -> Question:
    """The question about such a packet (fields of ``Question``); UsageError where its ends differ in family."""
    source, destination = question.source_address, question.destination
    if source is not None and family_of(source) != family_of(destination):
        raise UsageError(f"{source} and {destination} are of different families", "give two of one family")
    return msgspec.structs.replace(question, **packet)


def explain(network: Network, question: Question) -> Explanation:
    """Both directions; the answer's only where the request arrives."""
    parcel = Parcel(
        destination=question.destination,
        source=question.source_address or "",
        protocol=question.protocol,
        port=question.port,
        size_bytes=question.size_bytes,
        fixed_size=question.fixed_size,
        ttl=question.ttl,
    )
    there = Walk(network, expected=question.expected)
    there.start(question.netns, parcel)
    request = path_of(there, question.source_address or "", parcel)
    told = explain_why_not(network, question, request) if question.why_not else ""
    if there.taken_by is None:
        return Explanation(request=request, why_not=told, unseen=_unseen(network, request))
    answer = Parcel(
        destination=there.parcel.source,
        source=there.parcel.destination,
        protocol=question.protocol,
        port=question.port,
        size_bytes=question.answer_bytes or question.size_bytes,
        # The kernel lets its echo replies be cut (net/ipv4/icmp.c, icmp_sk_init: IP_PMTUDISC_DONT).
        fixed_size=question.fixed_size and question.protocol != "icmp",
        reply=True,
    )
    back = Walk(network, translations=tuple(there.translations), expected=question.netns)
    back.start(there.taken_by, answer)
    reply = path_of(back, answer.source, answer)
    return Explanation(
        request=request,
        reply=reply,
        differs=tuple(differences(request, reply)),
        why_not=told,
        unseen=_unseen(network, request, reply),
    )


def _unseen(network: Network, *paths: Path) -> tuple[str, ...]:
    """What the namespaces on the way would not show."""
    places = dict.fromkeys(hop.netns for path in paths for hop in path.hops)
    return tuple(dict.fromkeys(f"{what} of {place}" for place in places for what in network[place].unseen))


def explain_why_not(network: Network, question: Question, path: Path) -> str:
    """Why a route lost, in the first namespace on the way that has one of that name (``NETNS:ROUTE`` names another)."""
    place, _, wanted = question.why_not.rpartition("@")
    told = ""
    for hop in path.hops:
        if hop.act == "switches" or place not in ("", hop.netns):
            continue
        sight = network[hop.netns]
        query = Query(
            destination=path.destination, source=hop.source or None, iif=hop.entered if hop.entered != "lo" else ""
        )
        words = why_not(sight, lookup(sight, query), wanted)
        told = f"{hop.netns}: {words}"
        if not words.startswith("there is no route"):
            return told
    return told or f"{place} is not on the way"


def differences(request: Path, reply: Path) -> Iterator[str]:
    """Where the way back is not the way there."""
    if request.arrived_as != request.source:
        yield f"the request is sent as {request.source} and seen as {request.arrived_as}: NAT"
    there, back = _routed(request), _routed(reply)
    if reply.outcome == "arrives" and [one.netns for one in there] != [one.netns for one in reversed(back)]:
        yield f"there by {_names(there)}, back by {_names(back)}"
    for hop in there:
        other = next((one for one in back if one.netns == hop.netns), None)
        if other is None:
            continue
        if hop.left and other.entered and hop.left != other.entered:
            yield f"{hop.netns} sends the request out by {hop.left}, and the answer comes in by {other.entered}"
        if hop.entered and other.left and hop.entered != other.left and "lo" not in (hop.entered, other.left):
            yield f"the request comes into {hop.netns} by {hop.entered}, and the answer leaves by {other.left}"


def _routed(path: Path) -> list[Hop]:
    return [hop for hop in path.hops if hop.act != "switches"]


def _names(hops: list[Hop]) -> str:
    return ", ".join(hop.netns for hop in hops)
