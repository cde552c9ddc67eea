"""From a topology to kernel objects and tunnels: pure, and the same functions that an agent plans with.

Theory of operation: everything of a lab is a namespace. A segment is one that holds a bridge, a router one that
forwards, a node one that holds its containers' bridge, a container one at the end of a veth. Namespaces of a lab are
called ``muslin-LAB-NAME``, so that plain ``ip netns`` shows whose they are. Objects come in the order in which a
person would build: segments, routers, nodes, and on each node its containers, then what its backend wants.

Where nodes run agents, bridge, forwarding and all that the backend wants are the agents'. The lab makes the rest, and
plugs its containers into a bridge that it does not make: see ``LabPlan.before_agents``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from muslin.backends import BACKENDS
from muslin.lab.agent_plan import AGENT_BRIDGE, etcd_members
from muslin.lab.topology import Attachment, Container, Host, Node, Router, Topology, full_name_of, port_name
from muslin.model.address import DEFAULT_PREFIX, FAMILIES, Family, family_of, prefix_length
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    Key,
    Link,
    Loopback,
    Netns,
    NftTable,
    Route,
    Sysctl,
    Veth,
    link_key,
)
from muslin.model.network import BackendPlan, LocalNode, Peer, Refusal, Tunnel
from muslin.model.ops import Op, SetLink
from muslin.model.state import DesiredState
from muslin.plan import attach
from muslin.plan import node as node_plan

NODE_BRIDGE = AGENT_BRIDGE
SEGMENT_BRIDGE = "br0"
LOSS_TABLE = "muslin"
NETNS_PREFIX = "muslin-"


class LabPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a lab is made of."""

    state: DesiredState
    tunnels: tuple[Tunnel, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    ports: frozenset[Key] = frozenset()
    """The links that are plugged into a bridge which an agent makes."""

    @property
    def before_agents(self) -> DesiredState:
        """The state, asking nothing of whose port these links are.

        So it can stand before the agents do, and takes nothing away from a lab that is up.
        """
        if not self.ports:
            return self.state
        return DesiredState(tuple(_unplugged(obj) if obj.key in self.ports else obj for obj in self.state))

    def needs_agent(self, op: Op) -> bool:
        """Whether an operation has to wait for the bridge that an agent makes."""
        return isinstance(op, SetLink) and op.attribute == "master" and op.key in self.ports


def _unplugged(obj: AnyObject) -> AnyObject:
    return msgspec.structs.replace(obj, master=None) if isinstance(obj, Link) else obj


def netns_of(lab: str, name: str) -> str:
    """The namespace of a segment, router, node or container (``con1.node1``) of a lab."""
    return f"{NETNS_PREFIX}{lab}-{name}"


def plan(lab: str, topology: Topology) -> LabPlan:
    """All objects and tunnels of a resolved topology."""
    objects: list[AnyObject] = []
    tunnels: list[Tunnel] = []
    refusals: list[Refusal] = []
    for segment in topology.segments:
        objects += _segment_objects(netns_of(lab, segment.name), topology.mtu)
    for router in topology.routers:
        objects += _router_objects(lab, topology, router)
    for member in etcd_members(topology):
        objects += _member_objects(lab, topology, member)
    for node in topology.nodes:
        backend = _backend_plan(lab, topology, node)
        objects += _node_objects(lab, topology, node)
        if topology.agents is None:
            objects += backend.state.objects
            tunnels += [backend.tunnel] if backend.tunnel else []
        refusals += backend.refusals
    objects += _loss_tables(lab, topology)
    return LabPlan(
        state=DesiredState(tuple(objects)),
        tunnels=tuple(tunnels),
        refusals=tuple(refusals),
        ports=_ports_of_agents(lab, topology),
    )


def _ports_of_agents(lab: str, topology: Topology) -> frozenset[Key]:
    if topology.agents is None:
        return frozenset()
    return frozenset(
        link_key(cable.node_netns, cable.node_link)
        for node in topology.nodes
        for position, container in enumerate(node.containers, start=1)
        for cable in [_attachment(lab, topology, node, container, position)]
    )


def _segment_objects(netns: str, mtu: int) -> Iterator[AnyObject]:
    yield Netns(netns=netns)
    yield Link(netns=netns, name=SEGMENT_BRIDGE, options=Bridge(), mtu=_unusual(mtu), up=True)


def _unusual(mtu: int) -> int | None:
    """The MTU where it is not what the kernel gives a link anyway (ETH_DATA_LEN, linux/if_ether.h)."""
    return mtu if mtu != 1500 else None


def _host_netns(netns: str, families: tuple[Family, ...]) -> Iterator[AnyObject]:
    yield Netns(netns=netns)
    yield from node_plan.no_duplicate_detection(netns, families)
    yield Link(netns=netns, name="lo", options=Loopback(), up=True)


def _router_objects(lab: str, topology: Topology, router: Router) -> Iterator[AnyObject]:
    netns = netns_of(lab, router.name)
    yield from _host_netns(netns, topology.families)
    yield from node_plan.forwarding(netns, topology.families, enabled=True)
    # A router sees packets of containers whose subnets it does not know; filtering them is not its job.
    yield from node_plan.no_reverse_path_filter(netns)
    yield from _underlay_links(lab, topology, router)
    for route in router.routes:
        yield Route(netns=netns, destination=route.destination, via=route.via)


def _underlay_links(lab: str, topology: Topology, host: Host) -> Iterator[AnyObject]:
    for index, link in enumerate(host.links):
        netns, segment = netns_of(lab, host.name), netns_of(lab, link.segment)
        port = port_name(host, index)
        mtu = _unusual(topology.mtu)
        yield Link(
            netns=netns,
            name=link.name,
            options=Veth(peer_netns=segment, peer=port),
            mtu=mtu,
            up=not link.down,
        )
        yield Link(
            netns=segment,
            name=port,
            options=Veth(peer_netns=netns, peer=link.name),
            mtu=mtu,
            master=SEGMENT_BRIDGE,
            up=True,
        )
        for interface in topology.interfaces_of(link):
            yield Address(netns=netns, link=link.name, address=interface)


def _member_objects(lab: str, topology: Topology, member: Node) -> Iterator[AnyObject]:
    netns = netns_of(lab, member.name)
    yield from _host_netns(netns, topology.families)
    yield from _underlay_links(lab, topology, member)
    yield from _default_routes(netns, topology, member)


def _node_objects(lab: str, topology: Topology, node: Node) -> Iterator[AnyObject]:
    netns = netns_of(lab, node.name)
    yield from _host_netns(netns, topology.families)
    if topology.agents is None:
        yield from node_plan.forwarding(netns, topology.families, enabled=topology.backend != "none")
        yield from node_plan.no_reverse_path_filter(netns)
    else:
        # What an agent finds on a machine; what its backend needs of "all" is its own to set.
        yield Sysctl(netns=netns, name="net/ipv4/conf/default/rp_filter", value="0")
    yield from _underlay_links(lab, topology, node)
    yield from _default_routes(netns, topology, node)
    if node.attach == "bridge" and topology.agents is None:
        yield from node_plan.bridge(netns, NODE_BRIDGE, _gateway_interfaces(topology, node))
    for position, container in enumerate(node.containers, start=1):
        yield from attach.plan(_attachment(lab, topology, node, container, position))


def _default_routes(netns: str, topology: Topology, node: Node) -> Iterator[Route]:
    """The way out through the first router that is on one of the node's segments, if there is one."""
    for family in topology.families:
        for link in node.links:
            gateway = topology.router_address_on(link.segment, family)
            if gateway and not link.down:
                yield Route(netns=netns, destination=DEFAULT_PREFIX[family], via=gateway, link=link.name)
                break


def _gateway_interfaces(topology: Topology, node: Node) -> tuple[str, ...]:
    return tuple(
        f"{gateway}/{prefix_length(subnet)}"
        for subnet in node.subnets
        if (gateway := topology.gateway_of(node, family_of(subnet)))
    )


def _attachment(lab: str, topology: Topology, node: Node, container: Container, position: int) -> attach.Attachment:
    # The talk's names: veth1-veth2 for the single cable of step 1, then veth10-veth11, veth20-veth21.
    direct = node.attach == "direct"
    near, far = (2 * position - 1, 2 * position) if direct else (10 * position, 10 * position + 1)
    lengths = {family_of(subnet): prefix_length(subnet) for subnet in node.subnets}
    return attach.Attachment(
        node_netns=netns_of(lab, node.name),
        netns=netns_of(lab, full_name_of(node, container)),
        node_link=f"veth{near}",
        link=f"veth{far}",
        mode=node.attach,
        addresses=tuple(f"{address}/{lengths[family_of(address)]}" for address in container.addresses),
        gateways=tuple(gateway for family in topology.families if (gateway := topology.gateway_of(node, family))),
        bridge=NODE_BRIDGE,
        mtu=container.mtu or _unusual(topology.mtu),
        up=not container.down,
    )


def _backend_plan(lab: str, topology: Topology, node: Node) -> BackendPlan:
    if topology.backend == "none":
        return BackendPlan()
    peers = [_peer(topology, node, other) for other in topology.nodes if other is not node]
    return BACKENDS[topology.backend].plan(_local_node(lab, topology, node), peers)


def _underlay_addresses(topology: Topology, node: Node) -> tuple[str, ...]:
    found = (topology.underlay_address_of(node, family) for family in FAMILIES)
    return tuple(address for address in found if address)


def _local_node(lab: str, topology: Topology, node: Node) -> LocalNode:
    addresses = _underlay_addresses(topology, node)
    return LocalNode(
        name=node.name,
        netns=netns_of(lab, node.name),
        underlay_link=next(link.name for link in node.links if addresses[0] in link.addresses),
        underlay_mtu=topology.mtu,
        addresses=addresses,
        subnets=node.subnets,
        networks=topology.networks,
        bridge=NODE_BRIDGE if node.attach == "bridge" else None,
        vtep_mac=vtep_mac_of(node),
    )


def _peer(topology: Topology, node: Node, other: Node) -> Peer:
    shared = _shared_link(node, other)
    near, far = shared or (None, None)
    return Peer(
        name=other.name,
        addresses=far.addresses if far else _underlay_addresses(topology, other),
        subnets=other.subnets,
        link=near.name if near else None,
        vtep_mac=vtep_mac_of(other),
    )


def _shared_link(node: Node, other: Node) -> tuple[Attachment, Attachment] | None:
    """Our link and theirs on the first segment that both are on."""
    for near in node.links:
        for far in other.links:
            if near.segment == far.segment:
                return near, far
    return None


def vtep_mac_of(node: Node) -> str:
    """A locally administered MAC that every node of the lab can compute (IEEE 802-2014 section 8.4)."""
    digest = hashlib.sha256(node.name.encode()).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest))


