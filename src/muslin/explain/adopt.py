"""Which of the four steps a network made by hand amounts to, and what it still lacks.

Theory of operation: a container is a namespace with an address and a single cable, which leads to a node; whoever has
containers is a node. What a node has says which step somebody is at: a tunnel device makes it step 4, a route by a
gateway to something else than everything step 3, a bridge with ports step 2, a cable alone step 1. Each step is a list
of things that must be so; those that are not are named, with the command that would make them so. Families are not told
apart: IPv4 is looked at, as in the talk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.explain.frames import Network, far_end, master_of
from muslin.explain.lookup import Query, inside, lookup
from muslin.explain.types import type_of
from muslin.model.address import network_of, prefix_length
from muslin.wire.rtnetlink import AF_INET, LinkRecord, RouteRecord
from muslin.wire.sight import Sight

DEFAULT = "0.0.0.0/0"


class Lack(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is missing: where, what in words, and the command that would mend it where one is plain."""

    place: str
    what: str
    command: str = ""


class NodeFound(msgspec.Struct, frozen=True, kw_only=True):
    """A node, its containers, the step that it is at, and what that step lacks."""

    place: str
    step: int
    containers: tuple[str, ...]
    bridge: str = ""
    tunnel: str = ""
    missing: tuple[Lack, ...] = ()


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """What ``adopt -o json`` prints."""

    schema: Literal["muslin.adopt/v1"] = "muslin.adopt/v1"
    nodes: tuple[NodeFound, ...]


class _Container(msgspec.Struct, frozen=True):
    """A container with both ends of its cable."""

    sight: Sight
    link: LinkRecord
    node_link: LinkRecord


def recognise(network: Network, never_container: str = "") -> Adoption:
    """The nodes among these namespaces; ``never_container`` is one that cannot be a container, the host."""
    found: dict[str, list[_Container]] = {}
    for name in network:
        if name == never_container:
            continue
        sight = network[name]
        cables = [(link, far) for link in sight.links if (far := far_end(network, sight, link)) and far.netns != name]
        if len(cables) != 1 or not _addresses(sight, cables[0][0]):
            continue
        link, far = cables[0]
        node_link = network[far.netns].link(far.link)
        if node_link is not None:
            found.setdefault(far.netns, []).append(_Container(sight, link, node_link))
    # Two namespaces on one cable would each be the other's container: the one that routes everything there is it.
    nodes = {name: members for name, members in found.items() if not _is_container_of(name, found)}
    return Adoption(nodes=tuple(_node(network[name], members) for name, members in nodes.items()))


def _is_container_of(name: str, found: dict[str, list[_Container]]) -> bool:
    as_container = next((one for members in found.values() for one in members if one.sight.netns == name), None)
    return as_container is not None and _default(as_container.sight) is not None


def _addresses(sight: Sight, link: LinkRecord) -> list[str]:
    return [one.address for one in sight.addresses_on(link.name) if one.family == AF_INET]


def _default(sight: Sight) -> RouteRecord | None:
    return next((one for one in sight.routes if one.destination == DEFAULT and one.kind == "unicast"), None)


def _node(node: Sight, containers: list[_Container]) -> NodeFound:
    masters = [master for one in containers if (master := master_of(node, one.node_link))]
    bridges = masters or [link for link in node.links if link.kind == "bridge"]
    bridge = bridges[0] if bridges else None
    tunnel = next(
        (one for one in node.links if one.kind == "vxlan" or (one.kind == "tun" and one.tun_type == "tun")), None
    )
    step = 4 if tunnel and bridge else 3 if bridge and _remote_routes(node) else 2 if bridge else 1
    missing = list(_of_containers(node, containers, bridge))
    missing += _of_bridge(node, bridge) if bridge and step >= 2 else []
    missing += _of_forwarding(node) if step >= 3 else []
    missing += _of_tunnel(node, tunnel, bridge) if tunnel and bridge else []
    return NodeFound(
        place=node.netns,
        step=step,
        containers=tuple(one.sight.netns for one in containers),
        bridge=bridge.name if bridge else "",
        tunnel=tunnel.name if tunnel else "",
        missing=tuple(missing),
    )


