"""Packets on the wire: headers to values, and a probe to bytes.

Theory of operation: ``parse_frame`` reads Ethernet (RFC 894, where a device has it), IPv4 (RFC 791), IPv6 (RFC 8200,
without extension headers but the fragment's), then ICMP, TCP or UDP, and goes on inside of a UDP port that is known to
carry packets: vxlan (RFC 7348) or plain IP, as the udp backend has it. The result is a chain of ``Header``, the
outermost first. What is cut off or of another kind ends the chain; nothing is raised, since anything may come by a tap.
``encode_probe`` makes a whole IP packet with all checksums, marked by an identifier that its answers repeat.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

import msgspec

from muslin.model.address import family_of, packed
from muslin.wire.icmp import checksum

ETHERNET_BYTES = 14
ETHERTYPES = {0x0800: 4, 0x86DD: 6}
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
UDP_HEADER_BYTES = 8
VXLAN_BYTES = 8
ERROR_TYPES = {"icmp": (3, 11, 12), "icmpv6": (1, 2, 3, 4)}
FRAGMENT_HEADER = 44
MORE_FRAGMENTS = 0x2000  # of IPv4's flags and offset, RFC 791
OFFSET_MASK = 0x1FFF  # in eights of bytes
HEADER_BYTES = {"icmp": 8, "icmpv6": 8, "udp": 8, "tcp": 20}

Inside = Literal["vxlan", "ip"]


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One IP packet, with the Ethernet header ahead of it if it has one, and what it carries.

    ``identity`` tells a probe and its answers from everything else: the ICMP identifier, or the prober's port.
    """

    source: str
    destination: str
    ttl: int
    size_bytes: int
    protocol: str
    mac_source: str = ""
    mac_destination: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    identity: int | None = None
    fragment_id: int | None = None
    """Of a fragment: what all pieces of its packet have in common besides the addresses."""
    more_fragments: bool = False
    offset_bytes: int = 0
    data_bytes: int = 0
    """What follows the IP headers."""
    told_mtu: int | None = None
    quoted: Header | None = None
    """The packet that an ICMP error is about."""
    carries: Inside | None = None
    inner: Header | None = None

    @property
    def innermost(self) -> Header:
        """The packet that is not a carrier."""
        return self.inner.innermost if self.inner else self

    @property
    def stack(self) -> str:
        """``eth:ip:udp:vxlan:eth:ip:icmp``, as tshark's frame.protocols."""
        words = ["eth"] if self.mac_source else []
        words += ["ipv6" if ":" in self.source else "ip", self.protocol]
        if self.inner:
            words += ["vxlan"] if self.carries == "vxlan" else []
            words.append(self.inner.stack)
        return ":".join(words)


def parse_frame(data: bytes, ethernet: bool, tunnels: dict[int, Inside]) -> Header | None:
    """The headers of a frame; None when no IP packet is in it. ``tunnels``: what is inside of which UDP port."""
    if not ethernet:
        return parse_ip(data, tunnels)
    if len(data) < ETHERNET_BYTES or int.from_bytes(data[12:14], "big") not in ETHERTYPES:
        return None
    found = parse_ip(data[ETHERNET_BYTES:], tunnels)
    if found is None:
        return None
    return msgspec.structs.replace(found, mac_destination=data[0:6].hex(":"), mac_source=data[6:12].hex(":"))


def parse_segments(data: bytes, ethernet: bool, tunnels: dict[int, Inside]) -> list[Header]:
    """The same for each packet of a frame: a tunnel may hand the kernel many datagrams as one (UDP_SEGMENT, udp(7)).

    Such a frame is cut only when it leaves the machine. Inside, one IP packet follows the other, and each says its
    length; what is read here is what the wire would show.
    """
    first = parse_frame(data, ethernet, tunnels)
    if first is None:
        return []
    if first.carries != "ip" or first.inner is None:
        return [first]
    found = []
    start = (ETHERNET_BYTES if ethernet else 0) + first.size_bytes - first.data_bytes + UDP_HEADER_BYTES
    inner: Header | None = first.inner
    while inner is not None and inner.size_bytes:
        size = first.size_bytes - first.data_bytes + UDP_HEADER_BYTES + inner.size_bytes
        found.append(msgspec.structs.replace(first, inner=inner, size_bytes=size))
        start += inner.size_bytes
        inner = parse_ip(data[start:], tunnels)
    return found


