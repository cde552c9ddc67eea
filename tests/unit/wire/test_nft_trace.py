"""The table that marks a probe, and what the kernel says of marked packets."""

from __future__ import annotations

import pytest

from muslin.wire.netlink import Message, encode_attribute, encode_nested
from muslin.wire.nft_trace import TRACE, Decision, parse_decision, table_text
from muslin.wire.packet import Probe


def said(kind: int, *more: bytes, family: int = 1) -> Message:
    head = bytes([family, 0, 0, 0])
    names = (
        encode_attribute(1, b"fw\0") + encode_attribute(2, b"input\0") + encode_attribute(4, kind.to_bytes(4, "big"))
    )
    return Message(TRACE, 0, 0, 0, head + names + b"".join(more))


def verdict(code: int) -> bytes:
    return encode_nested(5, encode_attribute(1, (code & 0xFFFFFFFF).to_bytes(4, "big")))


HANDLE = encode_attribute(3, (7).to_bytes(8, "big"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (said(3, HANDLE, verdict(0)), Decision("inet", "fw", "input", 7)),
        (said(3, HANDLE, verdict(0), family=5), Decision("netdev", "fw", "input", 7)),
        (said(1, encode_attribute(16, (0).to_bytes(4, "big"))), Decision("inet", "fw", "input", None)),
        (said(3, HANDLE, verdict(1)), None),
        (said(3, HANDLE, verdict(-1)), None),
        (said(1, encode_attribute(16, (1).to_bytes(4, "big"))), None),
        (said(2, verdict(-5)), None),
        (Message(TRACE - 1, 0, 0, 0, b""), None),
    ],
)
def test_only_what_ends_a_packet_is_a_decision(message: Message, expected: Decision | None) -> None:
    assert parse_decision(message) == expected


def test_the_table_is_one_line_goes_with_its_owner_and_only_marks() -> None:
    probe = Probe(source="10.0.0.1", destination="10.0.0.2", identity=4242)
    text = table_text("mt", probe, ("eth0", "eth1"))
    assert "\n" not in text
    assert text.startswith("add table inet mt { flags owner; }; ")
    assert "hook ingress devices = { eth0, eth1 } priority -450" in text
    rules = [line for line in text.split("; ") if line.startswith("add rule")]
    assert all(rule.endswith(" 4242 meta nftrace set 1") for rule in rules)
    assert {rule.split()[4] for rule in rules} == {"prerouting", "output", "ingress"}
    assert "ingress" not in table_text("mt", probe)


def test_ports_are_looked_for_on_both_sides_and_inside_of_tunnels() -> None:
    text = table_text("mt", Probe(source="10.0.0.1", destination="10.0.0.2", identity=7, protocol="udp"))
    for match in ("udp sport 7", "udp dport 7", "@th,224,16 7", "@th,240,16 7", "@th,384,16 7", "@th,400,16 7"):
        assert f" {match} meta nftrace set 1" in text
