"""A namespace's routes in the order in which its kernel would take them, and where the talk would take another.

Theory of operation: policy rules are asked by priority; within the table that one names the longest prefix comes first,
then the lowest metric. The talk's order (directly connected, static, dynamic, default) picks another route only where
two prefixes overlap and the longer one is of a type that the talk asks later. Each such pair is told.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from muslin.explain.lookup import AF_OF, inside
from muslin.explain.types import TALK_ORDER, RouteType, metric_of, protocol_name, route_text, table_name, type_of
from muslin.model.address import FAMILIES, Family, prefix_length
from muslin.wire.rtnetlink import RouteRecord, RuleRecord
from muslin.wire.sight import Sight

QUIET_KINDS = ("broadcast", "multicast", "anycast")
QUIET_PREFIXES = ("fe80::/10", "ff00::/8", "127.0.0.0/8", "::1/128")


class RouteRow(msgspec.Struct, frozen=True, kw_only=True):
    """One route. ``order`` counts from 1 in the kernel's order; ``differs``: where the talk would not."""

    order: int
    table: str
    rule: int | None
    """The priority of the first rule that asks its table; None where no rule does."""
    type: RouteType
    text: str
    destination: str
    metric: int
    protocol: str
    differs: str = ""


class RuleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One policy rule as ip-rule(8) prints it."""

    priority: int
    text: str


class PlaceRoutes(msgspec.Struct, frozen=True, kw_only=True):
    """The routes of one namespace and family."""

    place: str
    family: Family
    rules: tuple[RuleRow, ...]
    routes: tuple[RouteRow, ...]


class RoutesDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``routes -o json`` prints."""

    schema: str = "muslin.routes/v1"
    places: tuple[PlaceRoutes, ...]


def routes_of(sight: Sight, everything: bool = False) -> Iterator[PlaceRoutes]:
    """Each family's routes; link-local, loopback and broadcast ones only with ``everything``."""
    for family in FAMILIES:
        rules = sorted((rule for rule in sight.rules if rule.family == AF_OF[family]), key=lambda rule: rule.priority)
        routes = [one for one in sight.routes if one.family == AF_OF[family] and (everything or not _is_quiet(one))]
        if routes:
            yield PlaceRoutes(
                place=sight.netns,
                family=family,
                rules=tuple(RuleRow(priority=rule.priority, text=rule_words(rule)) for rule in rules),
                routes=tuple(_rows(sight, routes, rules)),
            )


def _is_quiet(route: RouteRecord) -> bool:
    address = route.destination.partition("/")[0]
    return route.kind in QUIET_KINDS or any(inside(prefix, address) for prefix in QUIET_PREFIXES)


def _rows(sight: Sight, routes: list[RouteRecord], rules: list[RuleRecord]) -> Iterator[RouteRow]:
    asked: dict[int, int] = {}
    for rule in rules:
        asked.setdefault(rule.table, rule.priority)
    unasked = max((rule.priority for rule in rules), default=0) + 1

    def place(route: RouteRecord) -> tuple[int, int, int]:
        return asked.get(route.table, unasked), -prefix_length(route.destination), metric_of(route)

    ordered = sorted(routes, key=place)
    for order, route in enumerate(ordered, start=1):
        yield RouteRow(
            order=order,
            table=table_name(route.table),
            rule=asked.get(route.table),
            type=type_of(route),
            text=route_text(sight, route),
            destination=route.destination,
            metric=metric_of(route),
            protocol=protocol_name(route.protocol),
            differs=_difference(sight, route, ordered[order:]),
        )


def _difference(sight: Sight, route: RouteRecord, later: list[RouteRecord]) -> str:
    """Where the talk would take one of the routes that the kernel asks later."""
    mine = TALK_ORDER.index(type_of(route))
    for other in later:
        if other.table == route.table and _contains(other, route) and TALK_ORDER.index(type_of(other)) < mine:
            reason = f"/{prefix_length(route.destination)} is longer than /{prefix_length(other.destination)}"
            if prefix_length(other.destination) == prefix_length(route.destination):
                reason = f"metric {metric_of(route)} is lower than {metric_of(other)}"
            return f"the talk would take {route_text(sight, other)} ({type_of(other)}); the kernel does not: {reason}"
    return ""


def _contains(outer: RouteRecord, inner: RouteRecord) -> bool:
    shorter = prefix_length(outer.destination) <= prefix_length(inner.destination)
    return shorter and inside(outer.destination, inner.destination.partition("/")[0])


def rule_words(rule: RuleRecord) -> str:
    """``from 10.0.0.0/8 iif eth0 lookup main``."""
    words = [f"{'not ' if rule.inverted else ''}from {rule.source or 'all'}"]
    words += [f"to {rule.destination}"] if rule.destination else []
    words += [f"iif {rule.iif}"] if rule.iif else []
    words += [f"oif {rule.oif}"] if rule.oif else []
    words += [f"fwmark {rule.fwmark:#x}"] if rule.fwmark else []
    words += [f"lookup {table_name(rule.table)}" if rule.action == "lookup" else rule.action]
    if rule.suppress_prefix_length is not None:
        words.append(f"suppress_prefixlength {rule.suppress_prefix_length}")
    return " ".join(words)
