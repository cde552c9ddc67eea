"""Containers of one node on a kernel in memory: checks, looks that put right, agents that were killed, reboots."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from muslin.agent.attachment_plan import host_link
from muslin.agent.attachments import PATIENCE_S
from muslin.model.kernel import Address, AnyObject, Bridge, Link, NftElement, NftTable, Route, Veth, link_key
from muslin.model.ops import Create, Delete, Op, SetLink
from muslin.plan import sources
from muslin.wire.cni_result import Result
from tests.unit.agent.containers import FACTS, IPV4_ONLY, ROUTED, Node, code_of, no_fault

SHORT = msgspec.structs.replace(IPV4_ONLY, subnets=("10.5.1.0/29",))
"""A subnet with five addresses for containers."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.reservations.close()


# ---- CHECK, STATUS ---------------------------------------------------------------------------------------


def test_a_check_after_the_add_has_nothing_to_say_and_changes_nothing(node: Node) -> None:
    for facts in (FACTS, ROUTED, IPV4_ONLY):
        node.become(facts)
        result = node.add("one")
        before = node.objects()
        node.check("one", result)
        assert node.objects() == before
        node.delete("one")


SPOILT: dict[str, Callable[[Node], AnyObject]] = {
    "cable": lambda node: node.cables()[0],
    "element": lambda node: next(obj for obj in node.on_node() if isinstance(obj, NftElement)),
    "address": lambda node: next(obj for obj in node.inside("one") if isinstance(obj, Address)),
    "route": lambda node: next(obj for obj in node.inside("one") if isinstance(obj, Route)),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_check_names_what_is_missing_and_leaves_it_so(node: Node, kind: str) -> None:
    result = node.add("one")
    node.kernel.apply([Delete(SPOILT[kind](node))])
    before = node.objects()
    code, words = code_of(lambda: node.check("one", result))
    assert code == 102
    assert "the interface eth0 of container one is not as it was made; missing: " in words
    assert "/proc/self/fd" not in words, "the path is the agent's own"
    assert node.objects() == before


def test_a_check_allows_what_later_plugins_have_changed_and_said(node: Node) -> None:
    result = node.add("one")
    (end,) = [obj for obj in node.inside("one") if isinstance(obj, Link)]
    changed = msgspec.structs.replace(end, mac="02:00:00:00:00:99", mtu=1400)
    node.put(changed)
    inside = msgspec.structs.replace(result.interfaces[-1], mac=changed.mac, mtu=1400)
    told = msgspec.structs.replace(result, interfaces=(*result.interfaces[:-1], inside))
    node.put(Address(netns=end.netns, link="eth0", address="198.51.100.7/24"))
    code, _ = code_of(lambda: node.check("one", result))
    assert code == 102
    by_mac = {obj for obj in node.on_node() if isinstance(obj, NftElement) and obj.set == sources.CABLES}
    assert len(by_mac) == 1
    for element in by_mac:  # what may be sent follows the interface
        cable = element.address.split(" . ")[0]
        node.put(msgspec.structs.replace(element, address=f"{cable} . {changed.mac}"))
    node.check("one", told)


def test_a_check_with_another_containers_result_is_told_apart(node: Node) -> None:
    node.add("one")
    code, words = code_of(lambda: node.check("one", node.add("two")))
    assert code == 7
    assert "10.5.1.2/24" in words
    assert "10.5.1.3/24" in words


def test_a_check_of_one_that_is_not_connected(node: Node) -> None:
    code, words = code_of(lambda: node.check("one", Result()))
    assert code == 3
    assert "container one is not connected" in words


def test_status_tells_what_an_add_would(node: Node) -> None:
    node.attachments.status(node.facts)
    trouble = msgspec.structs.replace(FACTS, trouble="not ready: starting")
    assert code_of(lambda: node.attachments.status(trouble)) == (50, "not ready: starting")
    degraded = msgspec.structs.replace(trouble, degraded="the lease is lost")
    assert code_of(lambda: node.attachments.status(degraded)) == (51, "the lease is lost")


# ---- looks -----------------------------------------------------------------------------------------------


def test_a_look_at_a_settled_node_changes_nothing(node: Node) -> None:
    for facts in (FACTS, ROUTED):
        node.become(facts)
        for name in ("one", "two"):
            node.add(name)
        before = node.objects()
        node.refuse = _refuse_all
        assert node.attachments.look(node.facts) == ()
        assert node.objects() == before
        node.refuse = no_fault
        node.delete("one", "two")


def _refuse_all(_: Op) -> int:
    return errno.EPERM


HURT: dict[str, Callable[[Node], Op]] = {
    "unplugged": lambda node: SetLink(msgspec.structs.replace(node.cables()[0], master=""), "master"),
    "down": lambda node: SetLink(msgspec.structs.replace(node.cables()[0], up=False), "up"),
    "mtu": lambda node: SetLink(msgspec.structs.replace(node.cables()[0], mtu=1200), "mtu"),
    "element": lambda node: Delete(next(obj for obj in node.on_node() if isinstance(obj, NftElement))),
    "table": lambda node: Delete(sources.table("", "bridge")),
}


@pytest.mark.parametrize("kind", HURT)
def test_a_look_puts_right_what_others_have_changed(node: Node, kind: str) -> None:
    node.add("one")
    before = node.objects()
    node.kernel.apply([HURT[kind](node)])
    assert node.objects() != before
    assert node.attachments.look(node.facts) == ()
    assert node.objects() == before


def test_a_look_takes_strays_of_the_filter_and_no_cable(node: Node) -> None:
    """A cable of which nothing is recorded is some container's all the same, and may be the only way to it."""
    node.add("one")
    stray = NftElement(
        netns="", family="bridge", table=sources.TABLE, set="sources4", address="musffffffffffff . 10.5.1.9"
    )
    theirs = (
        Link(netns="", name="mut0123456789ab", options=Bridge(), alias="muslin-cni:lost/eth0", up=True),
        Link(netns="", name="muskrat", options=Bridge(), alias="an animal", up=True),
        Link(netns="", name="veth0", options=Bridge(), alias="", up=True),
    )
    for obj in (stray, *theirs):
        node.put(obj)
    (words,) = node.attachments.look(node.facts)
    assert "nothing is recorded of the cable mut0123456789ab (muslin-cni:lost/eth0)" in words
    assert stray not in node.objects()
    assert node.objects().issuperset(theirs)


def test_containers_of_another_mode_are_left_as_they_are_and_said(node: Node) -> None:
    """The agent was started again without its bridge."""
    node.add("one")
    before = node.objects()
    (words,) = node.attachments.look(msgspec.structs.replace(node.facts, bridge=""))
    assert "is connected in the mode 'bridge', and the node's is 'routed' now" in words
    assert node.objects() == before
    assert node.attachments.look(node.facts) == ()


def test_an_adopted_container_that_died_gives_its_address_back(node: Node) -> None:
    node.add("one")
    node.reservations.close()
    for file in node.directory.glob("containers.db*"):
        file.unlink()
    node.start()
    (words,) = node.attachments.look(node.facts)
    assert "nothing was recorded of the container one" in words
    assert [one.container_id for one in node.attachments.all()] == ["one"]
    node.lose_netns("one")
    node.attachments.look(node.facts)
    node.now += PATIENCE_S
    node.attachments.look(node.facts)
    assert node.attachments.all() == []


def test_a_look_tells_what_it_could_not_put_right(node: Node) -> None:
    node.add("one")
    node.kernel.apply([HURT["unplugged"](node)])
    node.refuse = _refuse_all
    (words,) = node.attachments.look(node.facts)
    assert "Operation not permitted" in words
    node.refuse = no_fault
    assert node.attachments.look(node.facts) == ()


def test_an_add_after_the_table_was_lost_makes_it_again_for_all(node: Node) -> None:
    node.add("one")
    before = node.objects()
    node.kernel.apply([HURT["table"](node)])
    node.add("two")
    assert node.objects() > before
    assert isinstance(node.kernel.objects[sources.table("", "bridge").key], NftTable)


def test_containers_of_a_subnet_that_was_lost_are_told_of_and_stay(node: Node) -> None:
    node.add("one")
    node.facts = msgspec.structs.replace(FACTS, subnets=("10.5.7.0/24", "fd00:10:5:7::/64"))
    (words,) = node.attachments.look(node.facts)
    assert "the container one has 10.5.1.2/24, of a subnet that this node has lost" in words
    assert node.add("two").ips[0].address == "10.5.7.2/24"
    node.delete("one", "two")
    assert node.on_node() == set()


# ---- an agent that was killed ----------------------------------------------------------------------------


class Killed(BaseException):
    """The moment of a kill -9."""


def test_an_agent_killed_at_any_step_of_an_add_leaves_nothing_once_it_is_back(tmp_path: Path) -> None:
    steps = 0
    while True:
        directory = tmp_path / str(steps)
        directory.mkdir()
        node = Node(directory)
        node.add("zero")
        node.netns("one")
        before = {obj.key for obj in node.objects()}
        seen = 0

        def die(_: Op, last: int = steps) -> int:
            nonlocal seen
            seen += 1
            if seen > last:
                raise Killed
            return 0

        node.refuse = die
        try:
            node.add("one")
        except Killed:
            node.refuse = no_fault
            node.restart()
            node.attachments.look(node.facts)
            assert [one.container_id for one in node.attachments.all()] == ["zero"], steps
            assert {obj.key for obj in node.objects()} == before, steps
            node.add("one")
            node.reservations.close()
            steps += 1
        else:
            node.reservations.close()
            break
    assert steps > 10


def test_an_agent_killed_at_any_step_of_a_del_finishes_it_or_can_be_asked_again(tmp_path: Path) -> None:
    steps = 0
    while True:
        directory = tmp_path / str(steps)
        directory.mkdir()
        node = Node(directory)
        node.add("one")
        seen = 0

        def die(_: Op, last: int = steps) -> int:
            nonlocal seen
            seen += 1
            if seen > last:
                raise Killed
            return 0

        node.refuse = die
        try:
            node.delete("one")
        except Killed:
            node.refuse = no_fault
            node.restart()
            node.delete("one")
            assert node.on_node() == set(), steps
            node.reservations.close()
            steps += 1
        else:
            node.reservations.close()
            break
    assert steps > 0


def test_a_recovery_that_the_kernel_refuses_is_tried_again_by_the_next_call(node: Node) -> None:
    def die(op: Op) -> int:
        if isinstance(op, Create) and isinstance(op.object, Address):
            raise Killed
        return 0

    node.refuse = die
    with pytest.raises(Killed):
        node.add("one")
    stuck = link_key("", host_link("one", "eth0", checked=True))
    node.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) and op.key == stuck else 0
    node.restart()
    assert [one.complete for one in node.attachments.all()] == [False]
    node.refuse = no_fault
    node.add("one")
    assert [one.complete for one in node.attachments.all()] == [True]


