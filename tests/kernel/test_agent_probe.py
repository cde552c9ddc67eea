"""The agent's probes on the real kernel.

a eth0 10.0.1.1/24 ═══ v1 10.0.1.254/24 r v2 10.0.2.254/24 ═══ eth0 10.0.2.2/24 b      ═══ a veth, MTU 1500
       fd01::1/64         fd01::fe/64        fd02::fe/64            fd02::2/64
                                                                    10.5.2.0/32 b's end of an overlay, fd05:2::/128

r forwards; it has no route to 10.9.0.0/16 and fd09::/64, so it says that they are unreachable.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from muslin.agent.diagnosis import Target
from muslin.agent.probe import RATE_PER_S, probe_all, probe_peers
from muslin.kernel.netns import call_in
from muslin.model.address import FAMILIES, Family
from muslin.model.kernel import Address, AnyObject, Link, Loopback, Netns, Route, Sysctl, Veth
from muslin.wire.agent_api import AgentStatus, ProbeResult
from tests.contract.kernels import NEEDS_ROOT, World
from tests.unit.agent.node import make_network, make_peer, make_status

pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

B: dict[Family, str] = {4: "10.0.2.2", 6: "fd02::2"}
R: dict[Family, str] = {4: "10.0.1.254", 6: "fd01::fe"}
NOBODY: dict[Family, str] = {4: "10.0.1.99", 6: "fd01::99"}
NO_ROUTE: dict[Family, str] = {4: "10.9.0.1", 6: "fd09::1"}


class Net:
    """The network of the drawing; probes leave from a."""

    def __init__(self, world: World) -> None:
        self.a, self.b, self.r = (world.netns(name) for name in "abr")
        world.build(
            [
                *(Netns(netns=netns) for netns in (self.a, self.b, self.r)),
                *(Link(netns=netns, name="lo", options=Loopback(), up=True) for netns in (self.a, self.b, self.r)),
                *self._cable(self.a, "v1"),
                *self._cable(self.b, "v2"),
                *self._addresses(self.a, "eth0", "10.0.1.1/24", "fd01::1/64"),
                *self._addresses(self.r, "v1", "10.0.1.254/24", "fd01::fe/64"),
                *self._addresses(self.r, "v2", "10.0.2.254/24", "fd02::fe/64"),
                *self._addresses(self.b, "eth0", "10.0.2.2/24", "fd02::2/64", "10.5.2.0/32", "fd05:2::/128"),
                *self._default(self.a, "10.0.1.254", "fd01::fe"),
                *self._default(self.b, "10.0.2.254", "fd02::fe"),
                Route(netns=self.r, destination="10.5.2.0/24", via="10.0.2.2", link="v2"),
                Route(netns=self.r, destination="fd05:2::/64", via="fd02::2", link="v2"),
                Sysctl(netns=self.r, name="net/ipv4/ip_forward", value="1"),
                Sysctl(netns=self.r, name="net/ipv6/conf/all/forwarding", value="1"),
            ]
        )
        # An IPv6 address answers only after nobody else was found to have it; see that this is over.
        deadline = time.monotonic() + 10
        while self.ask(Target(B[6])).outcome != "reached":
            assert time.monotonic() < deadline, "the network never came up"

    def _cable(self, netns: str, name: str) -> Iterator[AnyObject]:
        yield Link(netns=netns, name="eth0", options=Veth(peer_netns=self.r, peer=name), mtu=1500, up=True)
        yield Link(netns=self.r, name=name, options=Veth(peer_netns=netns, peer="eth0"), mtu=1500, up=True)

    @staticmethod
    def _addresses(netns: str, link: str, *addresses: str) -> Iterator[AnyObject]:
        return (Address(netns=netns, link=link, address=address) for address in addresses)

    @staticmethod
    def _default(netns: str, *gateways: str) -> Iterator[AnyObject]:
        for gateway in gateways:
            destination = "::/0" if ":" in gateway else "0.0.0.0/0"
            yield Route(netns=netns, destination=destination, via=gateway, link="eth0")

    def ask_all(self, *targets: Target, timeout_s: float = 1.0, at: str = "") -> dict[Target, ProbeResult]:
        return call_in(at or self.a, lambda: asyncio.run(probe_all(targets, timeout_s)))

    def ask(self, target: Target, **options: Any) -> ProbeResult:
        return self.ask_all(target, **options)[target]

    def ask_peers(self, status: AgentStatus) -> AgentStatus:
        return call_in(self.a, lambda: asyncio.run(probe_peers(status)))


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    world = World("linux")
    try:
        yield Net(world)
    finally:
        world.close()


def inside(netns: str, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, *words], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def narrow(net: Net) -> Iterator[int]:
    """The link behind r carries 1400 bytes only."""
    inside(net.r, "ip", "link", "set", "v2", "mtu", "1400")
    try:
        yield 1400
    finally:
        inside(net.r, "ip", "link", "set", "v2", "mtu", "1500")


@pytest.fixture
def filters(net: Net) -> Iterator[Any]:
    """A function that puts a rule into a hook of a namespace."""
    places: list[str] = []

    def add(netns: str, hook: str, rule: str) -> None:
        inside(netns, "nft", f"table inet t {{ chain c {{ type filter hook {hook} priority 0; {rule}; }}; }}")
        places.append(netns)

    try:
        yield add
    finally:
        for netns in places:
            inside(netns, "nft", "delete table inet t")


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_there_answers_with_a_time(net: Net, family: Family) -> None:
    result = net.ask(Target(B[family]))
    assert (result.address, result.outcome) == (B[family], "reached")
    assert result.rtt_ms is not None
    assert 0 < result.rtt_ms < 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_not_there_is_silent_for_the_whole_time(net: Net, family: Family) -> None:
    begun = time.monotonic()
    result = net.ask(Target(NOBODY[family]), timeout_s=0.3)
    assert result.outcome == "silent"
    assert result.detail == "no answer within 0.3 s"
    assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_that_knows_no_way_is_quoted_with_its_name(net: Net, family: Family) -> None:
    result = net.ask(Target(NO_ROUTE[family]))
    assert result.outcome == "unreachable"
    assert result.offender == R[family]
    assert result.detail == {4: "network unreachable", 6: "no route to destination"}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_own_kernel_that_knows_no_way_is_nobody_else(net: Net, family: Family) -> None:
    result = net.ask(Target(NO_ROUTE[family]), at=net.r)
    assert (result.outcome, result.offender, result.detail) == ("unreachable", "", "Network is unreachable")


def test_the_own_kernel_that_finds_no_neighbour_is_nobody_else_either(net: Net) -> None:
    result = net.ask(Target(NOBODY[4]), timeout_s=10.0)
    assert (result.outcome, result.offender, result.detail) == ("unreachable", "", "host unreachable")


def test_a_filter_of_this_host_is_named_as_one(net: Net, filters: Any) -> None:
    filters(net.a, "output", "icmp type echo-request drop")
    assert net.ask(Target(B[4])).detail == "a packet filter of this host forbids it"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hole_in_the_mtu_shows_however_often_it_is_asked(net: Net, family: Family, narrow: int) -> None:
    small, fits, full = Target(B[family]), Target(B[family], narrow), Target(B[family], 1500)
    for _ in range(2):  # the second time the kernel has learned the path's MTU, and we ask nevertheless
        results = net.ask_all(small, fits, full)
        assert [results[target].outcome for target in (small, fits, full)] == ["reached", "reached", "unreachable"]
        assert results[full].offender == R[family]
        assert results[full].detail.endswith("at most 1400 bytes fit")


def test_a_hole_that_nobody_tells_of_is_silence(net: Net, narrow: int, filters: Any) -> None:
    filters(net.r, "output", "icmp type destination-unreachable drop")
    results = net.ask_all(Target(B[4]), Target(B[4], 1500))
    assert [result.outcome for result in results.values()] == ["reached", "silent"]


@pytest.mark.parametrize("family", FAMILIES)
def test_more_than_the_own_link_carries_is_not_sent(net: Net, family: Family) -> None:
    result = net.ask(Target(B[family], 1501))
    assert result.outcome == "unreachable"
    assert result.detail == "1501 bytes are more than the MTU of the link that they leave by"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_address_is_used(net: Net, family: Family, filters: Any) -> None:
    """b hears nobody but one address, which is not the one that a would choose."""
    other = {4: "10.0.1.9", 6: "fd01::9"}[family]
    where = {4: ["10.0.1.9/32"], 6: ["fd01::9/128", "nodad"]}[family]
    inside(net.a, "ip", "address", "replace", *where, "dev", "lo")
    inside(net.r, "ip", "route", "replace", other, "via", {4: "10.0.1.1", 6: "fd01::1"}[family])
    filters(net.b, "input", {4: "ip saddr 10.0.1.1 drop", 6: "ip6 saddr fd01::1 drop"}[family])
    results = net.ask_all(Target(B[family], source=other), Target(B[family]), timeout_s=0.4)
    assert [result.outcome for result in results.values()] == ["reached", "silent"]


def test_a_source_address_of_somebody_else_is_refused(net: Net) -> None:
    for family, foreign in ((4, "10.0.7.7"), (6, "fd07::7")):
        result = net.ask(Target(B[family], source=foreign))  # type: ignore[index]
        assert (result.outcome, result.offender) == ("unreachable", "")


def test_many_are_asked_at_once_and_not_too_fast(net: Net) -> None:
    there = [Target(f"127.0.{number // 250}.{number % 250 + 1}") for number in range(300)]
    away = [Target(f"10.0.1.{number}") for number in range(100, 200)]
    begun = time.monotonic()
    results = net.ask_all(*there, *away, timeout_s=0.4)
    elapsed_s = time.monotonic() - begun
    assert {results[target].outcome for target in there} == {"reached"}
    assert {results[target].outcome for target in away} == {"silent"}
    packets = len(there) + 2 * len(away)
    assert elapsed_s >= packets / RATE_PER_S
    assert elapsed_s < packets / RATE_PER_S + 5


def test_two_that_ask_at_once_do_not_take_each_other_s_answers(net: Net, narrow: int) -> None:
    async def both() -> list[dict[Target, ProbeResult]]:
        return list(
            await asyncio.gather(probe_all([Target(B[4])]), probe_all([Target(B[4], 1500), Target(NOBODY[4])], 0.4))
        )

    one, other = call_in(net.a, lambda: asyncio.run(both()))
    assert [result.outcome for result in one.values()] == ["reached"]
    assert [result.outcome for result in other.values()] == ["unreachable", "silent"]


def refuse(*kinds: int) -> Any:
    """A socket class that some kinds of sockets cannot be had of."""

    class Refusing(socket.socket):
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if type & ~socket.SOCK_NONBLOCK in kinds and proto in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
                raise PermissionError(1, "Operation not permitted")
            super().__init__(family, type, proto, fileno)

    return Refusing


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ping_socket_serves_where_no_raw_one_can_be_had(
    net: Net, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside(net.a, "sysctl", "-w", "net.ipv4.ping_group_range=0 2147483647")
    monkeypatch.setattr(socket, "socket", refuse(socket.SOCK_RAW))
    results = net.ask_all(Target(B[family]), Target(NOBODY[family]), timeout_s=0.4)
    assert [result.outcome for result in results.values()] == ["reached", "silent"]


def test_without_any_socket_all_is_skipped_with_the_reason(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", refuse(socket.SOCK_RAW, socket.SOCK_DGRAM))
    result = net.ask(Target(B[4]))
    assert result.outcome == "skipped"
    assert "CAP_NET_RAW" in result.detail


# ---- peers -------------------------------------------------------------------------------------------------


def peers_of(status: AgentStatus) -> dict[str, Any]:
    return {peer.name: peer for peer in status.peers}


def test_peers_get_their_answers_and_sentences(net: Net, filters: Any) -> None:
    good = make_peer(2, addresses=("10.0.2.2", "fd02::2"), subnets=("10.5.2.0/24", "fd05:2::/64"))
    away = make_peer(3, addresses=(NO_ROUTE[4],))
    behind = make_peer(4, addresses=("10.0.2.2",), subnets=("10.5.3.0/24",))
    refused = make_peer(5, state="refused", reason="it is not welcome", addresses=("10.0.2.2",))
    filters(net.r, "forward", "ip daddr 10.5.3.0 drop")
    inside(net.r, "ip", "route", "replace", "10.5.3.0/24", "via", "10.0.2.2")
    status = net.ask_peers(make_status(peers=(good, away, behind, refused), network=make_network(mtu=1500)))
    found = peers_of(status)
    fine = found["10.5.2.0-24"]
    assert (fine.underlay.outcome, fine.overlay.outcome, fine.overlay_full.outcome) == ("reached",) * 3
    assert fine.sentence == fine.note == ""
    assert "10.0.1.254 says network unreachable" in found["10.5.3.0-24"].sentence
    assert "drops UDP port 8472" in found["10.5.4.0-24"].sentence
    assert found["10.5.5.0-24"].underlay is None
    assert "it is not welcome" in found["10.5.5.0-24"].sentence


def test_only_the_peers_that_are_named_are_asked(net: Net) -> None:
    status = make_status(peers=(make_peer(2, addresses=("10.0.2.2",)), make_peer(3)))
    found = peers_of(call_in(net.a, lambda: asyncio.run(probe_peers(status, ["10.5.2.0-24"]))))
    assert found["10.5.2.0-24"].underlay.outcome == "reached"
    assert found["10.5.3.0-24"].underlay is None


def test_a_hole_in_the_mtu_becomes_a_sentence(net: Net, narrow: int) -> None:
    peer = make_peer(2, addresses=("10.0.2.2",))
    (found,) = net.ask_peers(make_status(peers=(peer,), network=make_network(mtu=1500))).peers
    assert found.overlay is not None
    assert found.overlay.outcome == "reached"
    assert "those of full size, 1500 bytes, do not (fragmentation needed: at most 1400 bytes fit)" in found.sentence
    assert "set MTU in the Backend" in found.sentence


def test_an_error_by_the_peer_itself_proves_the_way_of_host_gw(net: Net) -> None:
    """b has no bridge yet: what is for 10.5.6.1 comes to it, and it says so."""
    inside(net.r, "ip", "route", "replace", "10.5.6.0/24", "via", "10.0.2.2")
    inside(net.b, "sysctl", "-w", "net.ipv4.ip_forward=1")
    inside(net.b, "ip", "route", "replace", "unreachable", "10.5.6.0/24")
    peer = make_peer(6, addresses=("10.0.2.2",))
    (found,) = net.ask_peers(make_status(peers=(peer,), network=make_network(backend="host-gw", mtu=1500))).peers
    assert found.overlay is not None
    assert (found.overlay.outcome, found.overlay.offender) == ("unreachable", "10.0.2.2")
    assert found.sentence == found.note == ""
