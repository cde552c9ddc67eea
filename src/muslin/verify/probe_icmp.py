"""The ICMP echo: the kernel answers, raw sockets at both ends watch.

Theory of operation: the source's raw socket sends the request; the destination's raw socket gets a copy of it
before its kernel answers (so the request is seen even when the answer is lost); the source's raw socket gets
the answer, and the errors of routers, which quote our request. One raw socket per namespace and family serves
all cells: requests carry the cell's number in the tag and, for quotes that are cut short, in the sequence
number.
"""

from __future__ import annotations

import socket
import sys
from functools import partial

from muslin.model.address import Family
from muslin.verify.kernel_errors import icmp_error
from muslin.verify.payload import Tag, address_text, canonical, encode_tag, parse_tag
from muslin.verify.probing import PROTOCOL_CODES, Attempt, Probing
from muslin.verify.station import Station
from muslin.wire.icmp import ECHO_REPLY, ECHO_REQUEST, IcmpMessage, encode_echo, parse_icmp, parse_quoted_echo

_BUFFER_BYTES = 2048
_ANCILLARY_BYTES = 256
_CODE = PROTOCOL_CODES["icmp"]
_SEQUENCE_MASK = 0xFFFF


class EchoAttempt(Attempt):
    """One echo request on its way."""

    protocol = "icmp"

    def send(self) -> None:
        """An echo request from the source's raw socket; the kernel chooses the source address."""
        cell = self.cell
        sequence = cell.number & _SEQUENCE_MASK
        packet = encode_echo(cell.family, _identifier(self.probing), sequence, encode_tag(self.tag))
        cell.source.raw[cell.family].sendto(packet, (cell.pair.address, 0))


def _identifier(probing: Probing) -> int:
    return int.from_bytes(probing.nonce[:2], "big")


class EchoObserver:
    """Reads one namespace's raw sockets and tells the attempts what came by."""

    def __init__(self, probing: Probing, station: Station, observers: dict[str, EchoObserver]) -> None:
        self._probing = probing
        self._station = station
        self._observers = observers
        for family, raw in station.raw.items():
            probing.loop.watch(raw.fileno(), partial(self._ready, family))

    def _ready(self, family: Family, _: int) -> None:
        self.read(family)

    def read(self, family: Family) -> None:
        """Take everything that waits."""
        raw = self._station.raw[family]
        take = self._take_ipv4 if family == 4 else self._take_ipv6
        while True:
            try:
                take(raw)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error that was pending on the socket; the packets behind it still count

    def _take_ipv4(self, raw: socket.socket) -> None:
        packet = raw.recv(_BUFFER_BYTES)
        header_bytes = (packet[0] & 15) * 4
        message = parse_icmp(packet[header_bytes:])
        if message is not None:
            self._dispatch(4, message, address_text(packet[12:16]), address_text(packet[16:20]), packet[8])

    def _take_ipv6(self, raw: socket.socket) -> None:
        data, ancillary, _, sender = raw.recvmsg(_BUFFER_BYTES, _ANCILLARY_BYTES)
        destination, ttl = "", 0
        for _, kind, value in ancillary:
            if kind == socket.IPV6_PKTINFO:
                destination = address_text(value[:16])
            elif kind == socket.IPV6_HOPLIMIT:
                ttl = int.from_bytes(value[:4], sys.byteorder)
        message = parse_icmp(data)
        if message is not None:
            self._dispatch(6, message, canonical(sender[0]), destination, ttl)

    def _dispatch(self, family: Family, message: IcmpMessage, source: str, destination: str, ttl: int) -> None:
        if message.type == ECHO_REQUEST[family]:
            attempt = self._probing.find(parse_tag(message.body))
            if attempt is not None and attempt.cell.destination is self._station:
                attempt.note_arrival(source, destination, ttl)
        elif message.type == ECHO_REPLY[family]:
            self._answered(family, message, source, destination)
        else:
            self._failed(family, message, source)

    def _answered(self, family: Family, message: IcmpMessage, source: str, destination: str) -> None:
        attempt = self._probing.find(parse_tag(message.body))
        if attempt is None or attempt.cell.source is not self._station:
            return
        if not attempt.arrived and attempt.cell.destination is not self._station:
            # The request lies in the destination's queue since before the answer was made: read that first.
            self._observers[attempt.cell.destination.netns].read(family)
        attempt.finish("answered", sent=destination, answered_from=source)

    def _failed(self, family: Family, message: IcmpMessage, offender: str) -> None:
        quoted = parse_quoted_echo(family, message.body)
        if quoted is None or quoted.identifier != _identifier(self._probing):
            return
        attempt = self._probing.find(parse_tag(quoted.body)) or self._by_sequence(quoted.sequence)
        if attempt is not None and attempt.cell.source is self._station:
            attempt.finish("error", error=icmp_error(family, message.type, message.code, offender))

    def _by_sequence(self, sequence: int) -> Attempt | None:
        for number in self._probing.live:
            if number & _SEQUENCE_MASK == sequence:
                return self._probing.find(Tag(self._probing.nonce, number, _CODE, 0))
        return None
