"""rtnetlink: interfaces (struct ifinfomsg, as `ip link` uses it): veth, bridge, vxlan, kinds without options.

A veth is made with both ends, each in its final namespace, by one message: the attribute VETH_INFO_PEER holds
a second ifinfomsg with attributes of its own. A namespace is named by a file descriptor of the sending
process.

The other end cannot be up from the start: the kernel opens it before the two know of each other (ENOTCONN).

The kernel ignores an alias while creating (rtnl_create_link has no place for it), so `link_create` takes
none: `link_set` follows. Bridge port notifications (RTM_NEWLINK and RTM_DELLINK of family AF_BRIDGE) are no
records: an AF_BRIDGE RTM_DELLINK says that a port left its bridge, not that a device is gone.

Not handled: VFs, XDP, alternative names, bridge options, the per-family IFLA_AF_SPEC.
"""

import struct

import msgspec

from muslin.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    encode_attribute,
    encode_nested,
    encode_u8,
    encode_u32,
    pack,
    parse_attributes,
    read_number,
    read_text,
    read_u8,
    read_u32,
    unpack,
)
from muslin.wire.rtnetlink_values import (
    AF_BRIDGE,
    AF_INET,
    ALIAS_BYTES,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    S32,
    Request,
    encode_name,
    pack_address,
    pack_mac,
    unpack_mac,
    unpack_optional,
)

# linux/if.h
IFF_LOWER_UP = 0x10000
IFF_RUNNING = 0x40
IFF_UP = 0x01

# linux/if_arp.h
ARPHRD_LOOPBACK = 772

# linux/if_link.h
IFLA_ADDRESS = 1
IFLA_GROUP = 27
IFLA_IFALIAS = 20
IFLA_IFNAME = 3
IFLA_INFO_DATA = 2
IFLA_INFO_KIND = 1
IFLA_INFO_SLAVE_DATA = 5
IFLA_INFO_SLAVE_KIND = 4
IFLA_LINK = 5
IFLA_LINKINFO = 18
IFLA_LINK_NETNSID = 37
IFLA_MASTER = 10
IFLA_MTU = 4
IFLA_NET_NS_FD = 28
IFLA_STATS64 = 23

IFLA_BRPORT_MODE = 4  # linux/if_link.h: inside IFLA_INFO_SLAVE_DATA of a bridge's port

# linux/if_link.h: inside IFLA_INFO_DATA
IFLA_TUN_TYPE = 3
IFLA_VXLAN_GBP = 23
IFLA_VXLAN_GROUP = 2
IFLA_VXLAN_GROUP6 = 16
IFLA_VXLAN_ID = 1
IFLA_VXLAN_LEARNING = 7
IFLA_VXLAN_LINK = 3
IFLA_VXLAN_LOCAL = 4
IFLA_VXLAN_LOCAL6 = 17
IFLA_VXLAN_PORT = 15
IFLA_VXLAN_TTL = 5
IFLA_VXLAN_UDP_CSUM = 18
IFLA_VXLAN_UDP_ZERO_CSUM6_RX = 20
IFLA_VXLAN_UDP_ZERO_CSUM6_TX = 19
VETH_INFO_PEER = 1  # linux/veth.h

_HEADER = struct.Struct("=BxHiII")  # struct ifinfomsg: family, device type, ifindex, flags, change mask
_WHAT = "ifinfomsg (family, type, ifindex, flags, change)"
_STATISTICS = struct.Struct("=8Q")  # struct rtnl_link_stats64, the first eight of its counters
_STATISTIC = struct.Struct("=Q")
OTHERHOST_BYTES = 24 * 8  # where its rx_otherhost_dropped begins
_PORT = struct.Struct(">H")  # __be16
_TUN_TYPES = {1: "tun", 2: "tap"}  # linux/if_tun.h IFF_TUN, IFF_TAP


