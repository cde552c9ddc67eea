"""One golden sentence for each way in which a requirement breaks."""

from __future__ import annotations

import msgspec
import pytest

from muslin.verify.verdict import (
    CellResult,
    ErrorSeen,
    Exchange,
    Total,
    judge,
    judge_cell,
    make_report,
)
from tests.unit.verify.examples import CROSSING, FROM_NODE, UNDERLAY, changed, good, lost

HOST_UNREACHABLE = ErrorSeen(text="host unreachable", offender="10.0.1.1", icmp=(3, 1))
PORT_UNREACHABLE = ErrorSeen(text="port unreachable", offender="172.16.1.2", icmp=(3, 3), refused=True)
WHO = "con1.node1 -> 172.16.1.2 (con1.node2)"


def sentences(result: CellResult) -> list[str]:
    return [fault.sentence for fault in judge(result)]


@pytest.mark.parametrize("pair", [CROSSING, FROM_NODE, UNDERLAY])
def test_a_healthy_cell_proves_all_that_it_speaks_of(pair: object) -> None:
    cell = judge_cell(good(pair))  # type: ignore[arg-type]
    assert (cell.ok, cell.faults, cell.proved) == (True, (), cell.result.pair.requirements)


def test_nothing_arrived() -> None:
    assert sentences(lost(good())) == [
        f"R1 broken: {WHO}: lost: no answer to icmp, tcp, udp: the request never arrived"
    ]
    assert judge_cell(lost(good())).proved == ()


def test_the_answer_was_lost() -> None:
    assert sentences(lost(good(), "udp", arrived=True)) == [
        f"R1 broken: {WHO}: lost: no answer to udp: the request arrived, the answer was lost"
    ]


def test_one_lost_protocol_breaks_r1_and_leaves_r3_proved_by_the_others() -> None:
    assert judge_cell(lost(good(), "udp")).proved == ("R3",)


def test_source_nat_breaks_r1_and_r3_and_names_both_addresses() -> None:
    assert sentences(changed(good(), seen="10.0.0.10")) == [
        f"R1 and R3 broken: {WHO}: NATed: sent as 172.16.0.2, seen as 10.0.0.10 (icmp, tcp, udp)"
    ]


def test_nat_between_node_and_container_breaks_r2_and_r3() -> None:
    (fault,) = judge(changed(good(FROM_NODE), "tcp", seen="10.0.0.99"))
    assert fault.breaks == ("R2", "R3")


def test_nat_on_the_underlay_breaks_no_requirement_of_containers() -> None:
    (fault,) = judge(changed(good(UNDERLAY), seen="10.0.0.99"))
    assert fault.breaks == ("underlay",)


def test_a_port_that_changed_is_nat_too() -> None:
    assert sentences(changed(good(), "tcp", sent_port=40000, seen_port=1024)) == [
        f"R1 and R3 broken: {WHO}: NATed: sent from port 40000, seen as 1024 (tcp)"
    ]


def test_destination_nat() -> None:
    assert sentences(changed(good(), "icmp", arrived_at="10.0.0.20")) == [
        f"R1 and R3 broken: {WHO}: NATed: sent to 172.16.1.2, arrived at 10.0.0.20 (icmp)"
    ]


def test_an_answer_from_elsewhere() -> None:
    assert sentences(changed(good(), "icmp", answered_from="10.0.0.20")) == [
        f"R1 and R3 broken: {WHO}: NATed: asked at 172.16.1.2, answered from 10.0.0.20 (icmp)"
    ]


def test_a_source_that_is_not_its_own() -> None:
    assert sentences(changed(good(), sent="172.16.0.77", seen="172.16.0.77")) == [
        f"R1 and R3 broken: {WHO}: sent as 172.16.0.77, which is no address of con1.node1 (own: 172.16.0.2)"
        " (icmp, tcp, udp)"
    ]


def test_an_impostor_who_answers() -> None:
    assert sentences(changed(good(), "icmp", arrived=False, seen=None, arrived_at=None, ttl=None)) == [
        f"R1 and R3 broken: {WHO}: answered, but not by con1.node2, which never saw the request (icmp)"
    ]


def test_wrong_ttl() -> None:
    assert sentences(changed(good(), "udp", ttl=61)) == [f"R1 broken: {WHO}: wrong TTL 61, expected 62 (udp)"]


def test_ttl_is_not_judged_where_nothing_is_expected() -> None:
    pair = msgspec.structs.replace(CROSSING, expected_hops=None)
    assert judge(msgspec.structs.replace(changed(good(), ttl=3), pair=pair)) == ()


def test_unreachable_names_the_router() -> None:
    assert sentences(changed(lost(good()), outcome="error", error=HOST_UNREACHABLE)) == [
        f"R1 broken: {WHO}: unreachable from 10.0.1.1: host unreachable (ICMP type 3 code 1) (icmp, tcp, udp)"
    ]


def test_a_routers_silence_after_its_word_is_the_same_fault() -> None:
    """Routers limit the rate of their errors, so that only the first protocols are told."""
    result = changed(lost(good()), "icmp", outcome="error", error=HOST_UNREACHABLE)
    (fault,) = judge(result)
    assert fault.protocols == ("icmp", "tcp", "udp")


def test_refused_by_the_destination() -> None:
    (fault,) = judge(changed(lost(good(), "udp"), "udp", outcome="error", error=PORT_UNREACHABLE))
    assert fault.kind == "refused"
    assert fault.sentence.endswith("refused by 172.16.1.2: port unreachable (ICMP type 3 code 3) (udp)")
    assert fault.cause == "refused by the address asked: port unreachable (ICMP type 3 code 3) (udp)"


def test_the_own_kernel_refuses() -> None:
    error = ErrorSeen(text="Network is unreachable")
    (fault,) = judge(changed(lost(good()), outcome="error", error=error))
    assert fault.kind == "unreachable"
    assert "Network is unreachable, says the source's own kernel" in fault.sentence


def test_fragmented_outside() -> None:
    assert sentences(msgspec.structs.replace(good(), outer_fragments=2)) == [
        f"R1 broken: {WHO}: fragmented outside: a packet of 1500 bytes left node1 in 2 fragments"
    ]


def test_full_size_packets_that_vanish() -> None:
    vanished = Exchange(protocol="full-size udp", outcome="lost", size_bytes=1500)
    result = msgspec.structs.replace(good(), exchanges=(*good().exchanges, vanished))
    assert sentences(result) == [
        f"R1 broken: {WHO}: lost: no answer to full-size udp"
        " (1500 bytes, and no ICMP message tells of a smaller MTU): the request never arrived"
    ]


def test_totals_tell_broken_from_unproven() -> None:
    report = make_report([good(), lost(good()), changed(good(), seen="10.0.0.10"), good(UNDERLAY)], 1.23456)
    assert report.totals["R1"] == Total(passed=1, broken=2, of=3)
    assert report.totals["R3"] == Total(passed=1, broken=1, of=3)
    assert report.totals["R3"].unproven == 1
    assert report.totals["underlay"] == Total(passed=1, broken=0, of=1)
    assert (report.ok, report.duration_s, len(report.failed)) == (False, 1.235, 2)


def test_no_cells_prove_nothing() -> None:
    assert not make_report([], 0.0).ok


def test_a_cell_without_exchanges_is_not_ok() -> None:
    assert not make_report([CellResult(pair=CROSSING)], 0.0).ok
