"""ICMP messages, byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.address import FAMILIES, Family
from muslin.wire.icmp import (
    ECHO_REPLY,
    ERROR_TYPES,
    PROTOCOL_NUMBER,
    IcmpMessage,
    checksum,
    encode_echo,
    encode_filter,
    icmp_text,
    is_port_unreachable,
    parse_icmp,
    parse_quoted_echo,
    quoted_mtu,
)

BODY = b"twenty bytes of body"


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_none(data: bytes) -> None:
    for family in FAMILIES:
        parse_quoted_echo(family, data)
    parse_icmp(data)


def test_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_an_echo_with_its_checksum_sums_to_zero() -> None:
    assert checksum(encode_echo(4, 77, 5, b"muslin!")) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_the_echo_that_an_error_quotes(family: Family) -> None:
    header = bytearray(20 if family == 4 else 40)
    header[0] = 0x45 if family == 4 else 0x60
    header[9 if family == 4 else 6] = PROTOCOL_NUMBER[family]
    found = parse_quoted_echo(family, bytes(header) + encode_echo(family, 77, 5, BODY))
    assert found is not None
    assert (found.identifier, found.sequence, found.body) == (77, 5, BODY)


def test_names_of_errors() -> None:
    assert icmp_text(4, 3, 1) == "host unreachable"
    assert icmp_text(6, 1, 0) == "no route to destination"
    assert icmp_text(4, 12, 7) == "ICMP type 12 code 7"
    assert is_port_unreachable(4, 3, 3)
    assert is_port_unreachable(6, 1, 4)
    assert not is_port_unreachable(4, 3, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_filter_blocks_all_but_what_is_named(family: Family) -> None:
    passed = {ECHO_REPLY[family], *ERROR_TYPES[family]}
    encoded = encode_filter(family, passed)
    assert len(encoded) == (4 if family == 4 else 32)
    words = struct.unpack(f"={len(encoded) // 4}I", encoded)
    for number in range(len(encoded) * 8):
        assert bool(words[number // 32] >> number % 32 & 1) == (number not in passed)


def test_an_error_about_the_size_tells_what_fits() -> None:
    assert quoted_mtu(4, IcmpMessage(3, 4, 0, 1400, b"")) == 1400
    assert quoted_mtu(4, IcmpMessage(3, 1, 0, 1400, b"")) is None
    assert quoted_mtu(6, IcmpMessage(2, 0, 1, 2, b"")) == 65538
    assert quoted_mtu(6, IcmpMessage(1, 0, 1, 2, b"")) is None
