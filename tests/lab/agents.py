"""Real agents in a real lab, hurt in every way: how the tests of faults raise one, look at it and talk through it.

Theory of operation: an ``AgentLab`` is a lab raised through the command line. Its agents are asked over their sockets,
its kernels are read with iproute2 and nft (``picture``), its store is written as an operator with sqlite3 would
(``Leases``). A program that was ended is started again with the command line that it had (``Revivable``), or another.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from muslin.agent.diagnosis import Faults, explain_faults
from muslin.agent_client import fetch_status
from muslin.kernel import netns as netns_door
from muslin.kernel import programs
from muslin.wire.agent_api import AgentStatus, Event
from tests.lab.flows import Flow
from tests.lab.support import Muslin, netns_of, processes_of, wait_until

FLOW_LEAST = 200
OURS = "77"
"""The route protocol of Muslin, as iproute2 shows it."""
FOREIGN = (
    "ip link add other0 type bridge",
    "ip link set other0 up",
    "ip address add 10.98.0.1/24 dev other0",
    "ip route add 10.99.0.0/24 via 10.0.0.20 proto static",
    "ip nexthop add id 7 via 10.0.0.20 dev eth0 proto static",
    "ip neighbour add 10.98.0.9 lladdr 02:00:00:00:00:09 dev other0",
    "ip link add vxlan77 type vxlan id 77 local 10.0.0.10 dstport 4789 nolearning",
    "bridge fdb add 02:00:00:00:00:08 dev vxlan77 dst 10.0.0.20",
    "nft add table inet others",
    "nft add chain inet others forward { type filter hook forward priority 10; }",
    "nft add rule inet others forward ip daddr 10.99.0.0/24 drop",
)
"""What others have on a host, beside ours."""
CONFIG = {"Network": "172.16.0.0/16", "SubnetMin": "172.16.0.0"}
"""The network of a lab in flannel's words; a lab's first node has the first subnet, which flannel leaves out."""


# ---- programs that end and come back -----------------------------------------------------------------------


class Revivable(msgspec.Struct, frozen=True, kw_only=True):
    """A program of a lab with all that it takes to start it again after its end."""

    pid: int
    netns: str
    words: tuple[str, ...]
    environment: dict[str, str]
    log: str

    @classmethod
    def of(cls, pid: int, netns: str) -> Revivable:
        """The program with this number."""
        variables = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
        return cls(
            pid=pid,
            netns=netns,
            words=tuple(Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")),
            environment=dict(one.decode().partition("=")[::2] for one in variables),
            log=os.readlink(f"/proc/{pid}/fd/2"),
        )

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends it, and wait for the end."""
        os.kill(self.pid, number)
        assert programs.await_end([self.pid], 20), f"process {self.pid} did not end"
        programs.reap(self.pid)

    def start(self, *more: str, without: tuple[str, ...] = ()) -> Revivable:
        """Start it again, with more options and without those named; the new one."""
        words = list(self.words)
        for option in without:
            place = words.index(option)
            del words[place : place + 2]
        pid = programs.start(self.netns, [*words, *more], self.environment, self.log)
        return msgspec.structs.replace(self, pid=pid, words=(*words, *more))


# ---- the store, as an operator with sqlite3 sees it --------------------------------------------------------


