"""Hints of changes: from just the namespace that changed, and from a kernel that had to drop events too.

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

from muslin.kernel.watch import Watch
from muslin.model.kernel import Bridge, Link, Netns
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


CHANGES = [
    "ip link add br1 type bridge",
    "ip link set br0 mtu 1300",
    "ip link delete br0",
    "ip addr add 10.0.0.1/24 dev br0",
    "ip addr add fd00::1/64 dev br0 nodad",
    "ip route add blackhole 10.1.0.0/16",
    "ip route add blackhole fd01::/64",
    "ip -4 rule add priority 100 lookup 100",
    "ip -6 rule add priority 100 lookup 100",
    "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev br0 nud permanent",
    "ip neigh add fd00::9 lladdr 02:00:00:00:00:01 dev br0 nud permanent",
    "ip nexthop add id 1 dev br0",
    "nft add table inet t",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_hints_at_its_namespace_and_no_other(world: World, watch: Watch, change: str) -> None:
    wait_for_quiet(watch)
    assert watch.read() == set()
    inside(world.netns("a"), *change.split())
    assert watch.read() == {world.netns("a")}, "the hint is there as soon as the change is"


def test_an_event_loop_can_wait_on_it(world: World, watch: Watch) -> None:
    wait_for_quiet(watch)
    with select.epoll() as loop:
        loop.register(watch.fileno(), select.EPOLLIN)
        assert loop.poll(0) == []
        inside(world.netns("b"), "ip", "route", "add", "blackhole", "10.1.0.0/16")
        assert loop.poll(DEADLINE_S) == [(watch.fileno(), select.EPOLLIN)]
        assert watch.read() == {world.netns("b")}
        assert loop.poll(0) == []


def drops_of(netns: str) -> int:
    """Events that the kernel dropped in this namespace (the column Drops of /proc/net/netlink)."""
    words = ["ip", "netns", "exec", netns, "cat", "/proc/net/netlink"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])


def test_an_overflow_is_a_hint_like_any_other(world: World, watch: Watch) -> None:
    wait_for_quiet(watch)
    netns = world.netns("a")
    for _, opened in watch._sockets.values():
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes that its minimum
    batch = "".join(f"route add blackhole 10.1.{number}.0/24\n" for number in range(200))
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input=batch, text=True, check=True)
    assert drops_of(netns) > 0, "the test should have made the kernel drop events"
    assert watch.read() == {netns}
    wait_for_quiet(watch)
    # It hears again afterwards.
    inside(netns, "ip", "route", "add", "blackhole", "10.9.0.0/16")
    assert watch.read() == {netns}


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
