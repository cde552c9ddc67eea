"""One container's objects, as the talk's first two steps have them.

bridge: node netns ── br0 ── veth10 ═══ veth11 ── con        direct: node ── veth1 ═══ veth2 ── con
"""

from __future__ import annotations

import msgspec
import pytest

from muslin.model.kernel import Address, Link, Loopback, Netns, NftElement, Route, Veth
from muslin.model.ops import describe_all
from muslin.model.state import DesiredState, Snapshot
from muslin.plan.attach import Attachment, plan, plan_node_side
from muslin.plan.diff import diff

NODE = Netns(netns="node")
BRIDGED = Attachment(
    node_netns="node",
    netns="con",
    node_link="veth10",
    link="veth11",
    mode="bridge",
    addresses=("172.16.0.2/24", "fd16::2/64"),
    gateways=("172.16.0.1", "fd16::1"),
    bridge="br0",
)
DIRECT = Attachment(
    node_netns="node",
    netns="con",
    node_link="veth1",
    link="veth2",
    mode="direct",
    addresses=("172.16.0.1/24", "fd16::1/64"),
    mtu=1400,
)


def commands(attachment: Attachment) -> list[str]:
    return describe_all(diff(DesiredState(plan(attachment)), Snapshot.of([NODE])))


def test_a_bridged_container_as_commands() -> None:
    assert commands(BRIDGED) == [
        "ip netns add con",
        "ip netns exec con sysctl -q -w net.ipv6.conf.all.accept_dad=0",
        "ip netns exec con sysctl -q -w net.ipv6.conf.default.accept_dad=0",
        "ip -n node link add veth10 type veth peer name veth11 netns con",
        "ip -n node link set veth10 master br0",
        "ip -n con addr add 172.16.0.2/24 dev veth11",
        "ip -n con addr add fd16::2/64 dev veth11 nodad",
        "ip -n node link set veth10 up",
        "ip -n con link set veth11 up",
        "ip -n con link set lo up",
        "ip -n con route add default via 172.16.0.1 dev veth11",
        "ip -n con -6 route add default via fd16::1 dev veth11",
    ]


def test_a_direct_container_has_host_addresses_and_a_route_on_the_node() -> None:
    assert commands(DIRECT) == [
        "ip netns add con",
        "ip netns exec con sysctl -q -w net.ipv6.conf.all.accept_dad=0",
        "ip netns exec con sysctl -q -w net.ipv6.conf.default.accept_dad=0",
        "ip -n node link add veth1 mtu 1400 type veth peer name veth2 netns con",
        "ip -n con link set veth2 mtu 1400",
        "ip -n node addr add fe80::1/64 dev veth1 nodad",
        "ip -n con addr add 172.16.0.1/32 dev veth2",
        "ip -n con addr add fd16::1/128 dev veth2 nodad",
        "ip -n node link set veth1 up",
        "ip -n con link set veth2 up",
        "ip -n con link set lo up",
        "ip -n node route add 172.16.0.1/32 dev veth1",
        # IPv4 names itself as gateway, which IPv6 refuses: tests/assumptions/test_default_via_own_address.py
        "ip -n con route add default via 172.16.0.1 dev veth2",
        "ip -n node route add fd16::1/128 dev veth1",
        "ip -n con -6 route add default via fe80::1 dev veth2",
    ]


def test_an_ipv4_container_says_nothing_about_ipv6() -> None:
    objects = plan(msgspec.structs.replace(BRIDGED, addresses=("172.16.0.2/24",)))
    assert not [obj for obj in objects if "fd16" in obj.describe() or "ipv6" in obj.describe()]
    assert Route(netns="con", destination="0.0.0.0/0", via="172.16.0.1", link="veth11") in objects


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_gateway_there_is_no_default_route(family: int) -> None:
    keep = {4: "fd16::1", 6: "172.16.0.1"}[family]
    routes = [obj for obj in plan(msgspec.structs.replace(BRIDGED, gateways=(keep,))) if isinstance(obj, Route)]
    assert [route.via for route in routes] == [keep]


