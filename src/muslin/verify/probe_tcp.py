"""The TCP exchange: connect, say who asks, hear which address was seen.

Theory of operation: the listener reports the peer's address and port that accept(2) gave it; the client
compares with its own getsockname(2). A connection that never comes about leaves one trace at the destination:
a SYN that arrived stands in its /proc/net/tcp as SYN_RECV until it is given up, which tells a lost SYN from a
lost answer. The client ends its connections with a reset, so that no namespace keeps them in TIME_WAIT.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from functools import partial

from muslin.model.address import Family
from muslin.verify import kernel_errors
from muslin.verify.loop import FAILED, READABLE, WRITABLE
from muslin.verify.payload import (
    ANSWER_BYTES,
    TAG_BYTES,
    Sighting,
    canonical,
    encode_answer,
    encode_tag,
    parse_answer,
    parse_tag,
)
from muslin.verify.probing import Attempt, Probing
from muslin.verify.station import Station

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, no time: socket(7)
_SYN_RECV = "03"  # include/net/tcp_states.h
_PROC_FILE: dict[Family, str] = {4: "tcp", 6: "tcp6"}


class TcpAttempt(Attempt):
    """One connection."""

    protocol = "tcp"
    tries_allowed = 1

    connected = False
    received = b""

    def send(self) -> None:
        """Begin to connect."""
        cell = self.cell
        port = cell.destination.tcp[cell.family].getsockname()[1]
        cell.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        number = cell.tcp.connect_ex((cell.pair.address, port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, "connect")
        self.probing.loop.watch(cell.tcp.fileno(), self.ready, WRITABLE)

    def ready(self, events: int) -> None:
        """Connected, failed, or answered."""
        number = self.cell.tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(number)
        elif self.connected:
            self._read()
        elif events & FAILED:
            # A router's word that does not end the attempt: empty the queue, or epoll reports it for ever.
            kernel_errors.drain(self.cell.tcp, self.cell.family)
        else:
            self._ask()

    def _ask(self) -> None:
        self.connected = True
        try:
            self.cell.tcp.send(encode_tag(self.tag))
        except OSError as error:
            self._fail(error.errno or 0)
            return
        self.probing.loop.change(self.cell.tcp.fileno(), READABLE)

    def _read(self) -> None:
        try:
            data = self.cell.tcp.recv(ANSWER_BYTES)
        except BlockingIOError:
            kernel_errors.drain(self.cell.tcp, self.cell.family)
            return
        except OSError as error:
            self._fail(error.errno or 0)
            return
        self.received += data
        answer = parse_answer(self.received)
        if answer is not None and answer[0] == self.tag:
            self._take(answer[1])
        elif not data:
            self.finish("error", error=kernel_errors.own_error(errno.ECONNRESET))

    def _take(self, sighting: Sighting) -> None:
        self.note_arrival(sighting.source, sighting.destination, None)
        sent, peer = self.cell.tcp.getsockname(), self.cell.tcp.getpeername()
        self.ports = (sent[1], sighting.port)
        self.finish("answered", sent=canonical(sent[0]), answered_from=canonical(peer[0]))

    def _fail(self, number: int) -> None:
        told = [told for _, told in kernel_errors.drain(self.cell.tcp, self.cell.family) if told is not None]
        if told:
            self.finish("error", error=told[-1])
        elif number in (errno.ECONNREFUSED, errno.ECONNRESET):
            self.finish("error", error=kernel_errors.reset_error(self.cell.pair.address))
        else:
            self.finish("error", error=kernel_errors.own_error(number))

    def expire(self) -> None:
        """Nothing came about: look whether the SYN stands at the destination's listener."""
        self._look_for_syn()
        super().expire()

    def _look_for_syn(self) -> None:
        cell = self.cell
        if self.arrived or self.connected or cell.sent is None:
            return
        # The SYNs left earlier than this, and what is half open stays so for a minute.
        table = cell.destination.read(_PROC_FILE[cell.family], max_age_s=self.probing.timeout_s / 2)
        listener_port = cell.destination.tcp[cell.family].getsockname()[1]
        source = (cell.sent, cell.tcp.getsockname()[1])
        if syn_received(table, source, (cell.pair.address, listener_port)):
            self.note_arrival(source[0], cell.pair.address, None)


def syn_received(table: str, source: tuple[str, int], destination: tuple[str, int]) -> bool:
    """Whether a connection is half open in ``/proc/net/tcp`` or ``tcp6``.

    Only the addresses and ports that were sent count. A SYN that NAT has changed cannot be told from that of
    another client, since clients of many namespaces use the same ports; the tagged packets prove NAT.
    """
    wanted = [f"{_hex(address)}:{port:04X}" for address, port in (destination, source)]
    return any(words[1:3] == wanted and words[3] == _SYN_RECV for words in map(str.split, table.splitlines()))


def _hex(address: str) -> str:
    """An address as /proc/net/tcp spells it: 32-bit words in the order of the machine."""
    raw = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    words = (int.from_bytes(raw[start : start + 4], sys.byteorder) for start in range(0, len(raw), 4))
    return "".join(f"{word:08X}" for word in words)


class TcpResponder:
    """Accepts in one namespace and reports whom it saw."""

    def __init__(self, probing: Probing, station: Station) -> None:
        self._probing = probing
        self._station = station
        self._open: dict[int, socket.socket] = {}
        for tcp in station.tcp.values():
            probing.loop.watch(tcp.fileno(), partial(self._accept, tcp))

    def _accept(self, tcp: socket.socket, _: int) -> None:
        while True:
            try:
                connection, sender = tcp.accept()
            except OSError:
                return  # nobody waits, or gave up while waiting
            connection.setblocking(False)
            self._open[connection.fileno()] = connection
            ready = partial(self._answer, connection, sender)
            self._probing.loop.watch(connection.fileno(), ready)
            ready(READABLE)

    def _answer(self, connection: socket.socket, sender: tuple[str, int], _: int) -> None:
        try:
            data = connection.recv(TAG_BYTES)
            tag = parse_tag(data)
            attempt = self._probing.find(tag)
            if tag is not None and attempt is not None and attempt.cell.destination is self._station:
                source, destination = canonical(sender[0]), canonical(connection.getsockname()[0])
                attempt.note_arrival(source, destination, None)
                connection.send(encode_answer(tag, Sighting(source, sender[1], destination, 0, len(data))))
                return  # the client closes, by a reset
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._probing.loop.forget(connection.fileno())
        self._open.pop(connection.fileno(), None)
        connection.close()

    def close(self) -> None:
        """End the connections that are still open."""
        for connection in list(self._open.values()):
            self._close(connection)
