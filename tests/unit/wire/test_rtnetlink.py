"""Every builder against the bytes iproute2 6.1 sends for the same wish, and against our own parsers.

The known bytes were recorded under `ip` and `bridge` (a preloaded sendmsg that prints); only the sequence
number was taken out. ifindexes there: lo 1, br0 2, veth-b 3, veth-a 4, vx0 5. They are a little-endian machine's.
"""

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire import netlink, rtnetlink
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import (
    AF_INET,
    AF_INET6,
    AddressRecord,
    FdbRecord,
    LinkRecord,
    NeighbourRecord,
    NexthopRecord,
    NsidRecord,
    Record,
    Request,
    RouteRecord,
    RuleRecord,
    VxlanInfo,
)
from muslin.wire.rtnetlink_link import IFLA_STATS64, LinkStatistics
from muslin.wire.rtnetlink_route import ROUTE_KINDS, RTA_METRICS, RTA_MULTIPATH, Hop

U8 = st.integers(0, 0xFF)
U32 = st.integers(0, 0xFFFFFFFF)
INDEXES = st.integers(1, 0x7FFFFFFF)
TABLES = st.integers(1, 0xFFFFFFFF)
IPV4 = st.ip_addresses(v=4).map(str)
IPV6 = st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed))
ADDRESSES = IPV4 | IPV6
PREFIXES = st.builds("{}/{}".format, IPV4, st.integers(1, 32)) | st.builds("{}/{}".format, IPV6, st.integers(1, 128))
DEFAULTS = st.sampled_from(["0.0.0.0/0", "::/0"])
MACS = st.binary(min_size=6, max_size=6).map(lambda data: data.hex(":"))
NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=15)
KINDS = range(16, 112)