def test_a_container_whose_link_is_down_has_no_way_out() -> None:
    for attachment in (BRIDGED, DIRECT):
        objects = plan(msgspec.structs.replace(attachment, up=False))
        assert not [obj for obj in objects if isinstance(obj, Route) and obj.netns == "con"]
        (end,) = [obj for obj in objects if isinstance(obj, Link) and obj.name == attachment.link]
        assert end.up is False


def test_both_ends_name_each_other_and_the_direct_one_is_no_port() -> None:
    for attachment, master in ((BRIDGED, "br0"), (DIRECT, "")):
        near, far = (obj for obj in plan(attachment) if isinstance(obj, Link) and isinstance(obj.options, Veth))
        assert near.options == Veth(peer_netns=far.netns, peer=far.name)
        assert far.options == Veth(peer_netns=near.netns, peer=near.name)
        assert (near.master, far.master) == (master, None)


def test_everything_is_planned_once_and_the_loopback_too() -> None:
    for attachment in (BRIDGED, DIRECT):
        objects = plan(attachment)
        assert len({obj.key for obj in objects}) == len(objects)
        assert Link(netns="con", name="lo", options=Loopback(), up=True) in objects
        assert all(obj.netns in ("node", "con") for obj in objects)


def test_an_address_keeps_its_length_on_a_bridge_only() -> None:
    lengths = [
        [obj.address for obj in plan(attachment) if isinstance(obj, Address)] for attachment in (BRIDGED, DIRECT)
    ]
    assert lengths == [["172.16.0.2/24", "fd16::2/64"], ["fe80::1/64", "172.16.0.1/32", "fd16::1/128"]]


# ---- real containers: the namespace is somebody else's -----------------------------------------------------

MAC, NODE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
REAL = msgspec.structs.replace(
    BRIDGED,
    has_netns=True,
    node_link="mus0",
    link="eth0",
    mac=MAC,
    node_mac=NODE_MAC,
    alias="muslin-cni:c/eth0",
    hairpin=True,
    mtu=1450,
    checks_sources=True,
)
ROUTED = msgspec.structs.replace(
    REAL, mode="routed", bridge=None, hairpin=None, addresses=("172.16.0.2/24", "fd16::2/64")
)


def commands_in(attachment: Attachment) -> list[str]:
    return describe_all(diff(DesiredState(plan(attachment)), Snapshot.of([NODE, Netns(netns="con")])))


def test_a_real_container_on_a_bridge_as_commands() -> None:
    assert commands_in(REAL) == [
        "ip netns exec con sysctl -q -w net.ipv6.conf.default.disable_ipv6=0",
        "ip netns exec con sysctl -q -w net.ipv6.conf.all.accept_dad=0",
        "ip netns exec con sysctl -q -w net.ipv6.conf.default.accept_dad=0",
        "ip -n node link add mus0 address 02:00:00:00:00:02 mtu 1450 type veth peer name eth0 netns con",
        "ip -n node link set mus0 alias muslin-cni:c/eth0",
        "ip -n node link set mus0 master br0",
        "ip -n node link set mus0 type bridge_slave hairpin on",
        "ip -n con link set eth0 mtu 1450",
        "ip -n con link set eth0 address 02:00:00:00:00:01",
        "ip -n con addr add 172.16.0.2/24 dev eth0",
        "ip -n con addr add fd16::2/64 dev eth0 nodad",
        "ip netns exec node nft add element bridge muslin_cni cables '{ mus0 . 02:00:00:00:00:01 }'",
        "ip netns exec node nft add element bridge muslin_cni sources4 '{ mus0 . 172.16.0.2 }'",
        "ip netns exec node nft add element bridge muslin_cni sources6 '{ mus0 . fd16::2 }'",
        "ip -n node link set mus0 up",
        "ip -n con link set eth0 up",
        "ip -n con link set lo up",
        "ip -n con route add default via 172.16.0.1 dev eth0",
        "ip -n con -6 route add default via fd16::1 dev eth0",
    ]


