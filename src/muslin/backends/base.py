"""What backends share: reading options, sorting out peers that cannot be served, and the routes to the others.

Theory of operation: options are JSON values under names that count without regard to case, as Go reads them; ``null``
is as good as absent. ``Given`` hands them out checked, and keeps the names that nobody asked for.

A peer that a lease tells of may say anything. ``sort_out`` refuses, with the reason, each one whose word cannot be
followed without harm to others: it uses another backend, claims our subnet or our address, or its subnet covers an
address of the underlay (a route for that would swallow the tunnel's own packets). Peers of a lab are taken as they are.

A route leads through a next hop object of its own where ``use_nexthops`` asks for that: with the gateway in the route
the kernel's work is quadratic (10,000 routes: 1.6 s, with objects 0.12 s). The numbers of these objects are shared with
everybody in the namespace, so they lie where others do not go (FRR, for one, stays below 2**28):

- 2**30 + 0..2**30: IPv4. The subnet's address without its last two bits, which are zero for any length up to /30:
  a number a subnet, and never the same one for two;
- 2**31 + 0..2**31: IPv6, and IPv4 subnets longer than /30. A hash of the subnet. A number that two subnets come to
  belongs to neither: each hashes again, until all have one. So the numbers depend on the set of subnets alone, not on
  their order, and a newcomer that collides never takes a number that leads somewhere else at that moment.

An object is numbered by the subnet and not by the gateway: a peer that moves keeps its number, and one message to the
kernel turns its route.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from muslin.model.address import Family, family_of, prefix_length
from muslin.model.config import span_of
from muslin.model.kernel import AnyObject, Nexthop, Route
from muslin.model.network import LocalNode, Peer, Refusal

NEXTHOP_IPV4 = 1 << 30
NEXTHOP_HASHED = 1 << 31
LONGEST_NUMBERED = 30  # bits of an IPv4 subnet address that its number keeps

PORT_MAX = 0xFFFF
MTU_MIN = 576  # RFC 791: what every IPv4 host can take; less is a slip of the pen
MTU_MAX = 0xFFFF


class Given:
    """The options of a backend as the network configuration has them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._values = {key.casefold(): (key, value) for key, value in options.items() if value is not None}
        self._values.pop("type", None)

    def whole(self, key: str, default: int, highest: int, lowest: int = 0) -> int:
        """A whole number; 0 is always allowed and stands for the default of whoever uses it."""
        value = self._take(key, default)
        if type(value) is not int or not (value == 0 or lowest <= value <= highest):
            also = "0 or " if lowest > 0 else ""
            expected = f"{also}a whole number from {lowest} to {highest}"
            raise ValueError(f"Backend.{key} is {_shown(value)}; expected {expected}")
        return value

    def boolean(self, key: str) -> bool:
        """True or false; false by default."""
        value = self._take(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"Backend.{key} is {_shown(value)}; expected true or false")
        return value

    def _take(self, key: str, default: Any) -> Any:
        return self._values.pop(key.casefold(), (key, default))[1]

    @property
    def left(self) -> tuple[str, ...]:
        """The names that meant nothing, as they were written."""
        return tuple(key for key, _ in self._values.values())


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."


class Way(NamedTuple):
    """How a subnet is reached: through this gateway, on this link."""

    subnet: str
    via: str
    link: str
    onlink: bool | None = None


def route(local: LocalNode, way: Way, numbers: Mapping[str, int]) -> Iterator[AnyObject]:
    """The route, before it its next hop object where ``numbers`` has one for the subnet."""
    number = numbers.get(way.subnet)
    if number is None:
        yield Route(
            netns=local.netns,
            destination=way.subnet,
            via=way.via,
            link=way.link,
            onlink=way.onlink,
            protocol=local.protocol,
        )
        return
    yield Nexthop(
        netns=local.netns,
        id=number,
        link=way.link,
        via=way.via,
        onlink=bool(way.onlink),
        protocol=local.protocol,
    )
    yield Route(netns=local.netns, destination=way.subnet, nexthop_id=number, protocol=local.protocol)


def nexthop_numbers(peers: Iterable[Peer]) -> dict[str, int]:
    """The number of each subnet's next hop object; see the head of this file."""
    numbers: dict[str, int] = {}
    hashed: list[str] = []
    for subnet in dict.fromkeys(subnet for peer in peers for subnet in peer.subnets):
        if family_of(subnet) == 4 and prefix_length(subnet) <= LONGEST_NUMBERED:
            numbers[subnet] = NEXTHOP_IPV4 | span_of(subnet)[0] >> 2
        else:
            hashed.append(subnet)
    return numbers | _hashed_numbers(hashed)


def _hashed_numbers(subnets: Sequence[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    attempt = 0
    while subnets:
        claims = {subnet: _hashed_number(subnet, attempt) for subnet in subnets}
        claimants = Counter(claims.values())
        settled = {subnet: n for subnet, n in claims.items() if claimants[n] == 1 and n not in taken}
        numbers |= settled
        taken |= claimants.keys()
        subnets = [subnet for subnet in subnets if subnet not in settled]
        attempt += 1
    return numbers


def _hashed_number(subnet: str, attempt: int) -> int:
    digest = hashlib.blake2b(subnet.encode(), digest_size=4, salt=attempt.to_bytes(2, "big")).digest()
    return NEXTHOP_HASHED | int.from_bytes(digest, "big") >> 1


def sort_out(
    local: LocalNode, peers: Sequence[Peer], backend: str, accepted: Collection[str]
) -> tuple[list[Peer], list[Refusal]]:
    """The peers that can be served, as far as that does not depend on the backend, and why the others cannot."""
    served: list[Peer] = []
    refusals: list[Refusal] = []
    own = [(family_of(subnet), *span_of(subnet)) for subnet in local.subnets]
    underlay = [(family_of(address), span_of(address)[0]) for address in local.addresses]
    for peer in peers:
        reason = "" if peer.backend is None else _unusable(peer, backend, accepted, own, underlay)
        if reason:
            refusals.append(Refusal(peer.name, f"{peer.name} cannot be reached from {local.name}: {reason}"))
        else:
            served.append(peer)
    return served, refusals


def _unusable(
    peer: Peer,
    backend: str,
    accepted: Collection[str],
    own: Sequence[tuple[Family, int, int]],
    underlay: Sequence[tuple[Family, int]],
) -> str:
    """Why a lease cannot be followed; empty when it can."""
    if peer.backend not in accepted:
        theirs = f"the {peer.backend} backend" if peer.backend else "a backend that it does not name (flannel's udp)"
        return f"it uses {theirs} and this node {backend}; both need the same one"
    try:
        spans = [(subnet, family_of(subnet), *span_of(subnet)) for subnet in peer.subnets]
        outer = [(family_of(address), span_of(address)[0]) for address in peer.addresses]
    except ValueError as error:
        return f"its lease holds no usable address: {error}"
    for address in outer:
        if address in underlay:
            return "its lease has this node's own underlay address; two agents must not share a public address"
    for subnet, family, first, last in spans:
        for other, low, high in own:
            if family == other and first <= high and low <= last:
                return f"its subnet {subnet} overlaps with this node's own"
        for other, address_number in (*underlay, *outer):
            if family == other and first <= address_number <= last:
                return f"its subnet {subnet} covers an address of the underlay, whose packets would be led astray"
    return ""
