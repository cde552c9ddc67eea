"""The kinds of route that the talk teaches, and how the kernel orders them.

Theory of operation: the talk knows four types, and asks them in the order directly connected, static, dynamic,
default. The kernel does not know types: among the routes of a table that contain the destination, the longest prefix
wins, and among equals the lowest metric. A type follows from who wrote the route and whether it has a gateway. The
fifth, ``local``, stands in a table of its own that is asked first: "this address is me".
"""

from __future__ import annotations

from typing import Literal

from muslin.model.address import DEFAULT_PREFIX, prefix_length
from muslin.model.kernel import IPV6_DEFAULT_METRIC, PROTOCOL_MUSLIN, TABLE_LOCAL, TABLE_MAIN
from muslin.wire.rtnetlink import AF_INET6, NexthopRecord, RouteRecord
from muslin.wire.sight import Sight

RouteType = Literal["local", "directly connected", "static", "dynamic", "default"]
TALK_ORDER: tuple[RouteType, ...] = ("local", "directly connected", "static", "dynamic", "default")

PROTOCOLS = {
    1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird",
    13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel",
    PROTOCOL_MUSLIN: "muslin", 84: "ovn", 99: "openr", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
"""rtnetlink.h RTPROT_*, and our own."""
BY_HAND = (0, 2, 3, 4)  # unspecified, kernel, boot, static: nobody keeps such a route up to date
TABLES = {253: "default", TABLE_MAIN: "main", TABLE_LOCAL: "local"}
LOCAL_KINDS = ("local", "broadcast", "anycast", "multicast")
REFUSING_KINDS = ("blackhole", "unreachable", "prohibit", "throw")


def type_of(route: RouteRecord) -> RouteType:
    """The type that the talk would name."""
    if route.kind in LOCAL_KINDS:
        return "local"
    if route.destination in DEFAULT_PREFIX.values():
        return "default"
    if route.protocol not in BY_HAND and route.protocol in PROTOCOLS:
        return "dynamic"
    gatewayed = route.via is not None or any(hop.via for hop in route.multipath)
    return "static" if gatewayed or route.kind in REFUSING_KINDS else "directly connected"


def metric_of(route: RouteRecord) -> int:
    """The metric that the kernel compares."""
    return route.metric or (IPV6_DEFAULT_METRIC if route.family == AF_INET6 and route.kind == "unicast" else 0)


def table_name(table: int) -> str:
    """``main`` of 254."""
    return TABLES.get(table, str(table))


def protocol_name(protocol: int) -> str:
    """``bird`` of 12."""
    return PROTOCOLS.get(protocol, str(protocol))


def shown_destination(route: RouteRecord) -> str:
    """The destination as ip-route(8) prints it: ``default``, and a host's without length."""
    if route.destination in DEFAULT_PREFIX.values():
        return "default"
    address, _, length = route.destination.partition("/")
    return address if int(length) == (128 if route.family == AF_INET6 else 32) else route.destination


def route_text(sight: Sight, route: RouteRecord) -> str:
    """A route as ip-route(8) prints it, without what goes without saying."""
    kind = f"{route.kind} " if route.kind not in ("unicast", "local") else ""
    words = [f"{kind}{shown_destination(route)}"]
    words += [f"via {route.via}"] if route.via else []
    words += [f"nhid {route.nexthop_id}"] if route.nexthop_id else []
    words += [f"dev {sight.name_of(route.ifindex)}"] if route.ifindex else []
    words += [f"nexthop {_hop(sight, hop.ifindex, hop.via)}" for hop in route.multipath]
    words += [f"metric {route.metric}"] if route.metric and route.metric != IPV6_DEFAULT_METRIC else []
    words += [f"table {table_name(route.table)}"] if route.table not in (TABLE_MAIN, TABLE_LOCAL) else []
    if route.protocol not in BY_HAND:
        words.append(f"proto {protocol_name(route.protocol)}")
    return " ".join(words)


def _hop(sight: Sight, ifindex: int, via: str | None) -> str:
    return f"{f'via {via} ' if via else ''}dev {sight.name_of(ifindex)}"


def nexthop_of(sight: Sight, number: int) -> NexthopRecord | None:
    """The next hop object of this number."""
    return next((one for one in sight.nexthops if one.id == number), None)


def in_kernel_order(routes: list[RouteRecord]) -> list[RouteRecord]:
    """Routes that contain one destination, the one that wins first: longest prefix, then lowest metric."""
    return sorted(routes, key=lambda route: (-prefix_length(route.destination), metric_of(route)))


def in_talk_order(routes: list[RouteRecord]) -> list[RouteRecord]:
    """The same in the order that the talk teaches, longest prefix first within a type."""
    return sorted(routes, key=lambda route: (TALK_ORDER.index(type_of(route)), -prefix_length(route.destination)))
