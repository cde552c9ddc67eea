"""The door to TUN devices: rtnetlink cannot make them, an ioctl can (Documentation/networking/tuntap.rst).

Theory of operation: a device is made persistent, so that it, its addresses and its routes outlive the program that
carries its packets; that program attaches to it by name later.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from muslin.errors import UnsupportedError
from muslin.kernel import netns as netns_door

TUN_PATH = "/dev/net/tun"
# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("16sH22x")


def check_available() -> None:
    """UnsupportedError, with what would mend it, unless TUN devices can be made by this user."""
    try:
        os.close(os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise UnsupportedError(
            f"{TUN_PATH} does not exist, so step 4's tunnel has no device",
            "load the kernel module: modprobe tun (CONFIG_TUN)",
        ) from None
    except PermissionError:
        raise UnsupportedError(
            f"{TUN_PATH} is closed to this user, so step 4's tunnel has no device",
            f"open it as most distributions do: sudo chmod 0666 {TUN_PATH}",
        ) from None
    except OSError as error:
        raise UnsupportedError(
            f"{TUN_PATH} cannot be opened: {os.strerror(error.errno or 0)}",
            "load the kernel module: modprobe tun (CONFIG_TUN)",
        ) from None


def create(netns: str, name: str) -> None:
    """Make a persistent TUN device; FileExistsError when the name is taken."""

    def make() -> None:
        if name in _link_names():
            raise FileExistsError(errno.EEXIST, "the name is taken", name)
        fd = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), IFF_TUN | IFF_NO_PI))
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
        finally:
            os.close(fd)

    netns_door.call_in(netns, make)


def _link_names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}
