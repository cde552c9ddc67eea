"""Probes to bytes and back, with what carries them; the checksums are the receiver's sum (RFC 1071)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.address import packed
from muslin.wire.icmp import checksum
from muslin.wire.packet import Probe, body_of, encode_probe, parse_frame, parse_ip, parse_segments

V4, V6 = ("172.16.0.2", "172.16.1.2"), ("fd00::2", "fd00:1::2")
NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}


def probe(ends: tuple[str, str], protocol: str, **more: int) -> Probe:
    return Probe(source=ends[0], destination=ends[1], identity=41000, protocol=protocol, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("protocol", ["icmp", "udp", "tcp"])
@given(size=st.integers(68, 1500), ttl=st.integers(1, 255))
def test_a_probe_reads_as_what_it_is_and_its_sums_are_right(
    ends: tuple[str, str], protocol: str, size: int, ttl: int
) -> None:
    data = encode_probe(probe(ends, protocol, size_bytes=size, ttl=ttl))
    found = parse_ip(data, {})
    assert found is not None
    assert (found.source, found.destination, found.ttl, found.size_bytes, found.identity) == (*ends, ttl, size, 41000)
    assert len(data) == size
    six = ends is V6
    body = data[40:] if six else data[20:]
    if not six:
        assert checksum(data[:20]) == 0
    pseudo = packed(ends[0]) + packed(ends[1]) + struct.pack("!II", len(body), NUMBERS[found.protocol])
    assert checksum(body if found.protocol == "icmp" else pseudo + body) == 0


def test_a_packet_inside_of_another_is_found() -> None:
    inner = encode_probe(probe(V4, "icmp"))
    outer = encode_probe(Probe(source="10.0.0.10", destination="10.0.0.20", identity=9000, protocol="udp", port=9000))
    data = outer[:28] + inner
    found = parse_ip(data, {9000: "ip"})
    assert found is not None
    assert found.stack == "ip:udp:ip:icmp"
    assert found.innermost.source == "172.16.0.2"
    assert parse_ip(data, {}).inner is None  # type: ignore[union-attr]


def test_vxlan_has_a_frame_inside() -> None:
    frame = bytes.fromhex("0200000000020200000000010800") + encode_probe(probe(V4, "udp"))
    outer = encode_probe(Probe(source="10.0.0.10", destination="10.0.0.20", identity=5, protocol="udp", port=8472))
    data = bytes.fromhex("0200000000bb0200000000aa0800") + outer[:28] + bytes(8) + frame
    found = parse_frame(data, True, {8472: "vxlan"})
    assert found is not None
    assert found.stack == "eth:ip:udp:vxlan:eth:ip:udp"
    assert (found.mac_source, found.innermost.mac_destination) == ("02:00:00:00:00:aa", "02:00:00:00:00:02")


def test_an_error_quotes_the_packet_that_it_is_about() -> None:
    quoted = encode_probe(probe(V4, "udp"))[:28]
    error = encode_probe(probe(V4, "icmp", size_bytes=28))
    data = error[:20] + struct.pack("!BBHHH", 3, 4, 0, 0, 1472) + quoted
    found = parse_ip(data, {})
    assert found is not None
    assert (found.identity, found.told_mtu) == (41000, 1472)
    assert found.quoted is not None
    assert found.quoted.destination == "172.16.1.2"


@given(st.binary(max_size=120))
def test_nothing_that_comes_by_breaks_the_reader(data: bytes) -> None:
    parse_frame(data, True, {9000: "ip", 8472: "vxlan"})
    parse_ip(data, {9000: "ip", 8472: "vxlan"})
    parse_ip(b"\x45" + data, {9000: "ip"})


def test_a_later_fragment_shows_addresses_alone_and_too_small_is_refused() -> None:
    data = bytearray(encode_probe(probe(V4, "udp")))
    data[6:8] = (0x2001).to_bytes(2, "big")
    found = parse_ip(bytes(data), {})
    assert found is not None
    assert (found.offset_bytes, found.more_fragments, found.source_port) == (8, True, None)
    with pytest.raises(ValueError, match="28 is the least"):
        encode_probe(probe(V4, "udp", size_bytes=20))


def test_a_frame_of_many_datagrams_is_each_packet_that_the_wire_would_show() -> None:
    inner = [encode_probe(probe(V4, "icmp", size_bytes=size)) for size in (1400, 1400, 90)]
    ends = {"source": "10.0.0.10", "destination": "10.0.0.20"}
    outer = encode_probe(Probe(**ends, identity=1, protocol="udp", port=9000, size_bytes=28 + 2890))  # type: ignore[arg-type]
    frame = bytes.fromhex("0200000000bb0200000000aa0800") + outer[:28] + b"".join(inner)
    found = parse_segments(frame, True, {9000: "ip"})
    assert [(one.size_bytes, one.innermost.size_bytes) for one in found] == [(1428, 1400), (1428, 1400), (118, 90)]
    assert len(parse_segments(frame, True, {})) == 1
    assert parse_segments(b"no frame", True, {}) == []


def test_fragments_say_which_part_they_are() -> None:
    data = bytearray(encode_probe(probe(V4, "icmp", size_bytes=100)))
    data[4:8] = struct.pack("!HH", 77, 0x2000)
    first = parse_ip(bytes(data), {})
    data[6:8] = struct.pack("!H", 185)
    last = parse_ip(bytes(data), {})
    assert first is not None
    assert last is not None
    assert (first.fragment_id, first.offset_bytes, first.more_fragments, first.identity) == (77, 0, True, 41000)
    assert (last.fragment_id, last.offset_bytes, last.more_fragments, last.identity) == (77, 1480, False, None)
    assert (first.data_bytes, last.data_bytes) == (80, 80)


def test_the_fragment_header_of_ipv6_is_read() -> None:
    whole = encode_probe(probe(V6, "udp", size_bytes=100))
    for offset, more, identity in ((0, 1, 41000), (1448, 0, None)):
        head = bytearray(whole[:40])
        head[4:7] = struct.pack("!HB", 68, 44)
        found = parse_ip(bytes(head) + struct.pack("!BBHI", 17, 0, offset | more, 99) + whole[40:], {})
        assert found is not None
        assert (found.protocol, found.fragment_id, found.offset_bytes) == ("udp", 99, offset)
        assert (found.more_fragments, found.identity, found.data_bytes) == (bool(more), identity, 60)


@pytest.mark.parametrize(("ends", "protocol", "number"), [(V4, "icmp", 1), (V4, "tcp", 6), (V6, "icmp", 58)])
def test_what_follows_the_header_is_told_with_its_protocol(ends: tuple[str, str], protocol: str, number: int) -> None:
    packet = encode_probe(probe(ends, protocol))
    assert body_of(packet) == (number, packet[40 if ends is V6 else 20 :])
