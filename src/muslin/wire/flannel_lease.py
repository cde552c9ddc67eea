"""flannel's keys and values in etcd, to the byte: a Muslin node and a flannel node may share one network.

Theory of operation: below a prefix (``/coreos.com/network``) lies ``config`` and, one key a lease, ``subnets/NAME``.
NAME is the node's subnets as one word: ``10.5.34.0-24``, ``10.5.34.0-24&fc00:5:34::-64``, or, which flannel itself
cannot read, ``fc00:5:34::-64`` alone. The value is what Go makes of flannel's ``LeaseAttrs``: fields in this order,
``PublicIP`` always there (``0.0.0.0`` means none), ``PublicIPv6`` null if there is none, the rest left out if empty,
and ``< > &`` and two line separators as ``\\u`` escapes.

Reading is strict where a name or an address is concerned: only the canonical spelling passes, so name and subnets
are two spellings of one thing. Fields that nobody knows are skipped. What does not parse is a ValueError that names
the fault. A lease without an address is garbage too: no peer could be reached through it.
"""

from __future__ import annotations

import posixpath
import socket
from collections.abc import Iterable
from typing import Any

import msgspec

from muslin.model.address import HOST_BITS, Family, family_of, prefix_length
from muslin.model.lease import Advertisement

NO_ADDRESS = ("0.0.0.0", "::")
"""flannel's addresses are numbers; these are their zeros, and its PublicIP cannot be left out."""
SOCKET_FAMILY: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
PUBLIC_FIELD: dict[Family, str] = {4: "PublicIP", 6: "PublicIPv6"}
GO_ESCAPES = {
    character.encode(): f"\\u{ord(character):04x}".encode() for character in ("<", ">", "&", "\u2028", "\u2029")
}
"""What Go's encoding/json escapes besides what JSON demands. Outside strings, JSON has none of these."""


class _Value(msgspec.Struct):
    """The fields of a value, by flannel's names."""

    PublicIP: str = NO_ADDRESS[0]
    PublicIPv6: str | None = None
    BackendType: str = ""
    BackendData: dict[str, Any] | None = None
    BackendV6Data: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Value)


# ---- keys ------------------------------------------------------------------------------------------------


def encode_config_key(prefix: str) -> bytes:
    """The key of the network's configuration."""
    return posixpath.join(_clean(prefix), "config").encode()


def encode_lease_key(prefix: str, name: str) -> bytes:
    """The key of the lease of that name; with an empty name, what the keys of all leases begin with."""
    return posixpath.join(_clean(prefix), "subnets", name).encode()


def _clean(prefix: str) -> str:
    """A prefix without doubled or trailing slashes, as Go's path.Join leaves it."""
    return posixpath.normpath(f"/{prefix.lstrip('/')}") if prefix.startswith("/") else posixpath.normpath(prefix)


def encode_name(subnets: Iterable[str]) -> str:
    """``10.5.34.0-24&fc00:5:34::-64`` of these subnets; ValueError unless they make a name that can be read again."""
    name = "&".join(subnet.replace("/", "-") for subnet in subnets)
    parse_name(name)
    return name


def parse_name(name: str) -> tuple[str, ...]:
    """The subnets that a name stands for, IPv4 before IPv6; ValueError names what is wrong."""
    if "/" in name:
        raise ValueError(f"{name!r} has a slash, where a lease's name has a hyphen")
    subnets = tuple(part.replace("-", "/") for part in name.split("&"))
    for subnet in subnets:
        _check_subnet(subnet)
    families = [family_of(subnet) for subnet in subnets]
    if families not in ([4], [6], [4, 6]):
        raise ValueError(f"{name!r} is not one subnet a family, IPv4 first")
    return subnets


def _check_subnet(subnet: str) -> None:
    address, _, length = subnet.partition("/")
    family = family_of(address)
    bits = HOST_BITS[family]
    if not (length.isascii() and length.isdigit() and str(int(length)) == length and int(length) <= bits):
        raise ValueError(f"{subnet!r} has no prefix length from 0 to {bits}")
    packed = int.from_bytes(_pack(address, family))
    if packed & ((1 << bits - prefix_length(subnet)) - 1):
        raise ValueError(f"{subnet!r} has host bits set")


def _pack(address: str, family: Family) -> bytes:
    """An address as bytes. Only Go's spelling passes; IPv4 in disguise, which Go spells otherwise, does not."""
    try:
        packed = socket.inet_pton(SOCKET_FAMILY[family], address)
    except (OSError, ValueError):
        raise ValueError(f"{address!r} is no IPv{family} address") from None
    if socket.inet_ntop(SOCKET_FAMILY[family], packed) != address or (family == 6 and "." in address):
        raise ValueError(f"{address!r} is not the usual spelling of an IPv{family} address")
    return packed


# ---- values ----------------------------------------------------------------------------------------------


def parse_value(value: bytes) -> Advertisement:
    """What a lease's value says of its node; ValueError names the fault."""
    fields = _DECODER.decode(value)  # its errors are ValueErrors that name the field
    public: dict[Family, str | None] = {4: fields.PublicIP, 6: fields.PublicIPv6}
    addresses = tuple(
        _check_address(address, family)
        for family, address in public.items()
        if address is not None and address not in NO_ADDRESS
    )
    if not addresses:
        raise ValueError("neither PublicIP nor PublicIPv6 names an address")
    return Advertisement(
        addresses=addresses,
        backend=fields.BackendType,
        data=fields.BackendData or {},
        data_v6=fields.BackendV6Data or {},
    )


def encode_value(advertisement: Advertisement) -> bytes:
    """The value as flannel would write it; ValueError if it could not be read again."""
    public: dict[Family, str] = {}
    for address in advertisement.addresses:
        family = family_of(address)
        if family in public:
            raise ValueError(f"{PUBLIC_FIELD[family]}: both {public[family]} and {address}")
        public[family] = _check_address(address, family)
    if not public:
        raise ValueError("neither PublicIP nor PublicIPv6 names an address")
    fields: dict[str, Any] = {"PublicIP": public.get(4, NO_ADDRESS[0]), "PublicIPv6": public.get(6)}
    optional = {
        "BackendType": advertisement.backend,
        "BackendData": advertisement.data,
        "BackendV6Data": advertisement.data_v6,
    }
    return _escape(msgspec.json.encode(fields | {name: part for name, part in optional.items() if part}))


def _check_address(address: str, family: Family) -> str:
    try:
        _pack(address, family)
    except ValueError as error:
        raise ValueError(f"{PUBLIC_FIELD[family]}: {error}") from None
    return address


def _escape(text: bytes) -> bytes:
    for plain, escaped in GO_ESCAPES.items():
        text = text.replace(plain, escaped)
    return text
