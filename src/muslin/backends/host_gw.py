"""The talk's third step, flannel's host-gw: each peer is the gateway to its own containers.

Theory of operation: one route a peer and family, ``SUBNET via PEER``. A next hop is an address on a shared layer-2
network; a router between two nodes would have to know the container subnets, and does not. Such a peer is refused.
There are no options, and a lease needs no more than the addresses that it has anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from muslin.backends.base import Given, Way, nexthop_numbers, route, sort_out
from muslin.model.address import Family, family_of
from muslin.model.kernel import AnyObject
from muslin.model.network import BackendPlan, LocalNode, Peer, Refusal, of_family
from muslin.model.state import DesiredState

NAME = "host-gw"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """None; ``ignored`` are the names that were given nevertheless."""

    ignored: tuple[str, ...] = ()


DEFAULTS = Options()


def parse_options(options: Mapping[str, Any]) -> Options:
    """flannel's host-gw has none on Linux."""
    return Options(ignored=Given(options).left)


def overhead_bytes(_family: Family) -> int:
    """Nothing is added to a packet."""
    return 0


def mtu(_options: Options, local: LocalNode) -> int:
    """What a container's packet may have: as much as the underlay takes."""
    return local.underlay_mtu


def advertise(_options: Options, _local: LocalNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nothing: addresses and subnets say it all."""
    return {}, {}


def plan_own(_local: LocalNode, _options: Options = DEFAULTS) -> BackendPlan:
    """Nothing: there are only routes."""
    return BackendPlan()


def plan_peers(
    local: LocalNode, peers: Sequence[Peer], _options: Options = DEFAULTS, *, use_nexthops: bool = False
) -> BackendPlan:
    """A route to each peer that shares the layer-2 network, a refusal for each that does not."""
    served, refusals = sort_out(local, peers, NAME, (NAME,))
    numbers = nexthop_numbers(served) if use_nexthops else {}
    refusals += [_refusal(local, peer) for peer in served if not peer.link]
    refusals += [_no_gateway(local, peer, subnet) for peer in served if peer.link for subnet in _unreached(peer)]
    return BackendPlan(
        state=DesiredState(tuple(obj for peer in served if peer.link for obj in _routes(local, peer, numbers))),
        refusals=tuple(refusals),
    )


def _routes(local: LocalNode, peer: Peer, numbers: Mapping[str, int]) -> Iterator[AnyObject]:
    for subnet in peer.subnets:
        if (via := of_family(peer.addresses, family_of(subnet))) and peer.link:
            yield from route(local, Way(subnet, via, peer.link), numbers)


def _unreached(peer: Peer) -> Iterator[str]:
    return (subnet for subnet in peer.subnets if not of_family(peer.addresses, family_of(subnet)))


def _refusal(local: LocalNode, peer: Peer) -> Refusal:
    return Refusal(
        peer.name,
        f"host-gw cannot reach {peer.name} from {local.name}: they share no layer-2 network, and the router between "
        f"them does not know {' or '.join(peer.subnets)}; an overlay (step 4, or the vxlan backend) can",
    )


def _no_gateway(local: LocalNode, peer: Peer, subnet: str) -> Refusal:
    return Refusal(
        peer.name,
        f"host-gw cannot reach {subnet} of {peer.name} from {local.name}: {peer.name} has no IPv{family_of(subnet)} "
        "address on the underlay to be the gateway",
    )
