"""Leases as they should not be: garbage, rivals, thieves, nodes that move; and hosts whose others are in the way.

node1, node2, node3 on lan0 with vxlan, one container each; "guest" is a machine more on lan0, without an agent at first
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.agent_client import post_stop
from muslin.kernel import netns as netns_door
from tests.lab.agents import AgentLab, await_back, difference, lease_value
from tests.lab.flows import Flow
from tests.lab.support import Muslin, is_alive, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FOLLOW_S = 1.0
DELAY_S = 0.01
"""By how much a bad lease may hold up a good one."""
TRIES = 5
MAC = "02:00:00:00:01:01"
GOOD = {"172.16.50.0-24": lease_value("198.18.0.50", MAC)}


class Raised:
    """The lab of the tests, raised anew after one that left it in disorder."""

    def __init__(self, muslin: Muslin) -> None:
        self._muslin = muslin
        self._lab: AgentLab | None = None
        self._before: dict[str, dict[str, Any]] = {}

    @property
    def lab(self) -> AgentLab:
        """The lab."""
        if self._lab is not None and self.disorder():
            self._muslin.lab("down", self._lab.name)
            self._lab = None
        if self._lab is None:
            self._lab = AgentLab(self._muslin, "--nodes", 3, "--containers", 1, "--backend", "vxlan")
            self._before = {node: self._lab.picture(node) for node in self._lab.nodes}
        return self._lab

    def disorder(self) -> str:
        """What is not as it was when it was raised."""
        lab = self._lab
        assert lab is not None
        if not lab.is_as_raised("vxlan"):
            return f"the leases are others: {lab.leases.read().keys()}"
        for node in lab.nodes:
            if differs := difference(self._before[node], lab.picture(node)) or lab.told(node):
                return f"{node} is not as it was: {differs}"
        return ""


@pytest.fixture(scope="module")
def raised(shared: Muslin) -> Raised:
    return Raised(shared)


@pytest.fixture
def lab(raised: Raised) -> Iterator[AgentLab]:
    """The lab, which each test leaves as it found it."""
    yield raised.lab
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not raised.disorder(), "the lab is as it was", 5)
    assert raised.disorder() == ""


def await_told(lab: AgentLab, node: str, *words: str) -> str:
    wait_until(lambda: all(word in lab.told(node) for word in words), f"{node} says {words}: it says {lab.told(node)}")
    return lab.told(node)


# ---- leases that hold nonsense -------------------------------------------------------------------------------


def mac_of(lab: AgentLab, node: str) -> str:
    value, _ = lab.leases.read()[f"172.16.{lab.nodes.index(node)}.0-24"]
    return str(value["BackendData"]["VtepMAC"])


BAD: dict[str, tuple[str, bytes]] = {
    "bytes": ("172.16.60.0-24", b"\xff\x00\xfe garbage"),
    "wrong types": ("172.16.60.0-24", b'{"PublicIP": 7, "BackendType": [], "BackendData": "x"}'),
    "wrong types of data": ("172.16.60.0-24", lease_value("198.18.0.60", VNI="one", VtepMAC={"a": [1]})),
    "huge": ("172.16.60.0-24", lease_value("198.18.0.60", "02:00:00:00:00:60", Junk="x" * 1_000_000)),
    "a huge MAC": ("172.16.60.0-24", lease_value("198.18.0.60", VtepMAC="02:" * 100_000)),
    "no subnet for a name": ("nonsense", lease_value("198.18.0.60", MAC)),
    "our subnet": ("172.16.0.0-23", lease_value("198.18.0.60", "02:00:00:00:00:60")),
    "the underlay": ("10.0.0.0-24", lease_value("198.18.0.60", "02:00:00:00:00:60")),
    "everything": ("0.0.0.0-0", lease_value("198.18.0.60", "02:00:00:00:00:60")),
    "our address": ("172.16.60.0-24", lease_value("10.0.0.10", "02:00:00:00:00:60")),
    "our MAC": ("172.16.60.0-24", lease_value("198.18.0.60", "{mac}")),
    "a group's MAC": ("172.16.60.0-24", lease_value("198.18.0.60", "01:00:5e:00:00:01")),
}
HARMLESS = "huge"
"""It can be followed."""


def followed_after_s(lab: AgentLab, bad: dict[str, bytes]) -> float:
    """Seconds from writing a good lease, right after bad ones, to its being in node1's kernel; the best of some."""
    (name,) = GOOD
    found = []
    for _ in range(TRIES):
        since = lab.last_event("node1")
        if bad:
            lab.leases.write(bad)
        begun_at = time.time()
        lab.leases.write(GOOD)

        found.append(followed_at(lab, since)[0] - begun_at)
        assert "172.16.50.0/24" in lab.run("node1", "ip route")
        since = lab.last_event("node1")
        lab.leases.remove(name, *bad)
        followed_at(lab, since)
    return min(found)


