"""``lab trace``: each link that a packet is seen at, beside the prediction.

For every pair of these labs, by ICMP, the two agree; so do they by UDP and TCP for some, and with a fault in the way.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from muslin.explain.both import Question
from muslin.lab.run import require
from muslin.lab.state import LabDirectory
from muslin.verify.lab_pairs import HopCounter, endpoints
from muslin.verify.matrix import all_pairs
from muslin.verify.trace import Trace, trace
from tests.lab.support import Muslin

LABS = [
    ("--step", "1", "--family", "dual"),
    ("--step", "2", "--family", "dual"),
    ("--step", "3", "--family", "dual", "--containers", "1"),
    ("--step", "4", "--family", "dual", "--containers", "1"),
    ("--step", "4", "--backend", "vxlan", "--family", "dual", "--containers", "1"),
    ("--step", "4", "--underlay", "routed", "--containers", "1"),
    ("--step", "4", "--family", "6", "--containers", "1"),
    ("--step", "4", "--backend", "vxlan", "--family", "dual", "--containers", "1", "--agents"),
    ("--step", "4", "--backend", "udp", "--family", "dual", "--containers", "1", "--agents"),
]


def words(found: Trace) -> str:
    lines = [f"{one.leg} {one.place} {one.link} {one.direction}: {one.differs}" for one in found.lines if one.differs]
    return f"{found.source} > {found.destination}: {found.refused} {found.cause}\n" + "\n".join(lines)


@pytest.mark.parametrize("lab", LABS, ids=" ".join)
def test_prediction_and_observation_agree_for_every_pair(muslin: Muslin, lab: tuple[str, ...]) -> None:
    name = muslin.up(*lab)
    state = require(LabDirectory(name, str(muslin.runtime)))
    for pair in all_pairs(endpoints(name, state.topology), HopCounter(state.topology)):
        source, destination = pair.source.name, pair.destination.name
        found = trace(state, Question(netns=source, destination=pair.address, expected=destination))
        assert found.ok, words(found)
        assert found.answered, words(found)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_other_protocols_are_answered_by_what_says_that_nobody_listens(muslin: Muslin, protocol: str) -> None:
    name = muslin.up("--step", "4")
    found = muslin.json("trace", "con1.node1", "con1.node2", "--protocol", protocol, "--name", name)
    assert (found["ok"], found["arrived"], found["answered"]) == (True, True, True)
    wrapped = [line for line in found["lines"] if line.get("outer_source")]
    assert {line["stack"] for line in wrapped} >= {f"eth:ip:udp:ip:{protocol}"}


FRAGMENTED = [
    ("--step", "2", "--family", "dual"),
    ("--step", "3", "--family", "dual", "--containers", "1"),
    ("--step", "4", "--family", "dual", "--containers", "1"),
    ("--step", "4", "--backend", "vxlan", "--family", "dual", "--containers", "1"),
]


@pytest.mark.parametrize("lab", FRAGMENTED, ids=" ".join)
@pytest.mark.parametrize("protocol", ["icmp", "udp", "tcp"])
def test_what_may_be_cut_is_seen_in_the_pieces_that_were_predicted(
    muslin: Muslin, lab: tuple[str, ...], protocol: str
) -> None:
    name = muslin.up(*lab)
    other = "con2.node1" if "2" in lab[:2] else "con1.node2"
    for family, size, ttl in (("4", 1400, 64), ("4", 1500, 9), ("4", 4000, 64), ("6", 1400, 64), ("6", 3000, 33)):
        packet = ("--family", family, "--size", size, "--ttl", ttl, "--protocol", protocol, "--no-df")
        found = muslin.json("trace", "con1.node1", other, *packet, "--name", name, code=None)
        told = [f"{one['place']} {one['link']}: {one['differs']}" for one in found["lines"] if "differs" in one]
        assert (told, found["ok"]) == ([], True), (packet, found["cause"], found["contradiction"])
        begun = [line for line in found["lines"] if line["leg"] == "request" and line["place"] == "con1.node1"]
        room = 1500 - (20 if family == "4" else 48)
        pieces = -(-(size - (20 if family == "4" else 40)) // (room // 8 * 8)) if size > 1500 else 1
        assert len(begun) == pieces
        assert all(("fragment" in line) == (pieces > 1) for line in begun)


def test_without_df_a_router_cuts_and_with_it_says_that_it_may_not(muslin: Muslin) -> None:
    name = muslin.up("--step", "4")
    way = ("con1.node1", "con1.node2", "--size", 1500, "--name", name)
    fixed = muslin.json("trace", *way)
    assert (fixed["fixed_size"], fixed["arrived"]) == (True, False)
    assert "must not be cut" in fixed["cause"]
    assert "IpFragFails" in fixed["proof"]
    assert [line["source"] for line in fixed["lines"] if line["leg"] == "error"]
    cut = muslin.json("trace", *way, "--no-df")
    assert (cut["fixed_size"], cut["arrived"], cut["answered"], cut["ok"]) == (False, True, True, True)
    assert "goes in 2 fragments" in muslin.lab("explain", *way, "--no-df", "--wide").stdout


def test_a_ladder_tells_who_answers_and_who_should(muslin: Muslin) -> None:
    name = muslin.up("--step", "4")
    rungs = muslin.json("trace", "con1.node1", "con1.node2", "--ladder", "--name", name)["rungs"]
    assert [(rung["predicted"], rung["seen"]) for rung in rungs] == [
        ("172.16.0.1", "172.16.0.1"), ("172.16.1.100", "172.16.1.100"), ("172.16.1.2", "172.16.1.2"),
    ]  # fmt: skip


def test_a_lost_packet_is_seen_as_far_as_it_gets_and_the_cause_is_told(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    muslin.inside(name, "node2", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    text = muslin.lab("trace", "con1.node1", "con1.node2", "--name", name).stdout
    assert "the packet does not arrive; as predicted" in text
    assert "node2 is not 172.16.1.2 and does not forward" in text
    assert "mend it in node2: sysctl -w net.ipv4.ip_forward=1" in text


def test_what_was_not_predicted_is_marked(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    # Chance is beyond prediction; a certain drop by a rule that nobody understands stands in for it.
    rule = "add table netdev odd; add chain netdev odd in { type filter hook ingress device eth0 priority 0; }; "
    muslin.inside(name, "node2", "nft", rule + "add rule netdev odd in ip protocol icmp numgen inc mod 1 == 0 drop")
    done = muslin.lab("trace", "con1.node1", "con1.node2", "--timeout", "0.3", "--name", name, code=1)
    assert "≠  node2       br0 out" in done.stdout
    assert "predicted, not seen" in done.stdout
    assert "≠ not as predicted" in done.stdout
    assert (
        "the packet filter of node2 dropped it, says its nft trace: netdev odd in: ip protocol icmp numgen"
        in done.stdout
    )
    assert "muslin_trace" not in muslin.inside(name, "node2", "nft", "list", "ruleset").stdout


def test_what_cannot_be_sent_is_said(muslin: Muslin) -> None:
    name = muslin.up("--step", "2")
    small = muslin.lab("trace", "con1", "con2", "--size", "30", "--protocol", "tcp", "--name", name, code=2)
    assert "40 is the least" in small.stderr
    big = muslin.lab("trace", "con1", "con2", "--size", "3000", "--name", name).stdout
    assert "✓ con1.node1's own kernel refuses it: Message too long" in big
    muslin.inside(name, "con1", "ip", "route", "del", "default")
    lost = muslin.lab("trace", "con1", "10.0.0.10", "--name", name).stdout
    assert "con1.node1 has no way to 10.0.0.10" in lost
    assert "✓ con1.node1's own kernel refuses it: Network is unreachable" in lost


def test_a_trace_is_kept_replayed_and_made_a_page(muslin: Muslin, tmp_path: Path) -> None:
    name = muslin.up("--step", "4")
    kept, page, again = tmp_path / "walk.json", tmp_path / "walk.html", tmp_path / "again.html"
    done = muslin.lab("trace", "con1.node1", "con1.node2", "--html", page, "-o", "json", "--name", name)
    kept.write_text(done.stdout)
    assert f"the replay is in {page}" in done.stderr
    played = muslin.lab("replay", kept).stdout
    assert "[con1.node1 veth11]" in played
    assert "24/24  answer, in by veth11 of con1.node1" in played
    muslin.lab("replay", kept, "--html", again)
    assert again.read_text() == page.read_text()
    assert "is no trace" in muslin.lab("replay", page, code=2).stderr
    assert "cannot be read" in muslin.lab("replay", tmp_path / "none", code=2).stderr