# What was wished for, and the message iproute2 made of it: kind, flags, payload.
KNOWN: list[tuple[Request, str, str]] = [
    (rtnetlink.link_create("br0", "bridge"), "10000506",
     "00000000000000000000000000000000080003006272300010001200"
     "0a0001006272696467650000"),
    (rtnetlink.link_create("veth-a", "veth", mtu=1400, peer_name="veth-b"), "10000506",
     "0000000000000000000000000000000008000400780500000b000300766574682d610000300012000800010076657468"
     "2400020020000100"
     "000000000000000000000000000000000b000300766574682d620000"),
    (rtnetlink.link_create("vx0", "vxlan", vxlan=VxlanInfo(
        42, local="10.0.0.1", device_ifindex=4, port=8472, learning=False, gbp=True, udp_csum=True)), "10000506",
     "000000000000000000000000000000000800030076783000480012000900010076786c616e0000003800020008000300"
     "0400000004001700"
     "0500120001000000080001002a000000080004000a000001050007000000000006000f0021180000"),
    (rtnetlink.link_create("vx6", "vxlan", vxlan=VxlanInfo(
        43, local="fd00::7", device_ifindex=4, udp_zero_csum6_tx=True, udp_zero_csum6_rx=True)), "10000506",
     "000000000000000000000000000000000800030076783600580012000900010076786c616e0000004800020008000300"
     "0400000005001300"
     "010000000500140001000000080001002b00000014001100fd00000000000000000000000000000705000700010000000"
     "6000f0021180000"),
    (rtnetlink.link_set(4, up=True, mtu=1450, master_ifindex=2, alias="hello"), "10000500",
     "0000000004000000010000000100000008000400aa05000008000a00020000000900140068656c6c6f000000"),
    (rtnetlink.link_set(3, up=True), "10000500", "00000000030000000100000001000000"),
    (rtnetlink.link_delete(4), "11000500", "00000000040000000000000000000000"),
    (rtnetlink.address_add(3, "172.16.0.1/24"), "14000506",
     "021800000300000008000200ac10000108000100ac100001"),
    (rtnetlink.address_add(3, "fd00::1/64", no_dad=True), "14000506",
     "0a4002000300000014000200fd00000000000000000000000000000114000100fd000000000000000000000000000001"),
    (rtnetlink.nexthop_add(7, via="172.16.0.2", ifindex=3, onlink=True), "68000506",
     "0200000004000000080001000700000008000600ac1000020800050003000000"),
    (rtnetlink.nexthop_add(8, blackhole=True, replace=True), "68000505",
     "0200000000000000080001000800000004000400"),
    (rtnetlink.nexthop_delete(8), "69000500", "00000000000000000800010008000000"),
    (rtnetlink.route_add("10.1.0.0/16", via="172.16.0.2", ifindex=3, onlink=True, metric=5, table=1000, mtu=1300),
     "18000506",
     "021000000003000104000000080001000a01000008000500ac100002080006000500000008000f00e803000008000400"
     "03000"
     "0000c0008000800020014050000"),
    (rtnetlink.route_add("10.2.0.0/16", ifindex=3), "18000506",
     "02100000fe03fd0100000000080001000a0200000800040003000000"),
    (rtnetlink.route_add("10.3.0.0/16", nexthop_id=7), "18000506",
     "02100000fe03000100000000080001000a03000008001e0007000000"),
    (rtnetlink.route_add("10.5.0.0/16", via="fe80::1", ifindex=3), "18000506",
     "02100000fe03000100000000080001000a050000160012000a00fe800000000000000000000000000001000008000400"
     "03000000"),
    (rtnetlink.route_add("10.4.0.0/16", kind="unreachable"), "18000506",
     "02100000fe03000700000000080001000a040000"),
    (rtnetlink.route_add("10.44.0.0/16", kind="local", ifindex=1, table=255), "18000506",
     "02100000ff03fe0200000000080001000a2c00000800040001000000"),
    (rtnetlink.route_add("0.0.0.0/0", via="172.16.0.2"), "18000506",
     "02000000fe0300010000000008000500ac100002"),
    (rtnetlink.route_delete("10.2.0.0/16"), "19000500", "02100000fe00ff0000000000080001000a020000"),
    (rtnetlink.route_add("fd01::/64", kind="blackhole"), "18000506",
     "0a400000fe0300060000000014000100fd010000000000000000000000000000"),
    (rtnetlink.route_add("fd02::/64", ifindex=3), "18000506",
     "0a400000fe0300010000000014000100fd0200000000000000000000000000000800040003000000"),
    (rtnetlink.rule_add(AF_INET, 5000, 1000, source="10.0.0.0/8", destination="10.9.0.0/16", fwmark=16, fwmask=255),
     "20000506",
     "021008000000000100000000080002000a000000080001000a09000008000a001000000008001000ff00000008000f00"
     "e8030"
     "0000800060088130000"),
    (rtnetlink.rule_add(AF_INET6, 51, 52, iif="veth-b", protocol=80), "20000506",
     "0a00000034000001000000000b000300766574682d62000008000600330000000500150050000000"),
    (rtnetlink.rule_delete(AF_INET, 5000, source="10.0.0.0/8"), "21000500",
     "020008000000000000000000080002000a0000000800060088130000"),
    (rtnetlink.neighbour_add(3, "172.16.0.9", "02:00:00:00:00:09"), "1c000505",
     "02000000030000008000000008000100ac1000090a0002000200000000090000"),
    (rtnetlink.neighbour_delete(3, "172.16.0.9"), "1d000500", "02000000030000008000000008000100ac100009"),
    (rtnetlink.fdb_add(5, "02:00:00:00:00:0a", "10.0.0.9"), "1c00050c",
     "0700000005000000c00002000a00020002000000000a0000080001000a000009"),
    (rtnetlink.fdb_add(5, "02:00:00:00:00:0a", "10.0.0.9", exclusive=True), "1c000506",
     "0700000005000000c00002000a00020002000000000a0000080001000a000009"),
    (rtnetlink.fdb_add(5, "02:00:00:00:00:0a", "10.0.0.9", replace=True), "1c000505",
     "0700000005000000c00002000a00020002000000000a0000080001000a000009"),
    (rtnetlink.fdb_delete(5, "02:00:00:00:00:0a", "10.0.0.9"), "1d000500",
     "0700000005000000c00002000a00020002000000000a0000080001000a000009"),
]  # fmt: skip

