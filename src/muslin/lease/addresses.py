"""Which addresses of the node's subnet its containers have.

Theory of operation: a pool knows one subnet. The network's own address, the gateway (the next one) and IPv4's
broadcast address are never handed out. An address that nobody had is found by a cursor that only moves up; when it
has come to the end, the address that was given back the longest time ago is the next. So an address rests as long as
possible before another container has it, while somebody's cache may still hold the old one. No clock is needed for
that: the order counts. Taken addresses are a set and freed ones an ordered dictionary, so that each question costs the
same however many there are; the cursor looks at each address once.

A pool of more than ``QUEUE_MAX`` addresses keeps no queue, which could grow without end in an IPv6 subnet: there the
cursor, once at the end, starts again, and passes over what is taken.

Choosing and taking are two steps. What is chosen for both families is written down first and taken then, so whatever
fails leaves everything as it was.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from muslin.model.address import Family, address_part, family_of, packed

QUEUE_MAX = 1 << 16
"""Addresses; a whole IPv4 /16."""
GATEWAY = 1
"""Its place in the subnet."""
FIRST = 2


class AddressTaken(ValueError):
    """A wanted address is somebody else's; ``holder`` says whose, where that is known."""

    def __init__(self, address: str, holder: str = "") -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(f"{address} is taken{by}; another one, or none, may be asked for")
        self.address = address
        self.holder = holder


class AddressOutside(ValueError):
    """A wanted address is none that the node could hand out."""

    def __init__(self, address: str, possible: str) -> None:
        super().__init__(f"{address} cannot be had on this node; it hands out {possible}")
        self.address = address


class PoolExhausted(ValueError):
    """No address is left; ``total`` is how many the subnet has for containers, ``taken`` how many are in use."""

    def __init__(self, subnet: str, total: int, taken: int) -> None:
        super().__init__(
            f"no address of {subnet} is free: {taken} of {total} are taken; containers that end, or longer subnets of "
            "the network's next configuration, would mend it"
        )
        self.total = total
        self.taken = taken


class Pool:
    """The addresses of one subnet. Addresses are taken with or without length, and given with the subnet's."""

    def __init__(
        self,
        subnet: str,
        *,
        taken: Iterable[str] = (),
        freed: Iterable[str] = (),
        cursor: int = 0,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        """A pool in the state that an earlier one was in; what is not of this subnet, or there twice, is passed over.

        ``freed`` has the one first that was given back first; ``cursor`` is the earlier pool's.
        """
        self._network = ipaddress.ip_network(subnet)
        self._base = int(self._network.network_address)
        self._last = self._network.num_addresses - (2 if self._network.version == 4 else 1)
        self.subnet = str(self._network)
        self.family: Family = family_of(self.subnet)
        self.total = max(0, self._last - FIRST + 1)
        self.is_queued = self.total <= queue_max
        self._taken = {place for address in taken if (place := self._place(address))}
        places = (self._place(address) for address in freed if self.is_queued)
        self._freed: OrderedDict[int, None] = OrderedDict.fromkeys(
            place for place in places if place and place not in self._taken
        )
        self._cursor = max(FIRST, min(cursor, self._last + 1))
        self._advance()

    @property
    def cursor(self) -> int:
        """The place of the next address that nobody had."""
        return self._cursor

    @property
    def taken(self) -> int:
        """How many addresses are taken."""
        return len(self._taken)

    def freed(self) -> list[str]:
        """What waits to be handed out again, without length, the one first that was given back first."""
        return [str(self._network[place]) for place in self._freed]

    @property
    def gateway(self) -> str:
        """The gateway's address, without length."""
        return str(self._network[GATEWAY])

    def has(self, address: str) -> bool:
        """Whether the pool could hand this address out."""
        return bool(self._place(address))

    def queues(self, address: str) -> bool:
        """Whether this address, given back, waits in the queue."""
        return self.is_queued and self.has(address)

    def with_length(self, address: str) -> str:
        """An address that the pool ``has``, in canonical form with the subnet's length."""
        return self._text(self._place(address))

    def is_taken(self, address: str) -> bool:
        """Whether somebody has it."""
        return self._place(address) in self._taken

    def reserve(self, wanted: str | None = None) -> str:
        """Take the wanted address, or the next; AddressTaken, AddressOutside, PoolExhausted."""
        address = self.choose(wanted)
        self.take(address)
        return address

    def choose(self, wanted: str | None = None) -> str:
        """The address that ``reserve`` would take."""
        return self._text(self._next() if wanted is None else self._free_place(wanted))

    def take(self, address: str) -> None:
        """Take this address; AddressTaken, AddressOutside."""
        place = self._free_place(address)
        self._freed.pop(place, None)
        self._taken.add(place)
        self._advance()

    def release(self, address: str) -> None:
        """Give an address back; nothing happens when nobody had it."""
        place = self._place(address)
        if place in self._taken:
            self._taken.remove(place)
            if self.is_queued:
                self._freed[place] = None

    def describe(self) -> str:
        """``10.5.3.2 to 10.5.3.254``, for a sentence."""
        return f"{self._network[FIRST]} to {self._network[self._last]}" if self.total else f"nothing of {self.subnet}"

    def _next(self) -> int:
        if len(self._taken) >= self.total:
            raise PoolExhausted(self.subnet, self.total, len(self._taken))
        if self._cursor > self._last and self._freed:
            return next(iter(self._freed))
        if self._cursor > self._last:  # some address is free and not in the queue
            self._cursor = FIRST
            self._advance()
        return self._cursor

    def _advance(self) -> None:
        """Past what is taken or waits, and at once: what is freed there later is not the next to be handed out."""
        while self._cursor <= self._last and (self._cursor in self._taken or self._cursor in self._freed):
            self._cursor += 1

    def _free_place(self, address: str) -> int:
        place = self._place(address)
        if not place:
            raise AddressOutside(address_part(address), self.describe())
        if place in self._taken:
            raise AddressTaken(address_part(address))
        return place

    def _place(self, address: str) -> int:
        """How many places after the subnet's first address; 0, which is nobody's, for one that is not handed out."""
        if family_of(address) != self.family:
            return 0
        place = int.from_bytes(packed(address_part(address))) - self._base
        return place if FIRST <= place <= self._last else 0

    def _text(self, place: int) -> str:
        return f"{self._network[place]}/{self._network.prefixlen}"


def choose_all(pools: Sequence[Pool], wanted: Iterable[str] = (), held: Iterable[str] = ()) -> tuple[str, ...]:
    """An address of each pool, with length, that may then be taken: the wanted one, the one held already, or the next.

    AddressOutside also for a wanted address of a family that has no pool.
    """
    wanted, held = list(wanted), list(held)
    for address in wanted:
        if not any(pool.family == family_of(address) for pool in pools):
            possible = " and ".join(pool.describe() for pool in pools) or "nothing, as it has no subnet"
            raise AddressOutside(address_part(address), possible)
    return tuple(_choose(pool, wanted, held) for pool in pools)


def _choose(pool: Pool, wanted: Sequence[str], held: Sequence[str]) -> str:
    wish = next((address for address in wanted if family_of(address) == pool.family), None)
    own = next((pool.with_length(address) for address in held if pool.has(address)), None)
    if own is not None and (wish is None or (pool.has(wish) and pool.with_length(wish) == own)):
        return own
    return pool.choose(wish)
