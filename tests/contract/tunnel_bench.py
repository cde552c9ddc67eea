"""The bench of the tunnel contract: nodes on one wire, tunnel processes in them, and taps on both sides.

                       wire (a bridge in a namespace of its own)
          .------------------------+------------------------.
     eth0 | 10.0.0.10         eth0 | 10.0.0.20         eth0 | 10.0.0.30
          | fd00::10               | fd00::20               | fd00::30
       node 0                   node 1                   node 2
     tun0 172.16.0.100/16     tun0 172.16.1.100/16     tun0 172.16.2.100/16
          fd00:172:16:0::100/48    fd00:172:16:1::100/48    fd00:172:16:2::100/48

Each node is a nameless network namespace, held by a `cat` that ends when its standard input does; tunnels are
told to die with the test process. So nothing remains, not even after `kill -9` of pytest. The nodes run with
strict rp_filter: no tunnel may need less.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from muslin.tunnel.programs import REFERENCE, core_path
from tests.contract.tunnel_packets import inner_packet

CORE = core_path() or ""
TUNNELS = {
    "python": [sys.executable, "-I", REFERENCE],
    "c": [CORE],
    "c-plain": [CORE, "--plain"],  # as on a kernel that offloads nothing
}
PORT = 9000
PATIENCE_S = 10.0  # the longest that any condition is waited for; a loaded machine may be slow
PMTUDISC_DO = 2  # linux/in.h, in6.h, as are the next
PATH_MTU_OPTIONS = {4: (0, 10, 14), 6: (41, 23, 24)}  # by version: level, IP*_MTU_DISCOVER, IP*_MTU
ETH_P_ALL, PACKET_HOST, PACKET_OUTGOING = 3, 0, 4  # linux/if_ether.h, linux/if_packet.h
CLONE_NEWNET = 0x40000000  # linux/sched.h
WINDOW = 64  # datagrams under way: they fit into every queue (a socket's default holds some 180), so none overflows

# Prefixes in prefixes, by turns of one peer and of another, and which of the two owns an address.
NESTED = (
    "172.16.0.0/16",
    "172.16.1.0/24",
    "172.16.1.128/25",
    "172.16.1.200/32",
    "fd00:172:16::/48",
    "fd00:172:16:1::/64",
    "fd00:172:16:1:8000::/65",
    "fd00:172:16:1:8000::200/128",
)
OWNERS_OF_NESTED = {
    "172.16.7.1": 1,
    "172.16.1.1": 0,
    "172.16.1.127": 0,
    "172.16.1.128": 1,
    "172.16.1.199": 1,
    "172.16.1.200": 0,
    "172.16.1.201": 1,
    "fd00:172:16:7::1": 1,
    "fd00:172:16:1::1": 0,
    "fd00:172:16:1:8000::1ff": 1,
    "fd00:172:16:1:8000::200": 0,
}


def missing() -> str:
    """Return what this machine lacks to run the suite, empty if nothing."""
    absent = [tool for tool in ("ip", "nft", "ping", "unshare", "nsenter", "setpriv") if not shutil.which(tool)]
    if absent:
        return "not installed: " + ", ".join(absent)
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no access to /dev/net/tun"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "may not make network namespaces (CAP_SYS_ADMIN)"
    return ""


MISSING = missing()
MARKS = [
    pytest.mark.kernel,
    pytest.mark.contract,
    pytest.mark.skipif(bool(MISSING), reason=f"tunnel contract: {MISSING}"),
]


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail naming `what` when patience ends."""
    deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        pause.wait(0.01)