def test_a_restarted_agent_knows_all_and_changes_nothing(node: Node) -> None:
    results = {name: node.add(name) for name in ("one", "two")}
    before = node.objects(), {one.key: one for one in node.attachments.all()}
    free = node.attachments.free
    node.restart()
    node.attachments.look(node.facts)
    assert node.attachments.free == free, "known before the next ADD"
    assert (node.objects(), {one.key: one for one in node.attachments.all()}) == before
    for name, result in results.items():
        node.check(name, result)


# ---- containers that died without a word -----------------------------------------------------------------


def test_one_that_is_added_again_in_a_new_namespace_keeps_its_addresses(node: Node) -> None:
    node.add("zero")
    first = node.add("one")
    node.delete("zero")
    second = node.add("one", "one-again")
    assert second.ips == first.ips
    assert second.interfaces[-1].mac == first.interfaces[-1].mac
    assert len(node.cables()) == 1
    assert node.addresses("one") == set()
    assert node.addresses("one-again") == {"10.5.1.3/24", "fd00:10:5:1::3/64"}


def test_after_a_reboot_the_same_id_starts_at_once_with_its_addresses(node: Node) -> None:
    first = node.add("one")
    node.add("two")
    node.reboot()
    assert node.cables() == []
    again = node.add("one", "a-new-namespace")
    assert [ip.address for ip in again.ips] == [ip.address for ip in first.ips]
    assert node.add("three").ips[0].address == "10.5.1.4/24", "two may still come back"


