"""Probes to bytes and back, with what carries them; the checksums are the receiver's sum (RFC 1071)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.address import packed
from muslin.wire.icmp import checksum
from muslin.wire.packet import Probe, encode_probe, parse_frame, parse_ip

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
