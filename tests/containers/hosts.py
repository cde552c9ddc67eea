"""Hosts for container runtimes on one machine: each a network, a mount and a process namespace of its own.

Theory of operation: a host is held by its process 1 (node_init). To everything that is started in it (``Host.run``,
``Host.start``), /run, /opt and /dev/shm are empty and its own, /var/lib and /etc/cni are directories of the test's,
what is written to /usr/lib/cni goes to another one, and the boot has an identity of its own; so podman and containerd
run with their usual paths, and the machine's own directories stay as they are. Ending process 1 ends all processes of
the host, containers included, and takes its mounts and links away: that is a power cut, and also how a host is cleaned
up. After it, ``boot`` raises the host again with what was on its disk.

The hosts have one segment, a bridge in the namespace of the ``Underlay``, which also holds etcd:

    host1 eth0 192.0.2.1 ──┐
    host2 eth0 192.0.2.2 ──┴── lan 192.0.2.254: etcd

One agent runs on each host; it leases the subnet out of 10.244.0.0/16 (and one of fd00:10:244::/48, where the underlay
is for both families) and says so in subnet.env, which is what a
conflist for another plugin is made of (plugins.py).
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from muslin.kernel import netns as netns_door
from tests.containers.images import BUSYBOX, write_files, write_image
from tests.containers.plugins import Plugin
from tests.contract.etcd_server import Cluster
from tests.lab.support import SOURCE, run_token, wait_until

NETWORK = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL_STACK = {"EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
UNDERLAY_PREFIX, UNDERLAY_PREFIX6 = "192.0.2", "2001:db8:0:2:"
"""Of TEST-NET-1 (RFC 5737), and of the prefix for documentation (RFC 3849): nothing that exists."""
LAN_ADDRESS = f"{UNDERLAY_PREFIX}.254"
BRIDGE = "cni0"
COMMAND_S = 60.0
INIT = Path(__file__).with_name("node_init.py")
DIRECTORIES = ("var-lib", "etc-cni/net.d", "usr-lib-cni", "work", "logs")
SETUP = """
mount -t proc proc /proc
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/etc-cni" /etc/cni
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
mount -t overlay -o "lowerdir=/usr/lib/cni,upperdir=$1/usr-lib-cni,workdir=$1/work" overlay /usr/lib/cni
for directory in /run /opt /dev/shm; do mount -t tmpfs none "$directory"; done
mkdir -p /run/netns /run/lock /run/flannel /opt/cni/bin /var/lib/cni
mkdir -p /opt/busybox
"$4" --install -s /opt/busybox
ip link set lo up
echo ready
exec "$2" -I -S "$3" "$1"
"""
"""Run by a shell in the new namespaces, with the host's directory, an interpreter, node_init.py and busybox."""

Result = TypeVar("Result")
_serial = itertools.count(1)


def cgroup_parent() -> str:
    """The control group below which all containers of this run live."""
    return f"/muslin-{run_token()}"