def test_after_a_reboot_a_del_without_a_namespace_frees_the_address(node: Node) -> None:
    node.add("one")
    node.reboot()
    node.delete("one")
    assert node.attachments.all() == []


def look_after(node: Node, seconds: float) -> list[str]:
    node.now += seconds
    node.attachments.look(node.facts)
    return [one.container_id for one in node.attachments.all()]


def test_the_dead_are_kept_for_a_while_and_then_released(node: Node) -> None:
    node.add("one")
    node.add("two")
    node.lose_netns("one")
    assert look_after(node, 0) == ["one", "two"]
    assert look_after(node, PATIENCE_S - 1) == ["one", "two"]
    assert look_after(node, 1) == ["two"]
    assert look_after(node, 10 * PATIENCE_S) == ["two"], "it lives"


def test_the_dead_whom_a_runtime_still_has_in_its_notes_are_kept(node: Node) -> None:
    node.add("one")
    note = node.cache / "pods-one-eth0"
    note.touch()
    node.reboot()
    assert look_after(node, 0) == ["one"]
    assert look_after(node, 10 * PATIENCE_S) == ["one"]
    note.unlink()
    assert look_after(node, 1) == []


def test_the_dead_make_room_where_addresses_run_out(node: Node) -> None:
    node.become(SHORT)
    for number in range(5):
        node.add(f"c{number}")
    (node.cache / "pods-c0-eth0").touch()
    node.reboot()
    node.attachments.status(node.facts)
    node.add("new")
    assert [one.container_id for one in node.attachments.all()] == ["new"]


