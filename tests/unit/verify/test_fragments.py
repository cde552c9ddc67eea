"""The kernel's fragment counters."""

from __future__ import annotations

from muslin.verify.fragments import parse_snmp, parse_snmp6

SNMP = """\
Ip: Forwarding DefaultTTL FragOKs FragFails FragCreates OutTransmits
Ip: 1 64 3 0 6 900
Icmp: InMsgs InErrors
Icmp: 4 0
"""
SNMP6 = "Ip6FragOKs  \t1\nIp6FragFails  \t0\nIp6FragCreates  \t2\n"


def test_counters() -> None:
    assert parse_snmp(SNMP) == 6
    assert parse_snmp6(SNMP6) == 2


def test_a_kernel_without_the_file_or_the_counter_has_made_none() -> None:
    assert parse_snmp("") == parse_snmp6("") == 0
    assert parse_snmp("Ip: Forwarding\nIp: 1\n") == 0
