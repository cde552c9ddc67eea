"""What the kernel counts and traces of a lost packet: it confirms the cause that was predicted, or names one alone.

Faults of the catalogue are held to this in test_break.py; here is what has no fault of its own.
"""

from __future__ import annotations

import pytest

from tests.lab.support import Muslin


def trace(muslin: Muslin, name: str, *words: object) -> dict[str, object]:
    found = muslin.json("trace", "con1.node1", *words, "--timeout", "0.5", "--name", name, code=None)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("family", ["4", "6"])
def test_each_router_counts_what_it_drops(muslin: Muslin, family: str) -> None:
    name = muslin.up("--step", "3", "--family", "dual")
    six = "-6" if family == "6" else "-4"
    prefix = "Ip6" if family == "6" else "Ip"
    nowhere = "fd00:172:16:9::2" if family == "6" else "172.16.9.2"
    ended = trace(muslin, name, "con1.node2", "--ttl", 1, "--family", family)
    assert "TTL from 1 to 0" in str(ended["cause"])
    assert f"node1 counted it: {prefix}InHdrErrors +1" in str(ended["proof"])
    muslin.inside(name, "node1", "ip", six, "route", "add", "blackhole", "default", "metric", "9000")
    muslin.inside(name, "node1", "ip", six, "route", "del", "blackhole", "default", "metric", "9000")
    lost = trace(muslin, name, nowhere)
    assert "node1 has no way to" in str(lost["cause"])
    assert "InNoRoutes +1 (no route)" in str(lost["proof"])
    muslin.inside(name, "node1", "ip", "link", "set", "eth0", "mtu", "1400")
    big = trace(muslin, name, "con1.node2", "--size", 1450, "--family", family)
    assert "must not be cut" in str(big["cause"])
    assert "node1 counted it: " in str(big["proof"])
    assert not [one for one in (ended, lost, big) if one["contradiction"] or not one["ok"]]


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_checksum_that_nobody_could_foresee_is_named_by_who_drops_it(muslin: Muslin, protocol: str) -> None:
    name = muslin.up("--step", "3")
    place = {"udp": 64, "tcp": 160}[protocol]  # the first bytes of the data: whose sum is then another
    rules = "add table inet odd; add chain inet odd out { type filter hook postrouting priority 0; }; "
    rules += f"add rule inet odd out oifname eth0 meta l4proto {protocol} @th,{place},16 set 0xbad"
    muslin.inside(name, "node1", "nft", rules)
    found = trace(muslin, name, "con1.node2", "--protocol", protocol)
    assert found["answered"] is False
    counter = f"{protocol.capitalize()}InCsumErrors"
    assert (
        f"con1.node2 dropped it, and counted why: {counter} +1 (a wrong {protocol.upper()} checksum)" == found["cause"]
    )
    diagnosis = muslin.json("diagnose", "con1.node1", "con1.node2", "--prove", "--name", name, code=1)
    assert [(one["cause"], one["object"]) for one in diagnosis["findings"]] == [
        ("unpredicted", f"{protocol} to 172.16.1.2")
    ]
    assert muslin.json("diagnose", "con1.node1", "con1.node2", "--name", name)["ok"] is True, "nothing was sent"


def test_a_rule_that_drops_by_chance_is_named_by_the_trace_and_no_table_of_ours_stays(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    rules = "add table inet odd; add chain inet odd forward { type filter hook forward priority 0; }; "
    muslin.inside(name, "node2", "nft", rules + "add rule inet odd forward numgen inc mod 1 == 0 counter drop")
    before = muslin.inside(name, "node2", "nft", "-s", "list", "ruleset").stdout
    found = trace(muslin, name, "con1.node2")
    assert found["ok"] is False
    assert "the packet filter of node2 dropped it, says its nft trace: inet odd forward: numgen inc mod 1" in str(
        found["cause"]
    )
    assert found["verdicts"] == [{"place": "node2", "rule": str(found["cause"]).partition("trace: ")[2]}]
    assert muslin.inside(name, "node2", "nft", "-s", "list", "ruleset").stdout == before
