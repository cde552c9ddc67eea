"""Open doors, one set a namespace, kept for as long as the namespace lives.

Theory of operation: opening a socket in a namespace costs a thread (0.1 ms), so each is opened once, on first use.
A namespace that was deleted and made again under its name is another one: the inode tells, and the doors are opened
anew. Interface numbers are looked up from a table that a dump fills; a name that is not in it causes one more dump.
"""

from __future__ import annotations

import errno
import os
import socket

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, OwnPorts
from muslin.kernel.sysctl import SysctlDirectory
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord


class Session:
    """The doors of one namespace."""

    def __init__(self, netns: str, inode: int, ports: OwnPorts | None = None) -> None:
        self.netns = netns
        self.inode = inode
        self._ports = ports or OwnPorts()
        self.netlink = self._open(socket.NETLINK_ROUTE)
        self._netfilter: NetlinkSocket | None = None
        self._sysctl: SysctlDirectory | None = None
        self._ifindex: dict[str, int] = {}

    @property
    def sysctl(self) -> SysctlDirectory:
        """The settings, opened on first use."""
        if self._sysctl is None:
            self._sysctl = SysctlDirectory(self.netns)
        return self._sysctl

    @property
    def netfilter(self) -> NetlinkSocket:
        """The conversation about nftables, opened on first use."""
        if self._netfilter is None:
            self._netfilter = self._open(NETLINK_NETFILTER)
        return self._netfilter

    def _open(self, protocol: int) -> NetlinkSocket:
        conversation = NetlinkSocket(self.netns, protocol)
        self._ports.of(self.inode, protocol).add(conversation.port)
        return conversation

    def links(self) -> list[LinkRecord]:
        """All links, fresh; their numbers are remembered."""
        records = [rtnetlink.parse_record(message) for message in self.netlink.dump(rtnetlink.link_dump())]
        links = [record for record in records if isinstance(record, LinkRecord)]
        self._ifindex = {link.name: link.ifindex for link in links}
        return links

    def ifindex(self, link: str) -> int:
        """The number of a link; OSError ENODEV when there is none of this name."""
        if link not in self._ifindex:
            self.links()
        try:
            return self._ifindex[link]
        except KeyError:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), link) from None

    def forget_links(self) -> None:
        """Numbers may have changed: look them up again."""
        self._ifindex = {}

    def close(self) -> None:
        """Close all doors. What they did is ours all the same: their ports stay known, and are random numbers."""
        self.netlink.close()
        if self._netfilter is not None:
            self._netfilter.close()
        if self._sysctl is not None:
            self._sysctl.close()


class Sessions:
    """The doors of all namespaces."""

    def __init__(self) -> None:
        self.ports = OwnPorts()
        self._open: dict[str, Session] = {}

    def get(self, netns: str) -> Session:
        """The doors of ``netns``; FileNotFoundError when there is no such namespace."""
        inode = netns_door.inode_of(netns)
        if inode is None:
            self.forget(netns)
            raise FileNotFoundError(errno.ENOENT, "no such network namespace", netns)
        session = self._open.get(netns)
        if session is None or session.inode != inode:
            self.forget(netns)
            session = self._open[netns] = Session(netns, inode, self.ports)
        return session

    def forget_links(self) -> None:
        """Links came or went, perhaps in several namespaces at once: look their numbers up again."""
        for session in self._open.values():
            session.forget_links()

    def forget(self, netns: str) -> None:
        """Close the doors of a namespace, so that it can die."""
        if session := self._open.pop(netns, None):
            session.close()

    def close(self) -> None:
        """Close everything."""
        for netns in list(self._open):
            self.forget(netns)
