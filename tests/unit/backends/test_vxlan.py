"""vxlan: flannel's layout. The network is drawn in tests/unit/backends/nodes.py."""

from __future__ import annotations

import pytest

from muslin.backends import BACKENDS, vxlan
from muslin.model.address import Family
from tests.unit.backends.nodes import MAC1, MAC2, described, local_node, peer_node


def test_over_ipv4_a_peer_is_an_entry_a_neighbour_and_a_route_in_each_family() -> None:
    plan = BACKENDS["vxlan"].plan(local_node((4,), (4, 6)), [peer_node((4,), (4, 6))])
    assert described(plan.state) == [
        f"ip link add vxlan1 address {MAC1} mtu 1450 type vxlan id 1 local 10.0.0.10 dev eth0 dstport 8472 nolearning"
        " up",
        "ip addr add 172.16.0.0/32 dev vxlan1",
        "ip addr add fd16::/128 dev vxlan1 nodad",
        "sysctl -q -w net.ipv4.conf.all.rp_filter=2",
        f"bridge fdb add {MAC2} dev vxlan1 dst 10.0.0.20 self permanent",
        f"ip neigh add 172.16.1.0 lladdr {MAC2} dev vxlan1 nud permanent",
        "ip route add 172.16.1.0/24 via 172.16.1.0 dev vxlan1 onlink",
        f"ip neigh add fe80::ff:fe00:2 lladdr {MAC2} dev vxlan1 nud permanent",
        "ip route add fd16:0:0:1::/64 via fe80::ff:fe00:2 dev vxlan1",
    ]
    assert plan.tunnel is None


def test_over_ipv6_the_outer_addresses_are_ipv6() -> None:
    lines = described(BACKENDS["vxlan"].plan(local_node((6,), (4,)), [peer_node((6,), (4,))]).state)
    assert "mtu 1430 type vxlan id 1 local fd10::10 dev eth0" in lines[0]
    assert f"bridge fdb add {MAC2} dev vxlan1 dst fd10::20 self permanent" in lines


@pytest.mark.parametrize(("underlay", "mtu"), [((4,), 1450), ((4, 6), 1450), ((6,), 1430)])
def test_a_frame_in_its_datagram_fills_the_underlay_exactly(underlay: tuple[Family, ...], mtu: int) -> None:
    device = next(iter(BACKENDS["vxlan"].plan(local_node(underlay, (4,)), []).state))
    assert getattr(device, "mtu", None) == mtu
    assert mtu + vxlan.overhead_bytes(underlay[0]) == 1500


def test_headers_are_50_bytes_over_ipv4_and_70_over_ipv6() -> None:
    assert [vxlan.overhead_bytes(family) for family in (4, 6)] == [50, 70]


def test_a_peer_without_an_address_of_the_underlays_family_is_refused_and_gets_nothing() -> None:
    alone = BACKENDS["vxlan"].plan(local_node((4,), (4,)), [])
    planned = BACKENDS["vxlan"].plan(local_node((4,), (4,)), [peer_node((6,), (4,))])
    assert planned.state == alone.state
    assert "no IPv4 address on the underlay" in planned.refusals[0].reason


def test_a_router_between_nodes_is_no_obstacle() -> None:
    near, far = (
        BACKENDS["vxlan"].plan(local_node((4,), (4,)), [peer_node((4,), (4,), link)]) for link in ("eth0", None)
    )
    assert near == far
    assert far.refusals == ()
