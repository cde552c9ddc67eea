"""An event names the socket (nlmsg_pid) whose request caused it, except for entries of a vxlan device and for links.

    n: vx0 (vxlan, up), a table t with a set s

Relied on by ``muslin.kernel.watch``: what our own sockets cause is passed over by its header alone. What names none
is understood like anybody's doing, and compared with what is wanted; so no event of ours must name a wrong socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from muslin.kernel.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    SOL_NETLINK,
    NetlinkSocket,
    open_socket,
)
from muslin.kernel.watch import NFNLGRP_NFTABLES, RTNETLINK_GROUPS
from muslin.wire import netlink as wire
from muslin.wire import nftables, rtnetlink
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import Request
from tests.assumptions.room import NEEDS_ROOT, Room, inside, ip, ip_json, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]
MAC = "02:00:00:00:00:01"
NOBODY = 0


@pytest.fixture
def netns(room: Room) -> str:
    name = room.netns("n")
    ip(name, "link add vx0 up type vxlan id 7 local 10.0.0.1 dstport 8472 nolearning")
    inside(name, "nft", "add table inet t; add set inet t s { type ipv4_addr; }")
    return name


@pytest.fixture
def listener(netns: str) -> Iterator[socket.socket]:
    opened = listen(netns, socket.NETLINK_ROUTE, RTNETLINK_GROUPS)
    yield opened
    opened.close()


def listen(netns: str, protocol: int, groups: tuple[int, ...]) -> socket.socket:
    opened = open_socket(netns, protocol)
    for group in groups:
        opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    opened.setblocking(False)
    return opened


def heard(listener: socket.socket) -> list[Message]:
    """All that waits: what a request causes is there before its answer."""
    messages: list[Message] = []
    while True:
        try:
            messages += wire.iter_messages(listener.recv(1 << 16))
        except BlockingIOError:
            return messages


def requests(ifindex: int) -> list[tuple[Request, int]]:
    """Requests in an order that works, and the kind of event that names who asked."""
    hop = {"ifindex": ifindex, "via": "172.16.1.0", "onlink": True}
    return [
        (rtnetlink.address_add(ifindex, "172.16.0.0/32"), rtnetlink.RTM_NEWADDR),
        (rtnetlink.nexthop_add(1, **hop), rtnetlink.RTM_NEWNEXTHOP),  # type: ignore[arg-type]
        (rtnetlink.neighbour_add(ifindex, "172.16.1.0", MAC), rtnetlink.RTM_NEWNEIGH),
        (rtnetlink.neighbour_add(ifindex, "fd16::", MAC), rtnetlink.RTM_NEWNEIGH),
        (rtnetlink.route_add("172.16.1.0/24", nexthop_id=1), rtnetlink.RTM_NEWROUTE),
        (rtnetlink.route_add("fd16::/64", ifindex=ifindex), rtnetlink.RTM_NEWROUTE),
        (rtnetlink.rule_add(rtnetlink.AF_INET, 100, 100), rtnetlink.RTM_NEWRULE),
        (rtnetlink.route_delete("172.16.1.0/24"), rtnetlink.RTM_DELROUTE),
        (rtnetlink.route_delete("fd16::/64"), rtnetlink.RTM_DELROUTE),
        (rtnetlink.nexthop_delete(1), rtnetlink.RTM_DELNEXTHOP),
        (rtnetlink.rule_delete(rtnetlink.AF_INET, 100, 100), rtnetlink.RTM_DELRULE),
        (rtnetlink.address_delete(ifindex, "172.16.0.0/32"), rtnetlink.RTM_DELADDR),
    ]


def test_what_a_request_causes_names_the_socket_it_came_from(netns: str, listener: socket.socket) -> None:
    (link,) = [entry for entry in ip_json(netns, "link show") if entry["ifname"] == "vx0"]
    asking = NetlinkSocket(netns)
    try:
        for request, kind in requests(link["ifindex"]):
            heard(listener)
            (answer,) = asking.request([request])
            assert answer.errno == 0, (request, answer)
            messages = heard(listener)
            assert (kind, asking.port) in {(message.kind, message.port) for message in messages}
            assert {message.port for message in messages} <= {asking.port, NOBODY}
    finally:
        asking.close()


def test_a_forwarding_entry_names_nobody(netns: str, listener: socket.socket) -> None:
    (link,) = [entry for entry in ip_json(netns, "link show") if entry["ifname"] == "vx0"]
    asking = NetlinkSocket(netns)
    try:
        heard(listener)
        asking.request([rtnetlink.fdb_add(link["ifindex"], MAC, "10.0.0.2")])
        assert {(message.kind, message.port) for message in heard(listener)} == {(rtnetlink.RTM_NEWNEIGH, NOBODY)}
    finally:
        asking.close()


def test_all_events_of_one_transaction_name_the_socket_it_came_from(netns: str) -> None:
    listener, asking = listen(netns, NETLINK_NETFILTER, (NFNLGRP_NFTABLES,)), NetlinkSocket(netns, NETLINK_NETFILTER)
    try:
        elements = [nftables.element_add("inet", "t", "s", f"10.0.{n // 250}.{n % 250}") for n in range(500)]
        begin, end = (nftables.batch_edge(kind) for kind in (nftables.BATCH_BEGIN, nftables.BATCH_END))
        assert asking.batch(begin, elements, end) == {}
        messages = heard(listener)
        assert len(messages) > len(elements)
        assert {message.port for message in messages} == {asking.port}
    finally:
        listener.close()
        asking.close()
