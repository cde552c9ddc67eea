"""rtnetlink, all of it: requests to the kernel as bytes, and its messages as records.

    value --link_create()--> Request(kind, flags, payload) --door: numbers it, adds REQUEST|ACK--> kernel
    value <--parse_record()-- Message <--iter_messages()-- bytes <------------------------------- kernel

A builder says what to ask, as `ip` and `bridge` would: for the same wish the bytes are iproute2's, byte for
byte. A record says what the kernel has. A record does not say whether it appeared or went: that is the
message's kind, whose even numbers of four (RTM_NEW*) report an object and the next ones (RTM_DEL*) its end.

This file names the whole vocabulary; each kind of object has a file of its own, rtnetlink_<object>.py, and
the constants of its header are there.
"""

from collections.abc import Callable

from muslin.wire.netlink import Message
from muslin.wire.rtnetlink_address import (
    AddressRecord,
    address_add,
    address_delete,
    address_dump,
    parse_address,
)
from muslin.wire.rtnetlink_link import (
    LinkRecord,
    LinkStatistics,
    VxlanInfo,
    link_create,
    link_delete,
    link_dump,
    link_get,
    link_group_delete,
    link_set,
    parse_link,
)
from muslin.wire.rtnetlink_neighbour import (
    FdbRecord,
    NeighbourRecord,
    fdb_add,
    fdb_delete,
    fdb_dump,
    neighbour_add,
    neighbour_delete,
    neighbour_dump,
    parse_neighbour,
)
from muslin.wire.rtnetlink_netconf import (
    NETCONFA_IFINDEX_ALL,
    NETCONFA_IFINDEX_DEFAULT,
    NetconfRecord,
    parse_netconf,
)
from muslin.wire.rtnetlink_nexthop import (
    NexthopRecord,
    nexthop_add,
    nexthop_delete,
    nexthop_dump,
    parse_nexthop,
)
from muslin.wire.rtnetlink_nsid import (
    NsidRecord,
    nsid_get,
    parse_nsid,
)
from muslin.wire.rtnetlink_route import (
    Hop,
    RouteRecord,
    parse_route,
    route_add,
    route_delete,
    route_dump,
    route_get,
)
from muslin.wire.rtnetlink_rule import (
    RuleRecord,
    parse_rule,
    rule_add,
    rule_delete,
    rule_dump,
)
from muslin.wire.rtnetlink_values import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELNETCONF,
    RTM_DELNEXTHOP,
    RTM_DELNSID,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWNETCONF,
    RTM_NEWNEXTHOP,
    RTM_NEWNSID,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    Request,
)

__all__ = [
    "AF_BRIDGE",
    "AF_INET",
    "AF_INET6",
    "AF_UNSPEC",
    "NETCONFA_IFINDEX_ALL",
    "NETCONFA_IFINDEX_DEFAULT",
    "RTM_DELADDR",
    "RTM_DELLINK",
    "RTM_DELNEIGH",
    "RTM_DELNETCONF",
    "RTM_DELNEXTHOP",
    "RTM_DELNSID",
    "RTM_DELROUTE",
    "RTM_DELRULE",
    "RTM_NEWADDR",
    "RTM_NEWLINK",
    "RTM_NEWNEIGH",
    "RTM_NEWNETCONF",
    "RTM_NEWNEXTHOP",
    "RTM_NEWNSID",
    "RTM_NEWROUTE",
    "RTM_NEWRULE",
    "AddressRecord",
    "FdbRecord",
    "Hop",
    "LinkRecord",
    "LinkStatistics",
    "NeighbourRecord",
    "NetconfRecord",
    "NexthopRecord",
    "NsidRecord",
    "Record",
    "Request",
    "RouteRecord",
    "RuleRecord",
    "VxlanInfo",
    "address_add",
    "address_delete",
    "address_dump",
    "fdb_add",
    "fdb_delete",
    "fdb_dump",
    "link_create",
    "link_delete",
    "link_dump",
    "link_get",
    "link_group_delete",
    "link_set",
    "neighbour_add",
    "neighbour_delete",
    "neighbour_dump",
    "nexthop_add",
    "nexthop_delete",
    "nexthop_dump",
    "nsid_get",
    "parse_record",
    "route_add",
    "route_delete",
    "route_dump",
    "route_get",
    "rule_add",
    "rule_delete",
    "rule_dump",
]

Record = (
    AddressRecord
    | FdbRecord
    | LinkRecord
    | NeighbourRecord
    | NetconfRecord
    | NexthopRecord
    | NsidRecord
    | RouteRecord
    | RuleRecord
)

_PARSERS: dict[int, Callable[[bytes], Record | None]] = {
    RTM_DELADDR: parse_address,
    RTM_DELLINK: parse_link,
    RTM_DELNEIGH: parse_neighbour,
    RTM_DELNETCONF: parse_netconf,
    RTM_DELNEXTHOP: parse_nexthop,
    RTM_DELNSID: parse_nsid,
    RTM_DELROUTE: parse_route,
    RTM_DELRULE: parse_rule,
    RTM_NEWADDR: parse_address,
    RTM_NEWLINK: parse_link,
    RTM_NEWNEIGH: parse_neighbour,
    RTM_NEWNETCONF: parse_netconf,
    RTM_NEWNEXTHOP: parse_nexthop,
    RTM_NEWNSID: parse_nsid,
    RTM_NEWROUTE: parse_route,
    RTM_NEWRULE: parse_rule,
}


def parse_record(message: Message) -> Record | None:
    """Return the object a message reports, or None for a kind or a family that has no record here.

    Raises ValueError for a payload of a known kind that is malformed.
    """
    parser = _PARSERS.get(message.kind)
    return None if parser is None else parser(message.payload)