def followed_at(lab: AgentLab, since: int) -> list[float]:
    """When node1 had followed what became of the good lease after an event."""
    (name,) = GOOD

    def found() -> list[float]:
        events = lab.events("node1", since)
        return [event.at for event in events if event.kind == "peers" and name in event.text]

    wait_until(found, "the good lease is followed")
    return found()


@pytest.fixture(scope="module")
def usual_s(raised: Raised) -> float:
    return followed_after_s(raised.lab, {})


@pytest.mark.parametrize("what", BAD)
def test_a_bad_lease_is_named_and_delays_nobody(lab: AgentLab, usual_s: float, what: str) -> None:
    name, value = BAD[what]
    bad = {name: value.replace(b"{mac}", mac_of(lab, "node1").encode())}
    routes = lab.picture("node1")["routes"]

    assert followed_after_s(lab, bad) < usual_s + DELAY_S

    lab.leases.write(bad)
    wait_until(lambda: name in str(lab.status("node1")), "it is seen")
    if what != HARMLESS:
        told = await_told(lab, "node1", name)
        assert len(told) < 1000
        assert lab.picture("node1")["routes"] == routes
    lab.leases.remove(name)
    wait_until(lambda: name not in str(lab.status("node1")), "it is forgotten")


# ---- whose lease it is ---------------------------------------------------------------------------------------


def test_two_agents_with_one_public_address_are_told_and_the_first_one_keeps_its_subnet(lab: AgentLab) -> None:
    with lab.host("guest", "10.0.0.77"):
        lab.join("guest", "--public-ip", "10.0.0.10")
        since = lab.last_event("node1")
        wait_until(lambda: Path(lab.socket("guest")).exists(), "the second agent can be asked")
        told = await_told(lab, "guest", "it was there first")
        assert "another agent uses this node's public address" in told
        assert "--public-ip" in told
        wait_until(lambda: lab.status("node1").lease.subnets == ("172.16.0.0/24",), "the first one has its lease")
        assert any("another agent uses this node's public address" in one.text for one in lab.events("node1", since))
        wait_until(lambda: "br0" not in lab.picture("guest")["links"], "the second one has withdrawn", 5)
    lab.restart("node1", signal.SIGTERM)  # it goes on warning for a while
    lab.settle("vxlan")


def test_a_lease_that_was_deleted_by_hand_is_had_again_and_the_network_stays(lab: AgentLab) -> None:
    before = lab.picture("node1")
    with lab.flow("node1", "node2") as flow:
        since = lab.last_event("node1")
        lab.leases.remove("172.16.0.0-24")
        wait_until(lambda: "172.16.0.0-24" in lab.leases.read(), "it is there again")
        wait_until(lambda: lab.events("node1", since), "the agent tells")
        flow.wait_for(20)
        flow.stop()
    assert any("asks for the same again" in event.text for event in lab.events("node1", since))
    assert lab.picture("node1") == before
    assert flow.outage_s < FOLLOW_S
    lab.settle()


def test_a_lease_that_another_node_took_is_given_up_and_its_network_withdrawn(lab: AgentLab) -> None:
    lab.leases.write({"172.16.2.0-24": lease_value("10.0.0.99", MAC)})

    told = await_told(lab, "node3", "lost the lease 172.16.2.0-24", "10.0.0.99")
    assert "it is now held by the node at 10.0.0.99" in told
    status = lab.status("node3")
    assert (status.lease.state, status.lease.subnets) == ("lost", ())
    wait_until(lambda: not {"vxlan1", "br0"} & lab.picture("node3")["links"].keys(), "its network is gone", 5)
    wait_until(lambda: not (lab.directory / "node3" / "subnet.env").exists(), "CNI is told no longer", 5)
    assert not lab.picture("node3")["filter"]
    wait_until(lambda: "10.0.0.99" in lab.run("node1", "bridge fdb show dev vxlan1"), "peers follow", FOLLOW_S)

    lab.leases.remove("172.16.2.0-24")
    lab.restart("node3", signal.SIGTERM)
    lab.run("node3", "ip link set veth10 master br0")
    lab.settle()


