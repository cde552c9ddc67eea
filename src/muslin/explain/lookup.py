"""What a namespace's kernel answers when it is asked for the way of a packet, and which route would be next.

Theory of operation: as net/core/fib_rules.c, net/ipv4/fib_trie.c and net/ipv6/ip6_fib.c do it. Policy rules are asked
in the order of their priority. A rule that matches names a table; in it the longest prefix wins that contains the
destination and whose way is usable, and among equals the lowest metric. A ``throw`` route, and a table without any,
send the question on to the next rule. Prefixes are compared as integers: a lookup is a walk over some ten routes.

tests/kernel/test_explain.py compares each answer with the kernel's own, RTM_GETROUTE with fibmatch, iif and from.

Not handled: type of service, rules by port, protocol or user, l3mdev and goto rules, source-specific IPv6 routes; the
choice among the ways of a multipath route, which hangs on a hash: the first way is shown, and that there are others.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from muslin.explain.types import in_kernel_order, metric_of, nexthop_of, route_text, shown_destination, table_name
from muslin.model.address import Family, family_of, prefix_length
from muslin.model.config import span_of
from muslin.wire.rtnetlink import AF_INET, AF_INET6, LinkRecord, RouteRecord, RuleRecord
from muslin.wire.sight import Sight

AF_OF: dict[Family, int] = {4: AF_INET, 6: AF_INET6}
DEAD = 0x01  # linux/rtnetlink.h RTNH_F_DEAD
LINKDOWN = 0x10  # RTNH_F_LINKDOWN
# What the kernel says for each kind of route that leads nowhere (net/ipv4/fib_semantics.c, fib_props)
REFUSALS = {
    "blackhole": "Invalid argument",
    "unreachable": "No route to host",
    "prohibit": "Permission denied",
}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """The packet that the way is asked for. ``iif`` is empty for a packet of this namespace's own."""

    destination: str
    source: str | None = None
    iif: str = ""
    oif: str = ""
    mark: int = 0


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Where a route leads: ``link`` by name, ``via`` the gateway or None."""

    link: str
    via: str | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A route that contains the destination, in a table that a matching rule names; ``unusable`` says why it is not."""

    rule: RuleRecord
    route: RouteRecord
    unusable: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``chosen`` is None where no route decides; ``refused`` is a rule or route that says no, in words.

    ``others`` are the candidates that were not chosen, in the order in which they would be.
    """

    query: Query
    chosen: Candidate | None = None
    way: Way | None = None
    refused: str = ""
    others: tuple[Candidate, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether the packet is for this namespace itself."""
        return self.chosen is not None and self.chosen.route.kind in ("local", "anycast")


def lookup(sight: Sight, query: Query) -> Answer:
    """The kernel's choice for this packet."""
    others: list[Candidate] = []
    decided: Answer | None = None
    for rule in matching_rules(sight, query):
        if rule.action in REFUSALS and decided is None:
            decided = Answer(query=query, refused=f"policy rule {rule.priority} says {rule.action}")
            break
        if rule.action != "lookup":
            continue
        found = list(_candidates(sight, rule, query))
        first = next((one for one in found if not one.unusable), None)
        if decided is None and first is not None and not _sends_on(rule, first):
            decided = _decision(sight, query, first)
            found.remove(first)
        others += found
    if decided is None:
        return Answer(query=query, others=tuple(others))
    return msgspec.structs.replace(decided, others=tuple(others))


def _sends_on(rule: RuleRecord, candidate: Candidate) -> bool:
    """Whether the answer of this table does not count, so that the next rule is asked."""
    route, suppressed = candidate.route, rule.suppress_prefix_length
    if route.kind in REFUSALS:  # a refusal counts, however short its prefix
        return False
    too_short = suppressed is not None and prefix_length(route.destination) <= suppressed
    return route.kind == "throw" or too_short