class VxlanInfo(msgspec.Struct, frozen=True, gc=False):
    """What makes a vxlan device: to create one, and as the kernel reports it."""

    vni: int  # 24 bits
    port: int = 8472  # UDP; Linux's default, RFC 7348 has 4789
    local: str | None = None  # outer source address, IPv4 or IPv6
    remote: str | None = None  # where unknown destinations go: a unicast or multicast address
    device_ifindex: int = 0  # the device that carries it; 0 = any
    learning: bool = True  # learn addresses from traffic
    gbp: bool = False  # group policy extension: carries the packet mark
    ttl: int = 0  # hops; 0 = the kernel's choice
    udp_csum: bool | None = None  # checksums over IPv4; None = the kernel's default
    udp_zero_csum6_tx: bool = False  # send over IPv6 without checksum
    udp_zero_csum6_rx: bool = False  # accept over IPv6 without checksum


class LinkStatistics(msgspec.Struct, frozen=True, gc=False):
    """Counters of a device since it was made."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int
    rx_otherhost_dropped: int = 0  # frames for another's MAC (since Linux 5.18)


class LinkRecord(msgspec.Struct, frozen=True, gc=False):
    """An interface as the kernel reports it."""

    ifindex: int
    name: str
    kind: str = ""  # "veth", "bridge", "vxlan", "tun", ...; "loopback"; "" for hardware
    up: bool = False  # IFF_UP: what was asked for
    running: bool = False  # IFF_RUNNING: it works (RFC 2863)
    lower_up: bool = False  # IFF_LOWER_UP: there is a carrier
    mtu: int = 0  # bytes
    mac: str = ""  # "" where the device has no link-layer address
    master_ifindex: int = 0  # bridge it is a port of; 0 = none
    alias: str = ""
    group: int = 0
    peer_ifindex: int = 0  # IFLA_LINK: other end of a veth, in namespace link_netnsid; 0 = none
    link_netnsid: int | None = None  # None = this namespace
    vxlan: VxlanInfo | None = None
    tun_type: str = ""  # "tun" or "tap" where kind is "tun"
    hairpin: bool = False  # a bridge's port sends frames back by where they came in
    statistics: LinkStatistics | None = None  # a message need not carry them
    flags: int = 0  # IFF_*


def link_create(
    name: str,
    kind: str,
    *,
    mtu: int | None = None,
    mac: str | None = None,
    up: bool = False,
    master_ifindex: int | None = None,
    netns_fd: int | None = None,
    peer_name: str | None = None,
    peer_mac: str | None = None,
    peer_mtu: int | None = None,
    peer_netns_fd: int | None = None,
    vxlan: VxlanInfo | None = None,
) -> Request:
    """Make a device, and with it the other end of a veth (the arguments `peer_...`).

    MTUs are in bytes. `netns_fd` and `peer_netns_fd` say in which namespace an end shall live (default: that
    of the socket); `master_ifindex` is looked up where the device will live. Raises ValueError for arguments
    of other kinds.
    """
    if vxlan is not None and kind != "vxlan":
        raise ValueError(f"link {name!r} of kind {kind!r}: vxlan options are for kind 'vxlan' only")
    data = b"" if vxlan is None else _encode_vxlan(vxlan)
    if peer_name is not None:
        peer = _header() + _settings(peer_mtu, peer_mac, None, peer_netns_fd, peer_name)
        data = encode_nested(VETH_INFO_PEER, peer)
    if kind != "veth" and (peer_name, peer_mac, peer_mtu, peer_netns_fd) != (None, None, None, None):
        raise ValueError(f"link {name!r} of kind {kind!r}: only a veth has a peer")
    information = encode_attribute(IFLA_INFO_KIND, kind.encode())
    if data:
        information += encode_attribute(IFLA_INFO_DATA, data)
    payload = _header(up=up or None) + _settings(mtu, mac, master_ifindex, netns_fd, name)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload + encode_nested(IFLA_LINKINFO, information))


def link_set(
    ifindex: int,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    master_ifindex: int | None = None,
    alias: str | None = None,
    hairpin: bool | None = None,
    name: str | None = None,
    group: int | None = None,
    netns_fd: int | None = None,
) -> Request:
    """Change what is given, leave the rest. `master_ifindex` 0 takes it off its bridge, alias '' is none.

    `hairpin` is of a bridge's port (IEEE 802.1Q "reflective relay"): whether frames may leave by where they came in.
    """
    payload = _header(ifindex, up=up) + _settings(mtu, mac, master_ifindex, netns_fd, name)
    if alias is not None:
        data = alias.encode()
        if len(data) > ALIAS_BYTES:
            raise ValueError(f"alias {alias!r}: at most {ALIAS_BYTES} bytes expected, {len(data)} found")
        payload += encode_attribute(IFLA_IFALIAS, data)
    if group is not None:
        payload += encode_u32(IFLA_GROUP, group)
    if hairpin is not None:
        port = encode_attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0")
        port += encode_nested(IFLA_INFO_SLAVE_DATA, encode_u8(IFLA_BRPORT_MODE, hairpin))
        payload += encode_nested(IFLA_LINKINFO, port)
    return Request(RTM_NEWLINK, 0, payload)


def link_delete(ifindex: int) -> Request:
    """Remove a device (a veth takes its other end along)."""
    return Request(RTM_DELLINK, 0, _header(ifindex))


def link_group_delete(group: int) -> Request:
    """Remove all devices of a group at once (rtnl_group_dellink); ENODEV when there is none in it."""
    return Request(RTM_DELLINK, 0, _header() + encode_u32(IFLA_GROUP, group))


def link_dump() -> Request:
    """Ask for all devices, with their counters (the kernel leaves out none but those of VFs)."""
    return Request(RTM_GETLINK, NLM_F_DUMP, _header())


def link_get(device: str | int) -> Request:
    """Ask for one device by name or by number; the answer is one RTM_NEWLINK, or the error ENODEV."""
    if isinstance(device, int):
        return Request(RTM_GETLINK, 0, _header(device))
    return Request(RTM_GETLINK, 0, _header() + encode_name(IFLA_IFNAME, device))


def parse_link(payload: bytes) -> LinkRecord | None:
    """Return the device of an RTM_NEWLINK or RTM_DELLINK; None for a bridge port notification."""
    family, device_type, ifindex, flags, _ = unpack(_HEADER, "ifinfomsg", payload)
    if family == AF_BRIDGE:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    kind, data, port = _parse_information(attributes.get(IFLA_LINKINFO, b""))
    return LinkRecord(
        ifindex=ifindex,
        name=read_text(attributes, IFLA_IFNAME),
        kind=kind or ("loopback" if device_type == ARPHRD_LOOPBACK else ""),
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        lower_up=bool(flags & IFF_LOWER_UP),
        mtu=read_u32(attributes, IFLA_MTU),
        mac=unpack_mac(attributes, IFLA_ADDRESS),
        master_ifindex=read_u32(attributes, IFLA_MASTER),
        alias=read_text(attributes, IFLA_IFALIAS),
        group=read_u32(attributes, IFLA_GROUP),
        peer_ifindex=read_u32(attributes, IFLA_LINK),
        link_netnsid=read_number(attributes, IFLA_LINK_NETNSID, S32) if IFLA_LINK_NETNSID in attributes else None,
        vxlan=_parse_vxlan(data) if kind == "vxlan" else None,
        tun_type=_TUN_TYPES.get(read_u8(data, IFLA_TUN_TYPE), "") if kind == "tun" else "",
        hairpin=bool(read_u8(port, IFLA_BRPORT_MODE)),
        statistics=_parse_statistics(attributes.get(IFLA_STATS64)),
        flags=flags,
    )


def _header(ifindex: int = 0, *, up: bool | None = None) -> bytes:
    """Return an ifinfomsg that names a device and, unless `up` is None, sets IFF_UP."""
    return pack(_HEADER, _WHAT, 0, 0, ifindex, IFF_UP if up else 0, 0 if up is None else IFF_UP)


def _settings(
    mtu: int | None, mac: str | None, master_ifindex: int | None, netns_fd: int | None, name: str | None
) -> bytes:
    """Return the attributes that creating and changing have in common."""
    payload = b"" if mtu is None else encode_u32(IFLA_MTU, mtu)
    if mac is not None:
        payload += encode_attribute(IFLA_ADDRESS, pack_mac(mac))
    if master_ifindex is not None:
        payload += encode_u32(IFLA_MASTER, master_ifindex)
    if netns_fd is not None:
        payload += encode_u32(IFLA_NET_NS_FD, netns_fd)
    return payload if name is None else payload + encode_name(IFLA_IFNAME, name)


def _encode_vxlan(vxlan: VxlanInfo) -> bytes:
    """Return the attributes of IFLA_INFO_DATA, in iproute2's order."""
    if not 0 <= vxlan.vni < 1 << 24:
        raise ValueError(f"vxlan: a network identifier of 24 bits expected, {vxlan.vni} found")
    data = encode_u32(IFLA_VXLAN_LINK, vxlan.device_ifindex) if vxlan.device_ifindex else b""
    if vxlan.gbp:
        data += encode_attribute(IFLA_VXLAN_GBP, b"")
    if vxlan.udp_csum is not None:
        data += encode_u8(IFLA_VXLAN_UDP_CSUM, vxlan.udp_csum)
    if vxlan.udp_zero_csum6_tx:
        data += encode_u8(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, 1)
    if vxlan.udp_zero_csum6_rx:
        data += encode_u8(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1)
    data += encode_u32(IFLA_VXLAN_ID, vxlan.vni)
    data += _outer_address(vxlan.remote, IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6)
    data += _outer_address(vxlan.local, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6)
    if vxlan.ttl:
        data += encode_u8(IFLA_VXLAN_TTL, vxlan.ttl)
    data += encode_u8(IFLA_VXLAN_LEARNING, vxlan.learning)
    return data + encode_attribute(IFLA_VXLAN_PORT, pack(_PORT, "vxlan port", vxlan.port))


