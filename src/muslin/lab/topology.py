"""What a lab looks like, as a frozen value, and the defaults that complete it.

Theory of operation: a topology names segments (layer 2 networks), routers between them, and nodes with their
containers. A person, a preset or a file gives as much of it as matters to them; ``resolve`` fills in the rest
by position alone: the first node is number 10 of its segment and has the first subnet of the network,
whatever else the topology holds. So a topology reads like the talk's addresses, and the same text always
gives the same lab.

``resolve`` neither fails nor judges. What it cannot fill in (a network without room for one more subnet)
stays empty, and ``muslin.lab.validate`` says so with everything else that is wrong. The family is data: each
list of addresses or prefixes holds either family, told apart by the colon.

Not handled here: routes, tunnels and devices. They follow from a topology and a backend, in the plan.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from muslin.errors import UsageError
from muslin.model.address import (
    FAMILIES,
    HOST_BITS,
    Family,
    contains,
    family_of,
    nth_address,
    parse_address,
    parse_prefix,
    prefix_length,
)
from muslin.model.kernel import IFNAME_MAX

SCHEMA: Literal["muslin.topology/v1"] = "muslin.topology/v1"

Backend = Literal["none", "host-gw", "udp", "vxlan"]
Attach = Literal["bridge", "direct"]
Step = Literal[1, 2, 3, 4]
StoreKind = Literal["sqlite", "etcd"]
TunnelKind = Literal["c", "python"]

DEFAULT_NETWORK: dict[Family, str] = {4: "172.16.0.0/16", 6: "fd00:172:16::/48"}
SUBNET_LENGTH: dict[Family, int] = {4: 24, 6: 64}
UNDERLAY_POOL: dict[Family, str] = {4: "10.0.0.0/8", 6: "fd00:10::/32"}
SEGMENT_LENGTH: dict[Family, int] = {4: 24, 6: 64}
WIDE_SEGMENT_LENGTH: dict[Family, int] = {4: 16, 6: 64}
NARROW_SEGMENT_NODES = 25  # node 25 is number 250, the last multiple of ten inside of a /24

GATEWAY_NUMBER = 1
TUNNEL_NUMBER = 100
NODE_NUMBER_STEP = 10

LEASE_TTL_S = 86400  # flannel's pkg/subnet/etcd/subnet.go, subnetTTL: 24 hours

RESERVED_INTERFACES = frozenset({"lo", "br0", "tun0", "muslin-udp", "vxlan1", "vxlan6.1", "all", "default"})
"""Taken inside of a namespace: by the kernel, the plan, the backends, and (all, default) by /proc/sys/net."""
PORT_HASH_DIGITS = 4

Addresses = tuple[str, ...]


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer 2 network of the underlay; it becomes a namespace that holds a bridge."""

    name: Annotated[str, Meta(description="Unique among segments, routers and nodes.")]
    prefixes: Annotated[
        Addresses, Meta(description="Its networks, such as 10.0.0.0/24. Omitted: 10.0.N.0/24 by position.")
    ] = ()


class Attachment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link of a node or router to a segment."""

    segment: Annotated[str, Meta(description="The name of the segment.")]
    addresses: Annotated[
        Addresses,
        Meta(description="Without length. Omitted: number 10, 20, ... for nodes, 1 for a router."),
    ] = ()
    name: Annotated[str, Meta(description="The interface name. Omitted: eth0, eth1, ...")] = ""
    down: Annotated[bool, Meta(description="Whether the link is set down, as a fault to find.")] = False
    loss_percent: Annotated[float, Meta(description="Share of packets lost, 0 to 100, in both directions.")] = 0.0


class StaticRoute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route that a router has beyond its connected networks."""

    destination: Annotated[str, Meta(description="A prefix such as 10.0.3.0/24.")]
    via: Annotated[str, Meta(description="The next hop, an address on one of the router's segments.")]


