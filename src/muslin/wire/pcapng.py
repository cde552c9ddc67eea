"""pcapng: many interfaces of many namespaces in one file that Wireshark and tshark read.

Theory of operation: as draft-ietf-opsawg-pcapng lays it out: a Section Header Block, an Interface Description Block for
each interface that a packet was seen at, and an Enhanced Packet Block for each packet, with its direction. All blocks
are little-endian here, times in nanoseconds. A writer is pure: it returns bytes and remembers which interfaces it has
described; so a file can be begun before anybody knows which interfaces there will be, and a pipe works as well.

Not handled: reading, name resolution and statistics blocks, packets cut short by us.
"""

from __future__ import annotations

import struct

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 0x00000001, 0x00000006
BYTE_ORDER = 0x1A2B3C4D
UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF
OPT_END, OPT_COMMENT = 0, 1
SHB_APPLICATION = 4
IF_NAME, IF_DESCRIPTION, IF_RESOLUTION = 2, 3, 9
EPB_FLAGS = 2
NANOSECONDS = 9
INBOUND, OUTBOUND = 1, 2
LINK_ETHERNET, LINK_RAW = 1, 101  # www.tcpdump.org/linktypes.html


class PcapngWriter:
    """Makes the blocks of one section."""

    def __init__(self, application: str = "muslin", comment: str = "") -> None:
        self._application = application
        self._comment = comment
        self._interfaces: dict[tuple[str, int], int] = {}

    def begin(self) -> bytes:
        """The Section Header Block: ahead of everything else."""
        options = _option(SHB_APPLICATION, self._application.encode())
        options += _option(OPT_COMMENT, self._comment.encode()) if self._comment else b""
        body = struct.pack("<IHHQ", BYTE_ORDER, 1, 0, UNKNOWN_LENGTH)
        return _block(SECTION, body + options + _option(OPT_END, b""))

    def packet(
        self,
        interface: str,
        data: bytes,
        at_s: float,
        *,
        ethernet: bool = True,
        outgoing: bool = False,
        comment: str = "",
        about: str = "",
    ) -> bytes:
        """A packet at an interface, and ahead of its first packet the interface, described by ``about``."""
        link_type = LINK_ETHERNET if ethernet else LINK_RAW
        blocks = b""
        if (interface, link_type) not in self._interfaces:
            self._interfaces[interface, link_type] = len(self._interfaces)
            blocks = _describe(interface, link_type, about)
        nanos = round(at_s * 1e9)
        number = self._interfaces[interface, link_type]
        head = struct.pack("<IIIII", number, nanos >> 32, nanos & 0xFFFFFFFF, len(data), len(data))
        options = _option(EPB_FLAGS, struct.pack("<I", OUTBOUND if outgoing else INBOUND))
        options += _option(OPT_COMMENT, comment.encode()) if comment else b""
        return blocks + _block(PACKET, head + _padded(data) + options + _option(OPT_END, b""))


def _describe(name: str, link_type: int, about: str) -> bytes:
    options = _option(IF_NAME, name.encode()) + _option(IF_RESOLUTION, bytes([NANOSECONDS]))
    options += _option(IF_DESCRIPTION, about.encode()) if about else b""
    return _block(INTERFACE, struct.pack("<HHI", link_type, 0, 0) + options + _option(OPT_END, b""))


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
