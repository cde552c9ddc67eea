"""What plugin and agent say to each other: there and back, cut short, and of strangers."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire import cni_socket
from muslin.wire.cni_socket import (
    ANSWER_HEADER_BYTES,
    HEADER_BYTES,
    Answer,
    Request,
    SpoolFile,
    encode_answer,
    encode_request,
    parse_answer,
    parse_header,
    parse_request,
    parse_spool_name,
)

NATIVE = Path(__file__).parents[3] / "native"

text = st.binary(max_size=40).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
requests = st.builds(
    Request,
    environment=st.dictionaries(text.map(lambda name: "CNI_" + name.replace("=", "")), text, max_size=6),
    stdin=st.binary(max_size=200),
    flags=st.integers(0, 7),
    netns_errno=st.sampled_from([0, errno.ENOENT, errno.EINVAL]),
)


def example() -> Request:
    return Request(
        environment={"CNI_COMMAND": "ADD", "CNI_ARGS": "a=b;c=d"},
        stdin=b'{"cniVersion": "1.0.0"}',
        flags=cni_socket.NETNS | cni_socket.OWN_NETNS,
        netns_errno=errno.EINVAL,
    )


def test_a_request_stands_in_the_bytes_that_the_protocol_says() -> None:
    environment = b"CNI_COMMAND=ADD\0CNI_ARGS=a=b;c=d\0"
    stdin = b'{"cniVersion": "1.0.0"}'
    header = struct.pack("=4sHHiII", b"MCNI", 1, 3, 22, len(environment), len(stdin))
    assert encode_request(example()) == header + environment + stdin
    found = parse_request(header + environment + stdin)
    assert (found, found.has_netns, found.is_own_netns, found.is_spooled) == (example(), True, True, False)
    assert parse_header(header).body_bytes == len(environment + stdin)


@given(requests)
def test_a_request_comes_back_as_it_went(request: Request) -> None:
    assert parse_request(encode_request(request)) == request


@given(st.integers(0, 255), st.binary(max_size=300))
def test_an_answer_comes_back_as_it_went(exit_status: int, document: bytes) -> None:
    answer = Answer(exit_status=exit_status, document=document)
    assert parse_answer(encode_answer(answer)) == answer


@given(requests, st.data())
def test_a_request_that_is_cut_short_or_too_long_is_refused(request: Request, data: st.DataObject) -> None:
    whole = encode_request(request)
    shorter = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for wrong in (shorter, whole + b"x"):
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes; expected"):
            parse_request(wrong)


@given(st.binary(max_size=80))
def test_whatever_comes_is_a_request_or_refused(data: bytes) -> None:
    header = struct.pack("=4sHHiII", b"MCNI", 1, 0, 0, min(len(data), 20), max(len(data) - 20, 0))
    for candidate in (data, header + data):
        try:
            found = parse_request(candidate)
        except ValueError:
            continue
        assert parse_request(encode_request(found)) == found


@pytest.mark.parametrize(
    ("offset", "wrong", "sentence"),
    [
        (0, b"HTTP", r"begins with b'HTTP'; expected b'MCNI'"),
        (4, struct.pack("=H", 2), "version 2; expected 1: use plugin and agent of one version"),
        (12, struct.pack("=I", 65537), "environment of a request has 65537 bytes; expected at most 65536"),
        (16, struct.pack("=I", 1 << 31), "standard input of a request has 2147483648 bytes; expected at most 1048576"),
    ],
)
def test_a_header_that_cannot_be_right_is_named(offset: int, wrong: bytes, sentence: str) -> None:
    data = bytearray(encode_request(example()))
    data[offset : offset + len(wrong)] = wrong
    with pytest.raises(ValueError, match=sentence):
        parse_header(bytes(data))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [(b"CNI_A=1", "does not end with NUL"), (b"CNI_A\0", "'CNI_A'.* is no NAME=VALUE"), (b"=1\0", "'=1'.* no NAME")],
)
def test_an_environment_that_is_none_is_refused(environment: bytes, sentence: str) -> None:
    data = struct.pack("=4sHHiII", b"MCNI", 1, 0, 0, len(environment), 0) + environment
    with pytest.raises(ValueError, match=sentence):
        parse_request(data)


def test_of_a_name_that_is_there_twice_the_first_counts_as_in_getenv() -> None:
    environment = b"CNI_A=1\0CNI_A=2\0"
    data = struct.pack("=4sHHiII", b"MCNI", 1, 0, 0, len(environment), 0) + environment
    assert parse_request(data).environment == {"CNI_A": "1"}


@pytest.mark.parametrize("environment", [{"": "1"}, {"A=B": "1"}, {"A": "1\0"}, {"A\0": ""}])
def test_what_no_environment_can_hold_is_not_sent(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be a variable"):
        encode_request(Request(environment=environment))


def test_what_the_plugin_would_not_take_is_not_sent() -> None:
    with pytest.raises(ValueError, match="exit status is 256; expected 0 to 255"):
        encode_answer(Answer(exit_status=256))
    with pytest.raises(ValueError, match="1048577 bytes; expected at most 1048576"):
        encode_answer(Answer(exit_status=0, document=bytes((1 << 20) + 1)))
    with pytest.raises(ValueError, match="65537 bytes"):
        encode_request(Request(environment={"A": "x" * (65537 - 3)}))
    assert len(encode_request(Request(environment={"A": "x" * (65536 - 3)}))) == HEADER_BYTES + 65536


@pytest.mark.parametrize("length", [0, ANSWER_HEADER_BYTES - 1, ANSWER_HEADER_BYTES + 1])
def test_an_answer_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes; expected"):
        parse_answer(encode_answer(Answer(exit_status=0, document=b"{}"))[:length])


@given(st.integers(0, 10**20 - 1), st.integers(1, 1 << 22), st.booleans())
def test_a_file_of_the_spool_tells_when_and_whose_it_is(at_ns: int, pid: int, complete: bool) -> None:
    file = SpoolFile(at_ns=at_ns, pid=pid, complete=complete)
    assert parse_spool_name(file.name) == file


@pytest.mark.parametrize("name", ["", "1-2.del", f"{0:020d}-1.de", f"{0:020d}-1.del.new", f"{0:020d}--1.del", "lock"])
def test_other_names_in_the_spool_are_others(name: str) -> None:
    assert parse_spool_name(name) is None


def test_the_numbers_are_those_of_the_plugin() -> None:
    """native/cni.h is the twin."""
    source = (NATIVE / "cni.h").read_text()
    defined = dict(re.findall(r"#define (\w+) (\(1 << \d+\)|\d+)", source))
    numbers = {name: eval(value) for name, value in defined.items()}
    for name in ("STDIN_MAX_BYTES", "ENVIRONMENT_MAX_BYTES", "ANSWER_MAX_BYTES"):
        assert numbers[name] == getattr(cni_socket, name)
    assert (numbers["FLAG_NETNS"], numbers["FLAG_OWN_NETNS"], numbers["FLAG_SPOOLED"]) == (
        cni_socket.NETNS,
        cni_socket.OWN_NETNS,
        cni_socket.SPOOLED,
    )
    assert f"sizeof(struct header) == {HEADER_BYTES}" in source