class Router(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A namespace that forwards between segments and knows no container subnet unless told."""

    name: Annotated[str, Meta(description="Unique among segments, routers and nodes.")]
    links: Annotated[tuple[Attachment, ...], Meta(description="The segments that it joins.")]
    routes: Annotated[tuple[StaticRoute, ...], Meta(description="Routes beyond its connected networks.")] = ()


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container: a namespace of its own on a node."""

    name: Annotated[str, Meta(description="Unique on its node. Omitted: con1, con2, ...")] = ""
    addresses: Annotated[
        Addresses,
        Meta(description="Without length. Omitted: number 2, 3, ... of each of the node's subnets."),
    ] = ()
    mtu: Annotated[int | None, Meta(description="In bytes. Omitted: that of the underlay, as in the talk.")] = None
    down: Annotated[bool, Meta(description="Whether the link is set down, as a fault to find.")] = False
    loss_percent: Annotated[float, Meta(description="Share of packets lost, 0 to 100, in both directions.")] = 0.0


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that runs containers; it becomes a namespace."""

    name: Annotated[str, Meta(description="Unique among segments, routers and nodes.")]
    links: Annotated[tuple[Attachment, ...], Meta(description="Its links. Omitted: one, to the only segment.")] = ()
    subnets: Annotated[
        Addresses,
        Meta(description="Its container subnets, at most one a family. Omitted: the N-th /24 or /64."),
    ] = ()
    attach: Annotated[
        Attach, Meta(description="`bridge`, or `direct`: each container on a veth of its own, no gateway.")
    ] = "bridge"
    containers: Annotated[tuple[Container, ...], Meta(description="Its containers.")] = ()


Host = Node | Router
"""What has attachments to segments."""

_Named = TypeVar("_Named", Node, Segment, Router)


class Agents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That each node runs an agent, which makes bridge, routes and tunnels out of what the others say of themselves."""

    store: Annotated[
        StoreKind, Meta(description="Where agents find each other: a file, or three etcd members as hosts of the lab.")
    ] = "sqlite"
    lease_ttl_s: Annotated[
        int, Meta(description="How long a node keeps its subnet without a word of its agent, in seconds.")
    ] = LEASE_TTL_S


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole lab: the underlay, the nodes on it, and the container network across them."""

    schema: Annotated[
        Literal["muslin.topology/v1"], Meta(description="The version of this format: muslin.topology/v1.")
    ]
    step: Annotated[Step | None, Meta(description="The step, 1 to 4, that a preset made this for.")] = None
    backend: Annotated[Backend, Meta(description="What carries packets between the nodes.")] = "none"
    tunnel: Annotated[
        TunnelKind, Meta(description="The program of the backend `udp`: in C where it was built, or in Python.")
    ] = "c"
    agents: Annotated[
        Agents | None, Meta(description="Omitted: the lab itself sets up the nodes, and no agent runs.")
    ] = None
    networks: Annotated[
        Addresses, Meta(description="The container network, at most one a family. Omitted: 172.16.0.0/16.")
    ] = ()
    mtu: Annotated[int, Meta(description="The MTU of the underlay, in bytes.")] = 1500
    segments: Annotated[tuple[Segment, ...], Meta(description="Layer 2 networks. Omitted: lan0 with 10.0.0.0/24.")] = ()
    routers: Annotated[tuple[Router, ...], Meta(description="Routers between the segments.")] = ()
    nodes: Annotated[tuple[Node, ...], Meta(description="The machines, at least one.")] = ()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of the container network, IPv4 first."""
        return families_of(self.networks)

    @property
    def containers(self) -> tuple[tuple[Node, Container], ...]:
        """Every container with its node, in order."""
        return tuple((node, container) for node in self.nodes for container in node.containers)

    def network(self, family: Family) -> str | None:
        """The container network of a family."""
        return _first_of(self.networks, family)

    def node(self, name: str) -> Node:
        """The node called ``name``; UsageError when there is none."""
        return _named(self.nodes, name, "node")

    def segment(self, name: str) -> Segment:
        """The segment called ``name``; UsageError when there is none."""
        return _named(self.segments, name, "segment")

    def router(self, name: str) -> Router:
        """The router called ``name``; UsageError when there is none."""
        return _named(self.routers, name, "router")

    def container(self, full_name: str) -> tuple[Node, Container]:
        """The container called, say, ``con1.node1``, with its node; UsageError when there is none."""
        for node, container in self.containers:
            if full_name_of(node, container) == full_name:
                return node, container
        known = _listed(full_name_of(*pair) for pair in self.containers)
        raise UsageError(f"there is no container {full_name!r}", f"this topology has {known}")

    def subnet_of(self, node: Node, family: Family) -> str | None:
        """The container subnet of a node."""
        return _first_of(node.subnets, family)

    def gateway_of(self, node: Node, family: Family) -> str | None:
        """Address number 1 of the node's subnet, held by its bridge; None where there is no bridge."""
        return None if node.attach == "direct" else self._numbered(node, family, GATEWAY_NUMBER)

    def tunnel_address_of(self, node: Node, family: Family) -> str | None:
        """Address number 100 of the node's subnet, which the udp backend gives to the TUN device."""
        return self._numbered(node, family, TUNNEL_NUMBER)

    def tunnel_interface_of(self, node: Node, family: Family) -> str | None:
        """The tunnel address with the length of the whole network: so all subnets are on the TUN device."""
        address, network = self.tunnel_address_of(node, family), self.network(family)
        return f"{address}/{prefix_length(network)}" if address and network else None

    def underlay_address_of(self, node: Node, family: Family) -> str | None:
        """The address by which other nodes know this one: the first of this family on its links."""
        return _first_of((address for link in node.links for address in link.addresses), family)

    def interfaces_of(self, link: Attachment) -> tuple[str, ...]:
        """The addresses of a link with the lengths of its segment, such as ``10.0.0.10/24``."""
        prefixes = self.segment(link.segment).prefixes
        return tuple(
            f"{address}/{prefix_length(prefix)}"
            for address in link.addresses
            for prefix in prefixes
            if contains(prefix, address)
        )

    def router_address_on(self, segment: str, family: Family) -> str | None:
        """The next hop out of a segment: the address of the first router on it, None without a router."""
        links = (link for router in self.routers for link in router.links if link.segment == segment)
        return _first_of((address for link in links for address in link.addresses), family)

    def _numbered(self, node: Node, family: Family, number: int) -> str | None:
        subnet = self.subnet_of(node, family)
        return nth_address_or_none(subnet, number) if subnet else None


def full_name_of(node: Node, container: Container) -> str:
    """``con1.node1``: the name of a container in the whole lab, and of its namespace."""
    return f"{container.name}.{node.name}"


def port_name(host: Host, index: int) -> str:
    """The name of the bridge port, in the segment's namespace, that attachment ``index`` of ``host`` ends in.

    It is the name of the host, so that ``bridge link`` reads well; with a few digits of a hash where that
    name is too long for an interface, means something else there, or stands for several attachments.
    """
    if len(host.links) <= 1 and len(host.name.encode()) <= IFNAME_MAX and host.name not in RESERVED_INTERFACES:
        return host.name
    import hashlib  # 3 ms that few topologies need

    digest = hashlib.sha256(f"{host.name}/{index}".encode()).hexdigest()[:PORT_HASH_DIGITS]
    return f"{host.name[: IFNAME_MAX - 1 - PORT_HASH_DIGITS]}-{digest}"


def resolve(topology: Topology) -> Topology:
    """The same topology with every omitted field filled in. Idempotent; what cannot be filled stays empty."""
    networks = _canonical(topology.networks) or (DEFAULT_NETWORK[4],)
    segments = _resolve_segments(topology, families_of(networks))
    by_name = {segment.name: segment for segment in segments}
    return msgspec.structs.replace(
        topology,
        networks=networks,
        segments=segments,
        routers=_resolve_routers(topology.routers, by_name),
        nodes=tuple(_resolve_node(node, position, networks, by_name) for position, node in enumerate(topology.nodes)),
    )


def families_of(texts: Iterable[str]) -> tuple[Family, ...]:
    """The families among addresses or prefixes, IPv4 first."""
    found = {family_of(text) for text in texts}
    return tuple(family for family in FAMILIES if family in found)


def nth_address_or_none(prefix: str, number: int) -> str | None:
    """Address ``number`` of a prefix, None when the prefix is none or too small."""
    try:
        return nth_address(prefix, number)
    except ValueError:
        return None


def nth_subnet(prefix: str, length: int, index: int) -> str | None:
    """The subnet ``index`` (from 0) of this length inside of a prefix, None when it has no such subnet."""
    try:
        if length < prefix_length(prefix):
            return None
        step = 1 << (HOST_BITS[family_of(prefix)] - length)
        return f"{nth_address(prefix, index * step)}/{length}"
    except ValueError:
        return None


def _resolve_segments(topology: Topology, families: tuple[Family, ...]) -> tuple[Segment, ...]:
    """Segments with prefixes; a lonely one is wide enough for all nodes."""
    named = topology.segments or (Segment(name="lan0"),)
    wide = len(named) == 1 and len(topology.nodes) > NARROW_SEGMENT_NODES
    length = WIDE_SEGMENT_LENGTH if wide else SEGMENT_LENGTH
    return tuple(
        msgspec.structs.replace(
            segment,
            prefixes=_canonical(segment.prefixes)
            or _present(nth_subnet(UNDERLAY_POOL[family], length[family], index) for family in families),
        )
        for index, segment in enumerate(named)
    )


def _resolve_routers(routers: tuple[Router, ...], segments: dict[str, Segment]) -> tuple[Router, ...]:
    """The first router on a segment is number 1 there, the next one number 2."""
    seen: Counter[str] = Counter()
    resolved = []
    for router in routers:
        links = []
        for index, link in enumerate(router.links):
            seen[link.segment] += 1
            links.append(_resolve_link(link, index, seen[link.segment], segments))
        routes = tuple(
            StaticRoute(destination=_canonical_text(route.destination), via=_canonical_text(route.via))
            for route in router.routes
        )
        resolved.append(msgspec.structs.replace(router, links=tuple(links), routes=routes))
    return tuple(resolved)


def _resolve_link(link: Attachment, index: int, number: int, segments: dict[str, Segment]) -> Attachment:
    segment = segments.get(link.segment)
    prefixes = _one_a_family(segment.prefixes) if segment else ()
    return msgspec.structs.replace(
        link,
        name=link.name or f"eth{index}",
        addresses=_canonical(link.addresses) or _present(nth_address_or_none(prefix, number) for prefix in prefixes),
    )


def _resolve_node(node: Node, position: int, networks: Addresses, segments: dict[str, Segment]) -> Node:
    links = node.links
    if not links and len(segments) == 1:
        links = (Attachment(segment=next(iter(segments))),)
    number = NODE_NUMBER_STEP * (position + 1)
    subnets = _canonical(node.subnets) or _present(
        nth_subnet(network, SUBNET_LENGTH[family_of(network)], position) for network in _one_a_family(networks)
    )
    return msgspec.structs.replace(
        node,
        links=tuple(_resolve_link(link, index, number, segments) for index, link in enumerate(links)),
        subnets=subnets,
        containers=_resolve_containers(node, subnets),
    )


def _resolve_containers(node: Node, subnets: Addresses) -> tuple[Container, ...]:
    """Containers with names by position and with the next addresses that nobody on the node asked for."""
    taken = {address for container in node.containers for address in _canonical(container.addresses)}
    pools = [_free_addresses(subnet, node.attach, taken) for subnet in _one_a_family(subnets)]
    return tuple(
        msgspec.structs.replace(
            container,
            name=container.name or f"con{position}",
            addresses=_canonical(container.addresses) or _present(next(pool, None) for pool in pools),
        )
        for position, container in enumerate(node.containers, start=1)
    )


def _free_addresses(subnet: str, attach: Attach, taken: set[str]) -> Iterator[str]:
    """The addresses for containers, in order: past the gateway, not the tunnel's, none of ``taken``."""
    try:
        network = ipaddress.ip_network(subnet)
    except ValueError:
        return
    tiny = network.num_addresses <= 2  # a host or point-to-point prefix: no network address, no broadcast
    first = 0 if tiny else GATEWAY_NUMBER
    end = network.num_addresses - (1 if network.version == 4 and not tiny else 0)
    for number in range(first + (attach == "bridge"), end):
        address = str(network[number])
        if number != TUNNEL_NUMBER and address not in taken:
            yield address


def _canonical(texts: Iterable[str]) -> Addresses:
    return tuple(_canonical_text(text) for text in texts)


def _canonical_text(text: str) -> str:
    """Canonical spelling where there is one; anything else as it is, for ``validate`` to name."""
    try:
        return parse_prefix(text) if "/" in text else parse_address(text)
    except ValueError:
        return text


def _present(texts: Iterable[str | None]) -> Addresses:
    return tuple(text for text in texts if text is not None)


def _first_of(texts: Iterable[str], family: Family) -> str | None:
    return next((text for text in texts if family_of(text) == family), None)


def _one_a_family(prefixes: Addresses) -> Addresses:
    return _present(_first_of(prefixes, family) for family in families_of(prefixes))


def _named(items: tuple[_Named, ...], name: str, kind: str) -> _Named:
    for item in items:
        if item.name == name:
            return item
    known = _listed(item.name for item in items)
    raise UsageError(f"there is no {kind} {name!r}", f"this topology has {known}")


def _listed(names: Iterable[str], limit: int = 10) -> str:
    """``node1, node2 and 18 more``, for a hint."""
    found = list(names)
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return (", ".join(found[:limit]) or "none") + more
