"""What all probes share: the run they belong to, and one exchange under way.

Theory of operation: a ``Probing`` holds the loop, the run's nonce and the cells that are under way; a
responder that receives a tagged packet finds the ``Attempt`` it belongs to here and notes what it saw, which
is how a lost answer is told from a lost request. An ``Attempt`` sends, waits ``timeout_s``, sends once more,
waits again, gives up. TCP is the exception: its kernel repeats the SYN by itself after one second, so it
sends once and waits twice as long. Where a router has said that there is no way, a cell's other attempts are not
repeated: Linux's routers say so five times at once to one source, then once a second (net/ipv4/route.c, ip_error),
and that word is worth more to the next cell.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from muslin.model.address import Family, family_of
from muslin.verify.kernel_errors import TRANSIENT, own_error
from muslin.verify.loop import Loop, Timer
from muslin.verify.matrix import Pair
from muslin.verify.payload import Tag
from muslin.verify.station import Station
from muslin.verify.verdict import ErrorSeen, Exchange, Outcome, Protocol, is_routing_error

MAX_TRIES = 2
Number = TypeVar("Number", int, float)

PROTOCOL_CODES: dict[Protocol, int] = {"icmp": 1, "tcp": 2, "udp": 3, "full-size udp": 4}


class Probing:
    """One run of checks: its loop, its nonce, the time that it waits, and the cells under way by number."""

    def __init__(self, loop: Loop, nonce: bytes, timeout_s: float) -> None:
        self.loop = loop
        self.nonce = nonce
        self.timeout_s = timeout_s
        self.live: dict[int, Cell] = {}
        self._shared: dict[Any, Any] = {}

    def share(self, number: Number) -> Number:
        """One object for equal numbers: a large run keeps hundreds of thousands of them."""
        shared: Number = self._shared.setdefault(number, number)
        return shared

    def find(self, tag: Tag | None) -> Attempt | None:
        """The attempt that a packet belongs to; None for strangers and latecomers."""
        if tag is None or tag.nonce != self.nonce or tag.cell not in self.live:
            return None
        return self.live[tag.cell].attempts.get(tag.protocol)


class Cell:
    """One pair under way: its stations, its client sockets and its attempts by protocol code."""

    def __init__(
        self,
        number: int,
        pair: Pair,
        stations: tuple[Station, Station],
        clients: tuple[socket.socket, socket.socket],
    ) -> None:
        self.number = number
        self.pair = pair
        self.family: Family = family_of(pair.address)
        self.source, self.destination = stations
        self.udp, self.tcp = clients
        self.sent: str | None = None
        self.unconnected: OSError | None = None  # why the UDP socket could not be connected
        self.attempts: dict[int, Attempt] = {}
        self.exchanges: list[Exchange] = []
        self.path_mtu: int | None = None
        self.fresh = True  # young enough for its answers to be still on their way in a healthy network
        self.no_way = False  # a router said so


class Attempt:
    """One exchange under way; a subclass knows how to send it."""

    protocol: ClassVar[Protocol]
    tries_allowed: ClassVar[int] = MAX_TRIES

    def __init__(self, probing: Probing, cell: Cell, done: Callable[[Attempt], None]) -> None:
        self.probing = probing
        self.cell = cell
        self.tries = 0
        self.arrived = False
        self.seen: str | None = None
        self.arrived_at: str | None = None
        self.ports: tuple[int, int] | None = None
        self.ttl: int | None = None
        self.last_error: int | None = None
        self._done = done
        self._timer: Timer | None = None
        self._sent_at = 0.0
        self._ended = False
        cell.attempts[PROTOCOL_CODES[self.protocol]] = self

    @property
    def tag(self) -> Tag:
        """The mark of the present try."""
        return Tag(self.probing.nonce, self.cell.number, PROTOCOL_CODES[self.protocol], self.tries)

    def send(self) -> None:
        """Send one request; OSError is the own kernel's refusal."""
        raise NotImplementedError

    def start(self) -> None:
        """Send (again) and wait."""
        self.tries += 1
        wait_s = self.probing.timeout_s * (1 + MAX_TRIES - self.tries_allowed)
        self._sent_at = self.probing.loop.now()
        self._timer = self.probing.loop.call_later(wait_s, self.expire)
        try:
            self.send()
        except OSError as error:
            self.last_error = error.errno
            if error.errno not in TRANSIENT:
                self.finish("error", error=own_error(error.errno or 0))

    def expire(self) -> None:
        """The time is over: once more, or lost."""
        if self.tries < self.tries_allowed and not self.cell.no_way:
            self.start()
        elif self.last_error is not None:
            self.finish("error", error=own_error(self.last_error))
        else:
            self.finish("lost")

    def note_arrival(self, seen: str, arrived_at: str | None, ttl: int | None) -> None:
        """The destination saw the request."""
        self.arrived, self.seen, self.arrived_at, self.ttl = True, seen, arrived_at, ttl

    def finish(
        self,
        outcome: Outcome,
        *,
        sent: str | None = None,
        answered_from: str | None = None,
        size_bytes: int | None = None,
        error: ErrorSeen | None = None,
    ) -> None:
        """Write down what happened, once."""
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        rtt_s = None
        if outcome == "answered":
            rtt_s = self.probing.share(round(self.probing.loop.now() - self._sent_at, 5))
        if error is not None and is_routing_error(error, self.cell.family):
            self.cell.no_way = True
        sent_port, seen_port = self.ports if self.ports and self.ports[0] != self.ports[1] else (None, None)
        self.cell.exchanges.append(
            Exchange(
                protocol=self.protocol,
                outcome=outcome,
                tries=max(self.tries, 1),
                arrived=self.arrived,
                sent=sent or self.cell.sent,
                seen=self.seen,
                sent_port=sent_port,
                seen_port=seen_port,
                arrived_at=self.arrived_at,
                answered_from=answered_from,
                ttl=self.ttl,
                rtt_s=rtt_s,
                size_bytes=size_bytes,
                error=error,
            )
        )
        self._done(self)
