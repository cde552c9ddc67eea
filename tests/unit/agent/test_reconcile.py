"""Looks and steps of one host, against a kernel in memory.

host1 10.0.0.1 with 10.5.1.0/24 ── peers 10.0.0.N with 10.5.N.0/24 on one layer-2 network
"""

from __future__ import annotations

import errno
import json
import time
from typing import Any

import msgspec
import pytest

from muslin.agent.reconcile import HostOptions, Interests, Outcome, Reconciler, Wish
from muslin.agent.underlay import UnderlayOptions
from muslin.errors import MuslinError, UsageError
from muslin.kernel.converge import MemoryJournal
from muslin.kernel.fake import FakeKernel
from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
    Address,
    AnyObject,
    Bridge,
    Link,
    Nexthop,
    OtherKind,
    Route,
    Vxlan,
    link_key,
)
from muslin.model.lease import Advertisement, Lease
from muslin.model.network import Tunnel
from muslin.model.ops import Create, Delete, Op
from muslin.model.state import Owned
from muslin.wire.flannel_config import parse_network_config
from tests.unit.agent.hosts import ToyTunnels

PROTOCOL_STATIC = 4  # rtnetlink.h RTPROT_STATIC


class World:
    """A reconciler with what it works on; ``now`` is its clock."""

    def __init__(self, bridge: str = "") -> None:
        self.kernel, self.tunnels, self.now = FakeKernel(), ToyTunnels(), 100.0
        self.put(Link(netns="", name="eth0", options=OtherKind(kind="ether"), mtu=1500, up=True))
        self.put(Address(netns="", link="eth0", address="10.0.0.1/24"))
        host = HostOptions(name="host1", bridge=bridge, underlay=UnderlayOptions(iface=("eth0",)))
        self.journal = MemoryJournal(Owned(marked=True))
        self.reconciler = Reconciler(self.kernel, self.journal, self.tunnels, host, lambda: self.now)
        self.applied: list[Op] = []
        apply = self.kernel.apply

        def noted(ops, *rest, **named):  # type: ignore[no-untyped-def]
            self.applied.extend(ops)
            return apply(ops, *rest, **named)

        self.kernel.apply = noted  # type: ignore[method-assign]

    def put(self, *objects: AnyObject) -> None:
        for obj in objects:
            self.kernel.objects[obj.key] = obj

    def look(self, *numbers: int, **more: Any) -> Outcome:
        return self.reconciler.look(wish(*numbers, **more))

    def follow(self, *numbers: int, **more: Any) -> Outcome:
        return self.reconciler.follow(wish(*numbers, **more))

    @property
    def routes(self) -> set[str]:
        return {obj.destination for obj in self.kernel.objects.values() if isinstance(obj, Route)}


def wish(*numbers: int, backend: str = "vxlan", **options: object) -> Wish:
    config = parse_network_config(
        json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": backend, **options}}).encode()
    )
    leases = tuple(peer(number, backend) for number in numbers)
    return Wish(config=config, subnets=("10.5.1.0/24",), leases=leases, vtep_mac="02:00:00:00:00:01")


def peer(number: int, backend: str = "vxlan") -> Lease:
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02}"} if backend == "vxlan" else {}
    says = Advertisement(addresses=(f"10.0.0.{number}",), backend=backend, data=data)
    return Lease(subnets=(f"10.5.{number}.0/24",), advertisement=says)


# ---- looks and steps ------------------------------------------------------------------------------------------


def test_a_first_look_makes_everything_and_calls_none_of_it_a_repair() -> None:
    world = World()
    outcome = world.look(2, 3)
    assert (outcome.whole, outcome.changed) == (True, ("10.5.2.0-24", "10.5.3.0-24"))
    assert world.routes == {"10.5.2.0/24", "10.5.3.0/24"}
    assert len(outcome.done) >= outcome.objects
    assert (outcome.repairs, outcome.failures, outcome.troubles) == ((), (), ())
    assert (outcome.mtu, outcome.own_failed) == (1450, False)
    assert outcome.advertisement is not None
    assert outcome.advertisement.data == {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}
    again = world.look(2, 3)
    assert (again.done, again.changed) == ((), ())
    assert set(again.split) == {"plan", "observe", "apply", "compare"}
    assert sum(again.split.values()) == pytest.approx(again.duration_s)


