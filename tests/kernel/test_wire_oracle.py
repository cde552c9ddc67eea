"""The kernel and iproute2 as witnesses of the codec: objects made by our bytes, read back by us and by `ip -j`.

Each test runs in a thread that has left for a network namespace of its own, which ends with the thread; nothing of
the machine's own namespace is touched. iproute2, started from that thread, is born into the same namespace.

       own namespace                                     a second one
    +---------------------------------------------+    +-----------------+
    | lo   br0 <- port0 ------ port1              |    |                 |
    |      left 10.9.0.1/24, fd09::1/64 -- right  |    |                 |
    |      vx4 (over left)   vx6     away --------+----+-- moved         |
    +---------------------------------------------+    +-----------------+
"""

import ctypes
import functools
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

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
from muslin.wire.rtnetlink_route import ROUTE_KINDS

CLONE_NEWNET = 0x40000000  # linux/sched.h
SOL_NETLINK = 270  # linux/socket.h
NETLINK_OPTIONS = (10, 11, 12)  # linux/netlink.h: CAP_ACK, EXT_ACK, GET_STRICT_CHK
ZERO_MAC = "00:00:00:00:00:00"
LINKS = ("ip", "-j", "-d", "-s", "-N", "link", "show")
OWN = 98  # a route protocol number

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace"),
    pytest.mark.skipif(not shutil.which("ip"), reason="needs ip of iproute2"),
    pytest.mark.skipif(not shutil.which("bridge"), reason="needs bridge of iproute2"),
]


class Door:
    """The least there can be of a netlink door: one request at a time, errors as OSError."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        for option in NETLINK_OPTIONS:
            self.socket.setsockopt(SOL_NETLINK, option, 1)
        self.socket.bind((0, 0))
        self.sequence = 0

    def ask(self, request: Request) -> list[Record]:
        """Send, and return the records of the answer."""
        self.sequence += 1
        flags = request.flags | netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
        self.socket.send(netlink.encode_message(request.kind, flags, self.sequence, request.payload))
        records: list[Record] = []
        for message in self._messages():
            if message.kind in (netlink.NLMSG_ERROR, netlink.NLMSG_DONE):
                code, text = netlink.parse_error(message)
                if code:
                    raise OSError(code, text or os.strerror(code))
                return records
            record = rtnetlink.parse_record(message)
            assert record is not None
            records.append(record)
        raise AssertionError("unreachable")

    def _messages(self) -> Iterator[Message]:
        while True:
            for message in netlink.iter_messages(self.socket.recv(1 << 17)):
                assert message.sequence == self.sequence
                yield message

    def index(self, name: str) -> int:
        (record,) = self.ask(rtnetlink.link_get(name))
        assert isinstance(record, LinkRecord)
        return record.ifindex


def leave_netns() -> None:
    """Move this thread alone into a network namespace of its own."""
    before = os.stat("/proc/thread-self/ns/net").st_ino
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    assert os.stat("/proc/thread-self/ns/net").st_ino != before


def in_own_netns(test: Callable[[Door], None]) -> Callable[[], None]:
    """Run a test in a thread and a network namespace that both end with it."""

    @functools.wraps(test)
    def run() -> None:
        failure: list[BaseException] = []

        def body() -> None:
            try:
                leave_netns()
                door = Door()
                with door.socket:
                    door.ask(rtnetlink.link_set(1, up=True))
                    test(door)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    del run.__wrapped__  # pytest would take `door` for a fixture
    return run


def tool(*words: str) -> list[dict[str, Any]]:
    """What iproute2 says, in this thread's namespace."""
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return [entry for entry in found if entry]


def build_pair(door: Door) -> int:
    """The pair left and right, up, with addresses on left; return left's ifindex."""
    door.ask(rtnetlink.link_create("left", "veth", mtu=1400, up=True, peer_name="right"))
    door.ask(rtnetlink.link_set(door.index("right"), up=True))
    for name in ("left", "right"):  # the kernel acts on their carriers now, and adds what it adds (kernel.apply.settle)
        door.ask(rtnetlink.link_get(name))
    left = door.index("left")
    door.ask(rtnetlink.address_add(left, "10.9.0.1/24", protocol=OWN))
    door.ask(rtnetlink.address_add(left, "fd09::1/64", no_dad=True, no_prefix_route=True))
    return left


