"""Removing links without waiting until the kernel has forgotten them.

Theory of operation: RTM_DELLINK takes a link off its namespace at once, tells so by an event, and answers only after
an RCU barrier (netdev_run_todo, net/core/dev.c), some 20 ms later. A ``LinkRemover`` sends the message from a thread of
its own and returns at the event: then the link has no name and no port any more, and neither has a veth's other end.
Several links go as one, by a group number that is theirs for the moment, in the time of one.

There are ``THREADS`` at most; a removal that finds them all busy waits for the first to come free. ``close`` waits for
all of them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import queue
import select
import socket
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from muslin.kernel.netlink import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, Answer, NetlinkSocket, open_socket
from muslin.wire import netlink as wire
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord, Request

THREADS = 16
RECEIVE_BYTES = 1 << 16
RTNLGRP_LINK = 1  # uapi/linux/rtnetlink.h
FIRST_GROUP = 0x6D750000
"""Above the numbers that people give to groups of links (ip-link(8))."""
LOOK_AGAIN_S = 0.02
"""Between looks at whether the kernel has answered, where no event says that a link went."""


class LinkRemover:
    """Removes links of one namespace; ``ports`` learns of the sockets that do it (``netlink.OwnPorts``)."""

    def __init__(self, netns: str, ports: set[int]) -> None:
        self._netns, self._ports = netns, ports
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="removal")
        self._groups = itertools.count(FIRST_GROUP)
        self._busy: set[Future[Answer]] = set()
        self._conversations: queue.SimpleQueue[NetlinkSocket] = queue.SimpleQueue()

    def remove(self, ifindexes: Sequence[int]) -> list[Answer]:
        """Remove these links; one answer each, as soon as nobody can see it any more or the kernel refuses."""
        answers = dict.fromkeys(ifindexes, Answer(0))
        request = rtnetlink.link_delete(ifindexes[0])
        if len(answers) > 1:
            group = next(self._groups)
            request = rtnetlink.link_group_delete(group)
            conversation = self._take()
            joined = conversation.request([rtnetlink.link_set(ifindex, group=group) for ifindex in answers])
            self._conversations.put(conversation)
            answers = dict(zip(answers, joined, strict=True))
        members = {ifindex for ifindex, answer in answers.items() if answer.errno == 0}
        if members:
            refusal = self._send_and_watch(request, members)
            answers |= dict.fromkeys(members, refusal)
        return [answers[ifindex] for ifindex in ifindexes]

    def close(self) -> None:
        """Wait for what is under way, and let go of everything."""
        self._threads.shutdown()
        while not self._conversations.empty():
            self._conversations.get().close()

    def _send_and_watch(self, request: Request, pending: set[int]) -> Answer:
        """The kernel's answer, or that all is well once the last of these links is seen to go."""
        if len(self._busy) >= THREADS:
            self._busy = wait(self._busy, return_when=FIRST_COMPLETED).not_done
        left = set(pending)
        with contextlib.closing(open_socket(self._netns)) as events:
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
            try:
                future = self._threads.submit(self._send, request)
            except RuntimeError as error:  # no thread can be had
                raise OSError(errno.EAGAIN, str(error)) from error
            while left and not future.done():
                if select.select([events], [], [], LOOK_AGAIN_S)[0]:
                    left -= _removed(events)
        if future.done():
            return future.result()
        self._busy.add(future)
        return Answer(0)

    def _send(self, request: Request) -> Answer:
        conversation = self._take()
        try:
            return conversation.request([request])[0]
        finally:
            self._conversations.put(conversation)

    def _take(self) -> NetlinkSocket:
        """A conversation that nobody uses."""
        try:
            return self._conversations.get_nowait()
        except queue.Empty:
            conversation = NetlinkSocket(self._netns)
            self._ports.add(conversation.port)
            return conversation


def _removed(events: socket.socket) -> set[int]:
    """The numbers of the links whose end the next events tell; none when the kernel had to drop some (ENOBUFS)."""
    with contextlib.suppress(OSError):
        messages = wire.iter_messages(events.recv(RECEIVE_BYTES))
        ends = (rtnetlink.parse_record(message) for message in messages if message.kind == rtnetlink.RTM_DELLINK)
        return {record.ifindex for record in ends if isinstance(record, LinkRecord)}
    return set()
