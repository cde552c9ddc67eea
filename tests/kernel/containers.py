"""Real agents and the real CNI plugin, each node in a network namespace of its own, for the tests of containers.

node0: eth0 10.0.0.10/24, fd00:10::10/64 ═══ eth0 10.0.0.20/24, fd00:10::20/64 :node1        containers on both

The plugin runs in the namespace of its node, as a runtime there would start it. What a test has made is audited: with
its containers gone, a node is as it was before the first one came.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.agent_client import fetch_status
from muslin.kernel import netns as netns_door
from muslin.kernel import programs
from muslin.kernel.converge import converge
from muslin.kernel.linux import LinuxKernel
from muslin.model.kernel import Address, AnyObject, Link, Netns, Veth
from muslin.model.state import DesiredState
from muslin.wire.agent_api import AgentStatus
from tests.lab.support import wait_until

PLUGIN = Path(sys.executable).parent / "muslin-cni"
OTHERS = Path("/usr/lib/cni")
"""Where Debian has the plugins of containernetworking-plugins."""
DUAL = {"Network": "10.5.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:5::/48"}
IPV4 = {"Network": "10.5.0.0/16"}
IPV6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:10:5::/48"}
NEEDS = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace"),
    pytest.mark.skipif(not PLUGIN.exists(), reason="the CNI plugin is not built; ./run test builds it, given gcc"),
]
NEEDS_OTHERS = pytest.mark.skipif(not OTHERS.exists(), reason="needs the package containernetworking-plugins")

_serial = itertools.count(1)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin left behind."""

    status: int
    stdout: str
    stderr: str = ""

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    @property
    def code(self) -> int:
        assert self.status == 1, self
        assert self.document["msg"], self
        return int(self.document["code"])

    @property
    def msg(self) -> str:
        return str(self.document["msg"])

    @property
    def addresses(self) -> list[str]:
        return [ip["address"] for ip in self.document["ips"]]

    def works(self) -> Answer:
        assert self.status == 0, self
        return self


