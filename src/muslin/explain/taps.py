"""Where a packet should be seen: the way that was explained as a row of sightings, for taps to be held against.

Theory of operation: each hop passes links in a fixed order: in by a bridge port, then by the bridge; out by the link,
then by the bridge port. A packet that is carried leaves by the tunnel device, its outer packet has sightings of its
own, and it comes in again by the other side's device. ``compare`` puts prediction and observation side by side: each
sighting is predicted, seen, or both; where both, TTL and addresses must agree as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from muslin.explain.path import Cause, Hop, Path, Piece
from muslin.wire.packet import Header

Leg = Literal["request", "answer", "error"]
LOST_BEHIND: tuple[Cause, ...] = ("no-tunnel", "no-peer", "no-tunnel-entry")
"""What is lost behind the link that it left by: it is seen there."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A packet at a link: ``carried`` for one that is inside of another there."""

    leg: Leg
    place: str
    link: str
    outgoing: bool
    ttl: int
    source: str
    destination: str
    carried: bool = False
    size_bytes: int = 0
    offset_bytes: int = 0
    """Of a fragment: where its data begins; of one that is carried, in the packet inside."""
    outer_offset_bytes: int = 0

    @property
    def key(self) -> tuple[str, str, str, bool, bool, int, int]:
        """What makes two sightings the same."""
        offsets = self.offset_bytes, self.outer_offset_bytes
        return self.leg, self.place, self.link, self.outgoing, self.carried, *offsets


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """An observation: where, and all headers. ``at_s`` since it was first seen."""

    sighting: Sighting
    header: Header
    at_s: float
    copy: bool = False
    """A copy that a bridge sent by a port where the receiver is not."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a trace: prediction beside observation. ``differs`` says where they do not agree."""

    leg: Leg
    place: str
    link: str
    direction: Literal["in", "out"]
    predicted: bool
    seen: bool
    ttl: int
    source: str
    destination: str
    carried: bool = False
    at_us: int | None = None
    size_bytes: int = 0
    fragment: str = ""
    """Which part it is of a packet that was cut, in words; empty for a whole one."""
    stack: str = ""
    mac_source: str = ""
    mac_destination: str = ""
    outer_source: str = ""
    outer_destination: str = ""
    changes: tuple[str, ...] = ()
    """What is different from the sighting before, in words."""
    differs: str = ""


def sightings(path: Path, leg: Leg) -> list[Sighting]:
    """Where the packet of this path should be seen, in order."""
    return list(_of_hops(path.hops, leg))


def _of_hops(hops: Sequence[Hop], leg: Leg) -> Iterator[Sighting]:
    for hop in hops:
        yield from _of_hop(hop, leg)


def _of_hop(hop: Hop, leg: Leg, carrier: Hop | None = None) -> Iterator[Sighting]:
    """With a ``carrier``, the hop is the outer packet's: it is told with the addresses of the packet inside."""
    told = carrier or hop
    ends = {False: (told.source, told.destination)}
    ends[True] = told.left_as or ends[False]

    def at(link: str, outgoing: bool, ttl: int | None, pieces: tuple[Piece, ...]) -> Iterator[Sighting]:
        for piece in pieces or (Piece(size_bytes=hop.size_bytes),) if link else ():
            yield Sighting(
                leg=leg,
                place=hop.netns,
                link=link,
                outgoing=outgoing,
                ttl=(carrier.ttl_out if carrier else ttl) or 0,
                source=ends[outgoing or carrier is not None][0],
                destination=ends[outgoing or carrier is not None][1],
                carried=carrier is not None,
                size_bytes=piece.size_bytes,
                offset_bytes=piece.inner_offset_bytes if carrier else piece.offset_bytes,
                outer_offset_bytes=piece.offset_bytes if carrier else 0,
            )

    if (
        hop.entered and hop.entered == hop.left and hop.route is None
    ):  # a bridge that switches shows its frames at its ports alone
        yield from at(hop.port_in, False, hop.ttl_in, hop.pieces_in)
        yield from at(hop.port_out if hop.drop is None else "", True, hop.ttl_out, hop.pieces_out)
        return
    if hop.entered == "lo":
        yield from at("lo", True, hop.ttl_in, ())
    for link in (hop.port_in, hop.entered):
        yield from at(link, False, hop.ttl_in, hop.pieces_in)
    if hop.act != "takes" and (hop.drop is None or hop.drop.cause in LOST_BEHIND):
        for link in (hop.left, hop.port_out):
            yield from at(link, True, hop.ttl_out, hop.pieces_out)
    for outer in hop.carried.hops if hop.carried else ():
        yield from _of_hop(outer, leg, carrier=hop)


