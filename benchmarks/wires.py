"""The networks that ``./run bench tunnel`` compares: two nodes on a wire, a container on each, and what joins them.

    con1 172.16.0.2 ── br0 172.16.0.1 :a: eth0 10.0.0.10 ═══ eth0 10.0.0.20 :b: br0 172.16.1.1 ── con2 172.16.1.2
                       tun0 or vxlan0                                           tun0 or vxlan0

Namespaces are nameless and each held by a `cat`; they end with the benchmark, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

UNDERLAY_MTU = 1500
TUN_MTU = UNDERLAY_MTU - 28
VXLAN_MTU = UNDERLAY_MTU - 50
PORT = 9000
PATIENCE_S = 10.0
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # linux/prctl.h, signal.h


def die_with_us() -> None:
    """Of a child, before it becomes another program: end when this process does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)


class Room:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, preexec_fn=die_with_us)
        deadline = time.monotonic() + PATIENCE_S
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the namespace of {name} was not made")
            time.sleep(0.01)
        self.ip("link set lo up")
        # No router solicitations: one that comes before the other end is there ends socat (connection refused).
        self.run(
            "sh",
            "-c",
            "echo 1 | tee /proc/sys/net/ipv6/conf/all/disable_ipv6 /proc/sys/net/ipv6/conf/default/disable_ipv6",
        )

    def command(self, *words: str) -> list[str]:
        """Words that run the words in here."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *words]

    def start(self, *words: str, cpu: int | None = None) -> subprocess.Popen[str]:
        """Start a program in here, on one CPU if told so."""
        pinned = ["taskset", "--cpu-list", str(cpu), *words] if cpu is not None else list(words)
        return subprocess.Popen(
            self.command(*pinned),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_us,
        )

    def run(self, *words: str) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"in {self.name}: {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Run lines of iproute2."""
        for line in lines:
            self.run("ip", *line.split())

    def close(self) -> None:
        """Let the namespace end."""
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait(PATIENCE_S)


