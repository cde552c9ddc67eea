"""A persistent TUN device keeps itself, its addresses and its routes while no program is attached to it.

Relied on by ``muslin.kernel.tun`` and the lab: the tunnel program may be replaced while the network stays.
"""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from muslin.kernel import netns as netns_door
from tests.assumptions.room import NEEDS_ROOT, Room, ip, ip_json, room

__all__ = ["room"]
pytestmark = [
    pytest.mark.kernel,
    NEEDS_ROOT,
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="kernel lacks /dev/net/tun"),
]
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB  # linux/if_tun.h
IFF_TUN_NO_PI = 0x1001


def attach(persist: bool) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"t0", IFF_TUN_NO_PI))
    fcntl.ioctl(fd, TUNSETPERSIST, int(persist))
    return fd


def shown(netns: str) -> tuple[set[str], set[str]]:
    """Addresses and routes of the device."""
    (link,) = ip_json(netns, "addr show dev t0")
    addresses = {info["local"] for info in link["addr_info"] if info["scope"] == "global"}
    routes = [*ip_json(netns, "-4 route show dev t0"), *ip_json(netns, "-6 route show dev t0")]
    return addresses, {route["dst"] for route in routes if not route["dst"].startswith(("fe80", "multicast"))}


def test_addresses_and_routes_outlive_the_program(room: Room) -> None:
    netns = room.netns("n")
    fd = netns_door.call_in(netns, lambda: attach(persist=True))
    ip(netns, "link set t0 up")
    ip(netns, "addr add 172.16.0.100/16 dev t0")
    ip(netns, "addr add fd16::64/48 dev t0 nodad")
    ip(netns, "route add 10.9.0.0/16 dev t0")
    expected = ({"172.16.0.100", "fd16::64"}, {"172.16.0.0/16", "fd16::/48", "10.9.0.0/16"})
    assert shown(netns) == expected
    os.close(fd)
    assert shown(netns) == expected
    os.close(netns_door.call_in(netns, lambda: attach(persist=True)))
    assert shown(netns) == expected


def test_one_that_is_not_persistent_goes_with_the_program(room: Room) -> None:
    netns = room.netns("n")
    os.close(netns_door.call_in(netns, lambda: attach(persist=False)))
    assert [link["ifname"] for link in ip_json(netns, "link show")] == ["lo"]
