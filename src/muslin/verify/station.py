"""The sockets of one namespace: opened inside of it once, used from outside.

Theory of operation: a socket belongs to the namespace in which it was opened, for good. So one short visit
(``kernel.netns.call_in``) per namespace opens, for each family that is asked there, a raw ICMP socket (it
sends echo requests, sees those that arrive with their source and TTL, and sees the answers and errors that
come back), a UDP and a TCP responder on ports that the kernel chooses, and reads which addresses the
namespace has. Client sockets are opened by further visits, a batch at a time: one throw-away thread tours the
namespaces of a batch, since starting a thread costs more than entering a namespace.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from muslin.errors import MuslinError, UnsupportedError
from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NetlinkSocket
from muslin.kernel.syscalls import CLONE_NEWNET, setns
from muslin.model.address import Family
from muslin.verify.neighbours import forget_neighbours
from muslin.verify.payload import address_text
from muslin.verify.verdict import INITIAL_TTL
from muslin.wire.icmp import (
    ADDRESS_FAMILY,
    ECHO_REPLY,
    ECHO_REQUEST,
    ERROR_TYPES,
    FILTER_OPTION,
    PROTOCOL_NUMBER,
    encode_filter,
)

# linux/in.h, linux/in6.h: numbers that Python 3.11 has no name for.
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_RECVTTL = 12
IP_MTU = 14
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
PMTUDISC_DO = 2

MTU_OPTION: dict[Family, tuple[int, int]] = {
    4: (socket.IPPROTO_IP, IP_MTU),
    6: (socket.IPPROTO_IPV6, IPV6_MTU),
}
_LISTEN_BACKLOG = 512  # connections to one namespace that wait to be accepted, all from pairs under way
_BUFFER_BYTES = 1 << 20  # asked for; the kernel grants net.core.rmem_max at most

Clients = tuple[socket.socket, socket.socket]
Result = TypeVar("Result")


class Station:
    """The responders and observers of one namespace, and the addresses that it has."""

    def __init__(self, netns: str, families: Iterable[Family]) -> None:
        self.netns = netns
        self.families = tuple(sorted(families))
        self.raw: dict[Family, socket.socket] = {}
        self.udp: dict[Family, socket.socket] = {}
        self.tcp: dict[Family, socket.socket] = {}
        self.own: dict[Family, tuple[str, ...]] = {}
        self._kernel: NetlinkSocket | None = None
        self._files: dict[str, int] = {}
        self._texts: dict[str, tuple[float, str]] = {}

    def open_inside(self) -> None:
        """Open everything, in a thread that has entered; UnsupportedError when raw sockets are refused."""
        for family in self.families:
            self.own[family] = own_addresses(family)
            self.raw[family] = _open_raw(family, self.netns)
            self.udp[family] = _open_udp_responder(family)
            self.tcp[family] = _open_tcp_listener(family)

    def read(self, name: str, max_age_s: float = 0.0) -> str:
        """The text of ``/proc/net/NAME`` in this namespace; "" when the kernel has no such file.

        It was read at most ``max_age_s`` seconds ago: reading ``tcp`` takes 1.6 ms, since the kernel walks
        the connections of all namespaces.
        """
        when, text = self._texts.get(name, (-math.inf, ""))
        if time.monotonic() - when <= max_age_s:
            return text
        if name not in self._files:
            with contextlib.suppress(FileNotFoundError):
                self._files[name] = tour([(self.netns, partial(open_proc, name))])[0]
        text = read_again(self._files[name]) if name in self._files else ""
        self._texts[name] = (time.monotonic(), text)
        return text

    def forget_neighbours(self) -> None:
        """Delete the neighbours that the namespace has learned."""
        if self._kernel is None:
            self._kernel = NetlinkSocket(self.netns)
        forget_neighbours(self._kernel)

    def close(self) -> None:
        """Give back every descriptor."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        for group in (self.raw, self.udp, self.tcp):
            for one in group.values():
                one.close()
            group.clear()
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def tour(visits: Iterable[tuple[str, Callable[[], Result]]]) -> list[Result]:
    """Call each function inside of its namespace, one after the other, and return what they returned."""

    def body() -> list[Result]:
        results, place = [], None
        for netns, function in visits:
            if netns != place:
                _enter(netns)
                place = netns
            results.append(function())
        return results

    return netns_door.in_thread(body)


