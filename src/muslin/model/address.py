"""Addresses and prefixes as canonical strings, and the few sums that are done with them.

Theory of operation: kernel objects carry addresses as text in canonical form (``172.16.0.1``, ``172.16.0.0/24``,
``fd00::1``), because text compares, hashes and prints for nothing. The family is part of the value: a colon means
IPv6. Whatever enters Muslin passes ``parse_address``, ``parse_prefix`` or ``parse_interface`` once.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from typing import Literal

Family = Literal[4, 6]

FAMILIES: tuple[Family, ...] = (4, 6)

DEFAULT_PREFIX: dict[Family, str] = {4: "0.0.0.0/0", 6: "::/0"}
HOST_BITS: dict[Family, int] = {4: 32, 6: 128}


def family_of(address: str) -> Family:
    """The family, 4 or 6, of an address, interface address or prefix."""
    return 6 if ":" in address else 4


def parse_address(text: str) -> str:
    """A single address in canonical form; ValueError when ``text`` is none."""
    return str(ipaddress.ip_address(text))


def parse_prefix(text: str) -> str:
    """A network such as ``172.16.0.0/24`` in canonical form; ValueError when host bits are set."""
    return str(ipaddress.ip_network(text, strict=True))


def parse_interface(text: str) -> str:
    """An address with its prefix length, such as ``172.16.0.1/24``, in canonical form."""
    return str(ipaddress.ip_interface(text))


def address_part(interface: str) -> str:
    """``172.16.0.1`` of ``172.16.0.1/24``."""
    return interface.partition("/")[0]


def prefix_length(prefix: str) -> int:
    """24 of ``172.16.0.0/24``; an address alone counts as a host prefix."""
    _, slash, length = prefix.partition("/")
    return int(length) if slash else HOST_BITS[family_of(prefix)]


def host_prefix(address: str) -> str:
    """``172.16.0.1/32`` of ``172.16.0.1``; ``fd00::1/128`` of ``fd00::1``."""
    return f"{address}/{HOST_BITS[family_of(address)]}"


def network_of(interface: str) -> str:
    """``172.16.0.0/24`` of ``172.16.0.1/24``."""
    return str(ipaddress.ip_interface(interface).network)


def nth_address(prefix: str, index: int) -> str:
    """The address ``index`` places after the network address; ValueError when outside of the prefix."""
    network = ipaddress.ip_network(prefix)
    if not 0 <= index < network.num_addresses:
        raise ValueError(f"{prefix} holds {network.num_addresses} addresses, number {index} is outside")
    return str(network[index])


def stable_mac(*words: str) -> str:
    """A locally administered unicast MAC (IEEE 802-2014 section 8.4) that is the same for the same words."""
    octets = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest()[:6]
    return bytes([octets[0] & 0xFC | 0x02]).hex() + ":" + octets[1:].hex(":")


def link_local_address(mac: str) -> str:
    """The IPv6 link-local address that an interface of this MAC gives itself (RFC 4291 section 2.5.6, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def contains(prefix: str, inner: str) -> bool:
    """Whether ``prefix`` covers the address or prefix ``inner``; never across families."""
    if family_of(prefix) != family_of(inner):
        return False
    outer_network, inner_network = ipaddress.ip_network(prefix), ipaddress.ip_network(inner, strict=False)
    return inner_network.prefixlen >= outer_network.prefixlen and inner_network.network_address in outer_network


def overlaps(one: str, other: str) -> bool:
    """Whether two prefixes share an address; never across families."""
    return contains(one, other) or contains(other, one)


def packed(address: str) -> bytes:
    """The 4 or 16 bytes of an address in network order."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
