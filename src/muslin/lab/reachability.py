"""Whether the nodes of a topology can reach each other over the underlay, as far as its shape tells.

Theory of operation: routers join segments to islands. A backend needs every node on one island, and an
address family to talk in. Whether each router has the routes that it takes is for a lab to show, not for
these checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from muslin.lab.address_faults import Problem, shown
from muslin.lab.topology import Topology
from muslin.model.address import FAMILIES


def check_reachability(topology: Topology) -> Iterator[Problem]:
    """With a backend, every node must reach the others over segments and routers."""
    if topology.backend == "none" or len(topology.nodes) < 2:
        return
    island_of = _islands(topology)
    links = [node.links[:1] if topology.agents else node.links for node in topology.nodes]
    islands = [{island_of.get(link.segment, link.segment) for link in found} for found in links]
    sizes = Counter(island for found in islands for island in found)
    if not sizes:
        return
    mainland = sizes.most_common(1)[0][0]
    for place, (node, found) in enumerate(zip(topology.nodes, islands, strict=True)):
        if found and mainland not in found:
            segments = ", ".join(shown(link.segment) for link in links[place])
            yield Problem(
                f"$.nodes[{place}].links",
                f"node {shown(node.name)} on {segments} is on an island: no router leads to the other nodes, "
                f"which the backend {topology.backend} needs",
            )


def _islands(topology: Topology) -> dict[str, str]:
    """For each segment one that stands for all that routers join with it (a union-find over segments)."""
    parent = {segment.name: segment.name for segment in topology.segments}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for router in topology.routers:
        joined = [find(link.segment) for link in router.links if link.segment in parent]
        for name in joined[1:]:
            parent[find(name)] = find(joined[0])
    return {name: find(name) for name in parent}


def check_underlay_families(topology: Topology) -> Iterator[Problem]:
    """host-gw routes each family over itself; a tunnel needs one family that all nodes have outside."""
    if topology.backend == "none" or len(topology.nodes) < 2:
        return
    common = {
        family for family in FAMILIES if all(topology.underlay_address_of(node, family) for node in topology.nodes)
    }
    needed = topology.families if topology.backend == "host-gw" else ()
    for family in needed:
        if family not in common and any(topology.subnet_of(node, family) for node in topology.nodes):
            yield Problem(
                "$.backend",
                f"host-gw carries IPv{family} over IPv{family}, but some node has no IPv{family} address on "
                "a segment: give the segments such a prefix, or use udp or vxlan",
            )
    if not common and not needed and all(node.links for node in topology.nodes):
        yield Problem(
            "$.segments",
            "the nodes have no address family in common: give all segments a prefix of one family",
        )
