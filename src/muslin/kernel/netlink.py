"""The door to rtnetlink: the only place that opens AF_NETLINK sockets.

Theory of operation: a ``NetlinkSocket`` is opened inside a namespace and belongs to it for good. ``request`` packs
many messages into few sends and returns the kernel's answer to each, in order, so that one bad message costs nobody
else anything. ``dump`` returns all answers to a question; a dump that the kernel marks as interrupted
(NLM_F_DUMP_INTR: the table changed meanwhile) is asked again here and nowhere else, so an incomplete table never
gets out. Events have sockets of their own (``kernel.watch``): a burst of events must not crowd out an answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

import msgspec

from muslin.kernel import netns as netns_door
from muslin.wire import netlink as wire
from muslin.wire.rtnetlink import Request

# uapi/linux/netlink.h, uapi/asm-generic/socket.h; Python 3.11 has no names for these
SOL_NETLINK = 270
NETLINK_NETFILTER = 12
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

BUFFER_BYTES = 4 << 20
RECEIVE_BYTES = 1 << 18  # larger than any datagram that a dump returns (NLMSG_GOODSIZE grows to 32 KiB)
MESSAGES_PER_SEND = 128  # the acknowledgements of one send must fit into the receive buffer
DUMP_ATTEMPTS = 20


class Answer(msgspec.Struct, frozen=True):
    """The kernel's answer to one operation: ``errno`` 0 when done, and its own words where it has some."""

    errno: int
    text: str = ""
    previous: str | None = None
    """For a setting: the value that was overwritten."""
    echo: wire.Message | None = None
    """What came to be, where the request asked for it (NLM_F_ECHO) and the kernel knows how to tell."""


