"""The UDP exchange and the full-size probe, and the responder of both.

Theory of operation: the client's socket is connected, so that the kernel has chosen the source address
(getsockname) before a packet leaves. The responder, bound to no address, learns from IP_PKTINFO which address
was asked and answers from exactly that one; it reports source, TTL and length that it saw.

The full-size probe is path MTU discovery (RFC 1191, RFC 8201) done by hand: fragmenting is forbidden
(IP_PMTUDISC_DO), the first packet has the MTU that the kernel knows for the route, the interface's as a rule;
each "too big", from the own kernel (EMSGSIZE) or from a router (error queue), makes it smaller until one is
delivered. The answer is small: the other direction is another cell's business.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from functools import partial
from typing import ClassVar

from muslin.model.address import Family
from muslin.verify import kernel_errors
from muslin.verify.loop import FAILED
from muslin.verify.payload import (
    TAG_BYTES,
    UDP_HEADER_BYTES,
    Sighting,
    address_text,
    canonical,
    encode_answer,
    encode_tag,
    parse_answer,
    parse_tag,
)
from muslin.verify.probing import Attempt, Probing
from muslin.verify.station import IP_PKTINFO, MTU_OPTION, Station
from muslin.verify.verdict import ErrorSeen, Protocol
from muslin.wire.icmp import IP_HEADER_BYTES

_MAX_DATAGRAM_BYTES = 65535
_ANCILLARY_BYTES = 256
_MAX_SHRINKS = 16  # more different MTUs than any sane path has; ends a fight between two liars


class UdpAttempt(Attempt):
    """One small datagram and its answer."""

    protocol: ClassVar[Protocol] = "udp"

    def send(self) -> None:
        """A datagram on the connected socket."""
        if self.cell.unconnected is not None:
            raise self.cell.unconnected
        self._transmit(encode_tag(self.tag))

    def _transmit(self, datagram: bytes) -> None:
        try:
            self.cell.udp.send(datagram)
        except OSError as error:
            # An ICMP error that came meanwhile is reported by the next call: read it, then really send.
            pending = kernel_errors.drain(self.cell.udp, self.cell.family)
            if error.errno == errno.EMSGSIZE or not any(told for _, told in pending):
                raise
            self.cell.udp.send(datagram)

    def ready(self, events: int) -> None:
        """The client's socket has an answer or an error."""
        if events & FAILED:
            for number, told in kernel_errors.drain(self.cell.udp, self.cell.family):
                self.fail(number, told)
        try:
            data = self.cell.udp.recv(_MAX_DATAGRAM_BYTES)
        except OSError:
            return  # nothing there, or the error that the queue has told already
        answer = parse_answer(data)
        if answer is not None and answer[0][:3] == self.tag[:3]:
            self.take(answer[1])

    def fail(self, number: int, told: ErrorSeen | None) -> None:
        """An error from the queue: a router's or host's word ends it, the own kernel's came by errno."""
        if told is not None and number != errno.EMSGSIZE:
            self.finish("error", error=told)

    def take(self, sighting: Sighting) -> None:
        """An answer: what the responder saw."""
        self.ports = (self.cell.udp.getsockname()[1], sighting.port)
        self.note_arrival(sighting.source, sighting.destination, sighting.ttl or None)
        self.finish("answered", answered_from=canonical(self.cell.udp.getpeername()[0]))


