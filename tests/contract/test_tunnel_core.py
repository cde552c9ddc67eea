"""The pure parts of the tunnel core beside their naive twins: those of reference.py, and a few lines of Python here."""

from __future__ import annotations

import argparse
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.tunnel import reference
from tests.contract import tunnel_core as core

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(bool(core.missing()), reason=f"tunnel core: {core.missing()}"),
]

TCP, UDP = 6, 17
V4 = (ipaddress.ip_address("172.16.0.2").packed, ipaddress.ip_address("172.16.1.2").packed)
V6 = (ipaddress.ip_address("fd00::2").packed, ipaddress.ip_address("fd00::1:2").packed)
DONT_FRAGMENT = 0x4000


def ip_packet(
    version: int, protocol: int, l4: bytes, *, identifier: int = 0, flags: int = DONT_FRAGMENT, traffic_class: int = 0
) -> bytes:
    """A packet around a TCP or UDP segment; its IPv4 checksum is right."""
    if version == 6:
        return struct.pack("!IHBB", 6 << 28 | traffic_class << 20, len(l4), protocol, 63) + V6[0] + V6[1] + l4
    header = struct.pack("!BBHHHBBH", 0x45, traffic_class, 20 + len(l4), identifier & 0xFFFF, flags, 63, protocol, 0)
    header += V4[0] + V4[1]
    return header[:10] + struct.pack("!H", reference.checksum(header)) + header[12:] + l4


def with_checksum(version: int, protocol: int, l4: bytes) -> bytes:
    """The same segment with its checksum."""
    at = 16 if protocol == TCP else 6
    ends = V4 if version == 4 else V6
    l4 = l4[:at] + bytes(2) + l4[at + 2 :]
    right = reference.checksum(ends[0] + ends[1] + struct.pack("!HH", protocol, len(l4)) + l4)
    return l4[:at] + struct.pack("!H", right or 0xFFFF) + l4[at + 2 :]


def tcp(sequence: int, flags: int, payload: bytes, options: bytes = b"", port: int = 7000) -> bytes:
    header = struct.pack("!HHIIBBHHH", 40000, port, sequence % 2**32, 77, (20 + len(options)) << 2, flags, 500, 0, 0)
    return header + options + payload


def udp(payload: bytes, port: int = 7000) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload


def without_identifier(packet: bytes) -> bytes:
    """The packet but for an identifier that means nothing (RFC 6864), and the checksum that goes with it."""
    if packet[0] >> 4 == 6 or not packet[6] & 0x40:
        return packet
    header = packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:20]
    return header[:10] + struct.pack("!H", reference.checksum(header)) + header[12:] + packet[20:]


# ---- one packet ------------------------------------------------------------------------------------------

near_packets = st.builds(
    lambda version, rest, flaw: ip_packet(version, TCP, rest)[: -flaw or None],
    st.sampled_from([4, 6]),
    st.binary(max_size=80),
    st.integers(0, 3),
)


@given(st.one_of(st.binary(max_size=80), near_packets))
def test_addresses_are_found_as_the_twin_finds_them(packet: bytes) -> None:
    assert core.parse_addresses(packet) == reference.inner_addresses(packet)


@given(st.binary(max_size=3000), st.integers(0, 3))
def test_checksums_are_the_twins(data: bytes, skipped: int) -> None:
    assert core.checksum(data[skipped:]) == reference.checksum(data[skipped:])


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x80, 0xFF])
def test_checksums_of_the_largest_packets_do_not_overflow(byte: int) -> None:
    for length in (65_535, 65_534, 65_471):
        data = bytes([byte]) * length
        assert core.checksum(data) == reference.checksum(data)


@given(
    st.sampled_from([4, 6]),
    st.sampled_from([1, TCP, UDP, 58, 44]),
    st.binary(max_size=1500),
    st.sampled_from([0, DONT_FRAGMENT, 0x2000, 0x2007, 7]),
    st.sampled_from([0, 20, 68, 1000, 1400, 65000]),
    st.binary(min_size=16, max_size=16),
    st.booleans(),
)
def test_icmp_errors_are_the_twins(
    version: int, protocol: int, rest: bytes, flags: int, mtu_bytes: int, source: bytes, strange: bool
) -> None:
    packet = ip_packet(version, protocol, rest, flags=flags)
    if strange:
        packet = packet[:12] + source[:4] + packet[16:] if version == 4 else packet[:8] + source + packet[24:]
    assert core.icmp_error(packet, mtu_bytes) == reference.icmp_error(packet, mtu_bytes)