class Tunnel:
    """A tunnel process under test."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        os.set_blocking(self.stderr.fileno(), False)
        self._said = b""

    @property
    def said(self) -> list[str]:
        """Return all whole lines that it has written on stderr."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.stderr.fileno(), 65_536):
                self._said += data
        return self._said.decode().split("\n")[:-1]

    def reports(self) -> list[dict[str, int]]:
        """Return the counters of each SIGUSR1 so far."""
        return [json.loads(line) for line in self.said if line.startswith("{")]

    def counters(self) -> dict[str, int]:
        """Ask for the counters and return them."""
        assert self.process.poll() is None, self.said
        before = len(self.reports())
        self.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: len(self.reports()) > before or self.process.poll() is not None, "the counters")
        assert len(self.reports()) > before, f"ended with {self.process.poll()}: {self.said}"
        return self.reports()[-1]

    def wait_for_counter(self, name: str, count: int) -> None:
        """Wait until a counter has reached `count`."""
        wait_for(lambda: self.counters()[name] >= count, f"{name} {count}")

    def hang_up(self) -> str:
        """Have it read its peers again and return what it says of that."""

        def answers() -> list[str]:
            return [line for line in self.said if line.startswith(("reloaded ", "not reloaded: "))]

        before = len(answers())
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(answers()) > before or self.process.poll() is not None, "an answer to SIGHUP")
        assert self.process.poll() is None, self.said
        return answers()[-1]

    def wait_for_end(self) -> int:
        """Return the exit status of a process that is about to end."""
        status = self.process.wait(PATIENCE_S)
        assert not any("Traceback" in line for line in self.said), self.said
        return status

    def cpu_s(self) -> float:
        """Return the processor time used so far (proc_pid_stat(5), fields 14 and 15)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it without giving it a chance to tidy up."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        self.kill()
        self.stderr.close()


class Capture:
    """Everything that crosses one interface, from the IP header on."""

    def __init__(self, tap: socket.socket) -> None:
        self.tap = tap
        self.packets: list[tuple[int, bytes]] = []  # PACKET_HOST or PACKET_OUTGOING, packet

    def wait_for(self, match: Callable[[bytes], bool], direction: int, what: str) -> bytes:
        """Return the first packet in `direction` that matches."""

        def matching() -> list[bytes]:
            return [packet for way, packet in self.all() if way == direction and match(packet)]

        wait_for(matching, what)
        return matching()[0]

    def all(self) -> list[tuple[int, bytes]]:
        """Return what has been seen until now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, address = self.tap.recvfrom(65_536)
                self.packets.append((address[2], packet))
        return self.packets


