"""A walk over two nodes written down by hand, and every way in which it can end early."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from muslin.explain.both import Question, explain
from muslin.explain.path import Drop, Explanation
from muslin.wire.rtnetlink import FdbRecord, NeighbourRecord
from tests.unit.explain.networks import Network, match, nft_chain, payload, two_nodes


def ask(network: Network, source: str = "con1", destination: str = "172.16.1.2", **more: Any) -> Explanation:
    return explain(network.sights, Question(netns=source, destination=destination, **more))


def drop_of(found: Explanation) -> Drop:
    drop = found.request.drop or (found.reply and found.reply.drop)
    assert drop, found
    return drop


def change_link(network: Network, place: str, name: str, **what: Any) -> None:
    links = network.places[place].links
    index = next(index for index, one in enumerate(links) if one.name == name)
    links[index] = msgspec.structs.replace(links[index], **what)


def test_both_ways_hop_by_hop() -> None:
    found = ask(two_nodes())
    assert found.ok
    assert [(hop.netns, hop.act) for hop in found.request.hops] == [
        ("con1", "sends"), ("node1", "forwards"), ("lan", "switches"), ("node2", "forwards"), ("con2", "takes"),
    ]  # fmt: skip
    assert found.request.ttl == 62
    assert [hop.route.type for hop in found.request.hops if hop.route] == [
        "default",
        "static",
        "directly connected",
        "local",
    ]
    assert found.request.source == "172.16.0.2"
    first = found.request.hops[1]
    assert (first.entered, first.port_in, first.left, first.ttl_in, first.ttl_out) == ("br0", "veth10", "eth0", 64, 63)
    assert found.differs == ()


def test_a_packet_to_oneself_goes_by_lo() -> None:
    network = two_nodes()
    assert ask(network, "con1", "172.16.0.2").request.hops[0].entered == "lo"
    change_link(network, "con1", "lo", up=False)
    assert (drop_of(ask(network, "con1", "172.16.0.2")).object) == "link lo"


def test_a_gateway_that_is_an_own_address_means_the_link_itself() -> None:
    network = two_nodes()
    network.places["con1"].routes[-1] = msgspec.structs.replace(network.places["con1"].routes[-1], via="172.16.0.2")
    found = ask(network, "con1", "10.0.0.10")
    assert found.ok
    assert found.request.hops[0].next_hop == "10.0.0.10"
    assert "is an own address" in found.request.hops[0].notes[0]


def remove_route(network: Network, place: str, destination: str) -> None:
    routes = network.places[place].routes
    network.places[place].routes = [one for one in routes if one.destination != destination]


def test_a_missing_route_names_the_neighbour_who_knows_the_way() -> None:
    network = two_nodes()
    remove_route(network, "node1", "172.16.1.0/24")
    drop = drop_of(ask(network))
    assert (drop.cause, drop.netns) == ("no-route", "node1")
    assert drop.mend == "ip route add 172.16.1.0/24 via 10.0.0.20 dev eth0"


def test_a_missing_return_route_is_found_on_the_way_back() -> None:
    network = two_nodes()
    remove_route(network, "node2", "172.16.0.0/24")
    found = ask(network)
    assert found.request.outcome == "arrives"
    drop = drop_of(found)
    assert (drop.cause, drop.netns) == ("no-route", "node2")
    assert drop.mend == "ip route add 172.16.0.0/24 via 10.0.0.10 dev eth0"


def settings_off(network: Network) -> None:
    network.places["node2"].sysctls["net/ipv4/conf/eth0/forwarding"] = "0"


def strict(network: Network) -> None:
    network.places["node2"].sysctls["net/ipv4/conf/all/rp_filter"] = "1"
    network.places["node2"].route("172.16.0.0/28", "br0")


def forward_policy(network: Network) -> None:
    network.places["node1"].more["nft"] = nft_chain("forward", policy="drop")


def forward_rule(network: Network) -> None:
    rule = [match(payload("ip", "daddr"), {"prefix": {"addr": "172.16.1.0", "len": 24}}), {"drop": None}]
    network.places["node1"].more["nft"] = nft_chain("forward", rule)


def switched_frames_filtered(network: Network) -> None:
    network.places["lan"].more["nft"] = nft_chain("forward", policy="drop")
    network.places["lan"].sysctls["net/bridge/bridge-nf-call-iptables"] = "1"


def blackhole(network: Network) -> None:
    network.places["node1"].route("172.16.1.2/32", kind="blackhole")


def loop(network: Network) -> None:
    remove_route(network, "node2", "172.16.1.0/24")
    network.places["node2"].route("172.16.1.0/24", "eth0", "10.0.0.10")


def small_link(network: Network) -> None:
    change_link(network, "node1", "eth0", mtu=68)


def own_source(network: Network) -> None:
    network.places["node2"].address("eth0", "172.16.0.2/32")


def no_neighbour(network: Network) -> None:
    network.places["con2"].addresses.clear()


def ignored(network: Network) -> None:
    network.places["con2"].sysctls["net/ipv4/icmp_echo_ignore_all"] = "1"


def stale_mac(network: Network) -> None:
    node = network.places["node1"]
    entry = NeighbourRecord(node.number("eth0"), "10.0.0.20", "02:00:00:00:00:99", 0x80, 0, 2)
    node.more["neighbours"] = (entry,)


@pytest.mark.parametrize(
    ("fault", "cause", "place", "words", "mend"),
    [
        (settings_off, "forwarding-off", "node2", "sysctl net.ipv4.ip_forward", "sysctl -w net.ipv4.ip_forward=1"),
        (strict, "reverse-path", "node2", "rp_filter", "sysctl -w net.ipv4.conf.all.rp_filter=2"),
        (forward_policy, "filter", "node1", "policy drop", "nft chain inet t forward '{ policy accept ; }'"),
        (forward_rule, "filter", "node1", "ip daddr 172.16.1.0/24 drop", "nft delete rule inet t forward handle 10"),
        (switched_frames_filtered, "filter", "lan", "policy drop", "nft chain inet t forward '{ policy accept ; }'"),
        (blackhole, "refusing-route", "node1", "route to 172.16.1.2", ""),
        (loop, "loop", "node2", "route", ""),
        (small_link, "too-big", "node1", "link eth0", ""),
        (own_source, "martian", "node2", "address 172.16.0.2", ""),
        (no_neighbour, "no-neighbour", "node2", "172.16.1", ""),
        (ignored, "ping-ignored", "con2", "icmp_echo_ignore_all", "sysctl -w net.ipv4.icmp_echo_ignore_all=0"),
        (stale_mac, "lost-frame", "lan", "link br0", ""),
    ],
)
def test_each_fault_is_named_with_place_object_and_what_mends_it(
    fault: Any, cause: str, place: str, words: str, mend: str
) -> None:
    network = two_nodes()
    fault(network)
    drop = drop_of(ask(network))
    assert (drop.cause, drop.netns, drop.mend) == (cause, place, mend)
    assert words in drop.object


@pytest.mark.parametrize(
    ("place", "link", "cause"),
    [
        ("con1", "veth11", "link-down"),
        ("node1", "veth10", "link-down"),
        ("node1", "br0", "link-down"),
        ("node1", "eth0", "link-down"),
        ("lan", "node2", "link-down"),
        ("con2", "veth11", "link-down"),
    ],
)
def test_a_link_that_is_down_ends_the_way(place: str, link: str, cause: str) -> None:
    network = two_nodes()
    change_link(network, place, link, up=False)
    assert drop_of(ask(network)).cause == cause


def test_a_port_that_is_not_plugged_in_is_named() -> None:
    network = two_nodes()
    change_link(network, "node2", "veth10", master_ifindex=0)
    drop = drop_of(ask(network))
    assert (drop.cause, drop.netns, drop.mend) == ("unplugged", "node2", "ip link set veth10 master br0")


def test_ttl_runs_out_where_a_router_would_make_it_zero() -> None:
    drop = drop_of(ask(two_nodes(), ttl=2))
    assert (drop.cause, drop.netns, drop.told) == ("ttl-exceeded", "node2", "ICMP: time exceeded")


def test_a_second_owner_of_an_address_is_noted_and_named() -> None:
    network = two_nodes()
    con3 = network.add("con3")
    con3.link("veth11", "172.16.1.2/24")
    node2 = network.places["node2"]
    node2.link("veth20", master_ifindex=node2.number("br0"))
    network.cable("con3", "veth11", "node2", "veth20")
    mac = con3.links[-1].mac
    node2.more["neighbours"] = (NeighbourRecord(node2.number("br0"), "172.16.1.2", mac, 2, 0, 2),)
    found = ask(network, expected="con2")
    assert drop_of(found).cause == "not-here"
    assert any("held by con2 and con3" in note for hop in found.request.hops for note in hop.notes)


def test_what_a_bridge_has_learned_decides_the_port() -> None:
    network = two_nodes()
    lan, node2 = network.places["lan"], network.places["node2"]
    mac = next(one.mac for one in node2.links if one.name == "eth0")
    lan.more["fdb"] = (FdbRecord(lan.number("node1"), mac, master_ifindex=lan.number("br0")),)
    # It is said to be behind the port that the frame came by, so the bridge has no other place to send it.
    assert ask(network).request.hops[2].neighbour.startswith("does not know")
    lan.more["fdb"] = (FdbRecord(lan.number("node2"), mac, master_ifindex=lan.number("br0")),)
    assert ask(network).request.hops[2].neighbour == "knows the MAC behind this port"


def test_nat_is_noted_undone_for_the_answer_and_told_as_a_difference() -> None:
    network = two_nodes()
    rule = [match({"meta": {"key": "oifname"}}, "eth0"), {"masquerade": None}]
    network.places["node1"].more["nft"] = nft_chain("postrouting", rule, type="nat")
    found = ask(network)
    assert found.ok
    assert found.request.arrived_as == "10.0.0.10"
    assert found.differs[0] == "the request is sent as 172.16.0.2 and seen as 10.0.0.10: NAT"
    assert found.reply is not None
    assert found.reply.ended_in == "con1"


def test_a_detour_of_the_answer_is_told() -> None:
    network = two_nodes()
    node1 = network.places["node1"]
    node1.link("eth1", "10.0.0.11/24")
    lan = network.places["lan"]
    lan.link("node1b", master_ifindex=lan.number("br0"))
    network.cable("node1", "eth1", "lan", "node1b")
    routes = network.places["node2"].routes
    network.places["node2"].routes = [
        msgspec.structs.replace(one, via="10.0.0.11") if one.via == "10.0.0.10" else one for one in routes
    ]
    network.places["node2"].more["neighbours"] = (
        NeighbourRecord(network.places["node2"].number("eth0"), "10.0.0.11", node1.links[-1].mac, 2, 0, 2),
    )
    assert ask(network).differs == ("node1 sends the request out by eth0, and the answer comes in by eth1",)


def test_who_has_the_askers_address_too_answers_no_arp_request() -> None:
    network = two_nodes()
    network.places["node1"].address("br0", "172.16.0.2/24")
    drop = drop_of(ask(network))
    assert (drop.cause, drop.netns, drop.object) == ("martian", "node1", "address 172.16.0.2")
    assert "does not answer when 172.16.0.2 asks for 172.16.0.1" in drop.sentence
    network.places["node1"].sysctls["net/ipv4/conf/br0/accept_local"] = "1"
    assert drop_of(ask(network)).cause == "not-here", "the answer comes no further than node1"


def test_a_filter_on_a_bridge_that_keeps_questions_for_macs_away_keeps_the_packet_where_it_is() -> None:
    network = two_nodes()
    for number, place in ((1, "node1"), (2, "node2")):
        network.places[place].address("eth0", f"fd00:10::{number}/64")
        network.places[place].route("fd00:10::/64", "eth0", source=f"fd00:10::{number}")
    lan = network.places["lan"]
    lan.more["nft"] = nft_chain("forward", [match(payload("icmpv6", "type"), "nd-neighbor-solicit"), {"drop": None}])
    assert ask(network, "node1", "fd00:10::2").ok
    lan.sysctls["net/bridge/bridge-nf-call-ip6tables"] = "1"
    found = ask(network, "node1", "fd00:10::2")
    drop = drop_of(found)
    assert (drop.cause, drop.netns) == ("filter", "lan")
    assert "the neighbour solicitation for fd00:10::2" in drop.sentence
    assert len(found.request.hops) == 1
    node = network.places["node1"]
    mac = next(link.mac for link in network.places["node2"].links if link.name == "eth0")
    node.more["neighbours"] = (NeighbourRecord(node.number("eth0"), "fd00:10::2", mac, 0x02, 0, 10),)
    assert ask(network, "node1", "fd00:10::2").request.outcome == "arrives", "who knows the MAC need not ask"


def test_a_packet_whose_checksum_is_spoilt_is_dropped_by_who_takes_it() -> None:
    network = two_nodes()
    spoil = {"mangle": {"key": payload("tcp", "checksum"), "value": 2989}}
    network.places["node1"].more["nft"] = nft_chain("postrouting", [spoil])
    assert ask(network).ok
    drop = drop_of(ask(network, protocol="tcp", port=80))
    assert (drop.cause, drop.netns, drop.lost_in) == ("bad-checksum", "node1", "con2")
    assert drop.mend.startswith("nft delete rule inet t postrouting handle ")
    assert drop.sentence.endswith("tcp checksum set 2989), so that con2 drops it")


def test_what_leaves_under_another_address_is_seen_with_it() -> None:
    network = two_nodes()
    network.places["node1"].more["nft"] = nft_chain("postrouting", [{"masquerade": None}], type="nat")
    found = ask(network)
    assert found.request.hops[1].left_as == ("10.0.0.10", "172.16.1.2")
    assert found.request.hops[0].left_as is None
    assert found.reply is not None
    back = next(hop for hop in found.reply.hops if hop.netns == "node1")
    assert back.left_as == ("172.16.1.2", "172.16.0.2")


def test_what_could_not_be_looked_at_is_named_by_place() -> None:
    network = two_nodes()
    network.places["node2"].more["unseen"] = ["the packet filter (nft)"]
    assert ask(network).unseen == ("the packet filter (nft) of node2",)
    assert ask(two_nodes()).unseen == ()
