"""A look around a few objects among thousands: what it sees of the fake kernel, and what it leaves unseen."""

from __future__ import annotations

import msgspec

from muslin.kernel.base import Scope
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.fake import FakeKernel
from muslin.model.kernel import AnyObject, Bridge, Key, Link, Netns, NftElement, Sysctl
from muslin.model.ops import Create
from muslin.model.state import DesiredState, Owned
from muslin.plan import sources
from muslin.plan.attach import Attachment, plan


def container(number: int) -> Attachment:
    return Attachment(
        node_netns="",
        netns=f"c{number}",
        node_link=f"mus{number}",
        link="eth0",
        mode="bridge",
        addresses=(f"10.5.1.{number}/24",),
        gateways=("10.5.1.1",),
        bridge="cni0",
        mac=f"02:00:00:00:00:{number:02x}",
        has_netns=True,
        checks_sources=True,
    )


def kernel_with(count: int) -> FakeKernel:
    kernel = FakeKernel()
    bridge = Link(netns="", name="cni0", options=Bridge(), mtu=1500, alias="", master="", up=True)
    for obj in (bridge, sources.table("", "bridge")):
        kernel.objects[obj.key] = obj
    for number in range(2, count + 2):
        kernel.apply([Create(Netns(netns=f"c{number}"))])
        assert converge(kernel, desired(number), MemoryJournal(), scope_of=Scope.around).ok
    return kernel


def desired(number: int) -> DesiredState:
    return DesiredState(plan(container(number)))


def test_of_the_crowded_namespace_it_names_just_the_links_in_question() -> None:
    scope = Scope.around(desired(2))
    assert scope.links == {"": frozenset({"mus2"})}
    assert set(scope.netns) == {"c2", ""}
    assert scope.nft_sets == frozenset()
    assert not scope.nft_elements, "to add one that is there does no harm"
    assert not scope.nft


def test_what_is_owned_is_looked_at_as_well() -> None:
    owned = Owned(keys=frozenset({("link", "", "mus9"), ("link", "c9", "eth0"), *_element_keys(9)}))
    scope = Scope.around(DesiredState(), owned)
    assert scope.links == {"": frozenset({"mus9"})}
    assert scope.netns == ("", "c9")
    assert len(scope.nft_elements) == 2


def _element_keys(number: int) -> set[Key]:
    return {obj.key for obj in plan(container(number)) if isinstance(obj, NftElement)}


def test_another_crowd_may_be_named() -> None:
    changed = DesiredState(tuple(_moved(obj) for obj in desired(2)))
    assert Scope.around(changed, crowded="node").links == {"node": frozenset({"mus2"})}


def _moved(obj: AnyObject) -> AnyObject:
    return msgspec.structs.replace(obj, netns=obj.netns or "node")


def test_a_look_sees_one_of_many_and_a_converge_makes_and_removes_that_alone() -> None:
    kernel = kernel_with(20)
    before = set(kernel.objects)
    seen = kernel.observe(Scope.around(desired(5)))
    on_node = {obj.describe() for obj in seen.objects.values() if obj.netns == ""}
    assert len(on_node) == 1, "the cable"
    ops = plan_ops(kernel, desired(5), Owned(), Scope.around)[1]
    assert all(isinstance(op.object, NftElement) for op in ops)
    owned = Owned(keys=frozenset({("link", "", "mus5"), *_element_keys(5)}))
    report = converge(kernel, DesiredState(), MemoryJournal(owned), scope_of=Scope.around)
    assert len(report.done) == 3
    gone = before - set(kernel.objects)
    assert {key for key in gone if key[1] == ""} == owned.keys
    assert converge(kernel, desired(5), MemoryJournal(), scope_of=Scope.around).ok
    assert set(kernel.objects) == before


def test_settings_are_seen_in_any_case() -> None:
    setting = Sysctl(netns="c2", name="net/ipv4/ip_forward", value="1")
    assert Scope.around(DesiredState((setting,))).sysctls == {("c2", "net/ipv4/ip_forward")}
