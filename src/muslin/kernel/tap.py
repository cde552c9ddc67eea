"""The door to what crosses interfaces: one packet socket a namespace hears all its links, both directions.

Theory of operation: a packet(7) socket that is bound to no link gets a copy of every frame that enters or leaves any
link of its namespace, with the link's name, the direction, and a time stamp of the kernel. It needs no tcpdump and no
real root: root of the namespace's user namespace will do. ``send_packet`` puts a finished IP packet out of a namespace;
the kernel routes it like any of its own, and leaves its header as it is. It cuts none of those (raw(7)), so that one
which may be cut is given to ``send_body`` without its header: the kernel puts one on, and cuts.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from muslin.kernel import netns as netns_door

ETH_P_ALL = 0x0003  # linux/if_ether.h
PACKET_OUTGOING = 4  # linux/if_packet.h
SO_TIMESTAMPNS = 35  # asm-generic/socket.h, SO_TIMESTAMPNS_OLD
IPV6_HDRINCL = 36  # linux/in6.h
IPV6_MTU_DISCOVER = 23  # linux/in6.h
IP_MTU_DISCOVER = 10  # linux/in.h
PMTUDISC_DONT = 0  # linux/in.h, linux/in6.h
WITHOUT_ETHERNET = (65534, 65535, 776, 768)  # linux/if_arp.h ARPHRD_NONE (tun), VOID, SIT, TUNNEL
BUFFER_BYTES = 1 << 20
_TIMESPEC = struct.Struct("@ll")


class TapFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame at a link. ``at_s`` by the kernel's clock, in seconds since the epoch."""

    netns: str
    link: str
    outgoing: bool
    ethernet: bool
    data: bytes
    at_s: float


class Taps:
    """Packet sockets in these namespaces, open until ``close``; one that is gone is left out."""

    def __init__(self, names: Iterable[str]) -> None:
        self._selector = selectors.DefaultSelector()
        for name in names:
            try:
                opened = netns_door.call_in(name, _open_tap)
            except FileNotFoundError:
                continue
            self._selector.register(opened, selectors.EVENT_READ, name)

    def read(self, deadline_s: float, done: Callable[[TapFrame], bool]) -> list[TapFrame]:
        """Frames until ``done`` says that one was the last, or the deadline (``time.monotonic``)."""
        frames: list[TapFrame] = []
        while (left := deadline_s - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                opened = key.fileobj
                assert isinstance(opened, socket.socket)
                batch = _drain(opened, key.data)
                frames += batch
                if any(done(frame) for frame in batch):
                    return frames
        return frames

    def stream(self, deadline_s: float | None = None) -> Iterator[TapFrame]:
        """Frames as they come, without end or until the deadline (``time.monotonic``)."""
        while deadline_s is None or time.monotonic() < deadline_s:
            left = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            batch: list[TapFrame] = []
            for key, _ in self._selector.select(left):
                opened = key.fileobj
                assert isinstance(opened, socket.socket)
                batch += _drain(opened, key.data)
            yield from sorted(batch, key=lambda frame: frame.at_s)

    def close(self) -> None:
        """Hear no more."""
        for key in list(self._selector.get_map().values()):
            opened = key.fileobj
            assert isinstance(opened, socket.socket)
            opened.close()
        self._selector.close()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_tap() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(ETH_P_ALL))
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return opened


def _drain(opened: socket.socket, netns: str) -> list[TapFrame]:
    frames: list[TapFrame] = []
    while True:
        try:
            data, ancillary, _, address = opened.recvmsg(65535, 64)
        except BlockingIOError:
            return frames
        link, _, packet_type, hardware = address[:4]
        stamps = [value for level, kind, value in ancillary if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS)]
        seconds, nanos = _TIMESPEC.unpack(stamps[0]) if stamps else (0, 0)
        frames.append(
            TapFrame(
                netns=netns,
                link=link,
                outgoing=packet_type == PACKET_OUTGOING,
                ethernet=hardware not in WITHOUT_ETHERNET,
                data=data,
                at_s=seconds + nanos / 1e9,
            )
        )


def send_packet(netns: str, packet: bytes, destination: str) -> None:
    """Send a whole IP packet out of a namespace; OSError with the kernel's reason where it refuses."""
    six = ":" in destination

    def send() -> None:
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as opened:
            if six:
                opened.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
            opened.sendto(packet, (destination, 0))

    netns_door.call_in(netns, send)


def send_body(netns: str, source: str, destination: str, protocol: int, ttl: int, body: bytes) -> None:
    """Send what follows the IP header, which the kernel makes, without DF; OSError where it refuses.

    ``protocol`` is its number. Where the packet is too long for the link, the kernel cuts it.
    """
    six = ":" in destination

    def send() -> None:
        family = socket.AF_INET6 if six else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as opened:
            level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
            opened.setsockopt(level, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, PMTUDISC_DONT)
            opened.setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, ttl)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            opened.bind((source, 0))
            opened.sendto(body, (destination, 0))

    netns_door.call_in(netns, send)
