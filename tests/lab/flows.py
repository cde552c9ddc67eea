"""A flow: numbered echo requests from a namespace to an address, so that it is known which of them were lost.

Theory of operation: a request each 10 ms, from a thread, on a raw socket that was opened in the namespace. Each answer
bears its request's number; so a late answer is no loss, nor is what was asked before there was a first answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time

from muslin.kernel import netns as netns_door
from tests.lab.support import wait_until

ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0  # RFC 792
SPACING_S = 0.01
STRAGGLERS_S = 1.0
"""How long answers are waited for after the last request."""


class Flow:
    """Echo requests from a namespace to an address until ``stop``; a context manager that begins with an answer."""

    def __init__(self, netns: str, address: str, spacing_s: float = SPACING_S) -> None:
        self.what = f"{netns} -> {address}"
        self._spacing_s = spacing_s
        self._socket = netns_door.call_in(netns, _icmp_socket)
        self._socket.connect((address, 0))
        self._sent: list[float] = []
        self._answered: set[int] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow")
        self._identity = os.getpid() & 0xFFFF

    def __enter__(self) -> Flow:
        self._thread.start()
        try:
            wait_until(lambda: self._answered, f"{self.what}: a first answer")
        except AssertionError:
            self.stop()
            raise
        # What was asked before there was a way is no loss.
        first = min(self._answered)
        self._answered |= set(range(first))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        due = time.monotonic()
        while not self._ending.is_set():
            if (now := time.monotonic()) >= due:
                due = max(due + self._spacing_s, now)  # a thread that was kept waiting does not catch up in a burst
                self._send(len(self._sent))
            poll.poll(max(due - time.monotonic(), 0.0) * 1000)
            self._receive()
        deadline = time.monotonic() + STRAGGLERS_S
        while len(self._answered) < len(self._sent) and (left_s := deadline - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self._receive()

    def _send(self, number: int) -> None:
        payload = struct.pack("!Q", number)
        header = struct.pack("!BBHHH", ICMP_ECHO, 0, 0, self._identity, number & 0xFFFF)
        checksum = _checksum(header + payload)
        self._sent.append(time.monotonic())
        with contextlib.suppress(OSError):  # no way at this moment: lost
            self._socket.send(header[:2] + struct.pack("!H", checksum) + header[4:] + payload)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet = self._socket.recv(2048)
                message = packet[(packet[0] & 15) * 4 :]
                kind, _, _, identity, _ = struct.unpack_from("!BBHHH", message)
                if kind == ICMP_ECHO_REPLY and identity == self._identity and len(message) == 16:
                    (number,) = struct.unpack_from("!Q", message, 8)
                    self._answered.add(number)

    def stop(self) -> None:
        """Ask no more, wait for the last answers."""
        if self._socket.fileno() >= 0:
            self._ending.set()
            self._thread.join()
            self._socket.close()

    @property
    def sent(self) -> int:
        """How many have been sent so far."""
        return len(self._sent)

    def wait_for(self, more: int) -> None:
        """Return after so many more requests."""
        wanted = self.sent + more
        wait_until(lambda: self.sent >= wanted, f"{self.what}: {more} more requests", 30)

    @property
    def is_answered(self) -> bool:
        """Whether one of the latest ten requests has been answered."""
        return any(number in self._answered for number in range(max(self.sent - 10, 0), self.sent))

    @property
    def lost(self) -> list[int]:
        """The numbers without an answer; call ``stop`` before."""
        return [number for number in range(self.sent) if number not in self._answered]

    @property
    def outage_s(self) -> float:
        """The longest time from a lost request to the next one that was answered; 0 when none was lost."""
        longest, begun = 0.0, None
        for number, at in enumerate(self._sent):
            if number in self._answered:
                longest, begun = max(longest, at - begun if begun is not None else 0.0), None
            elif begun is None:
                begun = at
        return max(longest, self._sent[-1] - begun) if begun is not None else longest

    def assert_no_loss(self, least: int = 0) -> None:
        """Stop; at least so many were sent, and each was answered."""
        self.stop()
        assert self.sent >= least, f"{self.what}: {self.sent} requests are too few to say anything"
        assert not self.lost, f"{self.what}: lost {len(self.lost)} of {self.sent}, {self.outage_s * 1000:.0f} ms long"


def _icmp_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return opened


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