# The same for questions. `ip` leaves out NLM_F_ACK there, and pads some dumps with zeros that mean nothing.
KNOWN_QUESTIONS: list[tuple[Request, str, str]] = [
    (rtnetlink.route_get("10.1.0.1", source="172.16.0.1", oif=3), "1a000100",
     "022020000000000000100000080001000a01000108000200ac1000010800040003000000"),
    (rtnetlink.route_get("10.2.0.1", fib_match=True), "1a000100", "022000000000000000300000080001000a020001"),
    (rtnetlink.route_get("fd00::1", fib_match=True), "1a000100",
     "0a8000000000000000200000"
     "14000100fd000000000000000000000000000001"),
    (rtnetlink.route_dump(), "1a000103", "000000000000000000000000"),
    (rtnetlink.route_dump(AF_INET, table=1000), "1a000103", "02000000000000000000000008000f00e8030000"),
    (rtnetlink.fdb_dump(), "1e000103", "070000000000000000000000"),
    (rtnetlink.fdb_dump(3), "1e000103", "070000000300000000000000"),
    (rtnetlink.neighbour_dump(), "1e000103", "000000000000000000000000"),
    (rtnetlink.neighbour_dump(AF_INET, 3), "1e000103", "0200000000000000000000000800080003000000"),
    (rtnetlink.address_dump(), "16000103", "0000000000000000"),
    (rtnetlink.nexthop_dump(), "6a000103", "0000000000000000"),
    (rtnetlink.rule_dump(AF_INET), "22000103", "020000000000000000000000"),
]  # fmt: skip


def parse(request: Request, suffix: bytes = b"") -> Record | None:
    """Read a request as if the kernel had sent it."""
    return rtnetlink.parse_record(Message(request.kind, request.flags, 1, 0, request.payload + suffix))


def refusal(message: Message) -> str:
    """What is wrong with a message, in the words of the ValueError; any other exception fails the test."""
    try:
        rtnetlink.parse_record(message)
    except ValueError as error:
        return str(error)
    return "as expected"


@pytest.mark.parametrize(("request_", "head", "payload"), KNOWN, ids=lambda value: str(value)[:40])
def test_changes_are_iproute2s_bytes(request_: Request, head: str, payload: str) -> None:
    flags = request_.flags | netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
    message = netlink.encode_message(request_.kind, flags, 0, request_.payload)
    assert message[4:8].hex() == head
    assert message[16:].hex() == payload


@pytest.mark.parametrize(("request_", "head", "payload"), KNOWN_QUESTIONS, ids=lambda value: str(value)[:40])
def test_questions_are_iproute2s_bytes(request_: Request, head: str, payload: str) -> None:
    message = netlink.encode_message(request_.kind, request_.flags | netlink.NLM_F_REQUEST, 0, request_.payload)
    assert message[4:8].hex() == head
    assert message[16:].hex() == payload


def test_replace_and_exclusive_flags() -> None:
    create = netlink.NLM_F_CREATE
    for replaces, excludes in [
        (rtnetlink.route_add("10.0.0.0/8", replace=True), rtnetlink.route_add("10.0.0.0/8")),
        (rtnetlink.address_add(1, "10.0.0.1/8", replace=True), rtnetlink.address_add(1, "10.0.0.1/8")),
        (rtnetlink.nexthop_add(1, ifindex=1, replace=True), rtnetlink.nexthop_add(1, ifindex=1)),
        (
            rtnetlink.neighbour_add(1, "10.0.0.1", "02:00:00:00:00:01"),
            rtnetlink.neighbour_add(1, "10.0.0.1", "02:00:00:00:00:01", replace=False),
        ),
    ]:
        assert (replaces.flags, excludes.flags) == (
            create | netlink.NLM_F_REPLACE,
            create | netlink.NLM_F_EXCL,
        )
        assert replaces.payload == excludes.payload