class Leases:
    """The leases in a store's file: written past all checks, each change as one revision that all agents hear of."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, leases: Mapping[str, bytes], ttl_s: float | None = 86400.0) -> None:
        """Put these values under these names, whatever was there; ``ttl_s`` None: reservations."""
        expires_at = None if ttl_s is None else time.time() + ttl_s
        with self._change() as (connection, revision):
            rows = [(name, value, expires_at, revision) for name, value in leases.items()]
            connection.executemany("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", rows)

    def remove(self, *names: str) -> None:
        """Delete them."""
        with self._change() as (connection, _):
            connection.executemany("DELETE FROM lease WHERE name = ?", [(name,) for name in names])

    def reserve(self, name: str) -> None:
        """Take a lease's end away."""
        with self._change() as (connection, revision):
            connection.execute("UPDATE lease SET expires_at = NULL, revision = ? WHERE name = ?", (revision, name))

    def configure(self, **values: Any) -> None:
        """Write the configuration of the network: the lab's with these keys changed."""
        with self._change() as (connection, _):
            connection.execute("UPDATE store SET config = ?", (json.dumps({**CONFIG, **values}).encode(),))

    def read(self) -> dict[str, tuple[Any, float | None]]:
        """Name to (value, end)."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as connection:
            rows = connection.execute("SELECT name, value, expires_at FROM lease").fetchall()
        return {name: (json.loads(value), expires_at) for name, value, expires_at in rows}

    @contextlib.contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            counted = "UPDATE store SET revision = revision + 1 RETURNING revision"
            ((revision,),) = connection.execute(counted).fetchall()
            yield connection, revision
            connection.execute("COMMIT")
        os.utime(self._path)  # how agents hear of it


def lease_value(address: str, mac: str = "", backend: str = "vxlan", **data: Any) -> bytes:
    """What a node's lease says, in flannel's words."""
    told = ({"VNI": 1, "VtepMAC": mac} if mac else {}) | data
    return json.dumps({"PublicIP": address, "BackendType": backend, "BackendData": told}).encode()


# ---- the lab -----------------------------------------------------------------------------------------------


class AgentLab:
    """A lab with agents."""

    def __init__(self, muslin: Muslin, *options: object) -> None:
        self.muslin = muslin
        self.name = muslin.up("--agents", *options)
        self.directory = muslin.runtime / self.name
        self.leases = Leases(self.directory / "store.sqlite")

    @property
    def nodes(self) -> list[str]:
        """The names of its nodes."""
        return [node["name"] for node in self.muslin.state(self.name)["topology"]["nodes"]]

    def netns(self, place: str) -> str:
        """The namespace of a place."""
        return netns_of(self.name, place)

    # -- commands

    def run(self, place: str, command: str, stdin: str = "", code: int | None = 0) -> str:
        """Run a command, of words without spaces, in a place; its output."""
        words = ["ip", "netns", "exec", self.netns(place), *command.split()]
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=60)
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def muslin_in(self, place: str, *words: object, code: int | None = 0) -> str:
        """``muslin ...`` on a node, with the settings of its agent; its output."""
        told = [sys.executable, "-P", "-m", "muslin", *map(str, words)]
        command = ["ip", "netns", "exec", self.netns(place), *told]
        run_directory = str(self.directory / place)
        environment = self.muslin.environment(
            MUSLIN_AGENT_RUN_DIR=run_directory,
            MUSLIN_AGENT_STATE_DIR=f"{run_directory}/state",
            MUSLIN_AGENT_STORE_PATH=str(self.directory / "store.sqlite"),
        )
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=environment, cwd="/"
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    # -- agents

    def socket(self, node: str) -> str:
        """The path of an agent's API."""
        return str(self.directory / node / "agent.sock")

    def status(self, node: str, probe: bool = False) -> AgentStatus:
        """What an agent says of itself."""
        return fetch_status(self.socket(node), probe=probe, timeout_s=20)

    def faults(self, node: str) -> Faults:
        """What ``muslin status`` says is wrong."""
        return explain_faults(self.status(node))

    def told(self, node: str) -> str:
        """All sentences of ``muslin status`` in one text."""
        faults = self.faults(node)
        return "\n".join((*faults.wrong, *faults.warnings))

    def events(self, node: str, since: int = 0) -> list[Event]:
        """What an agent did, after the event of this number."""
        lines = self._get(node, f"/v1/events?follow=0&since={since}").splitlines()
        return [msgspec.json.decode(line, type=Event) for line in lines]

    def metrics(self, node: str) -> str:
        """What an agent has counted, in Prometheus' text."""
        return self._get(node, "/v1/metrics").decode()

    def _get(self, node: str, target: str) -> bytes:
        connection = http.client.HTTPConnection("agent", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.closing(connection):
            connection.sock.connect(self.socket(node))
            connection.request("GET", target)
            return connection.getresponse().read()

    def last_event(self, node: str) -> int:
        """The number of an agent's latest event."""
        return max((event.number for event in self.events(node)), default=0)

    def agent(self, node: str) -> Revivable:
        """The process of an agent."""
        return Revivable.of(self.status(node).pid, self.netns(node))

    def await_agent(self, agent: Revivable, node: str) -> None:
        """Wait until a started agent has looked at the kernel and programmed all that it knows."""

        def is_done() -> bool:
            try:
                status = self.status(node)
            except Exception:  # it is not there yet, whatever form that takes
                assert Path(f"/proc/{agent.pid}").exists(), Path(agent.log).read_text()[-2000:]
                return False
            return status.pid == agent.pid and status.ready and status.kernel.passes > 0

        wait_until(is_done, f"the agent of {node} is ready")

    def restart(self, node: str, number: signal.Signals = signal.SIGKILL, *more: str) -> None:
        """End an agent by a signal and start it again."""
        agent = self.agent(node)
        agent.end(number)
        self.await_agent(agent.start(*more), node)

    def is_settled(self, backend: str | None = None) -> bool:
        """Whether every agent has every other node in its kernel, and follows this backend."""
        nodes = self.nodes
        for node in nodes:
            status = self.status(node)
            networks = status.network.backend if status.network else ""
            told = {peer.backend for peer in status.peers}
            if status.programmed < len(nodes) - 1 or not status.ready or status.kernel.failed:
                return False
            if backend is not None and (networks != backend or told != {backend}):
                return False
        return True

    def settle(self, backend: str | None = None) -> None:
        """Wait until they do."""
        try:
            wait_until(lambda: self.is_settled(backend), f"all nodes are settled with {backend or 'the backend'}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(map(self.told, self.nodes))) from None

    def is_as_raised(self, backend: str) -> bool:
        """Whether all follow this backend, each has the lease that it began with, and nobody else has one."""
        wanted = {node: (f"172.16.{number}.0/24",) for number, node in enumerate(self.nodes)}
        leases = {node: self.status(node).lease.subnets for node in self.nodes}
        return leases == wanted and len(self.leases.read()) == len(wanted) and self.is_settled(backend)

    def check(self) -> None:
        """Prove the three requirements."""
        assert self.muslin.json("check", "--name", self.name)["ok"] is True

    # -- containers

    def container(self, node: str) -> str:
        """The address of a node's first container."""
        return f"172.16.{self.nodes.index(node)}.2"

    def flow(self, source: str, destination: str) -> Flow:
        """A flow from one node's first container to another's."""
        return Flow(self.netns(f"con1.{source}"), self.container(destination))

    @contextlib.contextmanager
    def host(self, name: str, address: str) -> Iterator[str]:
        """A machine more on the nodes' segment, with an address in it and no agent; its place."""
        netns, lan = self.netns(name), self.netns("lan0")
        subprocess.run(["ip", "netns", "add", netns], check=True)
        try:
            for command in (
                f"ip -n {netns} link set lo up",
                f"ip -n {netns} link add eth0 type veth peer name {name} netns {lan}",
                f"ip -n {lan} link set {name} master br0 up",
                f"ip -n {netns} address add {address}/24 dev eth0",
                f"ip -n {netns} link set eth0 up",
            ):
                subprocess.run(command.split(), check=True)
            yield name
        finally:
            programs.end_processes(processes_of(self.name, name))
            subprocess.run(["ip", "netns", "del", netns], check=True)
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def join(self, place: str, *more: str) -> Revivable:
        """Start an agent on such a host, as that of node1 was started, with more options."""
        run_directory = self.directory / place
        run_directory.mkdir(exist_ok=True)
        model = self.agent("node1")
        words = [word.replace(str(self.directory / "node1"), str(run_directory)) for word in model.words]
        words[words.index("--node-name") + 1] = place
        return Revivable(
            pid=0,
            netns=self.netns(place),
            words=tuple(words),
            environment={**model.environment, "MUSLIN_LAB_AGENT": place},
            log=str(run_directory / "agent.log"),
        ).start(*more)

    def source_seen(self, source: str, place: str, address: str) -> str:
        """The address that a datagram from ``source`` to ``address``, which is of ``place``, is seen to come from."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(netns_door.call_in(self.netns(place), _udp_socket))
            sender = stack.enter_context(netns_door.call_in(self.netns(source), _udp_socket))
            listener.bind((address, 0))
            listener.settimeout(5)
            sender.sendto(b"who am I?", listener.getsockname())
            return str(listener.recvfrom(100)[1][0])

    # -- the kernel

    def picture(self, node: str) -> dict[str, Any]:
        """All that a node's kernel holds of networks, but for what it does itself: links, addresses, routes, ..."""
        netns = self.netns(node)
        return {
            "links": {link["ifname"]: _link(link) for link in _json("ip", "-j", "-d", "-n", netns, "link")},
            "addresses": _addresses(_json("ip", "-j", "-n", netns, "address")),
            "routes": _texts(
                _without(route, "flags")
                for family in ("-4", "-6")
                for route in _json("ip", "-j", family, "-n", netns, "route", "show", "table", "all")
                if not str(route["dst"]).startswith(("fe80", "ff00", "multicast"))
            ),
            "nexthops": _texts(_json("ip", "-j", "-n", netns, "nexthop")),
            "neighbours": _texts(
                entry for entry in _json("ip", "-j", "-n", netns, "neighbour") if "PERMANENT" in entry["state"]
            ),
            "fdb": _texts(entry for entry in _json("bridge", "-j", "-n", netns, "fdb") if "dst" in entry),
            "filter": _filter(_json("ip", "netns", "exec", netns, "nft", "-j", "-s", "list", "ruleset")),
            "settings": self.run(node, "sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter"),
        }

    def indexes(self, node: str) -> dict[str, int]:
        """Link name to its number, which a link that was made anew does not keep."""
        return {link["ifname"]: link["ifindex"] for link in _json("ip", "-j", "-n", self.netns(node), "link")}

    def repairs(self, node: str) -> list[str]:
        """The commands of all repairs that an agent tells of, the latest last."""
        return [command for repair in self.status(node).kernel.repairs for command in repair.commands]


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _json(*command: str) -> list[Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout or "[]")
    return found["nftables"] if isinstance(found, dict) else [one for one in found if one]


def _without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def _texts(entries: Any) -> list[str]:
    return sorted(json.dumps(entry, sort_keys=True) for entry in entries)


def _link(link: dict[str, Any]) -> dict[str, Any]:
    """What somebody decided: a bridge takes the MAC of one of its ports, and has timers."""
    info = link.get("linkinfo", {})
    kept = {key: link.get(key) for key in ("mtu", "master", "ifalias")} | {"up": "UP" in link["flags"]}
    if info.get("info_kind") == "vxlan":
        kept |= {"vxlan": info["info_data"], "mac": link["address"]}
    return kept


def _addresses(links: list[dict[str, Any]]) -> list[str]:
    found = [(link["ifname"], address) for link in links for address in link["addr_info"]]
    return sorted(f"{name} {one['local']}/{one['prefixlen']}" for name, one in found if one["scope"] != "link")


def _filter(entries: list[dict[str, Any]]) -> list[str]:
    """Tables in the order of their names, in which rules keep theirs."""
    found = []
    for entry in entries:
        ((kind, value),) = entry.items()
        if kind != "metainfo":
            kept = _without(value, "handle")
            if "elem" in kept:
                kept["elem"] = sorted(map(str, kept["elem"]))
            found.append((str(kept.get("table", kept.get("name"))), json.dumps({kind: kept}, sort_keys=True)))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def add_foreign(lab: AgentLab, node: str) -> None:
    """What others have on a host."""
    for command in FOREIGN:
        lab.run(node, command)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two pictures differ; empty where they do not."""
    return "".join(f"\n{key}:\n  was {before[key]}\n  is  {now[key]}" for key in before if before[key] != now[key])


def await_back(lab: AgentLab, node: str, before: dict[str, Any], what: str, patience_s: float = 20.0) -> None:
    """Wait until a node's kernel is as it was; on failure say where it is not."""
    now: dict[str, Any] = {}

    def is_back() -> bool:
        now.clear()
        now.update(lab.picture(node))
        return now == before

    try:
        wait_until(is_back, f"{what} is put right", patience_s)
    except AssertionError as error:
        raise AssertionError(f"{error}{difference(before, now)}\n{lab.told(node)}") from None


@contextlib.contextmanager
def flows(lab: AgentLab, least: int = FLOW_LEAST) -> Iterator[list[Flow]]:
    """Flows between the first containers of all pairs of nodes; none may lose anything."""
    pairs = [(one, other) for one in lab.nodes for other in lab.nodes if one != other]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(lab.flow(*pair)) for pair in pairs]
        yield running
        for flow in running:
            flow.wait_for(max(least - flow.sent, 5))
        for flow in running:
            flow.assert_no_loss(least)
