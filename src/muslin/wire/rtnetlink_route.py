"""rtnetlink: routes (struct rtmsg, as `ip route` uses it).

A route leads out by a device, by a gateway (of its own family in RTA_GATEWAY, of the other in RTA_VIA), or by
the identifier of a nexthop object, which the kernel handles in constant time where distinct gateways cost it
a search. Tables above 255 do not fit the header and go into RTA_TABLE. The scope of an IPv4 route is derived
as iproute2 does it; IPv6 knows none.

The table is never guessed from the kind: a route of kind "local" or "broadcast" goes to the table that is
named. Not handled: multipath when encoding (nexthop groups do that better), type of service, encapsulation
(lwtunnel), life times, source-specific IPv6 routes.
"""

import struct
from collections.abc import Iterator

import msgspec

from muslin.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    encode_attribute,
    encode_nested,
    encode_u32,
    pack,
    parse_attributes,
    read_u32,
    unpack,
)
from muslin.wire.rtnetlink_values import (
    AF_INET,
    FULL_LENGTH,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    U16,
    Request,
    pack_address,
    pack_prefix,
    unpack_address,
    unpack_optional,
    unpack_prefix,
)

# linux/rtnetlink.h: attributes of a route
RTAX_MTU = 2  # inside RTA_METRICS
RTA_DST = 1
RTA_GATEWAY = 5
RTA_IIF = 3
RTA_MARK = 16
RTA_METRICS = 8
RTA_MULTIPATH = 9
RTA_NH_ID = 30
RTA_OIF = 4
RTA_PREFSRC = 7
RTA_PRIORITY = 6
RTA_SRC = 2
RTA_TABLE = 15
RTA_VIA = 18

# linux/rtnetlink.h: flags, protocols, scopes, tables
RTM_F_CLONED = 0x200
RTM_F_FIB_MATCH = 0x2000
RTM_F_LOOKUP_TABLE = 0x1000
RTNH_F_DEAD = 0x01
RTNH_F_LINKDOWN = 0x10
RTNH_F_ONLINK = 0x04
RTPROT_BOOT = 3
RT_SCOPE_HOST = 254
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255  # in a delete: any scope
RT_SCOPE_UNIVERSE = 0
RT_TABLE_LOCAL = 255
RT_TABLE_MAIN = 254

# linux/rtnetlink.h: RTN_*
ROUTE_KINDS = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast",
    "blackhole", "unreachable", "prohibit", "throw", "nat",
)  # fmt: skip
_KIND_NUMBERS = {name: number for number, name in enumerate(ROUTE_KINDS)}

# struct rtmsg: family, destination bits, source bits, tos, table, protocol, scope, type, flags
_HEADER = struct.Struct("=BBBBBBBBI")
_WHAT = "rtmsg (family, bits, source bits, tos, table, protocol, scope, type, flags)"
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight less 1, ifindex


class Hop(msgspec.Struct, frozen=True, gc=False):
    """One way of a multipath route."""

    ifindex: int
    via: str | None
    weight: int  # 1 to 256


class RouteRecord(msgspec.Struct, frozen=True, gc=False):
    """A route as the kernel reports it."""

    destination: str  # "10.0.0.0/8"; the default route is "0.0.0.0/0" or "::/0"
    family: int
    table: int = RT_TABLE_MAIN
    protocol: int = 0  # RTPROT_*: who put it there
    scope: int = 0  # RT_SCOPE_*
    kind: str = "unicast"
    ifindex: int = 0  # 0 = none, or more than one
    via: str | None = None  # gateway, of either family
    nexthop_id: int = 0  # 0 = none; the kernel fills in ifindex and via as well
    metric: int = 0  # 0 = none given; IPv6 routes have at least 1 (default 1024)
    source: str | None = None  # preferred source address
    onlink: bool = False
    mtu: int = 0  # bytes; 0 = that of the device
    flags: int = 0  # RTM_F_* and RTNH_F_*
    multipath: tuple[Hop, ...] = ()