def _outer_address(address: str | None, kind: int, kind6: int) -> bytes:
    """Return a tunnel address under the attribute kind that its family has."""
    if address is None:
        return b""
    family, data = pack_address(address)
    return encode_attribute(kind if family == AF_INET else kind6, data)


def _parse_information(payload: bytes) -> tuple[str, dict[int, bytes], dict[int, bytes]]:
    """Return (kind, attributes of that kind, those of a bridge's port) of IFLA_LINKINFO, where a record has them."""
    information = parse_attributes(payload)
    kind = read_text(information, IFLA_INFO_KIND)
    data = information.get(IFLA_INFO_DATA, b"") if kind in ("vxlan", "tun") else b""
    is_port = read_text(information, IFLA_INFO_SLAVE_KIND) == "bridge"
    return kind, parse_attributes(data), parse_attributes(information[IFLA_INFO_SLAVE_DATA]) if is_port else {}


def _parse_vxlan(data: dict[int, bytes]) -> VxlanInfo:
    """Return the options of a vxlan device."""
    return VxlanInfo(
        vni=read_u32(data, IFLA_VXLAN_ID),
        port=read_number(data, IFLA_VXLAN_PORT, _PORT),
        local=unpack_optional(data, IFLA_VXLAN_LOCAL) or unpack_optional(data, IFLA_VXLAN_LOCAL6),
        remote=unpack_optional(data, IFLA_VXLAN_GROUP) or unpack_optional(data, IFLA_VXLAN_GROUP6),
        device_ifindex=read_u32(data, IFLA_VXLAN_LINK),
        learning=bool(read_u8(data, IFLA_VXLAN_LEARNING)),
        gbp=IFLA_VXLAN_GBP in data,
        ttl=read_u8(data, IFLA_VXLAN_TTL),
        udp_csum=bool(read_u8(data, IFLA_VXLAN_UDP_CSUM)) if IFLA_VXLAN_UDP_CSUM in data else None,
        udp_zero_csum6_tx=bool(read_u8(data, IFLA_VXLAN_UDP_ZERO_CSUM6_TX)),
        udp_zero_csum6_rx=bool(read_u8(data, IFLA_VXLAN_UDP_ZERO_CSUM6_RX)),
    )


def _parse_statistics(data: bytes | None) -> LinkStatistics | None:
    """Return the counters of IFLA_STATS64."""
    if data is None:
        return None
    otherhost = _STATISTIC.unpack_from(data, OTHERHOST_BYTES)[0] if len(data) >= OTHERHOST_BYTES + 8 else 0
    figures = LinkStatistics(*unpack(_STATISTICS, "rtnl_link_stats64", data))
    return msgspec.structs.replace(figures, rx_otherhost_dropped=otherhost)
