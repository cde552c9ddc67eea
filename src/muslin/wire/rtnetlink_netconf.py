"""rtnetlink: settings of interfaces (struct netconfmsg, as `ip netconf` uses it).

The only events that there are of changes below /proc/sys/net: forwarding of either family, and IPv4's reverse path
filter. Of the settings in one message those that it does not hold did not change. Not handled: multicast forwarding,
proxies, MPLS.
"""

import struct

import msgspec

from muslin.wire.netlink import parse_attributes, read_number, unpack
from muslin.wire.rtnetlink_values import FULL_LENGTH, S32

# linux/netconf.h
NETCONFA_FORWARDING = 2
NETCONFA_IFINDEX = 1
NETCONFA_IFINDEX_ALL = -1
NETCONFA_IFINDEX_DEFAULT = -2
NETCONFA_RP_FILTER = 3

_HEADER = struct.Struct("=Bxxx")  # struct netconfmsg: family; then padded to where attributes begin


class NetconfRecord(msgspec.Struct, frozen=True, gc=False):
    """Settings of an interface, or of all (NETCONFA_IFINDEX_ALL) or future ones (NETCONFA_IFINDEX_DEFAULT)."""

    family: int
    ifindex: int
    forwarding: int | None = None  # None = not told
    rp_filter: int | None = None


def parse_netconf(payload: bytes) -> NetconfRecord | None:
    """Return the settings of an RTM_NEWNETCONF or RTM_DELNETCONF; None for a family that is not IP."""
    family = unpack(_HEADER, "netconfmsg", payload)[0]
    if family not in FULL_LENGTH:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    return NetconfRecord(
        family=family,
        ifindex=read_number(attributes, NETCONFA_IFINDEX, S32),
        forwarding=_read(attributes, NETCONFA_FORWARDING),
        rp_filter=_read(attributes, NETCONFA_RP_FILTER),
    )


def _read(attributes: dict[int, bytes], kind: int) -> int | None:
    return read_number(attributes, kind, S32) if kind in attributes else None