def test_one_whose_namespace_cannot_be_seen_from_here_lives_as_long_as_its_cable(node: Node) -> None:
    node.add("one")
    Path(node.path("one")).unlink()
    assert look_after(node, 0) == ["one"]
    assert look_after(node, 10 * PATIENCE_S) == ["one"]
    node.kernel.apply([Delete(node.cables()[0])])
    look_after(node, 0)
    assert look_after(node, PATIENCE_S) == []


def test_one_whose_cable_somebody_cut_is_kept_as_long_as_its_namespace(node: Node) -> None:
    node.add("one")
    node.kernel.apply([Delete(node.cables()[0])])
    look_after(node, 0)
    assert look_after(node, 10 * PATIENCE_S) == ["one"]
    assert not [obj for obj in node.on_node() if isinstance(obj, NftElement)]
    node.add("one")
    assert len(node.cables()) == 1


def test_veth_ends_are_told_by_their_name(node: Node) -> None:
    node.add("one")
    (cable,) = node.cables()
    assert isinstance(cable.options, Veth)
    assert cable.options.peer == "eth0"


def test_what_cannot_be_taken_back_at_once_goes_with_the_next_look(node: Node) -> None:
    """Its ADD was complete, and nobody took the answer."""
    node.add("one")
    node.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) else 0
    node.attachments.take_back(("one", "eth0"))
    assert [one.container_id for one in node.attachments.all()] == ["one"]
    node.refuse = no_fault
    node.attachments.look(node.facts)
    assert node.attachments.all() == []
    assert link_key("", host_link("one", "eth0", checked=True)) not in node.kernel.objects