def _enter(netns: str) -> None:
    """Take the calling thread there, with errors that a person can read."""
    try:
        fd = netns_door.open_netns(netns)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
    except OSError as error:
        hint = "is it up? `ip netns` lists the namespaces that there are"
        if error.errno == errno.EPERM:
            hint = "entering a namespace needs CAP_SYS_ADMIN over it: be root, or inside its user namespace"
            raise UnsupportedError(f"cannot enter network namespace {netns}: {error.strerror}", hint) from error
        raise MuslinError(f"cannot enter network namespace {netns}: {error.strerror}", hint) from error


def open_clients(wanted: Sequence[tuple[Station, Family]]) -> list[Clients]:
    """A UDP and a TCP socket for each, in its station's namespace."""
    opened: list[socket.socket] = []

    def open_both(family: Family) -> Clients:
        opened.append(udp := _open_client(family, socket.SOCK_DGRAM))
        opened.append(tcp := _open_client(family, socket.SOCK_STREAM))
        return udp, tcp

    try:
        return tour((station.netns, partial(open_both, family)) for station, family in wanted)
    except BaseException:
        for client in opened:
            client.close()
        raise


def open_proc(name: str) -> int:
    """A descriptor of ``/proc/net/NAME`` of the calling thread's namespace, which it keeps."""
    return os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)


def read_again(fd: int) -> str:
    """The whole text behind ``fd``, from the start, as it is now."""
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def own_addresses(family: Family) -> tuple[str, ...]:
    """The addresses on interfaces of the calling thread's namespace, sorted; loopback's are left out."""
    fd = open_proc("fib_trie" if family == 4 else "if_inet6")
    try:
        text = read_again(fd)
    finally:
        os.close(fd)
    return parse_fib_trie(text) if family == 4 else parse_if_inet6(text)


def parse_fib_trie(text: str) -> tuple[str, ...]:
    """The host addresses of ``/proc/net/fib_trie``: leaves with ``/32 host LOCAL``."""
    found: set[str] = set()
    leaf = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words == ["/32", "host", "LOCAL"] and not leaf.startswith("127."):
            found.add(leaf)
    return tuple(sorted(found))


def parse_if_inet6(text: str) -> tuple[str, ...]:
    """The addresses of ``/proc/net/if_inet6``."""
    packed = (bytes.fromhex(line.split()[0]) for line in text.splitlines() if line)
    return tuple(sorted({address_text(address) for address in packed} - {"::1"}))


def _open_raw(family: Family, netns: str) -> socket.socket:
    """A raw ICMP socket that passes echo and errors only; UnsupportedError without CAP_NET_RAW."""
    try:
        raw = socket.socket(ADDRESS_FAMILY[family], socket.SOCK_RAW, PROTOCOL_NUMBER[family])
    except PermissionError as error:
        what = f"network namespace {netns} refuses a raw ICMP socket: {error.strerror}"
        hint = "it needs CAP_NET_RAW there: be root, or inside of the user namespace that owns it"
        raise UnsupportedError(what, hint) from error
    raw.setblocking(False)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    passed = {ECHO_REQUEST[family], ECHO_REPLY[family], *ERROR_TYPES[family]}
    raw.setsockopt(*FILTER_OPTION[family], encode_filter(family, passed))
    if family == 6:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    _set_ttl(raw, family)
    return raw


def _set_ttl(one: socket.socket, family: Family) -> None:
    if family == 4:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, INITIAL_TTL)
    else:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, INITIAL_TTL)


def _open_bound(family: Family, kind: socket.SocketKind) -> socket.socket:
    one = socket.socket(ADDRESS_FAMILY[family], kind | socket.SOCK_NONBLOCK)
    if family == 6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(("0.0.0.0" if family == 4 else "::", 0))
    return one


def _open_udp_responder(family: Family) -> socket.socket:
    udp = _open_bound(family, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    if family == 4:
        udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        udp.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    else:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    return udp


def _open_tcp_listener(family: Family) -> socket.socket:
    tcp = _open_bound(family, socket.SOCK_STREAM)
    tcp.listen(_LISTEN_BACKLOG)
    return tcp


def _open_client(family: Family, kind: socket.SocketKind) -> socket.socket:
    """A client socket: TTL 64, errors kept with their offender, never fragmented by its own kernel."""
    client = socket.socket(ADDRESS_FAMILY[family], kind | socket.SOCK_NONBLOCK)
    _set_ttl(client, family)
    if family == 4:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    return client
