#!/usr/bin/env python3
"""Step four of the talk: an overlay network made of one TUN device and one UDP socket.

Theory of operation
===================
A TUN device is a network interface whose cable ends in a program: every IP packet that the kernel routes into it can be
read from a file, and every packet written to that file is received as if from the cable. This program carries such
packets to the other nodes, each as the payload of one UDP datagram, nothing added (flannel's `udp` framing):

     node 10.0.0.10                                                   node 10.0.0.20
     con1 172.16.0.2                                                  con1 172.16.1.2
       | veth                                                           ^ veth
      br0 172.16.0.1/24     (the kernel forwards: TTL 64 -> 63)        br0 172.16.1.1/24   (63 -> 62)
       | route 172.16.0.0/16 dev tun0                                   | route 172.16.1.0/24 dev br0
     tun0 172.16.0.100/16                                             tun0 172.16.1.100/16
       | read()                                                         ^ write()
     this program --- sendto() ---> eth0 ===== the underlay =====> eth0 --- recvfrom() ---> this program

     on the wire: | outer IP 10.0.0.10 > 10.0.0.20 | UDP 9000 > 9000 | IP 172.16.0.2 > 172.16.1.2 | payload |
                  |  20 bytes (IPv4) or 40 (IPv6)  |     8 bytes     |     the inner packet, unchanged      |
                  |<--------- the overhead, 28 or 48 bytes --------->|

Out (TUN -> UDP).  The inner destination is looked up among the prefixes of all peers; the longest one that contains it
names the peer. No peer: dropped (`no_peer`), and its sender told so by ICMP, as a router would.

In (UDP -> TUN).  Anyone can send a datagram to an open port, so two questions come first. Is the sender, address and
port, a peer (`unknown_peer`)? Does the inner source belong to that peer (`bad_source`)? It does if an answer would go
there, by the same longest-prefix match, or if it is the peer's own underlay address: a node that answers a container
speaks as 10.0.0.20, not as 172.16.1.100.

The inner packet crosses byte for byte. Its TTL is left alone: the kernels on both sides forward, and count.

Size.  Outer packets are never fragmented (path MTU discovery, RFC 1191 and 8201). What does not fit is dropped
(`too_big`), and its sender told by ICMP which size does.

Trouble.  A peer that does not listen, a missing route, a firewall, a device that is down: each costs the packet at hand
(`send_failed`, `tun_failed`) and nothing more. Only a deleted device ends the program.

Peers.  They stand on the command line (--peer), in a file (--peers; lines of PREFIX ADDRESS:PORT, # begins a comment),
or in both. SIGHUP has the file read again, some lines at a time between packets, so that none waits or is lost. If all
is good a new table takes the old one's place and stderr says `reloaded 12 peers`; else `not reloaded: `, which line and
why, and nothing changes. Rename a new file over the old one. Without --peers, SIGHUP ends the program.

Signals.  SIGTERM, SIGINT: end with status 0. SIGUSR1: print the counters as one line of JSON on stderr.

Not handled: encryption and authentication (the underlay is trusted not to forge addresses), outer DSCP and ECN (sent
as 0), a rate limit of ICMP errors, IPv6 over a path that carries less than 1280 + overhead bytes, an outer packet that
the kernel routes into the tunnel again. No address, route, MTU or namespace is changed. The fast twin is native/.

Usage: ip tuntap add dev tun0 mode tun; ip addr add 172.16.0.100/16 dev tun0; ip link set tun0 up mtu 1472
       python3 reference.py --device tun0 --listen 10.0.0.10:9000 --peer 172.16.1.0/24=10.0.0.20:9000
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

Endpoint = tuple[str, int]  # underlay address in the kernel's spelling, UDP port
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

# Kernel interface; the socket module of Python 3.11 does not name these.
TUNSETIFF, TUNSETOFFLOAD, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x400454D0, 0x0001, 0x1000  # linux/if_tun.h
SIOCGIFMTU = 0x8921  # linux/sockios.h
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24  # linux/in.h, linux/in6.h
PMTUDISC_DO = 2  # the same number for both families: set DF, never fragment

MAX_PACKET_BYTES = 65_535  # the largest IPv4 packet, and the largest UDP datagram is smaller
SOCKET_BUFFER_BYTES = 4 << 20  # ~3,000 full packets of burst; the kernel caps it at net.core.[rw]mem_max
BATCH_PACKETS = 64  # read from one side before the other has its turn
REMEMBERED_ADDRESSES = 4096  # bound of the look-up cache
SLICE_LINES = 50  # of the peers' file, read before packets have their turn: about 1 ms

COUNTERS = (
    "packets_to_peers",
    "bytes_to_peers",  # inner bytes, without the overhead
    "packets_from_peers",
    "bytes_from_peers",
    "no_peer",  # out: no prefix contains the destination, which is a host: to groups, kernels speak unasked
    "too_big",  # out: the path to the peer carries only smaller packets
    "send_failed",  # out: the kernel refused the datagram (no route, firewall, buffer full ...)
    "unknown_peer",  # in: the datagram comes from a stranger
    "bad_source",  # in: the inner source does not belong to the peer that sent it
    "malformed",  # both: not exactly one whole IP packet
    "tun_failed",  # in: the device refused the packet (it is down, or its queue is full)
)


class PeerTable:
    """Which peer owns an inner address: longest-prefix match over both families."""

    def __init__(self, listen: Endpoint) -> None:
        """Take this node's own endpoint; a peer must be of its address family."""
        self.listen = listen
        self.underlay_address: dict[Endpoint, bytes] = {}  # every known peer, and its own address
        # By address bytes: the masks to lay over an address, longest first, and what may then remain.
        self._levels: dict[int, dict[int, dict[int, Endpoint]]] = {4: {}, 16: {}}
        self._remembered: dict[bytes, Endpoint | None] = {}

    def add(self, prefix: Prefix, peer: Endpoint) -> None:
        """Let `peer` own `prefix`. ValueError if another does, or if no datagram can get there from here."""
        if family_of(peer) != family_of(self.listen):
            raise ValueError(f"{show(peer)} and --listen {show(self.listen)} differ; expected both IPv4 or both IPv6")
        size, mask = prefix.max_prefixlen // 8, int(prefix.netmask)
        if mask not in self._levels[size]:
            self._levels[size] = dict(sorted([*self._levels[size].items(), (mask, {})], reverse=True))
        other = self._levels[size][mask].setdefault(int(prefix.network_address), peer)
        if other != peer:
            raise ValueError(f"{prefix} is claimed by {show(other)} and {show(peer)}; expected each prefix once")
        self.underlay_address[peer] = socket.inet_pton(family_of(peer), peer[0])
        self._remembered.clear()

    def owner(self, address: bytes) -> Endpoint | None:
        """Return the peer with the longest prefix that contains `address` (4 or 16 bytes), or None."""
        if address in self._remembered:
            return self._remembered[address]
        number = int.from_bytes(address, "big")
        found = (peers.get(number & mask) for mask, peers in self._levels[len(address)].items())
        peer = next((peer for peer in found if peer is not None), None)
        if len(self._remembered) >= REMEMBERED_ADDRESSES:  # a port scan must not eat the memory
            self._remembered.clear()
        self._remembered[address] = peer
        return peer