@given(NAMES, st.sampled_from(["veth", "bridge", "dummy", "tun"]), U32, MACS, st.booleans(), INDEXES)
def test_links_return(name: str, kind: str, mtu: int, mac: str, up: bool, master: int) -> None:
    request = rtnetlink.link_create(name, kind, mtu=mtu, mac=mac, up=up, master_ifindex=master, netns_fd=3)
    assert parse(request) == LinkRecord(0, name, kind, up=up, mtu=mtu, mac=mac, master_ifindex=master, flags=int(up))


VXLANS = st.builds(
    VxlanInfo, st.integers(0, (1 << 24) - 1), port=st.integers(0, 0xFFFF), local=st.none() | ADDRESSES,
    remote=st.none() | ADDRESSES, device_ifindex=U32, learning=st.booleans(), gbp=st.booleans(), ttl=U8,
    udp_csum=st.none() | st.booleans(), udp_zero_csum6_tx=st.booleans(), udp_zero_csum6_rx=st.booleans(),
)  # fmt: skip


@given(NAMES, VXLANS)
def test_vxlan_links_return(name: str, vxlan: VxlanInfo) -> None:
    assert parse(rtnetlink.link_create(name, "vxlan", vxlan=vxlan)) == LinkRecord(0, name, "vxlan", vxlan=vxlan)


@given(INDEXES, NAMES, st.text(max_size=60).filter(lambda text: "\0" not in text), U32, U32)
def test_link_settings_return(ifindex: int, name: str, alias: str, mtu: int, group: int) -> None:
    request = rtnetlink.link_set(ifindex, name=name, alias=alias, mtu=mtu, group=group, master_ifindex=0)
    assert parse(request) == LinkRecord(ifindex, name, alias=alias, mtu=mtu, group=group)
    down = parse(rtnetlink.link_set(ifindex, up=False))
    assert down == LinkRecord(ifindex, "")


def test_veth_peer() -> None:
    request = rtnetlink.link_create(
        "a", "veth", peer_name="b", peer_netns_fd=5, peer_mac="02:00:00:00:00:0b", peer_mtu=1300
    )
    information = netlink.parse_attributes(netlink.parse_attributes(request.payload, 16)[18])
    peer = netlink.parse_attributes(information[2])[1]
    assert peer[:16] == bytes(16)
    assert netlink.parse_attributes(peer, 16) == {
        1: bytes.fromhex("02000000000b"), 3: b"b\0", 4: b"\x14\5\0\0", 28: b"\5\0\0\0",
    }  # fmt: skip


def test_link_extras_that_only_the_kernel_sends() -> None:
    statistics = netlink.encode_attribute(IFLA_STATS64, b"".join(i.to_bytes(8, "little") for i in range(1, 26)))
    header = bytes.fromhex("0000040307000000410001000000000000")[:16]
    extras = netlink.encode_u32(5, 9) + netlink.encode_attribute(37, b"\xff\xff\xff\xff") + statistics
    record = rtnetlink.parse_record(Message(16, 0, 1, 0, header + extras))
    assert record == LinkRecord(
        7, "", "loopback", up=True, running=True, lower_up=True, flags=0x10041, peer_ifindex=9, link_netnsid=-1,
        statistics=LinkStatistics(1, 2, 3, 4, 5, 6, 7, 8, 25),
    )  # fmt: skip
    options = netlink.encode_nested(2, netlink.encode_u8(3, 2))
    tap = netlink.encode_nested(18, netlink.encode_attribute(1, b"tun\0"), options)
    tun = rtnetlink.parse_record(Message(16, 0, 1, 0, bytes(16) + tap))
    assert tun == LinkRecord(0, "", "tun", tun_type="tap")


def test_bridge_port_notifications_are_not_links() -> None:
    assert rtnetlink.parse_record(Message(17, 0, 0, 0, b"\7" + bytes(15))) is None


