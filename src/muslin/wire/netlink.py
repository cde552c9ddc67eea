"""Netlink framing: messages, attributes and the kernel's answers, as bytes and values.

Theory of operation
-------------------
A datagram on a netlink socket is a row of messages, each a 16-byte header (struct nlmsghdr) and a payload,
padded to 4 bytes. The payload is a fixed header that belongs to the message kind, then attributes: a 4-byte
header (length, kind), a value, padding to 4 bytes. An attribute may hold attributes again. All of it is in
host byte order, which is what "=" in a `struct` layout means.

    +--------+------+-------+----------+------+--------------+-------+-------+-----+
    | length | kind | flags | sequence | port | fixed header | attr  | attr  | ... |
    +--------+------+-------+----------+------+--------------+-------+-------+-----+
    |<------------- 16 bytes --------------->|<------------- payload ------------->|

Numbers that will not fit raise ValueError when encoding. What is decoded is never trusted: a length that
lies, or a value that is cut off, raises ValueError with the offset and what was expected there; nothing else
is raised.

Not handled: generic netlink families, policies (NLMSGERR_ATTR_POLICY) and sending: that is the door's work.
"""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

# linux/netlink.h: flags of a message. The same bits mean other things in a GET, a NEW, a DEL and an answer.
NLM_F_ACK = 0x04
NLM_F_ACK_TLVS = 0x200  # answer: extended-ack attributes follow
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100  # answer: the request's payload was left off
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLM_F_DUMP_FILTERED = 0x20
NLM_F_DUMP_INTR = 0x10  # the dump is inconsistent: ask again
NLM_F_ECHO = 0x08
NLM_F_EXCL = 0x200
NLM_F_MULTI = 0x02
NLM_F_REPLACE = 0x100
NLM_F_REQUEST = 0x01

# linux/netlink.h: message kinds below NLMSG_MIN_TYPE
NLMSG_DONE = 3
NLMSG_ERROR = 2
NLMSG_NOOP = 1
NLMSG_OVERRUN = 4

# linux/netlink.h: attributes of an extended ack
NLMSGERR_ATTR_MSG = 1
NLMSGERR_ATTR_OFFS = 2

# linux/netlink.h: the two flag bits of an attribute kind, and the rest of it
NLA_F_NESTED = 0x8000
NLA_F_NET_BYTEORDER = 0x4000
NLA_TYPE_MASK = 0x3FFF

MESSAGE_HEADER_BYTES = 16  # struct nlmsghdr
ATTRIBUTE_HEADER_BYTES = 4  # struct nlattr