def open_socket(netns: str, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """A netlink socket of this protocol inside of ``netns``, with large buffers and full error texts."""

    def connect() -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        opened.bind((0, 0))
        return opened

    opened = netns_door.call_in(netns, connect)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:  # in a user namespace: as much as the host allows
            opened.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        with contextlib.suppress(OSError):  # younger than the oldest kernels we run on; each only adds detail
            opened.setsockopt(SOL_NETLINK, option, 1)
    return opened


class OwnPorts:
    """The addresses (port ids) of our sockets: events that a request caused name the socket that it came from.

    A port id belongs to one socket within one namespace and protocol only.
    """

    def __init__(self) -> None:
        self._ports: dict[tuple[int, int], set[int]] = {}

    def of(self, inode: int, protocol: int) -> set[int]:
        """Those in the namespace of this inode: the set itself, which changes when sockets come and go."""
        return self._ports.setdefault((inode, protocol), set())


class NetlinkSocket:
    """A conversation with the kernel about one namespace."""

    def __init__(self, netns: str, protocol: int = socket.NETLINK_ROUTE) -> None:
        self.netns = netns
        self._socket = open_socket(netns, protocol)
        self._sequence = 0
        # One for all: taken anew, each of this size costs three calls of the system (mmap, mremap, munmap).
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))

    def _receive(self) -> memoryview:
        """One datagram; good until the next."""
        return self._buffer[: self._socket.recv_into(self._buffer)]

    @property
    def port(self) -> int:
        """The port id of the socket (netlink(7), ``nl_pid``)."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()

    def request(self, requests: Sequence[Request]) -> list[Answer]:
        """Send all messages, each to be acknowledged; the answers, in order. OSError only for the socket itself."""
        answers: list[Answer] = []
        for start in range(0, len(requests), MESSAGES_PER_SEND):
            answers += self._send_batch(requests[start : start + MESSAGES_PER_SEND])
        return answers

    def _send_batch(self, batch: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(batch)
        self._socket.send(
            b"".join(
                wire.encode_message(
                    request.kind,
                    request.flags | wire.NLM_F_REQUEST | wire.NLM_F_ACK,
                    first + index,
                    request.payload,
                )
                for index, request in enumerate(batch)
            )
        )
        answers: dict[int, Answer] = {}
        echoes: dict[int, wire.Message] = {}
        while len(answers) < len(batch):
            for message in wire.iter_messages(self._receive()):
                if message.sequence < first:
                    continue
                if message.kind == wire.NLMSG_ERROR:
                    number, text = wire.parse_error(message)
                    answers[message.sequence] = Answer(number, text or "", echo=echoes.get(message.sequence))
                else:
                    echoes[message.sequence] = message
        return [answers[first + index] for index in range(len(batch))]

    def batch(self, begin: Request, requests: Sequence[Request], end: Request) -> dict[int, Answer]:
        """Send an nfnetlink batch, which is taken whole or not at all; the refused ones by place, none when taken."""
        first = self._sequence + 1
        self._sequence += len(requests) + 2
        messages = [begin, *requests, end]
        # Refusals are reported in any case. The one answer that is asked for, of the last change, comes after them.
        flags = [0] * len(requests) + [wire.NLM_F_ACK, 0]
        self._socket.send(
            b"".join(
                wire.encode_message(
                    request.kind, request.flags | flag | wire.NLM_F_REQUEST, first + place, request.payload
                )
                for place, (request, flag) in enumerate(zip(messages, flags, strict=True))
            )
        )
        failures: dict[int, Answer] = {}
        last = first + len(requests)
        while True:
            for message in wire.iter_messages(self._receive()):
                if message.kind != wire.NLMSG_ERROR or message.sequence < first:
                    continue
                number, text = wire.parse_error(message)
                if number and message.sequence == first:  # no nftables here, or no right to it: nothing else is said
                    return dict.fromkeys(range(len(requests)), Answer(number, text or ""))
                if number:
                    failures[message.sequence - first - 1] = Answer(number, text or "")
                if message.sequence >= last:
                    return failures

    def ask(self, request: Request) -> list[wire.Message]:
        """The messages that answer one question about one object; OSError when the kernel refuses."""
        return self._converse(request, wire.NLM_F_ACK)[0]

    def ask_each(self, requests: Sequence[Request]) -> list[wire.Message | None]:
        """The one message that answers each of many questions, sent together; None where the kernel refuses one.

        Fewer at a time than ``MESSAGES_PER_SEND``: that many answers fit into the receive buffer.
        """
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(
            b"".join(
                wire.encode_message(one.kind, one.flags | wire.NLM_F_REQUEST, first + place, one.payload)
                for place, one in enumerate(requests)
            )
        )
        answers: dict[int, wire.Message | None] = {}
        while len(answers) < len(requests):
            for message in wire.iter_messages(self._receive()):
                if message.sequence >= first:
                    answers[message.sequence] = None if message.kind == wire.NLMSG_ERROR else message
        return [answers[first + place] for place in range(len(requests))]

    def dump(self, request: Request) -> list[wire.Message]:
        """All messages that answer ``request``; OSError with the kernel's errno when it refuses."""
        for _ in range(DUMP_ATTEMPTS):
            messages, interrupted = self._converse(request, wire.NLM_F_DUMP)
            if not interrupted:
                return messages
        raise OSError(errno.EAGAIN, f"the table changed during each of {DUMP_ATTEMPTS} reads", self.netns)

    def _converse(self, request: Request, flags: int) -> tuple[list[wire.Message], bool]:
        self._sequence += 1
        flags |= request.flags | wire.NLM_F_REQUEST
        self._socket.send(wire.encode_message(request.kind, flags, self._sequence, request.payload))
        messages: list[wire.Message] = []
        interrupted = False
        while True:
            for message in wire.iter_messages(self._receive()):
                if message.sequence != self._sequence:
                    continue
                interrupted |= bool(message.flags & wire.NLM_F_DUMP_INTR)
                if message.kind == wire.NLMSG_DONE:
                    return messages, interrupted
                if message.kind == wire.NLMSG_ERROR:
                    number, text = wire.parse_error(message)
                    if number == 0:
                        return messages, interrupted
                    raise OSError(number, text or os.strerror(number), self.netns)
                messages.append(message)
