"""One RTM_NEWLINK makes a veth with each end in its final namespace and under its final name, from a third one.

Relied on by ``muslin.kernel.apply``: 0.4 ms a cable, against 16 to 27 ms for creating and moving it.
"""

from __future__ import annotations

import os

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NetlinkSocket
from muslin.wire import rtnetlink
from tests.assumptions.room import NEEDS_ROOT, Room, ip_json, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]


def test_both_ends_are_where_the_message_says_and_nowhere_else(room: Room) -> None:
    sender, one, other = (room.netns(name) for name in ("sender", "one", "other"))
    fds = [netns_door.open_netns(name) for name in (one, other)]
    opened = NetlinkSocket(sender)
    try:
        request = rtnetlink.link_create("a", "veth", netns_fd=fds[0], peer_name="b", peer_netns_fd=fds[1])
        assert [answer.errno for answer in opened.request([request])] == [0]
    finally:
        opened.close()
        for fd in fds:
            os.close(fd)
    names = {netns: {link["ifname"] for link in ip_json(netns, "link show")} for netns in (sender, one, other)}
    assert names == {sender: {"lo"}, one: {"lo", "a"}, other: {"lo", "b"}}


def test_without_a_namespace_for_the_peer_it_lands_with_the_sender(room: Room) -> None:
    """So ``apply`` names the peer's namespace always."""
    sender, one = room.netns("sender"), room.netns("one")
    fd = netns_door.open_netns(one)
    opened = NetlinkSocket(sender)
    try:
        opened.request([rtnetlink.link_create("a", "veth", netns_fd=fd, peer_name="b")])
    finally:
        opened.close()
        os.close(fd)
    places = {netns: {link["ifname"] for link in ip_json(netns, "link show")} - {"lo"} for netns in (sender, one)}
    assert {"b"} in places.values()
    assert places[one] - {"b"} == {"a"}
