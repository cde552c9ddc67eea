"""A broken network must turn the verdict red, and the sentence must name what broke and where."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.lab.support import Muslin, broken, is_alive, processes_of, sentences, totals, wait_until

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def routes_lab(shared: Muslin) -> str:
    """Step 3; each test breaks it, and ``routed`` mends it."""
    return shared.up("--step", 3)


@pytest.fixture
def routed(shared: Muslin, routes_lab: str) -> Iterator[str]:
    """A lab of step 3 that is as it should be, before and after."""
    yield routes_lab
    for node in ("node1", "node2"):
        shared.inside(routes_lab, node, "nft", "flush", "ruleset")
    shared.up("--step", 3, name=routes_lab)
    shared.lab("check", "--name", routes_lab)


def red(muslin: Muslin, name: str, *options: object) -> Any:
    """The document of a check that must fail."""
    report = muslin.json("check", "--name", name, "--timeout", "0.4", *options, code=1)
    assert report["ok"] is False
    return report


def nft(muslin: Muslin, name: str, place: str, *commands: str) -> None:
    for command in commands:
        muslin.inside(name, place, "nft", command)


def test_masquerade_between_containers_breaks_r3_and_both_addresses_are_named(shared: Muslin, routed: str) -> None:
    nft(
        shared, routed, "node1",
        "add table ip sneaky",
        "add chain ip sneaky out { type nat hook postrouting priority 100; }",
        "add rule ip sneaky out ip saddr 172.16.0.0/24 oifname eth0 masquerade",
    )  # fmt: skip

    report = red(shared, routed)

    assert "R3" in broken(report)
    told = [text for text in sentences(report) if "con1.node1 -> 172.16.1.2 (con1.node2)" in text]
    assert any("R3" in text and "sent as 172.16.0.2, seen as 10.0.0.10" in text for text in told)
    # What does not pass the rule is still proved.
    assert not [text for text in sentences(report) if ": con1.node2 -> 172.16.1.3" in text]
    shown = shared.lab("check", "--name", routed, code=1).stdout
    assert "R3 broken" in shown
    assert "sent as 172.16.0.2, seen as 10.0.0.10" in shown


def test_a_node_that_does_not_forward_breaks_r1_and_keeps_its_own_containers(shared: Muslin, routed: str) -> None:
    shared.inside(routed, "node2", "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")

    report = red(shared, routed)

    assert {"R1", "R2"} <= broken(report)
    passed, of = totals(report)["R1"]
    assert (passed, of) == (8, 16)
    assert any("con1.node1 -> 172.16.1.2" in text for text in sentences(report))


def test_a_missing_return_route_is_told_as_a_lost_answer(shared: Muslin, routed: str) -> None:
    shared.inside(routed, "node2", "ip", "route", "del", "172.16.0.0/24")

    report = red(shared, routed)

    told = [text for text in sentences(report) if text.startswith("R2 broken: con1.node1 -> 10.0.0.20 (node2)")]
    assert any("the request arrived, the answer was lost" in text for text in told), told


def test_a_filter_for_udp_alone_is_told_as_udp_alone(shared: Muslin, routed: str) -> None:
    nft(
        shared, routed, "node2",
        "add table ip sneaky",
        "add chain ip sneaky pass { type filter hook forward priority 0; }",
        "add rule ip sneaky pass iifname eth0 meta l4proto udp drop",
    )  # fmt: skip

    report = red(shared, routed)

    told = [text for text in sentences(report) if ": con1.node1 -> 172.16.1.2 (con1.node2)" in text]
    assert told == [
        "R1 broken: con1.node1 -> 172.16.1.2 (con1.node2): lost: no answer to udp: the request never arrived"
    ]
    shared.lab("check", "--name", routed, "--protocol", "icmp", "--protocol", "tcp")


def test_an_unreachable_subnet_is_told_with_who_said_so(shared: Muslin, routed: str) -> None:
    shared.inside(routed, "node1", "ip", "route", "replace", "unreachable", "172.16.1.0/24")

    # One pair alone: a router limits the rate of what it says to one host (RFC 1812 4.3.2.8).
    report = red(shared, routed, "--test", "^con1.node1 -> 172.16.1.2 ")

    (told,) = sentences(report)
    assert told.startswith("R1 broken: con1.node1 -> 172.16.1.2 (con1.node2): unreachable from 172.16.0.1: "), told
    shared.inside(routed, "node1", "ip", "route", "del", "unreachable", "172.16.1.0/24")


def test_a_dead_tunnel_breaks_r1_and_r2(muslin: Muslin) -> None:
    name = muslin.up("--step", 4)
    (tunnel,) = processes_of(name, "node2")
    os.kill(tunnel, signal.SIGKILL)
    wait_until(lambda: not is_alive(tunnel), "the tunnel has ended")

    report = red(muslin, name)

    assert {"R1", "R2"} <= broken(report)
    assert totals(report)["R1"] == (8, 16)


def test_a_junit_report_counts_what_failed(shared: Muslin, routed: str, tmp_path: Any) -> None:
    good, bad = tmp_path / "good.xml", tmp_path / "bad.xml"
    shared.lab("check", "--name", routed, "--junit-file", good)
    shared.inside(routed, "con1.node1", "ip", "link", "set", "veth11", "down")
    shared.lab("check", "--name", routed, "--junit-file", bad, "--timeout", "0.4", code=1)

    suites = {suite.get("name"): suite for suite in ElementTree.parse(good).getroot()}
    assert {name: suite.get("tests") for name, suite in suites.items()} == {
        "R1": "16", "R2": "24", "R3": "40", "underlay": "8",
    }  # fmt: skip
    assert all(suite.get("failures") == "0" for suite in suites.values())
    failed = ElementTree.parse(bad).getroot().findall("./testsuite[@name='R1']/testcase/failure")
    cases = ElementTree.parse(bad).getroot().findall("./testsuite[@name='R1']/testcase")
    assert len(cases) == 16
    assert 6 <= len(failed) <= 7  # con1.node1 with each of the other three, both ways, and perhaps with itself
    assert all("con1.node1" in str(failure.get("message")) for failure in failed)


def test_a_sample_is_as_large_as_asked_and_follows_its_seed(shared: Muslin, routed: str) -> None:
    def pairs(seed: int) -> list[tuple[str, str]]:
        report = shared.json("check", "--name", routed, "--sample", 10, "--seed", seed)
        found = [cell["result"]["pair"] for cell in report["cells"]]
        return [(pair["source"]["name"], pair["address"]) for pair in found]

    first = pairs(1)

    assert len(first) == 10
    assert pairs(1) == first
    assert pairs(2) != first


def test_pairs_are_chosen_and_left_out_by_title(shared: Muslin, routed: str) -> None:
    def titles(*patterns: str) -> set[str]:
        options = [word for pattern in patterns for word in ("--test", pattern)]
        report = shared.json("check", "--name", routed, *options)
        return {cell["result"]["pair"]["source"]["name"] for cell in report["cells"]}

    assert titles("^con1.node1 ->") == {"con1.node1"}
    assert titles("!^con", "-> 172") == {"node1", "node2"}
    none_left = shared.lab("check", "--name", routed, "--test", "nowhere", code=2)
    assert "no pair is left to check" in none_left.stderr
    bad = shared.lab("check", "--name", routed, "--test", "(", code=2)
    assert "--test '(' is no regular expression" in bad.stderr


def test_only_the_chosen_protocols_are_spoken(shared: Muslin, routed: str) -> None:
    report = shared.json("check", "--name", routed, "--protocol", "tcp", "--sample", 5)

    spoken = {exchange["protocol"] for cell in report["cells"] for exchange in cell["result"]["exchanges"]}
    assert spoken == {"tcp"}
