"""What every kind of rtnetlink message shares: the request, and addresses as text and as bytes.

Addresses are canonical text ("172.16.0.1", "fd00::1"), prefixes have a length ("172.16.0.0/24"), the family
follows from a ':' in it. inet_pton and inet_ntop do the work: they are pure functions of libc and ten times
faster than the ipaddress module. A malformed value raises ValueError that quotes it.
"""

import socket
import struct

import msgspec

from muslin.wire.netlink import encode_attribute

# linux/rtnetlink.h: message kinds
RTM_DELADDR = 21
RTM_DELLINK = 17
RTM_DELNEIGH = 29
RTM_DELNETCONF = 81
RTM_DELNEXTHOP = 105
RTM_DELNSID = 89
RTM_DELROUTE = 25
RTM_DELRULE = 33
RTM_GETADDR = 22
RTM_GETLINK = 18
RTM_GETNEIGH = 30
RTM_GETNEXTHOP = 106
RTM_GETNSID = 90
RTM_GETROUTE = 26
RTM_GETRULE = 34
RTM_NEWADDR = 20
RTM_NEWLINK = 16
RTM_NEWNEIGH = 28
RTM_NEWNETCONF = 80
RTM_NEWNEXTHOP = 104
RTM_NEWNSID = 88
RTM_NEWROUTE = 24
RTM_NEWRULE = 32

# linux/socket.h: address families, as plain ints: a comparison with an enum member costs three times as much
AF_BRIDGE = 7
AF_INET = 2
AF_INET6 = 10
AF_UNSPEC = 0

# linux/if.h, linux/if_link.h
ALIAS_BYTES = 255  # IFALIASZ less its NUL
NAME_BYTES = 15  # IFNAMSIZ less its NUL

FULL_LENGTH = {AF_INET: 32, AF_INET6: 128}  # bits of an address
ANY_PREFIX = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}
U16 = struct.Struct("=H")
S32 = struct.Struct("=i")
_LENGTHS = {str(bits): bits for bits in range(129)}  # strict, and faster than int()


class Request(msgspec.Struct, frozen=True, gc=False):
    """What to ask of the kernel. The door adds NLM_F_REQUEST, NLM_F_ACK and a sequence number."""

    kind: int  # RTM_*
    flags: int  # NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_APPEND, NLM_F_DUMP
    payload: bytes


def pack_address(text: str) -> tuple[int, bytes]:
    """Return (family, 4 or 16 bytes in network order) of an address."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except OSError:
        raise ValueError(f"{text!r}: an IPv4 or IPv6 address expected") from None


def pack_prefix(text: str) -> tuple[int, bytes, int]:
    """Return (family, bytes, length in bits) of "address/length"; an address alone has its full length."""
    address, slash, bits = text.partition("/")
    family, data = pack_address(address)
    full = FULL_LENGTH[family]
    length = _LENGTHS.get(bits, -1) if slash else full
    if not 0 <= length <= full:
        raise ValueError(f"{text!r}: a prefix length of 0 to {full} expected")
    return family, data, length


def pack_mac(text: str) -> bytes:
    """Return the 6 bytes of "aa:bb:cc:dd:ee:ff"."""
    try:
        data = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        data = b""
    if len(data) != 6 or len(text) != 17 or data.hex(":") != text.lower():
        raise ValueError(f"{text!r}: a MAC address like 02:00:00:00:00:01 expected")
    return data


def unpack_address(data: bytes, family: int = AF_UNSPEC) -> str:
    """Return the text of 4 or 16 bytes; ValueError for another size, or for the size of another family."""
    size = len(data)
    if size == 4 and family != AF_INET6:
        return socket.inet_ntop(socket.AF_INET, data)
    if size == 16 and family != AF_INET:
        return socket.inet_ntop(socket.AF_INET6, data)
    raise ValueError(f"an address of family {family}: {FULL_LENGTH.get(family, 128) // 8} bytes expected, {size} found")


def unpack_prefix(data: bytes | None, length: int, family: int) -> str:
    """Return "address/length", the prefix of everything where `data` is None."""
    if length > FULL_LENGTH[family]:
        raise ValueError(f"a prefix length of 0 to {FULL_LENGTH[family]} expected, {length} found")
    address = ANY_PREFIX[family][:-2] if data is None else unpack_address(data, family)
    return f"{address}/{length}"


def unpack_optional(attributes: dict[int, bytes], kind: int, family: int = AF_UNSPEC) -> str | None:
    """Return the address in attribute `kind`, or None where it is absent."""
    data = attributes.get(kind)
    return None if data is None else unpack_address(data, family)


def unpack_mac(attributes: dict[int, bytes], kind: int) -> str:
    """Return the link-layer address in attribute `kind` as "aa:bb:...", or ''."""
    return attributes.get(kind, b"").hex(":")


def encode_name(kind: int, name: str) -> bytes:
    """Return the attribute of an interface name: NUL-terminated, 1 to 15 bytes."""
    data = name.encode()
    if not 0 < len(data) <= NAME_BYTES or b"\0" in data:
        raise ValueError(f"{name!r}: an interface name of 1 to {NAME_BYTES} bytes expected")
    return encode_attribute(kind, data + b"\0")
