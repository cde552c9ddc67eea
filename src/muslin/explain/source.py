"""Which address a namespace puts on a packet of its own as source.

Theory of operation: the route's own (``src``), else for IPv4 the first address of the outgoing link, preferring one in
the next hop's subnet, else one of any other link (net/ipv4/devinet.c, inet_select_addr); for IPv6 the best by the
rules of RFC 6724 that need no state: same as the destination, scope, outgoing link, label, longest common prefix.
"""

from __future__ import annotations

from collections.abc import Iterable

from muslin.explain.lookup import Answer, inside
from muslin.model.address import family_of, network_of, packed, prefix_length
from muslin.wire.rtnetlink import AF_INET, AF_INET6, AddressRecord
from muslin.wire.sight import Sight

SECONDARY = 0x01  # linux/if_addr.h IFA_F_SECONDARY
DEPRECATED = 0x20
SCOPE_LINK = 253  # linux/rtnetlink.h RT_SCOPE_LINK
SCOPE_HOST = 254

# RFC 6724 section 2.1 as Linux has it (net/ipv6/addrlabel.c), the longest first
_LABELS = (
    ("::1/128", 0), ("::ffff:0:0/96", 4), ("::/96", 3), ("2001::/32", 6), ("2001:10::/28", 7), ("2002::/16", 2),
    ("fc00::/7", 5), ("::/0", 1),
)  # fmt: skip


def source_of(sight: Sight, answer: Answer) -> str | None:
    """The source address for the packet that was asked about; None where there is no address at all."""
    if answer.chosen is None:
        return None
    route = answer.chosen.route
    if route.source:
        return route.source
    destination = answer.query.destination
    if route.kind == "local":
        return destination
    link = answer.way.link if answer.way else ""
    if family_of(destination) == 6:
        return _select_v6(sight, destination, link)
    return _select_v4(sight, answer.way.via if answer.way else None, link, route.scope)


def _select_v4(sight: Sight, gateway: str | None, link: str, scope: int) -> str | None:
    """inet_select_addr: an address whose scope reaches as far as the route does."""
    on_link = [one for one in sight.addresses_on(link) if one.family == AF_INET]
    fit = [one for one in on_link if not one.flags & SECONDARY and min(one.scope, SCOPE_LINK) <= scope]
    for one in fit:
        if gateway is None or inside(network_of(one.address), gateway):
            return _bare(one)
    if fit:
        return _bare(fit[0])
    elsewhere = [
        one
        for one in sight.addresses
        if one.family == AF_INET and not one.flags & SECONDARY and one.scope != SCOPE_LINK and one.scope <= scope
    ]
    return _bare(elsewhere[0]) if elsewhere else None


def _bare(one: AddressRecord) -> str:
    return one.address.partition("/")[0]


def _select_v6(sight: Sight, destination: str, link: str) -> str | None:
    candidates = [one for one in sight.addresses if one.family == AF_INET6 and not (one.tentative or one.dad_failed)]
    # Only what the link itself has may go to its own neighbours (RFC 6724 section 4).
    if _scope(destination) <= 2:
        candidates = [one for one in candidates if sight.name_of(one.ifindex) == link]
    return _best(sight, candidates, destination, link)


def _best(sight: Sight, candidates: Iterable[AddressRecord], destination: str, link: str) -> str | None:
    def score(one: AddressRecord) -> tuple[bool, tuple[bool, int], bool, bool, bool, int]:
        address = _bare(one)
        reach, needed = _scope(address), _scope(destination)
        # Rule 2: a scope that is wide enough, the narrowest of those; of too narrow ones the widest.
        fitting = (reach >= needed, -reach if reach >= needed else reach)
        return (
            address == destination,
            fitting,
            not one.flags & DEPRECATED,
            sight.name_of(one.ifindex) == link,
            _label(address) == _label(destination),
            min(_common_bits(address, destination), prefix_length(one.address)),
        )

    best = max(candidates, key=score, default=None)
    return _bare(best) if best else None


def _scope(address: str) -> int:
    """RFC 4291: 2 for link-local and loopback, 14 for global."""
    if address == "::1" or inside("fe80::/10", address):
        return 2
    return int(address.partition(":")[0][3:], 16) if inside("ff00::/8", address) else 14


def _label(address: str) -> int:
    return next(label for prefix, label in _LABELS if inside(prefix, address))


def _common_bits(one: str, other: str) -> int:
    difference = int.from_bytes(packed(one), "big") ^ int.from_bytes(packed(other), "big")
    return 128 - difference.bit_length()
