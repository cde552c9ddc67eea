"""A directory of /proc/sys/net that was opened inside of a namespace goes on to show that namespace from outside.

Relied on by ``muslin.kernel.sysctl.SysctlDirectory``, which opens it in a thread that ends at once.
"""

from __future__ import annotations

import os
import threading

import pytest

from muslin.kernel import netns as netns_door
from tests.assumptions.room import NEEDS_ROOT, Room, inside, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]


def read(directory: int) -> str:
    fd = os.open("ip_default_ttl", os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 100).decode().strip()
    finally:
        os.close(fd)


def write(directory: int, value: str) -> None:
    fd = os.open("ip_default_ttl", os.O_WRONLY, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def test_it_reads_and_writes_there_from_any_thread_outside(room: Room) -> None:
    one, other = room.netns("one"), room.netns("other")
    inside(one, "sysctl", "-q", "-w", "net.ipv4.ip_default_ttl=11")
    inside(other, "sysctl", "-q", "-w", "net.ipv4.ip_default_ttl=22")
    flags = os.O_RDONLY | os.O_DIRECTORY
    directories = [netns_door.call_in(netns, lambda: os.open("/proc/sys/net/ipv4", flags)) for netns in (one, other)]
    try:
        assert [read(directory) for directory in directories] == ["11", "22"]
        thread = threading.Thread(target=write, args=(directories[0], "33"))
        thread.start()
        thread.join()
    finally:
        for directory in directories:
            os.close(directory)
    assert inside(one, "sysctl", "-n", "net.ipv4.ip_default_ttl").strip() == "33"
    assert inside(other, "sysctl", "-n", "net.ipv4.ip_default_ttl").strip() == "22"
