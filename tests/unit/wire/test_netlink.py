"""Framing: what is encoded is parsed again, known bytes stay known, no bytes raise anything but ValueError."""

import struct
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire import netlink
from muslin.wire.netlink import Message

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
MESSAGES = st.lists(st.tuples(U16, U16, U32, st.binary(max_size=40)), max_size=5)
ATTRIBUTES = st.dictionaries(st.integers(0, netlink.NLA_TYPE_MASK), st.binary(max_size=40), max_size=6)


def encode_all(attributes: dict[int, bytes]) -> bytes:
    return b"".join(netlink.encode_attribute(kind, value) for kind, value in attributes.items())


def only(buffer: bytes) -> Message:
    (message,) = netlink.iter_messages(buffer)
    return message


def test_known_message() -> None:
    # `ip link set dev ... up` on ifindex 3, as iproute2 6.1 sends it but for the sequence number.
    payload = bytes.fromhex("00000000030000000100000001000000")
    known = bytes.fromhex("20000000100005000100000000000000") + payload
    assert netlink.encode_message(16, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, 1, payload) == known
    assert only(known) == Message(16, 5, 1, 0, payload)


def test_known_attributes() -> None:
    assert netlink.encode_attribute(3, b"br0\0") == bytes.fromhex("0800030062723000")
    assert netlink.encode_attribute(23, b"") == bytes.fromhex("04001700")
    assert netlink.encode_u8(18, 1) == bytes.fromhex("0500120001000000")
    assert netlink.encode_u32(4, 1400) == bytes.fromhex("0800040078050000")
    assert netlink.encode_nested(8, netlink.encode_u32(2, 1300)) == bytes.fromhex("0c0008000800020014050000")


@given(MESSAGES)
def test_messages_return(parts: list[tuple[int, int, int, bytes]]) -> None:
    datagram = b"".join(netlink.encode_message(*part) for part in parts)
    assert len(datagram) % 4 == 0
    for buffer in (datagram, bytearray(datagram), memoryview(datagram)):
        found = list(netlink.iter_messages(buffer))
        assert [(m.kind, m.flags, m.sequence, m.payload) for m in found] == parts
        assert all(type(message.payload) is bytes and message.port == 0 for message in found)


@given(ATTRIBUTES)
def test_attributes_return(attributes: dict[int, bytes]) -> None:
    assert netlink.parse_attributes(encode_all(attributes)) == attributes
    assert netlink.parse_attributes(b"header!!" + encode_all(attributes), 8) == attributes


def test_flag_bits_of_a_kind_are_masked_and_the_last_wins() -> None:
    payload = netlink.encode_u32(5 | netlink.NLA_F_NESTED, 1) + netlink.encode_u8(5 | netlink.NLA_F_NET_BYTEORDER, 2)
    assert netlink.parse_attributes(payload) == {5: b"\2"}


def refusal(parse: Callable[[], object]) -> str:
    """What was wrong, in the words of the ValueError; any other exception fails the test."""
    try:
        parse()
    except ValueError as error:
        return str(error)
    return "offset of nothing, all as expected"


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_value_errors(data: bytes) -> None:
    for parse in (lambda: list(netlink.iter_messages(data)), lambda: netlink.parse_attributes(data)):
        text = refusal(parse)
        assert "offset" in text
        assert "expected" in text


@given(st.sampled_from([netlink.NLMSG_ERROR, netlink.NLMSG_DONE, 16]), U16, st.binary(max_size=120))
def test_random_answers_raise_only_value_errors(kind: int, flags: int, data: bytes) -> None:
    assert "expected" in refusal(lambda: netlink.parse_error(Message(kind, flags, 1, 0, data)))


@given(st.binary(min_size=1, max_size=60), st.data())
def test_every_truncation_is_noticed(payload: bytes, data: st.DataObject) -> None:
    message = netlink.encode_message(16, 0, 1, payload)
    end = data.draw(st.integers(1, 15 + len(payload)))
    with pytest.raises(ValueError, match="offset 0"):
        list(netlink.iter_messages(message[:end]))


