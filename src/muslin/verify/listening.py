"""Which frames belong to a probe: it, its answers, errors about it, and the pieces of all of them.

Theory of operation: a probe carries an identifier that its answers and errors about it repeat, also inside of a
tunnel's packets. Of a packet that was cut, only the first piece shows it; the others are known by what all pieces have
in common: addresses, protocol and identification (RFC 791, RFC 8200). So a listener learns from first pieces, and
whoever hands it all frames in the order of time gets the others too.
"""

from __future__ import annotations

import msgspec

from muslin.explain.taps import Leg, Seen, Sighting
from muslin.kernel.tap import TapFrame
from muslin.lab.plan import netns_of
from muslin.wire.packet import Header, Inside, Probe, parse_segments

TUNNEL_PORTS: dict[int, Inside] = {9000: "ip", 8285: "ip", 8472: "vxlan", 4789: "vxlan"}

PieceKey = tuple[str, str, str, int | None]


class _Whole(msgspec.Struct, frozen=True):
    """What is known of a packet by its first piece: in a tunnel, also which piece it carries."""

    leg: Leg
    carried: bool
    inner_offset_bytes: int


class Listener:
    """Turns the frames of one lab into sightings of one probe and its answers."""

    def __init__(self, lab: str, probe: Probe) -> None:
        self.probe = probe
        self._prefix = netns_of(lab, "")
        self._known: dict[PieceKey, _Whole] = {}

    def seen(self, frame: TapFrame) -> list[Seen]:
        """What a frame shows of the probe or its answers; nothing when it is none of them."""
        headers = parse_segments(frame.data, frame.ethernet, TUNNEL_PORTS)
        return [one for header in headers if (one := self._seen(frame, header))]

    def _seen(self, frame: TapFrame, header: Header) -> Seen | None:
        whole = self._whole(header)
        if whole is None:
            return None
        inner = header.innermost
        sighting = Sighting(
            leg=whole.leg,
            place=frame.netns.removeprefix(self._prefix),
            link=frame.link,
            outgoing=frame.outgoing,
            ttl=inner.ttl,
            source=inner.source,
            destination=inner.destination,
            carried=whole.carried,
            offset_bytes=whole.inner_offset_bytes if whole.carried else header.offset_bytes,
            outer_offset_bytes=header.offset_bytes if whole.carried else 0,
        )
        return Seen(sighting=sighting, header=header, at_s=frame.at_s)

    def _whole(self, header: Header) -> _Whole | None:
        """The packet that this header begins, or is a later piece of."""
        if header.offset_bytes:
            return self._known.get(_key(header))
        inner = header.innermost
        if inner.offset_bytes:
            first = self._known.get(_key(inner))
            leg = first.leg if first else None
        else:
            leg = self._leg(inner)
        if leg is None:
            return None
        whole = _Whole(leg, header.inner is not None, inner.offset_bytes)
        if header.fragment_id is not None:
            self._known[_key(header)] = whole
        if inner.fragment_id is not None and not inner.offset_bytes and inner is not header:
            self._known.setdefault(_key(inner), _Whole(leg, False, 0))
        return whole

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


def _key(header: Header) -> PieceKey:
    return header.source, header.destination, header.protocol, header.fragment_id
