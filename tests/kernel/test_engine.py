"""The engine on the real kernel, with iproute2 and nft as witnesses.

The network is drawn in tests/contract/network.py.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.base import Scope
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.netlink import NetlinkSocket
from muslin.model.address import Family
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    Neighbour,
    Netns,
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create
from muslin.model.state import DesiredState
from muslin.plan.diff import creations
from muslin.wire import rtnetlink
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import Request
from tests.contract.kernels import NEEDS_ROOT, World
from tests.contract.network import CHAIN, MAC1, MAC2, MAC3, Net

pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

DEADLINE_S = 20.0
PEERS = 2000


@pytest.fixture
def world() -> Iterator[World]:
    made = World("linux")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def net(world: World) -> Net:
    return Net(world)


def run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def ip(netns: str, *words: str) -> Any:
    """What `ip -j` says of a namespace."""
    return json.loads(run("ip", "-n", netns, "-d", "-j", *words) or "[]")


def only(found: list[Any], **fields: object) -> Any:
    """The one entry that has these fields."""
    (entry,) = [entry for entry in found if fields.items() <= entry.items()]
    return entry


# ---- what is built is what ip, bridge and nft see ---------------------------------------------------------


def test_links_read_back(world: World, net: Net) -> None:
    world.build(net.rich)
    links = ip(net.node, "link", "show")
    near = only(links, ifname="v1", mtu=1400, address=MAC1, ifalias="cable", master="br0")
    assert "UP" in near["flags"]
    assert near["linkinfo"]["info_kind"] == "veth"
    assert near["linkinfo"]["info_slave_kind"] == "bridge"
    assert only(links, ifname="br0")["linkinfo"]["info_kind"] == "bridge"
    tun = only(links, ifname="tun0", mtu=1472)["linkinfo"]["info_data"]
    assert (tun["type"], tun["pi"], tun["persist"]) == ("tun", False, True)
    vxlan = only(links, ifname="vx0", mtu=1450, address=MAC3)["linkinfo"]["info_data"]
    expected = {"id": 7, "local": "10.0.0.1", "link": "up0", "port": 8472, "learning": False}
    assert expected.items() <= vxlan.items()
    far = only(ip(net.con, "link", "show"), ifname="eth0", mtu=1400, address=MAC2, ifalias="con")
    assert far["link_index"] == near["ifindex"]
    assert near["link_index"] == far["ifindex"]


def test_a_vxlan_device_over_ipv6_reads_back(world: World, net: Net) -> None:
    options = Vxlan(vni=16777215, local="fd10::1", port=4789, underlay="up0", learning=True, gbp=True)
    device = Link(netns=net.node, name="vx.6", options=options, mtu=1430, up=True)
    entry = FdbEntry(netns=net.node, link="vx.6", mac=MAC1, destination="fd10::2")
    world.build([*net.base, device, entry])
    data = only(ip(net.node, "link", "show"), ifname="vx.6", mtu=1430)["linkinfo"]["info_data"]
    expected = {"id": 16777215, "local6": "fd10::1", "link": "up0", "port": 4789, "learning": True, "gbp": True}
    assert expected.items() <= data.items()
    fdb = json.loads(run("bridge", "-n", net.node, "-j", "fdb", "show", "dev", "vx.6"))
    assert only(fdb, mac=MAC1)["dst"] == "fd10::2"


def test_addresses_routes_and_rules_read_back(world: World, net: Net) -> None:
    world.build(net.rich)
    addresses = {
        (info["local"], info["prefixlen"], info.get("tentative", False))
        for info in only(ip(net.node, "addr", "show"), ifname="br0")["addr_info"]
        if info["scope"] == "global"
    }
    assert addresses == {("172.16.0.1", 24, False), ("fd16::1", 64, False)}
    main = [*ip(net.node, "-4", "route", "show"), *ip(net.node, "-6", "route", "show")]
    only(main, dst="172.20.0.0/16", gateway="10.0.0.2", dev="up0", protocol="boot")
    only(main, dst="fd20::/64", gateway="fd10::2", dev="up0", protocol="boot")
    only(main, dst="172.21.0.0/16", nhid=4)
    only(main, dst="fd21::/64", nhid=6)
    only(main, dst="172.22.0.0/16", type="blackhole")
    only(main, dst="fd22::/64", type="blackhole")
    only(ip(net.con, "-4", "route", "show"), dst="default", gateway="172.16.0.1", dev="eth0")
    only(ip(net.con, "-6", "route", "show"), dst="default", gateway="fd16::1", dev="eth0", metric=1024)
    hops = ip(net.node, "nexthop", "show")
    only(hops, id=4, gateway="10.0.0.2", dev="up0", protocol="77")
    only(hops, id=6, gateway="fd10::2", dev="up0", protocol="77")
    for family, source in (("-4", "172.20.0.0"), ("-6", "fd20::")):
        rules = ip(net.node, family, "rule", "show")
        only(rules, priority=100, src="all", table="100", protocol="77")
        only(rules, priority=100, src=source, table="101", iif="br0")


def test_neighbours_entries_settings_and_tables_read_back(world: World, net: Net) -> None:
    world.build(net.rich)
    neighbours = ip(net.node, "neigh", "show", "dev", "vx0")
    for address in ("10.9.0.2", "fd19::2"):
        assert only(neighbours, dst=address, lladdr=MAC1)["state"] == ["PERMANENT"]
    fdb = json.loads(run("bridge", "-n", net.node, "-j", "fdb", "show", "dev", "vx0"))
    assert only(fdb, mac=MAC1, dst="10.0.0.2")["state"] == "permanent"
    inside = ("ip", "netns", "exec", net.node)
    assert run(*inside, "sysctl", "-n", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding").split() == ["1", "1"]
    assert run(*inside, "sysctl", "-n", "net/ipv4/conf/v1/rp_filter").split() == ["2"]
    tables = json.loads(run(*inside, "nft", "-j", "list", "tables"))["nftables"]
    assert [entry["table"]["name"] for entry in tables if "table" in entry] == ["ours"]
    assert CHAIN.splitlines()[1] in run(*inside, "nft", "list", "table", "inet", "ours")


def test_the_commands_that_are_printed_build_the_same(world: World, net: Net) -> None:
    script = "\n".join(op.describe() for op in creations(DesiredState(tuple(net.rich))))
    run("sh", "-e", "-s", text=script)
    assert world.ops_left(net.rich) == []


def test_the_commands_that_are_printed_for_removal_remove(world: World, net: Net) -> None:
    world.build(net.rich)
    things = [obj for obj in net.rich if not isinstance(obj, Netns | Sysctl) and getattr(obj, "name", "") != "lo"]
    for obj in sorted(things, key=lambda obj: -obj.rank):
        if obj.key not in {key for key in world.look(*net.rich)}:
            continue  # it went with the other end of its cable
        run("sh", "-e", "-c", obj.describe_delete())
        assert obj.key not in world.look(*net.rich)


# ---- refusals --------------------------------------------------------------------------------------------


def test_values_that_no_message_can_carry_fail_alone(world: World, net: Net) -> None:
    wrong: list[AnyObject] = [
        Link(netns=net.node, name="sixteen-letters-", options=Bridge()),
        Link(netns=net.node, name="odd", options=Bridge(), mac="02:00"),
        Link(netns=net.node, name="bond0", options=OtherKind(kind="bond")),
        Address(netns=net.node, link="br0", address="300.0.0.1/24"),
        Neighbour(netns=net.node, link="br0", address="172.16.0.9", mac="nonsense"),
        Sysctl(netns=net.node, name="net/ipv4/no_such_setting", value="1"),
        Sysctl(netns=net.node, name="net/ipv4/ip_default_ttl", value="many"),
    ]
    report = world.converge([*net.base, *wrong])
    assert {result.op.key for result in report.failed} == {obj.key for obj in wrong}
    assert all(result.errno for result in report.failed)
    assert world.ops_left(net.base) == []


def test_a_device_that_stands_on_nothing_fails_by_errno(world: World, net: Net) -> None:
    device = Link(netns=net.node, name="v", options=Vxlan(vni=1, local="10.0.0.1", underlay="nothing"), up=True)
    report = world.converge([*net.base, device])
    assert [(result.op, result.errno) for result in report.failed] == [(Create(device), errno.ENODEV)]
    assert len(report.skipped) == 1


# ---- things of the kernel and of others that must not confuse us -----------------------------------------


@pytest.mark.parametrize("state", ["stale", "failed", "noarp"])
def test_a_neighbour_that_the_kernel_learned_does_not_block_ours(world: World, net: Net, state: str) -> None:
    world.build([*net.base, net.vxlan])
    words = ["lladdr", MAC2] if state != "failed" else []
    run("ip", "-n", net.node, "neigh", "add", "10.9.0.2", *words, "dev", "vx0", "nud", state)
    world.build([*net.base, net.vxlan, Neighbour(netns=net.node, link="vx0", address="10.9.0.2", mac=MAC1)])


def test_a_forwarding_entry_that_the_kernel_learned_does_not_block_ours_and_is_none_of_ours(
    world: World, net: Net
) -> None:
    world.build([*net.base, net.vxlan])
    learned = ("bridge", "-n", net.node, "fdb", "add", MAC1, "dev", "vx0", "dst", "10.0.0.9", "self", "dynamic")
    run(*learned)
    assert world.ops_left([*net.base, net.vxlan]) == []
    entry = FdbEntry(netns=net.node, link="vx0", mac=MAC1, destination="10.0.0.2")
    world.build([*net.base, net.vxlan, entry])
    fdb = json.loads(run("bridge", "-n", net.node, "-j", "fdb", "show", "dev", "vx0"))
    assert only(fdb, mac=MAC1, dst="10.0.0.2")["state"] == "permanent"


def test_a_tap_device_is_no_tun_device(world: World, net: Net) -> None:
    world.build([Netns(netns=net.node)])
    run("ip", "-n", net.node, "tuntap", "add", "dev", "tun0", "mode", "tap")
    report = world.converge([Netns(netns=net.node), net.tun])
    assert [(result.op.key, result.errno) for result in report.failed] == [(net.tun.key, errno.EEXIST)]


@pytest.mark.parametrize("words", ["not from 172.20.0.0/16 lookup 100", "from 172.20.0.0/16 blackhole"])
def test_a_rule_that_says_something_else_is_not_taken_for_ours(world: World, net: Net, words: str) -> None:
    ours = Rule(netns=net.node, family=4, priority=100, table=100, source="172.20.0.0/16")
    world.build([Netns(netns=net.node)])
    run("ip", "-n", net.node, "rule", "add", "priority", "100", *words.split())
    assert world.ops_left([Netns(netns=net.node), ours]) == [ours.describe()]


def test_a_file_left_where_a_namespace_should_be_is_taken_over(world: World, net: Net) -> None:
    netns_door.prepare_directory()
    Path(netns_door.path_of(net.node)).touch()
    try:
        world.build(net.base)
    finally:
        world.build([])
    assert net.node not in netns_door.names()


def test_a_name_that_is_taken_is_refused(world: World, net: Net) -> None:
    run("ip", "netns", "add", net.node)
    inode = netns_door.inode_of(net.node)
    with pytest.raises(FileExistsError):
        netns_door.create(net.node)
    assert netns_door.inode_of(net.node) == inode


# ---- cables and numbers ----------------------------------------------------------------------------------


def test_the_ends_of_many_cables_with_equal_numbers_find_each_other(world: World) -> None:
    """pairs a0 ═ b0, a1 ═ b1, ...: each end is eth0, link number 2 of its namespace, whose peer is number 2."""
    objects: list[AnyObject] = []
    for number in range(12):
        one, other = world.netns(f"a{number}"), world.netns(f"b{number}")
        objects += [Netns(netns=one), Netns(netns=other)]
        objects.append(Link(netns=one, name="eth0", options=Veth(peer_netns=other, peer="eth0"), up=True))
        objects.append(Link(netns=other, name="eth0", options=Veth(peer_netns=one, peer="eth0"), up=True))
    # A cable within one namespace has numbers, too, and no id of a namespace.
    inner = [
        Link(netns=world.netns("a0"), name=name, options=Veth(peer_netns=world.netns("a0"), peer=peer), up=True)
        for name, peer in (("x", "y"), ("y", "x"))
    ]
    world.build([*objects, *inner])
    numbers = {only(ip(obj.netns, "link", "show"), ifname="eth0")["ifindex"] for obj in objects}
    assert numbers == {2}, "the test should have made them equal"
    there = world.look(*objects, *inner)
    for obj in (*objects, *inner):
        if isinstance(obj, Link):
            found = there[obj.key]
            assert isinstance(found, Link)
            assert found.options == obj.options


def test_a_cable_into_a_namespace_that_nobody_named_has_an_unknown_end(world: World, net: Net) -> None:
    world.build(net.base)
    with LinuxKernel() as kernel:
        seen = kernel.observe(Scope(netns=(net.node,))).objects[net.near.key]
    assert isinstance(seen, Link)
    assert seen.options == Veth(peer_netns="", peer="")


OWN_NAMESPACE = """
import sys
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.linux import LinuxKernel
from muslin.model.kernel import *
from muslin.model.state import DesiredState