@in_own_netns
def test_links_are_those_of_ip(door: Door) -> None:
    left = build_pair(door)
    door.ask(rtnetlink.link_create("br0", "bridge", mac="02:00:00:00:00:b0", up=True))
    bridge = door.index("br0")
    door.ask(rtnetlink.link_create("port0", "veth", master_ifindex=bridge, peer_name="port1", peer_mtu=1300))
    door.ask(rtnetlink.link_set(door.index("port0"), alias="a port \N{SNOWMAN}", group=7, mtu=1280))
    vx4 = VxlanInfo(42, 8472, "10.9.0.1", None, left, learning=False, gbp=True, ttl=9, udp_csum=True)
    vx6 = VxlanInfo(43, 4789, "fd09::1", "fd09::2", left, udp_csum=False, udp_zero_csum6_tx=True)
    door.ask(rtnetlink.link_create("vx4", "vxlan", mac="02:00:00:00:00:04", up=True, vxlan=vx4))
    door.ask(rtnetlink.link_create("vx6", "vxlan", vxlan=vx6))
    links: list[Any] = door.ask(rtnetlink.link_dump())
    listing, later = tool(*LINKS), door.ask(rtnetlink.link_dump())
    names = {link.ifindex: link.name for link in links}
    spoken = {entry["ifname"]: entry for entry in listing}
    assert set(names.values()) == set(spoken)
    for link, same in zip(links, later, strict=True):
        compare_link(link, same, spoken[link.name], names)
    by_name = {link.name: link for link in links}
    assert by_name["vx4"].vxlan == vx4
    assert by_name["vx6"].vxlan == vx6
    assert (by_name["port1"].mtu, by_name["port0"].group) == (1300, 7)
    assert by_name["right"].up


def compare_link(link: Any, later: Any, entry: dict[str, Any], names: dict[int, str]) -> None:
    """One link of ours, twice, against the one of `ip -j -d -s -N link` between."""
    flags = set(entry["flags"])
    assert (link.ifindex, link.mtu, link.mac) == (entry["ifindex"], entry["mtu"], entry["address"])
    assert (link.up, link.lower_up) == ("UP" in flags, "LOWER_UP" in flags)
    assert names.get(link.master_ifindex) == entry.get("master")
    assert link.alias == entry.get("ifalias", "")
    assert link.group == int(entry["group"])
    information = entry.get("linkinfo", {})
    assert link.kind == information.get("info_kind", "loopback")
    assert names.get(link.peer_ifindex) == entry.get("link")
    for counter in ("tx_packets", "tx_bytes", "rx_packets"):  # the kernel sends of its own accord meanwhile
        side, _, unit = counter.partition("_")
        told = entry["stats64"][side][unit]
        assert getattr(link.statistics, counter) <= told <= getattr(later.statistics, counter)
    if link.vxlan is not None:
        data = information["info_data"]
        assert (link.vxlan.vni, link.vxlan.port) == (data["id"], data["port"])
        assert link.vxlan.local == (data.get("local") or data.get("local6"))
        assert link.vxlan.learning == data["learning"]
        assert names.get(link.vxlan.device_ifindex) == data.get("link")
        assert link.vxlan.gbp == data.get("gbp", False)
        assert link.vxlan.udp_csum == data["udp_csum"]
        assert link.vxlan.udp_zero_csum6_tx == data["udp_zero_csum6_tx"]


@in_own_netns
def test_tun_devices_have_their_type(door: Door) -> None:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("kernel lacks /dev/net/tun")
    for name, mode in (("tun7", "tun"), ("tap7", "tap")):
        subprocess.run(["ip", "tuntap", "add", "name", name, "mode", mode], check=True)
        (link,) = door.ask(rtnetlink.link_get(name))
        assert isinstance(link, LinkRecord)
        assert (link.kind, link.tun_type, bool(link.mac)) == ("tun", mode, mode == "tap")


