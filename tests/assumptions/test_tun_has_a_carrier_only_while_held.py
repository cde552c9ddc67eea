"""A TUN device that is up has a carrier exactly while a program is attached to it.

Relied on by the exported script, which waits for LOWER_UP, and by ``muslin.lab.run``, which settles the device once
its tunnel is ready.
"""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel import tun
from tests.assumptions.room import NEEDS_ROOT, Room, ip, ip_json, room

__all__ = ["room"]
pytestmark = [
    pytest.mark.kernel,
    NEEDS_ROOT,
    pytest.mark.skipif(not os.path.exists(tun.TUN_PATH), reason="kernel lacks /dev/net/tun"),
]


def attach() -> int:
    fd = os.open(tun.TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, tun.TUNSETIFF, struct.pack("16sH22x", b"tun0", tun.IFF_TUN | tun.IFF_NO_PI))
    return fd


def has_carrier(netns: str) -> bool:
    (link,) = ip_json(netns, "link show dev tun0")
    return "LOWER_UP" in link["flags"]


def test_the_carrier_comes_and_goes_with_the_program(room: Room) -> None:
    netns = room.netns("n")
    tun.create(netns, "tun0")
    ip(netns, "link set tun0 up")
    assert not has_carrier(netns)
    fd = netns_door.call_in(netns, attach)
    assert has_carrier(netns)
    os.close(fd)
    assert not has_carrier(netns)
