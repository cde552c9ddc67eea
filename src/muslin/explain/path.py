"""The way of a packet as a value: what is printed, drawn, compared with taps and read by programs.

Theory of operation: a ``Path`` is a row of hops. A hop is one namespace whose kernel decided something: it sent the
packet, forwarded it at layer 3, switched it at layer 2, or took it. Where the packet travels inside of another one, the
hop that put it in has a ``Carriage`` with the outer packet's own hops. The last hop of a packet that does not arrive
holds the ``Drop``: what happened, at which object, and what would mend it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muslin.explain.types import RouteType

Act = Literal["sends", "forwards", "switches", "takes", "drops", "hands over"]
Cause = Literal[
    "no-route", "refusing-route", "no-source", "forwarding-off", "reverse-path", "martian", "filter", "link-down",
    "no-neighbour", "wrong-mac", "lost-frame", "ttl-exceeded", "too-big", "no-tunnel", "no-peer", "unknown-peer",
    "nobody-listens", "no-tunnel-entry", "loop", "ping-ignored", "not-here", "unplugged", "nat",
    "black-hole", "bad-checksum", "unpredicted",
]  # fmt: skip


class RouteChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The route that matched, as one of the talk's types, and why it won."""

    type: RouteType
    text: str
    """As ip-route(8) prints it."""
    destination: str
    table: str
    metric: int
    protocol: str
    rule: int
    """The priority of the policy rule that named the table."""
    why: str
    via: str | None = None
    link: str = ""


class Drop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a packet gets no further. ``object`` is what is at fault, ``mend`` the command that would help."""

    cause: Cause
    netns: str
    object: str
    sentence: str
    mend: str = ""
    told: str = ""
    """What the sender hears of it; empty where it hears nothing."""
    lost_in: str = ""
    """The namespace that drops it, where the fault is in another one (``netns``)."""


class Piece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fragment: the bytes of the whole IP packet that it is, and where its data begins in that of the one cut."""

    size_bytes: int
    offset_bytes: int = 0
    inner_offset_bytes: int = 0
    """In a tunnel: where the data of the fragment begins that it carries."""


class Hop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One namespace on the way. Sizes in bytes; ``ttl_in`` is None where the packet begins.

    ``entered`` and ``left`` are links; ``port_in`` and ``port_out`` the bridge ports where those links are bridges.
    """

    netns: str
    act: Act
    source: str
    destination: str
    entered: str = ""
    port_in: str = ""
    left: str = ""
    port_out: str = ""
    ttl_in: int | None = None
    ttl_out: int | None = None
    size_bytes: int = 0
    pieces_in: tuple[Piece, ...] = ()
    """The fragments that the packet comes in, and goes out in; none where it is whole."""
    pieces_out: tuple[Piece, ...] = ()
    mtu: int | None = None
    """Of the link that it leaves by, or less where the route or a learned path MTU says so."""
    route: RouteChoice | None = None
    left_as: tuple[str, str] | None = None
    """Source and destination that it leaves with, where NAT has changed them here."""
    next_hop: str = ""
    neighbour: str = ""
    """Which MAC the frame goes to, and how that is known; or what a bridge decided."""
    checks: tuple[str, ...] = ()
    """What was asked of settings and packet filter, and answered."""
    notes: tuple[str, ...] = ()
    carried: Carriage | None = None
    drop: Drop | None = None

    @property
    def room_bytes(self) -> int | None:
        """How much longer the packet, or the longest of its pieces, could be."""
        longest = max((piece.size_bytes for piece in self.pieces_out), default=self.size_bytes)
        return None if self.mtu is None else self.mtu - longest


class Carriage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A packet inside of another: what carries it, the outer addresses, the bytes that this adds."""

    kind: Literal["vxlan", "udp"]
    source: str
    destination: str
    port: int
    overhead_bytes: int
    how: str
    """Why it goes to this outer destination."""
    hops: tuple[Hop, ...] = ()
    vni: int | None = None


class Path(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The way of one packet, from ``source`` to ``destination``."""

    source: str
    destination: str
    protocol: str
    size_bytes: int
    outcome: Literal["arrives", "dropped", "leaves"]
    """``leaves``: by a link whose other end was not seen."""
    hops: tuple[Hop, ...] = ()
    arrived_as: str = ""
    """The source address that the destination sees; differs from ``source`` under NAT."""
    ended_in: str = ""
    """The namespace of the last hop."""
    nat: tuple[Drop, ...] = ()
    """Each translation on the way, told like a drop: the packet goes on, and is no longer what was sent."""

    @property
    def drop(self) -> Drop | None:
        """What ended the packet, wherever in it."""
        return next((drop for hop in self.hops if (drop := drop_of(hop))), None)

    @property
    def ttl(self) -> int | None:
        """The TTL that the destination sees."""
        last = self.hops[-1] if self.hops else None
        return (last.ttl_in if last.ttl_in is not None else last.ttl_out) if last else None


def drop_of(hop: Hop) -> Drop | None:
    """The drop of a hop or of the outer packet that carries it."""
    if hop.drop:
        return hop.drop
    return next((drop for one in hop.carried.hops if (drop := drop_of(one))), None) if hop.carried else None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Both directions. ``reply`` is None where the request does not arrive."""

    schema: Literal["muslin.explain/v1"] = "muslin.explain/v1"
    request: Path
    reply: Path | None = None
    differs: tuple[str, ...] = ()
    """Where the way back is not the way there, in words."""
    why_not: str = ""
    unseen: tuple[str, ...] = ()
    """What could not be looked at for want of rights, and so is not reckoned with."""

    @property
    def ok(self) -> bool:
        """Whether request and answer arrive."""
        return self.request.outcome == "arrives" and self.reply is not None and self.reply.outcome == "arrives"