@in_own_netns
def test_both_ends_of_a_veth_in_their_namespaces_at_once(door: Door) -> None:
    second: list[int] = []

    def visit() -> None:
        leave_netns()
        second.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    fd = second[0]
    try:
        assert door.ask(rtnetlink.nsid_get(fd)) == [NsidRecord(-1)]
        door.ask(rtnetlink.link_create("away", "veth", peer_name="moved", peer_netns_fd=fd, up=True))
        (link,) = door.ask(rtnetlink.link_get("away"))
        assert isinstance(link, LinkRecord)
        assert (link.up, link.lower_up) == (True, False)
        assert door.ask(rtnetlink.nsid_get(fd)) == [NsidRecord(link.link_netnsid or 0)]
        (entry,) = tool("ip", "-j", "link", "show", "away")
        assert (entry["link_index"], entry["link_netnsid"]) == (link.peer_ifindex, link.link_netnsid)
        with pytest.raises(OSError, match="No such device"):
            door.index("moved")
    finally:
        os.close(fd)


@in_own_netns
def test_addresses_are_those_of_ip(door: Door) -> None:
    left = build_pair(door)
    door.ask(rtnetlink.address_add(left, "10.9.0.1/24", protocol=OWN, replace=True))
    door.ask(rtnetlink.address_add(1, "127.5.0.1/32"))
    records = [record for record in door.ask(rtnetlink.address_dump()) if isinstance(record, AddressRecord)]
    spoken = {
        (entry["ifindex"], f"{info['local']}/{info['prefixlen']}"): info
        for entry in tool("ip", "-j", "-d", "-N", "address", "show")
        for info in entry["addr_info"]
    }
    assert {(record.ifindex, record.address) for record in records} == set(spoken)
    for record in records:
        info = spoken[record.ifindex, record.address]
        assert str(record.scope) == info["scope"]
        assert record.tentative == info.get("tentative", False)
        assert bool(record.flags & 0x200) == info.get("noprefixroute", False)
        assert record.peer is None
        assert "broadcast" not in info
    by_address = {record.address: record for record in records}
    assert by_address["10.9.0.1/24"].protocol == OWN
    assert by_address["127.5.0.1/32"].scope == 254
    door.ask(rtnetlink.address_delete(left, "10.9.0.1/24"))
    left_over = door.ask(rtnetlink.address_dump(AF_INET))
    assert "10.9.0.1/24" not in {record.address for record in left_over if isinstance(record, AddressRecord)}


def add_routes(door: Door, left: int) -> None:
    """Routes of every sort the codec makes."""
    add = rtnetlink.route_add
    door.ask(add("fd09::/64", ifindex=left))
    for nexthop in (
        rtnetlink.nexthop_add(7, via="10.9.0.7", ifindex=left, onlink=True, protocol=OWN),
        rtnetlink.nexthop_add(8, blackhole=True),
        rtnetlink.nexthop_add(9, via="fd09::9", ifindex=left, replace=True),
        rtnetlink.nexthop_add(10, ifindex=left),
    ):
        door.ask(nexthop)
    for route in (
        add("0.0.0.0/0", via="10.9.0.2", protocol=OWN),
        add("10.20.0.0/16", ifindex=left, source="10.9.0.1", metric=5),
        add("10.21.0.0/16", via="192.0.2.1", ifindex=left, onlink=True, table=1000, mtu=1300),
        add("10.22.0.0/16", nexthop_id=7, protocol=OWN),
        add("10.23.0.0/16", kind="unreachable", table=52),
        add("10.24.0.0/16", via="fd09::2", ifindex=left),
        add("10.25.0.0/16", kind="blackhole", metric=4278198272),
        add("::/0", via="fd09::2", ifindex=left, protocol=OWN),
        add("fd20::/48", ifindex=left, metric=7, mtu=1290),
        add("fd21::/48", nexthop_id=9, table=70000),
        add("fd22::/48", kind="prohibit"),
    ):
        door.ask(route)


