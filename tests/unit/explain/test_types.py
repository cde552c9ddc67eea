"""Types of route, the two orders, and how a route reads."""

import pytest

from muslin.explain.types import in_kernel_order, in_talk_order, metric_of, route_text, type_of
from muslin.wire.rtnetlink import AF_INET, AF_INET6, Hop, RouteRecord
from tests.unit.explain.networks import Namespace


def route(destination: str, **what: object) -> RouteRecord:
    family = AF_INET6 if ":" in destination else AF_INET
    return RouteRecord(destination, family, **{"protocol": 3, **what})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (route("10.0.0.10/32", kind="local", table=255, protocol=2), "local"),
        (route("10.0.0.255/32", kind="broadcast", table=255, protocol=2), "local"),
        (route("10.0.0.0/24", ifindex=1, protocol=2), "directly connected"),
        (route("172.16.0.1/32", ifindex=1), "directly connected"),
        (route("172.16.1.0/24", ifindex=1, via="10.0.0.20"), "static"),
        (route("172.16.1.0/24", protocol=4, multipath=(Hop(1, "10.0.0.20", 1),)), "static"),
        (route("172.16.1.0/24", kind="blackhole"), "static"),
        (route("172.16.1.0/24", ifindex=1, via="10.0.0.20", protocol=12), "dynamic"),
        (route("172.16.1.0/24", ifindex=1, protocol=186), "dynamic"),
        (route("172.16.1.0/24", nexthop_id=3, via="10.0.0.20", protocol=77), "dynamic"),
        (route("172.16.1.0/24", via="10.0.0.20", protocol=200), "static"),
        (route("0.0.0.0/0", via="10.0.0.1", protocol=16), "default"),
        (route("::/0", via="fe80::1", protocol=9), "default"),
    ],
)
def test_a_type_follows_from_writer_gateway_and_prefix(one: RouteRecord, expected: str) -> None:
    assert type_of(one) == expected


def test_the_two_orders_differ_where_a_static_route_is_longer_than_a_connected_one() -> None:
    connected, static = route("172.16.0.0/16", ifindex=1, protocol=2), route("172.16.1.0/24", via="10.0.0.20")
    assert in_kernel_order([connected, static]) == [static, connected]
    assert in_talk_order([static, connected]) == [connected, static]


def test_the_metric_of_ipv6_is_1024_unless_given_and_ipv4_has_none() -> None:
    assert metric_of(route("fd00::/64")) == 1024
    assert metric_of(route("fd00::/64", metric=5)) == 5
    assert metric_of(route("10.0.0.0/8")) == 0


def test_a_route_reads_as_ip_route_prints_it() -> None:
    place = Namespace("n")
    place.link("eth0")
    sight = place.sight()
    assert (
        route_text(sight, route("0.0.0.0/0", via="10.0.0.1", ifindex=2, metric=7))
        == "default via 10.0.0.1 dev eth0 metric 7"
    )
    assert route_text(sight, route("10.0.0.1/32", ifindex=2, table=100)) == "10.0.0.1 dev eth0 table 100"
    assert route_text(sight, route("10.0.0.0/8", kind="blackhole", protocol=12)) == "blackhole 10.0.0.0/8 proto bird"
    both = route("10.0.0.0/8", multipath=(Hop(2, "10.0.0.1", 1), Hop(2, None, 1)))
    assert route_text(sight, both) == "10.0.0.0/8 nexthop via 10.0.0.1 dev eth0 nexthop dev eth0"
