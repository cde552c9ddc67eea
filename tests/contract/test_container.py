"""What connecting containers one by one needs of a kernel: looks around a few things, hairpin, sets of pairs.

node: br0 172.16.0.1/24, fd16::1/64 ═══ eth0 of con, and of others
"""

from __future__ import annotations

import errno

import msgspec
import pytest

from muslin.kernel.base import Scope
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.model.kernel import Address, Link, Netns, NftElement, Route, Veth, link_key
from muslin.model.ops import Create, Delete, SetLink
from muslin.model.state import DesiredState, Owned
from muslin.plan import sources
from muslin.plan.attach import Attachment, plan
from tests.contract.kernels import World, world
from tests.contract.network import MAC1, MAC2, Net
from tests.lab.support import wait_until

__all__ = ["world"]
pytestmark = pytest.mark.contract


class Crowd:
    """The network of the drawing, with a container that is connected on its own, by a narrow look."""

    def __init__(self, world: World) -> None:
        self.world, self.net = world, Net(world)
        self.table = sources.table(self.net.node, "bridge")
        self.inside = Netns(netns=world.netns("own"))
        world.build([*self.net.base, self.table, self.inside])

    def scope(self, desired: DesiredState, owned: Owned | None = None) -> Scope:
        return Scope.around(desired, owned, crowded=self.net.node)

    def attachment(self, mode: str = "bridge") -> Attachment:
        return Attachment(
            node_netns=self.net.node,
            netns=self.inside.netns,
            node_link="mus1",
            link="eth0",
            mode=mode,  # type: ignore[arg-type]
            addresses=("172.16.0.7/24", "fd16::7/64"),
            gateways=("172.16.0.1", "fd16::1"),
            bridge="br0" if mode == "bridge" else None,
            has_netns=True,
            mac="02:00:00:00:00:07",
            node_mac="02:00:00:00:00:08",
            alias="muslin-cni:own/eth0",
            hairpin=True if mode == "bridge" else None,
            checks_sources=mode == "bridge",
        )


@pytest.fixture
def crowd(world: World) -> Crowd:
    return Crowd(world)


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_one_container_is_made_and_removed_by_looks_around_it(crowd: Crowd, mode: str) -> None:
    world, desired = crowd.world, DesiredState(plan(crowd.attachment(mode)))
    before = set(world.by_hand.observe(Scope.of(DesiredState(tuple(crowd.net.base)))).objects)
    journal = MemoryJournal(Owned(sparing=True))
    report = converge(world.kernel, desired, journal, scope_of=crowd.scope)
    assert report.ok, [result.describe() for result in (*report.failed, *report.skipped)]
    assert plan_ops(world.kernel, desired, journal.owned, crowd.scope)[1] == ()
    assert plan_ops(world.kernel, desired, journal.owned)[1] == (), "a look at all sees the same"
    assert converge(world.kernel, DesiredState(), journal, scope_of=crowd.scope).ok
    after = set(world.by_hand.observe(Scope.of(DesiredState(tuple(crowd.net.base)))).objects)
    assert after == before
    assert converge(world.kernel, desired, MemoryJournal(), scope_of=crowd.scope).ok, "and again"


def test_a_narrow_look_sees_the_links_that_are_named_with_what_lies_on_them_and_no_others(crowd: Crowd) -> None:
    world, node = crowd.world, crowd.net.node
    scope = Scope(netns=(node,), links={node: frozenset({"v1", "br0", "nobody"})})
    seen = world.kernel.observe(scope).objects.values()
    assert {obj.name for obj in seen if isinstance(obj, Link)} == {"v1", "br0"}
    addresses = {obj.address for obj in seen if isinstance(obj, Address) and not obj.address.startswith("fe80")}
    assert addresses == {"172.16.0.1/24", "fd16::1/64"}
    assert not [obj for obj in seen if isinstance(obj, Route) and obj.link == "up0"]
    (near,) = [obj for obj in seen if isinstance(obj, Link) and obj.name == "v1"]
    assert near.master == "br0", "the name of a link that was asked for, or not"
    alone = world.kernel.observe(Scope(netns=(node,), links={node: frozenset({"v1"})})).objects
    assert alone[near.key].master == "br0"  # type: ignore[union-attr]
    nothing = world.kernel.observe(Scope(netns=(node,), links={node: frozenset()})).objects.values()
    assert {type(obj) for obj in nothing} == {Netns}


def test_a_narrow_look_in_both_namespaces_finds_the_two_ends_of_a_cable(crowd: Crowd) -> None:
    net = crowd.net
    scope = Scope(netns=(net.node, net.con), links={net.node: frozenset({"v1"})})
    seen = crowd.world.kernel.observe(scope).objects
    assert seen[net.near.key].options == Veth(peer_netns=net.con, peer="eth0")  # type: ignore[union-attr]
    assert seen[net.far.key].options == Veth(peer_netns=net.node, peer="v1")  # type: ignore[union-attr]


def test_a_route_to_the_gateway_alone_makes_it_reachable(crowd: Crowd) -> None:
    world, inside = crowd.world, crowd.inside.netns
    far = Link(netns=inside, name="eth0", options=Veth(peer_netns=crowd.net.node, peer="v9"), up=True)
    near = Link(netns=crowd.net.node, name="v9", options=Veth(peer_netns=inside, peer="eth0"), up=True)
    own = Address(netns=inside, link="eth0", address="172.16.0.7/32")
    way = Route(netns=inside, destination="0.0.0.0/0", via="172.16.0.1", link="eth0")
    base = [*crowd.net.base, crowd.inside, crowd.table, near, far, own]
    world.build(base)
    (result,) = world.kernel.apply([Create(way)])
    assert result.errno == errno.ENETUNREACH
    world.build([*base, Route(netns=inside, destination="172.16.0.1/32", link="eth0"), way])


