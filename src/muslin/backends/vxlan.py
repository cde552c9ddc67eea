"""flannel's vxlan: the overlay of step 4 inside of the kernel (RFC 7348).

Theory of operation: as flannel lays it out, so that its nodes can be peers. The device has the ``.0`` address of the
node's subnet and a MAC that all peers know. For each peer: a neighbour entry (the gateway has this MAC), a forwarding
entry (that MAC lies behind this underlay address) and, last, the route to its subnet through the gateway. Nothing is
learned or asked for on the wire. Answers of a remote node may come by another link than the question left by, so
reverse path filtering is loose (2), which is enough (RFC 3704 section 2.4).

As nobody asks on the wire, which address stands for a peer is this node's own affair: with IPv4 the ``.0`` of its
subnet, as in flannel; with IPv6 the link-local address of its MAC. Any other gateway IPv6 compares with the routes that
are there (ip6_route_check_nh_onlink, net/ipv6/route.c), and it would let no route turn to here from another device.

A lab has one device, over the first family of its underlay, for the subnets of both. An agent has, as flannel does, a
device for each family that its underlay has, each with the subnets of its own family; what a peer cannot take over
that family goes over the other one. Both ends see the same leases, so both choose alike.

With DirectRouting a peer on the same layer-2 network gets a plain route instead, as in host-gw.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from muslin.backends.base import MTU_MAX, MTU_MIN, PORT_MAX, Given, Way, nexthop_numbers, route, sort_out
from muslin.model.address import Family, address_part, family_of, host_prefix, link_local_address, nth_address
from muslin.model.kernel import VXLAN_PORT, Address, AnyObject, FdbEntry, Link, Neighbour, Sysctl, Vxlan
from muslin.model.network import BackendPlan, LocalNode, Peer, Refusal, of_family
from muslin.model.state import DesiredState

NAME = "vxlan"
VNI = 1  # flannel's vxlan.go, defaultVNI
VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5
LEASE_VNI_MASK = 0xFFFF  # flannel's leases hold a uint16: it writes a larger VNI cut, and reads no larger one
DEVICE = f"vxlan{VNI}"
UDP_VXLAN_ETHERNET_BYTES = 8 + 8 + 14
IP_HEADER_BYTES: dict[Family, int] = {4: 20, 6: 40}
_MAC = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(\1[0-9a-f]{2}){4}")
MULTICAST_BIT = 0x01  # IEEE 802-2014 section 8.2.2: of the first octet


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """By default a lab's. ``ignored`` are names of options that mean nothing."""

    vni: int = VNI
    port: int = VXLAN_PORT
    gbp: bool = False
    learning: bool = False
    direct_routing: bool = False
    mtu: int = 0
    """Of the underlay, in bytes; 0 is what its link has."""
    device_per_family: bool = False
    ignored: tuple[str, ...] = ()


DEFAULTS = Options()


class Device(NamedTuple):
    """A VXLAN device, the family of its underlay, and our address there."""

    name: str
    family: Family
    underlay: str


def parse_options(options: Mapping[str, Any]) -> Options:
    """The options of an agent: VNI, Port, GBP, Learning, DirectRouting, MTU."""
    given = Given(options)
    return Options(
        vni=given.whole("VNI", VNI, VNI_MAX),
        port=given.whole("Port", VXLAN_PORT, PORT_MAX) or VXLAN_PORT,
        gbp=given.boolean("GBP"),
        learning=given.boolean("Learning"),
        direct_routing=given.boolean("DirectRouting"),
        mtu=given.whole("MTU", 0, MTU_MAX, lowest=MTU_MIN),
        device_per_family=True,
        ignored=given.left,
    )


def overhead_bytes(family: Family) -> int:
    """Outer IP, UDP and VXLAN headers and the inner Ethernet header: 50 bytes over IPv4, 70 over IPv6."""
    return IP_HEADER_BYTES[family] + UDP_VXLAN_ETHERNET_BYTES


def mtu(options: Options, local: LocalNode) -> int:
    """What a container's packet may have, whichever device it leaves by."""
    return min(_device_mtu(options, local, device.family) for device in devices(options, local))


