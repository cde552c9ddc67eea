"""Set elements of nftables as netlink messages: values to bytes and back; and of tables, what their events say.

Theory of operation: tables and rules go through the ``nft`` program as text, whole. A large set that changes often
cannot: the program reads it whole before it changes one element. So elements have messages of their own. Changes to
nftables come as a batch (nfnetlink): a begin message, the changes, an end message, all or none of them. Constants are
from uapi/linux/netfilter/{nfnetlink,nf_tables}.h.

An element is an address, or the name of an interface with an address or a MAC: ``eth0 . 10.0.0.2``, as nft(8) writes
concatenations. Each field takes whole registers of four bytes, so the length of a key tells which of these it is.
"""

from __future__ import annotations

import struct

import msgspec

from muslin.wire.netlink import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Message,
    encode_attribute,
    encode_nested,
    parse_attributes,
    read_text,
    unpack,
)
from muslin.wire.rtnetlink_values import NAME_BYTES, Request, pack_address, pack_mac, unpack_address

FAMILY_NUMBERS = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*

FAMILY_NAMES = {number: name for name, number in FAMILY_NUMBERS.items()}

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
GET_TABLE = SUBSYSTEM << 8 | 1  # NFT_MSG_GETTABLE
DELETE_TABLE = SUBSYSTEM << 8 | 2
GENERATION = (15, 16)  # NFT_MSG_NEWGEN, NFT_MSG_GETGEN
BATCH_BEGIN = 0x10  # NFNL_MSG_BATCH_BEGIN
BATCH_END = 0x11  # NFNL_MSG_BATCH_END
NEW_ELEMENT = SUBSYSTEM << 8 | 12  # NFT_MSG_NEWSETELEM
GET_ELEMENT = SUBSYSTEM << 8 | 13
DELETE_ELEMENT = SUBSYSTEM << 8 | 14

# enum nft_table_attributes, nft_set_elem_list_attributes, nft_set_elem_attributes, nft_data_attributes,
# nft_list_attributes
TABLE_NAME = 1
ELEM_LIST_TABLE = 1
ELEM_LIST_SET = 2
ELEM_LIST_ELEMENTS = 3
LIST_ELEM = 1
ELEM_KEY = 1
DATA_VALUE = 1

INTERFACE_BYTES = 16  # IFNAMSIZ: the field of an interface's name in a key
MAC_BYTES = 6
JOINT = " . "
"""Between the fields of a concatenation (nft(8))."""

_HEADER = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource


def batch_edge(kind: int) -> Request:
    """The message that begins or ends a batch."""
    return Request(kind, 0, _HEADER.pack(0, 0, SUBSYSTEM))


def table_get(family: str, table: str) -> Request:
    """Ask for one table, without what is in it; ENOENT when there is none of this name."""
    payload = _HEADER.pack(FAMILY_NUMBERS[family], 0, 0) + encode_attribute(TABLE_NAME, table.encode() + b"\0")
    return Request(GET_TABLE, 0, payload)


def table_dump() -> Request:
    """Ask for all tables of all families, without what is in them."""
    return Request(GET_TABLE, NLM_F_DUMP, _HEADER.pack(0, 0, 0))


def element_add(family: str, table: str, set_name: str, element: str) -> Request:
    """Put an element into a set; one that is in it already stays there."""
    return Request(NEW_ELEMENT, NLM_F_CREATE, _encode(family, table, set_name, element))


def element_delete(family: str, table: str, set_name: str, element: str) -> Request:
    """Take an element out of a set; ENOENT when it is not in it."""
    return Request(DELETE_ELEMENT, 0, _encode(family, table, set_name, element))


def element_get(family: str, table: str, set_name: str, element: str) -> Request:
    """Ask for one element of a set; ENOENT when it is not in it."""
    return Request(GET_ELEMENT, 0, _encode(family, table, set_name, element))


def element_dump(family: str, table: str, set_name: str) -> Request:
    """Ask for all elements of a set; ENOENT when there is no such set."""
    return Request(GET_ELEMENT, NLM_F_DUMP, _encode_place(family, table, set_name))


