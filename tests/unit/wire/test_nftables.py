"""Set elements as messages: golden bytes, and what parsing does with anything else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire import nftables
from muslin.wire.netlink import Message, encode_attribute

ADDRESSES = st.ip_addresses()


def answer(payload: bytes, kind: int = nftables.NEW_ELEMENT) -> Message:
    return Message(kind, 0, 1, 0, payload)


@given(ADDRESSES)
def test_an_element_is_read_as_it_was_written(address: IPv4Address | IPv6Address) -> None:
    request = nftables.element_add("inet", "muslin", "nodes4", str(address))
    assert [ip_address(text) for text in nftables.parse_elements(answer(request.payload))] == [address]


def test_an_element_message_is_what_the_header_files_say() -> None:
    request = nftables.element_delete("ip", "t", "s", "10.0.0.1")
    assert request.kind == 10 << 8 | 14
    assert (
        request.payload.hex()
        == (
            "02000000"  # nfgenmsg: NFPROTO_IPV4, version 0, resource 0
            "060001007400" + "0000"  # NFTA_SET_ELEM_LIST_TABLE "t"
            "060002007300" + "0000"  # NFTA_SET_ELEM_LIST_SET "s"
            "14000380"  # NFTA_SET_ELEM_LIST_ELEMENTS
            "10000180"  # NFTA_LIST_ELEM
            "0c000180"  # NFTA_SET_ELEM_KEY
            "080001000a000001"  # NFTA_DATA_VALUE
        )
    )


def test_a_table_is_asked_for_by_family_and_name() -> None:
    request = nftables.table_get("inet", "muslin")
    assert request.kind == 10 << 8 | 1
    assert request.payload.hex() == "01000000" + "0b0001006d75736c696e0000"


def test_a_batch_names_the_subsystem_at_both_ends() -> None:
    assert nftables.batch_edge(nftables.BATCH_BEGIN).payload == b"\0\0\0\x0a"


def test_other_messages_hold_no_elements() -> None:
    assert nftables.parse_elements(answer(b"", kind=nftables.GET_ELEMENT)) == []


@given(st.binary(max_size=200))
def test_damaged_answers_raise_value_errors_only(payload: bytes) -> None:
    try:
        nftables.parse_elements(answer(payload))
    except ValueError:
        return


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="an IPv4 or IPv6 address expected"):
        nftables.element_add("inet", "muslin", "nodes4", "somewhere")


@pytest.mark.parametrize("kind", [nftables.GET_TABLE - 1, nftables.DELETE_TABLE, nftables.NEW_ELEMENT])
def test_an_event_tells_its_table(kind: int) -> None:
    payload = bytes((1, 0, 0, 0)) + encode_attribute(1, b"muslin\0")
    event = nftables.parse_event(Message(kind, 0, 0, 0, payload))
    assert event == nftables.TableEvent("inet", "muslin", kind == nftables.DELETE_TABLE)


def test_the_end_of_a_transaction_is_about_no_table() -> None:
    assert nftables.parse_event(Message(nftables.SUBSYSTEM << 8 | 15, 0, 0, 0, bytes(4))) is None


def test_an_event_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="name of a table expected"):
        nftables.parse_event(Message(nftables.NEW_ELEMENT, 0, 0, 0, bytes((1, 0, 0, 0))))
