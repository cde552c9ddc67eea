"""Who is checked against whom: endpoints, and the pairs of a source and one address of a destination.

Theory of operation: the talk's matrices fall out of one rule, "every source with every address of every
endpoint, itself included": 4 checks for one container and its node (S1), 12 for one node with a bridge and
two containers (S2), 48 for two such nodes (S3, S4). A source is asked only in the families that it has
itself. A matrix is quadratic, so that huge labs are checked by an evenly spread sample.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from muslin.model.address import Family, family_of

Role = Literal["node", "container"]
Requirement = Literal["R1", "R2", "R3", "underlay"]
REQUIREMENTS: tuple[Requirement, ...] = ("R1", "R2", "R3", "underlay")
_PROVES: dict[Requirement, tuple[Requirement, ...]] = {
    "R1": ("R1", "R3"),
    "R2": ("R2", "R3"),
    "underlay": ("underlay",),
}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One party of the checks: a node, or a container on a node.

    ``name`` is what people call it (``con1.node1``, ``node1``), ``netns`` what ``kernel.netns.call_in`` calls
    it, ``addresses`` where it is checked at, canonical, of either family: a container's own address; a node's
    underlay address and its bridge address.
    """

    name: str
    role: Role
    node: str
    netns: str
    addresses: tuple[str, ...]

    @property
    def families(self) -> frozenset[Family]:
        """The families of its addresses."""
        return frozenset(family_of(address) for address in self.addresses)


HopCount = Callable[[Endpoint, Endpoint, str], int | None]


class Pair(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One cell of the matrix: ``source`` talks to ``destination`` at ``address``.

    ``expected_hops`` is the number of routers between: the destination must see a TTL of 64 less that number;
    None asks for nothing.
    """

    source: Endpoint
    destination: Endpoint
    address: str
    expected_hops: int | None = None

    @property
    def requirement(self) -> Requirement:
        """R1 between containers, R2 between a node and a container either way, ``underlay`` between nodes."""
        containers = (self.source.role, self.destination.role).count("container")
        return ("underlay", "R2", "R1")[containers]

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What the pair proves: its own requirement, and R3 wherever a container takes part."""
        return _PROVES[self.requirement]

    @property
    def crosses_nodes(self) -> bool:
        """Whether the packets leave the source's node."""
        return self.source.node != self.destination.node

    @property
    def title(self) -> str:
        """``con1.node1 -> 172.16.1.2 (con1.node2)``."""
        return f"{self.source.name} -> {self.address} ({self.destination.name})"


def all_pairs(endpoints: Iterable[Endpoint], expected_hops: HopCount) -> tuple[Pair, ...]:
    """Every source with every address of every endpoint, itself included, in families that the source has."""
    parties = tuple(endpoints)
    return tuple(
        Pair(
            source=source,
            destination=destination,
            address=address,
            expected_hops=expected_hops(source, destination, address),
        )
        for source in parties
        for destination in parties
        for address in destination.addresses
        if family_of(address) in source.families
    )


def sample_pairs(pairs: Sequence[Pair], count: int, seed: int = 0) -> tuple[Pair, ...]:
    """``count`` of the pairs, the same ones for the same seed, in the order of ``pairs``.

    They are spread evenly: pairs of the source and the address that were taken least often come first, so
    that each source and each address is there as soon as ``count`` allows. All pairs when there are no more
    than that.
    """
    if count >= len(pairs):
        return tuple(pairs)
    chance = random.Random(seed)
    by_source: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_source.setdefault(pair.source.name, []).append(index)
    sources = sorted(by_source)
    for candidates in by_source.values():
        chance.shuffle(candidates)
    uses: Counter[str] = Counter()
    chosen: list[int] = []
    while len(chosen) < count:
        chance.shuffle(sources)
        for source in sources[: count - len(chosen)]:
            if candidates := by_source[source]:
                chosen.append(_take_least_used(candidates, pairs, uses))
    return tuple(pairs[index] for index in sorted(chosen))


def _take_least_used(candidates: list[int], pairs: Sequence[Pair], uses: Counter[str]) -> int:
    position = min(range(len(candidates)), key=lambda place: uses[pairs[candidates[place]].address])
    index = candidates.pop(position)
    uses[pairs[index].address] += 1
    return index
