"""``./run bench soak``: minutes of mixed traffic through the tunnel in C, on a bad wire, while its peers change.

Theory of operation: TCP carries random bytes from one container to the other, in rounds, and both ends compute the same
digest or it is an error; UDP floods the other way meanwhile. The wire carries packets one by one, loses one in
`LOSS_ONE_IN` at random before either tunnel sees it, and delays some more, so that they are overtaken. Each second both
tunnels are told of other peers. At the end

    memory   of each tunnel has not grown since the first round,
    books    what one tunnel sent and the other did not get, the wire lost, to the packet: by nft's and the qdisc's
             counters, or the kernel for want of room in the socket (RcvbufErrors),
    digests  of all payload are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tunnel import compile_load
from benchmarks.wires import Pair, Room, joined, write_peers

LOSS_ONE_IN = 20_000
LATE_ONE_IN = 2_000
LATE_RATE = "100mbit"
BLOCK_BYTES = 1 << 20
BLOCKS_A_ROUND = 256
OTHERS_MAX = 2000
GROWTH_MAX_KIB = 128
SETTLE_S = 1.0
SEND, RECEIVE = "send", "receive"


def transfer_end(way: str, address: str, port: int, seed: int) -> None:
    """One end of a round, in its own process: print the digest of what went or came."""
    import socket

    digest = hashlib.blake2b()
    if way == RECEIVE:
        with socket.create_server((address, port)) as listener:
            print("ready", flush=True)
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(BLOCK_BYTES):
                    digest.update(data)
    else:
        noise = random.Random(seed).randbytes(2 * BLOCK_BYTES)
        with socket.create_connection((address, port)) as connection:
            for block in range(BLOCKS_A_ROUND):
                data = memoryview(noise)[block * 997 % BLOCK_BYTES :][:BLOCK_BYTES]
                digest.update(data)
                connection.sendall(data)
    print(digest.hexdigest())


def spoil(node: Room) -> None:
    """Let a node's wire lose and delay what comes in, and what leaves."""
    rule = f"udp dport 9000 numgen random mod {LOSS_ONE_IN} 0 counter drop"
    node.run("nft", f"table ip wire {{ chain loss {{ type filter hook prerouting priority -300; {rule}; }}; }}")
    late = f"udp dport 9000 numgen random mod {LATE_ONE_IN} 0 meta priority set 0x10020"  # class 1:20
    node.run("nft", f"table ip late {{ chain late {{ type filter hook postrouting priority 0; {late}; }}; }}")
    for line in (
        "qdisc add dev eth0 root handle 1: htb default 10",
        "class add dev eth0 parent 1: classid 1:10 htb rate 40gbit quantum 200000",
        f"class add dev eth0 parent 1: classid 1:20 htb rate {LATE_RATE} burst 3k quantum 2000",
        "qdisc add dev eth0 parent 1:10 pfifo limit 100000",
        "qdisc add dev eth0 parent 1:20 pfifo limit 100000",
    ):
        node.run("tc", *line.split())


def lost_on_wire(sender: Room, receiver: Room) -> int:
    """Datagrams that left one tunnel and that the kernel did not give to the other, by its own counters."""
    rules = json.loads(receiver.run("nft", "-j", "list", "table", "ip", "wire"))["nftables"]
    drops = sum(
        part["counter"]["packets"]
        for each in rules
        if "rule" in each
        for part in each["rule"]["expr"]
        if "counter" in part
    )
    names, values = [
        line.split() for line in receiver.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")
    ]
    queued = json.loads(sender.run("tc", "-s", "-j", "qdisc", "show", "dev", "eth0"))
    return (
        drops + int(values[names.index("RcvbufErrors")]) + sum(each["drops"] for each in queued if "parent" not in each)
    )


def counters(tunnel: subprocess.Popen[str], log: Path) -> dict[str, int]:
    """What a tunnel has counted."""
    before = log.stat().st_size
    tunnel.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in log.read_text()[before:].splitlines(keepends=True):
            if line.startswith("{") and line.endswith("}\n"):
                return {name: value for name, value in json.loads(line).items() if name != "schema"}
        time.sleep(0.01)
    raise RuntimeError("a tunnel does not tell its counters")


