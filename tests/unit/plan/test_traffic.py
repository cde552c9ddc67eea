"""The packet filter of a node, as text that nft would print; tests/kernel/test_nft_sets.py has nft print it."""

from __future__ import annotations

from muslin.model.kernel import NftElement, NftTable
from muslin.plan.traffic import TrafficOptions, plan

NETWORK = "172.16.0.0/16"
NETWORK6 = "fd00:172:16::/48"


def text_of(options: TrafficOptions) -> str:
    table = plan("", options, [])[0]
    assert isinstance(table, NftTable)
    return table.text


def test_forwarding_is_accepted_for_each_network_both_ways() -> None:
    text = text_of(TrafficOptions(networks=(NETWORK, NETWORK6)))
    assert f"ip saddr {NETWORK} accept\nip daddr {NETWORK} accept" in text
    assert f"ip6 saddr {NETWORK6} accept\nip6 daddr {NETWORK6} accept" in text
    assert "masquerade" not in text
    assert "drop" not in text


def test_what_stays_inside_is_let_by_before_anything_is_translated() -> None:
    rules = text_of(TrafficOptions(networks=(NETWORK,), masquerade=True)).splitlines()
    start = rules.index("type nat hook postrouting priority srcnat; policy accept;") + 1
    assert rules[start : start + 4] == [
        f"ip saddr {NETWORK} ip daddr {NETWORK} return",
        f"ip saddr {NETWORK} ip daddr @nodes4 return",
        f"ip saddr {NETWORK} ip daddr 224.0.0.0/4 return",
        f"ip saddr {NETWORK} masquerade fully-random",
    ]


def test_encapsulated_packets_of_strangers_are_dropped_and_counted() -> None:
    text = text_of(TrafficOptions(networks=(NETWORK,), tunnel_ports=(8472,)))
    assert "udp dport 8472 ip saddr != @nodes4 counter drop" in text
    assert "udp dport 8472 ip6 saddr != @nodes6 counter drop" in text


def test_nodes_are_elements_of_the_set_of_their_family() -> None:
    elements = plan("", TrafficOptions(networks=(NETWORK,)), ["10.0.0.20", "fd00::20"])[1:]
    assert [(obj.set, obj.address) for obj in elements if isinstance(obj, NftElement)] == [
        ("nodes4", "10.0.0.20"),
        ("nodes6", "fd00::20"),
    ]


def test_nothing_asked_for_is_no_table() -> None:
    assert plan("", TrafficOptions(networks=(NETWORK,), forward=False), ["10.0.0.20"]) == ()