def test_a_routed_container_asks_nobody_for_its_neighbour() -> None:
    assert commands_in(ROUTED)[3:] == [
        "ip -n node link add mus0 address 02:00:00:00:00:02 mtu 1450 type veth peer name eth0 netns con",
        "ip -n node link set mus0 alias muslin-cni:c/eth0",
        "ip -n con link set eth0 mtu 1450",
        "ip -n con link set eth0 address 02:00:00:00:00:01",
        "ip -n node addr add 172.16.0.1/32 dev mus0",
        "ip -n node addr add fd16::1/128 dev mus0 nodad",
        "ip -n con addr add 172.16.0.2/32 dev eth0",
        "ip -n con addr add fd16::2/128 dev eth0 nodad",
        "ip netns exec node nft add element inet muslin_cni cables '{ mus0 . 02:00:00:00:00:01 }'",
        "ip netns exec node nft add element inet muslin_cni sources4 '{ mus0 . 172.16.0.2 }'",
        "ip netns exec node nft add element inet muslin_cni sources6 '{ mus0 . fd16::2 }'",
        "ip -n node link set mus0 up",
        "ip -n con link set eth0 up",
        "ip -n con link set lo up",
        "ip -n node neigh add 172.16.0.2 lladdr 02:00:00:00:00:01 dev mus0 nud permanent",
        "ip -n node neigh add fd16::2 lladdr 02:00:00:00:00:01 dev mus0 nud permanent",
        "ip -n con neigh add 172.16.0.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
        "ip -n con neigh add fd16::1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
        "ip -n node route add 172.16.0.2/32 dev mus0",
        "ip -n con route add 172.16.0.1/32 dev eth0",
        "ip -n con route add default via 172.16.0.1 dev eth0",
        "ip -n node route add fd16::2/128 dev mus0",
        "ip -n con route add fd16::1/128 dev eth0",
        "ip -n con -6 route add default via fd16::1 dev eth0",
    ]


@pytest.mark.parametrize("attachment", [REAL, ROUTED])
@pytest.mark.parametrize("family", [4, 6])
def test_one_family_plans_nothing_of_the_other(attachment: Attachment, family: int) -> None:
    keep = slice(0, 1) if family == 4 else slice(1, 2)
    alone = msgspec.structs.replace(
        attachment, addresses=attachment.addresses[keep], gateways=attachment.gateways[keep]
    )
    words = " ".join(commands_in(alone))
    assert ("fd16" in words or "ipv6" in words) == (family == 6)
    assert ("172.16" in words) == (family == 4)


@pytest.mark.parametrize("attachment", [REAL, ROUTED])
def test_a_real_container_may_be_given_ways_to_some_networks_alone(attachment: Attachment) -> None:
    some = msgspec.structs.replace(attachment, ways_out=("10.0.0.0/8", "fd00::/8"))
    ways = [obj for obj in plan(some) if isinstance(obj, Route) and obj.netns == "con" and obj.via]
    assert [(way.destination, way.via) for way in ways] == [("10.0.0.0/8", "172.16.0.1"), ("fd00::/8", "fd16::1")]


@pytest.mark.parametrize("attachment", [REAL, ROUTED])
def test_the_node_side_names_nothing_inside_of_the_container(attachment: Attachment) -> None:
    side = plan_node_side(attachment)
    assert {obj.netns for obj in side} == {"node"}
    assert len(side) == len([obj for obj in plan(attachment) if obj.netns == "node"])


def test_what_may_be_sent_is_not_checked_without_a_mac_or_the_wish() -> None:
    for change in ({"mac": None}, {"checks_sources": False}):
        objects = plan(msgspec.structs.replace(REAL, **change))
        assert not [obj for obj in objects if isinstance(obj, NftElement)]
