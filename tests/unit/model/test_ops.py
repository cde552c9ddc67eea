"""Operations and reports as text and as JSON."""

from __future__ import annotations

import errno

import msgspec
import pytest

from muslin.model.kernel import Address, Bridge, Link, NftTable, Route, Sysctl
from muslin.model.ops import Create, Delete, Op, OpResult, Outcome, Replace, Report, SetLink, describe_all

BRIDGE = Link(netns="n1", name="br0", options=Bridge(), mtu=1400, up=True)
ROUTE = Route(netns="n1", destination="fd16::/64", via="fd10::2")
OLD_ROUTE = Route(netns="n1", destination="fd16::/64", via="fd10::9")

OPS: list[tuple[Op, str]] = [
    (Create(BRIDGE), "ip -n n1 link add br0 mtu 1400 type bridge"),
    (Replace(ROUTE, OLD_ROUTE), "ip -n n1 route replace fd16::/64 via fd10::2"),
    (
        Replace(Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1")),
        "ip netns exec n1 sysctl -q -w net.ipv4.ip_forward=1",
    ),
    (Create(ROUTE, against=OLD_ROUTE), "ip -n n1 route add fd16::/64 via fd10::2"),
    (SetLink(BRIDGE, "mtu"), "ip -n n1 link set br0 mtu 1400"),
    (SetLink(BRIDGE, "up"), "ip -n n1 link set br0 up"),
    (Delete(Address(netns="", link="br0", address="10.0.0.1/8")), "ip addr del 10.0.0.1/8 dev br0"),
]


@pytest.mark.parametrize(("op", "command"), OPS, ids=[command for _, command in OPS])
def test_an_operation_is_one_command_on_the_key_of_its_object(op: Op, command: str) -> None:
    assert op.describe() == command
    assert op.key == op.object.key


def test_all_commands_come_in_order() -> None:
    assert describe_all(op for op, _ in OPS) == [command for _, command in OPS]


@pytest.mark.parametrize("op", [op for op, _ in OPS], ids=[command for _, command in OPS])
def test_operations_survive_json(op: Op) -> None:
    assert msgspec.json.decode(msgspec.json.encode(op), type=Op) == op


def test_a_result_says_what_was_tried_and_why_it_failed() -> None:
    failed = OpResult(op=Create(ROUTE), outcome="failed", errno=errno.ENETUNREACH, reason="no way to fd10::2")
    command = "ip -n n1 route add fd16::/64 via fd10::2"
    assert OpResult(op=Create(ROUTE), outcome="done").describe() == command
    assert failed.describe() == f"{command}: failed: Network is unreachable: no way to fd10::2"
    assert OpResult(op=Create(ROUTE), outcome="skipped", reason="needs x").describe() == f"{command}: skipped: needs x"


def test_a_failed_script_is_named_by_its_first_line() -> None:
    table = NftTable(netns="", family="ip", name="t", text="chain c {\n}")
    failed = OpResult(op=Create(table), outcome="failed", reason="nft refused")
    assert failed.describe() == "nft -f - <<'END': failed: nft refused"


def test_a_refused_creation_names_who_is_in_the_way_where_that_is_known() -> None:
    theirs = Route(netns="n1", destination="fd16::/64", via="fd10::9", protocol=4)
    failed = OpResult.failed(Create(ROUTE, against=theirs), errno.EEXIST, "")
    assert failed.describe() == (
        "ip -n n1 route add fd16::/64 via fd10::2: failed: File exists: "
        "held by: ip -n n1 route add fd16::/64 via fd10::9 proto 4"
    )
    table = NftTable(netns="", family="ip", name="t", text="chain c {\n}")
    assert OpResult.failed(Create(table, against=table), errno.EEXIST, "nft refused").reason == (
        "nft refused; held by: nft list table ip t"
    )
    assert OpResult.failed(Create(ROUTE), errno.EEXIST, "no").reason == "no"
    assert OpResult.failed(Delete(ROUTE), errno.EPERM, "").reason == ""


def test_a_report_is_ok_when_everything_is_done() -> None:
    outcomes: list[Outcome] = ["done", "failed", "skipped", "done"]
    report = Report(tuple(OpResult(op=Create(ROUTE), outcome=outcome) for outcome in outcomes))
    assert (len(report.done), len(report.failed), len(report.skipped)) == (2, 1, 1)
    assert not report.ok
    assert Report(report.done).ok
    assert Report(()).ok
    assert not Report(report.skipped).ok
