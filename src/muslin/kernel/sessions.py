"""Open doors, one set a namespace, kept for as long as the namespace lives.

Theory of operation: opening a socket in a namespace costs a thread (0.1 ms), so each is opened once, on first use.
A namespace that was deleted and made again under its name is another one: the inode tells, and the doors are opened
anew. Interface numbers are looked up from a table that a dump fills; a name that is not in it is asked for by itself,
as a node may have thousands of links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket, OwnPorts
from muslin.kernel.removal import LinkRemover
from muslin.kernel.sysctl import SysctlDirectory
from muslin.model.kernel import Key
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord


class Session:
    """The doors of one namespace."""

    def __init__(self, netns: str, inode: int, ports: OwnPorts | None = None, *, removes_quickly: bool = False) -> None:
        self.removes_quickly = removes_quickly
        self.netns = netns
        self.inode = inode
        self._ports = ports or OwnPorts()
        self.netlink = self._open(socket.NETLINK_ROUTE)
        self._netfilter: NetlinkSocket | None = None
        self._sysctl: SysctlDirectory | None = None
        self._remover: LinkRemover | None = None
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

    @property
    def remover(self) -> LinkRemover:
        """Who removes links without waiting, made on first use."""
        if self._remover is None:
            self._remover = LinkRemover(self.netns, self._ports.of(self.inode, socket.NETLINK_ROUTE))
        return self._remover

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

    def links_called(self, names: Iterable[str]) -> list[LinkRecord]:
        """The links of these names that there are, fresh, each asked for by itself; their numbers are remembered."""
        found = []
        for name in names:
            self._ifindex.pop(name, None)
            with contextlib.suppress(OSError):
                found.append(self._ask(name))
        return found

    def ifindex(self, link: str) -> int:
        """The number of a link; OSError ENODEV when there is none of this name."""
        return self._ifindex[link] if link in self._ifindex else self._ask(link).ifindex

    def name_of(self, ifindex: int) -> str:
        """The name of the link of this number, "" when there is none."""
        known = next((name for name, number in self._ifindex.items() if number == ifindex), None)
        try:
            return known or self._ask(ifindex).name
        except OSError:
            return ""

    def _ask(self, device: str | int) -> LinkRecord:
        """The link of a name or a number; OSError ENODEV, naming it, when there is none."""
        try:
            messages = self.netlink.ask(rtnetlink.link_get(device))
        except (OSError, ValueError):  # what is no name of a link is the name of none
            messages = []
        for message in messages:
            if isinstance(record := rtnetlink.parse_record(message), LinkRecord):
                self._ifindex[record.name] = record.ifindex
                return record
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), device)

    def forget_links(self) -> None:
        """Numbers may have changed: look them up again."""
        self._ifindex = {}

    def learn_link(self, name: str, ifindex: int) -> None:
        """A new link has this name, and this number, 0 for one that has to be asked for."""
        self._ifindex.pop(name, None)
        if ifindex:
            self._ifindex[name] = ifindex

    def close(self) -> None:
        """Close all doors. What they did is ours all the same: their ports stay known, and are random numbers."""
        self.netlink.close()
        if self._netfilter is not None:
            self._netfilter.close()
        if self._sysctl is not None:
            self._sysctl.close()
        if self._remover is not None:
            self._remover.close()


class Sessions:
    """The doors of all namespaces. ``removes_quickly``: a removal of links ends when they are out of sight."""

    def __init__(self, ports: OwnPorts | None = None, *, removes_quickly: bool = False) -> None:
        self._removes_quickly = removes_quickly
        self.ports = ports or OwnPorts()
        self._open: dict[str, Session] = {}

    def get(self, netns: str) -> Session:
        """The doors of ``netns``; FileNotFoundError when there is no such namespace."""
        session = self._open.get(netns)
        if session is not None and not netns:  # nobody else can be called what this process lives in
            return session
        inode = netns_door.inode_of(netns)
        if inode is None:
            self.forget(netns)
            raise FileNotFoundError(errno.ENOENT, "no such network namespace", netns)
        if session is None or session.inode != inode:
            self.forget(netns)
            session = Session(netns, inode, self.ports, removes_quickly=self._removes_quickly)
            self._open[netns] = session
        return session

    def forget_links(self) -> None:
        """Links came or went, perhaps in several namespaces at once: look their numbers up again."""
        for session in self._open.values():
            session.forget_links()

    def learn(self, made: Iterable[Key], record: LinkRecord | None) -> None:
        """Links of these keys came, a veth's two ends or one: whatever had their names before has gone.

        ``record`` is the first of them, where it is known; of a veth it names the number of the other end.
        """
        numbers = (record.ifindex, record.peer_ifindex) if record else (0, 0)
        for (_, netns, name), number in zip(made, numbers, strict=False):
            if session := self._open.get(str(netns)):
                session.learn_link(str(name), number)

    def forget(self, netns: str) -> None:
        """Close the doors of a namespace, so that it can die."""
        if session := self._open.pop(netns, None):
            session.close()

    def close(self) -> None:
        """Close everything."""
        for netns in list(self._open):
            self.forget(netns)
