"""host-gw: one route a peer and family. The network is drawn in tests/unit/backends/nodes.py."""

from __future__ import annotations

from muslin.backends import BACKENDS, host_gw
from muslin.model.network import BackendPlan
from tests.unit.backends.nodes import described, local_node, peer_node


def test_a_peer_is_the_gateway_to_its_subnets_of_both_families() -> None:
    plan = BACKENDS["host-gw"].plan(local_node((4, 6), (4, 6)), [peer_node((4, 6), (4, 6))])
    assert described(plan.state) == [
        "ip route add 172.16.1.0/24 via 10.0.0.20 dev eth0",
        "ip route add fd16:0:0:1::/64 via fd10::20 dev eth0",
    ]
    assert plan.refusals == ()
    assert plan.tunnel is None


def test_a_subnet_of_a_family_that_the_underlay_lacks_has_no_gateway() -> None:
    plan = BACKENDS["host-gw"].plan(local_node((4,), (4, 6)), [peer_node((4,), (4, 6))])
    assert described(plan.state) == ["ip route add 172.16.1.0/24 via 10.0.0.20 dev eth0"]


def test_a_peer_behind_a_router_is_refused_by_name_with_a_remedy_and_the_others_are_served() -> None:
    near, far = peer_node((4,), (4,)), peer_node((4,), (4,), link=None)
    plan = BACKENDS["host-gw"].plan(local_node((4,), (4,)), [far, near])
    assert len(plan.state.objects) == 1
    (refusal,) = plan.refusals
    assert refusal.peer == "node2"
    for word in ("node1", "node2", "172.16.1.0/24", "router", "vxlan"):
        assert word in refusal.reason


def test_without_peers_there_is_nothing() -> None:
    assert BACKENDS["host-gw"].plan(local_node((4,), (4,)), []) == BackendPlan()


def test_nothing_is_put_around_a_packet() -> None:
    assert [host_gw.overhead_bytes(family) for family in (4, 6)] == [0, 0]


def test_the_table_of_backends_names_each_with_its_own_functions() -> None:
    assert sorted(BACKENDS) == ["alloc", "host-gw", "udp", "vxlan"]
    assert [BACKENDS[name].overhead_bytes(4) for name in sorted(BACKENDS)] == [0, 0, 28, 50]
    assert [BACKENDS[name].overhead_bytes(6) for name in sorted(BACKENDS)] == [0, 0, 48, 70]
    for name, backend in BACKENDS.items():
        assert backend.plan_peers.__module__.endswith(name.replace("-", "_"))
