"""The plan of each step is the list of commands that a person would type, in order."""

from __future__ import annotations

from typing import Any

import pytest

from muslin.lab.plan import LabPlan, netns_of, plan, vtep_mac_of
from muslin.lab.presets import preset
from muslin.lab.topology import SCHEMA, Agents, Attachment, Container, Node, Segment, Topology, resolve
from muslin.model.kernel import Link, Netns, NftTable, Route, Vxlan
from muslin.model.ops import describe_all
from muslin.model.state import Snapshot
from muslin.plan.diff import creations, diff


def commands(lab_plan: LabPlan) -> list[str]:
    """The commands without the lab's own prefix, and without those that say what the kernel does anyway."""
    shown = [line.replace("muslin-x-", "") for line in describe_all(creations(lab_plan.state))]
    return [line.replace("ip netns exec ", "").replace("sysctl -q -w ", "") for line in shown]


STEP_1 = """\
ip netns add lan0
ip netns add node1
ip netns add con.node1
ip -n lan0 link add br0 type bridge
ip -n node1 link add eth0 type veth peer name node1 netns lan0
ip -n node1 link add veth1 type veth peer name veth2 netns con.node1
ip -n lan0 link set node1 master br0
ip -n node1 addr add 10.0.0.10/24 dev eth0
ip -n con.node1 addr add 172.16.0.1/32 dev veth2
ip -n lan0 link set br0 up
ip -n node1 link set lo up
ip -n node1 link set eth0 up
ip -n lan0 link set node1 up
ip -n node1 link set veth1 up
ip -n con.node1 link set veth2 up
ip -n con.node1 link set lo up
ip -n node1 route add 172.16.0.1/32 dev veth1
ip -n con.node1 route add default via 172.16.0.1 dev veth2
"""

STEP_2 = """\
ip netns add lan0
ip netns add node1
ip netns add con1.node1
ip netns add con2.node1
ip -n lan0 link add br0 type bridge
ip -n node1 link add eth0 type veth peer name node1 netns lan0
ip -n node1 link add br0 type bridge
ip -n node1 link add veth10 type veth peer name veth11 netns con1.node1
ip -n node1 link add veth20 type veth peer name veth21 netns con2.node1
ip -n lan0 link set node1 master br0
ip -n node1 link set veth10 master br0
ip -n node1 link set veth20 master br0
ip -n node1 addr add 10.0.0.10/24 dev eth0
ip -n node1 addr add 172.16.0.1/24 dev br0
ip -n con1.node1 addr add 172.16.0.2/24 dev veth11
ip -n con2.node1 addr add 172.16.0.3/24 dev veth21
ip -n lan0 link set br0 up
ip -n node1 link set lo up
ip -n node1 link set eth0 up
ip -n lan0 link set node1 up
ip -n node1 link set br0 up
ip -n node1 link set veth10 up
ip -n con1.node1 link set veth11 up
ip -n con1.node1 link set lo up
ip -n node1 link set veth20 up
ip -n con2.node1 link set veth21 up
ip -n con2.node1 link set lo up
ip -n con1.node1 route add default via 172.16.0.1 dev veth11
ip -n con2.node1 route add default via 172.16.0.1 dev veth21
"""

ON_BOTH = {"node1 net.ipv4.ip_forward=1", "node2 net.ipv4.ip_forward=1"}


@pytest.mark.parametrize(("step", "golden"), [(1, STEP_1), (2, STEP_2)])
def test_a_step_of_one_node_is_these_commands(step: Any, golden: str) -> None:
    lines = commands(plan("x", preset(step)))

    assert [line for line in lines if line.startswith("ip ")] == golden.splitlines()
    assert "node1 net.ipv4.ip_forward=0" in lines
    assert plan("x", preset(step)).tunnels == ()


def added_by(step: Any, **options: Any) -> set[str]:
    """The commands that a step of two nodes adds to two nodes with nothing between them."""
    return set(commands(plan("x", preset(step, **options)))) - set(commands(plan("x", preset(3, backend="none"))))


