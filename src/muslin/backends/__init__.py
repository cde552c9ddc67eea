"""How packets get from node to node: one encapsulation a file, all pure, named by an explicit table.

Theory of operation: a backend is ``plan(local, peers) -> BackendPlan`` and ``overhead_bytes(family)``, the bytes that
it puts around each packet on an underlay of that family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from muslin.backends import host_gw, udp, vxlan
from muslin.model.address import Family
from muslin.model.network import BackendPlan, LocalNode, Peer


class Backend(NamedTuple):
    """The functions of one backend."""

    plan: Callable[[LocalNode, Sequence[Peer]], BackendPlan]
    overhead_bytes: Callable[[Family], int]


BACKENDS: dict[str, Backend] = {
    "host-gw": Backend(host_gw.plan, host_gw.overhead_bytes),
    "udp": Backend(udp.plan, udp.overhead_bytes),
    "vxlan": Backend(vxlan.plan, vxlan.overhead_bytes),
}
