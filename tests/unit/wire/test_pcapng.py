"""Blocks as the draft lays them out, read back by a reader of the test's own."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from muslin.wire.pcapng import INTERFACE, PACKET, SECTION, PcapngWriter


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, body) of each block; both lengths must agree."""
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, length - 4)[0] == length
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(body: bytes) -> dict[int, bytes]:
    found = {}
    while body:
        code, length = struct.unpack_from("<HH", body)
        if code == 0:
            break
        found[code] = body[4 : 4 + length]
        body = body[4 + length + -length % 4 :]
    return found


def test_each_interface_is_described_ahead_of_its_first_packet() -> None:
    writer = PcapngWriter(comment="lab x")
    data = writer.begin()
    data += writer.packet("node1/eth0", b"12345", 1.5, comment="carries it", about="namespace n")
    data += writer.packet("node1/tun0", b"1234", 2.0, ethernet=False, outgoing=True)
    data += writer.packet("node1/eth0", b"1", 3.0)
    found = list(blocks(data))
    assert [kind for kind, _ in found] == [SECTION, INTERFACE, PACKET, INTERFACE, PACKET, PACKET]
    assert options(found[0][1][16:])[1] == b"lab x"
    assert struct.unpack_from("<H", found[1][1])[0] == 1
    assert options(found[1][1][8:]) == {2: b"node1/eth0", 9: b"\x09", 3: b"namespace n"}
    assert struct.unpack_from("<H", found[3][1])[0] == 101


def test_a_packet_has_its_interface_time_length_direction_and_comment() -> None:
    writer = PcapngWriter()
    writer.packet("a", b"", 0.0)
    _, body = list(blocks(writer.packet("b", b"12345", 1.5, outgoing=True, comment="why")))[1]
    number, high, low, captured, length = struct.unpack_from("<IIIII", body)
    assert (number, high << 32 | low, captured, length) == (1, 1_500_000_000, 5, 5)
    assert body[20:25] == b"12345"
    assert options(body[28:]) == {2: struct.pack("<I", 2), 1: b"why"}
