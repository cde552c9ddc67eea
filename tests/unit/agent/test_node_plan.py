"""What one host should have, by its own lease and those of two others.

host 10.0.0.10 172.16.0.0/24     near 10.0.0.20 172.16.1.0/24     far 192.0.2.30 172.16.2.0/24 (behind a router)
"""

from __future__ import annotations

import json

import msgspec
import pytest

from muslin.agent.node_plan import Host, NodeInputs, NodePlan, may_linger, plan_own, plan_peers
from muslin.agent.underlay import Underlay
from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
    Address,
    Bridge,
    FdbEntry,
    Link,
    Neighbour,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Sysctl,
)
from muslin.model.lease import Advertisement, Lease
from muslin.wire.flannel_config import parse_network_config

OWN_MAC = "02:00:00:00:00:10"


def inputs(backend: str, **options: object) -> NodeInputs:
    config = {"Network": "172.16.0.0/16", "Backend": {"Type": backend, **options}}
    return NodeInputs(
        name="host",
        config=parse_network_config(json.dumps(config).encode()),
        underlay=Underlay(link="eth0", mtu=1500, interfaces=("10.0.0.10/24",), public_addresses=("10.0.0.10",)),
        subnets=("172.16.0.0/24",),
        vtep_mac=OWN_MAC,
    )


def plan_node(given: NodeInputs, leases: list[Lease]) -> NodePlan:
    """The host's own and what is there for peers, as one."""
    host = Host(given)
    own, peers = plan_own(host), plan_peers(host, leases)
    return NodePlan(
        objects=(*own.objects, *peers.objects),
        tunnel=own.tunnel and msgspec.structs.replace(own.tunnel, peers=peers.tunnel_peers),
        refusals=peers.refusals,
    )


def lease(subnet: str, address: str, backend: str, mac: str = "") -> Lease:
    data = {"VNI": 1, "VtepMAC": mac} if mac else {}
    return Lease(subnets=(subnet,), advertisement=Advertisement(addresses=(address,), backend=backend, data=data))


def near_and_far(backend: str) -> list[Lease]:
    macs = ("02:00:00:00:00:20", "02:00:00:00:00:30") if backend == "vxlan" else ("", "")
    return [
        lease("172.16.1.0/24", "10.0.0.20", backend, macs[0]),
        lease("172.16.2.0/24", "192.0.2.30", backend, macs[1]),
    ]


def test_host_gw_routes_to_who_is_near_and_refuses_who_is_far() -> None:
    planned = plan_node(inputs("host-gw"), near_and_far("host-gw"))
    routes = [obj for obj in planned.objects if isinstance(obj, Route)]
    assert [route.destination for route in routes] == ["172.16.1.0/24"]
    assert [refusal.peer for refusal in planned.refusals] == ["172.16.2.0-24"]
    assert Host(inputs("host-gw")).mtu == 1500


def test_vxlan_reaches_both_by_entries_that_carry_our_mark() -> None:
    planned = plan_node(inputs("vxlan"), near_and_far("vxlan"))
    objects = list(planned.objects)
    assert {obj.destination for obj in objects if isinstance(obj, FdbEntry)} == {"10.0.0.20", "192.0.2.30"}
    assert {obj.address for obj in objects if isinstance(obj, Neighbour)} == {"172.16.1.0", "172.16.2.0"}
    marked = [obj for obj in objects if isinstance(obj, Route | Nexthop)]
    assert len(marked) == 4
    assert all(obj.protocol == PROTOCOL_MUSLIN for obj in marked)
    assert Host(inputs("vxlan")).mtu == 1450


def test_a_poisoned_lease_is_refused_and_costs_the_others_nothing() -> None:
    good = near_and_far("vxlan")
    poisoned = lease("172.16.0.0/25", "10.0.0.66", "vxlan", "02:00:00:00:00:66")
    planned = plan_node(inputs("vxlan"), [poisoned, *good])
    assert [refusal.peer for refusal in planned.refusals] == ["172.16.0.0-25"]
    routed = {obj.destination for obj in planned.objects if isinstance(obj, Route)}
    assert routed == {"172.16.1.0/24", "172.16.2.0/24"}


def test_encapsulated_packets_are_taken_from_nodes_only() -> None:
    planned = plan_node(inputs("vxlan"), near_and_far("vxlan"))
    (table,) = (obj for obj in planned.objects if isinstance(obj, NftTable))
    assert "udp dport 8472 ip saddr != @nodes4 counter drop" in table.text
    known = {obj.address for obj in planned.objects if isinstance(obj, NftElement)}
    assert known == {"10.0.0.10", "10.0.0.20", "192.0.2.30"}


