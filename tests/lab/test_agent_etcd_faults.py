"""What becomes of a network of agents while its etcd is hurt: nothing.

node1, node2, node3 with vxlan, one container each, and etcd1, etcd2, etcd3, all on lan0; containers talk all the while

Clocks that jump are the business of the lease keeper's unit tests and of tests/kernel/test_etcd_faults.py: here all
programs share the machine's clock.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from muslin.kernel import netns as netns_door
from tests.lab.agents import AgentLab, Revivable, flows, lease_value
from tests.lab.support import Muslin, processes_of, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MEMBERS = ("etcd1", "etcd2", "etcd3")
PORT = 2379
PREFIX = "/coreos.com/network/subnets/"
SHORT_TTL_S = 6
"""More than the longest pause between two tries of an agent (5 s): etcd, when it is back, gives a lease all of it."""
FOLLOW_S = 15.0
"""An agent finds out that a member is silent, and turns to another one."""


class EtcdLab(AgentLab):
    """A lab with etcd for its store."""

    def __init__(self, muslin: Muslin, *options: object) -> None:
        super().__init__(muslin, "--store", "etcd", *options)
        self.members = {name: Revivable.of(processes_of(self.name, name)[0], self.netns(name)) for name in MEMBERS}

    def ask(self, member: str, path: str, **body: Any) -> Any:
        """A call through etcd's JSON gateway, as an operator might; OSError where it does not answer."""

        def call() -> Any:
            address = f"10.0.0.{251 + MEMBERS.index(member)}"
            connection = http.client.HTTPConnection(address, PORT, timeout=5)
            with contextlib.closing(connection):
                connection.request("POST", f"/v3/{path}", json.dumps(body))
                return json.loads(connection.getresponse().read())

        return netns_door.call_in(self.netns(member), call)

    def leader(self) -> str:
        """The member that leads."""
        told = {name: self.ask(name, "maintenance/status") for name in MEMBERS}
        return next(name for name, status in told.items() if status["leader"] == status["header"]["member_id"])

    def put(self, member: str, name: str, value: bytes) -> int:
        """Write a lease; the revision."""
        return int(self.ask(member, "kv/put", key=_base64(PREFIX + name), value=_base64(value))["header"]["revision"])

    def delete(self, member: str, name: str) -> None:
        """Remove a lease."""
        self.ask(member, "kv/deleterange", key=_base64(PREFIX + name))

    def lease_names(self, member: str) -> list[str]:
        """All leases."""
        end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
        found = self.ask(member, "kv/range", key=_base64(PREFIX), range_end=_base64(end), keys_only=True)
        return [base64.b64decode(entry["key"]).decode().removeprefix(PREFIX) for entry in found.get("kvs", [])]

    def end_members(self, *names: str) -> None:
        """Kill -9."""
        for name in names:
            self.members[name].end()

    def start_members(self, *names: str) -> None:
        """Start them again, and wait until they serve."""
        self.members |= {name: self.members[name].start() for name in names}
        for name in names:
            wait_until(lambda name=name: self.serves(name), f"{name} serves", 30)  # type: ignore[misc]

    def serves(self, member: str) -> bool:
        """Whether it takes a change, and so knows a leader that lives."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return "header" in self.ask(member, "kv/put", key=_base64("x"), value="")
        return False

    def await_peer(
        self, number: int, present: bool = True, nodes: tuple[str, ...] = ("node1", "node2", "node3")
    ) -> None:
        """Wait until these nodes have followed, or forgotten, the lease of this subnet."""
        for node in nodes:
            wait_until(
                lambda node=node: (f"172.16.{number}.0/24" in self.run(node, "ip route")) is present,  # type: ignore[misc]
                f"{node} has followed",
                FOLLOW_S,
            )

    def are_at_peace(self) -> bool:
        """Whether no agent has anything to say."""
        return all(self.told(node) == "" for node in self.nodes) and self.is_settled("vxlan")


def _base64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def peer(number: int) -> tuple[str, bytes]:
    return f"172.16.{number}.0-24", lease_value(f"198.18.0.{number}", f"02:00:00:00:02:{number:02x}")


@pytest.fixture(scope="module")
def raised(shared: Muslin) -> EtcdLab:
    if shutil.which("etcd") is None:
        pytest.skip("needs etcd (Debian and Ubuntu: etcd-server)")
    return EtcdLab(shared, "--nodes", 3, "--containers", 1, "--backend", "vxlan")


@pytest.fixture
def lab(raised: EtcdLab) -> Iterator[EtcdLab]:
    """The lab, as it is after each test as before: the same leases, the same kernels, and no agent complains."""
    for number in range(50, 54):
        raised.delete("etcd1", f"172.16.{number}.0-24")
        raised.await_peer(number, present=False)
    before = {node: raised.picture(node) for node in raised.nodes}
    with flows(raised):
        yield raised
        wait_until(raised.are_at_peace, f"no agent complains: {[raised.told(node) for node in raised.nodes]}", 30)
    assert raised.lease_names("etcd1") == ["172.16.0.0-24", "172.16.1.0-24", "172.16.2.0-24"]
    assert {node: raised.picture(node) for node in raised.nodes} == before


def test_the_leader_is_killed(lab: EtcdLab) -> None:
    leader = lab.leader()
    (other, *_) = (name for name in MEMBERS if name != leader)
    lab.end_members(leader)
    wait_until(lambda: lab.serves(other), "another one leads")

    lab.put(other, *peer(50))

    lab.await_peer(50)
    lab.start_members(leader)
    lab.delete(leader, "172.16.50.0-24")
    lab.await_peer(50, present=False)


def test_a_member_is_frozen(lab: EtcdLab) -> None:
    frozen = next(name for name in MEMBERS if is_asked(lab, "node1", name))
    (other, *_) = (name for name in MEMBERS if name != frozen)
    os.kill(lab.members[frozen].pid, signal.SIGSTOP)
    try:
        wait_until(lambda: lab.serves(other), "another one leads")
        lab.put(other, *peer(51))
        lab.await_peer(51)
    finally:
        os.kill(lab.members[frozen].pid, signal.SIGCONT)
    lab.delete(other, "172.16.51.0-24")
    lab.await_peer(51, present=False)


def is_asked(lab: EtcdLab, node: str, member: str) -> bool:
    """Whether a node's agent has a connection to this member."""
    address = f"10.0.0.{251 + MEMBERS.index(member)}"
    return address in lab.run(node, f"ss -Htn state established dst {address}")


