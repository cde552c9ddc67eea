"""What the network of one host should be, by its lease and everybody else's: pure.

Theory of operation: the backend named in the network's configuration turns the other leases into kernel objects; to
these come forwarding, the packet filter and, where one is named, the containers' bridge. ``plan_own`` is what the host
has in any case, ``plan_peers`` what it has for some leases of others (``agent.planner`` puts them together).

While a changed configuration goes through a cluster, some nodes still advertise the backend of the one before. A
configuration is in the store before any lease that follows it, and a snapshot is whole, so whoever sees such a lease
knows both. ``NodeInputs.previous`` is the configuration before: its devices stay, and a peer that still speaks its
language is reached in it, until ``agent.loop`` lets it go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from muslin.agent.underlay import Underlay
from muslin.backends import BACKENDS, Backend, Options, udp, vxlan
from muslin.model.address import nth_address, prefix_length, stable_mac
from muslin.model.config import NetworkConfig
from muslin.model.kernel import PROTOCOL_MUSLIN, AnyObject, Link
from muslin.model.lease import Advertisement, Lease
from muslin.model.link import LINK_MARK
from muslin.model.network import LocalNode, Peer, Refusal, Tunnel
from muslin.plan import node as node_plan
from muslin.plan import traffic
from muslin.plan.traffic import TrafficOptions

OWN_NETNS = ""
GATEWAY_INDEX = 1  # flannel's subnet.env: FLANNEL_SUBNET is the first usable address


class NodeInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this host and of the network that it is part of."""

    name: str
    config: NetworkConfig
    underlay: Underlay
    subnets: tuple[str, ...]
    """Of the own lease."""
    vtep_mac: str
    previous: NetworkConfig | None = None
    """The configuration before, while peers still follow it."""
    bridge: str = ""
    """The containers' bridge, empty where somebody else makes it."""
    masquerade: bool = False
    fully_random: bool = True
    forward: bool = True