def parse_ip(data: bytes, tunnels: dict[int, Inside]) -> Header | None:
    """The headers of an IP packet."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        start, size = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        identification, flags = struct.unpack_from("!HH", data, 4)
        cut = bool(flags & (MORE_FRAGMENTS | OFFSET_MASK))
        found = Header(
            source=socket.inet_ntop(socket.AF_INET, data[12:16]),
            destination=socket.inet_ntop(socket.AF_INET, data[16:20]),
            ttl=data[8],
            size_bytes=size,
            protocol=PROTOCOLS.get(data[9], str(data[9])),
            fragment_id=identification if cut else None,
            more_fragments=bool(flags & MORE_FRAGMENTS),
            offset_bytes=(flags & OFFSET_MASK) * 8,
            data_bytes=size - start,
        )
    elif version == 6 and len(data) >= 40:
        start, size = 40, 40 + int.from_bytes(data[4:6], "big")
        found = Header(
            source=socket.inet_ntop(socket.AF_INET6, data[8:24]),
            destination=socket.inet_ntop(socket.AF_INET6, data[24:40]),
            ttl=data[7],
            size_bytes=size,
            protocol=PROTOCOLS.get(data[6], str(data[6])),
            data_bytes=size - start,
        )
        if data[6] == FRAGMENT_HEADER and len(data) >= 48:
            start, found = 48, _with_fragment_header(found, data[40:48])
    else:
        return None
    return found if found.offset_bytes else _parse_transport(found, data[start:], tunnels)


def _with_fragment_header(found: Header, data: bytes) -> Header:
    """RFC 8200, section 4.5: next header, reserved, offset in eights of bytes with the flags in its last bits."""
    protocol, offset, identification = struct.unpack("!BxHI", data)
    return msgspec.structs.replace(
        found,
        protocol=PROTOCOLS.get(protocol, str(protocol)),
        fragment_id=identification,
        more_fragments=bool(offset & 1),
        offset_bytes=offset & ~7,
        data_bytes=found.data_bytes - 8,
    )


def _parse_transport(found: Header, data: bytes, tunnels: dict[int, Inside]) -> Header:
    if len(data) < 8:
        return found
    if found.protocol in ERROR_TYPES:
        return _parse_icmp(found, data, tunnels)
    if found.protocol not in ("tcp", "udp"):
        return found
    ports = struct.unpack_from("!HH", data)
    found = msgspec.structs.replace(found, source_port=ports[0], destination_port=ports[1], identity=ports[0])
    kind = tunnels.get(ports[1]) if found.protocol == "udp" else None
    inner = None
    if kind == "vxlan":
        inner = parse_frame(data[8 + VXLAN_BYTES :], True, tunnels)
    elif kind == "ip":
        inner = parse_ip(data[8:], tunnels)
    return msgspec.structs.replace(found, inner=inner, carries=kind) if inner else found


def _parse_icmp(found: Header, data: bytes, tunnels: dict[int, Inside]) -> Header:
    kind, code = data[0], data[1]
    if kind not in ERROR_TYPES[found.protocol]:
        identity = int.from_bytes(data[4:6], "big")
        return msgspec.structs.replace(found, icmp_type=kind, icmp_code=code, identity=identity)
    told = int.from_bytes(data[6:8] if found.protocol == "icmp" else data[4:8], "big")
    too_big = (kind, code) == (3, 4) if found.protocol == "icmp" else kind == 2
    quoted = parse_ip(data[8:], tunnels)
    return msgspec.structs.replace(
        found,
        icmp_type=kind,
        icmp_code=code,
        quoted=quoted,
        identity=quoted.identity if quoted else None,
        told_mtu=told if too_big else None,
    )


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A packet to send. ``size_bytes`` of the whole; ``identity`` is the ICMP identifier or the source port."""

    source: str
    destination: str
    identity: int
    protocol: str = "icmp"
    port: int = 33434  # where traceroute begins: nobody listens, so that an ICMP error answers
    ttl: int = 64
    size_bytes: int = 84
    fixed_size: bool = True


def encode_probe(probe: Probe) -> bytes:
    """The whole IP packet; ValueError where the size is too small for its headers."""
    six = family_of(probe.destination) == 6
    protocol = "icmpv6" if six and probe.protocol == "icmp" else probe.protocol
    head = 40 if six else 20
    length = probe.size_bytes - head
    if length < HEADER_BYTES[protocol]:
        raise ValueError(f"{probe.size_bytes} bytes are too few: {head + HEADER_BYTES[protocol]} is the least")
    source, destination = packed(probe.source), packed(probe.destination)
    body = _encode_transport(probe, protocol, source, destination, length)
    if six:
        return struct.pack("!IHBB", 6 << 28, length, NUMBERS[protocol], probe.ttl) + source + destination + body
    flags = 0x4000 if probe.fixed_size else 0
    blank = struct.pack("!BBHHHBBH", 0x45, 0, probe.size_bytes, probe.identity, flags, probe.ttl, NUMBERS[protocol], 0)
    header = blank + source + destination
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def body_of(packet: bytes) -> tuple[int, bytes]:
    """(protocol number, what follows the IP header) of a packet that ``encode_probe`` made."""
    return (packet[6], packet[40:]) if packet[0] >> 4 == 6 else (packet[9], packet[20:])


def _encode_transport(probe: Probe, protocol: str, source: bytes, destination: bytes, length: int) -> bytes:
    data = (b"muslin trace " * (length // 13 + 1))[: length - HEADER_BYTES[protocol]]
    if protocol in ("icmp", "icmpv6"):
        head = struct.pack("!BBHHH", 8 if protocol == "icmp" else 128, 0, 0, probe.identity, 1)
        place = 2
    elif protocol == "udp":
        head, place = struct.pack("!HHHH", probe.identity, probe.port, length, 0), 6
    else:  # a SYN, as any client begins
        head, place = struct.pack("!HHIIBBHHH", probe.identity, probe.port, 1, 0, 0x50, 0x02, 64240, 0, 0), 16
    segment = head + data
    pseudo = source + destination + struct.pack("!II", length, NUMBERS[protocol])
    total = checksum(segment if protocol == "icmp" else pseudo + segment)
    return segment[:place] + (total or 0xFFFF).to_bytes(2, "big") + segment[place + 2 :]
