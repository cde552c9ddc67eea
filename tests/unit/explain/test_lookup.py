"""The choice of a route; that it is the kernel's is proved in tests/kernel/test_explain_lookup.py."""

import msgspec
import pytest

from muslin.explain.lookup import DEAD, Query, lookup, why, why_not
from muslin.wire.rtnetlink import AF_INET, NexthopRecord, RuleRecord
from muslin.wire.sight import Sight
from tests.unit.explain.networks import RULES, Namespace


@pytest.fixture
def place() -> Namespace:
    made = Namespace("n")
    made.link("eth0", "10.0.0.10/24")
    made.link("tun0", "172.16.0.100/16")
    made.link("br0", "172.16.0.1/24")
    made.route("0.0.0.0/0", "eth0", "10.0.0.1")
    return made


def told(sight: Sight, destination: str) -> str:
    return why(sight, lookup(sight, Query(destination=destination)))


def test_the_longest_prefix_wins(place: Namespace) -> None:
    answer = lookup(place.sight(), Query(destination="172.16.0.9"))
    assert answer.way is not None
    assert answer.way.link == "br0"
    assert why(place.sight(), answer) == "beats 172.16.0.0/16 dev tun0: /24 is longer than /16"


def test_a_longer_prefix_that_does_not_contain_it_is_named(place: Namespace) -> None:
    assert told(place.sight(), "172.16.9.9") == "beats default via 10.0.0.1 dev eth0: /16 is longer than /0"
    place.routes = [one for one in place.routes if one.destination != "0.0.0.0/0"]
    assert told(place.sight(), "172.16.9.9") == "beats nothing: 172.16.0.0/24 br0 does not contain it"


def test_of_equal_prefixes_the_lower_metric_wins(place: Namespace) -> None:
    place.route("10.5.0.0/16", "eth0", "10.0.0.5", metric=20)
    place.route("10.5.0.0/16", "eth0", "10.0.0.6", metric=10)
    answer = lookup(place.sight(), Query(destination="10.5.1.1"))
    assert answer.way is not None
    assert answer.way.via == "10.0.0.6"
    assert "metric 10 is lower than 20" in why(place.sight(), answer)


def test_a_dead_route_is_stepped_over(place: Namespace) -> None:
    place.route("10.5.0.0/16", "tun0", flags=DEAD)
    place.route("10.0.0.0/8", "eth0", "10.0.0.6")
    answer = lookup(place.sight(), Query(destination="10.5.1.1"))
    assert answer.way is not None
    assert answer.way.link == "eth0"
    assert why(place.sight(), answer).startswith("steps over 10.5.0.0/16 dev tun0: tun0 is down; beats default")


def test_a_rule_that_is_asked_first_beats_a_longer_prefix(place: Namespace) -> None:
    place.rules = (RuleRecord(AF_INET, 100, 100, source="10.0.0.0/24"), *RULES)
    place.route("0.0.0.0/0", "tun0", table=100)
    assert lookup(place.sight(), Query(destination="172.16.0.9")).way.link == "br0"  # type: ignore[union-attr]
    answer = lookup(place.sight(), Query(destination="172.16.0.9", source="10.0.0.10"))
    assert answer.way is not None
    assert answer.way.link == "tun0"
    assert "rule 100 is asked before 32766, table 100 before main" in why(place.sight(), answer)


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (RuleRecord(AF_INET, 5, 100, iif="br0"), True),
        (RuleRecord(AF_INET, 5, 100, iif="lo"), False),
        (RuleRecord(AF_INET, 5, 100, iif="br0", inverted=True), False),
        (RuleRecord(AF_INET, 5, 100, fwmark=1, fwmask=0xFF), True),
        (RuleRecord(AF_INET, 5, 100, fwmark=2, fwmask=0xFF), False),
        (RuleRecord(AF_INET, 5, 100, destination="10.9.0.0/16"), True),
        (RuleRecord(AF_INET, 5, 100, suppress_prefix_length=0), False),
    ],
)
def test_rules_match_by_link_mark_and_prefix(place: Namespace, rule: RuleRecord, matches: bool) -> None:
    place.rules = (rule, *RULES)
    place.route("0.0.0.0/0", "tun0", table=100)
    answer = lookup(place.sight(), Query(destination="10.9.0.1", iif="br0", mark=1))
    assert (answer.way is not None and answer.way.link == "tun0") == matches


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_refusing_route_refuses_and_throw_asks_on(place: Namespace, kind: str) -> None:
    place.route("10.9.0.0/16", kind=kind)
    assert kind in lookup(place.sight(), Query(destination="10.9.0.1")).refused
    place.routes[-1] = msgspec.structs.replace(place.routes[-1], kind="throw")
    assert lookup(place.sight(), Query(destination="10.9.0.1")).chosen is None


def test_a_next_hop_object_gives_the_way(place: Namespace) -> None:
    place.more["nexthops"] = (NexthopRecord(7, AF_INET, place.number("eth0"), "10.0.0.77"),)
    place.route("10.9.0.0/16", nexthop_id=7)
    answer = lookup(place.sight(), Query(destination="10.9.0.1"))
    assert answer.way is not None
    assert (answer.way.link, answer.way.via) == ("eth0", "10.0.0.77")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("default", "172.16.0.0/24 dev br0 beats default via 10.0.0.1 dev eth0: /24 is longer than /0"),
        ("172.16.0.0/24", "it was chosen"),
        ("10.0.0.0/24", "10.0.0.0/24 dev eth0 does not contain 172.16.0.9"),
        ("172.16.0.0/16 dev tun0", "172.16.0.0/24 dev br0 beats 172.16.0.0/16 dev tun0: /24 is longer than /16"),
        ("192.168.0.0/16", "there is no route '192.168.0.0/16' here"),
    ],
)
def test_why_not_says_why_another_lost(place: Namespace, wanted: str, words: str) -> None:
    sight = place.sight()
    assert why_not(sight, lookup(sight, Query(destination="172.16.0.9")), wanted) == words


def test_why_not_names_a_table_that_nobody_asks(place: Namespace) -> None:
    place.route("172.16.0.9/32", "tun0", table=100)
    sight = place.sight()
    words = why_not(sight, lookup(sight, Query(destination="172.16.0.9")), "172.16.0.9 dev tun0 table 100")
    assert words == "172.16.0.9 dev tun0 table 100 is in table 100, which no rule asks for this packet"
