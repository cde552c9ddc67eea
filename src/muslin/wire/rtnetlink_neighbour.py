"""rtnetlink: neighbours and forwarding entries (struct ndmsg, as `ip neigh` and `bridge fdb` use it).

One message kind, two tables. With an IP family an entry says which MAC address belongs to an IP address; with
family AF_BRIDGE it says where a MAC address is: behind a bridge port, or (NTF_SELF, on a vxlan device) at
which remote host. Entries made here are permanent: they neither age nor count against gc_thresh.

Not handled: VNI, port and nexthop group of a vxlan entry, proxy entries when encoding.
"""

import struct

import msgspec

from muslin.wire.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    encode_attribute,
    encode_u32,
    pack,
    parse_attributes,
    read_number,
    read_u32,
    unpack,
)
from muslin.wire.rtnetlink_values import (
    AF_BRIDGE,
    AF_UNSPEC,
    FULL_LENGTH,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    U16,
    Request,
    pack_address,
    pack_mac,
    unpack_mac,
    unpack_optional,
)

# linux/neighbour.h
NDA_DST = 1
NDA_IFINDEX = 8
NDA_LLADDR = 2
NDA_MASTER = 9
NDA_VLAN = 5
NTF_EXT_LEARNED = 0x10
NTF_MASTER = 0x04
NTF_PROXY = 0x08
NTF_SELF = 0x02
NUD_DELAY = 0x08
NUD_FAILED = 0x20
NUD_INCOMPLETE = 0x01
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
NUD_PROBE = 0x10
NUD_REACHABLE = 0x02
NUD_STALE = 0x04

_HEADER = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, ifindex, state, flags, type
_WHAT = "ndmsg (family, ifindex, state, flags, type)"


class NeighbourRecord(msgspec.Struct, frozen=True, gc=False):
    """An entry of the neighbour table (ARP, NDP)."""

    ifindex: int
    address: str
    mac: str  # "" where it is not known (yet)
    state: int  # NUD_*
    flags: int  # NTF_*
    family: int


class FdbRecord(msgspec.Struct, frozen=True, gc=False):
    """An entry of a bridge's or vxlan device's forwarding table."""

    ifindex: int
    mac: str
    destination: str | None = None  # remote host of a vxlan entry
    master_ifindex: int = 0  # the bridge whose table it is in; 0 = the device's own
    state: int = 0  # NUD_*
    flags: int = 0  # NTF_*
    vlan: int = 0


def neighbour_add(ifindex: int, address: str, mac: str, *, replace: bool = True) -> Request:
    """Add a permanent neighbour, or with `replace` also change the one that is there."""
    payload = _encode_neighbour(ifindex, address) + encode_attribute(NDA_LLADDR, pack_mac(mac))
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), payload)


def neighbour_delete(ifindex: int, address: str) -> Request:
    """Remove a neighbour."""
    return Request(RTM_DELNEIGH, 0, _encode_neighbour(ifindex, address))


def neighbour_dump(family: int = 0, ifindex: int = 0) -> Request:
    """Ask for the neighbours of a family, or (0) of all, on one device or (0) on all.

    `ifindex` is obeyed only on a socket with NETLINK_GET_STRICT_CHK, which wants it in an attribute.
    """
    device = encode_u32(NDA_IFINDEX, ifindex) if ifindex else b""
    return Request(RTM_GETNEIGH, NLM_F_DUMP, pack(_HEADER, _WHAT, family, 0, 0, 0, 0) + device)


def fdb_add(ifindex: int, mac: str, destination: str, *, replace: bool = False, exclusive: bool = False) -> Request:
    """Send frames for `mac` on a vxlan device to the host `destination`.

    Appending (the default) adds a further destination to the all-zero or a multicast MAC address; `replace`
    moves a unicast MAC address, and is refused for the others (EOPNOTSUPP); `exclusive` is refused for a MAC
    address that has an entry (EEXIST).
    """
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL if exclusive else NLM_F_APPEND)
    return Request(RTM_NEWNEIGH, flags, _encode_fdb(ifindex, mac, destination))


def fdb_delete(ifindex: int, mac: str, destination: str | None = None) -> Request:
    """Remove an entry of a vxlan device, or of its destinations only that one."""
    return Request(RTM_DELNEIGH, 0, _encode_fdb(ifindex, mac, destination))


def fdb_dump(ifindex: int = 0) -> Request:
    """Ask for all forwarding entries, of bridges and of vxlan devices, or for those of one device.

    `ifindex` is obeyed only on a socket with NETLINK_GET_STRICT_CHK.
    """
    return Request(RTM_GETNEIGH, NLM_F_DUMP, pack(_HEADER, _WHAT, AF_BRIDGE, ifindex, 0, 0, 0))


def parse_neighbour(payload: bytes) -> NeighbourRecord | FdbRecord | None:
    """Return the entry of an RTM_NEWNEIGH or RTM_DELNEIGH; None for a family not IP nor AF_BRIDGE."""
    family, ifindex, state, flags, _ = unpack(_HEADER, "ndmsg", payload)
    if family != AF_BRIDGE and family not in FULL_LENGTH:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    mac = unpack_mac(attributes, NDA_LLADDR)
    address = unpack_optional(attributes, NDA_DST, AF_UNSPEC if family == AF_BRIDGE else family)
    if family == AF_BRIDGE:
        vlan = read_number(attributes, NDA_VLAN, U16)
        return FdbRecord(ifindex, mac, address, read_u32(attributes, NDA_MASTER), state, flags, vlan)
    if address is None:
        raise ValueError(f"offset {_HEADER.size}: NDA_DST expected, not found")
    return NeighbourRecord(ifindex, address, mac, state, flags, family)


def _encode_neighbour(ifindex: int, address: str) -> bytes:
    """Return header and key of a neighbour."""
    family, data = pack_address(address)
    return pack(_HEADER, _WHAT, family, ifindex, NUD_PERMANENT, 0, 0) + encode_attribute(NDA_DST, data)


def _encode_fdb(ifindex: int, mac: str, destination: str | None) -> bytes:
    """Return header and attributes of a vxlan entry, as `bridge fdb ... self permanent` sends them."""
    payload = pack(_HEADER, _WHAT, AF_BRIDGE, ifindex, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0)
    payload += encode_attribute(NDA_LLADDR, pack_mac(mac))
    return payload if destination is None else payload + encode_attribute(NDA_DST, pack_address(destination)[1])