def test_a_step_does_what_changed_and_does_not_look() -> None:
    world = World()
    world.look(2)

    def blind(_: object) -> None:
        raise AssertionError("a step does not look")

    world.kernel.observe = blind  # type: ignore[assignment, method-assign]
    outcome = world.follow(3)
    assert (outcome.whole, outcome.changed, outcome.look_again) == (False, ("10.5.2.0-24", "10.5.3.0-24"), False)
    assert world.routes == {"10.5.3.0/24"}
    assert world.follow(3).done == ()


def test_steps_end_where_a_look_would() -> None:
    stepwise, at_once = World(), World()
    stepwise.look()
    for numbers in ((2,), (2, 3, 4), (4, 5), (5, 6, 7)):
        stepwise.follow(*numbers)
    at_once.look(5, 6, 7)
    assert stepwise.kernel.objects == at_once.kernel.objects
    assert stepwise.look(5, 6, 7).done == ()


def test_a_step_with_another_configuration_is_a_look() -> None:
    world = World()
    world.look(2)
    outcome = world.follow(2, VNI=7)
    assert outcome.whole
    assert outcome.repairs == ()
    assert link_key("", "vxlan7") in world.kernel.objects
    assert link_key("", "vxlan1") not in world.kernel.objects


def test_a_step_that_the_kernel_refuses_asks_for_a_look() -> None:
    world = World()
    world.look(2)
    world.kernel.refuse = lambda op: errno.EEXIST if isinstance(op.object, Route) else 0
    outcome = world.follow(2, 3)
    assert outcome.look_again
    assert set(outcome.failed_leases) == {"10.5.3.0-24"}
    assert "10.5.3.0/24" in outcome.failed_leases["10.5.3.0-24"]
    world.kernel.refuse = lambda _: 0
    again = world.look(2, 3)
    assert (again.failures, again.repairs) == ((), ()), "what was refused before is no repair"


def test_a_kernel_that_cannot_be_read_changes_nothing_and_nothing_of_it_is_a_repair_later() -> None:
    world = World()
    world.look(2)
    before, observe = dict(world.kernel.objects), world.kernel.observe

    def fail(_: object) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    world.kernel.observe = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(OSError, match="No buffer space"):
        world.look(2, 3)
    assert world.kernel.objects == before
    world.kernel.observe = observe  # type: ignore[method-assign]
    outcome = world.look(2, 3)
    assert (outcome.repairs, outcome.changed) == ((), ("10.5.3.0-24",))
    assert world.routes == {"10.5.2.0/24", "10.5.3.0/24"}


def test_what_somebody_took_away_is_a_repair() -> None:
    world = World()
    world.look(2, 3)
    route = next(obj for obj in world.kernel.objects.values() if isinstance(obj, Route))
    world.kernel._remove(route.key)
    outcome = world.look(2, 3)
    assert [op.key for op in outcome.repairs] == [route.key]


# ---- what fails -----------------------------------------------------------------------------------------------


def test_a_failure_is_told_since_it_began_and_with_its_latest_reason() -> None:
    world = World()
    reasons = [errno.ENOBUFS, errno.EPERM]
    world.kernel.refuse = lambda op: reasons[0] if isinstance(op.object, Route) else 0
    first = world.look(2)
    world.now, reasons[0] = 200.0, reasons[1]
    second = world.look(2)
    (was,), (now,) = first.failures, second.failures
    assert (was.since, now.since) == (100.0, 100.0)
    assert (was.result.errno, now.result.errno) == (errno.ENOBUFS, errno.EPERM)
    assert "not permitted" in now.words
    world.kernel.refuse = lambda _: 0
    assert world.look(2).failures == ()


