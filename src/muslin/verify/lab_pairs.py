"""Who is to reach whom in a lab, and how many routers lie between.

Theory of operation: nodes and containers are end points; a node is asked for at its underlay address and at
its bridge, a container at its own (the talk's matrices). Each node on the way from a container to another
node is a router, and so is each router of the underlay, except where an overlay carries the packet: then the
outer packet crosses them, and the inner one, whose TTL people see, does not (measured: the talk's 64, 63 and
62).
"""

from __future__ import annotations

from collections import deque

from muslin.lab.plan import netns_of
from muslin.lab.topology import Node, Topology, full_name_of
from muslin.model.address import FAMILIES, contains
from muslin.verify.matrix import Endpoint

OVERLAYS = frozenset({"udp", "vxlan"})


def endpoints(lab: str, topology: Topology) -> tuple[Endpoint, ...]:
    """All end points, each node followed by its containers."""
    found: list[Endpoint] = []
    for node in topology.nodes:
        found.append(_node_endpoint(lab, topology, node))
        found += (
            Endpoint(
                name=full_name_of(node, container),
                role="container",
                node=node.name,
                netns=netns_of(lab, full_name_of(node, container)),
                addresses=container.addresses,
            )
            for container in node.containers
        )
    return tuple(found)


def _node_endpoint(lab: str, topology: Topology, node: Node) -> Endpoint:
    underlay = [topology.underlay_address_of(node, family) for family in FAMILIES]
    gateways = [topology.gateway_of(node, family) for family in topology.families]
    return Endpoint(
        name=node.name,
        role="node",
        node=node.name,
        netns=netns_of(lab, node.name),
        addresses=tuple(address for address in (*underlay, *gateways) if address),
    )


class HopCounter:
    """Counts the routers between two end points of a resolved topology."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._routers: dict[tuple[str, str], int | None] = {}

    def __call__(self, source: Endpoint, destination: Endpoint, address: str) -> int | None:
        """How often the TTL goes down on the way to ``address``; None where no way is known."""
        if source.name == destination.name:
            return 0
        if source.node == destination.node:
            both_containers = source.role == destination.role == "container"
            direct = self._topology.node(source.node).attach == "direct"
            return 1 if both_containers and direct else 0
        nodes = (source.role == "container") + (destination.role == "container")
        if self._carried(address):
            return nodes
        routers = self._routers_between(source.node, destination.node)
        return None if routers is None else nodes + routers

    def _carried(self, address: str) -> bool:
        inside = any(contains(network, address) for network in self._topology.networks)
        return inside and self._topology.backend in OVERLAYS

    def _routers_between(self, one: str, other: str) -> int | None:
        if (one, other) not in self._routers:
            self._routers[one, other] = self._search(one, other)
        return self._routers[one, other]

    def _search(self, one: str, other: str) -> int | None:
        """Breadth first over segments: each router crossed costs one."""
        goal = {link.segment for link in self._topology.node(other).links}
        queue = deque((link.segment, 0) for link in self._topology.node(one).links)
        seen = {segment for segment, _ in queue}
        while queue:
            segment, crossed = queue.popleft()
            if segment in goal:
                return crossed
            for router in self._topology.routers:
                joined = {link.segment for link in router.links}
                if segment in joined:
                    queue.extend((next_segment, crossed + 1) for next_segment in joined - seen)
                    seen |= joined
        return None
