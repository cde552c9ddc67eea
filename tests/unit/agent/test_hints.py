"""Which events ask for a look."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from muslin.agent.hints import Hints, concerns
from muslin.agent.reconcile import Interests, Reconciler
from muslin.kernel.watch import Hint, Watch
from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
    Address,
    AnyObject,
    FdbEntry,
    Key,
    Link,
    Neighbour,
    NftTable,
    OtherKind,
    Route,
    Vxlan,
    link_key,
)
from muslin.model.state import Owned

DEVICE = Link(
    netns="", name="vxlan1", options=Vxlan(vni=1, local="10.0.0.1", port=8472), mtu=1450, alias="muslin:vxlan1", up=True
)
ROUTE = Route(netns="", destination="10.5.7.0/24", link="vxlan1", protocol=PROTOCOL_MUSLIN)
NEIGHBOUR = Neighbour(netns="", link="vxlan1", address="10.5.7.0", mac="02:00:00:00:00:07")
TABLE = NftTable(netns="", family="inet", name="muslin", text="chain forward {\n}")
WANTED: dict[Key, AnyObject] = {obj.key: obj for obj in (DEVICE, ROUTE, NEIGHBOUR, TABLE)}
OWNED = Owned(keys=frozenset({DEVICE.key, TABLE.key}), marked=True)
INTERESTS = Interests(WANTED, OWNED, "eth0", networks=("10.5.0.0/16",), subnets=("10.5.1.0/24",))


def ether(name: str, **more: Any) -> Link:
    return Link(netns="", name=name, options=OtherKind(kind="ether"), **more)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Hint("", None), True),
        (Hint("", ROUTE), False),
        (Hint("", ROUTE, removed=True), True),
        (Hint("", Route(netns="", destination="10.5.7.0/24", link="eth0", protocol=4)), True),
        (Hint("", Route(netns="", destination="192.168.0.0/24", link="eth0", protocol=4)), False),
        (Hint("", Route(netns="", destination="10.5.9.0/24", link="eth0", protocol=PROTOCOL_MUSLIN)), True),
        (Hint("", Route(netns="", destination="10.5.9.0/24", link="eth0", protocol=PROTOCOL_MUSLIN), True), False),
        (
            Hint("", Link(netns="", name="vxlan1", options=DEVICE.options, mtu=1400, alias="muslin:vxlan1", up=True)),
            True,
        ),
        (Hint("", Route(netns="", destination="10.5.7.128/25", via="10.0.0.9", link="eth0")), True),
        (Hint("", Route(netns="", destination="10.5.7.128/25", via="10.0.0.9", link="eth0"), removed=True), True),
        (Hint("", Route(netns="", destination="10.5.1.9/32", link="veth7")), False),  # of a container of this node
        (Hint("", Route(netns="", destination="10.6.0.0/16", link="eth0")), False),
        (Hint("", ether("veth7", up=True)), False),
        (Hint("", ether("veth7"), removed=True), False),
        (Hint("", ether("eth0", up=False)), True),
        (Hint("", ether("eth0"), removed=True), True),
        (Hint("", Address(netns="", link="eth0", address="10.0.0.9/24")), True),
        (Hint("", Address(netns="", link="veth7", address="10.0.0.9/24")), False),
        (Hint("", Address(netns="", link="vxlan1", address="10.9.9.9/24")), True),
        (Hint("", Route(netns="", destination="0.0.0.0/0", link="eth1", protocol=4)), True),
        (Hint("", NEIGHBOUR), False),
        (Hint("", Neighbour(netns="", link="vxlan1", address="10.5.7.0", mac="02:00:00:00:00:99")), True),
        (Hint("", Neighbour(netns="", link="vxlan1", address="10.5.8.0", mac=""), removed=True), False),  # learned
        (Hint("", Address(netns="", link="vxlan1", address="fe80::1/64")), False),  # the kernel's own
        (Hint("", Neighbour(netns="", link="vxlan1", address="10.5.8.0", mac="02:00:00:00:00:99")), True),
        (Hint("", FdbEntry(netns="", link="vxlan9", mac="02:00:00:00:00:99", destination="10.0.0.9")), False),
        (Hint("", NftTable(netns="", family="inet", name="muslin", text="")), True),
        (Hint("", NftTable(netns="", family="ip", name="docker", text="")), False),
    ],
)
def test_only_what_touches_the_network_asks_for_a_look(hint: Hint, expected: bool) -> None:
    assert concerns(hint, INTERESTS) is expected


def test_while_there_is_no_interface_any_link_or_address_asks_for_a_look() -> None:
    nothing = Interests({}, Owned(marked=True), "")
    for obj in (ether("eth9"), Address(netns="", link="eth9", address="10.0.0.9/24")):
        assert concerns(Hint("", obj), nothing)


class HeardWatch:
    """A watch that heard these."""

    def __init__(self, *hints: Hint) -> None:
        self.hints = list(hints)

    def fileno(self) -> int:
        return 7

    def read(self) -> list[Hint]:
        heard, self.hints = self.hints, []
        return heard


class Asked:
    """A reconciler as far as it is asked here."""

    def __init__(self, wanted: dict[Key, AnyObject]) -> None:
        self.wanted = wanted

    def interests(self) -> Interests:
        return INTERESTS._replace(wanted=self.wanted)


def is_due(wanted: dict[Key, AnyObject], *hints: Hint) -> bool:
    return Hints(cast("Watch", HeardWatch(*hints))).is_due(cast("Reconciler", Asked(wanted)))


def test_one_hint_among_many_is_enough_and_all_are_taken() -> None:
    watch = HeardWatch(Hint("", ether("veth1")), Hint("", ROUTE, removed=True), Hint("", ether("veth2")))
    hints = Hints(cast("Watch", watch))
    assert hints.fileno() == 7
    assert hints.is_due(cast("Reconciler", Asked(WANTED)))
    assert watch.hints == []
    assert not hints.is_due(cast("Reconciler", Asked(WANTED)))


def test_whoever_keeps_containers_hears_all_of_it() -> None:
    heard: list[Hint] = []
    told = [Hint("", ether("veth1")), Hint("", None)]
    hints = Hints(cast("Watch", HeardWatch(*told)), heard.extend)
    hints.is_due(cast("Reconciler", Asked(WANTED)))
    assert heard == told


def test_hints_are_judged_while_the_kernel_thread_changes_the_plan() -> None:
    """What is wanted is a dict that another thread writes to: it may be asked, not walked through."""
    wanted = dict(WANTED)
    end = threading.Event()

    def change() -> None:
        number = 0
        while not end.is_set():
            number += 1
            wanted[link_key("", f"link{number % 500}")] = DEVICE
            wanted.pop(link_key("", f"link{(number + 250) % 500}"), None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(300):
            hints = [Hint("", ether(f"link{one}"), removed=True) for one in range(number % 50)]
            is_due(wanted, *hints, Hint("", ROUTE))
    finally:
        end.set()
        thread.join()
