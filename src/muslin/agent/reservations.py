"""Which container of this node has which addresses, now and after a restart.

Theory of operation: memory holds everything and answers every question; the file (``reservation_file``) is a copy of
it that is written first. A reservation is found by what a runtime says of a container, its id and interface, and never
by an address that a runtime mentions: a late DEL may name one that a living container has by now.

A container that is added again keeps its addresses where they still fit: after a reboot a runtime adds the same id
anew, and was never able to take the first one back.

When the lease changes, reservations in the old subnets stay until their containers go; new ones come from the new
subnets. Used from one thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from muslin.agent.reservation_file import Change, Contents, ReservationFile, Row
from muslin.errors import MuslinError
from muslin.lease.addresses import AddressTaken, Pool, choose_all
from muslin.model.address import address_part, family_of
from muslin.wire.cni import Mode
from muslin.wire.cni_fields import is_address, is_interface_address

log = logging.getLogger("muslin.agent")

Key = tuple[str, str]
"""Container id and interface name in the container."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What one attachment of a container to the network is made of."""

    container_id: str
    ifname: str
    """In the container."""
    network: str
    """The configuration's name."""
    addresses: tuple[str, ...] = ()
    """With length, one a family."""
    gateways: tuple[str, ...] = ()
    """Without length, one a family."""
    mac: str = ""
    host_link: str = ""
    """The name of the cable's end on the node."""
    mode: Mode = "bridge"
    mtu: int | None = None
    """Bytes."""
    hairpin: bool = False
    default_route: bool = True
    spoof_check: bool = True
    netns_path: str = ""
    """CNI_NETNS as the runtime gave it."""
    netns_inode: int = 0
    boot_id: str = ""
    """Of the boot in which the namespace was there."""
    at: float = 0.0
    """Seconds since the epoch."""
    complete: bool = False
    """Whether the kernel agreed with it once; if not, an ADD was cut short."""

    @property
    def key(self) -> Key:
        """What a runtime names it by."""
        return self.container_id, self.ifname

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