@given(INDEXES, PREFIXES, st.booleans(), st.booleans(), st.none() | U8)
def test_addresses_return(ifindex: int, address: str, no_dad: bool, no_route: bool, protocol: int | None) -> None:
    request = rtnetlink.address_add(ifindex, address, no_dad=no_dad, no_prefix_route=no_route, protocol=protocol)
    family = AF_INET6 if ":" in address else AF_INET
    assert parse(request) == AddressRecord(
        ifindex, address, family, scope=254 if address.startswith("127.") else 0,
        flags=2 * no_dad + 0x200 * no_route, protocol=protocol or 0,
    )  # fmt: skip
    assert parse(rtnetlink.address_delete(ifindex, address)) == AddressRecord(ifindex, address, family)


def test_address_states() -> None:
    tentative = AddressRecord(1, "fd00::1/64", AF_INET6, flags=0x40)
    failed = AddressRecord(1, "fd00::1/64", AF_INET6, flags=0x08)
    assert (tentative.tentative, tentative.dad_failed) == (True, False)
    assert (failed.tentative, failed.dad_failed) == (False, True)


def test_point_to_point_address() -> None:
    local, remote = netlink.encode_attribute(2, b"\n\0\0\1"), netlink.encode_attribute(1, b"\n\0\0\2")
    record = rtnetlink.parse_record(Message(20, 0, 1, 0, b"\2\x20\0\0\3\0\0\0" + local + remote))
    assert record == AddressRecord(3, "10.0.0.1/32", AF_INET, peer="10.0.0.2")


@given(
    PREFIXES | DEFAULTS, st.none() | INDEXES, st.none() | ADDRESSES, st.none() | U32, st.none() | U32, TABLES, U8, U8,
    st.booleans(), st.none() | U32, st.sampled_from(ROUTE_KINDS),
)  # fmt: skip
def test_routes_return(
    destination: str, ifindex: int | None, via: str | None, nexthop_id: int | None, metric: int | None, table: int,
    protocol: int, scope: int, onlink: bool, mtu: int | None, kind: str,
) -> None:  # fmt: skip
    source = "fd00::5" if ":" in destination else "10.0.0.5"
    request = rtnetlink.route_add(
        destination, ifindex=ifindex, via=via, nexthop_id=nexthop_id, metric=metric, table=table, protocol=protocol,
        scope=scope, source=source, onlink=onlink, mtu=mtu, kind=kind,
    )  # fmt: skip
    assert parse(request) == RouteRecord(
        destination, AF_INET6 if ":" in destination else AF_INET, table=table, protocol=protocol, scope=scope,
        kind=kind, ifindex=ifindex or 0, via=via, nexthop_id=nexthop_id or 0, metric=metric or 0, source=source,
        onlink=onlink, mtu=mtu or 0, flags=4 * onlink,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("destination", "kind", "via", "scope"),
    [
        ("10.0.0.0/8", "unicast", None, 253),
        ("10.0.0.0/8", "unicast", "10.0.0.1", 0),
        ("10.0.0.0/8", "broadcast", None, 253),
        ("10.0.0.0/8", "local", None, 254),
        ("10.0.0.0/8", "prohibit", None, 0),
        ("fd00::/8", "unicast", None, 0),
        ("fd00::/8", "local", None, 0),
    ],
)
def test_scopes_are_iproute2s(destination: str, kind: str, via: str | None, scope: int) -> None:
    record = parse(rtnetlink.route_add(destination, kind=kind, via=via))
    assert isinstance(record, RouteRecord)
    assert record.scope == scope


def test_multipath_routes() -> None:
    first = bytes.fromhex("1000000403000000") + netlink.encode_attribute(5, b"\n\0\0\1")
    second = bytes.fromhex("0800000004000000")
    hops = netlink.encode_nested(RTA_MULTIPATH, first, second)
    route = parse(rtnetlink.route_add("10.0.0.0/8"), hops)
    assert isinstance(route, RouteRecord)
    assert route.multipath == (Hop(3, "10.0.0.1", 5), Hop(4, None, 1))
    broken = netlink.encode_nested(RTA_MULTIPATH, first, b"\xff" + second[1:])
    with pytest.raises(ValueError, match="offset 16: a rtnexthop length of 8 to 8 expected, 255 found"):
        parse(rtnetlink.route_add("10.0.0.0/8"), broken)


