"""Two hundred faults in a row, drawn at random, and then a network that is as if nothing had happened.

node1, node2, node3 on lan0 with vxlan at first, one container each; on each node things of others

The seed is printed when a test fails; MUSLIN_TEST_SEED has a walk walked again, or another one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from muslin.agent.network import LINGER_S
from tests.lab.agents import FOREIGN, AgentLab, Revivable, add_foreign, await_back, difference, lease_value
from tests.lab.flows import Flow
from tests.lab.support import Muslin, is_alive, links_of, processes_of, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = int(os.environ.get("MUSLIN_TEST_SEED", "20261125"))
STEPS = 200
BEATS = (0, 0, 1, 3, 10, 30)
"""How many echo requests of a machine to itself, one each 10 ms, are between two steps."""
BACKENDS = ("vxlan", "host-gw", "udp")
COMMANDS = (
    "ip route del {peer}",
    "ip nexthop flush proto 77",
    "ip neighbour flush dev vxlan1 nud permanent",
    "ip address flush dev vxlan1",
    "ip address del {gateway} dev br0",
    "ip link del vxlan1",
    "ip link set vxlan1 down",
    "ip link set vxlan1 mtu 1300",
    "ip link set vxlan1 alias mine",
    "ip link set vxlan1 address 02:00:00:00:00:07",
    "ip link set br0 down",
    "ip link del muslin-udp",
    "ip link set muslin-udp down",
    "ip link set eth0 down",
    "ip link set eth0 up",
    "nft delete table inet muslin",
    "nft flush chain inet muslin strangers",
    "nft flush set inet muslin nodes4",
    "sysctl -q -w net.ipv4.ip_forward=0",
    "sysctl -q -w net.ipv4.conf.all.rp_filter=1",
)
"""Any of which may fail where the thing is not there at that moment."""


class Walk:
    """A lab that is walked through faults; each step is one of ``steps``."""

    def __init__(self, lab: AgentLab, dice: random.Random) -> None:
        self.lab, self.dice = lab, dice
        self.agents: dict[str, Revivable] = {node: lab.agent(node) for node in lab.nodes}
        self.told: list[str] = []
        self.steps: tuple[tuple[int, Callable[[str], str]], ...] = (
            (10, self.command),
            (2, self.kill_agent),
            (1, self.end_agent),
            (4, self.start_agent),
            (1, self.freeze),
            (3, self.thaw),
            (1, self.kill_tunnel),
            (1, self.delete_bridge),
            (1, self.delete_lease),
            (2, self.write_lease),
            (2, self.change_backend),
        )

    def step(self) -> None:
        """Do one thing to one node."""
        weights = [weight for weight, _ in self.steps]
        (step,) = self.dice.choices([step for _, step in self.steps], weights)
        node = self.dice.choice(list(self.agents))
        self.told.append(f"{node}: {step(node)}")

    def command(self, node: str) -> str:
        number = list(self.agents).index(node)
        names = {"peer": f"172.16.{(number + 1) % 3}.0/24", "gateway": f"172.16.{number}.1/24"}
        command = self.dice.choice(COMMANDS).format(**names)
        self.lab.run(node, command, code=None)
        return command

    def kill_agent(self, node: str) -> str:
        return self._end(node, signal.SIGKILL)

    def end_agent(self, node: str) -> str:
        return self._end(node, signal.SIGTERM)

    def _end(self, node: str, number: signal.Signals) -> str:
        if is_alive(self.agents[node].pid):
            self.thaw(node)
            self.agents[node].end(number)
        return f"the agent ends by {number.name}"

    def start_agent(self, node: str) -> str:
        if not is_alive(self.agents[node].pid):
            self.agents[node] = self.agents[node].start()
        return "the agent starts"

    def freeze(self, node: str) -> str:
        return self._signal(node, signal.SIGSTOP)

    def thaw(self, node: str) -> str:
        return self._signal(node, signal.SIGCONT)

    def _signal(self, node: str, number: signal.Signals) -> str:
        if is_alive(self.agents[node].pid):
            os.kill(self.agents[node].pid, number)
        return f"the agent gets {number.name}"

    def kill_tunnel(self, node: str) -> str:
        for pid in processes_of(self.lab.name, node):
            with contextlib.suppress(OSError):
                if "tunnel/reference.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
        return "the tunnel is killed"

    def delete_bridge(self, node: str) -> str:
        self.lab.run(node, "ip link del br0", code=None)
        return "ip link del br0"

    def delete_lease(self, node: str) -> str:
        name = f"172.16.{list(self.agents).index(node)}.0-24"
        self.lab.leases.remove(name)
        return f"the lease {name} is deleted"

    def write_lease(self, _: str) -> str:
        name = f"172.16.{self.dice.choice((60, 61, 62))}.0-24"
        number = self.dice.randrange(1, 5)
        backend = self.dice.choice(BACKENDS)
        garbage = self.dice.random() < 0.2
        value = lease_value(f"198.18.0.{number}", f"02:00:00:00:03:{number:02x}", backend)
        self.lab.leases.write({name: b"garbage" if garbage else value})
        return f"the lease {name} says {backend} {number}{' (garbage)' if garbage else ''}"

    def change_backend(self, _: str) -> str:
        backend = self.dice.choice(BACKENDS)
        self.lab.leases.configure(Backend={"Type": backend})
        return f"the network is by {backend}"

    def heal(self) -> None:
        """Give everybody what no agent can: life, an underlay, leases that are true, containers on their bridges."""
        self.lab.leases.remove(*(f"172.16.{number}.0-24" for number in (60, 61, 62)))
        self.lab.leases.configure(Backend={"Type": "vxlan"})
        for node in self.agents:
            self.thaw(node)
            self.start_agent(node)
            self.lab.run(node, "ip link set eth0 up")
        for node, agent in self.agents.items():
            self.lab.await_agent(agent, node)
        for node in self.agents:
            wait_until(lambda node=node: "br0" in links_of(self.lab.name, node), f"{node} has its bridge")  # type: ignore[misc]
            self.lab.run(node, "ip link set veth10 master br0")
        self.lab.settle("vxlan")


def restore_foreign(lab: AgentLab, node: str) -> None:
    """Add again what the kernel took from others when their link was down."""
    for command in FOREIGN:
        if "10.0.0.20" in command and command.startswith(("ip route", "ip nexthop")):
            lab.run(node, command, code=None)


def applied(lab: AgentLab, node: str) -> float:
    """How many operations an agent has done since its start."""
    name = 'muslin_operations_total{result="applied"} '
    return next(float(line[len(name) :]) for line in lab.metrics(node).splitlines() if line.startswith(name))


def test_after_two_hundred_faults_everything_is_as_if_there_had_been_none(shared: Muslin) -> None:
    lab = AgentLab(shared, "--nodes", 3, "--containers", 1, "--backend", "vxlan")
    for node in lab.nodes:
        add_foreign(lab, node)
    before = {node: lab.picture(node) for node in lab.nodes}
    walk = Walk(lab, random.Random(SEED))
    try:
        with Flow(lab.netns("node1"), "127.0.0.1") as metronome:
            for _ in range(STEPS):
                walk.step()
                metronome.wait_for(walk.dice.choice(BEATS))
        walk.heal()
        for node in lab.nodes:
            restore_foreign(lab, node)
            await_back(lab, node, before[node], "everything", LINGER_S + 20)
        lab.check()
        for node in lab.nodes:
            lab.restart(node, signal.SIGTERM)
            wait_until(lambda node=node: lab.status(node).programmed == 2, "it has looked")  # type: ignore[misc]
            assert applied(lab, node) == 0, "the first look changes nothing"
            assert not difference(before[node], lab.picture(node))
    except AssertionError as error:
        walked = "\n  ".join(walk.told)
        raise AssertionError(f"MUSLIN_TEST_SEED={SEED}: {error}\nwalked:\n  {walked}") from error