def test_what_stands_on_something_refused_is_told_by_what_was_refused() -> None:
    world = World()
    world.kernel.refuse = lambda op: errno.EOPNOTSUPP if isinstance(op.object, Link) else 0
    outcome = world.look(2)
    device = next(one for one in outcome.failures if one.result.op.key == link_key("", "vxlan1"))
    assert device.result.errno == errno.EOPNOTSUPP
    assert outcome.own_failed
    assert outcome.refused > 2


def test_one_peer_that_fails_delays_nobody() -> None:
    world = World()
    world.kernel.refuse = lambda op: errno.EINVAL if getattr(op.object, "destination", "") == "10.5.3.0/24" else 0
    outcome = world.look(2, 3, 4)
    assert world.routes == {"10.5.2.0/24", "10.5.4.0/24"}
    assert set(outcome.failed_leases) == {"10.5.3.0-24"}
    assert not outcome.own_failed


def test_what_the_kernel_refused_is_left_to_a_look_when_its_lease_goes() -> None:
    world = World()
    world.look(backend="host-gw")
    wanted = world.look(2, backend="host-gw")
    hop = next(op.object for op in wanted.done if isinstance(op.object, Nexthop))
    world.look(backend="host-gw")
    theirs = msgspec.structs.replace(hop, via="10.0.0.99", protocol=PROTOCOL_STATIC)
    world.put(theirs)
    assert world.follow(2, backend="host-gw").look_again
    world.look(2, backend="host-gw")
    world.applied.clear()
    outcome = world.follow(backend="host-gw")
    assert outcome.look_again
    assert [op for op in world.applied if isinstance(op, Delete) and isinstance(op.object, Nexthop | Route)] == []
    assert world.look(backend="host-gw").failures == ()
    assert world.kernel.objects[hop.key] == theirs


# ---- the interface to other nodes -----------------------------------------------------------------------------


def test_another_address_is_followed_within_one_look() -> None:
    world = World()
    world.look(2)
    del world.kernel.objects[Address(netns="", link="eth0", address="10.0.0.1/24").key]
    world.put(Address(netns="", link="eth0", address="10.0.0.9/24"))
    outcome = world.look(2)
    assert outcome.advertisement is not None
    assert outcome.advertisement.addresses == ("10.0.0.9",)
    assert outcome.failures == ()
    assert outcome.repairs == ()
    device = world.kernel.objects[link_key("", "vxlan1")]
    assert isinstance(device, Link)
    assert isinstance(device.options, Vxlan)
    assert device.options.local == "10.0.0.9"


def test_an_interface_that_is_gone_is_said_until_a_look_finds_it_again() -> None:
    world = World()
    world.look(2)
    link = world.kernel.objects.pop(link_key("", "eth0"))
    assert "no interface" in world.look(2).troubles[0]
    step = world.follow(2, 3)
    assert "no interface" in step.troubles[0]
    assert step.underlay is not None
    world.put(link)
    assert world.look(2, 3).troubles == ()


def test_without_an_interface_nothing_can_be_chosen() -> None:
    world = World()
    world.kernel.objects.clear()
    with pytest.raises(UsageError, match="--iface eth0"):
        world.reconciler.choose()


def test_the_mac_of_an_own_device_is_known_again_and_that_of_another_s_is_not() -> None:
    world = World()
    world.put(
        Link(netns="", name="vxlan8", options=Vxlan(vni=8, local="10.0.0.1", port=1), mac="02:00:00:00:00:88", alias="")
    )
    world.reconciler.choose()
    assert world.reconciler.mac_of_own_device() == ""
    world.look(2)
    fresh = Reconciler(world.kernel, MemoryJournal(Owned(marked=True)), ToyTunnels(), HostOptions(name="host1"))
    fresh._host = msgspec.structs.replace(fresh._host, underlay=UnderlayOptions(iface=("eth0",)))
    fresh.choose()
    assert fresh.mac_of_own_device() == "02:00:00:00:00:01"


