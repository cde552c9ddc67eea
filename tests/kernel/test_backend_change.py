"""A node in use changes its backend: at no moment is there no way to a peer, in either family.

node ── up0 10.0.0.1/24, fd10::1/64 ── three peers 10.0.0.2.., fd10::2.. with 172.20.N.0/24, fd20:N::/64 behind them

The kernel is asked for the way to each peer's subnet ahead of every single operation: so no gap is too short to be
seen. IPv6 refuses some next hops where IPv4 does not (ip6_route_check_nh_onlink, net/ipv6/route.c).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from muslin.backends import host_gw, vxlan
from muslin.kernel.converge import MemoryJournal, converge
from muslin.kernel.linux import LinuxKernel
from muslin.model.kernel import PROTOCOL_MUSLIN, Address, AnyObject, Bridge, Link, Netns, Nexthop, Route
from muslin.model.network import BackendPlan, LocalNode, Peer
from muslin.model.ops import Op, Replace
from muslin.model.state import DesiredState, Owned
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import RouteRecord
from tests.contract.kernels import NEEDS_ROOT, World

pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

NUMBERS = (2, 3, 4)
TARGETS = [target for n in NUMBERS for target in (f"172.20.{n}.9", f"fd20:{n}::9")]
VXLAN = vxlan.Options(device_per_family=True)


@pytest.fixture
def world() -> Iterator[World]:
    made = World("linux")
    made.journal = MemoryJournal(Owned(marked=True))
    try:
        yield made
    finally:
        made.close()


def local(world: World) -> LocalNode:
    return LocalNode(
        name="node",
        netns=world.netns("node"),
        underlay_link="up0",
        underlay_mtu=1500,
        addresses=("10.0.0.1", "fd10::1"),
        subnets=("172.20.1.0/24", "fd20:1::/64"),
        networks=("172.20.0.0/16", "fd20::/32"),
        vtep_mac="02:00:00:00:00:01",
        protocol=PROTOCOL_MUSLIN,
    )


def peers() -> list[Peer]:
    return [
        Peer(
            name=f"peer{n}",
            addresses=(f"10.0.0.{n}", f"fd10::{n}"),
            subnets=(f"172.20.{n}.0/24", f"fd20:{n}::/64"),
            link="up0",
            vtep_mac=f"02:00:00:00:00:0{n}",
        )
        for n in NUMBERS
    ]


def state(world: World, *plans: BackendPlan) -> DesiredState:
    netns = world.netns("node")
    underlay: list[AnyObject] = [
        Netns(netns=netns),
        Link(netns=netns, name="up0", options=Bridge(), up=True),
        *(Address(netns=netns, link="up0", address=text) for text in ("10.0.0.1/24", "fd10::1/64")),
    ]
    return DesiredState((*underlay, *(obj for plan in plans for obj in plan.state)))


def by_host_gw(world: World, use_nexthops: bool) -> DesiredState:
    node = local(world)
    return state(world, host_gw.plan_own(node), host_gw.plan_peers(node, peers(), use_nexthops=use_nexthops))


def by_vxlan(world: World, use_nexthops: bool) -> DesiredState:
    node = local(world)
    planned = vxlan.plan_peers(node, peers(), VXLAN, use_nexthops=use_nexthops)
    return state(world, vxlan.plan_own(node, VXLAN), planned)


class WayFinder:
    """Asks the kernel which route leads to each target."""

    def __init__(self, netns: str) -> None:
        self._kernel = LinuxKernel()
        self._session = self._kernel.sessions.get(netns)
        self.seen: dict[str, set[str]] = {target: set() for target in TARGETS}

    def look(self, _: Op | None = None) -> None:
        """OSError (ENETUNREACH) when there is no way to one of them."""
        self._session.forget_links()
        names = {link.ifindex: link.name for link in self._session.links()}
        for target in TARGETS:
            (message,) = self._session.netlink.ask(rtnetlink.route_get(target))
            record = rtnetlink.parse_record(message)
            assert isinstance(record, RouteRecord)
            self.seen[target].add(names[record.ifindex])

    def close(self) -> None:
        self._kernel.close()


@pytest.mark.parametrize("use_nexthops", [True, False], ids=["next hop objects", "plain routes"])
def test_there_is_a_way_to_every_peer_ahead_of_every_operation(world: World, use_nexthops: bool) -> None:
    gateways, overlay = by_host_gw(world, use_nexthops), by_vxlan(world, use_nexthops)
    assert converge(world.kernel, gateways, world.journal).ok
    finder = WayFinder(world.netns("node"))
    try:
        for wanted in (overlay, gateways, overlay):
            report = converge(world.kernel, wanted, world.journal, finder.look, one_by_one=True)
            assert report.ok, [result.describe() for result in report.failed]
            finder.look()
            assert world.ops_left(wanted) == []
            turned = [result.op.object for result in report.results if isinstance(result.op, Replace)]
            kind = Nexthop if use_nexthops else Route
            assert len([obj for obj in turned if isinstance(obj, kind)]) == len(TARGETS), "each in one step"
    finally:
        finder.close()
    assert finder.seen == {target: {"up0", "vxlan6.1" if ":" in target else "vxlan1"} for target in TARGETS}, (
        "each was seen on both ways"
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_routes_come_to_use_next_hop_objects_and_leave_them_without_a_gap(world: World, backwards: bool) -> None:
    steps = [by_host_gw(world, use_nexthops=False), by_vxlan(world, use_nexthops=True)]
    steps = steps[::-1] if backwards else steps
    assert converge(world.kernel, steps[0], world.journal).ok
    finder = WayFinder(world.netns("node"))
    try:
        report = converge(world.kernel, steps[1], world.journal, finder.look, one_by_one=True)
        assert report.ok, [result.describe() for result in report.failed]
        finder.look()
    finally:
        finder.close()
    assert world.ops_left(steps[1]) == []
