"""Hints of changes: which object, in just the namespace that changed; from a kernel that had to drop events too.

a ── br0 (up), everything happens here        b ── nothing ever happens here
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from muslin.kernel.converge import converge
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.watch import Hint, Watch
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    Link,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    Route,
)
from muslin.model.state import DesiredState
from tests.contract.kernels import NEEDS_ROOT, World

pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

DEADLINE_S = 10.0
QUIET_S = 0.3


@pytest.fixture
def world() -> Iterator[World]:
    made = World("linux")
    try:
        made.build(
            [
                Netns(netns=made.netns("a")),
                Netns(netns=made.netns("b")),
                Link(netns=made.netns("a"), name="br0", options=Bridge(), up=True),
            ]
        )
        yield made
    finally:
        made.close()


@pytest.fixture
def watch(world: World) -> Iterator[Watch]:
    made = Watch((world.netns("a"), world.netns("b")))
    try:
        yield made
    finally:
        made.close()


def inside(netns: str, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, *words], check=True)


def wait_for_quiet(watch: Watch) -> None:
    """Until the kernel has said all that it has to say of earlier changes."""
    deadline = time.monotonic() + DEADLINE_S
    while watch.read(QUIET_S):
        assert time.monotonic() < deadline, "it never ends"


CHANGES = {
    "ip link add br1 type bridge": ("link", "br1"),
    "ip link set br0 mtu 1300": ("link", "br0"),
    "ip link set br0 alias x": ("link", "br0"),
    "ip link delete br0": ("link", "br0"),
    "ip addr add 10.0.0.1/24 dev br0": ("address", "br0", "10.0.0.1/24"),
    "ip addr add fd00::1/64 dev br0 nodad": ("address", "br0", "fd00::1/64"),
    "ip route add blackhole 10.1.0.0/16": ("route", 254, "10.1.0.0/16", 0, ""),
    "ip route add blackhole fd01::/64": ("route", 254, "fd01::/64", 1024, ""),
    "ip -4 rule add priority 100 lookup 100": ("rule", 4, 100, 100, "", "", "", 0),
    "ip -6 rule add priority 100 lookup 100": ("rule", 6, 100, 100, "", "", "", 0),
    "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev br0 nud permanent": ("neighbour", "br0", "10.0.0.9"),
    "ip neigh add fd00::9 lladdr 02:00:00:00:00:01 dev br0 nud permanent": ("neighbour", "br0", "fd00::9"),
    "ip nexthop add id 1 dev br0": ("nexthop", 1),
    "nft add table inet t": ("nft", "inet", "t"),
    "sysctl -q -w net.ipv4.ip_forward=1": ("sysctl", "net/ipv4/ip_forward"),
    "sysctl -q -w net.ipv6.conf.all.forwarding=1": ("sysctl", "net/ipv6/conf/all/forwarding"),
    "sysctl -q -w net.ipv4.conf.br0.rp_filter=2": ("sysctl", "net/ipv4/conf/br0/rp_filter"),
}


def keys(hints: list[Hint], removed: bool | None = None) -> set[tuple[object, ...]]:
    """What they are about, less the namespace."""
    told = [hint for hint in hints if removed is None or hint.removed == removed]
    return {(hint.object.key[0], *hint.object.key[2:]) for hint in told if hint.object is not None}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_of_its_object_in_its_namespace_and_no_other(world: World, watch: Watch, change: str) -> None:
    wait_for_quiet(watch)
    assert watch.read() == []
    inside(world.netns("a"), *change.split())
    hints = watch.read()
    assert hints, "there is a hint as soon as there is a change"
    deadline = time.monotonic() + DEADLINE_S
    while CHANGES[change] not in keys(hints):  # of an IPv6 address its route is told first, itself from a worker
        assert time.monotonic() < deadline, hints
        hints += watch.read(QUIET_S)
    assert {hint.netns for hint in hints} == {world.netns("a")}


def test_what_goes_is_told_as_gone(world: World, watch: Watch) -> None:
    netns = world.netns("a")
    inside(netns, "ip", "addr", "add", "10.0.0.1/24", "dev", "br0")
    inside(netns, "ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:01", "dev", "br0", "nud", "permanent")
    wait_for_quiet(watch)
    inside(netns, "ip", "neigh", "del", "10.0.0.9", "dev", "br0")
    assert ("neighbour", "br0", "10.0.0.9") in keys(watch.read(), removed=True)
    inside(netns, "ip", "link", "del", "br0")
    gone = keys(watch.read(), removed=True)
    assert {("link", "br0"), ("address", "br0", "10.0.0.1/24")} <= gone


def test_a_neighbour_that_somebody_lets_the_kernel_learn_is_told_as_gone(world: World, watch: Watch) -> None:
    netns = world.netns("a")
    entry = ("10.0.0.9", "lladdr", "02:00:00:00:00:01", "dev", "br0", "nud")
    inside(netns, "ip", "neigh", "add", *entry, "permanent")
    wait_for_quiet(watch)
    inside(netns, "ip", "neigh", "replace", *entry, "stale")
    assert ("neighbour", "br0", "10.0.0.9") in keys(watch.read(), removed=True)


def test_the_same_again_is_no_news_of_a_link(world: World, watch: Watch) -> None:
    wait_for_quiet(watch)
    inside(world.netns("a"), "ip", "link", "set", "br0", "up", "mtu", "1500")
    assert ("link", "br0") not in keys(watch.read())


def test_our_own_doing_is_not_told(world: World) -> None:
    with LinuxKernel() as kernel:
        netns = world.netns("a")
        watch = Watch((netns,), kernel.ports)
        try:
            table = NftTable(netns=netns, family="inet", name="t", text="set s {\ntype ipv4_addr\n}")
            made: list[AnyObject] = [
                Link(netns=netns, name="br0", options=Bridge(), mtu=1400, alias="x", up=True),
                Address(netns=netns, link="br0", address="10.0.0.1/24"),
                Nexthop(netns=netns, id=7, link="br0", via="10.0.0.2"),
                Route(netns=netns, destination="10.9.0.0/16", nexthop_id=7),
                Neighbour(netns=netns, link="br0", address="10.0.0.2", mac="02:00:00:00:00:02"),
                table,
                NftElement(netns=netns, family="inet", table="t", set="s", address="10.0.0.9"),
            ]
            assert converge(kernel, DesiredState(tuple(made[:-2]))).ok
            wait_for_quiet(watch)
            fresh = Neighbour(netns=netns, link="br0", address="10.0.0.3", mac="02:00:00:00:00:03")
            route = Route(netns=netns, destination="10.8.0.0/16", nexthop_id=7)
            assert converge(kernel, DesiredState((*made[:-2], fresh, route))).ok
            assert watch.read(QUIET_S) == []
            assert converge(kernel, DesiredState((*made[:-1], fresh, route))).ok  # by the nft program: not told apart
            wait_for_quiet(watch)
            assert converge(kernel, DesiredState((*made, fresh, route))).ok
            assert watch.read(QUIET_S) == []
            inside(netns, "ip", "route", "del", "10.8.0.0/16")
            assert ("route", 254, "10.8.0.0/16", 0, "") in keys(watch.read(DEADLINE_S), removed=True)
        finally:
            watch.close()


def test_an_event_loop_can_wait_on_it(world: World, watch: Watch) -> None:
    wait_for_quiet(watch)
    with select.epoll() as loop:
        loop.register(watch.fileno(), select.EPOLLIN)
        assert loop.poll(0) == []
        inside(world.netns("b"), "ip", "route", "add", "blackhole", "10.1.0.0/16")
        assert loop.poll(DEADLINE_S) == [(watch.fileno(), select.EPOLLIN)]
        assert {hint.netns for hint in watch.read()} == {world.netns("b")}
        assert loop.poll(0) == []


def drops_of(netns: str) -> int:
    """Events that the kernel dropped in this namespace (the column Drops of /proc/net/netlink)."""
    words = ["ip", "netns", "exec", netns, "cat", "/proc/net/netlink"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])


def test_an_overflow_asks_to_look_at_everything(world: World, watch: Watch) -> None:
    wait_for_quiet(watch)
    netns = world.netns("a")
    for ear in watch._ears.values():
        ear.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes that its minimum
    batch = "".join(f"route add blackhole 10.1.{number}.0/24\n" for number in range(200))
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input=batch, text=True, check=True)
    assert drops_of(netns) > 0, "the test should have made the kernel drop events"
    assert Hint(netns, None) in watch.read()
    wait_for_quiet(watch)
    # It hears again afterwards.
    inside(netns, "ip", "route", "add", "blackhole", "10.9.0.0/16")
    assert keys(watch.read()) == {("route", 254, "10.9.0.0/16", 0, "")}


def test_a_namespace_that_does_not_exist_cannot_be_watched(world: World, watch: Watch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        watch.add(world.netns("nowhere"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_gives_every_descriptor_back(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = Watch((world.netns("a"), world.netns("b")))
    assert len(os.listdir("/proc/self/fd")) > before
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- a crowd -----------------------------------------------------------------------------------------------


def crowd_of(hints: list[Hint]) -> list[tuple[Link, bool]]:
    """What is told of the links of the crowd, and whether they went."""
    told = [(hint.object, hint.removed) for hint in hints]
    return [(obj, removed) for obj, removed in told if isinstance(obj, Link) and obj.name.startswith("mus")]


def test_of_a_crowd_the_last_of_a_bunch_is_told_and_of_others_each(world: World) -> None:
    netns = world.netns("a")
    watch = Watch((netns,), crowd=("mus",))
    try:
        wait_for_quiet(watch)
        for change in ("add mus1 type veth peer name other1", "set mus1 master br0", "set mus1 up", "set other1 up"):
            inside(netns, "ip", "link", *change.split())
        hints = watch.read(QUIET_S)
        [(link, removed)] = crowd_of(hints)
        assert (link.name, link.up, link.master, removed) == ("mus1", True, "br0", False)
        assert sum(isinstance(hint.object, Link) and hint.object.name == "other1" for hint in hints) > 1
        wait_for_quiet(watch)
        inside(
            netns, "ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:01", "dev", "mus1", "nud", "permanent"
        )
        assert ("neighbour", "mus1", "10.0.0.9") in keys(watch.read(QUIET_S)), "its name is known by now"
        wait_for_quiet(watch)
        inside(netns, "ip", "link", "set", "mus1", "nomaster")
        assert [(link.master, removed) for link, removed in crowd_of(watch.read(QUIET_S))] == [("", False)]
        wait_for_quiet(watch)
        inside(netns, "ip", "link", "delete", "mus1")
        assert [removed for _, removed in crowd_of(watch.read(QUIET_S))] == [True]
    finally:
        watch.close()