def test_unknown_route_kind_number_and_empty_metrics() -> None:
    header = bytes.fromhex("0208000000000063") + bytes(4)
    metrics = netlink.encode_attribute(RTA_METRICS, b"")
    record = rtnetlink.parse_record(Message(24, 0, 1, 0, header + metrics))
    assert record == RouteRecord("0.0.0.0/8", AF_INET, table=0, kind="99")


@given(U32, st.none() | INDEXES, st.none() | ADDRESSES, st.booleans(), U8)
def test_nexthops_return(id: int, ifindex: int | None, via: str | None, onlink: bool, protocol: int) -> None:
    family = AF_INET6 if via and ":" in via else AF_INET
    request = rtnetlink.nexthop_add(id, ifindex=ifindex, via=via, onlink=onlink, protocol=protocol)
    assert parse(request) == NexthopRecord(
        id, family, ifindex or 0, via, onlink=onlink, protocol=protocol, flags=4 * onlink
    )
    assert parse(rtnetlink.nexthop_delete(id)) == NexthopRecord(id)


def test_nexthop_groups() -> None:
    members = netlink.encode_attribute(2, bytes.fromhex("07000000000000000800000001010000"))
    record = rtnetlink.parse_record(Message(104, 0, 1, 0, bytes(8) + netlink.encode_u32(1, 9) + members))
    assert record == NexthopRecord(9, group=((7, 1), (8, 258)))
    with pytest.raises(ValueError, match="a multiple of 8 bytes expected, 3 found"):
        rtnetlink.parse_record(Message(104, 0, 1, 0, bytes(8) + netlink.encode_attribute(2, b"abc")))


@given(
    U32, TABLES, st.none() | PREFIXES, st.none() | NAMES, st.none() | NAMES, st.none() | U32, st.none() | U32,
    st.none() | U8,
)  # fmt: skip
def test_rules_return(
    priority: int, table: int, prefix: str | None, iif: str | None, oif: str | None, fwmark: int | None,
    fwmask: int | None, protocol: int | None,
) -> None:  # fmt: skip
    family = AF_INET6 if prefix and ":" in prefix else AF_INET
    expected = RuleRecord(
        family, priority, table, source=prefix, destination=prefix, iif=iif or "", oif=oif or "", fwmark=fwmark or 0,
        fwmask=fwmask or 0, protocol=protocol or 0,
    )  # fmt: skip
    for build in (rtnetlink.rule_add, rtnetlink.rule_delete):
        assert expected == parse(build(
            family, priority, table, source=prefix, destination=prefix, iif=iif, oif=oif, fwmark=fwmark,
            fwmask=fwmask, protocol=protocol,
        ))  # fmt: skip


@given(INDEXES, ADDRESSES, MACS)
def test_neighbours_return(ifindex: int, address: str, mac: str) -> None:
    family = AF_INET6 if ":" in address else AF_INET
    added = parse(rtnetlink.neighbour_add(ifindex, address, mac))
    assert added == NeighbourRecord(ifindex, address, mac, 0x80, 0, family)
    deleted = parse(rtnetlink.neighbour_delete(ifindex, address))
    assert deleted == NeighbourRecord(ifindex, address, "", 0x80, 0, family)


@given(INDEXES, MACS, ADDRESSES)
def test_fdb_entries_return(ifindex: int, mac: str, destination: str) -> None:
    added = parse(rtnetlink.fdb_add(ifindex, mac, destination), netlink.encode_u32(9, 4))
    assert added == FdbRecord(ifindex, mac, destination, master_ifindex=4, state=0xC0, flags=2)
    assert parse(rtnetlink.fdb_delete(ifindex, mac)) == FdbRecord(ifindex, mac, state=0xC0, flags=2)
    vlan = parse(rtnetlink.fdb_delete(ifindex, mac), netlink.encode_attribute(5, b"\x0a\0"))
    assert vlan == FdbRecord(ifindex, mac, state=0xC0, flags=2, vlan=10)


