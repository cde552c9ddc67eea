"""What the network as a whole is: the ranges that nodes take their subnets from, and how packets travel between nodes.

Theory of operation: a ``SubnetPool`` is one family's network, cut into subnets of one length and numbered from
``subnet_min`` (number 0) to ``subnet_max``. A lease takes one subnet of each pool. ``NetworkConfig`` holds at most one
pool a family and the backend with its options as JSON values: what they mean is the backend's own business. All sums
are done with integers, because thousands of leases are compared with a pool at once; text is made for the one result.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from muslin.model.address import HOST_BITS, Family, family_of, packed


def span_of(prefix: str) -> tuple[int, int]:
    """First and last address of a prefix (or of an address alone) as integers; ValueError when it is none."""
    address, slash, length = prefix.partition("/")
    bits = HOST_BITS[family_of(address)]
    try:
        first = int.from_bytes(packed(address), "big")
    except OSError:
        raise ValueError(f"{prefix!r} is not an IP address or prefix") from None
    host_bits = bits - int(length) if slash else 0
    if not 0 <= host_bits <= bits:
        raise ValueError(f"{prefix!r} has a length outside of 0 to {bits}")
    size = 1 << host_bits
    return first & -size, first | (size - 1)


class SubnetPool(msgspec.Struct, frozen=True, kw_only=True):
    """One family's network and the subnets in it that nodes may lease, all of one length.

    ``subnet_min`` and ``subnet_max`` are the network addresses of the first and last of them, without length.
    """

    network: str
    subnet_length: int
    subnet_min: str
    subnet_max: str

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(self.network)

    @property
    def size(self) -> int:
        """How many addresses one subnet has."""
        return 1 << (HOST_BITS[self.family] - self.subnet_length)

    @property
    def count(self) -> int:
        """How many subnets there are to lease."""
        return (span_of(self.subnet_max)[0] - span_of(self.subnet_min)[0]) // self.size + 1

    def subnet(self, index: int) -> str:
        """The subnet of this number; ValueError when there is none."""
        if not 0 <= index < self.count:
            raise ValueError(f"{self.network} has {self.count} subnets to lease, number {index} is outside")
        first = span_of(self.subnet_min)[0] + index * self.size
        address = ipaddress.IPv6Address(first) if self.family == 6 else ipaddress.IPv4Address(first)
        return f"{address}/{self.subnet_length}"

    def index_of(self, subnet: str) -> int | None:
        """The number of a subnet; None when it is not one of this pool: another family, length or range."""
        if family_of(subnet) != self.family or not subnet.endswith(f"/{self.subnet_length}"):
            return None
        index, rest = divmod(span_of(subnet)[0] - span_of(self.subnet_min)[0], self.size)
        return index if rest == 0 and 0 <= index < self.count else None


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration that all nodes share. ``backend_options`` are JSON values by name, without the type."""

    pools: tuple[SubnetPool, ...]
    """At most one a family, IPv4 first."""
    backend: str
    backend_options: dict[str, Any] = {}
    nftables: bool = False
    """flannel's EnableNFTables. Muslin always uses nft; the value is kept for the flannel nodes beside it."""
    ignored: tuple[str, ...] = ()
    """Keys that were there and mean nothing: misspelt, of a family that is off, or of a newer version."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The container network of each family."""
        return tuple(pool.network for pool in self.pools)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that nodes lease subnets of."""
        return tuple(pool.family for pool in self.pools)

    def pool_of(self, family: Family) -> SubnetPool | None:
        """The pool of this family, None when the family is off."""
        return next((pool for pool in self.pools if pool.family == family), None)

    def accepts(self, subnets: tuple[str, ...]) -> bool:
        """Whether these subnets are what a lease holds here: one of each pool and nothing else."""
        return len(subnets) == len(self.pools) and all(
            any(pool.index_of(subnet) is not None for subnet in subnets) for pool in self.pools
        )