def _device_mtu(options: Options, local: LocalNode, family: Family) -> int:
    # The kernel lets no device take more than its underlay carries (vxlan_config_validate, drivers/net/vxlan).
    return min(options.mtu or local.underlay_mtu, local.underlay_mtu) - overhead_bytes(family)


def devices(options: Options, local: LocalNode) -> tuple[Device, ...]:
    """``vxlan1`` for VNI 1; the second one, over the other family, is ``vxlan6.1`` (15 bytes with the longest VNI)."""
    first, *others = local.addresses
    found = [Device(f"vxlan{options.vni}", family_of(first), first)]
    if options.device_per_family:
        found += [Device(f"vxlan{family_of(a)}.{options.vni}", family_of(a), a) for a in others]
    return tuple(found)


def advertise(options: Options, local: LocalNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """flannel's vxlanLeaseAttrs for each family that a device of ours can be reached over."""
    families = {device.family for device in devices(options, local)}
    data = {"VNI": options.vni & LEASE_VNI_MASK, "VtepMAC": local.vtep_mac}
    return (dict(data) if 4 in families else {}), (dict(data) if 6 in families else {})


def plan_own(local: LocalNode, options: Options = DEFAULTS) -> BackendPlan:
    """The devices."""
    return BackendPlan(state=DesiredState(tuple(_own_objects(options, local))))


def plan_peers(
    local: LocalNode, peers: Sequence[Peer], options: Options = DEFAULTS, *, use_nexthops: bool = False
) -> BackendPlan:
    """Neighbour, forwarding entry and route for each peer."""
    served, refusals = sort_out(local, peers, NAME, (NAME,))
    numbers = nexthop_numbers(served) if use_nexthops else {}
    objects: list[AnyObject] = []
    own_devices = devices(options, local)
    macs: dict[str, str] = {local.vtep_mac: local.name} if any(peer.backend for peer in served) else {}
    for peer in served:
        wanted, reason = _peer_objects(local, peer, options, own_devices, numbers, macs)
        objects += wanted
        if reason:
            refusals.append(Refusal(peer.name, f"vxlan cannot reach {peer.name} from {local.name}: {reason}"))
    return BackendPlan(state=DesiredState(tuple(objects)), refusals=tuple(refusals))


def _own_objects(options: Options, local: LocalNode) -> Iterator[AnyObject]:
    own_devices = devices(options, local)
    for device in own_devices:
        vxlan = Vxlan(
            vni=options.vni,
            local=device.underlay,
            underlay=local.underlay_link,
            port=options.port,
            learning=options.learning,
            gbp=options.gbp,
        )
        device_mtu = _device_mtu(options, local, device.family)
        yield Link(netns=local.netns, name=device.name, options=vxlan, mtu=device_mtu, mac=local.vtep_mac, up=True)
        for subnet in local.subnets:
            if _device_for(own_devices, family_of(subnet)) == device:
                yield Address(netns=local.netns, link=device.name, address=host_prefix(nth_address(subnet, 0)))
    yield Sysctl(netns=local.netns, name="net/ipv4/conf/all/rp_filter", value="2")


def _device_for(own_devices: Sequence[Device], family: Family) -> Device:
    """The device of this family; the first one when there is none."""
    return next((device for device in own_devices if device.family == family), own_devices[0])


class _End(NamedTuple):
    """A tunnel to a peer over one of our devices."""

    device: Device
    mac: str
    outer: str


def _peer_objects(
    local: LocalNode,
    peer: Peer,
    options: Options,
    own_devices: Sequence[Device],
    numbers: Mapping[str, int],
    macs: dict[str, str],
) -> tuple[list[AnyObject], str]:
    """What it takes to reach the peer's subnets, and why some cannot be reached."""
    objects: list[AnyObject] = []
    ends: dict[Family, _End] | None = None
    reason = ""
    for subnet in peer.subnets:
        if way := _direct_way(peer, subnet, options):
            objects += route(local, way, numbers)
            continue
        if ends is None:
            ends, reason = _ends(peer, options, own_devices, macs)
            objects += (
                FdbEntry(netns=local.netns, link=end.device.name, mac=end.mac, destination=end.outer)
                for end in _in_use(ends, peer)
            )
        if end := _end_for(ends, family_of(subnet)):
            gateway, onlink = _gateway(subnet, end.mac)
            objects.append(Neighbour(netns=local.netns, link=end.device.name, address=gateway, mac=end.mac))
            objects += route(local, Way(subnet, gateway, end.device.name, onlink), numbers)
    return objects, reason if ends == {} else ""


def _gateway(subnet: str, mac: str) -> tuple[str, bool | None]:
    """The address that stands for the peer on the device, and whether the kernel must be told that it is there."""
    return (link_local_address(mac), None) if family_of(subnet) == 6 else (address_part(subnet), True)


def _direct_way(peer: Peer, subnet: str, options: Options) -> Way | None:
    if options.direct_routing and peer.link and (via := of_family(peer.addresses, family_of(subnet))):
        return Way(subnet, via, peer.link)
    return None


def _end_for(ends: Mapping[Family, _End], family: Family) -> _End | None:
    """Over the subnet's own family where both have it, over the other one otherwise."""
    return ends.get(family) or next(iter(ends.values()), None)


def _in_use(ends: Mapping[Family, _End], peer: Peer) -> list[_End]:
    families = dict.fromkeys(family_of(subnet) for subnet in peer.subnets)
    return list(dict.fromkeys(end for family in families if (end := _end_for(ends, family))))


def _ends(
    peer: Peer, options: Options, own_devices: Sequence[Device], macs: dict[str, str]
) -> tuple[dict[Family, _End], str]:
    """The tunnels that can be made, by underlay family; and the last reason why one cannot."""
    ends: dict[Family, _End] = {}
    reason = ""
    for device in own_devices:
        outer = of_family(peer.addresses, device.family)
        if outer is None:
            reason = reason or f"it has no IPv{device.family} address on the underlay"
            continue
        try:
            mac = _vtep_mac(peer, options, device.family)
            if macs.setdefault(mac, peer.name) != peer.name:
                raise ValueError(f"its VTEP MAC {mac} is also that of {macs[mac]}")
        except ValueError as error:
            reason = str(error)
        else:
            ends[device.family] = _End(device, mac, outer)
    return ends, reason


def shares_network(options: Options, data: Mapping[str, Any]) -> bool:
    """Whether a lease's data is of the VXLAN network of these options."""
    vni = data.get("VNI", options.vni)
    return type(vni) is int and vni & LEASE_VNI_MASK == options.vni & LEASE_VNI_MASK


def _vtep_mac(peer: Peer, options: Options, family: Family) -> str:
    """The MAC that the peer's lease tells for this family; ValueError when it tells none or another network's."""
    if peer.backend is None:
        return peer.vtep_mac
    name, data = ("BackendV6Data", peer.data_v6) if family == 6 else ("BackendData", peer.data)
    vni = data.get("VNI", options.vni)
    if type(vni) is not int:
        raise ValueError(f"its lease has {str(vni)[:60]!r} for VNI in {name}; expected a whole number")
    if not shares_network(options, data):
        raise ValueError(f"it is in the network with VNI {vni}, and this node in the one with VNI {options.vni}")
    mac = mac_in(data)
    if not mac:
        given = str(data.get("VtepMAC"))[:60]
        raise ValueError(f"its lease has {given!r} for VtepMAC in {name}; expected the MAC of one interface")
    return mac


def mac_in(data: Mapping[str, Any]) -> str:
    """The MAC that a lease's data tells; empty when it tells none that one interface can have."""
    given = data.get("VtepMAC")
    mac = given.lower().replace("-", ":") if isinstance(given, str) and _MAC.fullmatch(given.lower()) else ""
    usable = mac and not int(mac[:2], 16) & MULTICAST_BIT and mac != "00:00:00:00:00:00"
    return mac if usable else ""