def test_history_is_compacted_while_a_node_is_cut_off(lab: EtcdLab) -> None:
    picture = lab.picture("node1")
    lab.put("etcd1", *peer(52))
    lab.await_peer(52)
    for command in (
        "nft add table inet cut",
        "nft add chain inet cut in { type filter hook input priority 0; }",
        "nft add chain inet cut out { type filter hook output priority 0; }",
        f"nft add rule inet cut in tcp sport {PORT} drop",
        f"nft add rule inet cut out tcp dport {PORT} drop",
    ):
        lab.run("node1", command)
    try:
        lab.delete("etcd1", "172.16.52.0-24")
        revisions = [lab.put("etcd1", *peer(53)) for _ in range(20)]
        lab.ask("etcd1", "kv/compaction", revision=str(revisions[-1]), physical=True)
        lab.await_peer(53, nodes=("node2", "node3"))
        wait_until(lambda: "store" in lab.told("node1"), "node1 says that it is cut off", 30)
        assert "172.16.52.0/24" in lab.run("node1", "ip route"), "what was known last holds"
    finally:
        lab.run("node1", "nft delete table inet cut")
    lab.await_peer(53)
    lab.await_peer(52, present=False)
    lab.delete("etcd1", "172.16.53.0-24")
    lab.await_peer(53, present=False)
    assert lab.picture("node1") == picture


def test_all_members_are_down_for_longer_than_the_leases_last_and_an_agent_starts_meanwhile(lab: EtcdLab) -> None:
    for node in lab.nodes:
        agent = lab.agent(node)
        agent.end()
        short = ("--lease-ttl", str(SHORT_TTL_S), "--lease-renew-margin", str(SHORT_TTL_S // 2))
        lab.await_agent(agent.start(*short, without=("--lease-ttl", "--lease-renew-margin")), node)
    before = {node: lab.picture(node) for node in lab.nodes}
    wait_until(lambda: leases_on_disk(lab, "node1") == 3, "the last snapshot is on disk")
    with lab.flow("node1", "node2") as clock:
        lab.end_members(*MEMBERS)
        begun = clock.sent
        for node in lab.nodes:
            wait_until(lambda node=node: "etcd store does not answer" in lab.told(node), f"{node} tells", 30)  # type: ignore[misc]

        lab.restart("node1")
        status = lab.status("node1")
        assert status.store.from_disk
        assert status.programmed == 2
        assert "what was known last is followed" in lab.told("node1")
        clock.wait_for(max(100 * (SHORT_TTL_S + 1) - (clock.sent - begun), 1))
        assert {node: lab.picture(node) for node in lab.nodes} == before, "nothing was deleted"

        lab.start_members(*MEMBERS)
        wait_until(lambda: all(holds(lab, node) for node in lab.nodes), "all hold the leases of before", 30)
        clock.wait_for(100 * SHORT_TTL_S // 2)
    for node in lab.nodes:
        agent = lab.agent(node)
        agent.end()
        lab.await_agent(agent.start("--lease-ttl", "86400"), node)
    clock.assert_no_loss()


def leases_on_disk(lab: EtcdLab, node: str) -> int:
    file = lab.directory / node / "state" / "snapshot.json"
    return len(json.loads(file.read_text())["leases"]) if file.exists() else 0


def holds(lab: EtcdLab, node: str) -> bool:
    status = lab.status(node)
    own = f"172.16.{lab.nodes.index(node)}.0/24"
    return status.lease.subnets == (own,) and status.store.trouble is None and not status.store.from_disk