class Node:
    """A network namespace of its own; node `number` as drawn above, once `join` has wired it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.inner4, self.inner6 = f"172.16.{number}.100", f"fd00:172:16:{number}::100"
        self.outer4, self.outer6 = f"10.0.0.{number + 1}0", f"fd00::{number + 1}0"
        self.closing = contextlib.ExitStack()
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.closing.callback(self._release)
        self.netns = f"/proc/{self.holder.pid}/ns/net"
        wait_for(lambda: os.readlink(self.netns) != os.readlink("/proc/self/ns/net"), "a new namespace")

    def _release(self) -> None:
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait(PATIENCE_S)

    def endpoint(self, version: int = 4) -> str:
        """Return where the node's tunnel listens, as on the command line."""
        return f"{self.outer4}:{PORT}" if version == 4 else f"[{self.outer6}]:{PORT}"

    def inner(self, version: int) -> str:
        """Return the address of the TUN device."""
        return self.inner4 if version == 4 else self.inner6

    def run(self, *command: str, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace and return how it went."""
        return subprocess.run(
            ["nsenter", f"--net={self.netns}", *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 3,
            check=check,
        )

    def ip(self, *lines: str) -> None:
        """Run several `ip` commands in one process."""
        self.run("ip", "-batch", "-", text="\n".join(lines))

    def start(self, command: list[str], *, ready: bool = True) -> Tunnel:
        """Start a tunnel in the namespace and wait until it says that it is ready."""
        tunnel = Tunnel(["nsenter", f"--net={self.netns}", *command])
        self.closing.callback(tunnel.close)
        if ready:
            wait_for(
                lambda: any(line.startswith("ready ") for line in tunnel.said) or tunnel.process.poll() is not None,
                "ready",
            )
            assert tunnel.process.poll() is None, tunnel.said
        return tunnel

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of the namespace. A thread that ends with it goes there, so that no other moves."""
        made: list[socket.socket] = []
        libc = ctypes.CDLL(None, use_errno=True)

        def make() -> None:
            netns = os.open(self.netns, os.O_RDONLY)
            try:
                if libc.setns(netns, CLONE_NEWNET) == 0:
                    made.append(socket.socket(family, kind, protocol))
            finally:
                os.close(netns)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        made[0].settimeout(PATIENCE_S)
        self.closing.callback(made[0].close)
        return made[0]

    def udp(self, address: str, port: int = 0) -> socket.socket:
        """Return a UDP socket bound in the namespace."""
        made = self.open_socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        return made

    def capture(self, interface: str) -> Capture:
        """Begin to look at an interface."""
        tap = self.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        tap.bind((interface, ETH_P_ALL))
        tap.setblocking(False)
        return Capture(tap)

    def pings(self, address: str) -> bool:
        """Tell whether one echo request is answered within a second."""
        return self.run("ping", "-n", "-c1", "-W1", address, check=False).returncode == 0

    def wait_for_ping(self, address: str) -> None:
        """Wait until an address answers."""
        wait_for(lambda: self.pings(address), f"node {self.number} pings {address}")

    def fragments_made(self) -> int:
        """Return how many fragments this namespace has ever made, both families."""
        names, values = (
            line.split()
            for line in Path(f"/proc/{self.holder.pid}/net/snmp").read_text().splitlines()
            if line.startswith("Ip:")
        )
        ipv6 = dict(line.split() for line in Path(f"/proc/{self.holder.pid}/net/snmp6").read_text().splitlines())
        return int(values[names.index("FragCreates")]) + int(ipv6["Ip6FragCreates"])


Join = Callable[..., list[Node]]


def wire_up(closing: contextlib.ExitStack, count: int, *, tun_mtu: int = 1472) -> list[Node]:
    """Make and join `count` nodes as drawn above; they end with `closing`."""

    def node(number: int) -> Node:
        made = Node(number)
        closing.enter_context(made.closing)
        return made

    wire, nodes = node(99), [node(number) for number in range(count)]
    wire.ip("link add br0 type bridge mcast_snooping 0", "link set br0 up")
    for each in nodes:
        port = f"port{each.number}"
        wire.ip(
            f"link add {port} type veth peer name eth0 netns {each.holder.pid}",
            f"link set {port} master br0 up",
        )
        each.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
        each.ip(
            "link set lo up",
            f"addr add {each.outer4}/24 dev eth0",
            f"addr add {each.outer6}/64 dev eth0 nodad",
            "link set eth0 up",
            "tuntap add dev tun0 mode tun",
            f"addr add {each.inner4}/16 dev tun0",
            f"addr add {each.inner6}/48 dev tun0 nodad",
            f"link set tun0 up mtu {tun_mtu}",
        )
    return nodes


def arguments(node: Node, *peers: Node, version: int = 4) -> list[str]:
    """Return the arguments for `node` with whole subnets behind `peers`, on IP `version` outside."""
    chosen = ["--device", "tun0", "--listen", node.endpoint(version)]
    for peer in peers:
        for prefix in (f"172.16.{peer.number}.0/24", f"fd00:172:16:{peer.number}::/64"):
            chosen += ["--peer", f"{prefix}={peer.endpoint(version)}"]
    return chosen


def write_peers(path: Path, peer: Node, others: int = 0) -> None:
    """Replace a file of peers by one that holds `peer` with its subnets, amid `others` that nobody is."""
    prefixes = (f"172.16.{peer.number}.0/24", f"fd00:172:16:{peer.number}::/64")
    lines = [f"{prefix} {peer.endpoint()}\n" for prefix in prefixes]
    strangers = [f"10.{n >> 8}.{n & 255}.0/24 192.0.{n >> 8}.{n & 255}:9000\n" for n in range(others)]
    middle = others // 2
    temporary = path.with_suffix(".new")
    temporary.write_text("".join([*strangers[:middle], *lines, *strangers[middle:]]))
    temporary.replace(path)


class NumberedFlow:
    """Numbered datagrams from one node's TUN address to another's, as fast as they arrive."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent, self.got = 0, set[int]()
        self.longest_gap_s = 0.0
        self.ended = threading.Event()

    @property
    def lost(self) -> set[int]:
        """Return the numbers that did not arrive."""
        return set(range(self.sent)) - self.got

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more have arrived."""
        goal = len(self.got) + count
        wait_for(lambda: len(self.got) >= goal, f"{count} more datagrams")

    @contextlib.contextmanager
    def running(self) -> Iterator[NumberedFlow]:
        """Let them go while the body runs; afterwards, each has arrived or is lost."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self
        finally:
            self.ended.set()
            thread.join()

    def run(self) -> None:
        """Send until told to end, then receive what is under way."""
        latest, heard_at = -1, time.monotonic()
        with contextlib.suppress(TimeoutError):  # the last ones are lost, as `lost` will tell
            while latest < self.sent - 1 or not self.ended.is_set():
                while not self.ended.is_set() and self.sent - latest <= WINDOW:
                    self.sender.send(self.sent.to_bytes(8, "big"))
                    self.sent += 1
                number = int.from_bytes(self.receiver.recv(8), "big")
                latest, before, heard_at = max(latest, number), heard_at, time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, heard_at - before)
                self.got.add(number)


def numbered_flow(a: Node, b: Node) -> AbstractContextManager[NumberedFlow]:
    """Let numbered datagrams go from `a` to `b` while the body runs."""
    sender, receiver = a.udp(a.inner4), b.udp(b.inner4, 7000)
    sender.connect((b.inner4, 7000))
    return NumberedFlow(sender, receiver).running()


def transfer(a: Node, b: Node, version: int, data: bytes) -> bytes:
    """Send `data` from `a` to `b` by TCP over inner IP `version` and return what arrives."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener, sender = (node.open_socket(family, socket.SOCK_STREAM) for node in (b, a))
    listener.bind((b.inner(version), 7000))
    listener.listen()
    sender.connect((b.inner(version), 7000))
    receiver, _ = listener.accept()
    received = b""
    with receiver:
        receiver.settimeout(PATIENCE_S)
        writer = threading.Thread(target=sender.sendall, args=[data])
        writer.start()
        while len(received) < len(data) and (more := receiver.recv(65_536)):
            received += more
        writer.join(PATIENCE_S)
    return received


def segments_on_the_wire(*nodes: Node) -> None:
    """Have the kernel cut super-packets before the wire, as a network card does: a veth would pass them whole."""
    for node in nodes:
        node.ip("link set eth0 gso_max_segs 1")


def outer_udp(capture: Capture) -> list[bytes]:
    """Return the outer IPv4 packets to or from the tunnels' port, and every fragment."""
    ipv4 = [packet for _, packet in capture.all() if packet[0] >> 4 == 4]
    assert not [packet for packet in ipv4 if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF], "a fragment"
    ipv6 = [packet for _, packet in capture.all() if packet[0] >> 4 == 6]
    assert not [packet for packet in ipv6 if packet[6] == socket.IPPROTO_FRAGMENT], "a fragment"
    udp4 = [packet for packet in ipv4 if packet[9] == 17]
    assert all(packet[6] & 0x40 for packet in udp4), "without DF a router may fragment"
    return udp4 + [packet for packet in ipv6 if packet[6] == 17]


def same_books(sender: Tunnel, receiver: Tunnel, least: int) -> bool:
    """Tell whether one has counted what the other has; a counter may follow its packet a moment later."""
    sent, got = sender.counters(), receiver.counters()
    return all(sent[f"{of}_to_peers"] == got[f"{of}_from_peers"] >= least for of in ("packets", "bytes"))


def assert_idle(tunnel: Tunnel) -> None:
    """Measure for a while that it does not spin: this is an observation, not a wait."""
    before = tunnel.cpu_s()
    threading.Event().wait(0.3)
    assert tunnel.cpu_s() - before < 0.1


@contextlib.contextmanager
def flooding(send: Callable[[], object]) -> Iterator[None]:
    """Send as fast as this process can while the body runs."""
    ended = threading.Event()

    def pour() -> None:
        while not ended.is_set():
            send()

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def garbage(dice: random.Random, a: Node, b: Node) -> bytes:
    """Return noise, or a good packet with something wrong with it."""
    kind = dice.randrange(4)
    if kind == 0:
        return dice.randbytes(dice.choice([0, 1, 19, 20, 39, 40, 41, 1472, dice.randrange(1472)]))
    inner = dice.choice([4, 6])
    packet = bytearray(inner_packet(b.inner(inner), a.inner(inner), dice.randbytes(dice.randrange(60))))
    if kind == 1:
        for _ in range(dice.randrange(1, 4)):
            packet[dice.randrange(len(packet))] = dice.randrange(256)
    if kind == 2:
        return bytes(packet[: dice.randrange(len(packet))])
    return bytes(packet)
