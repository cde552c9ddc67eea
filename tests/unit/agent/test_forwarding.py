"""What nft prints of the chains that iptables makes, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from muslin.agent.forwarding import dropped_networks

NETWORK = "10.5.0.0/16"
CHAIN = "table ip filter {{\n\tchain FORWARD {{\n\t\ttype filter hook forward priority filter; policy {};\n{}\t}}\n}}\n"
BOTH = f"\t\tip saddr {NETWORK} counter accept\n\t\tip daddr {NETWORK} counter accept\n"


def says(texts: dict[tuple[str, ...], str], *networks: str) -> list[str]:
    def list_table(words: Sequence[str]) -> str:
        return texts.get(tuple(words[:2]), "")

    return list(dropped_networks(networks or (NETWORK,), list_table))


@pytest.mark.parametrize("rules", ["", f"\t\tip saddr {NETWORK} counter accept\n", "\t\tip saddr 10.6.0.0/16 accept\n"])
def test_a_policy_that_drops_is_told_with_what_mends_it(rules: str) -> None:
    text = CHAIN.format("drop", rules)
    (sentence,) = says({("chain", "ip"): text, ("table", "ip"): text})
    assert f"iptables -I FORWARD -d {NETWORK} -j ACCEPT" in sentence


@pytest.mark.parametrize("text", ["", CHAIN.format("accept", ""), CHAIN.format("drop", BOTH)])
def test_a_network_that_is_let_through_is_not_told(text: str) -> None:
    assert says({("chain", "ip"): text, ("table", "ip"): text}) == []


def test_each_family_has_its_own() -> None:
    text = CHAIN.format("drop", "")
    (sentence,) = says({("chain", "ip6"): text, ("table", "ip6"): text}, NETWORK, "fd00:5::/48")
    assert "ip6tables -I FORWARD -s fd00:5::/48 -j ACCEPT" in sentence