class Pair:
    """Both nodes and both containers, joined as far as the wire and the bridges."""

    def __init__(self, offloads: bool) -> None:
        self.con1, self.a, self.b, self.con2 = (Room(name) for name in ("con1", "a", "b", "con2"))
        self.tunnels: list[subprocess.Popen[str]] = []
        self.a.ip(f"link add eth0 type veth peer name eth0 netns {self.b.holder.pid}")
        for number, (node, container) in enumerate(((self.a, self.con1), (self.b, self.con2))):
            node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            node.ip(f"addr add 10.0.0.{number + 1}0/24 dev eth0", "link set eth0 up", "link add br0 type bridge")
            node.ip(f"addr add 172.16.{number}.1/24 dev br0", "link set br0 up")
            node.ip(
                f"link add port type veth peer name eth0 netns {container.holder.pid}", "link set port master br0 up"
            )
            container.ip(f"addr add 172.16.{number}.2/24 dev eth0", "link set eth0 up")
            container.ip(f"route add default via 172.16.{number}.1")
            if not offloads:
                # As on a card without segmentation: the kernel cuts super-packets in the last moment.
                off = ("tso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
                node.run("ethtool", "-K", "eth0", *(word for name in off for word in (name, "off")))

    def pin_tunnels(self, cpus: set[int]) -> None:
        """Let the tunnels run on these CPUs only."""
        for tunnel in self.tunnels:
            for thread in os.listdir(f"/proc/{tunnel.pid}/task"):
                os.sched_setaffinity(int(thread), cpus)

    def close(self) -> None:
        """Take all of it away."""
        for room in (self.con1, self.a, self.b, self.con2):
            room.close()


@contextlib.contextmanager
def joined(kind: str, offloads: bool = True, program: Path | None = None, peers: Path | None = None) -> Iterator[Pair]:
    """The network of one contender. ``node`` is the wire alone, ``vxlan`` the kernel's, others are programs.

    ``program`` stands in for the tunnel in C; ``peers`` is a directory for files of peers, named as the nodes.
    """
    with contextlib.ExitStack() as closing:
        pair = Pair(offloads)
        closing.callback(pair.close)
        if kind == "vxlan":
            _vxlan(pair)
        elif kind != "node":
            pair.tunnels = _tunnels(pair, kind, program, peers)
            for tunnel in pair.tunnels:
                closing.callback(_end, tunnel)
        if kind != "node":
            _await_ping(pair)
        yield pair


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _await_ping(pair: Pair) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(RuntimeError):
            pair.con1.run("ping", "-n", "-c1", "-W1", "172.16.1.2")
            return
        if time.monotonic() > deadline:
            raise RuntimeError("con1 does not reach con2")


def _vxlan(pair: Pair) -> None:
    """The way flannel sets it up: a route by node, with the neighbour and forwarding entry of its peer."""
    macs = ("02:00:00:00:00:01", "02:00:00:00:00:02")
    for number, node in enumerate((pair.a, pair.b)):
        other = 1 - number
        node.ip(
            f"link add vxlan0 address {macs[number]} type vxlan id 1 dev eth0 local 10.0.0.{number + 1}0 dstport 8472"
            " nolearning",
            f"link set vxlan0 mtu {VXLAN_MTU} up",
            f"addr add 172.16.{number}.0/32 dev vxlan0",
            f"neigh add 172.16.{other}.0 lladdr {macs[other]} dev vxlan0 nud permanent",
            f"route add 172.16.{other}.0/24 via 172.16.{other}.0 dev vxlan0 onlink",
        )
        node.run("bridge", "fdb", "add", macs[other], "dev", "vxlan0", "dst", f"10.0.0.{other + 1}0")


def write_peers(path: Path, number: int, others: int = 0) -> None:
    """Replace a file of peers by one with node ``number``, amid others that nobody is."""
    lines = [f"10.{n >> 8}.{n & 255}.0/24 192.0.{n >> 8}.{n & 255}:9000\n" for n in range(others)]
    lines.insert(others // 2, f"172.16.{number}.0/24 10.0.0.{number + 1}0:{PORT}\n")
    new = path.with_suffix(".new")
    new.write_text("".join(lines))
    new.replace(path)


def _tunnels(pair: Pair, kind: str, program: Path | None, peers: Path | None) -> list[subprocess.Popen[str]]:
    started = []
    for number, node in enumerate((pair.a, pair.b)):
        own, other = f"10.0.0.{number + 1}0", f"10.0.0.{2 - number}0"
        if kind == "socat":
            udp = f"UDP:{other}:{PORT},bind={own}:{PORT}"
            words = ["socat", udp, f"TUN:172.16.{number}.100/16,tun-name=tun0,iff-no-pi,tun-type=tun,iff-up"]
        else:
            node.ip("tuntap add dev tun0 mode tun", f"link set tun0 mtu {TUN_MTU} up")
            node.ip(f"addr add 172.16.{number}.100/16 dev tun0")
            from muslin.tunnel.programs import tunnel_command

            chosen = (str(program),) if program else tunnel_command("python" if kind == "python" else "c")
            words = [*chosen, "--device=tun0", f"--listen={own}:{PORT}"]
            if peers:
                write_peers(peers / node.name, 1 - number)
            words.append(f"--peers={peers / node.name}" if peers else f"--peer=172.16.{1 - number}.0/24={other}:{PORT}")
            words += ["--plain"] if kind == "c-plain" else []
        if peers:  # a log that nobody empties would stop a tunnel that speaks into a pipe
            words = ["sh", "-c", 'exec "$@" 2>"$0"', str(peers / f"{node.name}.log"), *words]
        started.append(node.start(*words))
    for node in (pair.a, pair.b):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(RuntimeError):
                node.ip(f"link set tun0 mtu {TUN_MTU}")
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"no tunnel came up in {node.name}")
            time.sleep(0.01)
    return started
