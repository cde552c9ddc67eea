"""What is asked of a peer, and what its answers mean."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest

from muslin.agent.diagnosis import (
    Target,
    explain,
    explain_faults,
    explain_peer,
    plan_questions,
    with_answers,
)
from muslin.wire.agent_api import (
    FailedOperation,
    KernelStatus,
    LeaseStatus,
    NetworkStatus,
    PeerStatus,
    ProbeOutcome,
    ProbeResult,
    StoreStatus,
)
from tests.unit.agent.node import NOW, make_network, make_peer, make_status

UNDERLAY, BEHIND = "10.0.0.2", "10.5.2.0"


def said(address: str, outcome: ProbeOutcome | None, detail: str = "", offender: str = "") -> ProbeResult | None:
    return None if outcome is None else ProbeResult(address=address, outcome=outcome, detail=detail, offender=offender)


def judged(
    underlay: ProbeOutcome | ProbeResult,
    behind: ProbeOutcome | ProbeResult | None = None,
    full: ProbeOutcome | ProbeResult | None = None,
    network: NetworkStatus | None = None,
    **more: Any,
) -> PeerStatus:
    """A peer that answered so."""

    def result(address: str, given: ProbeOutcome | ProbeResult | None) -> ProbeResult | None:
        return given if isinstance(given, ProbeResult) else said(address, given)

    peer = make_peer(
        2,
        underlay=result(UNDERLAY, underlay),
        overlay=result(BEHIND, behind),
        overlay_full=result(BEHIND, full),
        **more,
    )
    return explain_peer(peer, make_status(network=network or make_network()))


# ---- questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "behind"), [("vxlan", ("10.5.2.0",)), ("udp", ("10.5.2.0",)), ("host-gw", ("10.5.2.1",)), ("alloc", ())]
)
def test_what_is_behind_a_peer_depends_on_the_backend(backend: str, behind: tuple[str, ...]) -> None:
    questions = plan_questions(make_peer(2), make_network(backend=backend, mtu=1450))
    assert questions.underlay == (Target("10.0.0.2"),)
    assert questions.behind == tuple(Target(address) for address in behind)
    assert questions.full == tuple(Target(address, 1450) for address in behind)


def test_both_families_are_asked() -> None:
    peer = make_peer(2, addresses=("10.0.0.2", "fd00::2"), subnets=("10.5.2.0/24", "fd05:2::/64"))
    questions = plan_questions(peer, make_network())
    assert [target.address for target in questions.underlay] == ["10.0.0.2", "fd00::2"]
    assert [target.address for target in questions.behind] == ["10.5.2.0", "fd05:2::"]


def test_a_lease_that_cannot_be_followed_is_not_asked_about() -> None:
    assert plan_questions(make_peer(2, state="refused", subnets=("garbage",)), make_network()).all == ()
    assert plan_questions(make_peer(2), None).all == ()
    assert plan_questions(make_peer(2, subnets=("10.5.2.9/32",)), make_network(backend="host-gw")).behind == ()


def test_of_two_families_the_worse_answer_counts() -> None:
    peer = make_peer(2, addresses=("10.0.0.2", "fd00::2"), subnets=("10.5.2.0/24", "fd05:2::/64"))
    status = make_status()
    questions = plan_questions(peer, status.network)
    answers = {target: ProbeResult(address=target.address, outcome="reached", rtt_ms=1.0) for target in questions.all}
    assert with_answers(peer, questions, answers, status).sentence == ""
    answers[Target("fd05:2::")] = ProbeResult(address="fd05:2::", outcome="silent")
    found = with_answers(peer, questions, answers, status)
    assert found.overlay is not None
    assert found.overlay.address == "fd05:2::"
    assert "fd05:2:: behind it does not" in found.sentence


# ---- sentences ---------------------------------------------------------------------------------------------


def test_all_well_is_no_sentence() -> None:
    found = judged("reached", "reached", "reached")
    assert (found.sentence, found.note) == ("", "")


def test_a_filtered_port_is_named() -> None:
    found = judged("reached", "silent", "silent")
    assert found.sentence.startswith("10.0.0.2 answers, but 10.5.2.0 behind it does not: a packet filter between")
    assert "let UDP port 8472 pass both ways" in found.sentence
    udp = judged("reached", "silent", network=make_network(backend="udp", port=None))
    assert "the UDP port of udp" in udp.sentence


def test_a_node_that_is_down() -> None:
    found = judged("silent", "silent")
    assert "10.0.0.2 does not answer, nor does 10.5.2.0 behind it: the node is down or cut off" in found.sentence
    assert "ICMP and UDP port 8472" in found.sentence
    assert "let ICMP pass" in judged("silent", "silent", network=make_network(backend="host-gw")).sentence


def test_a_host_that_is_out_of_reach() -> None:
    told = ProbeResult(address=UNDERLAY, outcome="unreachable", detail="host unreachable", offender="10.0.0.254")
    assert "10.0.0.254 says host unreachable" in judged(told, "silent").sentence
    own = ProbeResult(address=UNDERLAY, outcome="unreachable", detail="Network is unreachable")
    assert judged(own, "silent").sentence == (
        "this host cannot send to 10.0.0.2: Network is unreachable; see `ip route get 10.0.0.2`"
    )


def test_packets_that_go_astray_behind_a_host_that_answers() -> None:
    told = ProbeResult(address=BEHIND, outcome="unreachable", detail="network unreachable", offender="10.0.0.254")
    assert "10.0.0.254 says network unreachable; the packets go astray" in judged("reached", told).sentence
    own = ProbeResult(address=BEHIND, outcome="unreachable", detail="a packet filter of this host forbids it")
    assert "`nft list ruleset`" in judged("reached", own).sentence


@pytest.mark.parametrize(
    ("backend", "mtu", "path", "mend"),
    [
        ("vxlan", 1450, 1500, "set MTU in the Backend"),
        ("udp", 1472, 1500, "lower the MTU of eth0"),
        ("host-gw", 1500, 1500, "lower the MTU of eth0"),
    ],
)
def test_a_hole_in_the_mtu_tells_how_much_should_fit(backend: str, mtu: int, path: int, mend: str) -> None:
    found = judged("reached", "reached", "silent", network=make_network(backend=backend, mtu=mtu))
    assert f"those of full size, {mtu} bytes, do not" in found.sentence
    assert f"less than {path} bytes" in found.sentence
    assert mend in found.sentence


def test_filtered_icmp_is_worth_knowing_and_no_fault() -> None:
    found = judged("silent", "reached", "reached")
    assert found.sentence == ""
    assert "drops ICMP between the hosts; containers are not affected" in found.note


def test_a_gateway_of_host_gw_that_is_silent_is_no_verdict() -> None:
    network = make_network(backend="host-gw", mtu=1500)
    found = judged("reached", ProbeResult(address="10.5.2.1", outcome="silent"), "silent", network=network)
    assert found.sentence == ""
    assert "no container has run there yet" in found.note
    by_itself = ProbeResult(address="10.5.2.1", outcome="unreachable", detail="host unreachable", offender="10.0.0.2")
    found = judged("reached", by_itself, by_itself, network=network)
    assert (found.sentence, found.note) == ("", "")


def test_without_an_overlay_only_the_host_counts() -> None:
    alloc = make_network(backend="alloc", port=None)
    assert judged("reached", network=alloc).sentence == ""
    assert "10.0.0.2 does not answer: the node is down" in judged("silent", network=alloc).sentence


def test_what_could_not_be_asked_is_no_fault() -> None:
    found = judged("skipped", "skipped", "skipped")
    assert (found.sentence, found.note) == ("", "")


def test_refused_and_failed_peers_have_a_sentence_without_a_probe() -> None:
    reason = "10.5.2.0-24 cannot be reached from node1: it uses another backend"
    peers = (
        make_peer(2, state="refused", reason=reason),
        make_peer(3, state="refused"),
        make_peer(4, state="failed", reason="Network is down"),
        make_peer(5, state="pending"),
        make_peer(6, state="failed", sentence="the loop knows better"),
    )
    sentences = [peer.sentence for peer in explain(make_status(peers=peers)).peers]
    assert sentences[0].startswith(f"{reason}. Mend that node's")
    assert sentences[1].startswith("10.5.3.0-24 is left out: its lease cannot be followed")
    assert sentences[2].startswith(
        "the kernel of this host refuses what it takes to reach 10.5.4.0-24: Network is down"
    )
    assert sentences[3:] == ["", "the loop knows better"]


OUTCOMES: tuple[ProbeOutcome | None, ...] = (*get_args(ProbeOutcome), None)


@pytest.mark.parametrize("backend", ["vxlan", "udp", "host-gw", "alloc"])
def test_every_combination_of_answers_gives_at_most_one_sentence(backend: str) -> None:
    for underlay, behind, full in product(OUTCOMES[:-1], OUTCOMES, OUTCOMES):
        assert underlay is not None
        found = judged(underlay, behind, full, network=make_network(backend=backend))
        assert not (found.sentence and found.note)
        text = found.sentence or found.note
        assert not text.endswith((".", ";", " "))
        if (underlay, behind, full) == ("reached",) * 3:
            assert text == ""


def test_warnings_are_no_faults_also_where_the_agent_calls_them_problems() -> None:
    assert explain_faults(make_status()) == ((), ())
    lease, config = "another agent has this address", "the configuration has no Network"
    faults = explain_faults(
        make_status(
            problems=(
                lease,
                config,
                "no answer (the last snapshot on disk serves)",
                "the lease 10.5.9.0-24 holds garbage",
            ),
            lease=LeaseStatus(state="holding", warning=lease),
            network=make_network(warning=config),
            store=StoreStatus(kind="etcd", trouble="no answer", from_disk=True),
            unreadable=("10.5.9.0-24",),
            peers=(make_peer(2, note="worth knowing"),),
        )
    )
    assert faults.wrong == ()
    assert faults.warnings == (
        lease,
        config,
        "the etcd store does not answer: no answer; what was known last is followed",
        "leases in the store that hold garbage and are left out: 10.5.9.0-24; delete or mend them there",
        "worth knowing",
    )


def test_a_fault_is_told_once() -> None:
    reason = "10.5.2.0-24 cannot be reached from node1: it uses another backend"
    peers = (
        make_peer(2, state="refused", reason=reason),
        make_peer(3, state="failed", reason="Network is down"),
        make_peer(4, sentence="the loop knows better"),
    )
    failed = tuple(
        FailedOperation(key=("route", str(number)), command=f"ip route add {number}", reason=why, since=NOW - 40)
        for number, why in enumerate(("Network is down", "ip route add 1: failed: No such device", "told above"))
    )
    status = explain(
        make_status(
            problems=("the loop is stuck", reason, "10.5.3.0-24: Network is down", "ip route add 2: failed"),
            peers=peers,
            kernel=KernelStatus(failed=failed),
        )
    )
    assert explain_faults(status).wrong == (
        "the loop is stuck",
        "ip route add 2: failed",
        "the kernel refuses a change, tried again for 40 s now: ip route add 0: Network is down",
        "the kernel refuses a change, tried again for 40 s now: ip route add 1: failed: No such device",
        *(peer.sentence for peer in status.peers),
    )
