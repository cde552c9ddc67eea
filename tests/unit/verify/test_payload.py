"""The probing packets, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.address import Family
from muslin.verify.payload import (
    PROTOCOL_NUMBER,
    Sighting,
    Tag,
    checksum,
    encode_answer,
    encode_echo,
    encode_tag,
    icmp_text,
    is_port_unreachable,
    parse_answer,
    parse_icmp,
    parse_quoted_echo,
    parse_tag,
)

TAG = Tag(nonce=b"12345678", cell=70_000, protocol=3, attempt=2)


def test_tag_round_trip_with_padding() -> None:
    data = encode_tag(TAG, 1472)
    assert len(data) == 1472
    assert parse_tag(data) == TAG


@pytest.mark.parametrize(("source", "destination"), [("172.16.0.2", "172.16.1.2"), ("fd00::2", "fd00:1::2")])
def test_answer_round_trip(source: str, destination: str) -> None:
    sighting = Sighting(source, 40_000, destination, 62, 1472)
    assert parse_answer(encode_answer(TAG, sighting)) == (TAG, sighting)


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_none(data: bytes) -> None:
    for family in (4, 6):
        parse_quoted_echo(family, data)
    assert parse_tag(data[:13]) is None
    parse_answer(data[:60])
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
    found = parse_quoted_echo(family, bytes(header) + encode_echo(family, 77, 5, encode_tag(TAG)))
    assert found is not None
    assert (found.identifier, found.sequence, parse_tag(found.body)) == (77, 5, TAG)


def test_names_of_errors() -> None:
    assert icmp_text(4, 3, 1) == "host unreachable"
    assert icmp_text(6, 1, 0) == "no route to destination"
    assert icmp_text(4, 12, 7) == "ICMP type 12 code 7"
    assert is_port_unreachable(4, 3, 3)
    assert is_port_unreachable(6, 1, 4)
    assert not is_port_unreachable(4, 3, 1)
