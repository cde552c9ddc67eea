"""The report in each of its forms."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from muslin.verify.matrix import Endpoint, all_pairs
from muslin.verify.report import (
    group_faults,
    render_heatmap,
    render_table,
    render_totals,
    render_verdict,
    to_json,
    to_junit_xml,
)
from muslin.verify.verdict import CheckReport, ErrorSeen, make_report
from tests.unit.verify.examples import CROSSING, FROM_NODE, UNDERLAY, changed, container, good, lost, node, two_nodes


def no_hops(source: Endpoint, destination: Endpoint, address: str) -> int:
    return 0


def healthy() -> CheckReport:
    return make_report([good(pair) for pair in all_pairs(two_nodes(), no_hops)], 0.25)


def mixed() -> CheckReport:
    nat = changed(good(), seen="10.0.0.10")
    return make_report([good(), nat, nat, nat, nat, lost(good()), good(UNDERLAY)], 0.5)


def test_totals_in_one_line() -> None:
    assert render_totals(healthy()) == "R1 16/16  R2 24/24  R3 40/40  underlay 8/8"


def test_verdict_of_a_healthy_network() -> None:
    assert render_verdict(healthy()) == (
        "PASSED: 48 of 48 checks in 0.25 s.  R1 16/16  R2 24/24  R3 40/40  underlay 8/8"
    )


def test_verdict_of_nothing() -> None:
    assert render_verdict(make_report([], 0.0)).startswith("FAILED: nothing was checked")


def test_equal_failures_are_one_group_with_examples() -> None:
    title = "con1.node1 -> 172.16.1.2 (con1.node2)"
    full = "NATed: sent as 172.16.0.2, seen as 10.0.0.10 (icmp, tcp, udp)"
    assert render_verdict(mixed()).splitlines() == [
        "FAILED: 2 of 7 checks in 0.50 s.  R1 1/6  R3 1/6 (1 without proof)  underlay 1/1",
        "  R1 and R3 broken 4 times: NATed: seen as 10.0.0.10 (icmp, tcp, udp)",
        *[f"      {title}: {full}"] * 3,
        "      ... and 1 more",
        f"  R1 broken: {title}: lost: no answer to icmp, tcp, udp: the request never arrived",
    ]


def test_groups_come_most_frequent_first() -> None:
    assert [group.times for group in group_faults(mixed())] == [4, 1]


def test_one_cause_is_one_group_whatever_it_breaks_and_named_causes_come_first() -> None:
    router = ErrorSeen(text="network unreachable", offender="10.0.1.1", icmp=(3, 0))
    told = changed(lost(good(UNDERLAY)), outcome="error", error=router)
    report = make_report([lost(good()), lost(good()), lost(good(FROM_NODE)), lost(good(UNDERLAY)), told], 1.0)
    assert render_verdict(report).splitlines()[1:] == [
        "  underlay broken: node1 -> 10.0.0.20 (node2): unreachable from 10.0.1.1: network unreachable"
        " (ICMP type 3 code 0) (icmp, tcp, udp)",
        "  R1, R2 and underlay broken 4 times: lost: no answer to icmp, tcp, udp: the request never arrived",
        "      con1.node1 -> 172.16.1.2 (con1.node2)",
        "      con1.node1 -> 172.16.1.2 (con1.node2)",
        "      node1 -> 172.16.1.2 (con1.node2)",
        "      ... and 1 more",
    ]


def test_a_table_is_never_cut_and_fits_into_80_columns() -> None:
    pairs = all_pairs([container(10, 20), node(20)], no_hops)
    report = make_report([good(pair) for pair in pairs], 0.1)
    lines = render_table(report, width=20).splitlines()
    assert " ".join(lines[0].split()) == "OK? SOURCE ADDRESS DESTINATION PROVES ICMP ms TCP ms UDP ms"
    assert len(lines) == 1 + len(pairs)
    assert max(map(len, lines)) <= 80


def test_table_shows_what_was_proved_and_what_was_seen() -> None:
    plain = render_table(mixed())
    assert plain.count("FAIL") == 5
    assert "\x1b" not in plain
    assert "10.0.0.10" not in plain.splitlines()[2]
    wide = render_table(mixed(), wide=True, width=160)
    assert "10.0.0.10" in wide.splitlines()[2]
    assert "1500" in wide
    assert "\x1b[31m" in render_table(mixed(), color=True)


def test_heatmap_by_cell_in_ascii() -> None:
    pairs = all_pairs([node(1), container(1, 1)], no_hops)
    results = [lost(good(pair)) if pair.address == "10.0.0.10" else good(pair) for pair in pairs]
    assert [line.rstrip() for line in render_heatmap(make_report(results, 0.1), ascii_only=True).splitlines()] == [
        "source      1  2  3",
        "node1       L  .  .",
        "con1.node1  L  .  .",
        ". good, N NAT, L lost, R refused, U unreachable, T wrong TTL, F fragmented",
        "  1 = 10.0.0.10 node1          2 = 172.16.0.1 node1         3 = 172.16.0.2 con1.node1",
    ]


def test_heatmap_in_colour() -> None:
    drawn = render_heatmap(mixed(), color=True)
    assert "\x1b[32m■" in drawn
    assert "■" in render_heatmap(healthy())


def test_heatmap_of_a_large_lab_is_by_node() -> None:
    parties = [node(n) for n in range(1, 13)] + [container(1, n) for n in range(1, 13)]
    results = [
        lost(good(pair)) if pair.destination.name == "con1.node3" and pair.source.node == "node2" else good(pair)
        for pair in all_pairs(parties, no_hops)
    ]
    lines = render_heatmap(make_report(results, 0.1)).splitlines()
    assert lines[0].split() == ["from", "\\", "to", *map(str, range(1, 13))]
    assert lines[2].split() == ["2", "node2", ".", ".", "2", *["."] * 9]
    assert len(lines) == 14


def test_json_round_trip() -> None:
    for report in (healthy(), mixed()):
        data = to_json(report)
        assert msgspec.json.decode(data, type=CheckReport) == report
        document = msgspec.json.decode(data)
        assert document["schema"] == "muslin.check/v1"
        assert document["ok"] is report.ok
    assert msgspec.json.schema(CheckReport)["$ref"]


def test_junit_has_a_case_per_pair_and_requirement() -> None:
    root = ElementTree.fromstring(to_junit_xml(mixed()))
    suites = {suite.get("name"): suite for suite in root}
    assert {name: (suite.get("tests"), suite.get("failures")) for name, suite in suites.items()} == {
        "R1": ("6", "5"),
        "R3": ("6", "5"),
        "underlay": ("1", "0"),
    }
    messages = [failure.get("message", "") for failure in suites["R3"].iter("failure")]
    assert messages[0].startswith(f"R1 and R3 broken: {CROSSING.title}: NATed: sent as 172.16.0.2")
    assert messages[-1] == f"R3 not proved: {CROSSING.title}: no packet got through by which to tell"