con = sys.argv[1]
state = DesiredState((
    Netns(netns=con),
    Sysctl(netns="", name="net/ipv4/ip_forward", value="1"),
    Link(netns="", name="br0", options=Bridge(), up=True),
    Address(netns="", link="br0", address="172.16.0.1/24"),
    # The end in the container first, so the cable is made from there.
    Link(netns=con, name="eth0", options=Veth(peer_netns="", peer="v1"), up=True),
    Link(netns="", name="v1", options=Veth(peer_netns=con, peer="eth0"), master="br0", up=True),
    Address(netns=con, link="eth0", address="172.16.0.2/24"),
    Route(netns="", destination="10.9.0.0/16", via="172.16.0.2"),
))
journal = MemoryJournal()
with LinuxKernel() as kernel:
    for wanted in (state, DesiredState(), state):
        report = converge(kernel, wanted, journal)
        assert report.ok, [result.describe() for result in report.failed]
        assert plan_ops(kernel, wanted, journal.owned)[1] == (), plan_ops(kernel, wanted, journal.owned)[1]
"""


def test_the_own_namespace_is_built_like_any_other(world: World, net: Net) -> None:
    """In a process whose own namespace is `node`: nothing happens in that of the machine."""
    run("ip", "netns", "add", net.node)
    # Not by `ip netns exec`, which takes new mounts, and so new names of namespaces, along when it ends.
    netns_door.call_in(net.node, lambda: run(sys.executable, "-c", OWN_NAMESPACE, net.con))
    assert {link["ifname"] for link in ip(net.node, "link", "show")} == {"lo", "br0", "v1"}
    assert {link["ifname"] for link in ip(net.con, "link", "show")} == {"lo", "eth0"}


# ---- bulk ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_two_thousand_peers_stand_within_seconds_and_cost_nothing_afterwards(
    world: World, net: Net, family: Family
) -> None:
    local = {4: "10.0.0.1", 6: "fd10::1"}[family]
    device = Link(netns=net.node, name="vx0", options=Vxlan(vni=7, local=local, underlay="up0"), up=True)
    objects: list[AnyObject] = [*net.base, device]
    for number in range(PEERS):
        high, low = divmod(number, 256)
        mac = f"02:00:00:01:{high:02x}:{low:02x}"
        gateway = f"172.{32 + high}.{low}.0" if family == 4 else f"fd20:{number + 1:x}::"
        outer = f"10.1.{high}.{low}" if family == 4 else f"fd11::{number + 1:x}"
        subnet = f"{gateway}/24" if family == 4 else f"{gateway}/64"
        objects.append(Neighbour(netns=net.node, link="vx0", address=gateway, mac=mac))
        objects.append(FdbEntry(netns=net.node, link="vx0", mac=mac, destination=outer))
        objects.append(Route(netns=net.node, destination=subnet, via=gateway, link="vx0", onlink=True))
    started = time.monotonic()
    report = world.converge(objects)
    took_s = time.monotonic() - started
    assert report.ok
    assert len(report.results) > 3 * PEERS
    assert world.ops_left(objects) == []
    assert len(ip(net.node, "neigh", "show", "dev", "vx0")) == PEERS
    assert took_s < 10, "measured: about 1 s on two cores"


# ---- interrupted dumps -----------------------------------------------------------------------------------


class CountingSocket(NetlinkSocket):
    """Notes how many reads the kernel called inconsistent."""

    interrupted = 0

    def _converse(self, request: Request, flags: int) -> tuple[list[Message], bool]:
        messages, interrupted = super()._converse(request, flags)
        self.interrupted += interrupted
        return messages, interrupted


def churn(netns: str, ifindex: int, stop: threading.Event) -> None:
    """Add and remove addresses until told to stop, with pauses in which a whole dump fits."""
    own = NetlinkSocket(netns)
    try:
        while not stop.is_set():
            for number in range(4):
                own.request([rtnetlink.address_add(ifindex, f"10.200.0.{number}/32", no_dad=True)])
            own.request([rtnetlink.address_delete(ifindex, f"10.200.0.{number}/32") for number in range(4)])
            stop.wait(0.002)
    finally:
        own.close()


def test_a_dump_during_changes_is_always_whole(world: World, net: Net) -> None:
    stable = [Address(netns=net.node, link="br0", address=f"10.{100 + n // 250}.0.{n % 250}/32") for n in range(1000)]
    world.build([Netns(netns=net.node), net.bridge, *stable])
    expected = {obj.address for obj in stable}
    ifindex = only(ip(net.node, "link", "show"), ifname="br0")["ifindex"]
    stop = threading.Event()
    other = threading.Thread(target=churn, args=(net.node, ifindex, stop))
    reader = CountingSocket(net.node)
    other.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        dumps = 0
        while (reader.interrupted < 5 or dumps < 20) and time.monotonic() < deadline:
            records = [rtnetlink.parse_record(message) for message in reader.dump(rtnetlink.address_dump())]
            seen = {record.address for record in records if isinstance(record, rtnetlink.AddressRecord)}
            assert expected <= seen
            dumps += 1
    finally:
        stop.set()
        other.join()
        reader.close()
    assert reader.interrupted >= 5, "the kernel never interrupted a dump: this test saw nothing"


# ---- one process, many namespaces ------------------------------------------------------------------------


def test_no_thread_stays_in_another_namespace(world: World, net: Net) -> None:
    world.build(net.rich)
    world.build([])
    places = {os.stat(f"/proc/self/task/{task}/ns/net").st_ino for task in os.listdir("/proc/self/task")}
    assert places == {netns_door.inode_of("")}
    assert not [thread for thread in threading.enumerate() if thread.name == "netns"]


def test_file_descriptors_are_given_back(world: World, net: Net) -> None:
    world.build(net.base)  # whatever is opened once and for all is open now

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(2):
        with LinuxKernel() as kernel:
            scope = Scope.of(DesiredState(tuple(net.base)))
            assert kernel.observe(scope).objects
            assert count() > before
            kernel.apply([Create(net.near), Create(cable_to_nowhere(net)), Create(net.bridge)])  # refused: they exist
        assert count() == before


def cable_to_nowhere(net: Net) -> Link:
    """A cable into a namespace that does not exist."""
    return Link(netns=net.node, name="z", options=Veth(peer_netns="muslin-mzcontract-nowhere", peer="y"))


def test_a_deleted_namespace_dies_though_we_had_doors_to_it(world: World, net: Net) -> None:
    tun = Link(netns=net.node, name="tun0", options=Tun(), up=True)
    world.build([*net.base, tun])
    world.build([])
    world.build(net.base)
    assert {link["ifname"] for link in ip(net.node, "link", "show")} == {"lo", "br0", "up0", "v1"}