_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, kind, flags, sequence, port
_PORT = struct.Struct("=12xI")  # the same, the port alone
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, kind
_ATTRIBUTE_U8 = struct.Struct("=HHBxxx")
_ATTRIBUTE_U32 = struct.Struct("=HHI")
_ERROR = struct.Struct("=i")  # struct nlmsgerr, before the request's header
_U32 = struct.Struct("=I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message of a datagram. `payload` is what follows the 16-byte header, without padding."""

    kind: int
    flags: int
    sequence: int
    port: int
    payload: bytes


def encode_message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Return one framed message, padded to 4 bytes; several may be joined into one send.

    The port is 0, by which the kernel knows itself to be addressed. Raises ValueError for a number out of
    range.
    """
    length = MESSAGE_HEADER_BYTES + len(payload)
    header = pack(_MESSAGE, "nlmsghdr (length, kind, flags, sequence, port)", length, kind, flags, sequence, 0)
    return header + payload + _PADDING[length & 3]


def read_port(buffer: bytes | bytearray) -> int:
    """Return the port id in the header of the first message, all else unread; ValueError when there is none."""
    port: int = unpack(_PORT, "a message header", buffer)[0]
    return port


def iter_messages(buffer: bytes | bytearray | memoryview) -> Iterator[Message]:
    """Yield the messages of one received datagram, in order.

    Raises ValueError at the first message whose length cannot be right; the ones before it have been yielded.
    """
    data = bytes(buffer)
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < MESSAGE_HEADER_BYTES:
            raise ValueError(f"offset {offset}: a message header of 16 bytes expected, {end - offset} bytes left")
        length, kind, flags, sequence, port = _MESSAGE.unpack_from(data, offset)
        if not MESSAGE_HEADER_BYTES <= length <= end - offset:
            raise ValueError(f"offset {offset}: a message length of 16 to {end - offset} expected, {length} found")
        yield Message(kind, flags, sequence, port, data[offset + MESSAGE_HEADER_BYTES : offset + length])
        offset += (length + 3) & ~3


def encode_attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes. An empty payload makes a flag attribute."""
    length = ATTRIBUTE_HEADER_BYTES + len(payload)
    return pack(_ATTRIBUTE, "nlattr (length, kind)", length, kind) + payload + _PADDING[length & 3]


def encode_nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds `attributes`.

    NLA_F_NESTED is not set: rtnetlink's own nests predate it, and iproute2 leaves it out. A family that
    insists (its kernel policy is strict) is given `kind | NLA_F_NESTED`.
    """
    return encode_attribute(kind, b"".join(attributes))


def encode_u8(kind: int, value: int) -> bytes:
    """Return an attribute of one byte."""
    return pack(_ATTRIBUTE_U8, f"attribute {kind} (u8)", 5, kind, value)


def encode_u32(kind: int, value: int) -> bytes:
    """Return an attribute of 32 bits in host byte order."""
    try:
        return _ATTRIBUTE_U32.pack(8, kind, value)
    except struct.error as error:
        raise ValueError(f"attribute {kind} (u32): {value!r}: {error}") from None


def pack(layout: struct.Struct, what: str, *values: Any) -> bytes:
    """Pack `values`; a value out of range raises ValueError that says `what` was being packed."""
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise ValueError(f"{what}: {values!r}: {error}") from None


def unpack(layout: struct.Struct, what: str, payload: bytes | bytearray) -> tuple[Any, ...]:
    """Unpack the fixed header at the start of `payload`; ValueError if it is cut off."""
    if len(payload) < layout.size:
        raise ValueError(f"offset 0: {what} of {layout.size} bytes expected, {len(payload)} bytes left")
    return layout.unpack_from(payload)


def parse_attributes(payload: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes of `payload` from `offset` on, by kind less its flag bits; of two the last wins.

    Raises ValueError, naming the offset in `payload`, for a length that is too small or reaches past the end.
    """
    attributes: dict[int, bytes] = {}
    end = len(payload)
    while offset < end:
        if end - offset < ATTRIBUTE_HEADER_BYTES:
            raise ValueError(f"offset {offset}: an attribute header of 4 bytes expected, {end - offset} bytes left")
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if not ATTRIBUTE_HEADER_BYTES <= length <= end - offset:
            raise ValueError(f"offset {offset}: an attribute length of 4 to {end - offset} expected, {length} found")
        attributes[kind & NLA_TYPE_MASK] = payload[offset + ATTRIBUTE_HEADER_BYTES : offset + length]
        offset += (length + 3) & ~3
    return attributes


def read_number(attributes: dict[int, bytes], kind: int, layout: struct.Struct, default: int = 0) -> int:
    """Return the number in attribute `kind`, or `default` if absent; ValueError for another size."""
    data = attributes.get(kind)
    if data is None:
        return default
    if len(data) != layout.size:
        raise ValueError(f"attribute {kind}: {layout.size} bytes expected, {len(data)} found")
    value: int = layout.unpack(data)[0]
    return value


def read_u8(attributes: dict[int, bytes], kind: int, default: int = 0) -> int:
    """Return the byte in attribute `kind`, or `default`; ValueError unless it is one byte long."""
    data = attributes.get(kind)
    if data is None:
        return default
    if len(data) != 1:
        raise ValueError(f"attribute {kind}: 1 byte expected, {len(data)} found")
    return data[0]


def read_u32(attributes: dict[int, bytes], kind: int, default: int = 0) -> int:
    """Return the 32-bit number in attribute `kind`, or `default`; ValueError unless it is 4 bytes long."""
    return read_number(attributes, kind, _U32, default)


def read_text(attributes: dict[int, bytes], kind: int) -> str:
    """Return the NUL-terminated text in attribute `kind`, or ''. Bytes that are not UTF-8 show as \\xNN."""
    return attributes.get(kind, b"").partition(b"\0")[0].decode("utf-8", "backslashreplace")


def parse_error(message: Message) -> tuple[int, str | None]:
    """Return (errno, text) of an NLMSG_ERROR, or of an NLMSG_DONE that ends a dump.

    errno is positive, 0 for an acknowledgement; text is the kernel's own sentence, if the socket asked for it
    (NETLINK_EXT_ACK). An NLMSG_DONE without a body counts as success. Raises ValueError for any other kind.
    """
    payload = message.payload
    if message.kind == NLMSG_DONE and not payload:
        return 0, None
    if message.kind not in (NLMSG_DONE, NLMSG_ERROR):
        raise ValueError(f"message kind {message.kind}: NLMSG_ERROR or NLMSG_DONE expected")
    code: int = unpack(_ERROR, "an error number", payload)[0]
    if not message.flags & NLM_F_ACK_TLVS:
        return abs(code), None
    offset = _ERROR.size if message.kind == NLMSG_DONE else _end_of_request(message)
    return abs(code), read_text(parse_attributes(payload, offset), NLMSGERR_ATTR_MSG) or None


def _end_of_request(message: Message) -> int:
    """Return where in an NLMSG_ERROR's payload the echoed request ends: its header alone when capped."""
    start, payload = _ERROR.size, message.payload
    if len(payload) < start + MESSAGE_HEADER_BYTES:
        raise ValueError(f"offset {start}: the request's header of 16 bytes expected, {len(payload) - start} left")
    if message.flags & NLM_F_CAPPED:
        return start + MESSAGE_HEADER_BYTES
    length: int = _U32.unpack_from(payload, start)[0]
    if not MESSAGE_HEADER_BYTES <= length <= len(payload) - start:
        raise ValueError(f"offset {start}: a request length of 16 to {len(payload) - start} expected, {length} found")
    return start + ((length + 3) & ~3)