@in_own_netns
def test_routes_are_those_of_ip(door: Door) -> None:
    left = build_pair(door)
    add_routes(door, left)
    names = {left: "left", 1: "lo", door.index("right"): "right"}
    for family, option in ((AF_INET, "-4"), (AF_INET6, "-6")):
        routes = [route for route in door.ask(rtnetlink.route_dump(family)) if isinstance(route, RouteRecord)]
        spoken = tool("ip", option, "-j", "-d", "-N", "route", "show", "table", "all")
        ours = sorted(spell_route(route, names) for route in routes)
        assert ours == sorted(spell_entry(entry, family) for entry in spoken)
    both = door.ask(rtnetlink.route_dump(protocol=OWN))
    assert {route.destination for route in both if isinstance(route, RouteRecord)} == {
        "0.0.0.0/0", "10.22.0.0/16", "::/0",
    }  # fmt: skip


def spell_route(route: RouteRecord, names: dict[int, str]) -> tuple[Any, ...]:
    """A route of ours in words that `ip` has as well."""
    return (
        route.destination, route.table, route.protocol, route.kind, names.get(route.ifindex, ""), route.via or "",
        route.nexthop_id, route.metric, route.source or "", route.onlink, route.mtu,
    )  # fmt: skip


def spell_entry(entry: dict[str, Any], family: int) -> tuple[Any, ...]:
    """A route of `ip -j -d -N route` in the same words: it leaves out full lengths and what goes without saying."""
    destination, full = entry["dst"], (32 if family == AF_INET else 128)
    if destination == "default":
        destination = "0.0.0.0/0" if family == AF_INET else "::/0"
    via = entry.get("gateway") or entry.get("via", {}).get("host", "")
    metrics = entry.get("metrics", [{}])[0]
    return (
        destination if "/" in destination else f"{destination}/{full}", int(entry.get("table", 254)),
        int(entry["protocol"]), kind_of(entry), entry.get("dev", ""), via, entry.get("nhid", 0),
        entry.get("metric", 0), entry.get("prefsrc", ""), "onlink" in entry["flags"], metrics.get("mtu", 0),
    )  # fmt: skip


def kind_of(entry: dict[str, Any]) -> str:
    """The kind of a route, which `ip -N` writes as a number."""
    kind = str(entry.get("type", "unicast"))
    return ROUTE_KINDS[int(kind)] if kind.isdigit() else kind


@in_own_netns
def test_routes_go_by_what_names_them(door: Door) -> None:
    left = build_pair(door)
    add_routes(door, left)
    for destination, table in (
        ("0.0.0.0/0", 254), ("10.20.0.0/16", 254), ("10.21.0.0/16", 1000), ("10.22.0.0/16", 254),
        ("10.23.0.0/16", 52), ("10.24.0.0/16", 254), ("10.25.0.0/16", 254), ("::/0", 254), ("fd20::/48", 254),
        ("fd21::/48", 70000), ("fd22::/48", 254),
    ):  # fmt: skip
        door.ask(rtnetlink.route_delete(destination, table=table))
        # The IPv6 default route that the kernel keeps for "no way" is found in main, and refuses in words of its own.
        with pytest.raises(FileNotFoundError if destination == "::/0" else ProcessLookupError):
            door.ask(rtnetlink.route_delete(destination, table=table))
    assert tool("ip", "-j", "route", "show", "table", "1000") == []


@in_own_netns
def test_the_way_of_a_packet(door: Door) -> None:
    left = build_pair(door)
    add_routes(door, left)
    (way,) = door.ask(rtnetlink.route_get("10.22.5.5", source="10.9.0.1", oif=left))
    assert isinstance(way, RouteRecord)
    assert (way.destination, way.via, way.ifindex) == ("10.22.5.5/32", "10.9.0.7", left)
    (route,) = door.ask(rtnetlink.route_get("10.22.5.5", fib_match=True))
    assert isinstance(route, RouteRecord)
    assert (route.destination, route.nexthop_id, route.protocol) == ("10.22.0.0/16", 7, OWN)
    (way,) = door.ask(rtnetlink.route_get("fd20::1", source="fd09::1"))
    assert isinstance(way, RouteRecord)
    assert (way.destination, way.table, way.ifindex, way.metric) == ("fd20::1/128", 254, left, 7)
    (route,) = door.ask(rtnetlink.route_get("fd20::1", fib_match=True))
    assert isinstance(route, RouteRecord)
    assert (route.destination, route.table, route.mtu) == ("fd20::/48", 254, 1290)


