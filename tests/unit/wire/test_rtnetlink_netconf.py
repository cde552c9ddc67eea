"""Settings of interfaces as the kernel tells of them, from recorded messages (Linux 6.18, little endian)."""

from __future__ import annotations

import pytest

from muslin.wire.rtnetlink_netconf import (
    NETCONFA_IFINDEX_ALL,
    NetconfRecord,
    parse_netconf,
)

# family AF_INET, then (length 8, kind, value): 1 = interface (-1: all), 2 = forwarding, 3 = reverse path filter
IPV4 = "02000000"
ALL = "08000100ffffffff"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{IPV4}{ALL}0800020001000000", NetconfRecord(family=2, ifindex=NETCONFA_IFINDEX_ALL, forwarding=1)),
        (f"{IPV4}0800010007000000" + "0800030002000000", NetconfRecord(family=2, ifindex=7, rp_filter=2)),
        (f"0a000000{ALL}0800020000000000", NetconfRecord(family=10, ifindex=NETCONFA_IFINDEX_ALL, forwarding=0)),
        (f"1c000000{ALL}", None),  # MPLS
    ],
)
def test_what_a_message_tells(text: str, expected: NetconfRecord | None) -> None:
    assert parse_netconf(bytes.fromhex(text)) == expected


@pytest.mark.parametrize("text", ["", "02", f"{IPV4}0800"])
def test_a_message_cut_short_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_netconf(bytes.fromhex(text))