class PeerSource(NamedTuple):
    """Where the peers stand: on the command line, and in a file that may be read again."""

    listen: Endpoint
    named: Sequence[tuple[Prefix, Endpoint]]
    path: str | None

    def load(self) -> Iterator[PeerTable | None]:
        """Yield None after each slice of lines, at last the table. ValueError says what is wrong, and where."""
        table, place = PeerTable(self.listen), "--peer"
        try:
            for prefix, peer in self.named:
                table.add(prefix, peer)
            with open(self.path or os.devnull, encoding="ascii", errors="replace") as file:
                for number, line in enumerate(file, start=1):
                    place = f"line {number} of {self.path}"
                    if text := " ".join(line.partition("#")[0].split()):
                        table.add(*parse_peer(text, " "))
                    if number % SLICE_LINES == 0:
                        yield None
        except OSError as error:
            raise ValueError(f"cannot read the peers from {self.path}: {error.strerror}") from None
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{place}: {error}") from None
        yield table


def inner_addresses(packet: bytes) -> tuple[bytes, bytes] | None:
    """Return (source, destination) of an IP packet, None unless `packet` is exactly one, whole and alone.

    Looks at version and lengths only (RFC 791 section 3.1, RFC 8200 section 3); the kernel checks the rest.
    """
    size = len(packet)
    if size >= 20 and packet[0] >> 4 == 4:
        header_bytes, total_bytes = (packet[0] & 15) * 4, packet[2] << 8 | packet[3]
        return (packet[12:16], packet[16:20]) if 20 <= header_bytes <= total_bytes == size else None
    if size >= 40 and packet[0] >> 4 == 6:
        return (packet[8:24], packet[24:40]) if 40 + (packet[4] << 8 | packet[5]) == size else None
    return None


