"""Hear that something changed: hints from the kernel, never the truth.

Theory of operation: sockets of their own, one a namespace and protocol, join the kernel's multicast groups. Each event
becomes a ``Hint``: which object it is about, as it was said to be then, and whether it went. It tells whether a look is
worth its while and never what to do: whoever acts looks first. What cannot be told, above all when the kernel had to
drop events (ENOBUFS), is a hint without an object: look at everything. So nothing can be missed.

* **Our own doing is left out.** An event names the socket of the request that caused it (nlmsg_pid), and our own
  sockets are known (``netlink.OwnPorts``); the header is enough to pass over it. Two kinds name none: entries of a
  VXLAN device's forwarding table (vxlan_fdb_notify, drivers/net/vxlan), and what the ``nft`` program did for us.
* **A link's figures are no change.** An event of a link comes for much that no object holds; only what differs from
  the link as it was known is passed on.
* **A crowd is heard by its end.** A container that comes causes twenty events. Of links whose names begin as ``crowd``
  says, just the last event of a bunch is understood. Routes of the local table, which the kernel keeps for each
  address, are not told at all.
* What the kernel learned by itself about a neighbour is told as the end of what somebody had entered there.
* Of settings below /proc/sys the kernel tells forwarding and reverse path filtering alone (struct netconfmsg).
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    NetlinkSocket,
    OwnPorts,
    open_socket,
)
from muslin.kernel.records import is_learned, link_of, object_of, settings_of
from muslin.model.kernel import TABLE_LOCAL, AnyObject, Link, NftTable
from muslin.wire import netlink as wire
from muslin.wire import nftables, rtnetlink
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import LinkRecord, NetconfRecord

WATCH_BUFFER_BYTES = 32 << 20
# uapi/linux/rtnetlink.h, enum rtnetlink_groups: link, neigh, IPv4 address, route and rule, IPv6 ones, netconf of both,
# nexthop
RTNETLINK_GROUPS = (1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32)
NFNLGRP_NFTABLES = 7  # uapi/linux/netfilter/nfnetlink.h
REMOVALS = {
    rtnetlink.RTM_DELADDR,
    rtnetlink.RTM_DELLINK,
    rtnetlink.RTM_DELNEIGH,
    rtnetlink.RTM_DELNEXTHOP,
    rtnetlink.RTM_DELROUTE,
    rtnetlink.RTM_DELRULE,
}
LINK_KINDS = (rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK)
LINK_NUMBER = slice(4, 8)  # struct ifinfomsg, ifi_index
LINK_NAME_AT = (
    20  # behind it, a first attribute's head: rtnl_fill_ifinfo (net/core/rtnetlink.c) begins with IFLA_IFNAME
)
ROUTE_KINDS = (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE)
ROUTE_TABLE_AT = 4  # struct rtmsg, rtm_table
RECEIVE_BYTES = 1 << 16
DATAGRAMS_AT_ONCE = 10_000
"""So that a flood, such as a routing daemon that fills its table, keeps nobody who has other work to do (0.1 s)."""


class Hint(NamedTuple):
    """Something has changed in ``netns``: ``object`` came, became so or, if ``removed``, went; None: who knows what.

    Of a table of nftables it is said that something in it changed: its text is not told.
    """

    netns: str
    object: AnyObject | None
    removed: bool = False


class _Ear:
    """One socket in one namespace, and what it takes to understand what it hears."""

    def __init__(self, netns: str, protocol: int, groups: tuple[int, ...], own: set[int]) -> None:
        self.netns, self.own = netns, own
        self.socket = open_socket(netns, protocol)
        with contextlib.suppress(PermissionError):
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, WATCH_BUFFER_BYTES)
        for group in groups:
            with contextlib.suppress(OSError):  # a group that this kernel does not know has no events either
                self.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self.socket.setblocking(False)
        self._has_missed_some = False

    def hear(self) -> Iterator[Hint]:
        """What waits, as much of it as is heard at once."""
        buffer, own, receive = bytearray(RECEIVE_BYTES), self.own, self.socket.recv_into
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                size = receive(buffer)
            except BlockingIOError:
                if self._has_missed_some:
                    self._has_missed_some = False
                    self.recover()
                    # The loss is told once, at its begin, and goes on until the last that was kept is read (CONGESTED,
                    # net/netlink/af_netlink.c).
                    yield Hint(self.netns, None)
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._has_missed_some = True
                yield Hint(self.netns, None)
                continue
            # The messages of one datagram have one cause: a request, or a transaction of nftables.
            if size < wire.MESSAGE_HEADER_BYTES or wire.read_port(buffer) not in own:
                yield from self._parse(bytes(memoryview(buffer)[:size]))
        yield from self.conclude()

    def _parse(self, datagram: bytes) -> Iterator[Hint]:
        try:
            for message in wire.iter_messages(datagram):
                yield from self.understand(message)
        except ValueError:  # a message that is none
            yield Hint(self.netns, None)

    def understand(self, message: Message) -> Iterator[Hint]:
        """The hints that an event of somebody else is worth."""
        raise NotImplementedError

    def conclude(self) -> Iterator[Hint]:
        """What was put off until all that waited was heard."""
        return iter(())

    def recover(self) -> None:
        """Events were lost, and those that came before and after have been heard."""


class _RouteEar(_Ear):
    """Links, addresses, routes, next hops, rules, neighbours, forwarding entries, settings."""

    def __init__(self, netns: str, own: set[int], crowd: tuple[str, ...] = ()) -> None:
        super().__init__(netns, socket.NETLINK_ROUTE, RTNETLINK_GROUPS, own)
        self._crowd = tuple(name.encode() for name in crowd)
        self._crowded: dict[int, Message] = {}
        """The last event of each link of the crowd, by its number."""
        self._names: dict[int, str] = {}
        self._links: dict[int, Link] = {}
        self.recover()

    def recover(self) -> None:
        """Learn all links by a question of its own; those that went keep their names, as their addresses go later."""
        conversation = NetlinkSocket(self.netns)
        try:
            records = [rtnetlink.parse_record(message) for message in conversation.dump(rtnetlink.link_dump())]
        finally:
            conversation.close()
        links = [record for record in records if isinstance(record, LinkRecord)]
        self._names |= {record.ifindex: record.name for record in links}
        self._links = {record.ifindex: link_of(self.netns, record, self._names) for record in links}

    def understand(self, message: Message) -> Iterator[Hint]:
        """See ``_Ear``."""
        payload = message.payload
        if message.kind in LINK_KINDS and self._crowd and payload.startswith(self._crowd, LINK_NAME_AT):
            if payload[0] != rtnetlink.AF_BRIDGE:  # that a port learns or forwards is told by events of its own
                number = int.from_bytes(payload[LINK_NUMBER], sys.byteorder)
                self._names[number] = payload[LINK_NAME_AT : payload.index(0, LINK_NAME_AT)].decode()
                self._crowded[number] = message
            return
        if message.kind in ROUTE_KINDS and payload[ROUTE_TABLE_AT] == TABLE_LOCAL:
            return
        record = rtnetlink.parse_record(message)
        removed = message.kind in REMOVALS
        if isinstance(record, LinkRecord):
            yield from self._link(record, removed)
        elif isinstance(record, NetconfRecord):
            yield from (Hint(self.netns, setting) for setting in settings_of(self.netns, record, self._names))
        elif record is not None and (obj := object_of(self.netns, record, self._names)) is not None:
            yield Hint(self.netns, obj, removed or is_learned(record))

    def conclude(self) -> Iterator[Hint]:
        """See ``_Ear``: what became of each link of the crowd."""
        last, self._crowded = self._crowded, {}
        for message in last.values():
            try:
                record = rtnetlink.parse_record(message)
            except ValueError:  # as in _parse
                yield Hint(self.netns, None)
                continue
            if isinstance(record, LinkRecord):
                removed = message.kind in REMOVALS
                yield Hint(self.netns, link_of(self.netns, record, self._names), removed)
                if removed:  # of a crowd the names of those that went would become too many
                    self._names.pop(record.ifindex, None)

    def _link(self, record: LinkRecord, removed: bool) -> Iterator[Hint]:
        before = self._links.pop(record.ifindex, None)
        if removed:
            yield Hint(self.netns, before or link_of(self.netns, record, self._names), removed=True)
            return
        self._names[record.ifindex] = record.name
        link = self._links[record.ifindex] = link_of(self.netns, record, self._names)
        if before is not None and before.name != link.name:
            yield Hint(self.netns, before, removed=True)
        if before != link:
            yield Hint(self.netns, link)


class _FilterEar(_Ear):
    """Tables of nftables."""

    def __init__(self, netns: str, own: set[int]) -> None:
        super().__init__(netns, NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), own)

    def understand(self, message: Message) -> Iterator[Hint]:
        """See ``_Ear``."""
        event = nftables.parse_event(message)
        if event is not None:
            table = NftTable(netns=self.netns, family=event.family, name=event.table, text="")  # type: ignore[arg-type]
            yield Hint(self.netns, table, event.removed)


class Watch:
    """Watches namespaces; ``fileno`` is readable when a hint waits (for select, poll or an event loop).

    ``own`` are the sockets whose doing is left out: those of a kernel (``LinuxKernel.ports``); ``crowd`` says how the
    names of links begin that come and go in crowds.
    """

    def __init__(
        self, netns_names: tuple[str, ...] = (), own: OwnPorts | None = None, crowd: tuple[str, ...] = ()
    ) -> None:
        self._poll = select.epoll()
        self._own, self._crowd = own or OwnPorts(), crowd
        self._ears: dict[int, _Ear] = {}
        for netns in netns_names:
            self.add(netns)

    def add(self, netns: str) -> None:
        """Watch one more namespace; FileNotFoundError when there is none of this name."""
        inode = netns_door.inode_of(netns)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such network namespace", netns)
        ears = (
            _RouteEar(netns, self._own.of(inode, socket.NETLINK_ROUTE), self._crowd),
            _FilterEar(netns, self._own.of(inode, NETLINK_NETFILTER)),
        )
        for ear in ears:
            self._ears[ear.socket.fileno()] = ear
            self._poll.register(ear.socket.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._poll.fileno()

    def read(self, timeout_s: float = 0.0) -> list[Hint]:
        """The hints that wait, each once; none when nothing came within ``timeout_s`` seconds, or only our own doing.

        ``fileno`` stays readable when there are more than are heard at once.
        """
        return list(dict.fromkeys(hint for fd, _ in self._poll.poll(timeout_s) for hint in self._ears[fd].hear()))

    def close(self) -> None:
        """Stop watching."""
        for ear in self._ears.values():
            ear.socket.close()
        self._ears = {}
        self._poll.close()
