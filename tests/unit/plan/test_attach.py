"""One container's objects, as the talk's first two steps have them.

bridge: node netns ── br0 ── veth10 ═══ veth11 ── con        direct: node ── veth1 ═══ veth2 ── con
"""

from __future__ import annotations

import msgspec
import pytest

from muslin.model.kernel import Address, Link, Loopback, Netns, Route, Veth
from muslin.model.ops import describe_all
from muslin.model.state import DesiredState, Snapshot
from muslin.plan.attach import Attachment, plan
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
