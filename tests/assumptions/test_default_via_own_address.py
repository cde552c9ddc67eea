"""A default route may name the host's own address as gateway in IPv4, and may not in IPv6.

    n: eth0 172.16.0.1/32, fd16::1/128

Relied on by ``muslin.plan.attach``: in the talk's first step the container's gateway is the container. The IPv4 route
makes the kernel ask for every address on the cable; IPv6 needs another way.
"""

from __future__ import annotations

import pytest

from tests.assumptions.room import NEEDS_ROOT, Room, ip, ip_json, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]


@pytest.fixture
def netns(room: Room) -> str:
    name = room.netns("n")
    ip(name, "link add eth0 up type veth peer name far")
    ip(name, "link set far up")
    ip(name, "addr add 172.16.0.1/32 dev eth0")
    ip(name, "addr add fd16::1/128 dev eth0 nodad")
    return name


def test_ipv4_takes_it_and_asks_on_the_cable(netns: str) -> None:
    ip(netns, "route add default via 172.16.0.1 dev eth0")
    (route,) = ip_json(netns, "-4 route get 10.9.9.9")
    assert (route["dev"], route["prefsrc"]) == ("eth0", "172.16.0.1")


def test_ipv6_refuses_it(netns: str) -> None:
    refused = ip(netns, "-6 route add default via fd16::1 dev eth0", check=False)
    assert refused.returncode != 0
    assert "Gateway can not be a local address" in refused.stderr
    ip(netns, "-6 route add default dev eth0")
