"""What the kernel says, held against what was predicted."""

from __future__ import annotations

from typing import Any

import pytest

from muslin.explain.evidence import COUNTED, Count, Evidence, Unanswered, Verdict, meaning, moved, unpredicted, weigh
from muslin.explain.path import Cause, Drop


def drop(cause: Cause, **more: Any) -> Drop:
    return Drop(cause=cause, netns="node1", **{"object": "o", "sentence": "s", **more})


def counted(name: str, place: str = "node1") -> Evidence:
    return Evidence(counts=(Count(place=place, name=name, more=1),))


@pytest.mark.parametrize("cause", COUNTED)
def test_the_counter_of_a_cause_confirms_it(cause: Cause) -> None:
    for name in COUNTED[cause]:
        proof = weigh(drop(cause), counted(f"eth0{name}" if name.startswith("/") else name), True)
        assert meaning(name) in proof.confirms
        assert proof.confirms.startswith("node1 counted it: ")
        assert not proof.contradicts


def test_a_counter_that_did_not_move_speaks_against_what_always_moves_it() -> None:
    proof = weigh(drop("reverse-path"), counted("IpInAddrErrors"), True)
    assert not proof.confirms
    assert proof.contradicts == (
        "node1 should have counted it, and TcpExtIPReversePathFilter did not move;"
        " but IpInAddrErrors +1 (it is not for an address of its own, and it does not forward)"
    )
    uncounted = weigh(drop("too-big"), Evidence(), True).contradicts
    assert uncounted.endswith("and neither IpFragFails nor Ip6InTooBigErrors nor Ip6FragFails moved")
    elsewhere = counted("TcpExtIPReversePathFilter", "node2")
    assert weigh(drop("reverse-path"), elsewhere, True).contradicts
    assert weigh(drop("reverse-path"), elsewhere, False) == weigh(drop("no-peer"), elsewhere, True)


def test_a_drop_elsewhere_is_counted_there() -> None:
    far = drop("bad-checksum", lost_in="con2")
    assert weigh(far, counted("UdpInCsumErrors", "con2"), True).confirms.startswith("con2 counted it")
    assert not weigh(far, counted("UdpInCsumErrors"), True).confirms


def test_a_trace_confirms_the_rule_or_names_another() -> None:
    rule = drop("filter", object="nft inet t forward: policy drop")
    for named, confirms in (("inet t forward: policy drop", True), ("ip x input: drop", False)):
        evidence = Evidence(traced=("node1",), verdicts=(Verdict(place="node1", rule=named),))
        proof = weigh(rule, evidence, True)
        assert (bool(proof.confirms), bool(proof.contradicts)) == (confirms, not confirms)
        assert named in proof.confirms + proof.contradicts
    assert "saw no rule drop it" in weigh(rule, Evidence(traced=("node1",)), True).contradicts
    assert weigh(rule, Evidence(traced=("node1",)), False) == weigh(rule, Evidence(), True)


def test_a_neighbour_without_an_answer_tells_of_cables_and_addresses() -> None:
    asked = Unanswered(place="con1", link="veth11", address="172.16.0.1", state="incomplete")
    proof = weigh(drop("unplugged"), Evidence(unanswered=(asked,)), False)
    assert proof.confirms == "con1 asked for 172.16.0.1 on veth11, and nobody answers (incomplete)"
    assert not weigh(drop("no-peer"), Evidence(unanswered=(asked,)), True).confirms


def test_without_a_prediction_the_rule_comes_first_then_counters_where_it_was_seen_last() -> None:
    counts = counted("UdpNoPorts", "node1").counts + counted("UdpInCsumErrors", "con2").counts
    assert unpredicted(Evidence(counts=counts), ["con2", "node1"]).startswith("con2 dropped it, and counted why")
    verdicts = (Verdict(place="node1", rule="inet t forward: drop"),)
    told = unpredicted(Evidence(counts=counts, verdicts=verdicts), ["con2", "node1"])
    assert told == "the packet filter of node1 dropped it, says its nft trace: inet t forward: drop"
    assert unpredicted(Evidence(counts=counts), ["lan0"]) == ""


def test_only_counters_of_losses_that_moved_are_told() -> None:
    before = {"IpInReceives": 1, "IpFragFails": 2, "UdpNoPorts": 5}
    after = {"IpInReceives": 9, "IpFragFails": 4, "UdpNoPorts": 5, "tun0/tx_dropped": 1, "tun0/tx_packets": 1}
    assert [(one.name, one.more) for one in moved("n", before, after)] == [("IpFragFails", 2), ("tun0/tx_dropped", 1)]
