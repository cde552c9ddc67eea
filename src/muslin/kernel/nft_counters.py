"""The door to the counters of nftables rules: how many packets a chain's counting rules have matched.

Theory of operation: ``kernel.nft`` compares tables without counters, as they change by themselves; this reads nothing
else. nft prints JSON (libnftables-json(5)), in which each rule is a list of expressions and a counter is one of them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muslin.kernel.nft import run_nft


def read_packets(netns: str, family: str, table: str, chain: str) -> int | None:
    """The sum of the chain's counters in packets; None where there is no such chain."""
    result = run_nft(netns, ["-j", "list", "chain", family, table, chain])
    if result.returncode != 0:
        return None
    return sum_packets(msgspec.json.decode(result.stdout))


def sum_packets(document: Any) -> int:
    """The sum of all counters in a listing of nft."""
    rules = (entry["rule"] for entry in document["nftables"] if "rule" in entry)
    counters = (one["counter"] for rule in rules for one in rule["expr"] if "counter" in one)
    return sum(counter["packets"] for counter in counters)
