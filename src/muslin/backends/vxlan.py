"""flannel's vxlan: the overlay of step 4 inside of the kernel (RFC 7348).

Theory of operation: as flannel lays it out, so that its nodes can be peers. The device has the ``.0`` address of the
node's subnet and a MAC that all peers know. For each peer: a neighbour entry (its ``.0`` address has this MAC), a
forwarding entry (that MAC lies behind this underlay address) and, last, the route to its subnet. Nothing is learned
or asked for on the wire. Answers of a remote node may come by another link than the question left by, so reverse
path filtering is loose (2), which is enough (RFC 3704 section 2.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muslin.model.address import Family, family_of, host_prefix, nth_address
from muslin.model.kernel import Address, AnyObject, FdbEntry, Link, Neighbour, Route, Sysctl, Vxlan
from muslin.model.network import BackendPlan, LocalNode, Peer, of_family
from muslin.model.state import DesiredState

DEVICE = "vxlan1"
VNI = 1
UDP_VXLAN_ETHERNET_BYTES = 8 + 8 + 14
IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}


def overhead_bytes(family: Family) -> int:
    """Outer IP, UDP and VXLAN headers and the inner Ethernet header: 50 bytes over IPv4, 70 over IPv6."""
    return IP_HEADER_BYTES[family] + UDP_VXLAN_ETHERNET_BYTES


def plan(local: LocalNode, peers: Sequence[Peer]) -> BackendPlan:
    """The device, and neighbour, forwarding entry and route for each peer."""
    underlay = local.addresses[0]
    device = Link(
        netns=local.netns,
        name=DEVICE,
        options=Vxlan(vni=VNI, local=underlay, underlay=local.underlay_link),
        mtu=local.underlay_mtu - overhead_bytes(family_of(underlay)),
        mac=local.vtep_mac,
        up=True,
    )
    objects: list[AnyObject] = [device]
    objects += [
        Address(netns=local.netns, link=DEVICE, address=host_prefix(nth_address(subnet, 0))) for subnet in local.subnets
    ]
    objects.append(Sysctl(netns=local.netns, name="net/ipv4/conf/all/rp_filter", value="2"))
    for peer in peers:
        objects += _peer_objects(local, peer, family_of(underlay))
    return BackendPlan(state=DesiredState(tuple(objects)))


def _peer_objects(local: LocalNode, peer: Peer, family: Family) -> Iterator[AnyObject]:
    outer = of_family(peer.addresses, family)
    if outer is None:
        return
    yield FdbEntry(netns=local.netns, link=DEVICE, mac=peer.vtep_mac, destination=outer)
    for subnet in peer.subnets:
        gateway = nth_address(subnet, 0)
        yield Neighbour(netns=local.netns, link=DEVICE, address=gateway, mac=peer.vtep_mac)
        yield Route(netns=local.netns, destination=subnet, via=gateway, link=DEVICE, onlink=True)