def memory_kib(tunnel: subprocess.Popen[str]) -> int:
    """Resident memory of a tunnel (VmRSS)."""
    lines = Path(f"/proc/{tunnel.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


class Soak:
    """The rounds, and what they find."""

    def __init__(self, pair: Pair, directory: Path, load: Path) -> None:
        self.pair, self.directory, self.load = pair, directory, load
        self.logs = [directory / f"{name}.log" for name in ("a", "b")]
        self.payload_bytes = 0
        self.reloads = 0

    def round(self, number: int) -> None:
        """Bytes one way, datagrams the other, and new peers each second; RuntimeError when digests differ."""
        pair, port = self.pair, 7100
        flood = [pair.con2.start(str(self.load), "flood", "172.16.0.2", "7001", "2", str(size)) for size in (64, 1400)]
        got = pair.con2.start(sys.executable, "-m", "benchmarks.soak", RECEIVE, "172.16.1.2", str(port), "0")
        assert got.stdout is not None
        got.stdout.readline()
        sent = pair.con1.start(sys.executable, "-m", "benchmarks.soak", SEND, "172.16.1.2", str(port), str(number))
        while sent.poll() is None:
            self.change_peers()
            time.sleep(1.0)
        digests = [process.communicate()[0].strip() for process in (sent, got)]
        for process in flood:
            process.communicate()
        if digests[0] != digests[1] or not digests[0]:
            raise RuntimeError(f"round {number}: sent {digests[0] or 'nothing'}, got {digests[1] or 'nothing'}")
        self.payload_bytes += BLOCKS_A_ROUND * BLOCK_BYTES

    def warm_up(self) -> None:
        """Have both tables of each tunnel hold the most peers once: static memory is there from its first use on."""
        for _ in range(2):
            before = self.reloaded()
            self.change_peers(OTHERS_MAX)
            while any(now == then for now, then in zip(self.reloaded(), before, strict=True)):
                time.sleep(0.05)

    def reloaded(self) -> list[int]:
        """How often each tunnel has read its peers."""
        return [log.read_text().count("reloaded ") for log in self.logs]

    def change_peers(self, others: int | None = None) -> None:
        """Have both tunnels read other peers, among which the other one stays."""
        self.reloads += 1
        others = random.Random(self.reloads).randrange(OTHERS_MAX) if others is None else others
        for number, (tunnel, name) in enumerate(zip(self.pair.tunnels, ("a", "b"), strict=True)):
            write_peers(self.directory / name, 1 - number, others=others)
            tunnel.send_signal(signal.SIGHUP)

    def run(self, seconds: float, gigabytes: float) -> list[str]:
        """Rounds until both are reached; the report. RuntimeError when something is wrong."""
        began, number = time.monotonic(), 0
        first: list[int] = []
        self.warm_up()
        while time.monotonic() - began < seconds or self.payload_bytes < gigabytes * 1e9:
            self.round(number)
            number += 1
            first = first or [memory_kib(tunnel) for tunnel in self.pair.tunnels]
        time.sleep(SETTLE_S)
        last = [memory_kib(tunnel) for tunnel in self.pair.tunnels]
        report = [
            f"{number} rounds in {time.monotonic() - began:.0f} s, {self.reloads} changes of peers",
            f"{self.payload_bytes / 1e9:.2f} GB of payload, digests equal at both ends",
            f"memory of the tunnels: {first} KiB after the first round, {last} at the end",
        ]
        if any(after - before > GROWTH_MAX_KIB for before, after in zip(first, last, strict=True)):
            raise RuntimeError(f"memory grows: {report[-1]}")
        return report + self.check_books()

    def check_books(self) -> list[str]:
        """Compare what was sent with what came, both ways."""
        told = [counters(tunnel, log) for tunnel, log in zip(self.pair.tunnels, self.logs, strict=True)]
        nodes = (self.pair.a, self.pair.b)
        report = []
        for one, other in ((0, 1), (1, 0)):
            sent, dropped = told[one]["packets_to_peers"], ("bad_source", "malformed", "unknown_peer", "tun_failed")
            got = told[other]["packets_from_peers"] + sum(told[other][name] for name in dropped)
            lost = lost_on_wire(nodes[one], nodes[other])
            report.append(f"node {nodes[one].name}: sent {sent} packets, {got} came, the wire lost {lost}")
            if sent - got != lost:
                raise RuntimeError(f"lost without the wire's help: {report[-1]}")
            if any(told[other][name] for name in dropped):
                raise RuntimeError(f"dropped: { {name: told[other][name] for name in dropped} }")
        return report


def main() -> None:
    """Run the soak and print what it found; exit 1 when something is wrong."""
    if len(sys.argv) == 5 and sys.argv[1] in (SEND, RECEIVE):
        transfer_end(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(prog="./run bench soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("./run bench soak: needs root, for namespaces and their TUN devices")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        load = compile_load(directory)
        with joined("c", offloads=False, peers=directory) as pair:
            soak = Soak(pair, directory, load)
            for node in (pair.a, pair.b):
                spoil(node)
            try:
                print("\n".join(soak.run(options.seconds, options.gigabytes)))
            except RuntimeError as error:
                sys.exit(f"./run bench soak: {error}")


if __name__ == "__main__":
    main()
