"""Whatever somebody takes away from an agent's network is back within a second, and nothing else was touched.

node1 (hurt) ---- lan0 ---- node2, node3        one container each; beside ours, node1 has things of others:
   a route, an address, a device, a next hop, a neighbour, a table of the packet filter
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from muslin.agent.status import SHOWN_COMMANDS
from tests.lab.agents import FOREIGN, OURS, AgentLab, add_foreign, await_back, lease_value
from tests.lab.support import Muslin, is_alive, links_of, wait_until

pytestmark = pytest.mark.lab

REPAIR_S = 1.0
REPAIR_MANY_S = 2.0
MANY = 1000
LOOK_S = 0.3
"""What the tests themselves take to see it: one picture of a kernel, on two busy cores."""


def open_lab(shared: Muslin, backend: str, *options: object) -> Iterator[AgentLab]:
    lab = AgentLab(shared, "--nodes", 3, "--containers", 1, "--backend", backend, *options)
    add_foreign(lab, "node1")
    begun = lab.picture("node1")
    yield lab
    await_back(lab, "node1", begun, "everything, after all tests of the module,")
    lab.check()
    shared.lab("down", lab.name)


@pytest.fixture(scope="module")
def vxlan(shared: Muslin) -> Iterator[AgentLab]:
    yield from open_lab(shared, "vxlan")


@pytest.fixture(scope="module")
def udp(shared: Muslin) -> Iterator[AgentLab]:
    yield from open_lab(shared, "udp")


@pytest.fixture(scope="module")
def host_gw(shared: Muslin) -> Iterator[AgentLab]:
    yield from open_lab(shared, "host-gw")


def hurt(
    lab: AgentLab,
    fault: Callable[[], object],
    repairs: list[str],
    made_anew: tuple[str, ...] = (),
    in_s: float = REPAIR_S,
) -> float:
    """Do ``fault`` to node1; all is back in time, by these commands (patterns, in any order), which status tells.

    Seconds from the fault to the repair, by the agent's word.
    """
    before, indexes = lab.picture("node1"), lab.indexes("node1")
    since = lab.last_event("node1")
    begun, begun_at = time.monotonic(), time.time()

    fault()

    fault_s = time.monotonic() - begun
    await_back(lab, "node1", before, "what was taken away")
    took_s = time.monotonic() - begun - fault_s
    assert took_s < in_s + LOOK_S
    assert {name: number for name, number in lab.indexes("node1").items() if name not in made_anew} == {
        name: number for name, number in indexes.items() if name not in made_anew
    }
    status = lab.status("node1")
    told = [repair for repair in status.kernel.repairs if repair.at > begun_at]
    commands = [command for repair in told for command in repair.commands]
    assert told, "status tells of the repair"
    assert told[0].at - begun_at - fault_s < in_s
    unexplained = [command for command in commands if not any(re.search(pattern, command) for pattern in repairs)]
    assert not unexplained, commands
    missing = [pattern for pattern in repairs if not any(re.search(pattern, command) for command in commands)]
    assert not missing or len(commands) == SHOWN_COMMANDS, commands
    assert any(event.kind == "repair" for event in lab.events("node1", since))
    assert not status.kernel.failed
    return told[0].at - begun_at - fault_s


def mac_of_peer(lab: AgentLab) -> str:
    return str(lab.leases.read()["172.16.1.0-24"][0]["BackendData"]["VtepMAC"])


ROUTE = r"ip route add 172\.16\.1\.0/24 "
ROUTES = r"ip route add 172\.16\.[12]\.0/24 "
NEXTHOPS = r"ip nexthop add id \d+ via 172\.16\.[12]\.0 dev vxlan1"
NEIGHBOURS = r"ip neigh.* 172\.16\.[12]\.0 .*dev vxlan1"
ENTRIES = r"bridge fdb .* dev vxlan1 dst 10\.0\.0\.[23]0"
TABLE = r"nft -f .*\n.*table inet muslin"
ELEMENTS = r"nft add element inet muslin nodes4 .*10\.0\.0\.[123]0"

SMALL: dict[str, tuple[str, list[str]]] = {
    "route": ("ip route del 172.16.1.0/24", [ROUTE]),
    "all our next hops, and with them our routes": (f"ip nexthop flush proto {OURS}", [NEXTHOPS, ROUTES]),
    "next hop": ("ip nexthop del id {nexthop}", [r"ip nexthop add id {nexthop} ", ROUTE]),
    "neighbour": ("ip neighbour del 172.16.1.0 dev vxlan1", [r"ip neigh.* 172\.16\.1\.0 "]),
    "changed neighbour": (
        "ip neighbour replace 172.16.1.0 lladdr 02:00:00:00:00:01 dev vxlan1", [r"ip neigh.* 172\.16\.1\.0 "],
    ),
    "FDB entry": ("bridge fdb del {mac} dev vxlan1", [r"bridge fdb .*{mac}"]),
    "diverted FDB entry": ("bridge fdb replace {mac} dev vxlan1 dst 10.0.0.30", [r"bridge fdb .*{mac}"]),
    ".0 address": ("ip address del 172.16.0.0/32 dev vxlan1", [r"ip addr.* 172\.16\.0\.0/32 dev vxlan1", NEIGHBOURS]),
    "gateway address": ("ip address del 172.16.0.1/24 dev br0", [r"ip addr.* 172\.16\.0\.1/24 .*dev br0"]),
    "rules": ("nft flush chain inet muslin strangers", [TABLE]),
    "set element": ("nft delete element inet muslin nodes4 { 10.0.0.20 }", [r"nft add element .*10\.0\.0\.20"]),
    "table": ("nft delete table inet muslin", [TABLE, ELEMENTS]),
    "device MTU": ("ip link set vxlan1 mtu 1400", [r"ip link set vxlan1 mtu 1450"]),
    "device's mark": ("ip link set vxlan1 alias mine", [r"ip link set vxlan1 alias muslin:vxlan1"]),
    "device's MAC": ("ip link set vxlan1 address 02:00:00:00:00:07", [r"ip link set vxlan1 address ", NEIGHBOURS]),
    "device down": ("ip link set vxlan1 down", [r"ip link set vxlan1 up", NEXTHOPS, ROUTES, NEIGHBOURS]),
    "ip_forward": ("sysctl -q -w net.ipv4.ip_forward=0", [r"net\.?/?ipv4.*ip_forward.*1"]),
    "rp_filter": ("sysctl -q -w net.ipv4.conf.all.rp_filter=1", [r"net\.?/?ipv4.conf.all.rp_filter.*2"]),
}  # fmt: skip


@pytest.mark.parametrize("what", SMALL)
def test_what_was_taken_away_or_changed_is_back_within_a_second(vxlan: AgentLab, what: str) -> None:
    (nexthop,) = re.findall(r"id (\d+) via 172.16.1.0 ", vxlan.run("node1", "ip nexthop"))
    names = {"nexthop": nexthop, "mac": mac_of_peer(vxlan)}

    def filled(text: str) -> str:
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    command, repairs = SMALL[what]
    hurt(vxlan, lambda: vxlan.run("node1", filled(command)), [filled(pattern) for pattern in repairs])


def test_a_flushed_packet_filter_is_back_and_only_ours(vxlan: AgentLab) -> None:
    before = vxlan.picture("node1")
    begun_at = time.time()

    vxlan.run("node1", "nft flush ruleset")

    wait_until(lambda: vxlan.picture("node1")["filter"], "our table is back", REPAIR_S + LOOK_S)
    assert vxlan.status("node1").kernel.repairs[-1].at - begun_at < REPAIR_S
    wait_until(lambda: "10.0.0.30" in vxlan.run("node1", "nft list ruleset"), "and its elements", REPAIR_S)
    assert not any('"others"' in entry for entry in vxlan.picture("node1")["filter"])
    for command in FOREIGN:
        if command.startswith("nft"):
            vxlan.run("node1", command)
    assert vxlan.picture("node1") == before


def test_a_deleted_vxlan_device_is_back_with_all_that_was_on_it(vxlan: AgentLab) -> None:
    repairs = [r"ip link add vxlan1 ", r"ip link set vxlan1 ", r"ip addr.* dev vxlan1", NEXTHOPS, ROUTES, NEIGHBOURS]
    hurt(vxlan, lambda: vxlan.run("node1", "ip link del vxlan1"), [*repairs, ENTRIES], ("vxlan1",))
    vxlan.check()


def test_a_deleted_bridge_is_back_with_its_ports(vxlan: AgentLab) -> None:
    repairs = [r"ip link add br0 ", r"ip link set br0 ", r"ip addr.* 172\.16\.0\.1/24 .*dev br0"]
    hurt(vxlan, lambda: vxlan.run("node1", "ip link del br0"), repairs, ("br0",))
    assert links_of(vxlan.name, "node1")["veth10"]["master"] == "br0"
    vxlan.check()


def test_a_container_that_came_and_went_is_none_of_the_agents_business(vxlan: AgentLab) -> None:
    passes = vxlan.status("node1").kernel.repaired
    for command in (
        "ip link add veth99 type veth peer name veth98",
        "ip link set veth99 master br0 up",
        "ip link del veth99",
        "ip route add 10.97.0.0/24 via 10.0.0.20",
        "ip route del 10.97.0.0/24",
    ):
        vxlan.run("node1", command)
    vxlan.run("node1", "ip route del 172.16.1.0/24")
    wait_until(lambda: "172.16.1.0/24" in vxlan.run("node1", "ip route"), "the agent has looked", REPAIR_S)
    wait_until(lambda: vxlan.status("node1").kernel.repaired == passes + 1, "one repair, that of the route")


@pytest.mark.parametrize("backend", ["vxlan", "host_gw"])
def test_an_underlay_that_was_down_and_up_has_all_its_routes_again(
    backend: str, request: pytest.FixtureRequest
) -> None:
    lab: AgentLab = request.getfixturevalue(backend)
    # Others see to their own routes over it.
    before = lab.picture("node1")

    lab.run("node1", "ip link set eth0 down")
    lab.run("node1", "ip link set eth0 up")
    for command in FOREIGN:
        if "10.0.0.20" in command and command.startswith(("ip route", "ip nexthop")):
            lab.run("node1", command)
    begun = time.monotonic()
    await_back(lab, "node1", before, "what was lost with the underlay")
    assert time.monotonic() - begun < REPAIR_S + LOOK_S

    lab.run("node1", "ip link set eth0 down")
    wait_until(lambda: "eth0" in lab.told("node1") or lab.picture("node1") != before, "the agent has seen it")
    lab.run("node1", "ip link set eth0 up")
    begun = time.monotonic()
    for command in FOREIGN:
        if "10.0.0.20" in command and command.startswith(("ip route", "ip nexthop")):
            lab.run("node1", command)
    await_back(lab, "node1", before, "what was lost with the underlay")
    assert time.monotonic() - begun < REPAIR_S + LOOK_S
    lab.settle()
    lab.check()


def tunnel_pid(lab: AgentLab) -> int:
    tunnel = lab.status("node1").tunnel
    return tunnel.pid if tunnel else 0


def test_a_deleted_tun_device_is_back_with_a_tunnel_behind_it(udp: AgentLab) -> None:
    before, pid = udp.picture("node1"), tunnel_pid(udp)
    begun = time.monotonic()

    udp.run("node1", "ip link del muslin-udp")

    await_back(udp, "node1", before, "the device", 10)
    wait_until(lambda: tunnel_pid(udp) not in (0, pid) and carrier(udp), "a tunnel behind it")
    assert time.monotonic() - begun < REPAIR_S + LOOK_S
    assert not is_alive(pid)
    udp.check()


def carrier(lab: AgentLab) -> bool:
    return "LOWER_UP" in links_of(lab.name, "node1")["muslin-udp"]["flags"]


def test_a_killed_tunnel_is_replaced(udp: AgentLab) -> None:
    pid = tunnel_pid(udp)
    begun = time.monotonic()

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: tunnel_pid(udp) not in (0, pid) and carrier(udp), "another tunnel runs")
    assert time.monotonic() - begun < REPAIR_S + LOOK_S
    assert any(event.kind == "tunnel" for event in udp.events("node1"))
    udp.check()


def test_a_device_with_a_thousand_peers_is_back_within_two_seconds(shared: Muslin) -> None:
    lab = AgentLab(shared, "--containers", 1, "--backend", "vxlan", "--network", "172.16.0.0/12")
    add_foreign(lab, "node1")
    lab.leases.write(
        {
            f"172.{20 + number // 256}.{number % 256}.0-24": lease_value(
                f"198.18.{number // 250}.{number % 250 + 1}", f"02:00:00:01:{number // 256:02x}:{number % 256:02x}"
            )
            for number in range(MANY)
        }
    )
    wait_until(lambda: lab.status("node1").programmed == MANY + 1, "all peers are programmed")
    before = lab.picture("node1")
    begun_at = time.time()

    lab.run("node1", "ip link del vxlan1")

    wait_until(lambda: lab.status("node1").kernel.repairs, "it is repaired")
    (repair, *_) = lab.status("node1").kernel.repairs
    assert repair.at - begun_at < REPAIR_MANY_S
    assert repair.count > 4 * MANY
    await_back(lab, "node1", before, "all of it")
    shared.lab("down", lab.name)
