"""What the network of one host should be, by its lease and everybody else's: pure.

Theory of operation: the backend named in the network's configuration turns the other leases into kernel objects; to
these come forwarding and the packet filter. ``NodeInputs`` is everything that counts, as a value: when two of them
are equal up to the leases, only the leases that differ have to be looked at (``agent.loop`` does so).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from muslin.agent.underlay import Underlay
from muslin.backends import BACKENDS, Options, udp, vxlan
from muslin.model.config import NetworkConfig
from muslin.model.kernel import PROTOCOL_MUSLIN
from muslin.model.lease import Advertisement, Lease
from muslin.model.network import LocalNode, Peer, Refusal, Tunnel
from muslin.model.state import DesiredState
from muslin.plan import node as node_plan
from muslin.plan import traffic
from muslin.plan.traffic import TrafficOptions

OWN_NETNS = ""


class NodeInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this host and of the network that it is part of."""

    name: str
    config: NetworkConfig
    underlay: Underlay
    subnets: tuple[str, ...]
    """Of the own lease."""
    vtep_mac: str
    masquerade: bool = False
    forward: bool = True

    @property
    def options(self) -> Options:
        """The backend's options; ValueError naming the one that is wrong."""
        return BACKENDS[self.config.backend].parse_options(self.config.backend_options)

    @property
    def local(self) -> LocalNode:
        """This host, as a backend wants to know it."""
        return LocalNode(
            name=self.name,
            netns=OWN_NETNS,
            underlay_link=self.underlay.link,
            underlay_mtu=self.underlay.mtu,
            addresses=self.underlay.addresses,
            subnets=self.subnets,
            networks=self.config.networks,
            vtep_mac=self.vtep_mac,
            protocol=PROTOCOL_MUSLIN,
        )


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What this host should have. ``mtu`` is that of its containers, in bytes."""

    state: DesiredState
    tunnel: Tunnel | None
    refusals: tuple[Refusal, ...]
    mtu: int


def advertisement(inputs: NodeInputs) -> Advertisement:
    """What this host's lease says of it."""
    data, data_v6 = BACKENDS[inputs.config.backend].advertise(inputs.options, inputs.local)
    return Advertisement(
        addresses=inputs.underlay.public_addresses, backend=inputs.config.backend, data=data, data_v6=data_v6
    )


def plan_node(inputs: NodeInputs, leases: Sequence[Lease]) -> NodePlan:
    """The objects for these leases of other nodes, on top of what the host has in any case."""
    backend, options, local = BACKENDS[inputs.config.backend], inputs.options, inputs.local
    peers = [_peer(inputs, lease) for lease in leases]
    planned = backend.plan(local, peers, options, use_nexthops=True)
    filtering = TrafficOptions(
        networks=inputs.config.networks,
        forward=inputs.forward,
        masquerade=inputs.masquerade,
        tunnel_port=_tunnel_port(options),
    )
    nodes = dict.fromkeys([*inputs.underlay.addresses, *(address for peer in peers for address in peer.addresses)])
    return NodePlan(
        state=DesiredState(
            (
                *node_plan.forwarding(OWN_NETNS, inputs.config.families, enabled=True),
                *planned.state.objects,
                *traffic.plan(OWN_NETNS, filtering, nodes),
            )
        ),
        tunnel=planned.tunnel,
        refusals=planned.refusals,
        mtu=backend.mtu(options, local),
    )


def _peer(inputs: NodeInputs, lease: Lease) -> Peer:
    says = lease.advertisement
    near = any(inputs.underlay.shares_network_with(address) for address in says.addresses)
    return Peer(
        name=lease.name,
        addresses=says.addresses,
        subnets=lease.subnets,
        link=inputs.underlay.link if near else None,
        backend=says.backend,
        data=says.data,
        data_v6=says.data_v6,
    )


def _tunnel_port(options: Options) -> int | None:
    """The UDP port that encapsulated packets come to, None where nothing is encapsulated."""
    match options:
        case vxlan.Options() | udp.Options():
            return options.port
    return None
