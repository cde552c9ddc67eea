"""What is said of such networks and does not hold, each shown on a lab that is made for it and thrown away.

Theory of operation: a myth is a claim, what really holds, and a function that proves it: it gets a lab that is up and
yields what it did and what came of it, line by line, then whether that bears the correction out. Nothing is asserted
that is not measured at that moment. The two about socat's tunnel need socat, and say so where it is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from muslin.explain.lookup import Query, lookup, why
from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NetlinkSocket
from muslin.kernel.programs import end_processes
from muslin.lab.places import lab_network
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.lab.topology import Backend, Step
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord, RouteRecord

PATIENCE_S = 10.0
TUN_INFORMATION_BYTES = 4  # linux/if_tun.h struct tun_pi, which socat's TUN sends along


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was done and seen, and whether it bears out the correction; None where it could not be tried."""

    lines: tuple[str, ...]
    holds: bool | None


class Myth(msgspec.Struct, frozen=True, kw_only=True):
    """One claim. ``step`` and ``backend`` of the lab that it is shown on."""

    name: str
    claim: str
    truth: str
    step: Step
    prove: Callable[[LabState], Proof]
    backend: Backend | None = None


def _run(state: LabState, place: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside of a place, whatever comes of it."""

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)

    return netns_door.call_in(netns_of(state.name, place), call)


def _pings(state: LabState, place: str, address: str, source: str = "") -> bool:
    """Whether an echo request is answered."""
    pinned = ["-I", source] if source else []
    return _run(state, place, "ping", "-c", "1", "-W", "1", *pinned, address).returncode == 0


def _word(answered: bool) -> str:
    return "answered" if answered else "lost"


def prove_order(state: LabState) -> Proof:
    """A static /25 inside of a connected /24, and the kernel asked."""
    command = ("ip", "route", "add", "172.16.0.0/25", "via", "10.0.0.20")
    _run(state, "node1", *command)
    netns = netns_of(state.name, "node1")
    socket = NetlinkSocket(netns)
    try:
        messages = socket.ask(rtnetlink.route_get("172.16.0.2", fib_match=True))
    finally:
        socket.close()
    found = rtnetlink.parse_record(messages[0])
    assert isinstance(found, RouteRecord)
    with lab_network(state) as network:
        sight = network["node1"]
        told = why(sight, lookup(sight, Query(destination="172.16.0.2")))
    return Proof(
        lines=(
            f"node1$ {' '.join(command)}",
            "node1$ ip route get 172.16.0.2 fibmatch",
            f"the kernel says: {found.destination} via {found.via}, though 172.16.0.0/24 is directly connected",
            f"why: it {told}",
        ),
        holds=found.destination == "172.16.0.0/25" and found.via == "10.0.0.20",
    )


def prove_reverse_path(state: LabState) -> Proof:
    """Strict, then loose filtering on node2, with all three flows that are in question."""
    lines, seen = [], {}
    for mode in (1, 2):
        lines.append(f"node2$ sysctl -w net.ipv4.conf.all.rp_filter={mode}")
        _run(state, "node2", "sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={mode}")
        for place, address, source in (
            ("node1", "172.16.1.2", ""),
            ("con1.node1", "10.0.0.20", ""),
            ("node1", "172.16.1.2", "10.0.0.10"),
        ):
            answered = seen[mode, place, source] = _pings(state, place, address, source)
            pinned = f" -I {source}" if source else ""
            lines.append(f"{place}$ ping{pinned} {address}: {_word(answered)}")
    strict = (seen[1, "node1", ""], seen[1, "con1.node1", ""], seen[1, "node1", "10.0.0.10"])
    return Proof(lines=tuple(lines), holds=strict == (True, False, False) and all(seen[2, *key[1:]] for key in seen))


def prove_fragments(state: LabState) -> Proof:
    """The talk's tunnel with four MTUs, and the kernel's count of fragments for one full-size packet each."""
    if shutil.which("socat") is None:
        return Proof(lines=("socat is not installed here",), holds=None)
    with _talks_tunnel(state):
        lines, counts = [], []
        for mtu in (1492, 1472, 1469, 1468):
            for node in ("node1", "node2"):
                _run(state, node, "ip", "link", "set", "tun0", "mtu", str(mtu))
            before = _fragments(state)
            _run(state, "node1", "ping", "-c", "1", "-W", "1", "-s", str(mtu - 28), "172.16.1.100")
            counts.append(_fragments(state) - before)
            lines.append(f"tun0 mtu {mtu}: a packet of {mtu} bytes leaves node1 in {counts[-1] or 1} outer packets")
    added = 20 + 8 + TUN_INFORMATION_BYTES
    lines.append(f"1468 + 20 (IP) + 8 (UDP) + {TUN_INFORMATION_BYTES} (TUN packet information) = {1468 + added}")
    return Proof(lines=tuple(lines), holds=counts[3] == 0 and all(count >= 2 for count in counts[:3]))


def _fragments(state: LabState) -> int:
    """How many fragments node1 has made so far: FragCreates of /proc/net/snmp, a line of names and one of values."""

    def read() -> str:
        with open("/proc/thread-self/net/snmp") as file:
            return file.read()

    text = netns_door.call_in(netns_of(state.name, "node1"), read)
    names, values = (line.split() for line in text.splitlines() if line.startswith("Ip: "))
    return int(values[names.index("FragCreates")])


def prove_socat(state: LabState) -> Proof:
    """One side of the talk's tunnel alone, and a packet."""
    if shutil.which("socat") is None:
        return Proof(lines=("socat is not installed here",), holds=None)
    command = _socat("172.16.0.100/16", "10.0.0.20", "10.0.0.10")
    process = _start(state, "node1", command)
    try:
        _wait_for(lambda: _has_tun(state, "node1") or process.poll() is not None)
        for _ in range(20):  # each packet asks whether somebody listens; the answer to one ends the program
            if process.poll() is not None:
                break
            _pings(state, "node1", "172.16.1.100")
        ended = process.poll() is not None
        said = process.stderr.read().decode(errors="replace").strip().splitlines() if ended and process.stderr else []
        gone = not _has_tun(state, "node1")
    finally:
        _end(process)
    lines = [f"node1$ {' '.join(command)}", "node1$ ping 172.16.1.100", *said[-1:]]
    lines.append(f"socat {'has ended' if ended else 'runs'}, and tun0 {'is gone' if gone else 'is there'}")
    return Proof(lines=tuple(lines), holds=ended and gone and any("refused" in line for line in said))


def _socat(tunnel: str, peer: str, own: str) -> tuple[str, ...]:
    return ("socat", f"TUN:{tunnel},iff-up,tun-name=tun0", f"UDP:{peer}:9000,bind={own}:9000")


def _start(state: LabState, place: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    return netns_door.call_in(
        netns_of(state.name, place),
        lambda: subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        ),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        end_processes([process.pid])
    process.wait(PATIENCE_S)
    if process.stderr:
        process.stderr.close()


@contextlib.contextmanager
def _talks_tunnel(state: LabState) -> Iterator[None]:
    """socat on both nodes, each started again until both are there."""
    ends = (
        ("node1", "172.16.0.100/16", "10.0.0.20", "10.0.0.10"),
        ("node2", "172.16.1.100/16", "10.0.0.10", "10.0.0.20"),
    )
    running: dict[str, subprocess.Popen[bytes]] = {}

    def alive() -> bool:
        for place, *words in ends:
            if place not in running or running[place].poll() is not None:
                if place in running:
                    _end(running[place])
                running[place] = _start(state, place, _socat(*words))
        return all(_has_tun(state, place) for place, *_ in ends) and _pings(state, "node1", "172.16.1.100")

    try:
        _wait_for(alive)
        yield
    finally:
        for process in running.values():
            _end(process)


def _has_tun(state: LabState, place: str) -> bool:
    socket = NetlinkSocket(netns_of(state.name, place))
    try:
        records = [rtnetlink.parse_record(message) for message in socket.dump(rtnetlink.link_dump())]
    finally:
        socket.close()
    return any(isinstance(one, LinkRecord) and one.name == "tun0" and one.up for one in records)


def _wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, or for as long as patience lasts: the proof that follows then says what there is."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        os.sched_yield()


MYTHS: tuple[Myth, ...] = (
    Myth(
        name="order",
        claim="The kernel asks directly connected routes first, then static, dynamic and default ones.",
        truth="It takes the longest prefix, and of equal ones the lowest metric. A static /25 beats a connected /24.",
        step=3,
        prove=prove_order,
    ),
    Myth(
        name="rp-filter",
        claim="For packets from a node to a remote container, rp_filter has to be off (0).",
        truth="That works with strict (1). Strict breaks container to remote node, and a node that pins its source;"
        " loose (2) lets all of them through.",
        step=4,
        prove=prove_reverse_path,
    ),
    Myth(
        name="mtu",
        claim="With MTU 1492 nothing is fragmented, since the tunnel adds 8 bytes of UDP header.",
        truth="It adds 20 bytes of IP, 8 of UDP, and socat's TUN 4 more: 1468 is the largest that is not fragmented.",
        step=4,
        backend="none",
        prove=prove_fragments,
    ),
    Myth(
        name="socat",
        claim="The socat tunnel can simply be started, on one node after the other.",
        truth="Where the other side does not listen yet, a packet ends it (connection refused), and tun0 is gone.",
        step=4,
        backend="none",
        prove=prove_socat,
    ),
)
