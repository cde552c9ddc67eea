"""What explain answers, against what the kernel answers: RTM_GETROUTE with fibmatch, iif and from.

    one namespace: three cables (d0, d1, d2) with addresses, a random heap of routes and policy rules

For each heap, every destination is asked as an own packet and as one to forward; both must name the same route, the
same link and gateway, or both refuse. The source address that the kernel would choose is compared as well.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muslin.explain import judge
from muslin.explain.lookup import Query, lookup
from muslin.explain.source import source_of
from muslin.explain.types import metric_of
from muslin.kernel.netlink import NetlinkSocket
from muslin.kernel.sessions import Sessions
from muslin.kernel.sight import read_sight
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import RouteRecord
from muslin.wire.sight import Sight
from tests.assumptions.room import NEEDS_ROOT, Room, inside, ip, open_room

pytestmark = NEEDS_ROOT

DESTINATIONS = {
    4: ("10.0.0.1", "10.0.0.77", "10.1.2.3", "10.1.2.200", "172.16.0.9", "172.16.1.9", "192.168.1.5", "203.0.113.7"),
    6: ("fd00::1", "fd00::77", "fd01::3", "fd01:0:0:1::9", "fd02::5", "2001:db8::7"),
}
LINKS = ("d0", "d1", "d2")
ADDRESSES = {
    4: {"d0": "10.0.0.10/24", "d1": "10.1.0.10/16", "d2": "172.16.0.1/24"},
    6: {"d0": "fd00::10/64", "d1": "fd01::10/32", "d2": "fd02::1/64"},
}
GATEWAYS = {4: {"d0": "10.0.0.20", "d1": "10.1.0.20", "d2": "172.16.0.20"}}
GATEWAYS[6] = {"d0": "fd00::20", "d1": "fd01::20", "d2": "fd02::20"}
PREFIXES = {
    4: ("default", "10.0.0.0/8", "10.0.0.64/26", "10.1.2.0/24", "10.1.2.3", "172.16.0.0/16", "172.16.1.0/24",
        "192.168.0.0/16"),
    6: ("default", "fd00::/16", "fd00::40/122", "fd01::/48", "fd01::3", "fd02::/32", "2001:db8::/32"),
}  # fmt: skip

Words = tuple[str, ...]


@st.composite
def heaps(draw: st.DrawFn, family: int) -> tuple[list[str], list[str]]:
    """Commands for routes and for rules, some of which the kernel refuses: then they are not there for either."""
    routes = []
    for number in range(draw(st.integers(0, 8))):
        link = draw(st.sampled_from(LINKS))
        via = f"via {GATEWAYS[family][link]} " if draw(st.booleans()) else ""
        way = draw(st.sampled_from(["", "", "", "blackhole", "unreachable", "prohibit", "throw", "nexthop"]))
        prefix = draw(st.sampled_from(PREFIXES[family]))
        table = draw(st.sampled_from(["", "", "table 100", "table 200"]))
        metric = draw(st.sampled_from(["", "metric 10", "metric 20"]))
        proto = draw(st.sampled_from(["", "proto static", "proto bird"]))
        if way == "nexthop":
            routes.append(f"nexthop add id {number + 1} {via}dev {link}")
            routes.append(f"route add {prefix} nhid {number + 1} {metric} {table} {proto}")
        elif way:
            routes.append(f"route add {way} {prefix} {metric} {table} {proto}")
        else:
            routes.append(f"route add {prefix} {via}dev {link} {metric} {table} {proto}")
    rules = []
    for _ in range(draw(st.integers(0, 4))):
        match = draw(
            st.sampled_from(["", "iif d0", "iif lo", f"from {PREFIXES[family][1]}", f"to {PREFIXES[family][2]}"])
        )
        priority = draw(st.sampled_from([50, 100, 40000]))
        act = draw(
            st.sampled_from(["lookup 100", "lookup 200", "lookup 100 suppress_prefixlength 8", "prohibit", "blackhole"])
        )
        inverted = "not " if match and draw(st.integers(0, 4)) == 0 else ""
        rules.append(f"rule add {inverted}{match} priority {priority} {act}")
    return routes, rules


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[Room, str]]:
    with open_room() as room:
        name = room.netns("explain")
        ip(name, "link set lo up")
        for link in LINKS:
            ip(name, f"link add {link} type veth peer name far{link}")
            inside(name, "sysctl", "-qw", f"net.ipv6.conf.{link}.accept_dad=0")
            ip(name, f"link set far{link} up")
            ip(name, f"link set {link} up")
            for family in (4, 6):
                ip(name, f"addr add {ADDRESSES[family][link]} dev {link}")
        inside(name, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield room, name


def build(name: str, family: int, commands: list[str]) -> None:
    """Run a heap of commands; what the kernel refuses is left out."""
    words = ["ip", "-n", name, f"-{family}", "-force", "-batch", "-"]
    subprocess.run(words, input="\n".join(commands), text=True, capture_output=True, check=False)


def clear(name: str, family: int) -> None:
    """Take the heap away again."""
    lines = [f"route flush table {table}" for table in (100, 200)]
    lines += [f"route flush proto {proto}" for proto in ("boot", "static", "bird")]
    lines += ["rule flush", "rule add priority 32766 lookup main"]
    lines += ["rule add priority 32767 lookup default"] if family == 4 else []
    lines += ["nexthop flush"]
    build(name, family, ["rule add priority 0 lookup local", *lines])


def see(name: str) -> Sight:
    sessions = Sessions()
    try:
        return read_sight(sessions.get(name), (), list)
    finally:
        sessions.close()


def kernel_says(socket: NetlinkSocket, destination: str, *, match: bool = True, **how: object) -> RouteRecord | int:
    """The route, or the errno of the refusal."""
    try:
        messages = socket.ask(rtnetlink.route_get(destination, fib_match=match, **how))  # type: ignore[arg-type]
    except OSError as error:
        return error.errno or 0
    found = rtnetlink.parse_record(messages[0])
    assert isinstance(found, RouteRecord)
    return found


def same(ours: RouteRecord | None, theirs: RouteRecord | int) -> bool:
    if isinstance(theirs, int) or ours is None:
        return ours is None and isinstance(theirs, int)
    # fibmatch leaves the way of a next hop object to its id.
    return (ours.destination, ours.table, metric_of(ours), ours.kind, ours.nexthop_id, ours.ifindex, ours.via) == (
        theirs.destination, theirs.table, metric_of(theirs), theirs.kind, theirs.nexthop_id, theirs.ifindex, theirs.via
    )  # fmt: skip


def compare(name: str, family: int, commands: tuple[list[str], list[str]]) -> None:
    build(name, family, [*commands[0], *commands[1]])
    sight = see(name)
    socket = NetlinkSocket(name)
    try:
        for destination in DESTINATIONS[family]:
            ours = lookup(sight, Query(destination=destination))
            chosen = ours.chosen.route if ours.chosen and not ours.refused else None
            theirs = kernel_says(socket, destination)
            assert same(chosen, theirs), f"{destination} own: {chosen} is not {theirs}"
            if chosen is not None:
                plain = kernel_says(socket, destination, match=False)
                assert isinstance(plain, RouteRecord)
                assert source_of(sight, ours) == plain.source, f"{destination}: source"
            forward(sight, socket, destination, family)
    finally:
        socket.close()
        clear(name, family)


def forward(sight: Sight, socket: NetlinkSocket, destination: str, family: int) -> None:
    """The same for a packet of a neighbour on d0, which has to pass the reverse path filter (it is off or strict)."""
    link = sight.link("d0")
    assert link is not None
    source = GATEWAYS[family]["d0"]
    ours = lookup(sight, Query(destination=destination, source=source, iif="d0"))
    chosen = ours.chosen.route if ours.chosen and not ours.refused else None
    _, drop = judge.reverse_path(
        sight, "d0", source, destination, ours.way.link if ours.way and not ours.is_local else ""
    )
    theirs = kernel_says(socket, destination, source=source, iif=link.ifindex)
    assert same(None if drop else chosen, theirs), f"{destination} by d0: {chosen} ({drop}) is not {theirs}"


@pytest.mark.parametrize("family", [4, 6])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_each_answer_is_the_kernels_own(bench: tuple[Room, str], family: int, data: st.DataObject) -> None:
    compare(bench[1], family, data.draw(heaps(family)))


@pytest.mark.parametrize("mode", [1, 2])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_so_is_what_the_reverse_path_filter_lets_through(
    bench: tuple[Room, str], mode: int, data: st.DataObject
) -> None:
    inside(bench[1], "sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={mode}")
    try:
        compare(bench[1], 4, data.draw(heaps(4)))
    finally:
        inside(bench[1], "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