ECN = {"not": 0, "ect1": 1, "ect0": 2, "ce": 3}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", ECN)
@pytest.mark.parametrize("outer", ECN)
def test_congestion_is_handed_on(version: int, inner: str, outer: str) -> None:
    """The table of RFC 6040 section 4.2."""
    expected = {
        ("not", "ce"): None,
        ("ect0", "ect1"): "ect1",
        ("ect0", "ce"): "ce",
        ("ect1", "ce"): "ce",
    }.get((inner, outer), inner)
    dscp = 0xB8
    packet = ip_packet(version, UDP, b"x" * 30, traffic_class=dscp | ECN[inner])
    found = core.mark_congestion(packet, ECN[outer] | 0x28)
    if expected is None:
        assert found is None
    else:
        assert found == ip_packet(version, UDP, b"x" * 30, traffic_class=dscp | ECN[expected])


# ---- many packets ----------------------------------------------------------------------------------------

flows = st.tuples(
    st.sampled_from([4, 6]),
    st.sampled_from([TCP, UDP]),
    st.integers(1, 1432),
    st.integers(1, 80),
    st.integers(1, 1432),
    st.sampled_from([b"", bytes(12), b"\1\1\x08\x0a" + bytes(8)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1]),
    st.integers(0, 0xFFFF),
)


def flow_of(drawn: tuple[int, int, int, int, int, bytes, int, int, int]) -> list[bytes]:
    """Packets as a sender's kernel would make them: equal payloads, the last shorter, PSH on it."""
    version, protocol, size, count, last, options, sequence, step, identifier = drawn
    packets = []
    for number in range(count):
        payload = bytes([number]) * (min(last, size) if number == count - 1 else size)
        flags = 0x18 if number == count - 1 else 0x10
        l4 = tcp(sequence + number * size, flags, payload, options) if protocol == TCP else udp(payload)
        packets.append(
            ip_packet(version, protocol, with_checksum(version, protocol, l4), identifier=identifier + number * step)
        )
    return packets


@given(flows)
def test_what_was_joined_splits_into_what_came(drawn: tuple[int, int, int, int, int, bytes, int, int, int]) -> None:
    packets = flow_of(drawn)
    written = core.join(packets)
    again = [packet for virtio, whole in written for packet in core.split(virtio, whole) or []]
    assert [without_identifier(packet) for packet in again] == [without_identifier(packet) for packet in packets]
    room = (65_535 - len(packets[0])) // (len(packets[0]) - (20 if drawn[0] == 4 else 40)) + 1
    assert len(written) <= len(packets) / min(core.JOIN_MAX_PACKETS, room) + 2, "they were joined"


