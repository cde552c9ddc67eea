"""The talk's third step, flannel's host-gw: each peer is the gateway to its own containers.

Theory of operation: one route a peer and family, ``SUBNET via PEER``. A next hop is an address on a shared layer-2
network; a router between two nodes would have to know the container subnets, and does not. Such a peer is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muslin.model.address import Family, family_of
from muslin.model.kernel import Route
from muslin.model.network import BackendPlan, LocalNode, Peer, Refusal, of_family
from muslin.model.state import DesiredState


def overhead_bytes(_family: Family) -> int:
    """Nothing is added to a packet."""
    return 0


def plan(local: LocalNode, peers: Sequence[Peer]) -> BackendPlan:
    """A route to each peer that shares the layer-2 network, a refusal for each that does not."""
    return BackendPlan(
        state=DesiredState(tuple(route for peer in peers if peer.link for route in _routes(local, peer))),
        refusals=tuple(_refusal(local, peer) for peer in peers if not peer.link),
    )


def _routes(local: LocalNode, peer: Peer) -> Iterator[Route]:
    for subnet in peer.subnets:
        if via := of_family(peer.addresses, family_of(subnet)):
            yield Route(netns=local.netns, destination=subnet, via=via, link=peer.link)


def _refusal(local: LocalNode, peer: Peer) -> Refusal:
    return Refusal(
        peer.name,
        f"host-gw cannot reach {peer.name} from {local.name}: they share no layer-2 network, and the router between "
        f"them does not know {' or '.join(peer.subnets)}; an overlay (step 4, or the vxlan backend) can",
    )