def _decision(sight: Sight, query: Query, candidate: Candidate) -> Answer:
    route = candidate.route
    if route.kind in REFUSALS:
        return Answer(query=query, chosen=candidate, refused=f"a route of kind {route.kind}: {REFUSALS[route.kind]}")
    return Answer(query=query, chosen=candidate, way=way_of(sight, route, query.oif))


def matching_rules(sight: Sight, query: Query) -> Iterator[RuleRecord]:
    """The policy rules that this packet meets, in the order of asking."""
    family = AF_OF[family_of(query.destination)]
    rules = [rule for rule in sight.rules if rule.family == family]
    for rule in sorted(rules, key=lambda rule: rule.priority):
        if _matches(rule, query) != rule.inverted:
            yield rule


def _matches(rule: RuleRecord, query: Query) -> bool:
    if rule.iif and rule.iif != (query.iif or "lo"):
        return False
    if rule.oif and rule.oif != query.oif:
        return False
    if (rule.fwmark or rule.fwmask) and (query.mark ^ rule.fwmark) & (rule.fwmask or 0xFFFFFFFF):
        return False
    if rule.source is not None and (query.source is None or not inside(rule.source, query.source)):
        return False
    return rule.destination is None or inside(rule.destination, query.destination)


def inside(prefix: str, address: str) -> bool:
    """Whether a prefix contains an address of its own family."""
    if (":" in prefix) != (":" in address):
        return False
    first, last = span_of(prefix)
    return first <= span_of(address)[0] <= last


def _candidates(sight: Sight, rule: RuleRecord, query: Query) -> Iterator[Candidate]:
    """The routes of the rule's table that contain the destination, the best first."""
    for route in containing(sight, rule.table, query.destination):
        yield Candidate(rule=rule, route=route, unusable=_unusable(sight, route, query))


def containing(sight: Sight, table: int, destination: str) -> list[RouteRecord]:
    """All routes of a table that contain an address, in the kernel's order."""
    family = AF_OF[family_of(destination)]
    routes = [one for one in sight.routes if one.table == table and one.family == family]
    return in_kernel_order([route for route in routes if inside(route.destination, destination)])


def _unusable(sight: Sight, route: RouteRecord, query: Query) -> str:
    """Why the kernel steps over a route; empty when it does not."""
    if route.multipath:
        return ""
    link = sight.link_at(route.ifindex)
    name = link.name if link else ""
    if route.flags & DEAD:
        return f"{name} is down"
    if route.flags & LINKDOWN and sight.sysctl(f"net/ipv4/conf/{name}/ignore_routes_with_linkdown"):
        return f"{name} has no carrier"
    if query.oif and route.ifindex and name != query.oif and route.kind == "unicast":
        return f"it leaves by {name}, and {query.oif} is asked for"
    return ""


def way_of(sight: Sight, route: RouteRecord, oif: str = "") -> Way | None:
    """Where a route leads: the first of several ways (of those by ``oif``), the way of its next hop object."""
    ways = [Way(link=sight.name_of(hop.ifindex), via=hop.via) for hop in route.multipath]
    if route.ifindex:
        ways.insert(0, Way(link=sight.name_of(route.ifindex), via=route.via))
    nexthop = nexthop_of(sight, route.nexthop_id) if route.nexthop_id and not ways else None
    if nexthop and nexthop.ifindex:
        ways.append(Way(link=sight.name_of(nexthop.ifindex), via=nexthop.via))
    return next((way for way in ways if oif in ("", way.link)), None)


def why(sight: Sight, answer: Answer) -> str:
    """Why the chosen route won over the next best."""
    if answer.chosen is None:
        return _why_none(sight, answer)
    chosen = answer.chosen
    usable = [one for one in answer.others if not one.unusable]
    stepped_over = [one for one in answer.others if one.unusable and _better(one, chosen)]
    parts = [f"steps over {route_text(sight, one.route)}: {one.unusable}" for one in stepped_over]
    parts.append(_beats(sight, chosen, usable[0]) if usable else f"beats nothing: {_alone(sight, answer)}")
    ways = len(chosen.route.multipath)
    parts += [f"one of {ways} ways, by a hash of the flow"] if ways > 1 else []
    return "; ".join(parts)