@in_own_netns
def test_nexthops_are_those_of_ip(door: Door) -> None:
    left = build_pair(door)
    add_routes(door, left)
    subprocess.run(["ip", "nexthop", "add", "id", "11", "group", "7,3/10,2"], check=True)
    records = [record for record in door.ask(rtnetlink.nexthop_dump()) if isinstance(record, NexthopRecord)]
    spoken = {entry["id"]: entry for entry in tool("ip", "-j", "-d", "-N", "nexthop", "show")}
    assert {record.id for record in records} == set(spoken)
    for record in records:
        entry = spoken[record.id]
        assert record.via == entry.get("gateway")
        assert record.ifindex == (left if entry.get("dev") == "left" else 0)
        assert record.onlink == ("onlink" in entry["flags"])
        assert record.blackhole == ("blackhole" in entry)
        assert record.protocol == int(entry.get("protocol", 0))
        members = tuple((member["id"], member.get("weight", 1)) for member in entry.get("group", ()))
        assert record.group == members
    door.ask(rtnetlink.nexthop_delete(7))
    assert "10.22.0.0/16" not in {entry["dst"] for entry in tool("ip", "-j", "route", "show")}


@in_own_netns
def test_rules_are_those_of_ip(door: Door) -> None:
    add = rtnetlink.rule_add
    for request in (
        add(AF_INET, 5000, 1000, source="10.0.0.0/8", destination="10.9.0.0/16", fwmark=16, fwmask=255),
        add(AF_INET, 5001, 52, iif="lo", protocol=OWN),
        add(AF_INET6, 5002, 53, source="fd00::/8", fwmark=3),
        add(AF_INET6, 5003, 54, oif="lo"),
    ):
        door.ask(request)
    for family, option in ((AF_INET, "-4"), (AF_INET6, "-6")):
        rules = [rule for rule in door.ask(rtnetlink.rule_dump(family)) if isinstance(rule, RuleRecord)]
        spoken = {entry["priority"]: entry for entry in tool("ip", option, "-j", "-d", "-N", "rule", "show")}
        assert [rule.priority for rule in rules] == list(spoken)
        for rule in rules:
            entry = spoken[rule.priority]
            source = f"{entry['src']}/{entry['srclen']}" if "srclen" in entry else None
            destination = f"{entry['dst']}/{entry['dstlen']}" if "dstlen" in entry else None
            assert (rule.source, rule.destination, rule.table) == (source, destination, int(entry["table"]))
            assert (rule.iif, rule.oif) == (entry.get("iif", ""), entry.get("oif", ""))
            assert rule.fwmark == int(entry.get("fwmark", "0"), 16)
            assert rule.fwmask == (int(entry.get("fwmask", "0xffffffff"), 16) if rule.fwmark else 0)
            assert rule.protocol == int(entry["protocol"])
    door.ask(rtnetlink.rule_delete(AF_INET, 5000, source="10.0.0.0/8", destination="10.9.0.0/16"))
    door.ask(rtnetlink.rule_delete(AF_INET, 5001))
    assert not {5000, 5001} & {entry["priority"] for entry in tool("ip", "-4", "-j", "rule", "show")}


@in_own_netns
def test_neighbours_are_those_of_ip(door: Door) -> None:
    left = build_pair(door)
    for address in ("10.9.0.7", "fd09::7"):
        door.ask(rtnetlink.neighbour_add(left, address, "02:00:00:00:00:07"))
        door.ask(rtnetlink.neighbour_add(left, address, "02:00:00:00:00:08"))
        with pytest.raises(FileExistsError):
            door.ask(rtnetlink.neighbour_add(left, address, "02:00:00:00:00:09", replace=False))
    for option, family in (("-4", AF_INET), ("-6", AF_INET6)):
        permanent = [
            (record.address, record.mac)
            for record in door.ask(rtnetlink.neighbour_dump(family))
            if isinstance(record, NeighbourRecord) and record.state == 0x80 and record.ifindex == left
        ]
        spoken = tool("ip", option, "-j", "neigh", "show", "dev", "left", "nud", "permanent")
        assert permanent == [(entry["dst"], entry["lladdr"]) for entry in spoken]
        assert len(permanent) == 1
        door.ask(rtnetlink.neighbour_delete(left, permanent[0][0]))
    assert tool("ip", "-j", "neigh", "show", "dev", "left", "nud", "permanent") == []


