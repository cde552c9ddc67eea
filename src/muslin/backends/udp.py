"""The talk's fourth step, flannel's udp: packets travel as the payload of UDP datagrams.

Theory of operation: a TUN device holds an address with the length of the whole container network, so the kernel
routes all of that network into it; the node's own subnet, being longer, still goes to the bridge. The program behind
the device (``muslin.tunnel``) picks the peer by the packet's destination. Packets to a container leave by the device
while those to a node's underlay address do not, so answers may come back another way than the questions went:
reverse path filtering (RFC 3704) has to be off, as the talk does it.

A lab builds what the talk shows: tun0, number 100 of the subnet, port 9000. An agent shares its host with others and
its network with flannel: a device name of its own (tun0 is OpenVPN's), the ``.0`` address that no container gets, and
flannel's port. A node tells its port in the lease; flannel does not, it takes for granted that all use the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from muslin.backends.base import PORT_MAX, Given, sort_out
from muslin.model.address import Family, family_of, host_prefix, nth_address, prefix_length
from muslin.model.kernel import Address, AnyObject, Link, Route, Sysctl, Tun
from muslin.model.network import TUNNEL_PORT, BackendPlan, LocalNode, Peer, Refusal, Tunnel, endpoint, of_family
from muslin.model.state import DesiredState

NAME = "udp"
ACCEPTED = (NAME, "")  # flannel's udp_amd64.go leaves BackendType out of its lease
DEVICE = "tun0"
AGENT_DEVICE = "muslin-udp"
TUNNEL_ADDRESS_INDEX = 100  # the talk: 172.16.0.100/16 on a node with 172.16.0.0/24
AGENT_ADDRESS_INDEX = 0  # flannel's udp_amd64.go: tunNet is l.Subnet.IP with the length of the network
AGENT_PORT = 8285  # flannel's udp_amd64.go, defaultPort
UDP_HEADER_BYTES = 8  # RFC 768
IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}  # RFC 791, RFC 8200, without options


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """By default a lab's. ``ignored`` are names of options that mean nothing."""

    port: int = TUNNEL_PORT
    device: str = DEVICE
    address_index: int = TUNNEL_ADDRESS_INDEX
    """Which address of the node's subnet the device has."""
    ignored: tuple[str, ...] = ()


DEFAULTS = Options()


def parse_options(options: Mapping[str, Any]) -> Options:
    """The options of an agent: ``Port``."""
    given = Given(options)
    return Options(
        port=given.whole("Port", AGENT_PORT, PORT_MAX) or AGENT_PORT,
        device=AGENT_DEVICE,
        address_index=AGENT_ADDRESS_INDEX,
        ignored=given.left,
    )


def overhead_bytes(family: Family) -> int:
    """The outer IP and UDP headers: 28 bytes over IPv4, 48 over IPv6."""
    return IP_HEADER_BYTES[family] + UDP_HEADER_BYTES


def mtu(_options: Options, local: LocalNode) -> int:
    """What a container's packet may have."""
    return local.underlay_mtu - overhead_bytes(family_of(local.addresses[0]))


def advertise(options: Options, _local: LocalNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our port: flannel ignores it, and our peers follow it while a change of port goes through the cluster."""
    return {"Port": options.port}, {}


def plan_own(local: LocalNode, options: Options = DEFAULTS) -> BackendPlan:
    """The device, its addresses, the settings, and the tunnel, over one underlay family."""
    device = Link(netns=local.netns, name=options.device, options=Tun(), mtu=mtu(options, local), up=True)
    objects: tuple[AnyObject, ...] = (device, *_addresses(local, options), *_reverse_path_settings(local, options))
    listen = endpoint(local.addresses[0], options.port)
    tunnel = Tunnel(netns=local.netns, device=options.device, listen=listen, peers=())
    return BackendPlan(state=DesiredState(objects), tunnel=tunnel)


def plan_peers(
    local: LocalNode, peers: Sequence[Peer], options: Options = DEFAULTS, *, use_nexthops: bool = False
) -> BackendPlan:
    """The tunnel's entries. ``use_nexthops`` changes nothing: there is one route for all."""
    served, refusals = sort_out(local, peers, NAME, ACCEPTED)
    family = family_of(local.addresses[0])
    entries: list[tuple[str, str]] = []
    for peer in served:
        reason = _unreachable(peer, options, family)
        if reason:
            refusals.append(Refusal(peer.name, f"udp cannot reach {peer.name} from {local.name}: {reason}"))
        else:
            entries += _tunnel_entries(peer, family, _port_of(peer, options))
    return BackendPlan(tunnel_peers=tuple(entries), refusals=tuple(refusals))


def _addresses(local: LocalNode, options: Options) -> Iterator[Address | Route]:
    """The device's addresses, and by them or by a route of its own the whole network."""
    for subnet in local.subnets:
        network = of_family(local.networks, family_of(subnet)) or subnet
        address = nth_address(subnet, options.address_index)
        if family_of(subnet) == 6 and options.address_index == 0:
            # With the network's length each node would also answer to the network's first address (RFC 4291 section
            # 2.6.1, the subnet-router anycast address), which is this one on the node that has the first subnet.
            yield Address(netns=local.netns, link=options.device, address=host_prefix(address))
            yield Route(netns=local.netns, destination=network, link=options.device, protocol=local.protocol)
        else:
            yield Address(netns=local.netns, link=options.device, address=f"{address}/{prefix_length(network)}")


def _reverse_path_settings(local: LocalNode, options: Options) -> Iterator[Sysctl]:
    """IPv4 only: IPv6 has no such setting (its filter is a packet filter rule, see nft(8) fib)."""
    for name in ("all", local.underlay_link, local.bridge, options.device):
        if name:
            yield Sysctl(netns=local.netns, name=f"net/ipv4/conf/{name}/rp_filter", value="0")


def _unreachable(peer: Peer, options: Options, family: Family) -> str:
    """Why no datagram can go to the peer; empty when one can."""
    if of_family(peer.addresses, family) is None:
        return f"it has no IPv{family} address on the underlay, over which this node's tunnel runs"
    port = _port_of(peer, options)
    if type(port) is not int or not 0 < port <= PORT_MAX:
        return f"its lease has {str(port)[:60]!r} for Port; expected a whole number from 1 to {PORT_MAX}"
    return ""


def _port_of(peer: Peer, options: Options) -> Any:
    return peer.data.get("Port", options.port)


def _tunnel_entries(peer: Peer, family: Family, port: int) -> Iterator[tuple[str, str]]:
    """Each prefix that a peer may speak for, with where to send what is for it."""
    outer = of_family(peer.addresses, family)
    if outer is None:
        return
    # A node answers a container by the address that it was asked at. The tunnel knows the one that datagrams come
    # from; a second underlay address, of the other family, has to be named.
    others = (host_prefix(address) for address in peer.addresses if address != outer)
    for prefix in (*peer.subnets, *others):
        yield prefix, endpoint(outer, port)
