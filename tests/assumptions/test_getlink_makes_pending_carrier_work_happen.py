"""Asking for one link (RTM_GETLINK) acts on its carrier first: a bridge port forwards at once, not within a second.

    a: eth0 ═══ p (a port of br0) :b            Linux 6.4 and later (rtnl_getlink, net/core/rtnetlink.c)

The two ends must have equal numbers to show it: a veth end whose number differs from its peer's counts as urgent
(linkwatch_urgent_event, net/core/link_watch.c) and is acted on soon anyway. In a lab, many are equal.

Relied on by ``muslin.kernel.apply.settle``. A kernel that is older passes no less traffic, only later.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NetlinkSocket
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
FORWARDING = 3  # BR_STATE_FORWARDING, linux/if_bridge.h
ROUNDS = 10


def port_state(netns: str, link: str) -> int:
    """The port's state as the bridge has it, by sysfs, which does not ask rtnetlink."""

    def read() -> int:
        # /sys shows the namespace that it was mounted in, so mount another: in a mount namespace of this thread.
        from muslin.kernel.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unshare

        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("sysfs", "/sys", "sysfs")
        return int(Path(f"/sys/class/net/{link}/brport/state").read_text())

    return netns_door.call_in(netns, read)


def test_a_bridge_port_forwards_as_soon_as_it_was_asked_for(room: Room) -> None:
    far, near = room.netns("a"), room.netns("b")
    ip(near, "link add br0 up type bridge")
    ip(far, "link add filler type bridge")  # so that both ends of a cable have one number, see above
    before = []
    sockets = [NetlinkSocket(near), NetlinkSocket(far)]
    try:
        for number in range(ROUNDS):
            ip(near, f"link add p{number} master br0 type veth peer name e{number} netns {far}")
            ports, ends = (
                [record for message in opened.dump(rtnetlink.link_dump()) if (record := _link(message)) is not None]
                for opened in sockets
            )
            for opened, records, name in ((sockets[0], ports, f"p{number}"), (sockets[1], ends, f"e{number}")):
                (link,) = [record for record in records if record.name == name]
                opened.request([rtnetlink.link_set(link.ifindex, up=True)])
            before.append(port_state(near, f"p{number}"))
            sockets[0].request([rtnetlink.link_get(f"p{number}")])
            assert port_state(near, f"p{number}") == FORWARDING
    finally:
        for opened in sockets:
            opened.close()
    assert any(state != FORWARDING for state in before), "all forwarded without being asked for: the probe saw nothing"


def _link(message: object) -> rtnetlink.LinkRecord | None:
    record = rtnetlink.parse_record(message)  # type: ignore[arg-type]
    return record if isinstance(record, rtnetlink.LinkRecord) else None