class Node:
    """One node with its agent."""

    def __init__(self, cluster: Cluster, number: int, bridge: str, network: dict[str, Any], backend: str) -> None:
        self.number, self.bridge = number, bridge
        self.network = {**network, "Backend": {"Type": backend}}
        self.netns = f"{cluster.prefix}n{number}"
        self.directory = cluster.directory / f"node{number}"
        self.directory.mkdir()
        self.store = cluster.directory / "store.db"
        self.prefix = f"{cluster.prefix}c{number}-"
        self.pid = 0

    # ---- the agent

    @property
    def environment(self) -> dict[str, str]:
        told = {name: value for name, value in os.environ.items() if not name.startswith("MUSLIN_AGENT")}
        of = {
            "STATE_DIR": self.directory / "state",
            "RUN_DIR": self.directory / "run",
            "SUBNET_FILE": self.directory / "subnet.env",
            "STORE": "sqlite",
            "STORE_PATH": self.store,
        }
        return {**told, **{f"MUSLIN_AGENT_{name}": str(value) for name, value in of.items()}, "NO_COLOR": "1"}

    def start(self, *more: str) -> None:
        words = [sys.executable, "-P", "-m", "muslin", "agent", "--iface", "eth0"]
        words += ["--network-config", json.dumps(self.network), *more]
        if self.bridge:
            words += ["--bridge", self.bridge]
        self.pid = programs.start(self.netns, words, self.environment, str(self.directory / "agent.log"))
        wait_until(self.is_ready, "the agent is ready")

    def is_ready(self) -> bool:
        with contextlib.suppress(Exception):
            return self.status.ready and (self.directory / "run" / "cni.sock").exists()
        return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        assert programs.await_end([self.pid], 20), self.log
        programs.reap(self.pid)
        self.pid = 0

    @property
    def status(self) -> AgentStatus:
        return fetch_status(str(self.directory / "run" / "agent.sock"))

    def ask(self, path: str) -> str:
        """What the agent's API answers to a GET."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.directory / "run" / "agent.sock"))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, body = answer.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200"), answer
        return body

    def containers(self) -> list[dict[str, Any]]:
        """``GET /v1/containers``."""
        found = json.loads(self.ask("/v1/containers"))["containers"]
        assert isinstance(found, list)
        return found

    @property
    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    @property
    def subnets(self) -> tuple[str, ...]:
        return self.status.lease.subnets

    # ---- commands

    def run(self, command: str, netns: str | None = None, stdin: str = "", code: int | None = 0) -> str:
        """A command on the node, or in a container's namespace; its output."""
        words = [*self.enter(netns or self.netns), *command.split()]
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def muslin(self, *words: str) -> str:
        """``muslin ...`` on the node with the agent's settings."""
        command = [*self.enter(self.netns), sys.executable, "-P", "-m", "muslin", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @staticmethod
    def enter(netns: str) -> list[str]:
        return ["nsenter", f"--net={netns_door.path_of(netns)}"]

    # ---- containers

    def make_netns(self, name: str) -> str:
        """A namespace as a runtime makes it; its name."""
        netns = f"{self.prefix}{name}"
        if netns not in netns_door.names():
            netns_door.create(netns)
        return netns

    def path(self, name: str) -> str:
        return netns_door.path_of(f"{self.prefix}{name}")

    def remove_netns(self, *names: str) -> None:
        for name in names:
            netns_door.delete(f"{self.prefix}{name}")

    def conf(self, **keys: Any) -> dict[str, Any]:
        """The network's configuration; a key that is None is left out."""
        conf = {
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "muslin-cni",
            "socket": str(self.directory / "run" / "cni.sock"),
            "mode": "bridge" if self.bridge else "routed",
            **keys,
        }
        return {key: value for key, value in conf.items() if value is not None}

    def variables(self, command: str, container: str, netns: str | None = None, **more: str) -> dict[str, str]:
        path = self.path(container if netns is None else netns) if netns != "" else ""
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": path,
            "CNI_PATH": f"{OTHERS}",
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            **more,
        }

    def begin(self, variables: dict[str, str], stdin: str | bytes, plugin: Path = PLUGIN) -> subprocess.Popen[bytes]:
        """Start a plugin on the node, and give it all that it gets."""
        process = subprocess.Popen(
            [*self.enter(self.netns), str(plugin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(stdin.encode() if isinstance(stdin, str) else stdin)
            process.stdin.close()
        process.stdin = None
        return process

    def call(
        self,
        command: str,
        container: str = "one",
        netns: str | None = None,
        *,
        plugin: Path = PLUGIN,
        env: dict[str, str] | None = None,
        stdin: str | bytes | None = None,
        **keys: Any,
    ) -> Answer:
        """One call of a plugin; ``netns`` is the container's name unless it says another."""
        variables = self.variables(command, container, netns, **(env or {}))
        given = json.dumps(self.conf(**keys)) if stdin is None else stdin
        process = self.begin(variables, given, plugin)
        out, err = process.communicate(timeout=90)
        return Answer(status=process.returncode, stdout=out.decode(), stderr=err.decode())

    def add(self, container: str, netns: str | None = None, **keys: Any) -> Answer:
        """A successful ADD into a namespace that is made if it is not there."""
        self.make_netns(container if netns is None else netns)
        return self.call("ADD", container, netns, **keys).works()

    def delete(self, *containers: str, **keys: Any) -> None:
        for container in containers:
            answer = self.call("DEL", container, **keys)
            assert (answer.status, answer.stdout) == (0, ""), answer

    def remove(self, *containers: str) -> None:
        """A whole end, as a runtime makes it."""
        self.delete(*containers)
        self.remove_netns(*containers)

    # ---- what there is

    def traces(self) -> dict[str, Any]:
        """All that containers may leave on this node."""
        links, addresses = json.loads(self.run("ip -j link")), self.run("ip -o address show scope global")
        elements = self.run("nft list ruleset") if self.has_filter() else ""
        status = self.status.containers
        assert status is not None
        return {
            "links": sorted(link["ifname"] for link in links if link["ifname"].startswith(("mus", "mut"))),
            "addresses": sorted(line.split(None, 1)[1] for line in addresses.splitlines()),
            "routes": self.run("ip route show proto boot") + self.run("ip -6 route show proto boot"),
            "neighbours": self.run("ip neighbour show nud permanent"),
            "elements": sorted(line.strip() for line in elements.splitlines() if '"mus' in line and "." in line),
            "connected": status.connected,
            "free": status.free,
            "files": sorted(str(path) for path in (self.directory / "run").rglob("*")),
            "fds": sum(1 for fd in self.fds() if "net:[" in fd),
        }

    def has_filter(self) -> bool:
        return "muslin_cni" in self.run("nft list tables")

    def fds(self) -> list[str]:
        """What the agent's descriptors lead to."""
        found = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{self.pid}/fd/{fd}"))
        return found

    def links_in(self, name: str) -> set[str]:
        listed = json.loads(self.run("ip -j link", f"{self.prefix}{name}"))
        return {link["ifname"] for link in listed} - {"lo"}

    def socket_in(self, name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket inside of a container."""
        return netns_door.call_in(f"{self.prefix}{name}", lambda: socket.socket(family, kind, protocol))

    def pings(self, name: str, address: str, *options: str) -> bool:
        words = [*self.enter(f"{self.prefix}{name}"), "ping", "-n", "-c1", "-W5", *options, address]
        return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0


class Cluster:
    """Two nodes of one network. Agents do not run yet."""

    def __init__(
        self, directory: Path, network: dict[str, Any], bridge: str = "cni0", backend: str = "host-gw", nodes: int = 1
    ) -> None:
        self.directory = directory
        self.prefix = f"muslin-cni{os.getpid()}-{next(_serial)}-"
        self.nodes = [Node(self, number, bridge, network, backend) for number in range(nodes)]
        a, b = (f"{self.prefix}n{number}" for number in (0, 1))
        objects: list[AnyObject] = [
            *(Netns(netns=netns) for netns in (a, b)),
            Link(netns=a, name="eth0", options=Veth(peer_netns=b, peer="eth0"), up=True),
            Link(netns=b, name="eth0", options=Veth(peer_netns=a, peer="eth0"), up=True),
        ]
        for netns, host in ((a, "10"), (b, "20")):
            objects += [
                Address(netns=netns, link="eth0", address=f"10.0.0.{host}/24"),
                Address(netns=netns, link="eth0", address=f"fd00:10::{host}/64"),
            ]
        with LinuxKernel() as kernel:
            assert converge(kernel, DesiredState(tuple(objects))).ok

    def close(self) -> None:
        for node in self.nodes:
            if node.pid:
                node.kill()
        for name in netns_door.names():
            if name.startswith(self.prefix):
                with contextlib.suppress(FileNotFoundError):
                    netns_door.delete(name)


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with all agents up, and nothing of it afterwards."""
    try:
        for node in cluster.nodes:
            node.start()
        if len(cluster.nodes) > 1:
            wait_until(lambda: all(node.status.programmed for node in cluster.nodes), "the nodes know each other")
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def audited(node: Node) -> Iterator[Node]:
    """What is done here leaves nothing; namespaces that it made are removed at the end."""
    before = node.traces()
    yield node
    names = [name.removeprefix(node.prefix) for name in netns_door.names() if name.startswith(node.prefix)]
    status = node.status.containers
    if status is not None and status.connected:
        for one in node.containers():
            node.delete(one["container_id"], netns="", env={"CNI_IFNAME": one["interface"]})
    node.remove_netns(*names)
    wait_for_same(node.traces, before)


def wait_for_same(read: Callable[[], dict[str, Any]], before: dict[str, Any]) -> None:
    """What is read becomes what was read before; the kernel takes some things away a moment later."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: read() == before, "all is as it was", 10)
    after = read()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, f"before and after: {changed}"


# ---- fixtures, for whoever imports them ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cni0", ""], ids=["bridge", "routed"])
def one_node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node in either mode, for a whole file; something was connected there before."""
    with running(Cluster(tmp_path_factory.mktemp("cni"), DUAL, request.param)) as cluster:
        cluster.nodes[0].add("first")
        cluster.nodes[0].remove("first")
        yield cluster.nodes[0]


@pytest.fixture
def node(one_node: Node) -> Iterator[Node]:
    """The same for one test, after which all has to be as it was."""
    with audited(one_node):
        yield one_node
