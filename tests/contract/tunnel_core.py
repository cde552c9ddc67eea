"""The pure parts of the tunnel core, as functions: compiled into a library and called by ctypes."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADERS_MAX_BYTES = 192  # native/offload.h, as are the next
JOIN_MAX_PACKETS = 64
ICMP_ERROR_MAX_BYTES = 1280
NO_ROUTE, TOO_BIG = 0, 1


class Addresses(ctypes.Structure):
    _fields_ = (("source", ctypes.c_void_p), ("destination", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Segment(ctypes.Structure):
    _fields_ = (
        ("packet", ctypes.c_void_p),
        ("bytes", ctypes.c_uint16),
        ("payload_offset", ctypes.c_uint16),
        ("l4_offset", ctypes.c_uint8),
        ("protocol", ctypes.c_uint8),
    )


class Slice(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Split(ctypes.Structure):
    _fields_ = (
        ("packet", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("l4_offset", ctypes.c_size_t),
        ("headers_bytes", ctypes.c_size_t),
        ("payload_bytes", ctypes.c_size_t),
        ("done_bytes", ctypes.c_size_t),
        ("segments", ctypes.c_uint),
        ("is_tcp", ctypes.c_bool),
    )


class Join(ctypes.Structure):
    _fields_ = (
        ("virtio", ctypes.c_uint8 * 10),
        ("headers", ctypes.c_uint8 * 100),
        ("slices", Slice * (2 + JOIN_MAX_PACKETS)),
        ("packets", Slice * JOIN_MAX_PACKETS),
        ("first", Segment),
        ("count", ctypes.c_uint),
        ("bytes", ctypes.c_size_t),
        ("next_sequence", ctypes.c_uint32),
        ("counts_identifiers", ctypes.c_bool),
        ("is_closed", ctypes.c_bool),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The library, compiled once a run."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "core.so"
        subprocess.run([ROOT / "native" / "build", path, "library"], check=True)
        core = ctypes.CDLL(str(path))
    for name in ("parse_addresses", "parse_segment", "mark_congestion", "split_next", "join_is_same_flow", "join_add"):
        getattr(core, name).restype = ctypes.c_bool
    for name in ("parse_endpoint", "table_add_text"):
        getattr(core, name).restype = ctypes.c_bool
    for name in ("encode_icmp_error", "sum_bytes"):
        getattr(core, name).restype = ctypes.c_size_t
    core.fold.restype = ctypes.c_uint16
    core.table_owner.restype = core.table_sender.restype = ctypes.c_void_p
    core.sum_bytes.argtypes = (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t)
    core.fold.argtypes = (ctypes.c_uint64,)
    return core


def missing() -> str:
    """What this machine lacks for the library, empty if nothing."""
    return "" if shutil.which("cc") else "no C compiler (cc)"


def parse_addresses(packet: bytes) -> tuple[bytes, bytes] | None:
    """Source and destination, as the core finds them."""
    found = Addresses()
    if not library().parse_addresses(packet, ctypes.c_size_t(len(packet)), ctypes.byref(found)):
        return None
    return ctypes.string_at(found.source, found.bytes), ctypes.string_at(found.destination, found.bytes)


def icmp_error(packet: bytes, mtu_bytes: int) -> bytes | None:
    """The core's answer about a packet; 0 for one that has no route."""
    room = ctypes.create_string_buffer(ICMP_ERROR_MAX_BYTES)
    what = TOO_BIG if mtu_bytes else NO_ROUTE
    length = library().encode_icmp_error(packet, ctypes.c_size_t(len(packet)), what, ctypes.c_uint(mtu_bytes), room)
    return room.raw[:length] or None


def checksum(data: bytes) -> int:
    """The Internet checksum of some bytes."""
    folded = library().fold(library().sum_bytes(0, data, len(data)))
    return ~int.from_bytes(int(folded).to_bytes(2, "little"), "big") & 0xFFFF


def mark_congestion(packet: bytes, outer: int) -> bytes | None:
    """The packet as it leaves the tunnel; None where it is dropped."""
    copy = ctypes.create_string_buffer(packet, len(packet))
    return copy.raw if library().mark_congestion(copy, ctypes.c_uint8(outer)) else None


def split(virtio: bytes, packet: bytes) -> list[bytes] | None:
    """The packets that a read from a TUN device becomes; None if it is malformed."""
    copy, state = ctypes.create_string_buffer(packet, len(packet)), Split()
    verdict = library().split_begin(ctypes.byref(state), virtio, copy, ctypes.c_size_t(len(packet)))
    if verdict < 2:
        return [copy.raw] if verdict else None
    made, room, payload = [], ctypes.create_string_buffer(HEADERS_MAX_BYTES), Slice()
    while library().split_next(ctypes.byref(state), room, ctypes.byref(payload)):
        made.append(room.raw[: state.headers_bytes] + ctypes.string_at(payload.base, payload.length))
    return made


def join(packets: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """(virtio header, packet) for what is written when these packets come, one flow at a time."""
    written: list[tuple[bytes, bytes]] = []
    copies = [ctypes.create_string_buffer(packet, len(packet)) for packet in packets]
    state, is_open = Join(), False

    def finish() -> None:
        count = library().join_finish(ctypes.byref(state))
        parts = [ctypes.string_at(each.base, each.length) for each in state.slices[:count]]
        written.append((parts[0], b"".join(parts[1:])))

    for copy, packet in zip(copies, packets, strict=True):
        segment = Segment()
        joinable = library().parse_segment(copy, ctypes.c_size_t(len(packet)), ctypes.byref(segment))
        both = (ctypes.byref(state), ctypes.byref(segment))
        if is_open and joinable and library().join_is_same_flow(*both) and library().join_add(*both):
            continue
        if is_open:
            finish()
        if joinable:
            library().join_begin(ctypes.byref(state), ctypes.byref(segment))
        else:
            written.append((bytes(10), packet))
        is_open = joinable
    if is_open:
        finish()
    return written


class Table:
    """The core's table of peers."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(16 << 20)
        self._listen = ctypes.create_string_buffer(28)
        self._error = ctypes.create_string_buffer(600)
        assert library().parse_endpoint(b"10.0.0.1:9000", self._listen, self._error)

    def add(self, text: str) -> str:
        """Add PREFIX=ADDRESS:PORT; a sentence when that is refused."""
        taken = library().table_add_text(self._room, self._listen, text.encode(), self._error)
        return "" if taken else self._error.value.decode()

    def owner(self, address: bytes) -> str | None:
        """The endpoint of the peer that owns an address."""
        found = library().table_owner(self._room, address, ctypes.c_size_t(len(address)))
        if not found:
            return None
        room = ctypes.create_string_buffer(64)
        library().show_endpoint.restype = ctypes.c_char_p
        return str(library().show_endpoint(ctypes.c_void_p(found), room).decode())

    def clear(self) -> None:
        """Make it empty again."""
        library().table_clear(self._room)
