"""The probing packets, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.verify.payload import Sighting, Tag, encode_answer, encode_tag, parse_answer, parse_tag

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
    assert parse_tag(data[:13]) is None
    parse_answer(data[:60])
