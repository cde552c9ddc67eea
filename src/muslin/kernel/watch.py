"""Hear that something changed: hints from the kernel, never the truth.

Theory of operation: sockets of their own, one a namespace and protocol, join the kernel's multicast groups. What an
event says is thrown away; that it came says which namespace to look at again. When the kernel had to drop events
(ENOBUFS), the hint is the same: look again. So nothing can be missed, at worst a look is made in vain.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket

from muslin.kernel.netlink import SO_RCVBUFFORCE, SOL_NETLINK, open_socket

WATCH_BUFFER_BYTES = 32 << 20
NETLINK_ADD_MEMBERSHIP = 1
# uapi/linux/rtnetlink.h, enum rtnetlink_groups: link, neigh, IPv4 address, route and rule, IPv6 ones, nexthop
RTNETLINK_GROUPS = (1, 3, 5, 7, 8, 9, 11, 19, 32)
NETLINK_NETFILTER = 12  # uapi/linux/netlink.h
NFNLGRP_NFTABLES = 7  # uapi/linux/netfilter/nfnetlink.h


class Watch:
    """Watches namespaces; ``fileno`` is readable when a hint waits (for select, poll or an event loop)."""

    def __init__(self, netns_names: tuple[str, ...] = ()) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, tuple[str, socket.socket]] = {}
        for netns in netns_names:
            self.add(netns)

    def add(self, netns: str) -> None:
        """Watch one more namespace; FileNotFoundError when there is none of this name."""
        for protocol, groups in (
            (socket.NETLINK_ROUTE, RTNETLINK_GROUPS),
            (NETLINK_NETFILTER, (NFNLGRP_NFTABLES,)),
        ):
            opened = open_socket(netns, protocol)
            with contextlib.suppress(PermissionError):
                opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, WATCH_BUFFER_BYTES)
            for group in groups:
                with contextlib.suppress(OSError):  # a group that this kernel does not know has no events either
                    opened.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            opened.setblocking(False)
            self._sockets[opened.fileno()] = (netns, opened)
            self._poll.register(opened.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._poll.fileno()

    def read(self, timeout_s: float = 0.0) -> set[str]:
        """The namespaces to look at again; empty when nothing came within ``timeout_s`` seconds."""
        hints = set()
        for fd, _ in self._poll.poll(timeout_s):
            netns, opened = self._sockets[fd]
            if self._drain(opened):
                hints.add(netns)
        return hints

    @staticmethod
    def _drain(opened: socket.socket) -> bool:
        came = False
        while True:
            try:
                opened.recv(1 << 16)
            except BlockingIOError:
                return came
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            came = True

    def close(self) -> None:
        """Stop watching."""
        for _, opened in self._sockets.values():
            opened.close()
        self._sockets = {}
        self._poll.close()
