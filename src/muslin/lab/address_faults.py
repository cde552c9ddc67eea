"""What is wrong with one address or prefix that a person wrote, as the end of a sentence.

Theory of operation: a fault is text that follows "has the address" or "has the prefix"; empty text is no
fault. Text that cannot be read is given back shortened and quoted, so that a message stays one line whatever
a file held.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from muslin.lab.topology import SUBNET_LENGTH
from muslin.model.address import family_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Problem(msgspec.Struct, frozen=True):
    """One fault: where, as ``$.nodes[0].name``, and what, in a sentence."""

    path: str
    message: str


@lru_cache(maxsize=4096)
def network_or_none(text: str) -> Network | None:
    """The network of a prefix with a length, None when the text is none."""
    try:
        return ipaddress.ip_network(text) if "/" in text and "%" not in text else None
    except ValueError:
        return None


def _address(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None


def inside(inner: Network, outer: Network) -> bool:
    """Whether ``outer`` covers ``inner``."""
    return inner.version == outer.version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def prefix_fault(text: str) -> str:
    """What is wrong with a prefix, to follow "has the prefix"; empty when nothing is."""
    if network_or_none(text):
        return ""
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{shown(text)}, which is none: write it like 10.0.0.0/24 or fd00:10::/64"
    if "/" not in text:
        length = SUBNET_LENGTH[family_of(text)]
        return f"{shown(text)} without a length: write it like {loose.network_address}/{length}"
    return f"{shown(text)} with host bits set: write {loose}"


def address_fault(text: str, prefixes: Iterable[str], place: str) -> str:
    """What is wrong with an address, to follow "has the address"; empty when nothing is."""
    address = _address(text)
    if address is None:
        if "/" in text and _address(text.partition("/")[0]):
            return f"{shown(text)} with a length, which comes from the prefix: write {text.partition('/')[0]}"
        return f"{shown(text)}, which is none: write it like 10.0.0.10 or fd00:10::a"
    networks = [network for network in map(network_or_none, prefixes) if network]
    home = next((network for network in networks if address in network), None)
    if home is None:
        return f"{address}, which is not in {place}" if networks else ""
    if home.num_addresses > 2 and address == home.network_address:
        return f"{address}, which is the network address of {home}"
    if home.version == 4 and home.num_addresses > 2 and address == home.broadcast_address:
        return f"{address}, which is the broadcast address of {home}"
    return ""


def shown(value: object) -> str:
    """A value from outside, short and printable enough for a sentence."""
    text = value if isinstance(value, str) else repr(value)
    if text and text.isascii() and text.isprintable() and " " not in text and len(text) <= 60:
        return text
    return repr(text if len(text) <= 60 else text[:57] + "...")