def test_messages_before_a_broken_one_are_yielded() -> None:
    messages = netlink.iter_messages(netlink.encode_message(16, 0, 1, b"abcd") + b"\x07\0\0\0" * 4)
    assert next(messages).payload == b"abcd"
    with pytest.raises(ValueError, match="offset 20: a message length of 16 to 16 expected, 7 found"):
        next(messages)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_numbers_out_of_range_are_value_errors(value: int) -> None:
    with pytest.raises(ValueError, match="attribute 4"):
        netlink.encode_u32(4, value)
    with pytest.raises(ValueError, match="attribute 4"):
        netlink.encode_u8(4, value)
    with pytest.raises(ValueError, match="nlmsghdr"):
        netlink.encode_message(16, 0, value, b"")
    with pytest.raises(ValueError, match="nlattr"):
        netlink.encode_attribute(4, bytes(0xFFFC))


def test_readers() -> None:
    attributes = {1: b"\7", 2: struct.pack("=I", 9), 3: b"eth0\0junk", 4: b"\xff!"}
    assert netlink.read_u8(attributes, 1) == 7
    assert netlink.read_u32(attributes, 2) == 9
    assert (netlink.read_u8(attributes, 9), netlink.read_u32(attributes, 9, 5)) == (0, 5)
    assert netlink.read_text(attributes, 3) == "eth0"
    assert netlink.read_text(attributes, 4) == "\\xff!"
    assert netlink.read_text(attributes, 9) == ""
    with pytest.raises(ValueError, match="attribute 1: 4 bytes expected, 1 found"):
        netlink.read_u32(attributes, 1)
    with pytest.raises(ValueError, match="attribute 2: 1 byte expected, 4 found"):
        netlink.read_u8(attributes, 2)


REQUEST = netlink.encode_message(20, 5, 1, b"the request's payload")
TEXT = netlink.encode_attribute(netlink.NLMSGERR_ATTR_OFFS, b"\x10\0\0\0") + netlink.encode_attribute(
    netlink.NLMSGERR_ATTR_MSG, b"Invalid prefix for given prefix length\0"
)
SAID = "Invalid prefix for given prefix length"


@pytest.mark.parametrize(
    ("kind", "flags", "payload", "answer"),
    [
        (netlink.NLMSG_ERROR, netlink.NLM_F_CAPPED, struct.pack("=i", 0) + REQUEST[:16], (0, None)),
        (netlink.NLMSG_ERROR, 0, struct.pack("=i", -17) + REQUEST, (17, None)),
        (netlink.NLMSG_ERROR, netlink.NLM_F_ACK_TLVS, struct.pack("=i", -22) + REQUEST + TEXT, (22, SAID)),
        (
            netlink.NLMSG_ERROR,
            netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED,
            struct.pack("=i", -22) + REQUEST[:16] + TEXT,
            (22, SAID),
        ),
        (netlink.NLMSG_DONE, netlink.NLM_F_MULTI, b"", (0, None)),
        (netlink.NLMSG_DONE, netlink.NLM_F_MULTI, struct.pack("=i", 0), (0, None)),
        (netlink.NLMSG_DONE, netlink.NLM_F_ACK_TLVS, struct.pack("=i", -2) + TEXT, (2, SAID)),
    ],
)
def test_answers(kind: int, flags: int, payload: bytes, answer: tuple[int, str | None]) -> None:
    assert netlink.parse_error(Message(kind, flags, 1, 0, payload)) == answer


def test_answer_that_claims_a_longer_request() -> None:
    message = Message(netlink.NLMSG_ERROR, netlink.NLM_F_ACK_TLVS, 1, 0, struct.pack("=i", -22) + REQUEST[:20])
    with pytest.raises(ValueError, match="offset 4: a request length of 16 to 20 expected, 37 found"):
        netlink.parse_error(message)


def test_only_answers_have_an_error() -> None:
    with pytest.raises(ValueError, match="NLMSG_ERROR or NLMSG_DONE expected"):
        netlink.parse_error(Message(16, 0, 1, 0, b""))


def test_the_port_is_read_without_the_rest() -> None:
    framed = bytearray(netlink.encode_message(20, 0, 1, b"abc"))
    framed[12:16] = (0xF0000001).to_bytes(4, sys.byteorder)
    assert netlink.read_port(framed) == 0xF0000001 == next(netlink.iter_messages(framed)).port
    with pytest.raises(ValueError, match="a message header"):
        netlink.read_port(framed[:15])
