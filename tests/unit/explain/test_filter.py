"""Rules of a packet filter, one packet at a time."""

from __future__ import annotations

from typing import Any

import pytest

from muslin.explain.filter import Hook, Packet, ask
from muslin.explain.rule_text import rule_text
from muslin.wire.sight import Sight
from tests.unit.explain.networks import match, nft_chain, payload

PACKET = Packet(source="172.16.0.2", destination="172.16.1.2", protocol="udp", destination_port=8472)
PREFIX = {"prefix": {"addr": "172.16.0.0", "len": 16}}
DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}


def told(*objects: Any, hook: Hook = "forward", packet: Packet = PACKET, iif: str = "br0", oif: str = "eth0") -> Any:
    return ask(Sight(netns="n", nft=objects), hook, packet, iif, oif)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (match(payload("ip", "saddr"), PREFIX), True),
        (match(payload("ip", "saddr"), PREFIX, "!="), False),
        (match(payload("ip6", "saddr"), {"prefix": {"addr": "fd00::", "len": 8}}), False),
        (match(payload("udp", "dport"), 8472), True),
        (match(payload("udp", "dport"), {"set": [53, {"range": [8000, 9000]}]}), True),
        (match(payload("tcp", "dport"), 8472), False),
        (match(payload("th", "dport"), {"range": [1, 100]}), False),
        (match({"meta": {"key": "iifname"}}, "br0"), True),
        (match({"meta": {"key": "oifname"}}, "eth*"), True),
        (match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), True),
        (match({"meta": {"key": "nfproto"}}, "ipv6"), False),
        (match({"meta": {"key": "length"}}, 80, ">"), True),
        (match({"ct": {"key": "state"}}, ["established", "related"], "in"), False),
        (match(payload("ip", "daddr"), "@nodes"), True),
        (match(payload("icmp", "type"), "echo-request"), False),
    ],
)
def test_a_rule_drops_what_all_its_matches_hold_for(condition: dict[str, Any], holds: bool) -> None:
    named = {"set": {"family": "inet", "table": "t", "name": "nodes", "elem": ["172.16.1.2"]}}
    found = told(named, *nft_chain("forward", [condition, {"counter": {}}, DROP]))
    assert (found.denied is not None) == holds
    assert not found.unsure


def test_an_answer_is_established_and_meets_no_nat_rule() -> None:
    reply = Packet(source="172.16.1.2", destination="172.16.0.2", reply=True)
    established = [match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT]
    assert told(*nft_chain("forward", established, policy="drop"), packet=reply).denied is None
    masquerade = nft_chain("postrouting", [{"masquerade": None}], type="nat")
    assert told(*masquerade, hook="postrouting", packet=reply).source is None
    assert told(*masquerade, hook="postrouting").source == "masquerade"


def test_the_policy_drops_what_no_rule_accepts_and_is_named() -> None:
    found = told(*nft_chain("forward", [match(payload("ip", "daddr"), "10.0.0.1"), ACCEPT], policy="drop"))
    assert found.denied.words == "inet t forward: policy drop"
    assert found.denied.handle is None


def test_chance_and_what_is_not_known_is_named_and_taken_not_to_match() -> None:
    chance = match({"numgen": {"mode": "random", "mod": 100, "offset": 0}}, 30, "<")
    found = told(*nft_chain("forward", [chance, DROP], [{"xt": {"type": "match", "name": "conntrack"}}, DROP]))
    assert found.denied is None
    assert [place.text for place in found.unsure] == [
        "numgen random mod 100 < 30 drop",
        '{"xt": {"type": "match", "name": "conntrack"}} drop',
    ]


def test_a_jump_comes_back_and_a_drop_there_counts() -> None:
    chains = nft_chain("forward", [{"jump": {"target": "more"}}], [{"reject": None}])
    more = {"rule": {"family": "inet", "table": "t", "chain": "more", "handle": 9, "expr": [{"return": None}]}}
    assert told(*chains, more).rejects
    more["rule"]["expr"] = [DROP]
    assert told(*chains, more).denied.handle == 9
    more["rule"]["expr"] = [ACCEPT]
    assert told(*chains, more).denied is None


def test_a_netdev_chain_counts_for_its_device_alone() -> None:
    chain = nft_chain("ingress", [DROP], family="netdev", dev="veth10")
    assert told(*chain, hook="ingress", iif="veth10").denied
    assert told(*chain, hook="ingress", iif="veth20").denied is None


def test_an_inet_chain_may_sit_at_an_ingress_too() -> None:
    chain = nft_chain("ingress", [DROP], dev=["veth10", "eth0"])
    assert told(*chain, hook="ingress", iif="eth0").denied
    assert told(*chain, hook="ingress", iif="veth20").denied is None


def set_to(protocol: str, value: int, field: str = "checksum") -> dict[str, Any]:
    return {"mangle": {"key": payload(protocol, field), "value": value}}


def test_a_rule_that_writes_a_checksum_spoils_packets_of_its_protocol() -> None:
    found = told(*nft_chain("postrouting", [set_to("udp", 0xBAD)]), hook="postrouting")
    assert found.spoiled_by.text == "udp checksum set 2989"
    assert found.denied is None
    for harmless in (set_to("udp", 0), set_to("tcp", 0xBAD)):
        assert told(*nft_chain("postrouting", [harmless]), hook="postrouting").spoiled_by is None
    unsure = told(*nft_chain("postrouting", [set_to("ip", 3, "dscp"), DROP]), hook="postrouting")
    assert [place.text for place in unsure.unsure] == ["ip dscp set 3 drop"]


def test_a_mark_to_trace_by_has_no_effect() -> None:
    mark = {"mangle": {"key": {"meta": {"key": "nftrace"}}, "value": 1}}
    found = told(*nft_chain("forward", [mark, DROP]))
    assert found.denied
    assert not found.unsure


def test_a_chain_of_the_other_family_is_not_asked() -> None:
    assert told(*nft_chain("forward", [DROP], family="ip6")).denied is None
    assert told(*nft_chain("forward", [DROP], family="ip")).denied


def test_chains_are_asked_by_priority_until_one_denies() -> None:
    late = nft_chain("forward", [{"reject": None}], prio=10)
    early = nft_chain("forward", [DROP], prio=-10, family="ip")
    assert not told(*late, *early).rejects


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            [match(payload("ip", "saddr"), PREFIX, "!="), {"counter": {}}, DROP],
            "ip saddr != 172.16.0.0/16 counter drop",
        ),
        ([match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), ACCEPT], "meta l4proto { tcp, udp } accept"),
        ([{"snat": {"addr": "10.0.0.1", "port": 5}}], "snat to 10.0.0.1:5"),
        ([{"reject": {"type": "icmp", "expr": "host-unreachable"}}], "reject with icmp host-unreachable"),
        (
            [match({"ct": {"key": "state"}}, {"range": [1, 2]}), {"log": {}}, {"jump": {"target": "x"}}],
            "ct state 1-2 log jump x",
        ),
    ],
)
def test_a_rule_reads_as_a_person_types_it(rule: list[dict[str, Any]], text: str) -> None:
    assert rule_text(rule) == text