def checksum(data: bytes) -> int:
    """Return the Internet checksum of `data` (RFC 1071); 0 for data that contains its right checksum."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def icmp_error(packet: bytes, mtu_bytes: int) -> bytes | None:
    """Return the packet that tells the sender of `packet` to stay within `mtu_bytes`, None if none may.

    ICMP "fragmentation needed" (RFC 1191 section 4) or ICMPv6 "packet too big" (RFC 4443 section 3.2); for an MTU of 0
    "host unreachable" or "address unreachable". Its source is the far end's address: the kernel would throw away the
    node's own as forged when it comes in through the TUN device, and the far end's passes a strict rp_filter. No error
    about an error, a later fragment, or from or to what is no single host (RFC 1122 section 3.2.2).
    """
    if packet[0] >> 4 == 4:
        source, destination = packet[12:16], packet[16:20]
        icmp = packet[(packet[0] & 15) * 4 :] if packet[9] == socket.IPPROTO_ICMP else b""
        later_fragment = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        if later_fragment or icmp[:1] in (b"\3", b"\4", b"\5", b"\x0b", b"\x0c"):
            return None
        if source[0] in (0, 127) or source[0] >= 224 or destination[0] >= 224:
            return None
        quoted = packet[: 576 - 28]  # RFC 1812 section 4.3.2.3: as much as fits in 576 bytes
        body = struct.pack("!BBHHH", 3, 4 if mtu_bytes else 1, 0, 0, mtu_bytes and max(mtu_bytes, 68)) + quoted
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, socket.IPPROTO_ICMP, 0)
        header += destination + source
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body
    source, destination = packet[8:24], packet[24:40]
    icmp_error = packet[6] == socket.IPPROTO_ICMPV6 and packet[40:41] < b"\x80"
    if icmp_error or source == bytes(16) or 0xFF in (source[0], destination[0]):
        return None
    quoted = packet[: 1280 - 48]  # RFC 4443 section 3.2: as much as fits in the minimum MTU
    body = (struct.pack("!BBHI", 2, 0, 0, max(mtu_bytes, 1280)) if mtu_bytes else b"\1\3" + bytes(6)) + quoted
    # The checksum also covers a pseudo-header (RFC 8200 section 8.1).
    pseudo_header = destination + source + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo_header + body)) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 64) + destination + source + body


class Tunnel:
    """The two directions between a TUN device (a file descriptor) and the underlay (a UDP socket)."""

    def __init__(self, device: int, underlay: socket.socket, table: PeerTable, source: PeerSource) -> None:
        """Take both ends, open and non-blocking, the peers, and where they stand."""
        self.device, self.underlay, self.table, self.source = device, underlay, table, source
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.loading: Iterator[PeerTable | None] = iter(())
        self.more_to_load = os.eventfd(0, os.EFD_CLOEXEC)  # readable while there is: it wakes the loop below

    def run(self) -> NoReturn:
        """Move packets until a signal handler or a vanished device (OSError) ends it."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.device, selectors.EVENT_READ, self.drain_device)
            selector.register(self.underlay, selectors.EVENT_READ, self.drain_underlay)
            selector.register(self.more_to_load, selectors.EVENT_READ, self.load_slice)
            while True:
                for ready, _ in selector.select():
                    ready.data()

    def reload(self) -> None:
        """Begin to read the peers again, from the start if that was under way. For a signal handler."""
        self.loading = self.source.load()
        os.eventfd_write(self.more_to_load, 1)

    def load_slice(self) -> None:
        """Read on in the peers' file; after its last line the new table takes the old one's place."""
        os.eventfd_read(self.more_to_load)
        try:
            table = next(self.loading, ())  # (): all is read already, as a second signal came at the same moment
            if table is None:
                os.eventfd_write(self.more_to_load, 1)
            elif table:
                self.table = table
                say(f"reloaded {len(table.underlay_address)} peers")
        except ValueError as error:
            say(f"not reloaded: {error}")

    def drain_device(self) -> None:
        """Send up to a batch of packets that the kernel routed into the device. OSError if it is gone."""
        for _ in range(BATCH_PACKETS):
            try:
                packet = os.read(self.device, MAX_PACKET_BYTES)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EIO):  # nothing left; EIO: the device is down
                    return
                raise
            addresses = inner_addresses(packet)
            if addresses is None:
                self.counters["malformed"] += 1
                continue
            peer = self.table.owner(addresses[1])
            if peer is None:
                self.counters["no_peer"] += addresses[1][0] < (224 if len(addresses[1]) == 4 else 255)  # no group
                self.answer(packet, 0)
                continue
            self.send(packet, peer)

    def send(self, packet: bytes, peer: Endpoint) -> None:
        """Send one packet to `peer`; whatever the kernel holds against it costs this packet only."""
        try:
            self.underlay.sendto(packet, peer)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                self.counters["send_failed"] += 1
                return
            self.counters["too_big"] += 1
            if mtu_bytes := inner_mtu(self.underlay, peer):
                self.answer(packet, mtu_bytes)
        else:
            self.counters["packets_to_peers"] += 1
            self.counters["bytes_to_peers"] += len(packet)

    def answer(self, packet: bytes, mtu_bytes: int) -> None:
        """Tell the sender of a packet by ICMP why it was not carried."""
        if error := icmp_error(packet, mtu_bytes):
            self.write(error)

    def drain_underlay(self) -> None:
        """Let in up to a batch of datagrams: from peers only, and only what is theirs to send."""
        for _ in range(BATCH_PACKETS):
            try:
                packet, address = self.underlay.recvfrom(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:  # a belated answer to an earlier send, such as ECONNREFUSED; reading clears it
                continue
            sender: Endpoint = address[:2]  # IPv6 adds flow label and scope
            if sender not in self.table.underlay_address:
                self.counters["unknown_peer"] += 1
                continue
            addresses = inner_addresses(packet)
            if addresses is None:
                self.counters["malformed"] += 1
                continue
            source = addresses[0]
            if self.table.owner(source) != sender and source != self.table.underlay_address[sender]:
                self.counters["bad_source"] += 1
                continue
            if self.write(packet):
                self.counters["packets_from_peers"] += 1
                self.counters["bytes_from_peers"] += len(packet)

    def write(self, packet: bytes) -> bool:
        """Hand one packet to the kernel, tell whether it took it. OSError if the device is gone."""
        try:
            os.write(self.device, packet)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.EINVAL, errno.ENOBUFS, errno.ENOMEM):
                raise
            self.counters["tun_failed"] += 1
            return False
        return True