def test_step_3_adds_a_route_a_node_and_forwarding() -> None:
    assert added_by(3) == ON_BOTH | {
        "ip -n node1 route add 172.16.1.0/24 via 10.0.0.20 dev eth0",
        "ip -n node2 route add 172.16.0.0/24 via 10.0.0.10 dev eth0",
    }


def test_step_4_adds_a_tun_device_and_no_route_at_all() -> None:
    added = added_by(4)
    lab_plan = plan("x", preset(4))

    assert {line for line in added if line.startswith("ip ")} == {
        f"ip -n node{number} {words}"
        for number in (1, 2)
        for words in (
            "tuntap add dev tun0 mode tun",
            "link set tun0 mtu 1472",
            f"addr add 172.16.{number - 1}.100/16 dev tun0",
            "link set tun0 up",
        )
    }
    # The talk turns it off; what all interfaces have is stated for every step.
    settings = {
        f"node{number} net.ipv4.conf.{link}.rp_filter=0" for number in (1, 2) for link in ("eth0", "br0", "tun0")
    }
    assert {line for line in added if not line.startswith("ip ")} == settings | ON_BOTH
    assert {"node1 net.ipv4.conf.all.rp_filter=0", "node2 net.ipv4.conf.all.rp_filter=0"} <= set(commands(lab_plan))
    assert not [obj for obj in lab_plan.state if isinstance(obj, Route) and obj.destination.startswith("172.16.")]
    first, second = lab_plan.tunnels
    assert first.arguments[:2] == ("--device=tun0", "--listen=10.0.0.10:9000")
    assert "--peer=172.16.1.0/24=10.0.0.20:9000" in first.arguments
    assert "--peer=172.16.0.0/24=10.0.0.10:9000" in second.arguments


@pytest.mark.parametrize(("families", "mtu"), [((4,), 1472), ((6,), 1452), ((4, 6), 1472)])
def test_a_tun_device_is_as_large_as_the_outer_family_leaves_it(families: Any, mtu: int) -> None:
    lab_plan = plan("x", preset(4, families=families))

    assert {obj.mtu for obj in lab_plan.state if isinstance(obj, Link) and obj.name == "tun0"} == {mtu}


def test_vxlan_devices_know_each_other_by_mac() -> None:
    topology = preset(4, backend="vxlan")
    lines = commands(plan("x", topology))
    first, second = map(vtep_mac_of, topology.nodes)

    assert first != second
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in (first, second)), "locally administered, for one station"
    told = [line for line in lines if "bridge " in line and " fdb " in line]
    assert [
        (mac in line, node in line)
        for line, mac, node in zip(told, (second, first), ("dst 10.0.0.20", "dst 10.0.0.10"), strict=True)
    ] == [(True, True)] * 2
    devices = [obj for obj in plan("x", topology).state if isinstance(obj, Link) and isinstance(obj.options, Vxlan)]
    assert [device.mtu for device in devices] == [1450, 1450]


def test_a_router_between_nodes_refuses_host_gw_and_not_an_overlay() -> None:
    refused = plan("x", preset(3, underlay="routed")).refusals

    assert [refusal.peer for refusal in refused] == ["node2", "node1"]
    assert all("share no layer-2 network" in refusal.reason for refusal in refused)
    assert plan("x", preset(4, underlay="routed")).refusals == ()


def test_every_object_is_in_a_namespace_that_the_lab_makes_and_names() -> None:
    lab_plan = plan("some-lab", preset(4, nodes=3, containers=4, underlay="routed", families=(4, 6)))

    own = set(lab_plan.state.own_netns)
    assert {obj.netns for obj in lab_plan.state} == own
    assert all(name.startswith(netns_of("some-lab", "")) for name in own)
    assert len(own) == 3 + 1 + 3 + 12
    assert {obj.netns for obj in lab_plan.state if isinstance(obj, Netns)} == own


