"""The talk's fourth step, flannel's udp: packets travel as the payload of UDP datagrams.

Theory of operation: a TUN device holds an address with the length of the whole container network, so the kernel
routes all of that network into it; the node's own subnet, being longer, still goes to the bridge. The program behind
the device (``muslin.tunnel``) picks the peer by the packet's destination. Packets to a container leave by the device
while those to a node's underlay address do not, so answers may come back another way than the questions went:
reverse path filtering (RFC 3704) has to be off, as the talk does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muslin.model.address import Family, family_of, host_prefix, nth_address, prefix_length
from muslin.model.kernel import Address, AnyObject, Link, Sysctl, Tun
from muslin.model.network import TUNNEL_PORT, BackendPlan, LocalNode, Peer, Tunnel, endpoint, of_family
from muslin.model.state import DesiredState

DEVICE = "tun0"
TUNNEL_ADDRESS_INDEX = 100  # the talk: 172.16.0.100/16 on a node with 172.16.0.0/24
UDP_HEADER_BYTES = 8  # RFC 768
IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}  # RFC 791, RFC 8200, without options


def overhead_bytes(family: Family) -> int:
    """The outer IP and UDP headers: 28 bytes over IPv4, 48 over IPv6."""
    return IP_HEADER_BYTES[family] + UDP_HEADER_BYTES


def plan(local: LocalNode, peers: Sequence[Peer]) -> BackendPlan:
    """The device, its addresses, the settings, and the tunnel to all peers over one underlay family."""
    underlay = local.addresses[0]
    mtu = local.underlay_mtu - overhead_bytes(family_of(underlay))
    device = Link(netns=local.netns, name=DEVICE, options=Tun(), mtu=mtu, up=True)
    objects: list[AnyObject] = [device, *_addresses(local), *_reverse_path_settings(local)]
    return BackendPlan(state=DesiredState(tuple(objects)), tunnel=_tunnel(local, peers, underlay))


def _addresses(local: LocalNode) -> Iterator[Address]:
    for subnet in local.subnets:
        network = of_family(local.networks, family_of(subnet))
        length = prefix_length(network or subnet)
        address = f"{nth_address(subnet, TUNNEL_ADDRESS_INDEX)}/{length}"
        yield Address(netns=local.netns, link=DEVICE, address=address)


def _reverse_path_settings(local: LocalNode) -> Iterator[Sysctl]:
    """IPv4 only: IPv6 has no such setting (its filter is a packet filter rule, see nft(8) fib)."""
    for name in ("all", local.underlay_link, local.bridge, DEVICE):
        if name:
            yield Sysctl(netns=local.netns, name=f"net/ipv4/conf/{name}/rp_filter", value="0")


def _tunnel(local: LocalNode, peers: Sequence[Peer], underlay: str) -> Tunnel:
    return Tunnel(
        netns=local.netns,
        device=DEVICE,
        listen=endpoint(underlay, TUNNEL_PORT),
        peers=tuple(entry for peer in peers for entry in _tunnel_entries(peer, family_of(underlay))),
    )


def _tunnel_entries(peer: Peer, family: Family) -> Iterator[tuple[str, str]]:
    """Each prefix that a peer may speak for, with where to send what is for it."""
    outer = of_family(peer.addresses, family)
    if outer is None:
        return
    # A node answers a container by the address that it was asked at. The tunnel knows the one that datagrams come
    # from; a second underlay address, of the other family, has to be named.
    others = (host_prefix(address) for address in peer.addresses if address != outer)
    for prefix in (*peer.subnets, *others):
        yield prefix, endpoint(outer, TUNNEL_PORT)
