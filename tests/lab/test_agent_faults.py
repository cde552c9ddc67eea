"""Agents that end and start again, and networks that change while they live: what is talked goes on.

node1, node2, node3 on lan0, one container each; a flow is a numbered echo request each 10 ms between two of them
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from muslin.agent.network import LINGER_S
from tests.lab.agents import AgentLab, await_back, flows
from tests.lab.flows import Flow
from tests.lab.support import Muslin, is_alive, links_of, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

LabOf = Callable[[str], AgentLab]

ENDS = (signal.SIGTERM, signal.SIGKILL)
NEW_PORT_S = 1.0
"""Each node has to make its device anew, and for that long the ends speak by two ports."""
NEW_RANGE_S = 3.0
"""Every node gives its lease back, draws another and follows those of the others."""


@pytest.fixture(scope="module")
def lab_of(shared: Muslin) -> LabOf:
    """A lab of each backend, raised by the first test that needs it, and anew after one that left it in disorder."""
    labs: dict[str, AgentLab] = {}

    def lab_of(backend: str) -> AgentLab:
        if backend in labs and not labs[backend].is_as_raised(backend):
            shared.lab("down", labs.pop(backend).name)
        if backend not in labs:
            labs[backend] = AgentLab(shared, "--nodes", 3, "--containers", 1, "--backend", backend)
        return labs[backend]

    return lab_of


# ---- an agent ends and starts again --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_an_agent_that_ends_and_starts_again_loses_no_packet(lab_of: LabOf, backend: str) -> None:
    lab = lab_of(backend)
    before, indexes = lab.picture("node1"), lab.indexes("node1")

    with flows(lab) as running:
        for number in ENDS:
            lab.restart("node1", number)
            running[0].wait_for(10)

    assert lab.picture("node1") == before
    assert lab.indexes("node1") == indexes, "no device was made anew"
    assert lab.status("node1").kernel.repaired == 0


def test_a_node_that_left_while_an_agent_was_down_leaves_nothing(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    agent, leaving = lab.agent("node1"), lab.agent("node3")
    agent.end()
    (mac,) = (value["BackendData"]["VtepMAC"] for name, (value, _) in lab.leases.read().items() if name[7:9] == "2.")
    leaving.end()
    lab.leases.remove("172.16.2.0-24")
    assert mac in str(lab.picture("node1")["fdb"])

    lab.await_agent(agent.start(), "node1")

    wait_until(lambda: "172.16.2.0" not in str(lab.picture("node1")), "the routes of node3 are gone", 5)
    picture = str(lab.picture("node1"))
    assert mac not in picture
    assert "10.0.0.30" not in picture
    lab.await_agent(leaving.start(), "node3")
    lab.settle()


FOREIGN = (
    "ip link add br7 type bridge",
    "ip address add 10.98.0.1/24 dev br7",
    "ip link set br7 up",
    "ip route add 10.99.0.0/24 via 10.0.0.20",
    "nft add table inet others",
)


def test_an_agent_with_other_settings_and_another_backend_clears_up_after_the_one_before(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    for command in FOREIGN:
        lab.run("node1", command)
    before = lab.picture("node1")
    agent = lab.agent("node1")

    agent.end()
    lab.leases.configure(Backend={"Type": "host-gw"})
    other = agent.start("--bridge", "br9", "--iptables-forward-rules=false", without=("--bridge",))
    lab.await_agent(other, "node1")
    lab.settle("host-gw")

    def old() -> list[str]:
        picture = lab.picture("node1")
        left = [name for name in ("br0", "vxlan1") if name in picture["links"]]
        return left + [entry for entry in picture["filter"] if '"muslin"' in entry]

    wait_until(lambda: not old(), "device, bridge and table of the run before are gone", LINGER_S + 5)
    picture = lab.picture("node1")
    assert {"br7", "br9"} <= picture["links"].keys()
    assert "10.98.0.1/24" in str(picture["addresses"])
    assert "10.99.0.0/24" in str(picture["routes"])
    assert any('"others"' in entry for entry in picture["filter"])
    assert "net.ipv4.conf.all.rp_filter = 0" in picture["settings"], "it is as it was before the first start"

    other.end()
    lab.leases.configure(Backend={"Type": "vxlan"})
    lab.await_agent(agent.start(), "node1")
    lab.settle("vxlan")
    lab.run("node1", "ip link set veth10 master br0")
    await_back(lab, "node1", before, "the network of before")
    for command in ("ip link del br7", "ip route del 10.99.0.0/24", "nft delete table inet others"):
        lab.run("node1", command)
    lab.check()


COMMANDS = (
    "ip -d -o link",
    "ip address",
    "ip route show table all",
    "ip nexthop",
    "ip neighbour show nud permanent",
    "nft list ruleset",
    "bridge fdb",
    "ip rule",
)


def whole_picture(lab: AgentLab, place: str) -> dict[str, str]:
    """All that a kernel says, but for timers and the addresses that a link gives itself."""
    told = {command: lab.run(place, command) for command in COMMANDS}
    lines = {
        command: "\n".join(re.sub(r"\w+_timer +\S+", "", line) for line in text.splitlines() if "fe80:" not in line)
        for command, text in told.items()
    }
    names = ("ip_forward", "conf.all.rp_filter", "conf.default.rp_filter", "conf.eth0.rp_filter", "conf.all.forwarding")
    return lines | {name: lab.run(place, f"sysctl net.ipv4.{name}") for name in names}


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_after_uninstall_a_host_is_as_it_was_before_the_first_start(lab_of: LabOf, backend: str) -> None:
    lab = lab_of(backend)
    with lab.host("guest", "10.0.0.77"):
        wait_until(lambda: "tentative" not in lab.run("guest", "ip address"), "its own address is settled")
        before = whole_picture(lab, "guest")
        agent = lab.join("guest", "--ip-masq")
        lab.await_agent(agent, "guest")
        wait_until(lambda: lab.status("guest").programmed == 3, "it reaches all nodes")
        present = whole_picture(lab, "guest")
        assert present != before

        dry = lab.muslin_in("guest", "uninstall", "--dry-run")
        assert whole_picture(lab, "guest") == present
        assert lab.status("guest").pid == agent.pid
        assert {"vxlan": "ip link delete vxlan1", "udp": "ip link delete muslin-udp"}[backend] in dry
        tunnel = lab.status("guest").tunnel
        assert tunnel is None or f"kill {tunnel.pid}" in dry
        refused = lab.muslin_in("guest", "uninstall", code=2)
        assert "muslin uninstall --stop" in refused
        lab.muslin_in("guest", "uninstall", "--stop")

        assert whole_picture(lab, "guest") == before
        assert not is_alive(agent.pid)
        assert not [path for path in (lab.directory / "guest").rglob("*") if path.name != "agent.log"]
        assert "nothing of Muslin's" in lab.muslin_in("guest", "uninstall", "--stop")
        wait_until(lambda: len(lab.status("node1").peers) == 2, "its lease was given back", 5)


# ---- the network changes while it lives ----------------------------------------------------------------------


def test_backends_change_under_a_flow_that_loses_nothing(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    with flows(lab) as running:
        for backend in ("host-gw", "udp", "vxlan"):
            lab.leases.configure(Backend={"Type": backend})
            lab.settle(backend)
            running[0].wait_for(10)
        wait_until(lambda: "muslin-udp" not in links_of(lab.name, "node1"), "the old way is given up", LINGER_S + 5)
        running[0].wait_for(10)


def test_vni_and_mtu_change_under_a_flow_that_loses_nothing(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    with flows(lab) as running:
        lab.leases.configure(Backend={"Type": "vxlan", "VNI": 5})
        wait_until(lambda: all(has_device(lab, node, "vxlan5") for node in lab.nodes), "all have the new device")
        running[0].wait_for(10)
        lab.leases.configure(Backend={"Type": "vxlan", "VNI": 5, "MTU": 1400})
        wait_until(lambda: all(mtu_of(lab, node) == 1350 for node in lab.nodes), "all have the new MTU")
        assert links_of(lab.name, "node2")["vxlan5"]["mtu"] == 1350
        assert "FLANNEL_MTU=1350" in Path(lab.directory / "node2" / "subnet.env").read_text()
        lab.leases.configure(Backend={"Type": "vxlan"})
        lab.settle("vxlan")
        wait_until(lambda: not has_device(lab, "node1", "vxlan5"), "the old one is given up", LINGER_S + 5)
        running[0].wait_for(10)


def mtu_of(lab: AgentLab, node: str) -> int:
    network = lab.status(node).network
    return network.mtu if network else 0


def has_device(lab: AgentLab, node: str, device: str) -> bool:
    return device in links_of(lab.name, node)


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_another_port_costs_a_flow_no_more_than_its_devices_take(lab_of: LabOf, backend: str) -> None:
    lab = lab_of(backend)
    with lab.flow("node1", "node2") as flow:
        for port in (9999, 0):
            lab.leases.configure(Backend={"Type": backend, "Port": port})
            number = port or {"vxlan": 8472, "udp": 8285}[backend]
            await_port(lab, number)
            lab.settle(backend)
            flow.wait_for(50)
        flow.stop()
        assert flow.outage_s < NEW_PORT_S
        assert flow.sent - 1 not in flow.lost
    lab.check()


def await_port(lab: AgentLab, number: int) -> None:
    def have_it() -> bool:
        networks = [lab.status(node).network for node in lab.nodes]
        return all(network is not None and network.port == number for network in networks)

    wait_until(have_it, f"all nodes use port {number}")


def test_another_range_moves_all_nodes_and_back(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    with lab.flow("node1", "node2") as flow:
        begun = time.monotonic()
        lab.leases.configure(Network="172.20.0.0/16", SubnetMin="172.20.0.0", Backend={"Type": "vxlan"})
        wait_until(
            lambda: all("172.20." in str(lab.status(node).lease.subnets) for node in lab.nodes), "all have moved"
        )
        lab.settle("vxlan")
        assert time.monotonic() - begun < NEW_RANGE_S
        for node in lab.nodes:
            picture = str(lab.picture(node)["routes"])
            assert "172.16." not in picture
            assert len(lab.leases.read()) == 3
        gateway = lab.status("node2").lease.subnets[0].replace(".0/24", ".1")
        with Flow(lab.netns("node1"), gateway) as other:
            other.wait_for(10)
            other.assert_no_loss(10)

        begun = time.monotonic()
        lab.leases.configure(Backend={"Type": "vxlan"})
        wanted = {node: (f"172.16.{number}.0/24",) for number, node in enumerate(lab.nodes)}
        wait_until(lambda: {node: lab.status(node).lease.subnets for node in lab.nodes} == wanted, "all are back")
        lab.settle("vxlan")
        wait_until(lambda: flow.is_answered, "the containers talk again")
        assert time.monotonic() - begun < NEW_RANGE_S
    lab.check()


def test_a_node_held_at_an_old_configuration_is_named_by_the_others_which_talk_on(lab_of: LabOf) -> None:
    lab = lab_of("vxlan")
    held = lab.agent("node3")
    with lab.flow("node1", "node2") as there, lab.flow("node2", "node1") as back:
        os.kill(held.pid, signal.SIGSTOP)
        try:
            lab.leases.configure(Backend={"Type": "host-gw"})
            wait_until(lambda: both_follow(lab, "host-gw"), "two follow")
            with lab.flow("node1", "node3") as late:
                late.wait_for(20)
                late.assert_no_loss(20)  # the way of before is kept for whoever needs it
            lab.leases.configure(Backend={"Type": "udp"})
            wait_until(lambda: both_follow(lab, "udp"), "two follow")
            for node in ("node1", "node2"):
                wait_until(lambda node=node: "172.16.2.0-24" in lab.told(node), "the others name it")  # type: ignore[misc]
                reason = f"172.16.2.0-24 cannot be reached from {node}: it uses the vxlan backend and this node udp"
                assert reason in lab.told(node)
        finally:
            os.kill(held.pid, signal.SIGCONT)
        lab.settle("udp")
        assert lab.told("node1") == ""
        lab.leases.configure(Backend={"Type": "vxlan"})
        lab.settle("vxlan")
        there.assert_no_loss()
        back.assert_no_loss()
    lab.check()


def both_follow(lab: AgentLab, backend: str) -> bool:
    for node, peer in (("node1", "172.16.1.0-24"), ("node2", "172.16.0.0-24")):
        status = lab.status(node)
        found = [one for one in status.peers if one.name == peer and one.backend == backend]
        if not found or found[0].state != "programmed" or not status.network or status.network.backend != backend:
            return False
    return True