def test_a_usual_mtu_is_not_said_and_an_unusual_one_everywhere() -> None:
    assert not [line for line in commands(plan("x", preset(3))) if " mtu " in line]
    large = plan("x", preset(3, mtu=9000)).state
    links = [obj for obj in large if isinstance(obj, Link) and obj.name.startswith(("eth", "veth"))]
    assert links
    assert {link.mtu for link in links} == {9000}


def test_loss_is_a_table_at_both_ends_of_a_cable_and_a_broken_cable_has_no_default_route() -> None:
    topology = resolve(
        Topology(
            schema=SCHEMA,
            segments=(Segment(name="lan0", prefixes=("10.0.0.0/24",)),),
            nodes=(
                Node(
                    name="a",
                    links=(Attachment(segment="lan0", loss_percent=12.5),),
                    containers=(Container(down=True), Container(loss_percent=100)),
                ),
            ),
        )
    )
    state = plan("x", topology).state

    tables = {obj.netns: obj.text for obj in state if isinstance(obj, NftTable)}
    assert set(tables) == {"muslin-x-a", "muslin-x-lan0", "muslin-x-con2.a"}
    assert "numgen random mod 10000 < 1250 counter drop" in tables["muslin-x-lan0"]
    assert "\ncounter drop\n" in tables["muslin-x-con2.a"]
    down = [obj for obj in state if isinstance(obj, Link) and obj.netns == "muslin-x-con1.a" and obj.name == "veth11"]
    assert [link.up for link in down] == [False]
    assert not [obj for obj in state if isinstance(obj, Route) and obj.netns == "muslin-x-con1.a"]


# ---- agents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["host-gw", "udp", "vxlan"])
def test_what_agents_make_is_not_in_the_plan(backend: Any) -> None:
    lab_plan = plan("x", preset(4, backend=backend, families=(4, 6), agents=Agents()))
    lines = commands(lab_plan)

    assert lab_plan.tunnels == ()
    assert not [line for line in lines if "forward" in line or "type vxlan" in line or "tun" in line]
    assert not [line for line in lines if "node1" in line and "link add br0" in line]
    assert {line for line in lines if "rp_filter" in line} == {
        f"node{number} net.ipv4.conf.default.rp_filter=0" for number in (1, 2)
    }
    assert "ip -n con1.node1 route add default via 172.16.0.1 dev veth11" in lines


def test_all_but_the_ports_of_their_bridges_stands_before_the_agents() -> None:
    lab_plan = plan("x", preset(4, agents=Agents()))
    every = creations(lab_plan.state)

    late = [op for op in every if lab_plan.needs_agent(op)]
    assert [op.describe().replace("muslin-x-", "") for op in late] == [
        f"ip -n {node} link set {port} master br0" for node in ("node1", "node2") for port in ("veth10", "veth20")
    ]
    before = describe_all(creations(lab_plan.before_agents))
    assert before == describe_all(op for op in every if op not in late)


def test_a_port_that_is_plugged_in_is_left_alone_by_what_stands_before() -> None:
    lab_plan = plan("x", preset(4, agents=Agents()))
    snapshot = Snapshot.of(lab_plan.state)

    assert diff(lab_plan.before_agents, snapshot) == ()
    assert plan("x", preset(4)).before_agents == plan("x", preset(4)).state


def test_the_members_of_etcd_are_hosts_with_a_way_out() -> None:
    lines = commands(plan("x", preset(4, underlay="routed", agents=Agents(store="etcd"))))

    assert [line for line in lines if line.startswith("ip -n etcd2 ")] == [
        "ip -n etcd2 link add eth0 type veth peer name etcd2 netns lan1",
        "ip -n etcd2 addr add 10.0.1.252/24 dev eth0",
        "ip -n etcd2 link set lo up",
        "ip -n etcd2 link set eth0 up",
        "ip -n etcd2 route add default via 10.0.1.1 dev eth0",
    ]


def test_agents_are_warned_of_as_their_lab_would_be() -> None:
    refused = plan("x", preset(3, underlay="routed", agents=Agents())).refusals

    assert [refusal.peer for refusal in refused] == ["node2", "node1"]
