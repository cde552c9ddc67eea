"""Cut packets: in which pieces one goes on that is longer than a link takes, and may be cut.

Theory of operation: IPv4 (RFC 791) lets each router cut, and what was cut is cut again; IPv6 (RFC 8200) only the
source, and each piece has a fragment header of 8 bytes. A piece's data begins at a multiple of 8, so that all but the
last hold a multiple of 8 bytes (net/ipv4/ip_output.c, ip_do_fragment; net/ipv6/ip6_output.c, ip6_fragment). The
destination puts them together again. A tunnel takes each piece as a packet of its own.

Not handled: IP options, and connection tracking, which puts pieces together on the way and cuts the packet anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muslin.explain.path import Piece

HEADER_BYTES = {4: 20, 6: 40}
FRAGMENT_HEADER_BYTES = {4: 0, 6: 8}


def cut(pieces: Sequence[Piece], mtu: int, family: int) -> tuple[Piece, ...]:
    """The same packets for a link of this MTU in bytes, those that are too long in pieces."""
    return tuple(smaller for piece in pieces for smaller in _cut_one(piece, mtu, family))


def _cut_one(piece: Piece, mtu: int, family: int) -> Iterator[Piece]:
    if piece.size_bytes <= mtu:
        yield piece
        return
    head = HEADER_BYTES[family]
    data = piece.size_bytes - head
    head += FRAGMENT_HEADER_BYTES[family]
    step = (mtu - head) // 8 * 8
    for start in range(0, data, step):
        yield Piece(
            size_bytes=head + min(step, data - start),
            offset_bytes=piece.offset_bytes + start,
            inner_offset_bytes=piece.inner_offset_bytes,
        )


def carried(pieces: Sequence[Piece], overhead_bytes: int, nested: bool) -> tuple[Piece, ...]:
    """The outer packets of a tunnel that takes these; ``nested``: they are such packets already."""
    return tuple(
        Piece(
            size_bytes=piece.size_bytes + overhead_bytes,
            inner_offset_bytes=piece.inner_offset_bytes if nested else piece.offset_bytes,
        )
        for piece in pieces
    )