class FullSizeAttempt(UdpAttempt):
    """The largest datagram that gets through whole."""

    protocol: ClassVar[Protocol] = "full-size udp"

    size_bytes = 0
    shrinks = 0

    def send(self) -> None:
        """A datagram that fills the path MTU as it is known, or less after each refusal."""
        self.size_bytes = self.size_bytes or self._known_mtu()
        overhead_bytes = IP_HEADER_BYTES[self.cell.family] + UDP_HEADER_BYTES
        length = max(min(self.size_bytes, _MAX_DATAGRAM_BYTES) - overhead_bytes, TAG_BYTES)
        try:
            self._transmit(encode_tag(self.tag, length))
        except OSError as error:
            if error.errno != errno.EMSGSIZE or not self._shrink():
                raise
            self.send()

    def _known_mtu(self) -> int:
        return self.cell.udp.getsockopt(*MTU_OPTION[self.cell.family])

    def _shrink(self) -> bool:
        """Take the kernel's word for a smaller size; False when it has none or gave too many."""
        known = self._known_mtu()
        self.shrinks += 1
        if known >= self.size_bytes or self.shrinks > _MAX_SHRINKS:
            return False
        self.size_bytes = known
        return True

    def fail(self, number: int, told: ErrorSeen | None) -> None:
        """Too big somewhere on the path: once more, smaller. Anything else ends it."""
        if number != errno.EMSGSIZE:
            super().fail(number, told)
        elif self._shrink():
            self.try_smaller()

    def try_smaller(self) -> None:
        """Send at once, without counting it as a repetition."""
        try:
            self.send()
        except OSError as error:
            self.last_error = error.errno

    def expire(self) -> None:
        """Lost at this size."""
        if self.tries < self.tries_allowed:
            super().expire()
        else:
            self.finish("lost", size_bytes=self.size_bytes)

    def take(self, sighting: Sighting) -> None:
        """Delivered, at the length that the responder saw."""
        header_bytes = IP_HEADER_BYTES[self.cell.family] + UDP_HEADER_BYTES
        self.ports = (self.cell.udp.getsockname()[1], sighting.port)
        self.cell.path_mtu = self.probing.share(sighting.length + header_bytes)
        self.note_arrival(sighting.source, sighting.destination, sighting.ttl or None)
        peer = canonical(self.cell.udp.getpeername()[0])
        self.finish("answered", answered_from=peer, size_bytes=self.cell.path_mtu)


class UdpResponder:
    """Answers in one namespace, from the address that was asked."""

    def __init__(self, probing: Probing, station: Station) -> None:
        self._probing = probing
        self._station = station
        for family, udp in station.udp.items():
            probing.loop.watch(udp.fileno(), partial(self._ready, family, udp))

    def _ready(self, family: Family, udp: socket.socket, _: int) -> None:
        while True:
            try:
                data, ancillary, _flags, sender = udp.recvmsg(_MAX_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue
            self._answer(family, udp, data, ancillary, sender)

    def _answer(
        self,
        family: Family,
        udp: socket.socket,
        data: bytes,
        ancillary: list[tuple[int, int, bytes]],
        sender: tuple[str, int],
    ) -> None:
        tag = parse_tag(data)
        attempt = self._probing.find(tag)
        if tag is None or attempt is None or attempt.cell.destination is not self._station:
            return
        destination, ttl, interface = _read_ancillary(family, ancillary)
        source = canonical(sender[0])
        attempt.note_arrival(source, destination, ttl or None)
        sighting = Sighting(source, sender[1], destination, ttl, len(data))
        with contextlib.suppress(OSError):  # the answer is lost then, and the client will say so
            udp.sendmsg([encode_answer(tag, sighting)], [interface], 0, sender)


def _read_ancillary(family: Family, ancillary: list[tuple[int, int, bytes]]) -> tuple[str, int, tuple[int, int, bytes]]:
    """Destination address, TTL, and the control message that makes an answer leave from that address."""
    destination, ttl = "", 0
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            destination = address_text(value[8:12])
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            destination = address_text(value[:16])
        elif (level, kind) in (
            (socket.IPPROTO_IP, socket.IP_TTL),
            (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
        ):
            ttl = int.from_bytes(value[:4], sys.byteorder)
    if family == 4:
        packed = socket.inet_pton(socket.AF_INET, destination)
        return destination, ttl, (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + packed + bytes(4))
    packed = socket.inet_pton(socket.AF_INET6, destination)
    return destination, ttl, (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + bytes(4))