def _better(one: Candidate, other: Candidate) -> bool:
    return rank(one) < rank(other)


def rank(one: Candidate) -> tuple[int, int, int]:
    """What the kernel compares: the rule's priority, the length of the prefix, the metric; the smallest wins."""
    return one.rule.priority, -prefix_length(one.route.destination), metric_of(one.route)


def _beats(sight: Sight, chosen: Candidate, other: Candidate) -> str:
    text = f"beats {route_text(sight, other.route)}"
    if chosen.rule.priority != other.rule.priority:
        tables = f"table {table_name(chosen.route.table)} before {table_name(other.route.table)}"
        return f"{text}: rule {chosen.rule.priority} is asked before {other.rule.priority}, {tables}"
    mine, theirs = prefix_length(chosen.route.destination), prefix_length(other.route.destination)
    if mine != theirs:
        return f"{text}: /{mine} is longer than /{theirs}"
    if metric_of(chosen.route) != metric_of(other.route):
        return f"{text}: metric {metric_of(chosen.route)} is lower than {metric_of(other.route)}"
    return f"{text}: equal, and first in the table"


def _alone(sight: Sight, answer: Answer) -> str:
    """Words for a route without a rival: a longer one inside of it that does not contain the destination."""
    assert answer.chosen is not None
    route = answer.chosen.route
    nearest = [
        one
        for one in sight.routes
        if one.table == route.table
        and one.family == route.family
        and prefix_length(one.destination) > prefix_length(route.destination)
        and inside(route.destination, one.destination.partition("/")[0])
    ]
    if not nearest:
        return "the only route that contains it"
    longest = max(nearest, key=lambda one: prefix_length(one.destination))
    return f"{shown_destination(longest)} {sight.name_of(longest.ifindex)} does not contain it".replace("  ", " ")


def _why_none(sight: Sight, answer: Answer) -> str:
    if answer.refused:
        return answer.refused
    unusable = [f"{route_text(sight, one.route)} ({one.unusable})" for one in answer.others if one.unusable]
    if unusable:
        return f"no usable route contains {answer.query.destination}: {', '.join(unusable)}"
    return f"no route contains {answer.query.destination}"


def why_not(sight: Sight, answer: Answer, wanted: str) -> str:
    """Why a route (``10.0.0.0/8``, ``default``, or with ``dev``, ``via`` ...) was not chosen."""
    words = " ".join(wanted.split())
    routes = [one for one in sight.routes if _is_called(sight, one, words)]
    if not routes:
        return f"there is no route {wanted!r} here"
    tried = {id(one.route): one for one in answer.others}
    if any(answer.chosen is not None and one is answer.chosen.route for one in routes):
        return "it was chosen"
    route = routes[0]
    text = route_text(sight, route)
    if not inside(route.destination, answer.query.destination):
        return f"{text} does not contain {answer.query.destination}"
    candidate = tried.get(id(route))
    if candidate is None:
        return f"{text} is in table {table_name(route.table)}, which no rule asks for this packet"
    if candidate.unusable:
        return f"{text} is not usable: {candidate.unusable}"
    assert answer.chosen is not None or answer.refused
    if answer.chosen is None:
        return f"{text} was not asked: {answer.refused}"
    return _beats(sight, answer.chosen, candidate).replace(
        "beats", f"{route_text(sight, answer.chosen.route)} beats", 1
    )


def _is_called(sight: Sight, route: RouteRecord, words: str) -> bool:
    text = route_text(sight, route)
    return text == words or text.startswith(f"{words} ") or words in (route.destination, shown_destination(route))


def device_of(sight: Sight, answer: Answer) -> LinkRecord | None:
    """The link that the packet leaves by."""
    return sight.link(answer.way.link) if answer.way else None
