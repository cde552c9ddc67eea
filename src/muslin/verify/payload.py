"""What the probing packets carry: bytes to values and back.

Theory of operation: every request carries a ``Tag`` (the run's random nonce, the cell, the protocol, the
attempt), so that stray packets and late answers of another run cannot be taken for ours. A UDP or TCP answer
repeats the tag and reports what the responder saw (``Sighting``). The ICMP messages around it are those of
``wire.icmp``.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import NamedTuple

NONCE_BYTES = 8
TAG = struct.Struct("!8sIBB")
SIGHTING = struct.Struct("!B16sH16sBI")
TAG_BYTES = TAG.size
ANSWER_BYTES = TAG.size + SIGHTING.size
UDP_HEADER_BYTES = 8


class Tag(NamedTuple):
    """Which exchange a packet belongs to."""

    nonce: bytes
    cell: int
    protocol: int
    attempt: int


class Sighting(NamedTuple):
    """What a responder saw of a request: addresses, source port, TTL (0: not known), bytes of payload."""

    source: str
    port: int
    destination: str
    ttl: int
    length: int


@lru_cache(maxsize=8192)
def address_text(packed: bytes) -> str:
    """An address of 4 or 16 bytes in canonical form; one string per address, however often it is seen."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


@lru_cache(maxsize=8192)
def canonical(address: str) -> str:
    """What ``recvfrom`` calls an address, without a zone; one string per address."""
    return address.partition("%")[0]


def encode_tag(tag: Tag, length: int = 0) -> bytes:
    """A request, padded with zeros to ``length`` bytes."""
    return TAG.pack(*tag).ljust(length, b"\0")


def parse_tag(data: bytes) -> Tag | None:
    """The tag at the start of ``data``; None when it is too short."""
    return Tag(*TAG.unpack_from(data)) if len(data) >= TAG_BYTES else None


def encode_answer(tag: Tag, sighting: Sighting) -> bytes:
    """The answer of a UDP or TCP responder."""
    source, destination = (_wide(address) for address in (sighting.source, sighting.destination))
    family = 6 if ":" in sighting.source else 4
    tail = SIGHTING.pack(family, source, sighting.port, destination, sighting.ttl, sighting.length)
    return TAG.pack(*tag) + tail


def parse_answer(data: bytes) -> tuple[Tag, Sighting] | None:
    """Tag and sighting of an answer; None when it is none."""
    tag = parse_tag(data)
    if tag is None or len(data) < ANSWER_BYTES:
        return None
    family, source, port, destination, ttl, length = SIGHTING.unpack_from(data, TAG_BYTES)
    size = 4 if family == 4 else 16
    return tag, Sighting(address_text(source[:size]), port, address_text(destination[:size]), ttl, length)


def _wide(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address).ljust(16, b"\0")