class Reservations:
    """All reservations of a node. ``open`` makes one."""

    def __init__(self, path: Path) -> None:
        self._file = ReservationFile(path, self._contents)
        self._by_key: dict[Key, Reservation] = {}
        self._by_address: dict[str, Key] = {}
        self._by_cable: dict[str, Key] = {}
        self._pools: tuple[Pool, ...] = ()
        self._cursors: dict[str, int] = {}
        """As they stand in the file."""

    @classmethod
    def open(cls, path: Path, subnets: Sequence[str] = ()) -> Reservations:
        """What the file at ``path`` holds, for a node with these subnets; MuslinError when the disk refuses."""
        reservations = cls(path)
        contents = reservations._file.open()
        nonsense = reservations._load(contents.rows)
        freed = [address for address in contents.freed if is_address(address)]
        reservations._cursors = contents.cursors
        reservations._pools = reservations._make_pools(subnets, freed, contents.cursors)
        if nonsense:
            reservations._file.write(Change(drop=tuple(nonsense)))
        return reservations

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    # ---- questions ---------------------------------------------------------------------------------------

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The addresses of each subnet of the lease, in its order."""
        return self._pools

    def get(self, container_id: str, ifname: str) -> Reservation | None:
        """What this container has on this interface."""
        return self._by_key.get((container_id, ifname))

    def by_address(self, address: str) -> Reservation | None:
        """Whose an address, with or without length, is."""
        key = self._by_address.get(address_part(address))
        return None if key is None else self._by_key[key]

    def by_cable(self, host_link: str) -> Reservation | None:
        """Whose cable ends on the node in a link of this name."""
        key = self._by_cable.get(host_link)
        return None if key is None else self._by_key.get(key)

    @property
    def count(self) -> int:
        """How many reservations there are."""
        return len(self._by_key)

    def all(self) -> list[Reservation]:
        """Every reservation."""
        return list(self._by_key.values())

    # ---- changes -----------------------------------------------------------------------------------------

    def add(self, reservation: Reservation, wanted: Iterable[str] = ()) -> Reservation:
        """The reservation with addresses and gateways, written down.

        ``wanted`` has at most one address a family. What the container holds already it keeps, where it is in a subnet
        of the lease and nothing else is wanted. AddressTaken names the holder; AddressOutside, PoolExhausted;
        MuslinError when there is no subnet, or the file cannot be written. Whatever is raised, nothing has changed.
        """
        if not self._pools:
            raise MuslinError("this node has no subnet to hand out addresses of", "muslin status says why")
        before = self._by_key.get(reservation.key)
        held = before.addresses if before else ()
        try:
            addresses = choose_all(self._pools, wanted, held)
        except AddressTaken as error:
            raise AddressTaken(error.address, str(self.by_address(error.address) or "")) from None
        gateways = tuple(pool.gateway for pool in self._pools)
        made = msgspec.structs.replace(reservation, addresses=addresses, gateways=gateways)
        if made != before:
            self._exchange(before, made)
        return made

    def complete(self, key: Key) -> Reservation:
        """The kernel agrees with it; KeyError where nothing is reserved, MuslinError of the file."""
        before = self._by_key[key]
        made = msgspec.structs.replace(before, complete=True)
        self._exchange(before, made)
        return made

    def remove(self, key: Key) -> Reservation | None:
        """Give the addresses back; what was reserved, None where nothing was. MuslinError of the file."""
        before = self._by_key.get(key)
        if before is not None:
            self._exchange(before, None)
        return before

    def set_subnets(self, subnets: Sequence[str]) -> None:
        """The lease has these subnets now, none when it is lost."""
        if tuple(subnets) == tuple(pool.subnet for pool in self._pools):
            return
        cursors = {pool.subnet: pool.cursor for pool in self._pools}
        self._pools = self._make_pools(subnets, self._freed(), cursors)
        self._cursors = {pool.subnet: pool.cursor for pool in self._pools}
        try:
            self._file.write(Change(freed=self._freed(), cursors=self._cursors, new_pools=True))
        except MuslinError as error:
            # What the file still says of other subnets is passed over when it is read.
            log.warning("the order of freed addresses will not outlive the agent: %s", error)

    # ---- inside ------------------------------------------------------------------------------------------

    def _exchange(self, before: Reservation | None, after: Reservation | None) -> None:
        """Write one reservation in the place of another, and only then believe it."""
        old = [address_part(address) for address in before.addresses] if before else []
        new = [address_part(address) for address in after.addresses] if after else []
        taken = tuple(address for address in new if address not in old)
        freed = tuple(address for address in old if address not in new)
        cursors = {pool.subnet: pool.cursor for pool in self._pools if self._cursors.get(pool.subnet) != pool.cursor}
        change = Change(
            put=(_row(after),) if after else (),
            drop=(before.key,) if before and not after else (),
            freed=tuple(address for address in freed if any(pool.queues(address) for pool in self._pools)),
            cursors=cursors,
        )
        self._file.write(change)
        self._cursors |= cursors
        if before and not after:
            del self._by_key[before.key]
            self._by_cable.pop(before.host_link, None)
        for address in freed:
            self._release(address)
        if after:
            self._by_key[after.key] = after
            if before:
                self._by_cable.pop(before.host_link, None)
            self._by_cable[after.host_link] = after.key
            self._take(after.key, taken)

    def _take(self, key: Key, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._by_address[address] = key
            for pool in self._pools:
                if pool.has(address):
                    pool.take(address)

    def _release(self, address: str) -> None:
        del self._by_address[address]
        for pool in self._pools:
            pool.release(address)

    def _make_pools(self, subnets: Sequence[str], freed: Sequence[str], cursors: Mapping[str, int]) -> tuple[Pool, ...]:
        return tuple(
            Pool(subnet, taken=self._by_address, freed=freed, cursor=cursors.get(subnet, 0)) for subnet in subnets
        )

    def _freed(self) -> tuple[str, ...]:
        return tuple(address for pool in self._pools for address in pool.freed())

    def _contents(self) -> Contents:
        return Contents(
            rows=tuple(_row(reservation) for reservation in self._by_key.values()),
            freed=self._freed(),
            cursors={pool.subnet: pool.cursor for pool in self._pools},
        )

    def _load(self, rows: Iterable[Row]) -> list[Key]:
        """Take what makes sense, the oldest first; the keys of the others."""
        nonsense: list[Key] = []
        understood: list[Reservation] = []
        for container_id, ifname, value in rows:
            try:
                understood.append(_parse(container_id, ifname, value))
            except (ValueError, RecursionError) as error:
                log.warning(
                    "what is reserved for %s/%s makes no sense, and is dropped: %s", container_id, ifname, error
                )
                nonsense.append((container_id, ifname))
        for reservation in sorted(understood, key=lambda reservation: reservation.at):
            addresses = [address_part(address) for address in reservation.addresses]
            holder = next((held for address in addresses if (held := self.by_address(address))), None)
            if holder is None:
                self._by_key[reservation.key] = reservation
                self._by_cable[reservation.host_link] = reservation.key
                self._take(reservation.key, addresses)
            else:
                log.warning("%s has an address of %s, and its reservation is dropped", reservation, holder)
                nonsense.append(reservation.key)
        return nonsense


def _row(reservation: Reservation) -> Row:
    return reservation.container_id, reservation.ifname, msgspec.json.encode(reservation).decode()


def _parse(container_id: str, ifname: str, value: str) -> Reservation:
    """ValueError when it cannot be right."""
    reservation = msgspec.json.decode(value, type=Reservation)
    if reservation.key != (container_id, ifname):
        raise ValueError(f"it names {reservation}")
    if not reservation.addresses or not all(is_interface_address(address) for address in reservation.addresses):
        raise ValueError(f"its addresses are {', '.join(reservation.addresses) or 'missing'}")
    if len({family_of(address) for address in reservation.addresses}) < len(reservation.addresses):
        raise ValueError(f"{', '.join(reservation.addresses)} are two of one family")
    if not all(is_address(gateway) for gateway in reservation.gateways):
        raise ValueError(f"its gateways are {', '.join(reservation.gateways)}")
    return reservation