def test_nsid() -> None:
    request = rtnetlink.nsid_get(5)
    assert (request.kind, request.flags, request.payload.hex()) == (90, 0, "000000000800030005000000")
    unassigned = rtnetlink.parse_record(Message(88, 0, 1, 0, bytes.fromhex("0000000008000100ffffffff")))
    numbered = rtnetlink.parse_record(Message(88, 0, 1, 0, bytes.fromhex("000000000800010003000000")))
    assert (unassigned, numbered) == (NsidRecord(-1), NsidRecord(3))
    assert (NsidRecord(-1).assigned, NsidRecord(3).assigned) == (False, True)


def test_link_questions() -> None:
    assert rtnetlink.link_dump().payload == bytes(16)
    assert rtnetlink.link_get("lo").payload.hex() == "00" * 16 + "070003006c6f0000"


def test_other_kinds_and_families_have_no_record() -> None:
    for kind in (netlink.NLMSG_DONE, 36, 100):
        assert rtnetlink.parse_record(Message(kind, 0, 1, 0, b"")) is None
    for kind in (20, 24, 28, 32):  # RTNL_FAMILY_IPMR and its like
        assert rtnetlink.parse_record(Message(kind, 0, 1, 0, b"\x80" + bytes(15))) is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: rtnetlink.address_add(1, "10.0.0.1/33"),
        lambda: rtnetlink.address_add(1, "10.0.0.1/"),
        lambda: rtnetlink.address_add(1, "10.0.0.1/+8"),
        lambda: rtnetlink.address_add(1, "10.0.0/8"),
        lambda: rtnetlink.address_add(-1, "10.0.0.1/8"),
        lambda: rtnetlink.route_add("fd00::/129"),
        lambda: rtnetlink.route_add("default"),
        lambda: rtnetlink.route_add("10.0.0.0/8", kind="nowhere"),
        lambda: rtnetlink.route_add("10.0.0.0/8", source="fd00::1"),
        lambda: rtnetlink.route_add("10.0.0.0/8", protocol=256),
        lambda: rtnetlink.route_get("10.0.0.1", source="fd00::1"),
        lambda: rtnetlink.route_get("10.0.0.1\0"),
        lambda: rtnetlink.rule_add(AF_INET, 1, 1, source="fd00::/8"),
        lambda: rtnetlink.nexthop_add(1, ifindex=1, blackhole=True),
        lambda: rtnetlink.neighbour_add(1, "10.0.0.1", "02:00:00:00:00"),
        lambda: rtnetlink.neighbour_add(1, "10.0.0.1", "02:00:00:00:00:0g"),
        lambda: rtnetlink.neighbour_add(1, "10.0.0.1", "020000000001:::::"),
        lambda: rtnetlink.link_create("sixteen-bytes-xx", "bridge"),
        lambda: rtnetlink.link_create("", "bridge"),
        lambda: rtnetlink.link_create("a", "bridge", peer_name="b"),
        lambda: rtnetlink.link_create("a", "bridge", vxlan=VxlanInfo(1)),
        lambda: rtnetlink.link_create("a", "vxlan", vxlan=VxlanInfo(1 << 24)),
        lambda: rtnetlink.link_create("a", "vxlan", vxlan=VxlanInfo(1, port=1 << 16)),
        lambda: rtnetlink.link_set(1, alias="x" * 256),
        lambda: rtnetlink.link_set(1 << 31),
    ],
)
def test_wrong_values_are_value_errors(build: Callable[[], Request]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        build()


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_random_payloads_raise_only_value_errors(kind: int, payload: bytes) -> None:
    assert "expected" in refusal(Message(kind, 0, 1, 0, payload))


@given(st.sampled_from(KNOWN), st.data())
def test_damaged_messages_raise_only_value_errors(known: tuple[Request, str, str], data: st.DataObject) -> None:
    payload = bytearray(known[0].payload)
    for _ in range(data.draw(st.integers(0, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(U8)
    del payload[data.draw(st.integers(0, len(payload))) :]
    assert "expected" in refusal(Message(known[0].kind, 0, 1, 0, bytes(payload)))