# ---- withdrawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
def test_a_withdrawal_leaves_what_was_there_before(backend: str) -> None:
    world = World()
    world.put(Route(netns="", destination="10.77.0.0/16", link="eth0", protocol=PROTOCOL_STATIC))
    before = dict(world.kernel.objects)
    world.look(2, 3, backend=backend)
    assert world.kernel.objects != before
    assert (world.tunnels.running is not None) == (backend == "udp")
    outcome = world.reconciler.withdraw()
    assert world.kernel.objects == before
    assert world.tunnels.running is None
    assert (outcome.objects, outcome.tunnel, outcome.advertisement) == (0, None, None)
    assert outcome.underlay is not None
    assert world.reconciler.interests().wanted == {}
    assert world.reconciler.withdraw().done == ()


def test_a_withdrawal_finds_by_marks_what_no_record_names() -> None:
    world = World()
    before = dict(world.kernel.objects)
    world.look(2)
    host = HostOptions(name="host1", underlay=UnderlayOptions(iface=("eth0",)))
    forgetful = Reconciler(world.kernel, MemoryJournal(Owned(marked=True)), ToyTunnels(), host)
    forgetful.withdraw()
    kept = {key: obj for key, obj in world.kernel.objects.items() if key not in before}
    assert kept == {}


# ---- the bridge -----------------------------------------------------------------------------------------------


def port(name: str, master: str = "muslin0") -> Link:
    return Link(netns="", name=name, options=OtherKind(kind="veth"), mtu=1500, up=True, master=master, mac="")


@pytest.mark.parametrize("something_else_fails", [False, True])
def test_a_bridge_made_anew_gets_its_ports_back(something_else_fails: bool) -> None:
    world = World(bridge="muslin0")
    world.look(2)
    world.put(port("veth1"), port("veth2"), port("veth3", master=""))
    world.look(2)
    if something_else_fails:  # then there is a second pass, which sees the new bridge
        world.put(Route(netns="", destination="10.5.99.0/24", link="eth0", protocol=PROTOCOL_MUSLIN))
        world.kernel.refuse = lambda op: errno.EINVAL if getattr(op.object, "destination", "") == "10.5.3.0/24" else 0
    world.kernel._remove(link_key("", "muslin0"))
    world.put(msgspec.structs.replace(port("veth2"), master="other0"))
    world.look(2, 3)
    masters = {name: getattr(world.kernel.objects[link_key("", name)], "master", "") for name in ("veth1", "veth3")}
    assert masters == {"veth1": "muslin0", "veth3": ""}
    assert getattr(world.kernel.objects[link_key("", "veth2")], "master", "") == "other0", "it has gone elsewhere"


def test_a_bridge_of_others_keeps_its_name_for_itself() -> None:
    world = World(bridge="cni0")
    bridge = Link(netns="", name="cni0", options=Bridge(), mtu=1500, mac="", alias="", master="", up=True)
    world.put(bridge)
    world.look(2)
    assert Address(netns="", link="cni0", address="10.5.1.1/24").key in world.kernel.objects
    world.reconciler.withdraw()
    assert world.kernel.objects[bridge.key] == bridge
    assert Address(netns="", link="cni0", address="10.5.1.1/24").key not in world.kernel.objects


# ---- the tunnel -----------------------------------------------------------------------------------------------


class StubbornTunnels(ToyTunnels):
    """A tunnel that does not start until it may."""

    may_start = False

    def converge(self, tunnel: Tunnel | None) -> None:
        if tunnel is not None and not self.may_start:
            raise MuslinError("the tunnel does not start: no /dev/net/tun")
        super().converge(tunnel)


def test_a_tunnel_that_does_not_start_is_said_until_it_does_and_the_rest_goes_on() -> None:
    world = World()
    world.reconciler._tunnels = tunnels = StubbornTunnels()
    outcome = world.look(2, backend="udp")
    assert outcome.tunnel_is_down
    assert outcome.troubles == ("the tunnel does not start: no /dev/net/tun",)
    assert outcome.done
    unchanged = world.follow(2, backend="udp")
    assert unchanged.troubles == outcome.troubles, "a step that does not concern it does not unsay it"
    tunnels.may_start = True
    outcome = world.follow(2, 3, backend="udp")
    assert (outcome.tunnel_is_down, outcome.troubles) == (False, ())
    assert tunnels.running is not None


