"""A node's bridge and settings as commands."""

from __future__ import annotations

from muslin.model.kernel import Link
from muslin.plan import node


def test_a_bridge_is_the_gateway_of_both_families() -> None:
    objects = list(node.bridge("n1", "br0", ("172.16.0.1/24", "fd16::1/64"), mtu=1400))
    assert [obj.describe() for obj in objects] == [
        "ip -n n1 link add br0 mtu 1400 type bridge",
        "ip -n n1 addr add 172.16.0.1/24 dev br0",
        "ip -n n1 addr add fd16::1/64 dev br0 nodad",
    ]
    assert isinstance(objects[0], Link)
    assert objects[0].up is True


def test_forwarding_is_stated_either_way_for_each_family() -> None:
    assert [(obj.name, obj.value) for obj in node.forwarding("n1", (4, 6), enabled=True)] == [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ]
    assert [(obj.name, obj.value) for obj in node.forwarding("", (4,), enabled=False)] == [("net/ipv4/ip_forward", "0")]


def test_packets_are_taken_from_any_link_now_and_from_links_to_come() -> None:
    assert [obj.describe() for obj in node.no_reverse_path_filter("")] == [
        "sysctl -q -w net.ipv4.conf.all.rp_filter=0",
        "sysctl -q -w net.ipv4.conf.default.rp_filter=0",
    ]


def test_duplicate_detection_is_a_matter_of_ipv6_alone() -> None:
    assert list(node.no_duplicate_detection("n1", (4,))) == []
    assert [(obj.name, obj.value) for obj in node.no_duplicate_detection("n1", (4, 6))] == [
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
    ]
