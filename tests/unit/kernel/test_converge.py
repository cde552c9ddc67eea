"""Converge over the fake kernel: reports, faults, and what the journal is told when.

n1 ── a ═══ b ── n2
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import msgspec
import pytest

from muslin.kernel.base import Witness
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.fake import FakeKernel
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    Link,
    Netns,
    OtherKind,
    Route,
    Sysctl,
    Veth,
)
from muslin.model.ops import Create, Delete, Op, OpResult, SetLink
from muslin.model.state import DesiredState, Owned
from tests.unit.plan.states import foreign_kernel

N1, N2 = Netns(netns="n1"), Netns(netns="n2")
A = Link(netns="n1", name="a", options=Veth(peer_netns="n2", peer="b"), up=True)
B = Link(netns="n2", name="b", options=Veth(peer_netns="n1", peer="a"), up=True)
A4 = Address(netns="n1", link="a", address="10.0.0.1/24")
B6 = Address(netns="n2", link="b", address="fd10::2/64")
ROUTE4 = Route(netns="n1", destination="172.16.0.0/16", via="10.0.0.2", link="a")
ROUTE6 = Route(netns="n2", destination="fd16::/64", via="fd10::1", link="b")
FORWARD = Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1")
CABLE: tuple[AnyObject, ...] = (N1, N2, FORWARD, A, B, A4, B6, ROUTE4, ROUTE6)


class Recorder(FakeKernel):
    """A fake kernel and a journal in one, which notes the order in which they are spoken to."""

    def __init__(self, refuse: Callable[[Op], int] = lambda _: 0) -> None:
        super().__init__(refuse)
        self.story: list[str] = []
        self.owned = Owned()

    def record(self, owned: Owned) -> None:
        self.story.append("record")
        self.owned = owned

    def apply(self, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False) -> list[OpResult]:
        self.story.append(f"apply {len(ops)}")
        return super().apply(ops, witness, one_by_one=one_by_one)


def refusing(*kinds: type[AnyObject], netns: str) -> Callable[[Op], int]:
    """A fault: these kinds, in that namespace."""
    return lambda op: errno.EPERM if isinstance(op.object, kinds) and op.object.netns == netns else 0


def keys(*objects: AnyObject) -> frozenset[tuple[str | int, ...]]:
    return frozenset(obj.key for obj in objects)


# ---- reports ---------------------------------------------------------------------------------------------


def test_the_report_has_each_operation_in_order_and_the_second_none() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    _, ops = plan_ops(kernel, DesiredState(CABLE), Owned())
    assert kernel.objects == {}, "a plan changes nothing"
    report = converge(kernel, DesiredState(CABLE), journal)
    assert tuple(result.op for result in report.results) == ops
    assert report.ok
    assert converge(kernel, DesiredState(CABLE), journal).results == ()


def test_the_witness_hears_of_each_operation_ahead_of_it() -> None:
    kernel = FakeKernel()
    heard: list[tuple[Op, int]] = []
    report = converge(kernel, DesiredState(CABLE), witness=lambda op: heard.append((op, len(kernel.objects))))
    assert [op for op, _ in heard] == [result.op for result in report.results]
    assert heard[0] == (Create(N1), 0)


def test_one_refused_operation_delays_no_other() -> None:
    kernel = FakeKernel(refusing(Address, netns="n1"))
    report = converge(kernel, DesiredState(CABLE))
    failures = {result.op.key: result.errno for result in report.failed}
    # Without its address the link reaches no gateway; all of n2 stands.
    assert failures == {A4.key: errno.EPERM, ROUTE4.key: errno.ENETUNREACH}
    assert {B6.key, ROUTE6.key} <= set(kernel.objects)
    assert len(report.done) + 2 == len(report.results)


def test_what_stands_on_a_failure_is_skipped_and_says_so() -> None:
    kernel = FakeKernel(refusing(Netns, netns="n2"))
    bridge = Link(netns="n1", name="br0", options=Bridge(), up=True)
    report = converge(kernel, DesiredState((*CABLE, bridge)))
    assert [result.op.key for result in report.failed] == [N2.key]
    assert {result.op.key for result in report.skipped} == keys(A, B, A4, B6, ROUTE4, ROUTE6)
    assert all(result.reason and result.errno == 0 for result in report.skipped)
    assert {result.op.key for result in report.done} == keys(N1, FORWARD, bridge)


def test_the_far_end_of_a_veth_that_failed_is_skipped_too() -> None:
    kernel = FakeKernel(lambda op: errno.EPERM if isinstance(op, Create) and op.key == A.key else 0)
    report = converge(kernel, DesiredState(CABLE))
    assert [result.op for result in report.failed] == [Create(A)]
    assert SetLink(B, "up") in [result.op for result in report.skipped]


def test_what_failed_is_tried_again_and_nothing_else_is() -> None:
    kernel, journal = FakeKernel(refusing(Route, netns="n2")), MemoryJournal()
    converge(kernel, DesiredState(CABLE), journal)
    kernel.refuse = lambda _: 0
    report = converge(kernel, DesiredState(CABLE), journal)
    assert [result.op for result in report.results] == [Create(ROUTE6)]
    assert report.ok


def test_what_the_old_stood_in_the_way_of_is_done_in_the_same_call() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    old, new = (Link(netns="", name=name, options=Bridge()) for name in ("old", "new"))
    converge(kernel, DesiredState((old,)), journal)
    kernel.refuse = lambda op: errno.EINVAL if op.key == new.key and old.key in kernel.objects else 0
    report = converge(kernel, DesiredState((new,)), journal)
    assert [result.op for result in report.results] == [Delete(report.results[0].op.object), Create(new)]
    assert report.ok
    assert journal.owned.keys == keys(new)
    kernel.refuse = lambda op: errno.EINVAL if op.key == old.key else 0
    report = converge(kernel, DesiredState((old,)), journal)
    assert [(result.op.key, result.outcome) for result in report.results] == [(new.key, "done"), (old.key, "failed")]


# ---- the journal -----------------------------------------------------------------------------------------


def test_ownership_is_written_down_before_the_first_operation_and_after_the_last() -> None:
    both = Recorder()
    seen: list[frozenset[tuple[str | int, ...]]] = []
    converge(both, DesiredState(CABLE), both, lambda _: seen.append(both.owned.keys))
    count = len(seen)
    assert both.story == ["record", f"apply {count}", "record"]
    assert set(seen) == {keys(*CABLE)}
    assert both.owned == Owned(keys(*CABLE), {FORWARD.key: "0"})


def test_a_journal_that_cannot_write_stops_everything() -> None:
    class Full(MemoryJournal):
        def record(self, owned: Owned) -> None:
            raise OSError(errno.ENOSPC, "disk full")

    kernel = FakeKernel()
    with pytest.raises(OSError, match="disk full"):
        converge(kernel, DesiredState(CABLE), Full())
    assert kernel.objects == {}


def test_what_is_there_already_and_serves_us_is_not_ours() -> None:
    bridge = Link(netns="", name="br0", options=Bridge(), mtu=1500, up=False)
    kernel, journal = foreign_kernel((bridge,)), MemoryJournal()
    wanted = DesiredState((msgspec.structs.replace(bridge, mtu=1400, up=True),))
    assert len(converge(kernel, wanted, journal).done) == 2
    assert journal.owned == Owned()
    converge(kernel, DesiredState(), journal)
    assert bridge.key in kernel.objects


def test_a_foreign_link_with_our_name_is_refused_again_and_again_and_never_ours() -> None:
    bond = Link(netns="", name="br0", options=OtherKind(kind="bond"), mtu=1500, up=True)
    kernel, journal = foreign_kernel((bond,)), MemoryJournal()
    bridge = Link(netns="", name="br0", options=Bridge(), up=True)
    address = Address(netns="", link="br0", address="fd16::1/64")
    for _ in range(3):
        report = converge(kernel, DesiredState((bridge, address)), journal)
        assert [(result.outcome, result.errno) for result in report.results] == [
            ("failed", errno.EEXIST),
            ("skipped", 0),
        ]
        assert journal.owned == Owned()
    assert address.key not in kernel.objects


def test_a_foreign_link_is_not_ours_even_while_we_try_so_that_a_crash_changes_nothing() -> None:
    told: list[Owned] = []

    class Telling(MemoryJournal):
        def record(self, owned: Owned) -> None:
            told.append(owned)
            super().record(owned)

    bond = Link(netns="", name="br0", options=OtherKind(kind="bond"), mtu=1500, up=True)
    converge(foreign_kernel((bond,)), DesiredState((Link(netns="", name="br0", options=Bridge()),)), Telling())
    assert told == [Owned(), Owned()]


def test_what_others_make_between_our_look_and_our_attempt_stays_theirs() -> None:
    bond = Link(netns="", name="br0", options=OtherKind(kind="bond"), mtu=1500, mac="", alias="", master="", up=True)
    bridge = Link(netns="", name="br0", options=Bridge())
    kernel, journal = FakeKernel(), MemoryJournal()

    def interfere(_: Op) -> None:
        kernel.objects[bond.key] = bond

    report = converge(kernel, DesiredState((bridge,)), journal, interfere)
    assert [result.errno for result in report.results] == [errno.EEXIST]
    assert journal.owned == Owned()
    converge(kernel, DesiredState(), journal)
    assert kernel.objects[bond.key] == bond


def test_a_veth_whose_name_is_taken_at_one_end_leaves_both_ends_to_others() -> None:
    taken = Link(netns="", name="b", options=OtherKind(kind="bond"), up=True)
    kernel, journal = foreign_kernel((taken,)), MemoryJournal()
    near = Link(netns="", name="a", options=Veth(peer_netns="", peer="b"))
    far = Link(netns="", name="b", options=Veth(peer_netns="", peer="a"))
    for _ in range(2):
        assert not converge(kernel, DesiredState((near, far)), journal).ok
    assert journal.owned == Owned()
    assert kernel.objects[taken.key].key == taken.key


def test_what_could_not_be_removed_stays_ours_and_is_tried_again() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    converge(kernel, DesiredState((N1, N2)), journal)
    kernel.refuse = refusing(Netns, netns="n1")
    assert not converge(kernel, DesiredState(), journal).ok
    assert journal.owned.keys == keys(N1)
    kernel.refuse = lambda _: 0
    assert converge(kernel, DesiredState(), journal).ok
    assert journal.owned == Owned()
    assert kernel.objects == {}


def test_a_refused_replacement_of_a_link_leaves_the_old_one_ours() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    old = Link(netns="", name="x", options=Bridge())
    new = Link(netns="", name="x", options=Veth(peer_netns="", peer="y"))
    converge(kernel, DesiredState((old,)), journal)
    kernel.refuse = lambda op: errno.EBUSY if op.key == old.key else 0
    assert not converge(kernel, DesiredState((new,)), journal).ok
    assert journal.owned.keys == keys(old)


def test_the_first_value_of_a_setting_is_kept_through_all_changes() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    settings = [Sysctl(netns="", name="net/ipv4/conf/all/rp_filter", value=value) for value in "121"]
    for setting in settings:
        converge(kernel, DesiredState((setting,)), journal)
        assert journal.owned.sysctls == {setting.key: "0"}
    (result,) = converge(kernel, DesiredState(), journal).results
    assert result.op.describe() == "sysctl -q -w net.ipv4.conf.all.rp_filter=0"
    assert journal.owned == Owned()


def test_a_setting_that_could_not_go_back_is_remembered() -> None:
    kernel, journal = FakeKernel(), MemoryJournal()
    setting = Sysctl(netns="", name="net/ipv4/ip_forward", value="1")
    converge(kernel, DesiredState((setting,)), journal)
    kernel.refuse = lambda op: errno.EPERM
    assert not converge(kernel, DesiredState(), journal).ok
    assert journal.owned.sysctls == {setting.key: "0"}


def test_a_setting_that_had_the_wanted_value_all_along_is_not_ours_to_change() -> None:
    journal = MemoryJournal()
    converge(FakeKernel(), DesiredState((Sysctl(netns="", name="net/ipv4/ip_forward", value="0"),)), journal)
    assert journal.owned == Owned()


def test_a_memory_journal_holds_what_it_was_told() -> None:
    owned = Owned(keys(N1), {FORWARD.key: "0"}, marked=True)
    journal = MemoryJournal(owned)
    assert journal.owned == owned
    converge(FakeKernel(), DesiredState(), journal)
    assert journal.owned == Owned(marked=True), "what is gone and unwanted is forgotten, whether marks count is not"
