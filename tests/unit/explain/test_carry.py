"""Packets inside of packets: step 4 and vxlan over the two nodes of ``networks``, and how they break."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from muslin.explain.both import Question, explain
from muslin.explain.carry import split_endpoint
from muslin.wire.rtnetlink import FdbRecord, NeighbourRecord, VxlanInfo
from muslin.wire.sight import TunnelProgram
from tests.unit.explain.networks import Network, two_nodes

MAC = {1: "02:aa:00:00:00:01", 2: "02:aa:00:00:00:02"}


def without_routes(network: Network) -> Network:
    for place in ("node1", "node2"):
        routes = network.places[place].routes
        network.places[place].routes = [one for one in routes if not (one.via or "").startswith("10.0.0.")]
    return network


def udp() -> Network:
    network = without_routes(two_nodes())
    for number in (1, 2):
        node, other = network.places[f"node{number}"], 3 - number
        node.link("tun0", f"172.16.{number - 1}.100/16", kind="tun", tun_type="tun", mtu=1472)
        node.sysctls["net/ipv4/conf/tun0/forwarding"] = "1"
        program = TunnelProgram(
            pid=number, device="tun0", listen=f"10.0.0.{number}0:9000",
            peers=((f"172.16.{other - 1}.0/24", f"10.0.0.{other}0:9000"),),
        )  # fmt: skip
        node.more["tunnels"] = (program,)
    return network


def vxlan() -> Network:
    network = without_routes(two_nodes())
    for number in (1, 2):
        node, other = network.places[f"node{number}"], 3 - number
        info = VxlanInfo(vni=1, local=f"10.0.0.{number}0", device_ifindex=node.number("eth0"))
        node.link("vxlan1", f"172.16.{number - 1}.0/32", kind="vxlan", mac=MAC[number], mtu=1450, vxlan=info)
        node.route(f"172.16.{other - 1}.0/24", "vxlan1", f"172.16.{other - 1}.0", onlink=True)
        link = node.number("vxlan1")
        node.more["neighbours"] = (NeighbourRecord(link, f"172.16.{other - 1}.0", MAC[other], 0x80, 0, 2),)
        node.more["fdb"] = (FdbRecord(link, MAC[other], f"10.0.0.{other}0", state=0x80),)
    return network


def ask(network: Network, **more: Any) -> Any:
    return explain(network.sights, Question(netns="con1", destination="172.16.1.2", **more))


@pytest.mark.parametrize(("make", "kind", "overhead", "port"), [(udp, "udp", 28, 9000), (vxlan, "vxlan", 50, 8472)])
def test_the_outer_packet_is_walked_too(make: Any, kind: str, overhead: int, port: int) -> None:
    found = ask(make())
    assert found.ok
    assert found.request.ttl == 62
    carried = found.request.hops[1].carried
    assert (carried.kind, carried.overhead_bytes, carried.port) == (kind, overhead, port)
    assert (carried.source, carried.destination) == ("10.0.0.10", "10.0.0.20")
    assert [hop.netns for hop in carried.hops] == ["node1", "lan", "node2"]
    assert carried.hops[0].size_bytes == 84 + overhead


def test_what_is_too_long_for_the_tunnel_is_told_so() -> None:
    drop = ask(udp(), size_bytes=1500).request.drop
    assert (drop.cause, drop.netns, drop.told) == ("too-big", "node1", "ICMP: fragmentation needed, MTU 1472")


def change(network: Network, place: str, what: str, **fields: Any) -> None:
    more = network.places[place].more
    more[what] = tuple(msgspec.structs.replace(one, **fields) for one in more[what])


def program_gone(network: Network) -> None:
    network.places["node2"].more["tunnels"] = ()


def peer_elsewhere(network: Network) -> None:
    change(network, "node1", "tunnels", peers=(("10.9.0.0/16", "10.0.0.20:9000"),))


def stranger(network: Network) -> None:
    change(network, "node2", "tunnels", peers=(("172.16.0.0/24", "10.0.0.99:9000"),))


def not_its_own(network: Network) -> None:
    change(network, "node2", "tunnels", peers=(("172.16.9.0/24", "10.0.0.10:9000"),))


def no_fdb(network: Network) -> None:
    network.places["node1"].more["fdb"] = ()


def wrong_remote(network: Network) -> None:
    change(network, "node1", "fdb", destination="10.0.0.77")


def no_entry(network: Network) -> None:
    network.places["node1"].more["neighbours"] = ()


def new_mac(network: Network) -> None:
    links = network.places["node2"].links
    links[-1] = msgspec.structs.replace(links[-1], mac="02:aa:00:00:00:99")


def other_vni(network: Network) -> None:
    links = network.places["node2"].links
    links[-1] = msgspec.structs.replace(links[-1], vxlan=VxlanInfo(vni=2))


def device_down(network: Network) -> None:
    links = network.places["node2"].links
    links[-1] = msgspec.structs.replace(links[-1], up=False)


@pytest.mark.parametrize(
    ("make", "fault", "cause", "place"),
    [
        (udp, program_gone, "nobody-listens", "node2"),
        (udp, peer_elsewhere, "no-peer", "node1"),
        (udp, stranger, "unknown-peer", "node2"),
        (udp, not_its_own, "unknown-peer", "node2"),
        (udp, device_down, "link-down", "node2"),
        (vxlan, no_fdb, "no-tunnel-entry", "node1"),
        (vxlan, wrong_remote, "no-neighbour", "node1"),
        (vxlan, no_entry, "no-neighbour", "node1"),
        (vxlan, new_mac, "wrong-mac", "node2"),
        (vxlan, other_vni, "nobody-listens", "node2"),
        (vxlan, device_down, "nobody-listens", "node2"),
    ],
)
def test_each_fault_of_a_tunnel_is_named(make: Any, fault: Any, cause: str, place: str) -> None:
    network = make()
    fault(network)
    drop = ask(network).request.drop
    assert drop is not None
    assert (drop.cause, drop.netns) == (cause, place)


def test_a_tun_that_an_unknown_program_holds_leads_out() -> None:
    network = udp()
    network.places["node1"].more["tunnels"] = ()
    assert ask(network).request.outcome == "leaves"
    links = network.places["node1"].links
    links[-1] = msgspec.structs.replace(links[-1], lower_up=False)
    assert ask(network).request.drop.cause == "no-tunnel"


def test_endpoints_of_both_families() -> None:
    assert split_endpoint("10.0.0.10:9000") == ("10.0.0.10", 9000)
    assert split_endpoint("[fd00::1]:9000") == ("fd00::1", 9000)


def test_of_two_devices_with_one_vni_that_of_the_outer_family_unpacks() -> None:
    network = vxlan()
    node = network.places["node2"]
    own = next(link for link in node.links if link.name == "vxlan1")
    assert own.vxlan is not None
    other = msgspec.structs.replace(own.vxlan, local="fd00::20")
    node.links.insert(1, msgspec.structs.replace(own, name="vxlan1-v6", ifindex=99, vxlan=other))
    found = ask(network)
    assert found.ok
    assert found.request.hops[2].entered == "vxlan1"