def test_a_reservation_stays_one_through_starts_and_ends(lab: AgentLab) -> None:
    lab.leases.reserve("172.16.0.0-24")
    wait_until(lambda: lab.status("node1").lease.reservation, "the agent knows it")
    for number in (signal.SIGTERM, signal.SIGKILL):
        lab.restart("node1", number)
        assert lab.status("node1").lease.reservation
        assert lab.leases.read()["172.16.0.0-24"][1] is None
    agent = lab.agent("node1")
    post_stop(lab.socket("node1"), release=True)
    wait_until(lambda: not is_alive(agent.pid), "it has ended")
    assert lab.leases.read()["172.16.0.0-24"][1] is None
    lab.leases.write({"172.16.0.0-24": json.dumps(lab.leases.read()["172.16.0.0-24"][0]).encode()})
    lab.await_agent(agent.start(), "node1")
    lab.run("node1", "ip link set veth10 master br0")
    lab.settle()


# ---- nodes that move, leases that change ---------------------------------------------------------------------


def test_peers_follow_a_node_whose_interface_is_renumbered(lab: AgentLab) -> None:
    for old, new in (("10.0.0.10", "10.0.0.110"), ("10.0.0.110", "10.0.0.10")):
        begun = time.monotonic()
        lab.run("node1", f"ip address del {old}/24 dev eth0")
        lab.run("node1", f"ip address add {new}/24 dev eth0")

        def follow(node: str, old: str = old, new: str = new) -> bool:
            entries = lab.run(node, "bridge fdb show dev vxlan1")
            return f"dst {new} " in entries and f"dst {old} " not in entries

        wait_until(lambda: all(follow(node) for node in ("node2", "node3")), "the peers follow")
        assert time.monotonic() - begun < FOLLOW_S
        with lab.flow("node2", "node1") as flow:
            flow.wait_for(5)
            flow.assert_no_loss()
        assert f"local {new} " in lab.run("node1", "ip -d link show vxlan1")
        assert len(lab.leases.read()) == 3


def test_nothing_old_stays_when_a_peer_says_another_mac_address_or_backend(lab: AgentLab) -> None:
    name, other_mac = "172.16.50.0-24", "02:00:00:00:01:02"

    def follow(value: bytes, wanted: str, *gone: str) -> None:
        lab.leases.write({name: value})

        def right() -> bool:
            picture = lab.picture("node1")
            text = str(
                (picture["fdb"], picture["neighbours"], picture["routes"], picture["nexthops"], picture["filter"])
            )
            return wanted in text and not any(word in text for word in gone)

        wait_until(right, f"{wanted} is there and {gone} are not", FOLLOW_S)

    follow(lease_value("198.18.0.50", MAC), MAC)
    follow(lease_value("198.18.0.50", other_mac), other_mac, MAC)
    follow(lease_value("198.18.0.51", other_mac), "198.18.0.51", "198.18.0.50")
    follow(lease_value("198.18.0.52", MAC), "198.18.0.52", "198.18.0.51", other_mac)
    follow(lease_value("10.0.0.50", backend="host-gw"), "10.0.0.50", "172.16.50.0", MAC, "198.18.0.52")
    assert "it uses the host-gw backend and this node vxlan" in await_told(lab, "node1", name)
    lab.leases.remove(name)


# ---- others on the host ----------------------------------------------------------------------------------------


def test_a_route_of_others_with_the_same_prefix_stays_and_is_told(lab: AgentLab) -> None:
    foreign = "ip route add 172.16.50.0/24 via 10.0.0.99"
    lab.run("node1", foreign)
    lab.leases.write(GOOD)

    await_told(lab, "node1", "172.16.50.0-24", "held by: ip route add 172.16.50.0/24 via 10.0.0.99")
    assert "172.16.50.0/24 via 10.0.0.99 dev eth0" in lab.run("node1", "ip route show 172.16.50.0/24")
    assert [peer.state for peer in lab.status("node1").peers if peer.name in GOOD] == ["failed"]

    lab.run("node1", foreign.replace("add", "del"))
    wait_until(lambda: "dev vxlan1" in lab.run("node1", "ip route show 172.16.50.0/24"), "ours has its place", FOLLOW_S)
    lab.leases.remove(*GOOD)


def test_a_longer_route_of_others_stays_and_is_told(lab: AgentLab) -> None:
    foreign = "ip route add 172.16.50.128/25 via 10.0.0.99"
    lab.leases.write(GOOD)
    wait_until(lambda: "172.16.50.0/24" in lab.run("node1", "ip route"), "the agent has followed")
    lab.run("node1", foreign)

    told = await_told(lab, "node1", "172.16.50.128/25 via 10.0.0.99", "leads a part of 172.16.50.0-24 elsewhere")
    assert "is not Muslin's" in told
    assert "172.16.50.128/25" in lab.run("node1", "ip route")

    lab.run("node1", foreign.replace("add", "del"))
    wait_until(lambda: lab.told("node1") == "", "it is told no longer", FOLLOW_S)
    lab.leases.remove(*GOOD)


