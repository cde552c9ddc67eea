"""Which subnets a node takes when it has none.

Theory of operation: a pool's subnets are numbered. What is taken becomes a sorted list of runs of numbers (a lease of
another length covers several, or a part of one, which spoils it whole). The free numbers are then counted, one of them
is drawn, and a walk along the runs finds it: the work is that of sorting the leases, however large the pool is, and
each free subnet is as likely as any other. flannel draws among the first hundred, so nodes that start together collide.

With both families the second subnet has the number of the first wherever it is free. A lease's name holds both, and a
store only sees to it that a name is not taken twice: equal numbers make sure that two nodes that race for one IPv6
subnet race for one name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from muslin.model.address import family_of
from muslin.model.config import NetworkConfig, SubnetPool, span_of
from muslin.model.lease import ClusterSnapshot
from muslin.wire.flannel_lease import parse_name


class Dice(Protocol):
    """The part of ``random.Random`` that is used; a room that throws no dice of its own is handed them."""

    def randrange(self, stop: int, /) -> int:
        """A whole number from 0 up to, not including, ``stop``."""
        ...

    def uniform(self, a: float, b: float, /) -> float:
        """A number from ``a`` to ``b``."""
        ...


class Exhausted(ValueError):
    """A pool has no free subnet; the text has the numbers."""


def taken_in(snapshot: ClusterSnapshot) -> list[str]:
    """All subnets that somebody's lease is filed under, also one that holds garbage: its name is not free."""
    taken = [subnet for lease in snapshot.leases for subnet in lease.subnets]
    for name in snapshot.unreadable:
        try:
            taken += parse_name(name)
        except ValueError:
            continue  # not the name of a subnet: it stands in nobody's way
    return taken


def reserved_in(snapshot: ClusterSnapshot) -> list[str]:
    """Those of them that are reservations."""
    return [subnet for lease in snapshot.leases if lease.expires_at is None for subnet in lease.subnets]


def allocate(
    config: NetworkConfig,
    taken: Iterable[str],
    dice: Dice,
    *,
    reserved: Iterable[str] = (),
    wanted: Sequence[str] = (),
) -> tuple[str, ...]:
    """A free subnet of each pool, one of ``wanted`` where there is one; Exhausted when a pool has none.

    ``reserved`` subnets are as good as taken, and are told apart in the error's text.
    """
    reserved = list(reserved)
    occupied = [*taken, *reserved]
    chosen: list[str] = []
    index: int | None = None
    for pool in config.pools:
        free = _Free(pool, occupied)
        if not free.count:
            raise Exhausted(_exhausted(pool, reserved))
        hopes = [*(pool.index_of(subnet) for subnet in wanted), index]
        index = next((hope for hope in hopes if hope is not None and hope in free), None)
        index = free.draw(dice) if index is None else index
        chosen.append(pool.subnet(index))
    return tuple(chosen)


class _Free:
    """The free numbers of one pool."""

    def __init__(self, pool: SubnetPool, occupied: Sequence[str]) -> None:
        self._runs = list(_merged(sorted(_runs(pool, occupied))))
        self._total = pool.count
        self.count = self._total - sum(last - first + 1 for first, last in self._runs)

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._runs, (index, self._total))
        return 0 <= index < self._total and not (at and index <= self._runs[at - 1][1])

    def draw(self, dice: Dice) -> int:
        """Any of them, all equally likely."""
        index = dice.randrange(self.count)
        for first, last in self._runs:
            if index < first:
                break
            index += last - first + 1
        return index


def _runs(pool: SubnetPool, occupied: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The numbers that each subnet covers, as far as they are the pool's."""
    base, _ = span_of(pool.subnet_min)
    for subnet in occupied:
        if family_of(subnet) == pool.family:
            low, high = span_of(subnet)
            first, last = (low - base) // pool.size, (high - base) // pool.size
            if last >= 0 and first < pool.count:
                yield max(first, 0), min(last, pool.count - 1)


def _merged(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted runs without overlaps."""
    current: tuple[int, int] | None = None
    for first, last in runs:
        if current is None:
            current = first, last
        elif first <= current[1] + 1:
            current = current[0], max(current[1], last)
        else:
            yield current
            current = first, last
    if current is not None:
        yield current


def _exhausted(pool: SubnetPool, reserved: Sequence[str]) -> str:
    held = sum(last - first + 1 for first, last in _merged(sorted(_runs(pool, reserved))))
    return (
        f"no subnet is free: {pool.network} has {pool.count} subnets of length {pool.subnet_length} from "
        f"{pool.subnet_min} to {pool.subnet_max}, and all of them are taken, {held} by reservations; a larger network, "
        "longer subnets, or leases given back would mend it"
    )