class Host:
    """A ``NodeInputs`` prepared for planning many leases, with what would else be worked out for each anew.

    ValueError, naming the option, when the configuration asks for something that there is not.
    """

    def __init__(self, inputs: NodeInputs) -> None:
        self.inputs = inputs
        self.options = options_of(inputs.config)
        self.previous = options_of(inputs.previous) if inputs.previous else None
        self.local = LocalNode(
            name=inputs.name,
            netns=OWN_NETNS,
            underlay_link=inputs.underlay.link,
            underlay_mtu=inputs.underlay.mtu,
            addresses=inputs.underlay.addresses,
            subnets=inputs.subnets,
            networks=inputs.config.networks,
            bridge=inputs.bridge or None,
            vtep_mac=inputs.vtep_mac,
            protocol=PROTOCOL_MUSLIN,
        )
        self.filtering = TrafficOptions(
            networks=inputs.config.networks,
            forward=inputs.forward,
            masquerade=inputs.masquerade,
            fully_random=inputs.fully_random,
            tunnel_ports=tuple(port for _, options in self.backends for port in _tunnel_ports(options)),
        )

    @property
    def backends(self) -> tuple[tuple[Backend, Options], ...]:
        """The backend of the configuration, then that of the one before where there is one."""
        found = [(BACKENDS[self.inputs.config.backend], self.options)]
        if self.inputs.previous is not None and self.previous is not None:
            found.append((BACKENDS[self.inputs.previous.backend], self.previous))
        return tuple(found)

    @property
    def mtu(self) -> int:
        """Bytes of a container's largest packet, whichever backend carries it."""
        return min(backend.mtu(options, self.local) for backend, options in self.backends)

    def advertisement(self) -> Advertisement:
        """What this host's lease says of it."""
        backend, options = self.backends[0]
        data, data_v6 = backend.advertise(options, self.local)
        addresses = self.inputs.underlay.public_addresses
        return Advertisement(addresses=addresses, backend=self.inputs.config.backend, data=data, data_v6=data_v6)


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What this host should have, or a part of it."""

    objects: tuple[AnyObject, ...]
    tunnel: Tunnel | None = None
    tunnel_peers: tuple[tuple[str, str], ...] = ()
    refusals: tuple[Refusal, ...] = ()


def options_of(config: NetworkConfig) -> Options:
    """The backend's options; ValueError naming the one that is wrong, or a backend that there is not."""
    if config.backend not in BACKENDS:
        raise ValueError(f"Backend.Type is {config.backend!r}; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[config.backend].parse_options(config.backend_options)


def may_linger(previous: NetworkConfig, config: NetworkConfig) -> bool:
    """Whether two configurations can be served side by side: their devices have different names."""
    if previous.pools != config.pools or "alloc" in (previous.backend, config.backend):
        return False
    before, now = options_of(previous), options_of(config)
    if isinstance(before, vxlan.Options) and isinstance(now, vxlan.Options):
        return before.vni != now.vni
    return previous.backend != config.backend


def speaks(backend: str, options: Options, lease: Lease) -> bool:
    """Whether a lease is of a node with this backend, as far as its name and network number tell."""
    says = lease.advertisement
    if isinstance(options, udp.Options):
        return says.backend in udp.ACCEPTED
    if says.backend != backend:
        return False
    return not isinstance(options, vxlan.Options) or vxlan.shares_network(options, says.data or says.data_v6)


def plan_own(host: Host) -> NodePlan:
    """What the host has however many peers there are; of two objects with one key, the present configuration's."""
    inputs = host.inputs
    plans = [backend.plan_own(host.local, options) for backend, options in host.backends]
    objects = [
        *node_plan.forwarding(OWN_NETNS, inputs.config.families, enabled=True),
        *_bridge(inputs),
        *traffic.plan(OWN_NETNS, host.filtering, inputs.underlay.addresses),
        *(obj for plan in plans for obj in plan.state),
    ]
    by_key = {obj.key: obj for obj in reversed(objects)}
    return NodePlan(
        objects=tuple(_marked(obj) for obj in reversed(by_key.values())),
        tunnel=next((plan.tunnel for plan in plans if plan.tunnel), None),
    )


def _bridge(inputs: NodeInputs) -> Iterator[AnyObject]:
    if inputs.bridge:
        gateways = (f"{nth_address(net, GATEWAY_INDEX)}/{prefix_length(net)}" for net in inputs.subnets)
        # Without a MAC of its own a bridge takes its lowest port's, and containers lose their gateway for seconds
        # whenever another one comes or goes (br_stp_recalculate_bridge_id, net/bridge/br_stp_if.c).
        mac = stable_mac("bridge", inputs.name, *inputs.subnets)
        yield from node_plan.bridge(OWN_NETNS, inputs.bridge, tuple(gateways), mac=mac)


def _marked(obj: AnyObject) -> AnyObject:
    """A link with our mark, by which it is known as ours even without a file that says so."""
    return msgspec.structs.replace(obj, alias=f"{LINK_MARK}{obj.name}") if isinstance(obj, Link) else obj


def _tunnel_ports(options: Options) -> Iterator[int]:
    """The UDP port that encapsulated packets come to, none where nothing is encapsulated."""
    match options:
        case vxlan.Options() | udp.Options():
            yield options.port


def plan_peers(host: Host, leases: Sequence[Lease]) -> NodePlan:
    """What the host has for these leases of other nodes."""
    addresses = (address for lease in leases for address in lease.advertisement.addresses)
    objects: list[AnyObject] = list(traffic.node_elements(OWN_NETNS, addresses if host.filtering.wanted else ()))
    plans = []
    by_backend = _peers(host, leases)
    for (backend, options), peers in zip(host.backends, by_backend, strict=True):
        if peers:
            plans.append(backend.plan_peers(host.local, peers, options, use_nexthops=True))
            objects += plans[-1].state.objects
    return NodePlan(
        objects=tuple(objects),
        tunnel_peers=(*(entry for plan in plans for entry in plan.tunnel_peers), *_also_heard(host, by_backend)),
        refusals=tuple(refusal for plan in plans for refusal in plan.refusals),
    )


def _also_heard(host: Host, by_backend: Sequence[Sequence[Peer]]) -> Iterator[tuple[str, str]]:
    """Tunnel entries of those whom the other of two backends serves: a tunnel takes nothing from whom it does not know.

    A node sends in the new way to all who say that they hear it, before its own lease says so, and in the old way to
    all others, long after. Nothing is sent by these entries: the route of the other backend is the longer one.
    """
    if len(by_backend) > 1:
        for place, (_, options) in enumerate(host.backends):
            if isinstance(options, udp.Options):
                others = (peer for at, peers in enumerate(by_backend) if at != place for peer in peers)
                as_udp = [msgspec.structs.replace(peer, backend=udp.NAME, data={}, data_v6={}) for peer in others]
                yield from udp.plan_peers(host.local, as_udp, options).tunnel_peers


def _peers(host: Host, leases: Sequence[Lease]) -> list[list[Peer]]:
    """The peers that each of the host's backends is asked to reach."""
    previous = host.inputs.previous
    if previous is None or host.previous is None:
        return [[_peer(host, lease) for lease in leases]]
    present: list[Peer] = []
    lingering: list[Peer] = []
    for lease in leases:
        is_late = speaks(previous.backend, host.previous, lease) and not speaks(
            host.inputs.config.backend, host.options, lease
        )
        (lingering if is_late else present).append(_peer(host, lease))
    return [present, lingering]


def _peer(host: Host, lease: Lease) -> Peer:
    says, underlay = lease.advertisement, host.inputs.underlay
    return Peer(
        name=lease.name,
        addresses=says.addresses,
        subnets=lease.subnets,
        link=underlay.link if any(map(underlay.shares_network_with, says.addresses)) else None,
        backend=says.backend,
        data=says.data,
        data_v6=says.data_v6,
    )


def overlay_probe_address(backend: str, subnet: str) -> str:
    """An address of a peer's subnet that the peer itself has: ``.0`` on its overlay device, ``.1`` on its bridge."""
    return nth_address(subnet, GATEWAY_INDEX if backend == "host-gw" else 0)
