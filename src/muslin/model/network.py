"""A node and its peers, as a backend needs to know them.

Theory of operation: whoever knows the cluster (a lab's topology, later a store of leases) says it with these values;
a backend turns them into kernel objects. Tuples of addresses hold at most one of each family.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muslin.model.address import Family, family_of
from muslin.model.kernel import PROTOCOL_BOOT
from muslin.model.state import DesiredState

TUNNEL_PORT = 9000  # of the talk's fourth step


def of_family(values: tuple[str, ...], family: Family) -> str | None:
    """The first value of this family, None when there is none."""
    return next((value for value in values if family_of(value) == family), None)


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """The node that is being planned."""

    name: str
    netns: str
    underlay_link: str
    underlay_mtu: int
    """Bytes."""
    addresses: tuple[str, ...]
    """Of the underlay, without length."""
    subnets: tuple[str, ...]
    networks: tuple[str, ...]
    """The container network that all subnets come from."""
    bridge: str | None = None
    vtep_mac: str = ""
    protocol: int = PROTOCOL_BOOT
    """Written on routes and next hops: a lab's look typed by hand, an agent's carry its mark, PROTOCOL_MUSLIN."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another node. ``link``: our link to a layer-2 network that it is on too, None when a router lies between.

    A peer of a lab is known in full: ``vtep_mac`` is its MAC, and it uses the backend that we use. A peer that a lease
    tells of has what that lease says, right or wrong: ``backend`` and, by underlay family, its ``data``.
    """

    name: str
    addresses: tuple[str, ...]
    subnets: tuple[str, ...]
    link: str | None
    vtep_mac: str = ""
    backend: str | None = None
    """None in a lab; "" in the leases of flannel's udp, which writes none."""
    data: dict[str, Any] = {}
    data_v6: dict[str, Any] = {}


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """A user-space tunnel that has to run in ``netns``: TUN device on one side, UDP socket on the other."""

    netns: str
    device: str
    listen: str
    """``10.0.0.10:9000``, IPv6 in brackets."""
    peers: tuple[tuple[str, str], ...]
    """(inner prefix, outer address and port) for each prefix of each peer."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line that both tunnel programs understand."""
        peers = [f"--peer={prefix}={endpoint}" for prefix, endpoint in self.peers]
        return (f"--device={self.device}", f"--listen={self.listen}", *peers)


class Refusal(msgspec.Struct, frozen=True):
    """A peer that a backend cannot serve, and why."""

    peer: str
    reason: str


class BackendPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend wants on one node, whole or in parts: what the node has anyway, and what is there for peers.

    ``tunnel_peers`` are the entries of a part for peers, whose tunnel is in the other part.
    """

    state: DesiredState = DesiredState()
    tunnel: Tunnel | None = None
    tunnel_peers: tuple[tuple[str, str], ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def with_peers(self, peers: BackendPlan) -> BackendPlan:
        """The whole, of this part and the one for peers."""
        tunnel = self.tunnel and msgspec.structs.replace(self.tunnel, peers=peers.tunnel_peers)
        return BackendPlan(state=self.state | peers.state, tunnel=tunnel, refusals=peers.refusals)


def endpoint(address: str, port: int) -> str:
    """``10.0.0.10:9000`` or ``[fd00::1]:9000``."""
    return f"[{address}]:{port}" if family_of(address) == 6 else f"{address}:{port}"