def route_add(
    destination: str,
    *,
    ifindex: int | None = None,
    via: str | None = None,
    nexthop_id: int | None = None,
    metric: int | None = None,
    table: int = RT_TABLE_MAIN,
    protocol: int = RTPROT_BOOT,
    scope: int | None = None,
    source: str | None = None,
    onlink: bool = False,
    mtu: int | None = None,
    kind: str = "unicast",
    replace: bool = False,
) -> Request:
    """Add a route to `destination` ("10.0.0.0/8"), or with `replace` put it in the place of its like.

    `mtu` is in bytes, `source` is the preferred source address. Raises ValueError for a kind nobody knows.
    """
    if scope is None:
        scope = _scope(pack_prefix(destination)[0], kind, gatewayed=via is not None or nexthop_id is not None)
    payload = _encode(
        destination,
        ifindex=ifindex,
        via=via,
        nexthop_id=nexthop_id,
        metric=metric,
        table=table,
        protocol=protocol,
        scope=scope,
        source=source,
        flags=RTNH_F_ONLINK if onlink else 0,
        kind=kind,
    )
    if mtu is not None:
        payload += encode_nested(RTA_METRICS, encode_u32(RTAX_MTU, mtu))
    return Request(RTM_NEWROUTE, NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL), payload)


def route_delete(
    destination: str,
    *,
    ifindex: int | None = None,
    via: str | None = None,
    nexthop_id: int | None = None,
    metric: int | None = None,
    table: int = RT_TABLE_MAIN,
    protocol: int = 0,
    source: str | None = None,
    kind: str = "unspec",
) -> Request:
    """Remove the first route to `destination` that agrees with all that is given.

    Where there is none the kernel says ESRCH, of an IPv6 default route ENOENT.
    """
    scope = RT_SCOPE_NOWHERE if pack_prefix(destination)[0] == AF_INET else RT_SCOPE_UNIVERSE
    payload = _encode(
        destination,
        ifindex=ifindex,
        via=via,
        nexthop_id=nexthop_id,
        metric=metric,
        table=table,
        protocol=protocol,
        scope=scope,
        source=source,
        flags=0,
        kind=kind,
    )
    return Request(RTM_DELROUTE, 0, payload)


def route_dump(
    family: int = 0, *, table: int = 0, protocol: int = 0, ifindex: int = 0, cached: bool = False
) -> Request:
    """Ask for the routes of a family, or (0) of all; with `cached` for what was learned of single destinations.

    `table`, `protocol` and the device `ifindex` (0 = any) are obeyed only on a socket with NETLINK_GET_STRICT_CHK;
    naming an IPv4 table that does not exist yet is an error there (ENOENT).
    """
    payload = pack(_HEADER, _WHAT, family, 0, 0, 0, 0, protocol, 0, 0, RTM_F_CLONED if cached else 0)
    payload += encode_u32(RTA_TABLE, table) if table else b""
    return Request(RTM_GETROUTE, NLM_F_DUMP, payload + encode_u32(RTA_OIF, ifindex) if ifindex else payload)


def route_get(
    destination: str,
    *,
    source: str | None = None,
    iif: int | None = None,
    oif: int | None = None,
    fwmark: int | None = None,
    fib_match: bool = False,
) -> Request:
    """Ask which way a packet to the address `destination` would go; with `fib_match`, by which route.

    `iif` and `oif` are ifindexes; with `iif` the packet is one to forward. The answer is one RTM_NEWROUTE.
    """
    family, data = pack_address(destination)
    bits = FULL_LENGTH[family]
    # IPv6 names the table it looked in without being asked, and a strict socket may not ask (EINVAL).
    flags = (RTM_F_LOOKUP_TABLE if family == AF_INET else 0) | (RTM_F_FIB_MATCH if fib_match else 0)
    payload = pack(_HEADER, _WHAT, family, bits, 0 if source is None else bits, 0, 0, 0, 0, 0, flags)
    payload += encode_attribute(RTA_DST, data)
    if source is not None:
        payload += encode_attribute(RTA_SRC, _of_family(source, family))
    for attribute, value in ((RTA_IIF, iif), (RTA_OIF, oif), (RTA_MARK, fwmark)):
        if value is not None:
            payload += encode_u32(attribute, value)
    return Request(RTM_GETROUTE, 0, payload)