def _loss_tables(lab: str, topology: Topology) -> Iterator[NftTable]:
    """Packets are lost where they arrive, at both ends of a link, so that each direction loses its share once."""
    lossy: dict[str, dict[str, float]] = {}
    hosts: tuple[Host, ...] = (*topology.routers, *topology.nodes)
    for host in hosts:
        for index, link in enumerate(host.links):
            if link.loss_percent:
                lossy.setdefault(netns_of(lab, host.name), {})[link.name] = link.loss_percent
                lossy.setdefault(netns_of(lab, link.segment), {})[port_name(host, index)] = link.loss_percent
    for node in topology.nodes:
        for position, container in enumerate(node.containers, start=1):
            if container.loss_percent:
                cable = _attachment(lab, topology, node, container, position)
                lossy.setdefault(cable.node_netns, {})[cable.node_link] = container.loss_percent
                lossy.setdefault(cable.netns, {})[cable.link] = container.loss_percent
    for netns, links in lossy.items():
        yield NftTable(netns=netns, family="netdev", name=LOSS_TABLE, text=_loss_text(links))


def _loss_text(links: dict[str, float]) -> str:
    chains = (
        f"chain loss-{link} {{\n"
        f'type filter hook ingress device "{link}" priority filter; policy accept;\n'
        f"{_chance(percent)}counter drop\n"
        "}"
        for link, percent in links.items()
    )
    return "\n".join(chains)


def _chance(percent: float) -> str:
    """The condition that holds for this share of packets; none at all for every packet."""
    parts = round(percent * 100)
    return f"numgen random mod 10000 < {parts} " if parts < 10000 else ""
