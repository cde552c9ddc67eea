"""What the probing packets carry, and the ICMP messages around it: bytes to values and back.

Theory of operation: every request carries a ``Tag`` (the run's random nonce, the cell, the protocol, the
attempt), so that stray packets and late answers of another run cannot be taken for ours. A UDP or TCP answer
repeats the tag and reports what the responder saw (``Sighting``). Checksums: IPv4's ICMP by us, the rest by
the kernel.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import NamedTuple

from muslin.model.address import Family

NONCE_BYTES = 8
TAG = struct.Struct("!8sIBB")
SIGHTING = struct.Struct("!B16sH16sBI")
TAG_BYTES = TAG.size
ANSWER_BYTES = TAG.size + SIGHTING.size
IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}
UDP_HEADER_BYTES = 8

ECHO_REQUEST: dict[Family, int] = {4: 8, 6: 128}  # RFC 792; RFC 4443 4.1
ECHO_REPLY: dict[Family, int] = {4: 0, 6: 129}
ERROR_TYPES: dict[Family, frozenset[int]] = {4: frozenset({3, 11, 12}), 6: frozenset({1, 2, 3, 4})}
PROTOCOL_NUMBER: dict[Family, int] = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
ADDRESS_FAMILY: dict[Family, socket.AddressFamily] = {4: socket.AF_INET, 6: socket.AF_INET6}

_ICMP_HEADER = struct.Struct("!BBHHH")

# What a person calls the message; RFC 792, RFC 1812 5.2.7, RFC 4443 3.
_ICMP_TEXTS: dict[tuple[Family, int, int], str] = {
    (4, 3, 0): "network unreachable",
    (4, 3, 1): "host unreachable",
    (4, 3, 2): "protocol unreachable",
    (4, 3, 3): "port unreachable",
    (4, 3, 4): "fragmentation needed",
    (4, 3, 9): "network administratively prohibited",
    (4, 3, 10): "host administratively prohibited",
    (4, 3, 13): "communication administratively prohibited",
    (4, 11, 0): "time to live exceeded in transit (a routing loop?)",
    (6, 1, 0): "no route to destination",
    (6, 1, 1): "communication administratively prohibited",
    (6, 1, 3): "address unreachable",
    (6, 1, 4): "port unreachable",
    (6, 1, 5): "source address failed policy",
    (6, 1, 6): "reject route to destination",
    (6, 2, 0): "packet too big",
    (6, 3, 0): "hop limit exceeded in transit (a routing loop?)",
}
_PORT_UNREACHABLE: dict[Family, tuple[int, int]] = {4: (3, 3), 6: (1, 4)}


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


class IcmpMessage(NamedTuple):
    """An ICMP or ICMPv6 message: ``body`` is what follows its 8 bytes of header."""

    type: int
    code: int
    identifier: int
    sequence: int
    body: bytes


def icmp_text(family: Family, icmp_type: int, code: int) -> str:
    """The name of an ICMP error."""
    return _ICMP_TEXTS.get((family, icmp_type, code), f"ICMP type {icmp_type} code {code}")


def is_port_unreachable(family: Family, icmp_type: int, code: int) -> bool:
    """Whether the message says that nobody listens, or that a firewall pretends so."""
    return _PORT_UNREACHABLE[family] == (icmp_type, code)


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


def encode_echo(family: Family, identifier: int, sequence: int, body: bytes) -> bytes:
    """An echo request; the checksum of ICMPv6 is the kernel's work (RFC 3542 3.1)."""
    icmp_type = ECHO_REQUEST[family]
    blank = _ICMP_HEADER.pack(icmp_type, 0, 0, identifier, sequence) + body
    if family == 6:
        return blank
    return _ICMP_HEADER.pack(icmp_type, 0, checksum(blank), identifier, sequence) + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def parse_icmp(data: bytes) -> IcmpMessage | None:
    """The message that begins ``data``; None when it is too short."""
    if len(data) < _ICMP_HEADER.size:
        return None
    icmp_type, code, _, identifier, sequence = _ICMP_HEADER.unpack_from(data)
    return IcmpMessage(icmp_type, code, identifier, sequence, data[_ICMP_HEADER.size :])


def parse_quoted_echo(family: Family, quoted: bytes) -> IcmpMessage | None:
    """The echo request that an ICMP error quotes; None when it quotes something else."""
    if family == 4:
        header, protocol = (quoted[0] & 15) * 4 if quoted else 20, quoted[9:10]
    else:
        header, protocol = IP_HEADER_BYTES[6], quoted[6:7]
    if protocol != bytes([PROTOCOL_NUMBER[family]]):
        return None
    message = parse_icmp(quoted[header:])
    return message if message is not None and message.type == ECHO_REQUEST[family] else None
