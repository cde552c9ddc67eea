"""What /proc says about a namespace's own addresses."""

from __future__ import annotations

from muslin.verify.station import parse_fib_trie, parse_if_inet6

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 172.16.0.0/24 2 0 2
        |-- 172.16.0.0
           /24 link UNICAST
        |-- 172.16.0.2
           /32 host LOCAL
        |-- 172.16.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.9.0.0
        /24 link UNICAST
        /32 host LOCAL
Local:
        |-- 172.16.0.2
           /32 host LOCAL
"""

IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fd160001000000000000000000000002 02 40 00 80     eth0
fe80000000000000ac9a07fffe7e30b6 02 40 20 80     eth0
"""


def test_ipv4_addresses_once_each_without_loopback() -> None:
    assert parse_fib_trie(FIB_TRIE) == ("10.9.0.0", "172.16.0.2")
    assert parse_fib_trie("") == ()


def test_ipv6_addresses_without_loopback() -> None:
    assert parse_if_inet6(IF_INET6) == ("fd16:1::2", "fe80::ac9a:7ff:fe7e:30b6")
    assert parse_if_inet6("") == ()
