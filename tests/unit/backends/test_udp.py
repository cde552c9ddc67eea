"""udp: a TUN device for the whole network, and a tunnel. The network is drawn in tests/unit/backends/nodes.py."""

from __future__ import annotations

import pytest

from muslin.backends import BACKENDS, udp
from muslin.model.address import Family
from tests.unit.backends.nodes import described, local_node, peer_node


def test_over_ipv4_the_device_takes_the_whole_network_and_the_filter_is_off() -> None:
    plan = BACKENDS["udp"].plan(local_node((4,), (4, 6)), [peer_node((4,), (4, 6))])
    assert described(plan.state) == [
        "ip tuntap add dev tun0 mode tun up",
        "ip addr add 172.16.0.100/16 dev tun0",
        "ip addr add fd16::64/48 dev tun0 nodad",
        "sysctl -q -w net.ipv4.conf.all.rp_filter=0",
        "sysctl -q -w net.ipv4.conf.eth0.rp_filter=0",
        "sysctl -q -w net.ipv4.conf.br0.rp_filter=0",
        "sysctl -q -w net.ipv4.conf.tun0.rp_filter=0",
    ]


@pytest.mark.parametrize(("underlay", "mtu"), [((4,), 1472), ((4, 6), 1472), ((6,), 1452)])
def test_a_packet_in_its_datagram_fills_the_underlay_exactly(underlay: tuple[Family, ...], mtu: int) -> None:
    device = next(iter(BACKENDS["udp"].plan(local_node(underlay, (4,)), []).state))
    assert getattr(device, "mtu", None) == mtu
    assert mtu + udp.overhead_bytes(underlay[0]) == 1500


def test_headers_are_28_bytes_over_ipv4_and_48_over_ipv6() -> None:
    assert [udp.overhead_bytes(family) for family in (4, 6)] == [28, 48]


def test_the_tunnel_knows_each_subnet_of_each_peer() -> None:
    tunnel = BACKENDS["udp"].plan(local_node((4,), (4, 6)), [peer_node((4,), (4, 6))]).tunnel
    assert tunnel is not None
    assert (tunnel.netns, tunnel.device, tunnel.listen) == ("n1", "tun0", "10.0.0.10:9000")
    assert tunnel.arguments == (
        "--device=tun0",
        "--listen=10.0.0.10:9000",
        "--peer=172.16.1.0/24=10.0.0.20:9000",
        "--peer=fd16:0:0:1::/64=10.0.0.20:9000",
    )


def test_a_second_underlay_address_of_a_peer_is_told_to_the_tunnel() -> None:
    tunnel = BACKENDS["udp"].plan(local_node((4, 6), (4,)), [peer_node((4, 6), (4,))]).tunnel
    assert tunnel is not None
    assert tunnel.peers == (("172.16.1.0/24", "10.0.0.20:9000"), ("fd10::20/128", "10.0.0.20:9000"))


def test_over_ipv6_addresses_with_ports_stand_in_brackets() -> None:
    tunnel = BACKENDS["udp"].plan(local_node((6,), (4,)), [peer_node((6,), (4,))]).tunnel
    assert tunnel is not None
    assert tunnel.arguments == ("--device=tun0", "--listen=[fd10::10]:9000", "--peer=172.16.1.0/24=[fd10::20]:9000")


def test_a_peer_without_an_address_of_the_underlays_family_is_out_of_reach() -> None:
    tunnel = BACKENDS["udp"].plan(local_node((4,), (4,)), [peer_node((6,), (4,))]).tunnel
    assert tunnel is not None
    assert tunnel.peers == ()


def test_a_router_between_nodes_is_no_obstacle() -> None:
    assert BACKENDS["udp"].plan(local_node((4,), (4,)), [peer_node((4,), (4,), link=None)]).refusals == ()
