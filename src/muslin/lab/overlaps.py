"""Prefixes that get in each other's way: inside of a lab, and between a lab and the host.

Theory of operation: inside of a lab, prefixes are sorted by address and each is compared with the widest one
that began before it, so hundreds of subnets cost no more than the sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from muslin.lab.address_faults import Network, Problem, network_or_none, shown
from muslin.lab.topology import Topology, resolve


class _Claim(msgspec.Struct, frozen=True):
    """A prefix that something in the lab uses alone."""

    path: str
    owner: str
    network: Network


def check_overlaps(topology: Topology) -> Iterator[Problem]:
    """Segments and subnets must be disjoint, and segments outside of the container network."""
    claims = sorted(
        _claims(topology),
        key=lambda claim: (claim.network.version, claim.network.network_address, claim.network.prefixlen),
    )
    told: set[str] = set()
    widest: _Claim | None = None
    for claim in claims:
        if widest and _clash(widest.network, claim.network):
            told |= {widest.path, claim.path}
            pair = f"{claim.owner} ({claim.network}) overlaps {widest.owner} ({widest.network})"
            yield Problem(claim.path, f"{pair}: choose disjoint prefixes")
        else:
            widest = claim
    networks = [network for network in map(network_or_none, topology.networks) if network]
    for claim in claims:
        outer = _overlapping(claim.network, networks)
        if claim.owner.startswith("segment") and claim.path not in told and outer:
            pair = f"{claim.owner} ({claim.network}) overlaps the container network {outer}"
            yield Problem(claim.path, f"{pair}: choose disjoint prefixes")


def _claims(topology: Topology) -> Iterator[_Claim]:
    for place, segment in enumerate(topology.segments):
        for index, prefix in enumerate(segment.prefixes):
            if network := network_or_none(prefix):
                path = f"$.segments[{place}].prefixes[{index}]"
                yield _Claim(path, f"segment {shown(segment.name)}", network)
    for place, node in enumerate(topology.nodes):
        for index, subnet in enumerate(node.subnets):
            if network := network_or_none(subnet):
                yield _Claim(f"$.nodes[{place}].subnets[{index}]", f"the subnet of {shown(node.name)}", network)


def _clash(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def host_conflicts(topology: Topology, host_routes: Iterable[str]) -> tuple[Problem, ...]:
    """The prefixes of the lab that the host already routes to; its default routes do not count."""
    routed = [network for network in map(_host_route, host_routes) if network]
    return tuple(
        Problem(
            path,
            f"{what} {prefix} overlaps {conflict}, which this host already routes: choose another network "
            f"with {option}, or pass --allow-overlap, since a lab is isolated from the host",
        )
        for path, what, prefix, option in _lab_prefixes(resolve(topology))
        if (network := network_or_none(prefix)) and (conflict := _overlapping(network, routed))
    )


def _host_route(text: str) -> Network | None:
    """A route of the host that leads somewhere: no default, nor the halves that VPNs lay over a default."""
    network = network_or_none(text) or network_or_none(f"{text}/128" if ":" in text else f"{text}/32")
    return network if network and network.prefixlen > 1 else None


def _overlapping(network: Network, others: list[Network]) -> Network | None:
    return next((other for other in others if network.version == other.version and network.overlaps(other)), None)


def _lab_prefixes(topology: Topology) -> Iterator[tuple[str, str, str, str]]:
    for index, prefix in enumerate(topology.networks):
        yield f"$.networks[{index}]", "the container network", prefix, "--network"
    for index, segment in enumerate(topology.segments):
        for place, prefix in enumerate(segment.prefixes):
            path = f"$.segments[{index}].prefixes[{place}]"
            yield path, f"segment {segment.name},", prefix, "--underlay-network"
