"""The nodes of ``./run bench cni``: what each contender needs around it, and how it gets reservations that were there.

Theory of operation: a contender's node is a network namespace with an interface eth0 into a second one, which is all
that an agent asks for. Debian's plugins get a configuration and a directory for host-local's files; ours gets an agent
on a store in a file, with a /16 for the node, so that thousands of reservations fit. "Already reserved" is written
where each keeps its own: a file an address for host-local, the journal for ours (``fill_ours``), each as its owner
would have written it for containers that live in the namespace that ``CROWD`` names.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.cni_calls import Contender
from benchmarks.measure import ROOT, muslin
from muslin.kernel import netns as netns_door

PREFIX = f"muslin-bench-cni{os.getpid()}"
CROWD = f"{PREFIX}-crowd"
"""The namespace in which containers live that were there before."""
DEBIAN = Path("/usr/lib/cni")
OURS = Path(sys.executable).with_name("muslin-cni")
DEBIAN_SUBNETS = {"bridge": "10.201.0.0/16", "ptp": "10.202.0.0/16"}
NETWORK = '{"Network": "10.192.0.0/13", "SubnetLen": 16, "Backend": {"Type": "host-gw"}}'
WAIT_S = 30.0


def container_names(count: int) -> list[str]:
    """The names of the containers, each the name of its namespace."""
    return [f"{PREFIX}-c{number}" for number in range(count)]


@contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Containers that consist of a namespace, and the crowd's; their names."""
    names = container_names(count)
    with ExitStack() as stack:
        for name in (*names, CROWD):
            netns_door.create(name)
            stack.callback(netns_door.delete, name)
        yield names


@contextmanager
def node(name: str) -> Iterator[str]:
    """A node's namespace, with eth0; its name."""
    here, there = f"{PREFIX}-{name}", f"{PREFIX}-{name}-far"
    with ExitStack() as stack:
        for one in (here, there):
            netns_door.create(one)
            stack.callback(netns_door.delete, one)
        for command in (
            "link set lo up",
            f"link add eth0 type veth peer name eth0 netns {there}",
            "address add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
        ):
            subprocess.run(["ip", "-n", here, *command.split()], check=True)
        subprocess.run(["ip", "-n", there, "link", "set", "eth0", "up"], check=True)
        yield here


@contextmanager
def debian(kind: str, directory: Path, reserved: int) -> Iterator[Contender]:
    """``bridge`` or ``ptp`` with host-local."""
    label = f"{kind}-{reserved}"
    data = directory / label
    subnet = DEBIAN_SUBNETS[kind]
    fill_host_local(data / label, subnet, reserved)
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(data)}
    conf = {"cniVersion": "1.0.0", "name": label, "type": kind, "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}}
    if kind == "bridge":
        conf |= {"bridge": "cni0", "isGateway": True}
    with node(label) as here:
        yield Contender(name=label, program=DEBIAN / kind, path=str(DEBIAN), node=here, conf=conf)


def fill_host_local(directory: Path, subnet: str, count: int) -> None:
    """Reservations as host-local keeps them: a file named by the address, with id and interface in two lines."""
    directory.mkdir(parents=True)
    first = int(ipaddress.ip_network(subnet).network_address) + 2
    for number in range(count):
        path = directory / str(ipaddress.ip_address(first + number))
        path.write_text(f"crowd{number}\r\neth0")
    (directory / "last_reserved_ip.0").write_text(str(ipaddress.ip_address(first + max(count - 1, 0))))


@contextmanager
def ours(directory: Path, reserved: int) -> Iterator[Contender]:
    """Our plugin, with its agent."""
    label = f"ours-{reserved}"
    place = directory / label
    place.mkdir()
    with node(label) as here:
        if reserved:
            with agent(here, place):
                subnet = read_subnet(place)
            fill_ours(place / "state", subnet, reserved)
        with agent(here, place):
            socket = str(place / "run" / "cni.sock")
            conf = {"cniVersion": "1.0.0", "name": label, "type": "muslin-cni", "socket": socket}
            yield Contender(name=label, program=OURS, path=str(OURS.parent), node=here, conf=conf)
        if reserved and count_ours(place / "state") < reserved:
            raise RuntimeError(f"{label}: the agent did not keep the reservations that it was to be measured with")


def read_subnet(place: Path) -> str:
    """The network that the agent leased."""
    lines = (place / "subnet.env").read_text().splitlines()
    told = dict(line.partition("=")[::2] for line in lines)
    return str(ipaddress.ip_interface(told["FLANNEL_SUBNET"]).network)


def fill_ours(state: Path, subnet: str, count: int) -> None:
    """Reservations as the agent keeps them, in its journal, written by its own code while no agent runs.

    They belong to containers in the crowd's namespace, which is there, so nobody takes them for left over.
    """
    from muslin.agent.reservations import Reservation, Reservations

    path = netns_door.path_of(CROWD)
    kept = Reservations.open(state / "containers.db", (subnet,))
    try:
        for number in range(count):
            kept.add(
                Reservation(
                    container_id=f"crowd{number}",
                    ifname="eth0",
                    network=f"ours-{count}",
                    netns_path=path,
                    netns_inode=os.stat(path).st_ino,
                    boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
                    at=time.time(),
                    complete=True,
                )
            )
    finally:
        kept.close()


def count_ours(state: Path) -> int:
    """How many reservations the agent's journal holds."""
    from muslin.agent.reservations import Reservations

    kept = Reservations.open(state / "containers.db")
    try:
        return len(kept.all())
    finally:
        kept.close()


@contextmanager
def agent(here: str, place: Path) -> Iterator[None]:
    """An agent on a node, on a store in a file, ready to be called; afterwards it has ended."""
    words = muslin("agent", "--store", "sqlite", "--store-path", str(place / "store.sqlite"), "--iface", "eth0")
    words += ["--state-dir", str(place / "state"), "--run-dir", str(place / "run"), "--bridge", "cni0"]
    words += ["--subnet-file", str(place / "subnet.env"), "--node-name", place.name, "--network-config", NETWORK]
    (place / "subnet.env").unlink(missing_ok=True)
    with open(place / "log", "ab") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", here, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: _is_ready(process, place), f"the agent did not get ready: {place / 'log'}")
        yield
    finally:
        process.terminate()
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], place: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the agent ended: {(place / 'log').read_text()[-2000:]}")
    return (place / "subnet.env").exists() and (place / "run" / "cni.sock").exists()


def wait_for(condition: Callable[[], bool], words: str) -> None:
    """Wait until it is true; RuntimeError with these words when it never is."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(words)
        time.sleep(0.01)


@contextmanager
def contender(name: str, directory: Path, reserved: int) -> Iterator[Contender]:
    """The contender of this name with so many reservations that were there before."""
    made = ours(directory, reserved) if name == "ours" else debian(name, directory, reserved)
    with made as one:
        yield one