# ---- hairpin ---------------------------------------------------------------------------------------------


def test_a_port_sends_back_what_came_from_it_or_not(crowd: Crowd) -> None:
    world, net = crowd.world, crowd.net
    for hairpin in (True, False, True):
        port = msgspec.structs.replace(net.near, hairpin=hairpin)
        base = [port if obj is net.near else obj for obj in net.base]
        world.build([*base, crowd.table, crowd.inside])
        assert world.look(port)[port.key].hairpin == hairpin  # type: ignore[union-attr]


def test_hairpin_that_somebody_changed_goes_back_and_what_is_not_wished_for_stays(crowd: Crowd) -> None:
    world, net = crowd.world, crowd.net
    port = msgspec.structs.replace(net.near, hairpin=True)
    base = [*(port if obj is net.near else obj for obj in net.base), crowd.table, crowd.inside]
    world.build(base)
    world.change_by_hand(SetLink(msgspec.structs.replace(port, hairpin=False), "hairpin"))
    assert len(world.build(base).results) == 1
    assert world.ops_left([*net.base, crowd.table, crowd.inside]) == []


# ---- sets of pairs ---------------------------------------------------------------------------------------


def pairs(crowd: Crowd) -> list[NftElement]:
    addresses = ("172.16.0.7", "fd16::7")
    found = [*sources.elements(crowd.net.node, "bridge", "mus1", MAC1, addresses)]
    return [*found, *sources.elements(crowd.net.node, "bridge", "a-long-name-15b", MAC2, addresses)]


def test_elements_of_two_parts_are_made_found_and_removed_one_by_one(crowd: Crowd) -> None:
    kernel, elements = crowd.world.kernel, pairs(crowd)
    scope = Scope(netns=(crowd.net.node,), nft_elements=frozenset(elements), links={crowd.net.node: frozenset()})
    assert not kernel.observe(scope).only(NftElement)
    assert {result.outcome for result in kernel.apply([Create(element) for element in elements])} == {"done"}
    assert set(kernel.observe(scope).only(NftElement)) == set(elements)
    (gone,) = kernel.apply([Delete(elements[0])])
    assert gone.outcome == "done"
    assert set(kernel.observe(scope).only(NftElement)) == set(elements[1:])
    one = Scope(netns=(crowd.net.node,), nft_elements=frozenset(elements[:2]), links={crowd.net.node: frozenset()})
    assert kernel.observe(one).only(NftElement) == [elements[1]]


def test_a_set_that_is_read_whole_and_elements_asked_for_one_by_one_say_the_same(crowd: Crowd) -> None:
    kernel, elements = crowd.world.kernel, pairs(crowd)
    kernel.apply([Create(element) for element in elements])
    names = {element.set for element in elements}
    whole = Scope(
        netns=(crowd.net.node,), nft_sets=frozenset((crowd.net.node, "bridge", sources.TABLE, name) for name in names)
    )
    assert set(kernel.observe(whole).only(NftElement)) == set(elements)


def test_elements_without_their_table_are_refused_and_not_seen(crowd: Crowd) -> None:
    world, elements = crowd.world, pairs(crowd)
    world.change_by_hand(Delete(crowd.table))
    results = world.kernel.apply([Create(element) for element in elements])
    assert {result.outcome for result in results} == {"failed"}
    scope = Scope(netns=(crowd.net.node,), nft_elements=frozenset(elements))
    assert not world.kernel.observe(scope).only(NftElement)
    assert world.kernel.apply([Delete(elements[0])])[0].outcome == "done"


def test_a_cable_that_was_cut_by_hand_counts_as_removed(crowd: Crowd) -> None:
    world, attachment = crowd.world, crowd.attachment()
    journal = MemoryJournal()
    assert converge(world.kernel, DesiredState(plan(attachment)), journal, scope_of=crowd.scope).ok
    cable = world.kernel.observe(Scope(netns=(crowd.net.node,))).objects[link_key(crowd.net.node, "mus1")]
    world.change_by_hand(Delete(cable))
    (result,) = world.kernel.apply([Delete(cable)])
    assert result.outcome == "done"
    assert converge(world.kernel, DesiredState(), journal, scope_of=crowd.scope).ok
    assert converge(world.kernel, DesiredState(plan(attachment)), journal, scope_of=crowd.scope).ok


def test_a_namespace_that_was_looked_into_and_let_go_dies_with_its_name(crowd: Crowd) -> None:
    """And the cable with it: its owner may never tell us."""
    world, attachment = crowd.world, crowd.attachment()
    desired = DesiredState(plan(attachment))
    assert converge(world.kernel, desired, MemoryJournal(), scope_of=crowd.scope).ok
    again = plan_ops(world.kernel, desired, Owned(), crowd.scope)[1]
    assert all(isinstance(op.object, NftElement) for op in again), "which are added without a look"
    world.kernel.forget(crowd.inside.netns)
    world.change_by_hand(Delete(crowd.inside))
    cable = link_key(crowd.net.node, "mus1")
    wait_until(lambda: cable not in world.kernel.observe(Scope(netns=(crowd.net.node,))).objects, "the cable is gone")
