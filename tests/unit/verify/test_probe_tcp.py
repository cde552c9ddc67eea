"""Half-open connections in /proc/net/tcp."""

from __future__ import annotations

import sys

import pytest

from muslin.verify.probe_tcp import syn_received

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
# 172.16.1.2:8080 <- 172.16.0.2:40000 in SYN_RECV, and the listener itself.
LITTLE = HEAD + (
    "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
    "   1: 020110AC:1F90 020010AC:9C40 03 00000000:00000000 01:00000064 00000001     0        0 0\n"
    "   2: 020110AC:1F90 020010AC:9C41 01 00000000:00000000 01:00000064 00000001     0        0 0\n"
)
LITTLE_6 = HEAD + (
    "   0: 000016FD000000000000000002000000:1F90 010016FD000000000000000003000000:9C40 03 0:0 0:0 0 0 0 0\n"
)


@pytest.mark.skipif(sys.byteorder != "little", reason="the golden text is of a little-endian machine")
def test_who_knocked() -> None:
    at = ("172.16.1.2", 8080)
    assert syn_received(LITTLE, ("172.16.0.2", 40000), at)
    assert not syn_received(LITTLE, ("172.16.0.2", 40001), at), "that one is connected"
    assert not syn_received(LITTLE, ("172.16.0.3", 40000), at), "the port of a stranger says nothing"
    assert not syn_received("", ("172.16.0.2", 40000), at)
    assert syn_received(LITTLE_6, ("fd16:1::3", 40000), ("fd16::2", 8080))