def parse_route(payload: bytes) -> RouteRecord | None:
    """Return the route of an RTM_NEWROUTE or RTM_DELROUTE; None for a family that is not IP."""
    family, bits, _, _, table, protocol, scope, kind, flags = unpack(_HEADER, "rtmsg", payload)
    if family not in FULL_LENGTH:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    metrics = attributes.get(RTA_METRICS)
    return RouteRecord(
        destination=unpack_prefix(attributes.get(RTA_DST), bits, family),
        family=family,
        table=read_u32(attributes, RTA_TABLE, table),
        protocol=protocol,
        scope=scope,
        kind=ROUTE_KINDS[kind] if kind < len(ROUTE_KINDS) else str(kind),
        ifindex=read_u32(attributes, RTA_OIF),
        via=_parse_via(attributes, family),
        nexthop_id=read_u32(attributes, RTA_NH_ID),
        metric=read_u32(attributes, RTA_PRIORITY),
        source=unpack_optional(attributes, RTA_PREFSRC, family),
        onlink=bool(flags & RTNH_F_ONLINK),
        mtu=0 if metrics is None else read_u32(parse_attributes(metrics), RTAX_MTU),
        flags=flags,
        multipath=tuple(_iter_hops(attributes.get(RTA_MULTIPATH, b""), family)),
    )


def _encode(
    destination: str,
    *,
    ifindex: int | None,
    via: str | None,
    nexthop_id: int | None,
    metric: int | None,
    table: int,
    protocol: int,
    scope: int,
    source: str | None,
    flags: int,
    kind: str,
) -> bytes:
    """Return header and attributes of a route, in iproute2's order."""
    family, data, bits = pack_prefix(destination)
    number = _KIND_NUMBERS.get(kind)
    if number is None:
        raise ValueError(f"route {destination!r}: a kind of {', '.join(ROUTE_KINDS)} expected, {kind!r} found")
    short = table if table <= 0xFF else 0
    payload = pack(_HEADER, _WHAT, family, bits, 0, 0, short, protocol, scope, number, flags)
    if bits:
        payload += encode_attribute(RTA_DST, data)
    if via is not None:
        payload += _encode_via(via, family)
    if source is not None:
        payload += encode_attribute(RTA_PREFSRC, _of_family(source, family))
    if metric is not None:
        payload += encode_u32(RTA_PRIORITY, metric)
    if short != table:
        payload += encode_u32(RTA_TABLE, table)
    if nexthop_id is not None:
        payload += encode_u32(RTA_NH_ID, nexthop_id)
    return payload if ifindex is None else payload + encode_u32(RTA_OIF, ifindex)


def _scope(family: int, kind: str, *, gatewayed: bool) -> int:
    """Return the scope iproute2 gives a route that names none."""
    if family != AF_INET:
        return RT_SCOPE_UNIVERSE
    if kind in ("local", "nat"):
        return RT_SCOPE_HOST
    if kind in ("broadcast", "multicast", "anycast") or (kind in ("unicast", "unspec") and not gatewayed):
        return RT_SCOPE_LINK
    return RT_SCOPE_UNIVERSE


def _of_family(address: str, family: int) -> bytes:
    """Return the bytes of an address that must be of `family`."""
    found, data = pack_address(address)
    if found != family:
        raise ValueError(f"{address!r}: an address of family {family} expected, like the destination's")
    return data


def _encode_via(via: str, family: int) -> bytes:
    """Return a gateway as RTA_GATEWAY or, of another family than the route, as RTA_VIA (struct rtvia)."""
    via_family, data = pack_address(via)
    if via_family == family:
        return encode_attribute(RTA_GATEWAY, data)
    return encode_attribute(RTA_VIA, U16.pack(via_family) + data)


def _parse_via(attributes: dict[int, bytes], family: int) -> str | None:
    """Return the gateway in RTA_GATEWAY or RTA_VIA, if there is one."""
    data = attributes.get(RTA_VIA)
    if data is None:
        return unpack_optional(attributes, RTA_GATEWAY, family)
    via_family = unpack(U16, "rtvia", data)[0]
    return unpack_address(data[U16.size :], via_family)


def _iter_hops(data: bytes, family: int) -> Iterator[Hop]:
    """Yield the ways in RTA_MULTIPATH: a row of struct rtnexthop, each with attributes of its own."""
    offset, end = 0, len(data)
    while offset < end:
        length, _, weight, ifindex = unpack(_HOP, "rtnexthop", data[offset:])
        if not _HOP.size <= length <= end - offset:
            raise ValueError(f"offset {offset}: a rtnexthop length of 8 to {end - offset} expected, {length} found")
        attributes = parse_attributes(data[offset + _HOP.size : offset + length])
        yield Hop(ifindex, _parse_via(attributes, family), weight + 1)
        offset += (length + 3) & ~3
