"""A plain file in /run/netns is not a namespace, and setns(2) refuses it; only a mount of nsfs is one.

Relied on by ``muslin.kernel.netns.inode_of``, which tells them apart by device number, and by clean-up after a crash
between the creation of the file and the mount.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.syscalls import CLONE_NEWNET, MNT_DETACH, setns, umount
from tests.assumptions.room import NEEDS_ROOT, Room, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]


@pytest.fixture
def leftover(room: Room) -> Iterator[Path]:
    netns_door.prepare_directory()
    path = Path(netns_door.path_of(f"{room.prefix}leftover"))
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def test_it_cannot_be_entered_and_lies_on_another_device(room: Room, leftover: Path) -> None:
    real = os.stat(netns_door.path_of(room.netns("real")))
    assert real.st_dev == os.stat("/proc/self/ns/net").st_dev
    assert os.stat(leftover).st_dev != real.st_dev

    def enter() -> None:
        fd = os.open(leftover, os.O_RDONLY)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)

    with pytest.raises(OSError, match=r".") as caught:
        netns_door.in_thread(enter)
    assert caught.value.errno == errno.EINVAL


def test_unmounting_it_is_einval_and_deleting_it_works(leftover: Path) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        umount(str(leftover), MNT_DETACH)
    assert caught.value.errno == errno.EINVAL
    netns_door.delete(leftover.name)
    assert not leftover.exists()
