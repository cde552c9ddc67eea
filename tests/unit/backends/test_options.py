"""What the network configuration may ask of each backend, and what becomes of it in the plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from muslin.backends import BACKENDS, alloc, host_gw, udp, vxlan
from muslin.backends.base import NEXTHOP_HASHED, NEXTHOP_IPV4, nexthop_numbers
from muslin.model.kernel import PROTOCOL_BOOT, PROTOCOL_MUSLIN, Address, Link, Nexthop, Route, Vxlan
from muslin.model.network import LocalNode, Peer
from muslin.wire.flannel_config import parse_network_config

LOCAL = LocalNode(
    name="here",
    netns="",
    underlay_link="eth0",
    underlay_mtu=1500,
    addresses=("192.0.2.1",),
    subnets=("10.5.1.0/24",),
    networks=("10.5.0.0/16",),
    bridge="muslin0",
    vtep_mac="02:00:00:00:00:01",
    protocol=PROTOCOL_MUSLIN,
)
DUAL = msgspec.structs.replace(
    LOCAL,
    addresses=("192.0.2.1", "2001:db8::1"),
    subnets=("10.5.1.0/24", "fd00:5:0:1::/64"),
    networks=("10.5.0.0/16", "fd00:5::/48"),
)
PEER = Peer(
    name="there",
    addresses=("192.0.2.2", "2001:db8::2"),
    subnets=("10.5.2.0/24", "fd00:5:0:2::/64"),
    link="eth0",
    backend="vxlan",
    data={"VNI": 1, "VtepMAC": "02:00:00:00:00:04"},
    data_v6={"VNI": 1, "VtepMAC": "02:00:00:00:00:06"},
)


def parse(name: str, **options: Any) -> Any:
    return BACKENDS[name].parse_options(options)


@pytest.mark.parametrize("module", [alloc, host_gw, udp, vxlan])
def test_the_table_holds_every_backend(module: Any) -> None:
    assert BACKENDS[module.NAME].plan_peers is module.plan_peers


def test_defaults_of_an_agent_are_flannels() -> None:
    options = parse("vxlan")
    assert (options.vni, options.port, options.gbp, options.learning, options.direct_routing) == (1, 8472, *[False] * 3)
    assert options.mtu == 0
    assert parse("udp").port == 8285
    assert parse("host-gw") == host_gw.Options()
    assert parse("alloc") == alloc.Options()


def test_defaults_of_a_lab_are_the_talks() -> None:
    assert (udp.Options().port, udp.Options().device, udp.Options().address_index) == (9000, "tun0", 100)
    assert not vxlan.Options().device_per_family


def test_options_come_out_of_the_network_configuration() -> None:
    config = parse_network_config(
        b'{"Network": "10.5.0.0/16", "Backend": {"type": "vxlan", "vni": 4096, "PORT": 0, "GBP": true, "MTU": 1400, '
        b'"Learning": true, "DirectRouting": true, "DirectRoutng": true}}'
    )
    options = BACKENDS[config.backend].parse_options(config.backend_options)
    assert options == vxlan.Options(
        vni=4096,
        gbp=True,
        learning=True,
        direct_routing=True,
        mtu=1400,
        device_per_family=True,
        ignored=("DirectRoutng",),
    )


@pytest.mark.parametrize(
    ("backend", "option", "value", "fault"),
    [
        ("vxlan", "VNI", 1 << 24, "Backend.VNI is 16777216; expected a whole number from 0 to 16777215"),
        ("vxlan", "VNI", -1, "Backend.VNI is -1; expected a whole number"),
        ("vxlan", "VNI", "1", 'Backend.VNI is "1"; expected a whole number'),
        ("vxlan", "Port", 65536, "Backend.Port is 65536; expected a whole number from 0 to 65535"),
        ("vxlan", "MTU", 100, "Backend.MTU is 100; expected 0 or a whole number from 576 to 65535"),
        ("vxlan", "GBP", 1, "Backend.GBP is 1; expected true or false"),
        ("udp", "Port", True, "Backend.Port is true; expected a whole number"),
    ],
)
def test_a_fault_names_the_option(backend: str, option: str, value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(backend, **{option: value})
    assert str(caught.value).startswith(fault)


def test_advertisements_are_flannels() -> None:
    assert vxlan.advertise(parse("vxlan"), LOCAL) == ({"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}, {})
    both = {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}
    assert vxlan.advertise(parse("vxlan"), DUAL) == (both, both)
    only_v6 = msgspec.structs.replace(LOCAL, addresses=("2001:db8::1",))
    assert vxlan.advertise(parse("vxlan"), only_v6) == ({}, both)
    # flannel's lease holds 16 bits of the VNI, and a larger number could not be read by it.
    assert vxlan.advertise(parse("vxlan", VNI=70000), LOCAL)[0]["VNI"] == 70000 & 0xFFFF
    assert udp.advertise(parse("udp"), LOCAL) == ({"Port": 8285}, {})
    assert host_gw.advertise(host_gw.Options(), LOCAL) == alloc.advertise(alloc.Options(), LOCAL) == ({}, {})


@pytest.mark.parametrize(
    ("backend", "options", "addresses", "mtu"),
    [
        ("vxlan", {}, ("192.0.2.1",), 1450),
        ("vxlan", {}, ("2001:db8::1",), 1430),
        ("vxlan", {}, ("192.0.2.1", "2001:db8::1"), 1430),
        ("vxlan", {"MTU": 1400}, ("192.0.2.1",), 1350),
        ("vxlan", {"MTU": 9000}, ("192.0.2.1",), 1450),
        ("udp", {}, ("192.0.2.1",), 1472),
        ("udp", {}, ("2001:db8::1",), 1452),
        ("host-gw", {}, ("192.0.2.1",), 1500),
        ("alloc", {}, ("192.0.2.1",), 1500),
    ],
)
def test_mtu(backend: str, options: dict[str, Any], addresses: tuple[str, ...], mtu: int) -> None:
    local = msgspec.structs.replace(LOCAL, addresses=addresses)
    assert BACKENDS[backend].mtu(parse(backend, **options), local) == mtu


def test_vxlan_options_reach_the_device() -> None:
    options = parse("vxlan", VNI=16777215, Port=4789, GBP=True, Learning=True, MTU=1400)
    plan = BACKENDS["vxlan"].plan(LOCAL, [], options)
    device = next(obj for obj in plan.state if isinstance(obj, Link))
    assert (device.name, device.mtu) == ("vxlan16777215", 1350)
    assert device.options == Vxlan(vni=16777215, local="192.0.2.1", underlay="eth0", port=4789, learning=True, gbp=True)
    assert all(
        len(link.name) <= 15 for link in BACKENDS["vxlan"].plan(DUAL, [], options).state if isinstance(link, Link)
    )


def test_an_agent_of_two_families_has_two_devices_as_flannel_has() -> None:
    plan = BACKENDS["vxlan"].plan(DUAL, [PEER], parse("vxlan"))
    assert [obj.describe() for obj in plan.state] == [
        "ip link add vxlan1 address 02:00:00:00:00:01 mtu 1450 "
        "type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
        "ip addr add 10.5.1.0/32 dev vxlan1",
        "ip link add vxlan6.1 address 02:00:00:00:00:01 mtu 1430 "
        "type vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 nolearning",
        "ip addr add fd00:5:0:1::/128 dev vxlan6.1 nodad",
        "sysctl -q -w net.ipv4.conf.all.rp_filter=2",
        "bridge fdb add 02:00:00:00:00:04 dev vxlan1 dst 192.0.2.2 self permanent",
        "bridge fdb add 02:00:00:00:00:06 dev vxlan6.1 dst 2001:db8::2 self permanent",
        "ip neigh add 10.5.2.0 lladdr 02:00:00:00:00:04 dev vxlan1 nud permanent",
        "ip route add 10.5.2.0/24 via 10.5.2.0 dev vxlan1 onlink proto 77",
        "ip neigh add fe80::ff:fe00:6 lladdr 02:00:00:00:00:06 dev vxlan6.1 nud permanent",
        "ip route add fd00:5:0:2::/64 via fe80::ff:fe00:6 dev vxlan6.1 proto 77",
    ]


@pytest.mark.parametrize(("kept", "device"), [(4, "vxlan1"), (6, "vxlan6.1")])
def test_what_one_family_cannot_carry_goes_over_the_other(kept: int, device: str) -> None:
    addresses = tuple(address for address in PEER.addresses if (":" in address) == (kept == 6))
    plan = BACKENDS["vxlan"].plan(DUAL, [msgspec.structs.replace(PEER, addresses=addresses)], parse("vxlan"))
    assert plan.refusals == ()
    assert [obj.link for obj in plan.state if isinstance(obj, Route)] == [device, device]


def test_direct_routing_needs_no_tunnel_on_one_link() -> None:
    options = parse("vxlan", DirectRouting=True)
    near = BACKENDS["vxlan"].plan(LOCAL, [PEER], options).state.objects[3:]
    assert [obj.describe() for obj in near] == [
        "ip route add 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 77",
        "ip route add fd00:5:0:2::/64 via 2001:db8::2 dev eth0 proto 77",
    ]
    far = BACKENDS["vxlan"].plan(LOCAL, [msgspec.structs.replace(PEER, link=None)], options)
    assert all(obj.link == "vxlan1" for obj in far.state if isinstance(obj, Route))


def test_the_tunnel_of_an_agent() -> None:
    peers = [
        msgspec.structs.replace(PEER, backend="udp", data={"Port": 9999}, subnets=("10.5.2.0/24",)),
        Peer(name="flannel", addresses=("192.0.2.3",), subnets=("10.5.3.0/24",), link=None, backend=""),
    ]
    plan = BACKENDS["udp"].plan(LOCAL, peers, parse("udp", Port=8286))
    assert plan.tunnel is not None
    assert (plan.tunnel.device, plan.tunnel.listen) == ("muslin-udp", "192.0.2.1:8286")
    assert plan.tunnel.peers == (
        ("10.5.2.0/24", "192.0.2.2:9999"),
        ("2001:db8::2/128", "192.0.2.2:9999"),
        ("10.5.3.0/24", "192.0.2.3:8286"),
    )
    assert [obj.address for obj in plan.state if isinstance(obj, Address)] == ["10.5.1.0/16"]


def test_alloc_wants_nothing() -> None:
    plan = BACKENDS["alloc"].plan(LOCAL, [PEER])
    assert (plan.state.objects, plan.tunnel, plan.refusals) == ((), None, ())


# ---- next hop objects ----


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_routes_lead_through_next_hop_objects_where_asked_for(backend: str) -> None:
    peer = msgspec.structs.replace(PEER, backend=backend)
    plain = BACKENDS[backend].plan(DUAL, [peer], parse(backend)).state
    through = BACKENDS[backend].plan(DUAL, [peer], parse(backend), use_nexthops=True).state
    hops = {obj.id: obj for obj in through if isinstance(obj, Nexthop)}
    routes = [obj for obj in through if isinstance(obj, Route)]
    assert [(hops[route.nexthop_id].via, hops[route.nexthop_id].link) for route in routes if route.nexthop_id] == [
        (route.via, route.link) for route in plain if isinstance(route, Route)
    ]
    assert {route.protocol for route in routes} | {hop.protocol for hop in hops.values()} == {PROTOCOL_MUSLIN}
    assert [route.destination for route in routes] == list(peer.subnets)
    assert all(through.objects.index(hops[route.nexthop_id or 0]) < through.objects.index(route) for route in routes)


def test_labs_look_typed_by_hand() -> None:
    local = msgspec.structs.replace(LOCAL, protocol=PROTOCOL_BOOT)
    state = BACKENDS["host-gw"].plan(local, [msgspec.structs.replace(PEER, backend=None)]).state
    assert state.objects[0].describe() == "ip route add 10.5.2.0/24 via 192.0.2.2 dev eth0"


def peers_with(*subnets: str) -> list[Peer]:
    return [Peer(name=subnet, addresses=(), subnets=(subnet,), link=None) for subnet in subnets]


def test_ipv4_numbers_are_the_subnets_themselves() -> None:
    subnets = [f"10.{high}.{low}.0/24" for high in range(40) for low in range(250)]
    numbers = nexthop_numbers(peers_with(*subnets, "0.0.0.0/30", "255.255.255.252/30"))
    assert len(set(numbers.values())) == len(subnets) + 2
    assert all(NEXTHOP_IPV4 <= number < NEXTHOP_HASHED for number in numbers.values())


def test_hashed_numbers_are_unlike_whatever_the_order() -> None:
    subnets = [f"fd00:5:0:{number:x}::/64" for number in range(20000)]
    numbers = nexthop_numbers(peers_with(*subnets))
    assert len(set(numbers.values())) == len(subnets)
    assert all(NEXTHOP_HASHED <= number < 1 << 32 for number in numbers.values())
    assert nexthop_numbers(peers_with(*reversed(subnets))) == numbers


def test_a_collision_moves_both_and_takes_nobodys_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(subnet: str, attempt: int) -> int:
        return NEXTHOP_HASHED | (1000 * attempt + int(subnet.split(":")[3], 16) % (4 + 100 * attempt))

    monkeypatch.setattr("muslin.backends.base._hashed_number", narrow)
    one, two, three = (f"fd00:5:0:{number:x}::/64" for number in (1, 5, 2))
    alone = nexthop_numbers(peers_with(one, three))
    together = nexthop_numbers(peers_with(one, two, three))
    assert len(set(together.values())) == 3
    assert together[three] == alone[three]
    assert alone[one] not in together.values(), "the number that both claim leads nowhere"


def test_an_agents_ipv6_network_is_a_route_and_not_the_length_of_its_address() -> None:
    objects = BACKENDS["udp"].plan_own(DUAL, parse("udp")).state.objects
    addresses = {obj.address for obj in objects if isinstance(obj, Address)}
    assert addresses == {"10.5.1.0/16", "fd00:5:0:1::/128"}
    assert [(obj.destination, obj.link) for obj in objects if isinstance(obj, Route)] == [("fd00:5::/48", "muslin-udp")]
