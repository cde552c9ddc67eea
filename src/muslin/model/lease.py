"""Who holds which container subnet, and what the others need to know to reach it.

Theory of operation: a lease is what a store keeps for one node: its subnets, the underlay addresses it is reached at,
and what its backend advertises. ``revision`` is the store's number for the last change of this lease: renewing and
deleting compare it, so that nobody writes over what another has changed. All leases and the network's configuration
at one moment are a ``ClusterSnapshot``: a watch yields whole ones and never half of one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec


class Advertisement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a node says of itself. ``data`` is the backend's own, by family, as JSON values."""

    addresses: tuple[str, ...]
    """Of the underlay, at most one a family: flannel's PublicIP and PublicIPv6."""
    backend: str
    data: dict[str, Any] = {}
    data_v6: dict[str, Any] = {}


class Lease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node's hold on its subnets (at most one a family), until ``expires_at`` (seconds since the epoch).

    ``expires_at`` None is a reservation: it has no end and stays one.
    """

    subnets: tuple[str, ...]
    advertisement: Advertisement
    expires_at: float | None = None
    revision: int = 0

    @property
    def name(self) -> str:
        """The subnets as one word; what stores file a lease under."""
        return _name_of(self.subnets)


@lru_cache(maxsize=1 << 16)
def _name_of(subnets: tuple[str, ...]) -> str:
    # Kept, because one more lease beside 10,000 has every name looked at several times.
    return "&".join(subnet.replace("/", "-") for subnet in subnets)


class ClusterSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that a store knows at ``revision``. ``config`` is the network's configuration as it is written there."""

    revision: int
    config: bytes | None = None
    leases: tuple[Lease, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Names of leases that hold garbage: they harm nobody, and ``status`` shows them."""
