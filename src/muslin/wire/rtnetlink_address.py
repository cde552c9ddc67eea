"""rtnetlink: the addresses of interfaces (struct ifaddrmsg, as `ip addr` uses it).

As with `ip addr add`, an IPv4 address is sent as local and as peer address at once, without a broadcast
address (`brd +` would add it), and 127.0.0.0/8 gets host scope. Not handled: labels, life times,
point-to-point peers when encoding.
"""

import struct

import msgspec

from muslin.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    encode_attribute,
    encode_u8,
    encode_u32,
    pack,
    parse_attributes,
    read_u8,
    read_u32,
    unpack,
)
from muslin.wire.rtnetlink_values import (
    AF_INET,
    FULL_LENGTH,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
    Request,
    pack_prefix,
    unpack_optional,
    unpack_prefix,
)

# linux/if_addr.h
IFA_ADDRESS = 1
IFA_F_DADFAILED = 0x08
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200
IFA_F_PERMANENT = 0x80
IFA_F_SECONDARY = 0x01
IFA_F_TENTATIVE = 0x40
IFA_FLAGS = 8
IFA_LOCAL = 2
IFA_PROTO = 11

# linux/rtnetlink.h
RT_SCOPE_HOST = 254
RT_SCOPE_UNIVERSE = 0

_HEADER = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, ifindex
_WHAT = "ifaddrmsg (family, prefix length, flags, scope, ifindex)"


class AddressRecord(msgspec.Struct, frozen=True, gc=False):
    """An address the kernel reports on an interface."""

    ifindex: int
    address: str  # "172.16.0.1/24"
    family: int
    scope: int = 0  # RT_SCOPE_*
    flags: int = 0  # IFA_F_*
    protocol: int = 0  # IFAPROT_*: who put it there; 0 where unknown
    peer: str | None = None  # the other end of a point-to-point link, if it differs

    @property
    def tentative(self) -> bool:
        """Duplicate address detection has not finished: the address does not answer yet."""
        return bool(self.flags & IFA_F_TENTATIVE)

    @property
    def dad_failed(self) -> bool:
        """Duplicate address detection found another owner."""
        return bool(self.flags & IFA_F_DADFAILED)


def address_add(
    ifindex: int,
    address: str,
    *,
    no_dad: bool = False,
    protocol: int | None = None,
    no_prefix_route: bool = False,
    replace: bool = False,
) -> Request:
    """Add `address` ("172.16.0.1/24"), or with `replace` accept that it is there already."""
    flags = (IFA_F_NODAD if no_dad else 0) | (IFA_F_NOPREFIXROUTE if no_prefix_route else 0)
    payload = _encode(ifindex, address, flags=flags, scoped=True)
    if protocol is not None:
        payload += encode_u8(IFA_PROTO, protocol)
    return Request(RTM_NEWADDR, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), payload)


def address_delete(ifindex: int, address: str) -> Request:
    """Remove `address` ("172.16.0.1/24") from the interface."""
    return Request(RTM_DELADDR, 0, _encode(ifindex, address, flags=0, scoped=False))


def address_dump(family: int = 0, ifindex: int = 0) -> Request:
    """Ask for all addresses, of one family or (0) of both, on one device or (0) on all.

    `ifindex` is obeyed only on a socket with NETLINK_GET_STRICT_CHK.
    """
    return Request(RTM_GETADDR, NLM_F_DUMP, pack(_HEADER, _WHAT, family, 0, 0, 0, ifindex))


def parse_address(payload: bytes) -> AddressRecord | None:
    """Return the address of an RTM_NEWADDR or RTM_DELADDR; None for a family that is not IP."""
    family, length, flags, scope, ifindex = unpack(_HEADER, "ifaddrmsg", payload)
    if family not in FULL_LENGTH:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    remote = unpack_optional(attributes, IFA_ADDRESS, family)
    local = attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS))
    if local is None:
        raise ValueError(f"offset {_HEADER.size}: IFA_LOCAL or IFA_ADDRESS expected, neither found")
    address = unpack_prefix(local, length, family)
    return AddressRecord(
        ifindex=ifindex,
        address=address,
        family=family,
        scope=scope,
        flags=read_u32(attributes, IFA_FLAGS, flags),
        protocol=read_u8(attributes, IFA_PROTO),
        peer=None if remote is None or address.startswith(f"{remote}/") else remote,
    )


def _encode(ifindex: int, address: str, *, flags: int, scoped: bool) -> bytes:
    """Return header and attributes; flags that need more than a byte go into IFA_FLAGS, as with iproute2."""
    family, data, length = pack_prefix(address)
    scope = RT_SCOPE_HOST if scoped and family == AF_INET and data[0] == 127 else RT_SCOPE_UNIVERSE
    short = flags if flags <= 0xFF else 0
    payload = pack(_HEADER, _WHAT, family, length, short, scope, ifindex)
    payload += encode_attribute(IFA_LOCAL, data) + encode_attribute(IFA_ADDRESS, data)
    return payload if short == flags else payload + encode_u32(IFA_FLAGS, flags)
