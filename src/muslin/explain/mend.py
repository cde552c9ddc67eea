"""What would mend a missing route: whoever on the same layer-2 network knows the way.

Theory of operation: a namespace without a route looks around: on each of its links, who is there, and which of them
holds the destination or forwards to it by a connected route? The first who does is a next hop that would work.
"""

from __future__ import annotations

from muslin.explain.frames import Network, segment
from muslin.explain.lookup import Query, inside, lookup
from muslin.explain.types import shown_destination
from muslin.model.address import family_of
from muslin.wire.sight import Sight


def way_to(network: Network, sight: Sight, destination: str) -> str:
    """``ip route add PREFIX via ADDRESS``; empty where nobody near knows a way."""
    for link in sight.links:
        if link.kind == "loopback" or not link.up or link.master_ifindex:
            continue
        for port in segment(network, sight.netns, link.name):
            near = network[port.netns]
            prefix = _prefix_at(near, destination)
            via = _address_on(near, port.link, sight, link.name, destination)
            if near.netns != sight.netns and prefix and via:
                return f"ip route add {prefix} via {via} dev {link.name}"
    return ""


def _prefix_at(near: Sight, destination: str) -> str:
    """The prefix that a neighbour has connected and that contains the destination; empty where it has none."""
    answer = lookup(near, Query(destination=destination))
    if answer.chosen is None or answer.chosen.route.via or answer.chosen.route.destination in ("0.0.0.0/0", "::/0"):
        return ""
    if not answer.is_local:
        link = near.link(answer.way.link) if answer.way else None
        return "" if link is None or link.kind == "tun" else shown_destination(answer.chosen.route)
    connected = [
        one for one in near.routes if one.kind == "unicast" and one.via is None and inside(one.destination, destination)
    ]
    return shown_destination(connected[0]) if connected else destination


def _address_on(near: Sight, port: str, sight: Sight, link: str, destination: str) -> str:
    """An address of the neighbour's link that is in a subnet of ours."""
    ours = [one.address for one in sight.addresses_on(link)]
    for one in near.addresses_on(port):
        address = one.address.partition("/")[0]
        same_family = family_of(address) == family_of(destination)
        if same_family and any(inside(mine, address) for mine in ours if family_of(mine) == family_of(address)):
            return address
    return ""
