"""flannel's alloc: a node leases its subnet, and somebody else carries the packets.

Theory of operation: nothing is wanted of the kernel and no peer is refused, whatever its backend, because none is
served. Lease and subnet.env are as for any other backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from muslin.backends.base import Given
from muslin.model.address import Family
from muslin.model.network import BackendPlan, LocalNode, Peer

NAME = "alloc"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """None; ``ignored`` are the names that were given nevertheless."""

    ignored: tuple[str, ...] = ()


DEFAULTS = Options()


def parse_options(options: Mapping[str, Any]) -> Options:
    """There are none."""
    return Options(ignored=Given(options).left)


def overhead_bytes(_family: Family) -> int:
    """Nothing is added to a packet."""
    return 0


def mtu(_options: Options, local: LocalNode) -> int:
    """What the underlay takes."""
    return local.underlay_mtu


def advertise(_options: Options, _local: LocalNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nothing."""
    return {}, {}


def plan_own(_local: LocalNode, _options: Options = DEFAULTS) -> BackendPlan:
    """Nothing."""
    return BackendPlan()


def plan_peers(
    _local: LocalNode, _peers: Sequence[Peer], _options: Options = DEFAULTS, *, use_nexthops: bool = False
) -> BackendPlan:
    """Nothing."""
    return BackendPlan()
