"""The order of routes, and where the talk would take another."""

from __future__ import annotations

from muslin.explain.tables import routes_of, rule_words
from muslin.wire.rtnetlink import AF_INET, RuleRecord
from tests.unit.explain.networks import RULES, Namespace


def place() -> Namespace:
    made = Namespace("n")
    made.link("eth0", "10.0.0.10/24")
    made.link("tun0", "172.16.0.100/16")
    made.route("0.0.0.0/0", "eth0", "10.0.0.1")
    return made


def test_tables_by_rule_then_prefix_then_metric() -> None:
    made = place()
    made.route("172.16.1.0/24", "eth0", "10.0.0.20")
    found = next(routes_of(made.sight()))
    assert [(row.order, row.type, row.destination) for row in found.routes] == [
        (1, "local", "10.0.0.10/32"),
        (2, "local", "172.16.0.100/32"),
        (3, "directly connected", "10.0.0.0/24"),
        (4, "static", "172.16.1.0/24"),
        (5, "directly connected", "172.16.0.0/16"),
        (6, "default", "0.0.0.0/0"),
    ]
    assert [row.differs for row in found.routes if row.differs] == [
        "the talk would take 172.16.0.0/16 dev tun0 (directly connected); the kernel does not: /24 is longer than /16"
    ]


def test_of_equal_prefixes_the_metric_is_the_difference() -> None:
    made = place()
    made.route("10.5.0.0/16", "eth0", "10.0.0.5", metric=5, protocol=12)
    made.route("10.5.0.0/16", "eth0", "10.0.0.6", metric=9)
    differs = [row.differs for row in next(routes_of(made.sight())).routes if row.differs]
    assert differs[0].endswith("(static); the kernel does not: metric 5 is lower than 9")


def test_a_table_that_no_rule_asks_comes_last() -> None:
    made = place()
    made.route("10.0.0.0/30", "eth0", table=100)
    assert next(routes_of(made.sight())).routes[-1].rule is None
    made.rules = (RuleRecord(AF_INET, 10, 100, source="10.0.0.0/8"), *RULES)
    rows = next(routes_of(made.sight())).routes
    assert [row.table for row in rows][2] == "100"


def test_a_rule_reads_as_ip_rule_prints_it() -> None:
    rule = RuleRecord(
        AF_INET, 10, 254, source="10.0.0.0/8", iif="eth0", fwmark=16, inverted=True, suppress_prefix_length=0
    )
    assert rule_words(rule) == "not from 10.0.0.0/8 iif eth0 fwmark 0x10 lookup main suppress_prefixlength 0"
    assert rule_words(RuleRecord(AF_INET, 10, action="prohibit")) == "from all prohibit"