@in_own_netns
def test_fdb_entries_are_those_of_bridge(door: Door) -> None:
    left = build_pair(door)
    for name, local in (("vx4", "10.9.0.1"), ("vx6", "fd09::1")):
        vxlan = VxlanInfo(42, 8472, local, None, left, learning=False)
        door.ask(rtnetlink.link_create(name, "vxlan", up=True, vxlan=vxlan))
    vx4, vx6 = door.index("vx4"), door.index("vx6")
    door.ask(rtnetlink.link_create("br0", "bridge"))
    door.ask(rtnetlink.link_set(vx4, master_ifindex=door.index("br0")))
    for ifindex, destination in ((vx4, "10.9.0.8"), (vx4, "10.9.0.9"), (vx6, "fd09::8"), (vx6, "fd09::9")):
        door.ask(rtnetlink.fdb_add(ifindex, ZERO_MAC, destination))
        door.ask(rtnetlink.fdb_add(ifindex, "02:00:00:00:00:0a", destination, replace=True))
    names = {entry["ifindex"]: entry["ifname"] for entry in tool("ip", "-j", "link", "show")}
    ours = [
        (names[record.ifindex], record.mac, record.destination, names.get(record.master_ifindex), record.vlan or None)
        for record in door.ask(rtnetlink.fdb_dump())
        if isinstance(record, FdbRecord)
    ]
    spoken = [
        (entry["ifname"], entry["mac"], entry.get("dst"), entry.get("master"), entry.get("vlan"))
        for entry in tool("bridge", "-j", "fdb", "show")
    ]
    assert sorted(ours, key=str) == sorted(spoken, key=str)
    assert ("vx4", "02:00:00:00:00:0a", "10.9.0.9", None, None) in ours
    assert sum(entry[1] == ZERO_MAC for entry in ours) == 4
    door.ask(rtnetlink.fdb_delete(vx4, ZERO_MAC, "10.9.0.8"))
    door.ask(rtnetlink.fdb_delete(vx4, "02:00:00:00:00:0a"))
    assert [entry["dst"] for entry in tool("bridge", "-j", "fdb", "show", "dev", "vx4") if "dst" in entry] == [
        "10.9.0.9"
    ]


@in_own_netns
def test_appending_another_destination_to_a_unicast_address_changes_nothing(door: Door) -> None:
    left = build_pair(door)
    vxlan = VxlanInfo(42, 8472, "10.9.0.1", None, left, learning=False)
    door.ask(rtnetlink.link_create("vx4", "vxlan", up=True, vxlan=vxlan))
    vx4 = door.index("vx4")
    for destination in ("10.9.0.8", "10.9.0.9"):
        door.ask(rtnetlink.fdb_add(vx4, "02:00:00:00:00:0a", destination))
    found = [record.destination for record in door.ask(rtnetlink.fdb_dump()) if isinstance(record, FdbRecord)]
    assert found.count("10.9.0.8") == 1
    assert "10.9.0.9" not in found
    door.ask(rtnetlink.fdb_add(vx4, ZERO_MAC, "10.9.0.8"))
    with pytest.raises(OSError, match="Cannot replace non-unicast fdb entries"):
        door.ask(rtnetlink.fdb_add(vx4, ZERO_MAC, "10.9.0.9", replace=True))


@in_own_netns
def test_the_kernel_says_what_is_wrong(door: Door) -> None:
    with pytest.raises(OSError, match="Invalid prefix for given prefix length"):
        door.ask(rtnetlink.route_add("10.0.0.1/8", ifindex=1))
    with pytest.raises(OSError, match="FIB table does not exist"):
        door.ask(rtnetlink.route_dump(AF_INET, table=4711))
    with pytest.raises(FileExistsError):
        door.ask(rtnetlink.address_add(1, "127.0.0.1/8"))
