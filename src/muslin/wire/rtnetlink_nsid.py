"""rtnetlink: numbers by which one namespace knows others (struct rtgenmsg, as `ip netns list-id` uses it).

The kernel numbers a namespace when a link into it is first seen; a link's `link_netnsid` is such a number.
Asking for the number of a namespace that is at hand as a file descriptor tells where the other end of a veth
is.
"""

import struct

import msgspec

from muslin.wire.netlink import encode_u32, pack, parse_attributes, read_number, unpack
from muslin.wire.rtnetlink_values import RTM_GETNSID, S32, Request

# linux/net_namespace.h
NETNSA_FD = 3
NETNSA_NSID = 1
NETNSA_NSID_NOT_ASSIGNED = -1

_HEADER = struct.Struct("=Bxxx")  # struct rtgenmsg: family, and the padding before the attributes


class NsidRecord(msgspec.Struct, frozen=True, gc=False):
    """The number of a namespace, as seen from the one that was asked."""

    nsid: int  # NETNSA_NSID_NOT_ASSIGNED (-1) = it has none

    @property
    def assigned(self) -> bool:
        """The namespace has a number."""
        return self.nsid >= 0


def nsid_get(netns_fd: int) -> Request:
    """Ask for the number of the namespace behind a file descriptor; the answer is one RTM_NEWNSID."""
    return Request(RTM_GETNSID, 0, pack(_HEADER, "rtgenmsg", 0) + encode_u32(NETNSA_FD, netns_fd))


def parse_nsid(payload: bytes) -> NsidRecord:
    """Return the number in an RTM_NEWNSID or RTM_DELNSID."""
    unpack(_HEADER, "rtgenmsg", payload)
    attributes = parse_attributes(payload, _HEADER.size)
    return NsidRecord(read_number(attributes, NETNSA_NSID, S32, NETNSA_NSID_NOT_ASSIGNED))
