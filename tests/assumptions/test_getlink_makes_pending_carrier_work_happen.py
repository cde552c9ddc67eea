"""Asking for one link (RTM_GETLINK) acts on its carrier first: a bridge port forwards at once, not within a second.

    a: e0 e1 ... ═══ p0 p1 ... (ports of br0) :b

The kernel notes a carrier at once and acts on it later, in a worker that handles 100 links and then leaves the rest
for its next turn, up to a second on (linkwatch_run_queue, net/core/link_watch.c). Linux 6.4 and later do it for the
one link that somebody asks for (rtnl_getlink, net/core/rtnetlink.c). Relied on by ``muslin.kernel.apply.settle``; an
older kernel passes no less traffic, only later.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NetlinkSocket
from muslin.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare
from muslin.wire import rtnetlink
from tests.assumptions.room import NEEDS_ROOT, Room, ip, room

__all__ = ["room"]
pytestmark = [
    pytest.mark.kernel,
    NEEDS_ROOT,
    pytest.mark.skipif(
        tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) < (6, 4),
        reason="kernel lacks the linkwatch_sync_dev of Linux 6.4",
    ),
]
FORWARDING = "3"  # BR_STATE_FORWARDING, linux/if_bridge.h
CABLES = 300
ATTEMPTS = 30
SIGHTINGS = 3
"""How often the worker has to be seen late; two of three times it is."""


def open_sysfs() -> int:
    """/sys/class/net of the namespace of this thread, which ends afterwards and its mounts with it."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("sysfs", "/sys", "sysfs")
    return os.open("/sys/class/net", os.O_RDONLY | os.O_DIRECTORY)


def forwarding_ports(directory: int) -> int:
    """How many ports forward; sysfs shows what the bridge has and, unlike rtnetlink, changes nothing by it."""
    count = 0
    for number in range(CABLES):
        fd = os.open(f"p{number}/brport/state", os.O_RDONLY, dir_fd=directory)
        count += os.read(fd, 10).decode().strip() == FORWARDING
        os.close(fd)
    return count


def set_up(opened: NetlinkSocket, prefix: str, up: bool) -> None:
    records = [rtnetlink.parse_record(message) for message in opened.dump(rtnetlink.link_dump())]
    links = [record for record in records if isinstance(record, rtnetlink.LinkRecord)]
    numbers = [link.ifindex for link in links if link.name.startswith(prefix)]
    opened.request([rtnetlink.link_set(number, up=up) for number in numbers])


def test_ports_forward_as_soon_as_they_were_asked_for(room: Room) -> None:
    far, near = room.netns("a"), room.netns("b")
    ip(near, "link add br0 up type bridge")
    cables = range(CABLES)
    batch = "".join(f"link add p{n} master br0 type veth peer name e{n} netns {far}\n" for n in cables)
    subprocess.run(["ip", "-n", near, "-batch", "-"], input=batch, text=True, check=True)
    directory = netns_door.call_in(near, open_sysfs)
    near_socket, far_socket = NetlinkSocket(near), NetlinkSocket(far)
    unasked = []
    try:
        for _ in range(ATTEMPTS):
            set_up(near_socket, "p", up=True)
            set_up(far_socket, "e", up=True)
            unasked.append(forwarding_ports(directory))
            near_socket.request([rtnetlink.link_get(f"p{number}") for number in cables])
            assert forwarding_ports(directory) == CABLES
            if sum(count < CABLES for count in unasked) == SIGHTINGS:
                return
            set_up(far_socket, "e", up=False)
            set_up(near_socket, "p", up=False)
    finally:
        near_socket.close()
        far_socket.close()
        os.close(directory)
    pytest.fail(f"the worker was in time in nearly all of {ATTEMPTS} attempts: the probe saw nothing: {unasked}")