def open_device(name: str) -> int:
    """Attach to the TUN device `name`; if absent, create it until this program ends. OSError if refused."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    fcntl.ioctl(device, TUNSETOFFLOAD, 0)  # a faster tunnel before us may have asked for unsegmented packets
    return device


def open_underlay(listen: Endpoint) -> socket.socket:
    """Return a non-blocking UDP socket bound to `listen` that never fragments. OSError if refused.

    No SO_REUSEADDR: UDP restarts without, and with it a second tunnel could steal the first one's datagrams.
    """
    underlay = socket.socket(family_of(listen), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if underlay.family == socket.AF_INET6:
        underlay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        underlay.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    else:
        underlay.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    underlay.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    underlay.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    underlay.bind(listen)
    return underlay


def overhead_bytes(family: int) -> int:
    """Return what the tunnel adds to a packet: the outer IP header of this `family` and 8 bytes of UDP."""
    return 48 if family == socket.AF_INET6 else 28


def inner_mtu(underlay: socket.socket, peer: Endpoint) -> int | None:
    """Return the largest inner packet, in bytes, that the path to `peer` is known to carry; None if no route.

    The kernel tells a path MTU only to a connected socket, so a second one asks. Connecting sends nothing.
    """
    ipv6 = underlay.family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if ipv6 else (socket.IPPROTO_IP, IP_MTU)
    with socket.socket(underlay.family, socket.SOCK_DGRAM) as asking:
        try:
            asking.bind((underlay.getsockname()[0], 0))  # the same source, should the route depend on it
            asking.connect(peer)
            return min(asking.getsockopt(level, option), MAX_PACKET_BYTES) - overhead_bytes(underlay.family)
        except OSError:
            return None


def warn_of_mtu(name: str, underlay: socket.socket, table: PeerTable) -> None:
    """Say on stderr which paths carry less than the device `name` promises to its senders."""
    request = fcntl.ioctl(underlay, SIOCGIFMTU, struct.pack("16si20x", name.encode(), 0))
    promised = struct.unpack_from("i", request, 16)[0]
    for peer in table.underlay_address:
        carried = inner_mtu(underlay, peer)
        if carried is not None and carried < promised:
            say(
                f"warning: the MTU of {name} is {promised}, but the path to {show(peer)} carries {carried}"
                f" and {overhead_bytes(underlay.family)} of overhead; try: ip link set {name} mtu {carried}"
            )


def say(line: str) -> None:
    """Print one line on stderr; a reader that has gone away (EPIPE) is no reason to stop carrying packets."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())  # print() refuses a signal handler that interrupts it


