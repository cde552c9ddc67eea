"""Texts below /proc/net to numbers."""

from __future__ import annotations

from muslin.wire.counters import parse_paired, parse_single

SNMP = """Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 7
Icmp: InMsgs InCsumErrors
Icmp: 3 1
"""
NETSTAT = "TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 0 12\nIpExt: InNoRoutes\nIpExt: 4\n"


def test_names_are_those_of_nstat() -> None:
    assert parse_paired(SNMP)["IpInReceives"] == 7
    assert parse_paired(SNMP)["IcmpInCsumErrors"] == 1
    assert parse_paired(NETSTAT) == {
        "TcpExtSyncookiesSent": 0,
        "TcpExtIPReversePathFilter": 12,
        "IpExtInNoRoutes": 4,
    }
    assert parse_single("Ip6InReceives                   \t39\nIp6InNoRoutes 2\n") == {
        "Ip6InReceives": 39,
        "Ip6InNoRoutes": 2,
    }


def test_what_does_not_pair_is_left_out() -> None:
    assert parse_paired("Ip: A B\nIp: 1\nUdp: C\nTcp: 1\n") == {}
    assert parse_paired("") == parse_single("") == parse_single("Ip6 x y\nOdd word\n") == {}