class Underlay:
    """The segment between the hosts, and the etcd on it; a context manager. ``dual``: containers get IPv6 as well."""

    def __init__(self, directory: Path, dual: bool = False) -> None:
        self.directory, self.dual = directory, dual
        self.hosts: list[Host] = []
        """All that were made, of which some may have been removed."""
        self.netns = f"muslin-{run_token()}-lan{next(_serial)}"
        self.image = directory / "image.tar"
        self.web_directory = directory / "web"
        """What the image's web server shows, for one on a host."""
        self._etcd: Cluster | None = None

    def __enter__(self) -> Underlay:
        write_image(self.image)
        write_files(self.web_directory)
        netns_door.create(self.netns)
        ip(self.netns, "link set lo up")
        ip(self.netns, "link add br0 type bridge")
        ip(self.netns, f"address add {LAN_ADDRESS}/24 dev br0")
        ip(self.netns, "link set br0 up")
        return self

    def __exit__(self, *_: object) -> None:
        if self._etcd is not None:
            self._etcd.__exit__(None, None, None)
        netns_door.delete(self.netns)

    @property
    def endpoint(self) -> str:
        """The URL of etcd, which is started when first asked for, and is told which network to build."""
        if self._etcd is None:
            cluster = Cluster(self.directory)
            (member,) = cluster.members
            member.url = f"http://{LAN_ADDRESS}:{member.port}"
            self.call(cluster.__enter__)
            self._etcd = cluster
            config = NETWORK | (DUAL_STACK if self.dual else {})
            self.call(lambda: member.put("/coreos.com/network/config", json.dumps(config).encode()))
        return self._etcd.urls[0]

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function on the segment; processes that it starts stay there."""
        return netns_door.call_in(self.netns, function)

    def fetch(self, url: str) -> str:
        """What a web server answers to somebody on the segment."""

        def ask() -> str:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())

        return self.call(ask)

    def new_host(self, plugin: Plugin, mode: str = "bridge") -> Host:
        """One more host, which is not up yet."""
        host = Host(self, len(self.hosts) + 1, plugin, mode)
        self.hosts.append(host)
        return host

    @property
    def living(self) -> list[Host]:
        """The hosts that are up."""
        return [host for host in self.hosts if host.holder is not None]

    def plug(self, name: str, holder: int) -> None:
        """Lead a link from the segment to the host with this process 1, where it is eth0."""
        subprocess.run(["ip", "-n", self.netns, "link", "delete", name], check=False, capture_output=True)
        ip(self.netns, f"link add {name} type veth peer name eth0 netns {holder}")
        ip(self.netns, f"link set {name} master br0 up")


class Host:
    """One host. ``plugin`` decides what its conflist says; the agent runs whatever the plugin.

    ``mode`` is our plugin's: all containers of a host are on a bridge of the agent's, or all are routed to.
    """

    def __init__(self, underlay: Underlay, number: int, plugin: Plugin, mode: str) -> None:
        self.underlay, self.number, self.plugin, self.mode = underlay, number, plugin, mode
        self.name = f"host{number}"
        self.address, self.address6 = f"{UNDERLAY_PREFIX}.{number}", f"{UNDERLAY_PREFIX6}:{number}"
        # A socket's path must be short (unix(7)), which pytest's directories are not.
        self.directory = Path(tempfile.mkdtemp(prefix=f"muslin-{self.name}-"))
        for name in DIRECTORIES:
            (self.directory / name).mkdir(parents=True)
        self.holder: int | None = None
        self._unshare: subprocess.Popen[str] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self.agent: subprocess.Popen[bytes] | None = None

    # -- life

    def boot(self) -> None:
        """Raise it with what is on its disk; the agent, and with it the conflist, is the caller's (``start_agent``)."""
        (self.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
        namespaces = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave")
        shell = ["sh", "-ec", SETUP, "muslin-host", str(self.directory), sys.executable, str(INIT), BUSYBOX]
        with open(self.directory / "logs/boot", "wb") as log:
            self._unshare = subprocess.Popen(
                ["unshare", *namespaces, *shell], stdout=subprocess.PIPE, stderr=log, text=True, cwd="/"
            )
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "ready\n", f"{self.name} did not come up: {self.log('boot')}"
        (self.holder,) = children_of(self._unshare.pid)
        self.underlay.plug(self.name, self.holder)
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "address", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        self.run("ip", "link", "set", "eth0", "up")
        self.plugin.install(self)

    def cut_power(self) -> None:
        """End all of its processes at once; what is on its disk stays."""
        if self._unshare is None:
            return
        for holder in children_of(self._unshare.pid):
            os.kill(holder, signal.SIGKILL)
        assert self._unshare.stdout is not None
        self._unshare.stdout.close()
        self._unshare.wait()  # for process 1, which ends after all others
        for child in self._children:
            child.wait()
        self._children.clear()
        self.holder = self._unshare = self.agent = None

    def remove(self) -> None:
        """End it, and remove what is on its disk."""
        self.cut_power()
        if self.directory.exists():
            shutil.rmtree(self.directory)

    # -- commands

    def enter(self, *words: object) -> list[str]:
        """The words that run a command here."""
        assert self.holder is not None, f"{self.name} is down"
        return ["nsenter", f"--target={self.holder}", "--mount", "--net", "--pid", "--", *map(str, words)]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of commands: no settings of the machine's."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "MUSLIN_TEST_RUN") if name in os.environ}
        python = {"PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **python, "CONTAINERS_CONF": str(self.directory / "containers.conf"), **(extra or {})}

    def try_run(
        self, *words: object, stdin: str = "", timeout_s: float = COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here, however it ends."""
        return subprocess.run(
            self.enter(*words),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd="/",
            env=self.environment(),
        )

    def run(self, *words: object, stdin: str = "", timeout_s: float = COMMAND_S) -> str:
        """Run a command here, which must succeed; its output."""
        done = self.try_run(*words, stdin=stdin, timeout_s=timeout_s)
        told = " ".join(map(str, words))
        assert done.returncode == 0, f"{self.name}: {told}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, *words: str) -> str:
        """Run a command of busybox here, as a container would; its output."""
        return self.run("env", "PATH=/opt/busybox", *words)

    def start(self, *words: object, log: str) -> subprocess.Popen[bytes]:
        """Start a program here; its words go to a file of this name in ``logs``."""
        with open(self.directory / "logs" / log, "ab") as told:
            process = subprocess.Popen(
                self.enter(*words), stdin=subprocess.DEVNULL, stdout=told, stderr=told, cwd="/", env=self.environment()
            )
        self._children.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
        """End such a program, and wait for that."""
        for child in children_of(process.pid):
            os.kill(child, number)
        process.wait(COMMAND_S)
        self._children.remove(process)

    def log(self, name: str) -> str:
        """The last words of a program."""
        path = self.directory / "logs" / name
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    # -- files and namespaces as the host sees them, from outside

    def path(self, inside: str) -> Path:
        """A file of the host's."""
        return Path(f"/proc/{self.holder}/root{inside}")

    def netns(self, inside: str = "") -> str:
        """What ``kernel.netns`` calls a namespace of the host's: its own, or the one at this path of the host's.

        A name there is a path below /run/netns, and this one leads out of it.
        """
        outside = str(self.path(inside)) if inside else f"/proc/{self.holder}/ns/net"
        return f"../..{outside}"

    # -- the agent

    def start_agent(self) -> None:
        """Start the host's agent, wait until it has a subnet, and configure the plugin by it."""
        options = ["--store", "etcd", "--etcd-endpoints", self.underlay.endpoint, "--iface", "eth0"]
        options += ["--node-name", self.name, *(["--bridge", BRIDGE] if self.mode == "bridge" else [])]
        self.agent = self.start(sys.executable, "-P", "-m", "muslin", "agent", *options, log="agent")
        subnet_file = self.path("/run/flannel/subnet.env")
        wait_until(lambda: subnet_file.exists() or self._agent_has_ended(), f"{self.name}: the agent has a subnet")
        self.plugin.configure(self)

    def _agent_has_ended(self) -> bool:
        assert self.agent is not None
        assert self.agent.poll() is None, f"{self.name}: the agent ended\n{self.log('agent')}"
        return False

    def end_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the agent; what it told the kernel stays."""
        assert self.agent is not None
        self.end(self.agent, number)
        self.agent = None
        self.path("/run/flannel/subnet.env").unlink(missing_ok=True)

    def subnet(self) -> dict[str, str]:
        """What the agent says in subnet.env."""
        lines = self.path("/run/flannel/subnet.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def networks(self) -> list[str]:
        """The subnets that the agent has leased."""
        names = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
        return [str(ipaddress.ip_interface(text).network) for name in names if (text := self.subnet().get(name))]


def ip(netns: str, command: str) -> None:
    """Run ip(8) in a named namespace."""
    subprocess.run(["ip", "-n", netns, *command.split()], check=True)


def children_of(pid: int) -> tuple[int, ...]:
    """The numbers of a process's children (proc_pid_task(5)); none when it has ended."""
    try:
        return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return ()


def all_settled(hosts: Sequence[Host]) -> bool:
    """Whether each host has a route to each subnet of each other one."""
    subnets = {host.name: host.networks() for host in hosts}
    for host in hosts:
        routes = host.run("ip", "-4", "route") + host.run("ip", "-6", "route")
        others = (subnet for name, found in subnets.items() if name != host.name for subnet in found)
        if not all(f"{subnet} " in routes for subnet in others):
            return False
    return True