def parse_elements(message: Message) -> list[str]:
    """The elements in one answer to ``element_dump``; those of other kinds are left out."""
    if message.kind != NEW_ELEMENT:
        return []
    attributes = parse_attributes(message.payload, _HEADER.size)
    found = []
    for element in _list_items(attributes.get(ELEM_LIST_ELEMENTS, b"")):
        key = parse_attributes(parse_attributes(element).get(ELEM_KEY, b"")).get(DATA_VALUE, b"")
        if (text := _unpack_key(key)) is not None:
            found.append(text)
    return found


class TableEvent(msgspec.Struct, frozen=True, gc=False):
    """Something happened to a table, or in it; ``removed`` when the table itself went."""

    family: str
    table: str
    removed: bool


def parse_event(message: Message) -> TableEvent | None:
    """The table that an event is about; None for one that is about none (the end of a transaction).

    Each kind of thing in a table names the table in attribute 1.
    """
    subsystem, what = divmod(message.kind, 1 << 8)
    if subsystem != SUBSYSTEM or what in GENERATION:
        return None
    number = unpack(_HEADER, "nfgenmsg", message.payload)[0]
    table = read_text(parse_attributes(message.payload, _HEADER.size), TABLE_NAME)
    if number not in FAMILY_NAMES or not table:
        raise ValueError(f"message kind {message.kind}: a family and the name of a table expected, not found")
    return TableEvent(FAMILY_NAMES[number], table, message.kind == DELETE_TABLE)


def _encode_place(family: str, table: str, set_name: str) -> bytes:
    return (
        _HEADER.pack(FAMILY_NUMBERS[family], 0, 0)
        + encode_attribute(ELEM_LIST_TABLE, table.encode() + b"\0")
        + encode_attribute(ELEM_LIST_SET, set_name.encode() + b"\0")
    )


def _encode(family: str, table: str, set_name: str, element: str) -> bytes:
    key = encode_nested(ELEM_KEY | NLA_F_NESTED, encode_attribute(DATA_VALUE, _pack_key(element)))
    item = encode_nested(LIST_ELEM | NLA_F_NESTED, key)
    return _encode_place(family, table, set_name) + encode_nested(ELEM_LIST_ELEMENTS | NLA_F_NESTED, item)


def is_mac(text: str) -> bool:
    """Whether a field of an element is a MAC and not an address: no IPv6 address has six groups of two digits."""
    return len(text) == 17 and text.count(":") == MAC_BYTES - 1 and "::" not in text


def _pack_key(element: str) -> bytes:
    """The bytes of an element; ValueError for what is none of the kinds that the head of this file names."""
    interface, joint, rest = element.rpartition(JOINT)
    if not joint:
        return pack_address(rest)[1]
    name = interface.encode()
    if not 0 < len(name) <= NAME_BYTES:
        raise ValueError(f"{element!r}: an interface name of 1 to {NAME_BYTES} bytes expected before the dot")
    address = pack_mac(rest) + b"\0\0" if is_mac(rest) else pack_address(rest)[1]
    return name.ljust(INTERFACE_BYTES, b"\0") + address


def _unpack_key(key: bytes) -> str | None:
    if len(key) in (4, 16):
        return unpack_address(key)
    if len(key) not in (INTERFACE_BYTES + 4, INTERFACE_BYTES + 8, INTERFACE_BYTES + 16):
        return None
    name, rest = key[:INTERFACE_BYTES].rstrip(b"\0").decode(errors="replace"), key[INTERFACE_BYTES:]
    return f"{name}{JOINT}{rest[:MAC_BYTES].hex(':') if len(rest) == 8 else unpack_address(rest)}"


def _list_items(payload: bytes) -> list[bytes]:
    """The payloads of a list, whose attributes all have one kind, which a dictionary cannot hold."""
    items = []
    offset = 0
    while offset + 4 <= len(payload):
        length = struct.unpack_from("=H", payload, offset)[0]
        if length < 4 or offset + length > len(payload):
            raise ValueError(f"offset {offset}: a list item of {length} bytes does not fit into {len(payload)}")
        items.append(payload[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return items