@given(flows, st.integers(0, 79), st.integers(0, 59), st.integers(1, 255))
def test_a_damaged_packet_comes_out_as_it_came(
    drawn: tuple[int, int, int, int, int, bytes, int, int, int], which: int, where: int, flip: int
) -> None:
    packets = flow_of(drawn)
    number = which % len(packets)
    damaged = bytearray(packets[number])
    damaged[where % len(damaged)] ^= flip
    packets[number] = bytes(damaged)
    if core.parse_addresses(packets[number]) is None:
        return  # the tunnel drops it before
    written = core.join(packets)
    again = [packet for virtio, whole in written for packet in core.split(virtio, whole) or []]
    assert [without_identifier(packet) for packet in again] == [without_identifier(packet) for packet in packets]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "flaw",
    ["gap", "flags", "window", "acknowledged", "options", "class", "longer", "empty", "port", "fragment", "syn", "fin"],
)
def test_strangers_are_not_joined(version: int, flaw: str) -> None:
    def packet(l4: bytes, flags: int = DONT_FRAGMENT, traffic_class: int = 0) -> bytes:
        return ip_packet(version, TCP, with_checksum(version, TCP, l4), flags=flags, traffic_class=traffic_class)

    first, next_ = tcp(1, 0x10, b"a" * 100), tcp(101, 0x10, b"b" * 100)
    l4 = {
        "gap": tcp(102, 0x10, b"b" * 100),
        "flags": tcp(101, 0x50, b"b" * 100),
        "window": next_[:14] + b"\0\1" + next_[16:],
        "acknowledged": next_[:8] + b"\0\0\0\1" + next_[12:],
        "options": tcp(101, 0x10, b"b" * 88, bytes(12)),
        "longer": tcp(101, 0x10, b"b" * 101),
        "empty": tcp(101, 0x10, b""),
        "port": tcp(101, 0x10, b"b" * 100, port=7001),
        "syn": tcp(101, 0x12, b"b" * 100),
    }.get(flaw, next_)
    if flaw == "fin":
        first = tcp(1, 0x11, b"a" * 100)
    second = packet(l4, 0x2000 if flaw == "fragment" and version == 4 else DONT_FRAGMENT, 8 * (flaw == "class"))
    if flaw == "fragment" and version == 6:
        second = second[:6] + b"\x2c" + second[7:]
    assert [whole for _, whole in core.join([packet(first), second])] == [packet(first), second]


def test_a_udp_packet_without_checksum_is_not_joined() -> None:
    packets = [ip_packet(4, UDP, udp(b"x" * 100)), ip_packet(4, UDP, udp(b"y" * 100))]
    assert core.join(packets) == [(bytes(10), packet) for packet in packets]


# ---- peers -----------------------------------------------------------------------------------------------

prefixes = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda drawn: ipaddress.ip_network((drawn[0] & 0xAC1F00FF, drawn[1]), strict=False)
    ),
    st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 128)).map(
        lambda drawn: ipaddress.ip_network((0xFD << 120 | drawn[0] << 48, drawn[1]), strict=False)
    ),
)


def words_of_twin(twin: reference.PeerTable, prefix: reference.Prefix, number: int) -> str:
    try:
        twin.add(prefix, (f"10.0.0.{number}", 9000))
    except ValueError as error:
        return str(error)
    return ""


@given(st.lists(st.tuples(prefixes, st.integers(2, 6)), max_size=30), st.lists(prefixes, max_size=20))
def test_owners_are_the_twins(claims: list[tuple[reference.Prefix, int]], asked: list[reference.Prefix]) -> None:
    ours, twin = core.Table(), reference.PeerTable(("10.0.0.1", 9000))
    for _ in range(2):  # cleared and used again, it is as good as new
        for prefix, number in claims:
            assert ours.add(f"{prefix}=10.0.0.{number}:9000") == words_of_twin(twin, prefix, number)
        for prefix in [*asked, *(prefix for prefix, _ in claims)]:
            for address in (prefix.network_address, prefix.broadcast_address):
                owner = twin.owner(address.packed)
                assert ours.owner(address.packed) == (owner and reference.show(owner))
        ours.clear()
        twin = reference.PeerTable(("10.0.0.1", 9000))


@given(
    st.one_of(
        st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=40),
        st.from_regex(r"\A[0-9a-f.:]{1,20}/[0-9]{1,3}=\[?[0-9a-f.:]{1,15}\]?:[0-9]{1,6}\Z"),
        st.from_regex(r"\A172\.16\.[01]\.0/2[0-4]=10\.0\.0\.[0-9]{1,3}:[0-9]{1,6}\Z"),
    )
)
def test_peers_are_understood_as_the_twin_understands_them(text: str) -> None:
    words, fault = core.Table().add(text), ""
    try:
        _, endpoint = reference.parse_peer(text)
    except argparse.ArgumentTypeError as error:
        fault = str(error)
    else:
        assert (words == "") is (":" not in endpoint[0]), "an IPv6 peer of an IPv4 tunnel is refused by its table"
        return
    if "\\" in fault or '"' in fault:  # Python quotes control characters
        assert words
    else:
        assert words == fault
