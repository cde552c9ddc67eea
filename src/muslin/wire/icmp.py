"""ICMP and ICMPv6 echo and errors: bytes to values and back, for whoever probes.

Theory of operation: messages as RFC 792 and RFC 4443 lay them out. An echo request carries a body of the prober's own,
which the answer repeats; an error quotes the packet that it is about, at least so much of it that identifier and
sequence number are there. Checksums: IPv4's by us, IPv6's by the kernel (RFC 3542 section 3.1). A raw socket gets
every ICMP message of its namespace; ``encode_filter`` says which of them it wants.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from muslin.model.address import Family

IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}
ICMP_HEADER_BYTES = 8

ECHO_REQUEST: dict[Family, int] = {4: 8, 6: 128}  # RFC 792; RFC 4443 4.1
ECHO_REPLY: dict[Family, int] = {4: 0, 6: 129}
ERROR_TYPES: dict[Family, frozenset[int]] = {4: frozenset({3, 11, 12}), 6: frozenset({1, 2, 3, 4})}
PROTOCOL_NUMBER: dict[Family, int] = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
ADDRESS_FAMILY: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}

FILTER_OPTION: dict[Family, tuple[int, int]] = {4: (255, 1), 6: (socket.IPPROTO_ICMPV6, 1)}
"""Level and name for setsockopt: SOL_RAW and ICMP_FILTER of linux/icmp.h, ICMPV6_FILTER of linux/icmpv6.h."""

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
_TOO_BIG: dict[Family, tuple[int, int]] = {4: (3, 4), 6: (2, 0)}


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


def encode_filter(family: Family, passed: Iterable[int]) -> bytes:
    """The socket option that lets only these types through; 1 is "block" in both families."""
    words = [0xFFFFFFFF] * (1 if family == 4 else 8)
    for number in passed:
        words[number // 32] &= ~(1 << number % 32)
    return struct.pack(f"={len(words)}I", *words)


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


def quoted_mtu(family: Family, message: IcmpMessage) -> int | None:
    """The bytes that fit, as an error about a packet that is too big tells (RFC 1191 4, RFC 4443 3.2); None otherwise.

    0 where a router from before RFC 1191 tells nothing.
    """
    if (message.type, message.code) != _TOO_BIG[family]:
        return None
    return message.sequence if family == 4 else message.identifier << 16 | message.sequence
