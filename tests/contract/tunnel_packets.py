"""Packets for the tunnel contract: built, completed."""

from __future__ import annotations

import ipaddress
import socket
import struct


def inner_packet(source: str, destination: str, payload: bytes) -> bytes:
    """Build a packet of protocol 253 (for experiments, RFC 3692)."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(payload), 253, 64) + ends + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, 253, 0) + ends
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:] + payload


def with_udp_checksum(packet: bytes) -> bytes:
    """Return a UDP packet (no options, no extension headers) with its checksum in place.

    A tap on a device that can compute checksums shows packets that wait for theirs.
    """
    start = 20 if packet[0] >> 4 == 4 else 40
    ends = packet[12:20] if start == 20 else packet[8:40]
    data = packet[start : start + 6] + bytes(2) + packet[start + 8 :]
    words = ends + struct.pack("!HH", len(data), socket.IPPROTO_UDP) + data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF or 0xFFFF
    return packet[: start + 6] + struct.pack("!H", checksum) + packet[start + 8 :]