def _remote_routes(node: Sight) -> list[RouteRecord]:
    """Routes by a gateway to something else than everything."""
    return [one for one in node.routes if one.family == AF_INET and one.via and one.destination != DEFAULT]


def _of_containers(node: Sight, containers: list[_Container], bridge: LinkRecord | None) -> Iterator[Lack]:
    for one in containers:
        place = one.sight.netns
        for sight, link in ((one.sight, one.link), (node, one.node_link), (one.sight, one.sight.link("lo"))):
            if link is not None and not link.up:
                yield Lack(place=sight.netns, what=f"{link.name} is down", command=f"ip link set {link.name} up")
        if bridge is not None and not one.node_link.master_ifindex:
            command = f"ip link set {one.node_link.name} master {bridge.name}"
            yield Lack(place=node.netns, what=f"{one.node_link.name} is no port of {bridge.name}", command=command)
        address = _addresses(one.sight, one.link)[0].partition("/")[0]
        if _default(one.sight) is None:
            gateway = next(iter(_addresses(node, bridge)), "").partition("/")[0] if bridge else address
            command = f"ip route add default via {gateway}" if gateway else ""
            yield Lack(place=place, what="it has no default route, so no way out of its subnet", command=command)
        answer = lookup(node, Query(destination=address))
        wanted = bridge.name if bridge else one.node_link.name
        if answer.way is None or answer.way.link != wanted:
            command = "" if bridge else f"ip route add {address}/32 dev {wanted}"
            yield Lack(place=node.netns, what=f"it has no route to {place} ({address}) by {wanted}", command=command)


def _of_bridge(node: Sight, bridge: LinkRecord) -> Iterator[Lack]:
    if not bridge.up:
        yield Lack(place=node.netns, what=f"{bridge.name} is down", command=f"ip link set {bridge.name} up")
    if not _addresses(node, bridge):
        what = f"{bridge.name} has no address, so it is a switch that the node itself is not on"
        yield Lack(place=node.netns, what=what)


def _of_forwarding(node: Sight) -> Iterator[Lack]:
    off = [one for one in node.links if one.name != "lo" and not node.sysctl(f"net/ipv4/conf/{one.name}/forwarding")]
    if off:
        what = f"it does not forward what comes in by {', '.join(one.name for one in off[:3])}"
        yield Lack(place=node.netns, what=what, command="sysctl -w net.ipv4.ip_forward=1")


def _of_tunnel(node: Sight, tunnel: LinkRecord, bridge: LinkRecord) -> Iterator[Lack]:
    if not tunnel.up:
        yield Lack(place=node.netns, what=f"{tunnel.name} is down", command=f"ip link set {tunnel.name} up")
    if tunnel.kind == "tun" and not tunnel.lower_up:
        yield Lack(place=node.netns, what=f"no program holds {tunnel.name}: it has no carrier")
    own = [network_of(address) for address in _addresses(node, bridge)]
    wide = [network_of(address) for address in _addresses(node, tunnel)]
    routed = [one for one in node.routes if node.name_of(one.ifindex) == tunnel.name and one.kind == "unicast"]
    covers = any(
        inside(outer, inner.partition("/")[0]) and prefix_length(outer) < prefix_length(inner)
        for outer in wide
        for inner in own
    )
    others = [one for one in routed if type_of(one) in ("static", "dynamic")]
    if tunnel.kind == "tun" and not covers and not others:
        what = f"no address or route of {tunnel.name} covers other nodes' subnets"
        yield Lack(place=node.netns, what=what)
    mode = max(node.sysctl("net/ipv4/conf/all/rp_filter"), node.sysctl("net/ipv4/conf/lo/rp_filter"))
    if mode == 1:
        what = "strict reverse path filtering drops containers' packets from other nodes to this one"
        yield Lack(place=node.netns, what=what, command="sysctl -w net.ipv4.conf.all.rp_filter=2")
