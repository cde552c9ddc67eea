"""pyroute2 as a witness: what we encode it decodes to the same values, and what it encodes we do.

pyroute2 0.9 has no nexthop messages; the kernel itself is asked about those (tests/kernel/test_wire_oracle.py).
"""

import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.wire import netlink, rtnetlink
from muslin.wire.rtnetlink import (
    AF_INET,
    AF_INET6,
    AddressRecord,
    FdbRecord,
    NeighbourRecord,
    Request,
    RouteRecord,
    RuleRecord,
    VxlanInfo,
)

pytest.importorskip("pyroute2", reason="pyroute2, a development dependency, is not installed")
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

a_few = settings(max_examples=25)  # pyroute2 takes its time

U8 = st.integers(0, 0xFF)
U32 = st.integers(0, 0xFFFFFFFF)
INDEXES = st.integers(1, 0x7FFFFFFF)
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed))
ADDRESSES = IPV4 | IPV6
MACS = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
NAMES = st.text(st.characters(min_codepoint=0x61, max_codepoint=0x7A), min_size=1, max_size=15)


def family_of(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def decoded(message_class: Any, request: Request) -> tuple[Any, dict[str, Any]]:
    """Our bytes as pyroute2 reads them: the message, and its attributes by name."""
    flags = request.flags | netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
    message = message_class(netlink.encode_message(request.kind, flags, 7, request.payload))
    message.decode()
    assert message["header"]["type"] == request.kind
    assert message["header"]["flags"] == flags
    assert message["header"]["sequence_number"] == 7
    return message, dict(message["attrs"])


def encoded(message_class: Any, kind: int, fields: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """What pyroute2 encodes, as the record we read from it."""
    message = message_class()
    message.update(fields)
    message["attrs"] = list(attributes.items())
    message["header"]["type"] = kind
    message.encode()
    (framed,) = netlink.iter_messages(message.data)
    return rtnetlink.parse_record(framed)


@a_few
@given(NAMES, U32, MACS, NAMES, MACS, INDEXES, INDEXES)
def test_veth(name: str, mtu: int, mac: str, peer: str, peer_mac: str, fd: int, peer_fd: int) -> None:
    request = rtnetlink.link_create(
        name, "veth", mtu=mtu, mac=mac, netns_fd=fd, up=True,
        peer_name=peer, peer_mac=peer_mac, peer_netns_fd=peer_fd, peer_mtu=mtu,
    )  # fmt: skip
    message, attributes = decoded(ifinfmsg, request)
    assert (message["flags"], message["change"], message["index"]) == (1, 1, 0)
    information = dict(attributes.pop("IFLA_LINKINFO")["attrs"])
    assert attributes == {
        "IFLA_IFNAME": name, "IFLA_MTU": mtu, "IFLA_ADDRESS": mac, "IFLA_NET_NS_FD": fd,
    }  # fmt: skip
    assert information["IFLA_INFO_KIND"] == "veth"
    other = dict(information["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]
    assert dict(other["attrs"]) == {
        "IFLA_IFNAME": peer, "IFLA_MTU": mtu, "IFLA_ADDRESS": peer_mac, "IFLA_NET_NS_FD": peer_fd,
    }  # fmt: skip


@a_few
@given(NAMES, st.integers(0, 0xFFFFFF), st.integers(0, 0xFFFF), ADDRESSES, ADDRESSES, INDEXES, st.booleans(), U8)
def test_vxlan(name: str, vni: int, port: int, local: str, remote: str, ifindex: int, gbp: bool, ttl: int) -> None:
    vxlan = VxlanInfo(
        vni, port, local, remote, ifindex, learning=not gbp, gbp=gbp, ttl=ttl, udp_csum=gbp,
        udp_zero_csum6_tx=gbp, udp_zero_csum6_rx=gbp,
    )  # fmt: skip
    _, attributes = decoded(ifinfmsg, rtnetlink.link_create(name, "vxlan", vxlan=vxlan))
    expected: dict[str, Any] = {
        "IFLA_VXLAN_ID": vni, "IFLA_VXLAN_LINK": ifindex, "IFLA_VXLAN_LEARNING": int(not gbp),
        "IFLA_VXLAN_UDP_CSUM": int(gbp),
        "IFLA_VXLAN_LOCAL6" if ":" in local else "IFLA_VXLAN_LOCAL": local,
        "IFLA_VXLAN_GROUP6" if ":" in remote else "IFLA_VXLAN_GROUP": remote,
        "IFLA_VXLAN_PORT": port,
    }  # fmt: skip
    if gbp:
        expected |= {"IFLA_VXLAN_GBP": True}
        expected |= {"IFLA_VXLAN_UDP_ZERO_CSUM6_TX": 1, "IFLA_VXLAN_UDP_ZERO_CSUM6_RX": 1}
    if ttl:
        expected["IFLA_VXLAN_TTL"] = ttl
    information = dict(attributes["IFLA_LINKINFO"]["attrs"])
    assert dict(information["IFLA_INFO_DATA"]["attrs"]) == expected


@a_few
@given(INDEXES, ADDRESSES, st.integers(1, 32), U8, st.booleans())
def test_addresses(ifindex: int, address: str, length: int, protocol: int, no_route: bool) -> None:
    request = rtnetlink.address_add(ifindex, f"{address}/{length}", protocol=protocol, no_prefix_route=no_route)
    message, attributes = decoded(ifaddrmsg, request)
    assert (message["family"], message["prefixlen"], message["index"]) == (
        family_of(address),
        length,
        ifindex,
    )
    expected = {"IFA_LOCAL": address, "IFA_ADDRESS": address, "IFA_PROTO": protocol}
    assert attributes == expected | ({"IFA_FLAGS": 0x200} if no_route else {})
    scope = message["scope"]
    fields = {"family": family_of(address), "prefixlen": length, "index": ifindex, "scope": scope}
    assert encoded(ifaddrmsg, 20, fields, attributes) == AddressRecord(
        ifindex, f"{address}/{length}", family_of(address), scope, 0x200 * no_route, protocol
    )


@a_few
@given(IPV4 | IPV6, st.integers(1, 32), ADDRESSES, INDEXES, U32, st.integers(1, 0xFFFFFFFF), U8, U32)
def test_routes(
    address: str, length: int, via: str, ifindex: int, metric: int, table: int, protocol: int, mtu: int
) -> None:
    family, destination = family_of(address), f"{address}/{length}"
    request = rtnetlink.route_add(
        destination, via=via, ifindex=ifindex, metric=metric, table=table, protocol=protocol, source=address,
        onlink=True, mtu=mtu,
    )  # fmt: skip
    message, attributes = decoded(rtmsg, request)
    assert (message["family"], message["dst_len"], message["proto"]) == (family, length, protocol)
    assert (message["flags"], message["type"], message["scope"]) == (4, 1, 0)
    expected: dict[str, Any] = {
        "RTA_DST": address, "RTA_OIF": ifindex, "RTA_PRIORITY": metric, "RTA_PREFSRC": address,
        "RTA_METRICS": {"attrs": [("RTAX_MTU", mtu)]},
    }  # fmt: skip
    if family_of(via) == family:
        expected["RTA_GATEWAY"] = via
    else:
        expected["RTA_VIA"] = {"family": family_of(via), "addr": via}
    if table > 255:
        expected["RTA_TABLE"] = table
    found = dict(attributes)
    assert dict(found.pop("RTA_METRICS")["attrs"]) == {"RTAX_MTU": mtu}
    assert found | {"RTA_METRICS": expected["RTA_METRICS"]} == expected
    assert message["table"] == (table if table <= 255 else 0)
    fields = {"family": family, "dst_len": length, "proto": protocol, "flags": 4, "type": 1}
    assert encoded(rtmsg, 24, fields, expected | {"RTA_TABLE": table}) == RouteRecord(
        destination, family, table, protocol, ifindex=ifindex, via=via, metric=metric, source=address,
        onlink=True, mtu=mtu, flags=4,
    )  # fmt: skip


@a_few
@given(IPV4, INDEXES, INDEXES, U32)
def test_route_questions(address: str, iif: int, oif: int, fwmark: int) -> None:
    request = rtnetlink.route_get(address, source=address, iif=iif, oif=oif, fwmark=fwmark)
    message, attributes = decoded(rtmsg, request)
    assert (message["dst_len"], message["src_len"], message["flags"]) == (32, 32, 0x1000)
    assert attributes == {
        "RTA_DST": address, "RTA_SRC": address, "RTA_IIF": iif, "RTA_OIF": oif, "RTA_MARK": fwmark,
    }  # fmt: skip


@a_few
@given(U32, st.integers(1, 0xFFFFFFFF), ADDRESSES, st.integers(1, 32), NAMES, U32, U32, U8)
def test_rules(
    priority: int, table: int, address: str, length: int, iif: str, fwmark: int, fwmask: int, protocol: int
) -> None:
    family, prefix = family_of(address), f"{address}/{length}"
    request = rtnetlink.rule_add(
        family, priority, table, source=prefix, destination=prefix, iif=iif, fwmark=fwmark, fwmask=fwmask,
        protocol=protocol,
    )  # fmt: skip
    message, attributes = decoded(fibmsg, request)
    assert (message["family"], message["src_len"], message["dst_len"], message["action"]) == (
        family, length, length, 1,
    )  # fmt: skip
    assert attributes.pop("FRA_TABLE", message["table"]) == table
    assert attributes == {
        "FRA_SRC": address, "FRA_DST": address, "FRA_IIFNAME": iif, "FRA_FWMARK": fwmark, "FRA_FWMASK": fwmask,
        "FRA_PRIORITY": priority, "FRA_PROTOCOL": protocol,
    }  # fmt: skip
    fields = {"family": family, "src_len": length, "dst_len": length, "action": 1}
    assert encoded(fibmsg, 32, fields, attributes | {"FRA_TABLE": table}) == RuleRecord(
        family, priority, table, prefix, prefix, iif, fwmark=fwmark, fwmask=fwmask, protocol=protocol
    )


@a_few
@given(INDEXES, ADDRESSES, MACS)
def test_neighbours(ifindex: int, address: str, mac: str) -> None:
    message, attributes = decoded(ndmsg, rtnetlink.neighbour_add(ifindex, address, mac))
    assert (message["family"], message["ifindex"], message["state"]) == (family_of(address), ifindex, 0x80)
    assert attributes == {"NDA_DST": address, "NDA_LLADDR": mac}
    fields = {"family": family_of(address), "ifindex": ifindex, "state": 2, "flags": 16}
    expected = NeighbourRecord(ifindex, address, mac, 2, 16, family_of(address))
    assert encoded(ndmsg, 28, fields, attributes) == expected


@a_few
@given(INDEXES, ADDRESSES, MACS, INDEXES, st.integers(1, 4094))
def test_fdb(ifindex: int, destination: str, mac: str, master: int, vlan: int) -> None:
    message, attributes = decoded(ndmsg, rtnetlink.fdb_add(ifindex, mac, destination))
    fields = {"family": 7, "ifindex": ifindex, "state": 0xC0, "flags": 2}
    assert {name: message[name] for name in fields} == fields
    assert attributes == {"NDA_DST": destination, "NDA_LLADDR": mac}
    # pyroute2 does not know how to encode an NDA_DST of family AF_BRIDGE: a bridge's own entry has none.
    extra = {"NDA_LLADDR": mac, "NDA_MASTER": master, "NDA_VLAN": vlan}
    assert encoded(ndmsg, 28, fields, extra) == FdbRecord(ifindex, mac, None, master, 0xC0, 2, vlan)


@a_few
@given(INDEXES)
def test_nsid(fd: int) -> None:
    _, attributes = decoded(nsidmsg, rtnetlink.nsid_get(fd))
    assert attributes == {"NETNSA_FD": fd}