def compare(predicted: Sequence[Sighting], seen: Sequence[Seen]) -> list[Line]:
    """Prediction and observation, in the order of the prediction; what was not predicted comes last."""
    left = list(seen)
    lines: list[Line] = []
    before: Seen | None = None
    for one in predicted:
        found = next((other for other in left if other.sighting.key == one.key), None)
        if found is not None:
            left.remove(found)
        if before is not None and before.sighting.leg != one.leg:
            before = None
        lines.append(_line(one, found, before, True))
        before = found or before
    lines += [_line(one.sighting, one, None, False) for one in left]
    return lines


def _line(one: Sighting, found: Seen | None, before: Seen | None, predicted: bool) -> Line:
    header = found.header if found else None
    # Of a tunnel's packet that was cut itself, only the first piece shows what is inside.
    hidden = header is not None and one.carried and header.inner is None
    inner = header.innermost if header and not hidden else None
    outer = header if one.carried else None
    return Line(
        leg=one.leg,
        place=one.place,
        link=one.link,
        direction="out" if one.outgoing else "in",
        predicted=predicted,
        seen=found is not None,
        ttl=inner.ttl if inner else one.ttl,
        source=inner.source if inner else one.source,
        destination=inner.destination if inner else one.destination,
        carried=one.carried,
        at_us=round(found.at_s * 1e6) if found else None,
        size_bytes=header.size_bytes if header else one.size_bytes,
        fragment=_fragment(header, inner) if header else "",
        stack=header.stack if header else "",
        mac_source=header.mac_source if header else "",
        mac_destination=header.mac_destination if header else "",
        outer_source=outer.source if outer else "",
        outer_destination=outer.destination if outer else "",
        changes=tuple(_changes(before.header, header)) if before and header and not hidden else (),
        differs=_difference(one, found, predicted),
    )


def _difference(one: Sighting, found: Seen | None, predicted: bool) -> str:
    if found is None:
        return "predicted, not seen"
    if not predicted:
        return "" if found.copy else "seen, not predicted"
    header = found.header
    sized = one.leg != "error" and one.size_bytes and header.size_bytes != one.size_bytes
    parts = [f"{one.size_bytes} bytes predicted, {header.size_bytes} seen"] if sized else []
    if one.carried and header.inner is None:
        return "; ".join(parts)
    inner = header.innermost
    parts += [f"TTL {one.ttl} predicted, {inner.ttl} seen"] if inner.ttl != one.ttl else []
    if one.leg != "error" and (inner.source, inner.destination) != (one.source, one.destination):
        ways = f"{one.source} > {one.destination} predicted, {inner.source} > {inner.destination} seen"
        parts.append(ways)
    return "; ".join(parts)


def _fragment(header: Header, inner: Header | None) -> str:
    """Which part of a cut packet this is, of the packet inside where that was cut; empty for a whole one."""
    cut = inner if inner and inner.fragment_id is not None else header
    if cut.fragment_id is None:
        return ""
    end = cut.offset_bytes + cut.data_bytes
    what = "the tunnel's packet, bytes" if cut is header and header is not inner else "bytes"
    return f"fragment, {what} {cut.offset_bytes} to {end}{'' if cut.more_fragments else ', the last'}"


def _changes(before: Header, now: Header) -> Iterator[str]:
    """The headers that are not what they were one link earlier."""
    if (before.mac_source, before.mac_destination) != (now.mac_source, now.mac_destination) and now.mac_source:
        yield f"MAC {now.mac_source} > {now.mac_destination}"
    old, new = before.innermost, now.innermost
    if old.ttl != new.ttl:
        yield f"TTL {old.ttl} → {new.ttl}"
    if (old.source, old.destination) != (new.source, new.destination):
        yield f"addresses {old.source} > {old.destination} → {new.source} > {new.destination}"
    if now.inner and not before.inner:
        kind = "vxlan" if now.carries == "vxlan" else "UDP"
        yield f"wrapped in {kind} {now.source} > {now.destination}, +{now.size_bytes - new.size_bytes} bytes"
    if before.inner and not now.inner:
        yield "unwrapped"
