"""Tables and the elements of their sets: what a replacement of the table leaves as it was.

one namespace, one table `inet ours`:   set a, set b   chain c
"""

from __future__ import annotations

import pytest

from muslin.model.kernel import AnyObject, Netns, NftElement, NftTable
from muslin.model.ops import Create, Delete, Replace
from tests.contract.kernels import World, world

__all__ = ["world"]
pytestmark = pytest.mark.contract

SETS = ("a", "b")


@pytest.fixture
def netns(world: World) -> Netns:
    return Netns(netns=world.netns("node"))


def table(netns: Netns, rules: str, sets: tuple[str, ...] = SETS, kind: str = "ipv4_addr") -> NftTable:
    blocks = [f"set {name} {{\ntype {kind}\n}}" for name in sets]
    chain = f"chain c {{\ntype filter hook input priority filter; policy accept;\n{rules}\n}}"
    return NftTable(netns=netns.netns, family="inet", name="ours", text="\n".join([*blocks, chain]))


def elements(netns: Netns, name: str, *addresses: str) -> list[AnyObject]:
    return [
        NftElement(netns=netns.netns, family="inet", table="ours", set=name, address=address) for address in addresses
    ]


def there(world: World, *objects: AnyObject) -> set[tuple[str | int, ...]]:
    return {key[4:] for key in world.look(*objects) if key[0] == "nft-element"}


def test_elements_live_through_a_replacement_of_their_table(world: World, netns: Netns) -> None:
    ours = [*elements(netns, "a", "10.0.0.1", "10.0.0.2"), *elements(netns, "b", "10.0.0.3")]
    world.build([netns, table(netns, "ip saddr @a counter accept"), *ours])
    changed = table(netns, "ip saddr @a counter drop")
    report = world.build([netns, changed, *ours])
    assert [(type(result.op), result.op.key) for result in report.results] == [(Replace, changed.key)]
    assert there(world, changed) == {("a", "10.0.0.1"), ("a", "10.0.0.2"), ("b", "10.0.0.3")}


def test_elements_that_are_wanted_no_more_go_after_the_replacement_and_new_ones_come(
    world: World, netns: Netns
) -> None:
    world.build([netns, table(netns, "accept"), *elements(netns, "a", "10.0.0.1", "10.0.0.2")])
    changed = table(netns, "drop")
    report = world.build([netns, changed, *elements(netns, "a", "10.0.0.2", "10.0.0.3")])
    assert [type(result.op) for result in report.results] == [Replace, Create, Delete]
    assert there(world, changed) == {("a", "10.0.0.2"), ("a", "10.0.0.3")}


def test_a_set_that_is_declared_anew_is_filled_anew(world: World, netns: Netns) -> None:
    world.build([netns, table(netns, "accept"), *elements(netns, "a", "10.0.0.1")])
    six = table(netns, "accept", kind="ipv6_addr")
    world.build([netns, six, *elements(netns, "a", "fd00::1")])
    assert there(world, six) == {("a", "fd00::1")}
    world.build([netns, table(netns, "accept", sets=("b",))])
    assert there(world, six) == set()


def test_a_table_that_somebody_emptied_gets_all_back(world: World, netns: Netns) -> None:
    wanted: list[AnyObject] = [netns, table(netns, "accept"), *elements(netns, "a", "10.0.0.1")]
    world.build(wanted)
    world.change_by_hand(Replace(table(netns, "drop", sets=())))
    world.build(wanted)
    assert there(world, *wanted) == {("a", "10.0.0.1")}
