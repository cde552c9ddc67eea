"""``./run bench agent``: what an agent costs: start, one more peer, a look at everything, repair, memory, idling.

Theory of operation: one agent as a process in a namespace of its own, on a store that holds the leases of as many
peers as the figure says. It has done its work when it writes subnet.env, which is after its first pass; what a pass is
made of it says itself. The time for one more peer is what the agent was on a CPU for it (schedstat), all threads. In
turn with it, the same objects by ``ip -batch`` and ``bridge -batch``: kernel work and iproute2's parsing, without
looking, leases or a store. The join is seen in a lab of 20 nodes that run agents.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import ROOT, Figure, Sample, figure, muslin, report, run_once
from muslin.agent_client import fetch_status
from muslin.kernel.base import Scope
from muslin.kernel.linux import LinuxKernel
from muslin.model.kernel import Route
from muslin.model.lease import Advertisement, Lease
from muslin.store.sqlite import SqliteStore
from muslin.store.sqlite_file import open_file
from muslin.wire.agent_api import AgentStatus
from muslin.wire.flannel_lease import encode_value

HERE, THERE = "muslin-bench-agent", "muslin-bench-far"
CONFIG = b'{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}'
TARGETS_S = {1_000: 0.6, 10_000: 2.0}
WAIT_S = 60.0
LOOK_S = 1.5
"""Longer than any look takes."""
LAB, LAB_NODES = "bench", 20


def peer(number: int) -> Lease:
    """The lease of one of many peers, all on the underlay 192.168.0.0/16."""
    high, low = divmod(number, 250)
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:{high:02x}:{low:02x}"}
    advertisement = Advertisement(addresses=(f"192.168.{1 + high}.{1 + low}",), backend="vxlan", data=data)
    return Lease(subnets=(f"10.{1 + high}.{low}.0/24",), advertisement=advertisement)


@contextmanager
def namespaces() -> Iterator[None]:
    """The agent's namespace, with an underlay that leads to another one."""
    commands = (
        f"ip netns add {HERE}",
        f"ip netns add {THERE}",
        f"ip -n {HERE} link add eth0 type veth peer name eth0 netns {THERE}",
        f"ip -n {HERE} link set lo up",
        f"ip -n {HERE} addr add 192.168.0.1/16 dev eth0",
        f"ip -n {HERE} link set eth0 up",
        f"ip -n {THERE} link set eth0 up",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for name in (HERE, THERE):
            subprocess.run(["ip", "netns", "delete", name], check=False)


class Agent:
    """One agent in the namespace, on a store with ``peers`` leases."""

    def __init__(self, directory: Path, peers: int, store: str = "sqlite") -> None:
        self.directory, self.peers = directory, peers
        directory.mkdir()
        self.store = directory / "store.sqlite"
        self.fill()
        self.process: subprocess.Popen[bytes] | None = None

    def fill(self) -> None:
        """Write the leases, all at once."""
        connection: sqlite3.Connection = open_file(self.store)
        rows = [(lease.name, encode_value(lease.advertisement), None, 2) for lease in map(peer, range(self.peers))]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO lease VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE store SET revision = 2, config = ?", (CONFIG,))
        connection.execute("COMMIT")
        connection.close()

    @property
    def socket(self) -> str:
        """Where it can be asked."""
        return str(self.directory / "run" / "agent.sock")

    def start(self) -> float:
        """Start it; the seconds until all peers are programmed."""
        path = self.directory
        words = muslin("agent", "--store", "sqlite", "--store-path", str(self.store), "--iface", "eth0")
        words += ["--state-dir", str(path / "state"), "--run-dir", str(path / "run")]
        words += ["--subnet-file", str(path / "subnet.env"), "--node-name", "bench"]
        begun = time.monotonic()
        with open(path / "log", "wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", HERE, *words],
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for((path / "subnet.env").exists, lambda: (path / "log").read_text(), pause_s=0.002)
        return time.monotonic() - begun

    def status(self) -> AgentStatus:
        """What it says of itself."""
        return fetch_status(self.socket, timeout_s=30)

    def memory_mib(self) -> tuple[float, float]:
        """Resident size now, and its peak."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024

    def on_cpu_s(self) -> float:
        """How long its threads have been on a CPU (proc_pid_schedstat(5), nanoseconds)."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def look_s(self) -> float:
        """How long a look takes that finds nothing to do."""
        assert self.process is not None
        before = self.status().kernel.passes
        self.process.send_signal(signal.SIGHUP)
        time.sleep(LOOK_S)  # a status of 10,000 peers takes 30 ms of the agent, which would count
        wait_for(lambda: self.status().kernel.passes > before, pause_s=1.0)
        return self.status().kernel.last_pass_s or 0.0

    def one_more_s(self, number: int) -> float:
        """The time that the agent is on a CPU for one more peer."""
        before = self.on_cpu_s()
        asyncio.run(add_lease(self.store, peer(number)))
        wait_for(lambda: has_route(HERE, peer(number).subnets[0]))
        return self.on_cpu_s() - before

    def repair_s(self) -> float:
        """From the removal of the device until the last peer's route is there again."""
        subnet = peer(self.peers - 1).subnets[0]
        begun = time.monotonic()
        subprocess.run(["ip", "-n", HERE, "link", "delete", "vxlan1"], check=True)
        wait_for(lambda: has_route(HERE, subnet), pause_s=0.005)
        return time.monotonic() - begun

    def end(self) -> None:
        """End it, and remove what it made."""
        if self.process is None:
            return
        self.process.terminate()
        self.process.wait()
        words = ["uninstall", "--state-dir", str(self.directory / "state"), "--run-dir", str(self.directory / "run")]
        words += ["--store", "sqlite", "--store-path", str(self.store)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = ["ip", "netns", "exec", HERE, *muslin(*words)]
        subprocess.run(command, check=True, env=environment, capture_output=True)


async def add_lease(path: Path, lease: Lease) -> None:
    """Another node joins."""
    store = SqliteStore(path)
    try:
        await store.create(lease, 3600.0)
    finally:
        await store.close()


def has_route(netns: str, subnet: str) -> bool:
    """Whether there is a route to just this subnet."""
    words = ["ip", "-n", netns, "route", "show", subnet]
    return bool(subprocess.run(words, check=True, capture_output=True).stdout)


def wait_for(condition: Callable[[], object], words: Callable[[], str] = lambda: "", pause_s: float = 0.01) -> None:
    """Wait until it is true; RuntimeError with these words when it never is."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not happen within {WAIT_S:.0f} s: {words()}")
        time.sleep(pause_s)


def by_iproute2(directory: Path, peers: int) -> Sample:
    """The same objects by batches of iproute2, in three processes."""
    device = ["ip", "-n", HERE, "link", "add", "vxlan1", "type", "vxlan", "id", "1", "local", "192.168.0.1"]
    subprocess.run([*device, "dev", "eth0", "dstport", "8472", "nolearning"], check=True)
    subprocess.run(["ip", "-n", HERE, "link", "set", "vxlan1", "up"], check=True)
    batches = {"ip": [], "bridge": []}  # type: dict[str, list[str]]
    for lease in map(peer, range(peers)):
        gateway, mac = lease.subnets[0].partition("/")[0], lease.advertisement.data["VtepMAC"]
        batches["ip"].append(f"neigh add {gateway} lladdr {mac} dev vxlan1 nud permanent")
        batches["ip"].append(f"route add {lease.subnets[0]} via {gateway} dev vxlan1 onlink")
        batches["bridge"].append(f"fdb add {mac} dev vxlan1 dst {lease.advertisement.addresses[0]} self permanent")
    samples = []
    for program, lines in batches.items():
        path = directory / f"{program}-{peers}.batch"
        path.write_text("\n".join(lines) + "\n")
        samples.append(run_once([program, "-n", HERE, "-batch", str(path)]))
    subprocess.run(["ip", "-n", HERE, "link", "delete", "vxlan1"], check=True)
    return Sample(*(sum(column) for column in zip(*map(_columns, samples), strict=True)))


def _columns(sample: Sample) -> tuple[float, float, float]:
    return sample.wall_s, sample.cpu_s, sample.memory_mib


class Findings:
    """Samples by the name of the figure, and what is told beneath the table."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.notes: list[str] = []

    def add(self, name: str, wall_s: float, cpu_s: float = 0.0, memory_mib: float = 0.0) -> None:
        """One more sample."""
        self.samples.setdefault(name, []).append(Sample(wall_s, cpu_s, memory_mib))


def measure_size(found: Findings, directory: Path, peers: int, turns: int) -> None:
    """Start, one more peer, look and repair with this many peers, in turns with iproute2."""
    splits = []
    for turn in range(turns):
        agent = Agent(directory / f"{peers}-{turn}", peers)
        try:
            start_s = agent.start()
            cpu_s = agent.on_cpu_s()
            splits.append(agent.status().kernel.last_pass_split)
            memory, peak = agent.memory_mib()
            found.add(f"{peers} peers: start to all programmed", start_s, cpu_s, peak)
            found.add(f"{peers} peers: look without a change", statistics.median(agent.look_s() for _ in range(3)))
            found.add(f"{peers} peers: one more (agent on CPU)", agent.one_more_s(peers + turn))
            found.add(f"{peers} peers: vxlan device deleted to repaired", agent.repair_s())
            found.notes.append(f"{peers} peers, turn {turn + 1}: resident {memory:.1f} MiB, peak {peak:.1f} MiB")
        finally:
            agent.end()
        sample = by_iproute2(directory, peers)
        found.add(f"{peers} peers: ip -batch and bridge -batch", sample.wall_s, sample.cpu_s, sample.memory_mib)
    parts = {name: statistics.median(split[name] for split in splits) for name in splits[0]}
    found.notes.append(f"{peers} peers, first pass: " + ", ".join(f"{name} {s:.3f} s" for name, s in parts.items()))


def measure_idle(found: Findings, directory: Path, seconds: float) -> None:
    """Memory and CPU of an agent with ten peers that has nothing to do."""
    agent = Agent(directory / "idle", 10)
    try:
        agent.start()
        wait_for(lambda: agent.status().ready)
        before = agent.on_cpu_s()
        time.sleep(seconds)
        share = (agent.on_cpu_s() - before) / seconds
        memory, peak = agent.memory_mib()
        found.notes.append(
            f"10 peers, idle for {seconds:.0f} s: {share:.3%} of a core (target 0.2 %), resident {memory:.1f} MiB "
            f"(target 45 on sqlite), peak {peak:.1f} MiB"
        )
    finally:
        agent.end()


def measure_join(found: Findings, turns: int) -> None:
    """From a new lease in the store until all nodes of a lab have the route."""
    shape = ("--agents", "--step", "4", "--backend", "vxlan", "--nodes", str(LAB_NODES), "--containers", "1")
    up = run_once(muslin("lab", "up", "--name", LAB, "--allow-overlap", *shape))
    found.add(f"lab of {LAB_NODES} agents: up", up.wall_s, up.cpu_s, up.memory_mib)
    try:
        names = tuple(f"muslin-{LAB}-node{number}" for number in range(1, LAB_NODES + 1))
        (store,) = Path("/run/muslin", LAB).glob("**/*.sqlite")
        for turn in range(turns):
            lease = peer(0)
            subnet = f"172.16.{200 + turn}.0/24"
            advertisement = Advertisement(
                addresses=(f"10.0.77.{turn + 1}",), backend="vxlan", data={**lease.advertisement.data}
            )
            mac = f"02:00:00:00:99:{turn:02x}"
            advertisement.data["VtepMAC"] = mac
            begun = time.monotonic()
            asyncio.run(add_lease(store, Lease(subnets=(subnet,), advertisement=advertisement)))
            with LinuxKernel() as kernel:
                wait_for(lambda subnet=subnet, kernel=kernel: _routed(kernel, names, subnet) == len(names))  # type: ignore[misc]
            found.add(f"lab of {LAB_NODES} agents: a join seen by all", time.monotonic() - begun)
    finally:
        run_once(muslin("lab", "down", LAB))


def _routed(kernel: LinuxKernel, names: tuple[str, ...], subnet: str) -> int:
    seen = kernel.observe(Scope(netns=names))
    return sum(isinstance(obj, Route) and obj.destination == subnet for obj in seen.objects.values())


def figures(found: Findings) -> list[Figure]:
    """All figures with their targets."""
    targets = {f"{size} peers: start to all programmed": target for size, target in TARGETS_S.items()}
    targets |= {
        "10000 peers: look without a change": 0.5,
        "10000 peers: one more (agent on CPU)": 0.02,
        "1000 peers: vxlan device deleted to repaired": 2.0,
        f"lab of {LAB_NODES} agents: a join seen by all": 0.5,
    }
    return [figure(name, samples, targets.get(name)) for name, samples in found.samples.items()]


def main() -> None:
    """Run the rounds and print them."""
    parser = argparse.ArgumentParser(prog="./run bench agent", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="rounds of each size (default 5)")
    parser.add_argument("--idle", type=float, default=60.0, metavar="S", help="how long to watch it idle (default 60)")
    parser.add_argument("--sizes", default="1000,10000", help="numbers of peers, with commas (default 1000,10000)")
    parser.add_argument("--no-join", action="store_true", help="leave the lab of 20 agents out")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("./run bench agent: needs root")
    load_before = os.getloadavg()[0]
    found = Findings()
    with tempfile.TemporaryDirectory() as name, namespaces():
        for size in map(int, options.sizes.split(",")):
            measure_size(found, Path(name), size, options.turns)
        if options.idle:
            measure_idle(found, Path(name), options.idle)
    if not options.no_join:
        measure_join(found, options.turns)
    report("agent", figures(found), found.notes, options.output, load_before)


if __name__ == "__main__":
    main()