def test_a_tunnel_that_ended_is_told_once() -> None:
    world = World()
    world.look(2, backend="udp")
    world.tunnels.words = "the tunnel does not run: killed"
    assert world.reconciler.check_tunnel()
    assert world.look(2, backend="udp").tunnel_ended == "the tunnel does not run: killed"
    world.tunnels.words = ""
    assert world.look(2, backend="udp").tunnel_ended == ""


# ---- routes of others in the way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "named"),
    [
        (Route(netns="", destination="10.5.3.128/25", link="eth0", protocol=PROTOCOL_STATIC), "10.5.3.0-24"),
        (Route(netns="", destination="10.5.2.7/32", link="eth0", protocol=PROTOCOL_STATIC), "10.5.2.0-24"),
        (Route(netns="", destination="10.5.1.7/32", link="veth1", protocol=PROTOCOL_STATIC), ""),  # an own container
        (Route(netns="", destination="10.5.4.0/25", link="eth0", protocol=PROTOCOL_STATIC), ""),  # nobody's
        (Route(netns="", destination="10.5.0.0/16", link="eth0", protocol=PROTOCOL_STATIC), ""),  # shorter than ours
        (Route(netns="", destination="10.5.3.0/25", link="eth0", protocol=PROTOCOL_STATIC, table=100), ""),
        (Route(netns="", destination="192.168.0.0/24", link="eth0", protocol=PROTOCOL_STATIC), ""),
        (Route(netns="", destination="10.5.3.0/25", link="vxlan1", protocol=PROTOCOL_STATIC), ""),
    ],
)
def test_a_route_that_leads_a_part_of_a_peer_elsewhere_is_told(route: Route, named: str) -> None:
    world = World()
    world.look(2, 3)
    world.put(route)
    troubles = world.look(2, 3).troubles
    assert len(troubles) == bool(named)
    assert named in "".join(troubles)
    assert world.kernel.objects[route.key] == route


def test_a_thousand_containers_of_this_host_beside_a_thousand_peers_cost_no_time() -> None:
    world = World()
    leases = tuple(
        Lease(
            subnets=(f"10.5.{number >> 4}.{(number & 15) << 4}/28",),
            advertisement=Advertisement(addresses=(f"10.0.{number >> 8}.{number & 255}",), backend="alloc"),
        )
        for number in range(256, 1256)
    )
    whole = msgspec.structs.replace(wish(backend="alloc"), leases=leases)
    world.reconciler.look(whole)
    for number in range(1, 250):
        world.put(Route(netns="", destination=f"10.5.1.{number}/32", link="eth0", protocol=PROTOCOL_STATIC))
        world.put(Route(netns="", destination=f"10.5.2.{number}/32", link="eth0", protocol=PROTOCOL_STATIC))
    begun = time.process_time()
    world.reconciler.look(whole)
    assert time.process_time() - begun < 0.5  # a comparison of each with each took 2 s


# ---- what others may see meanwhile ----------------------------------------------------------------------------


def test_interests_are_there_at_any_time() -> None:
    world = World()
    assert world.reconciler.interests() == Interests({}, Owned(marked=True), "")
    world.look(2)
    interests = world.reconciler.interests()
    assert link_key("", "vxlan1") in interests.wanted
    assert link_key("", "vxlan1") in interests.owned.keys
    assert interests.underlay == "eth0"
    assert interests.subnets


def test_ownership_is_written_down_before_anything_is_made() -> None:
    world = World()
    order: list[str] = []
    record = world.journal.record

    def noted(owned: Owned) -> None:
        order.append("record")
        record(owned)

    world.journal.record = noted  # type: ignore[method-assign]
    apply = world.kernel.apply

    def applied(ops, *rest, **named):  # type: ignore[no-untyped-def]
        order.extend("create" for op in ops if isinstance(op, Create) and isinstance(op.object, Link))
        return apply(ops, *rest, **named)

    world.kernel.apply = applied  # type: ignore[method-assign]
    world.look(2)
    assert order[:2] == ["record", "create"]