STORM = "".join(
    f"route {verb} 10.{100 + number % 100}.{number // 100}.0/24 via 10.0.0.20\n"
    for number in range(10_000)
    for verb in ("add", "del")
)


def dropped_events(pid: int) -> int:
    """How many netlink events the kernel could not keep for a process (/proc/net/netlink, column Drops)."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(fd)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows = (line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:])
    return sum(int(row[8]) for row in rows if row[9] in inodes)


def test_a_route_that_went_amid_more_events_than_the_kernel_can_keep_is_back(lab: AgentLab) -> None:
    before, agent = lab.picture("node1"), lab.agent("node1")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        for _ in range(10):
            lab.run("node1", "ip -batch -", stdin=STORM)
            if dropped_events(agent.pid):
                break
        assert dropped_events(agent.pid), "the kernel had to drop events"
        lab.run("node1", "ip route del 172.16.1.0/24")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    begun = time.monotonic()
    await_back(lab, "node1", before, "the route")
    assert time.monotonic() - begun < FOLLOW_S


def test_a_route_that_went_amid_events_that_the_agent_listens_to_is_back(lab: AgentLab) -> None:
    with flood(lab, "node1"):
        lab.run("node1", "ip route del 172.16.1.0/24")
        begun = time.monotonic()
        wait_until(lambda: "172.16.1.0/24 nhid" in lab.run("node1", "ip route"), "the route is back")
        assert time.monotonic() - begun < FOLLOW_S
    assert lab.status("node1").kernel.passes < 20, "events of others are no reason to look"


@contextlib.contextmanager
def flood(lab: AgentLab, node: str) -> Iterator[None]:
    """20,000 events of routes of others, of which half have been when the block begins."""
    command = ["ip", "-n", lab.netns(node), "-batch", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(STORM[: len(STORM) // 2])
        process.stdin.flush()
        writer = threading.Thread(target=process.stdin.write, args=(STORM[len(STORM) // 2 :],))
        writer.start()
        try:
            yield
        finally:
            writer.join()
            process.stdin.close()
    assert process.returncode == 0


def test_datagrams_of_strangers_to_the_tunnels_port_are_dropped_and_counted(lab: AgentLab) -> None:
    with lab.host("guest", "10.0.0.78"):
        wait_until(lambda: lab.status("node1").kernel.strangers_dropped is not None, "they are counted")
        before = lab.status("node1").kernel.strangers_dropped or 0
        with Flow(lab.netns("guest"), "10.0.0.10") as flow:
            flow.wait_for(1)
        with netns_door.call_in(
            lab.netns("guest"), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ) as stranger:
            for _ in range(7):
                stranger.sendto(struct.pack("!II", 0x08000000, 1 << 8) + bytes(60), ("10.0.0.10", 8472))
        wait_until(lambda: lab.status("node1").kernel.strangers_dropped == before + 7, "they are counted")


def test_what_containers_send_out_is_translated_and_nothing_else_is(lab: AgentLab) -> None:
    agents = {node: lab.agent(node) for node in lab.nodes}
    for node, agent in agents.items():
        agent.end(signal.SIGTERM)
        lab.await_agent(agent.start("--ip-masq"), node)
    lab.settle()
    here, there = "172.16.0.2", "172.16.1.2"
    with lab.host("guest", "10.0.0.79"):
        lab.run("con1.node1", "ping -c 1 -W 2 10.0.0.79")
        seen = {
            "container to the world outside": lab.source_seen("con1.node1", "guest", "10.0.0.79"),
            "container to remote container": lab.source_seen("con1.node1", "con1.node2", there),
            "container to remote node": lab.source_seen("con1.node1", "node2", "10.0.0.20"),
            "container to its own node": lab.source_seen("con1.node1", "node1", "10.0.0.10"),
            "remote node to container": lab.source_seen("node2", "con1.node1", here),
            "node to its own container": lab.source_seen("node1", "con1.node1", here),
        }
    assert seen == {
        "container to the world outside": "10.0.0.10",
        "container to remote container": here,
        "container to remote node": here,
        "container to its own node": here,
        "remote node to container": "172.16.1.0",
        "node to its own container": "172.16.0.1",
    }
    for node in lab.nodes:
        lab.agent(node).end(signal.SIGTERM)
        lab.await_agent(agents[node].start(), node)
    lab.settle()