def family_of(endpoint: Endpoint) -> socket.AddressFamily:
    """Return the address family of an underlay endpoint."""
    return socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET


def show(endpoint: Endpoint) -> str:
    """Write an endpoint as the command line takes it: 10.0.0.20:9000 or [fd00::1]:9000."""
    return "[{}]:{}".format(*endpoint) if ":" in endpoint[0] else "{}:{}".format(*endpoint)


def parse_device(text: str) -> str:
    """Check an interface name: 1 to 15 plain characters (a % would be a template to TUNSETIFF)."""
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text) and text not in (".", ".."):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no interface name; expected 1 to 15 letters such as tun0")


def parse_endpoint(text: str) -> Endpoint:
    """Parse ADDRESS:PORT, an IPv6 address in brackets."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if match and 1 <= int(match[3]) <= 65_535:
        family = socket.AF_INET6 if match[1] else socket.AF_INET
        with contextlib.suppress(OSError):
            # Spelled as recvfrom() will spell it: endpoints are compared as text.
            return socket.inet_ntop(family, socket.inet_pton(family, match[1] or match[2])), int(match[3])
    raise argparse.ArgumentTypeError(
        f"{text!r} is no endpoint; expected ADDRESS:PORT such as 10.0.0.20:9000 or [fd00::20]:9000"
    )


def parse_peer(text: str, separator: str = "=") -> tuple[Prefix, Endpoint]:
    """Parse PREFIX=ADDRESS:PORT of the command line, or what a file has with a space instead."""
    prefix, separated, endpoint = text.partition(separator)
    with contextlib.suppress(ValueError):
        if separated and re.fullmatch(r"[0-9a-fA-F:.]+/[0-9]+", prefix):
            return ipaddress.ip_network(prefix), parse_endpoint(endpoint)
    raise argparse.ArgumentTypeError(
        f"{text!r} is no peer; expected PREFIX{separator}ADDRESS:PORT, the prefix without host bits,"
        f" such as 172.16.1.0/24{separator}10.0.0.20:9000"
    )


class OneSentenceParser(argparse.ArgumentParser):
    """argparse, which says what is wrong in one sentence instead of repeating its usage first."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse_arguments(arguments: Sequence[str]) -> tuple[str, PeerTable, PeerSource]:
    """Return device name, peers and where they stand. A bad value ends the program with status 2."""
    parser = OneSentenceParser(description="Carry IP packets between TUN and UDP.", allow_abbrev=False)
    add, endpoint = parser.add_argument, "ADDRESS:PORT"
    add("--device", required=True, type=parse_device, help="TUN device, such as tun0")
    add("--listen", required=True, type=parse_endpoint, metavar=endpoint, help="this node on the underlay")
    peer_help = "another node and the inner addresses behind it; may be repeated, also for one node"
    add("--peer", action="append", default=[], type=parse_peer, metavar="PREFIX=" + endpoint, help=peer_help)
    add("--peers", metavar="FILE", help=f"more of them, a line of PREFIX {endpoint} each; SIGHUP reads it again")
    options = parser.parse_args(arguments)
    source = PeerSource(options.listen, options.peer, options.peers)
    try:
        return options.device, next(filter(None, source.load())), source
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tunnel; return 0 after SIGTERM or SIGINT, 1 if it cannot start or its device is gone."""
    name, table, source = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    attempt = f"cannot attach to the TUN device {name}"
    try:
        device = open_device(name)
        attempt = f"cannot listen on {show(source.listen)}"
        underlay = open_underlay(source.listen)
        attempt = f"cannot read the MTU of {name}"
        warn_of_mtu(name, underlay, table)
    except OSError as error:
        say(f"{attempt}: {error.strerror}")
        return 1
    tunnel = Tunnel(device, underlay, table, source)
    signal.signal(signal.SIGUSR1, lambda *_: say(json.dumps({"schema": "muslin.tunnel/v1", **tunnel.counters})))
    if source.path:
        signal.signal(signal.SIGHUP, lambda *_: tunnel.reload())
    say(f"ready {name} on {show(source.listen)}, {len(table.underlay_address)} peers")
    try:
        tunnel.run()
    except OSError as error:
        say(f"the TUN device {name} is gone: {error.strerror}")
        return 1
    finally:
        say("ended: " + ", ".join(f"{reason} {count}" for reason, count in tunnel.counters.items() if count))


if __name__ == "__main__":
    sys.exit(main())