def test_the_host_forwards_and_does_not_masquerade_unless_asked() -> None:
    planned = plan_node(inputs("host-gw"), [])
    assert Sysctl(netns="", name="net/ipv4/ip_forward", value="1") in planned.objects
    assert not any(isinstance(obj, NftTable) and "masquerade" in obj.text for obj in planned.objects)
    asked = plan_node(msgspec.structs.replace(inputs("host-gw"), masquerade=True), [])
    assert any(isinstance(obj, NftTable) and "masquerade" in obj.text for obj in asked.objects)


def test_one_changed_lease_changes_only_its_own_objects() -> None:
    before = near_and_far("vxlan")
    after = [lease("172.16.1.0/24", "10.0.0.21", "vxlan", "02:00:00:00:00:21"), before[1]]
    old, new = (set(plan_node(inputs("vxlan"), leases).objects) for leases in (before, after))
    assert {obj.key for obj in new ^ old if "172.16.2.0" in str(obj.key)} == set()
    assert any(isinstance(obj, FdbEntry) and obj.destination == "10.0.0.20" for obj in old - new)


def test_the_udp_backend_asks_for_a_tunnel_to_everybody() -> None:
    planned = plan_node(inputs("udp"), near_and_far("udp"))
    assert planned.tunnel is not None
    assert dict(planned.tunnel.peers) == {"172.16.1.0/24": "10.0.0.20:8285", "172.16.2.0/24": "192.0.2.30:8285"}
    assert Host(inputs("udp")).mtu == 1472


@pytest.mark.parametrize("backend", ["host-gw", "udp", "vxlan", "alloc"])
def test_a_host_says_of_itself_what_the_others_need(backend: str) -> None:
    said = Host(inputs(backend)).advertisement()
    assert (said.addresses, said.backend) == (("10.0.0.10",), backend)
    data = {"vxlan": {"VNI": 1, "VtepMAC": OWN_MAC}, "udp": {"Port": 8285}}
    assert said.data == data.get(backend, {})


def test_a_change_of_backend_serves_whoever_still_speaks_the_old_one() -> None:
    now, before = inputs("host-gw"), inputs("vxlan")
    both = msgspec.structs.replace(now, previous=before.config)
    late, changed = near_and_far("vxlan")[1], near_and_far("host-gw")[0]
    planned = plan_node(both, [changed, late])
    assert planned.refusals == ()
    ways = {obj.id: obj.link for obj in planned.objects if isinstance(obj, Nexthop)}
    assert [ways[obj.nexthop_id or 0] for obj in planned.objects if isinstance(obj, Route)] == ["eth0", "vxlan1"]
    assert Host(both).mtu == 1450
    (table,) = (obj for obj in planned.objects if isinstance(obj, NftTable))
    assert "udp dport 8472" in table.text


@pytest.mark.parametrize(("now", "before"), [("udp", "vxlan"), ("vxlan", "udp")])
def test_while_backends_change_the_tunnel_hears_all_nodes_whatever_they_say(now: str, before: str) -> None:
    both = msgspec.structs.replace(inputs(now), previous=inputs(before).config)
    leases = [near_and_far("udp")[0], near_and_far("vxlan")[1]]

    changing, changed = plan_peers(Host(both), leases), plan_peers(Host(inputs("udp")), leases)

    assert changing.refusals == ()
    assert {prefix for prefix, _ in changing.tunnel_peers} == {subnet for one in leases for subnet in one.subnets}
    assert changed.tunnel_peers == changing.tunnel_peers[:1]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (inputs("vxlan"), inputs("host-gw"), True),
        (inputs("udp"), inputs("vxlan"), True),
        (inputs("vxlan"), inputs("vxlan", VNI=7), True),
        (inputs("vxlan"), inputs("vxlan", Port=4789), False),  # one device cannot have two ports
        (inputs("udp"), inputs("udp", Port=4789), False),
        (inputs("alloc"), inputs("vxlan"), False),
    ],
)
def test_what_can_be_served_side_by_side(before: NodeInputs, now: NodeInputs, expected: bool) -> None:
    assert may_linger(before.config, now.config) is expected


def test_a_named_bridge_is_the_gateway_and_carries_our_mark() -> None:
    planned = plan_node(msgspec.structs.replace(inputs("vxlan"), bridge="muslin0"), [])
    (bridge,) = (obj for obj in planned.objects if isinstance(obj, Link) and obj.name == "muslin0")
    assert (bridge.options, bridge.alias, bridge.up) == (Bridge(), "muslin:muslin0", True)
    assert Address(netns="", link="muslin0", address="172.16.0.1/24") in planned.objects
