"""Addresses as canonical text, in both families."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model import address

INTERFACES = st.one_of(
    st.builds(lambda ip, bits: f"{ip}/{bits}", st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda ip, bits: f"{ip}/{bits}", st.ip_addresses(v=6), st.integers(0, 128)),
)
PREFIXES = INTERFACES.map(address.network_of)


@pytest.mark.parametrize(
    ("text", "family"), [("10.0.0.1", 4), ("10.0.0.0/8", 4), ("::", 6), ("fd00::1/64", 6), ("::ffff:10.0.0.1", 6)]
)
def test_a_colon_makes_the_family(text: str, family: int) -> None:
    assert address.family_of(text) == family


def test_text_becomes_canonical() -> None:
    assert address.parse_address("FD00:0:0::0001") == "fd00::1"
    assert address.parse_prefix("FD00:0::/64") == "fd00::/64"
    assert address.parse_interface("fd00:0:0::1/64") == "fd00::1/64"
    assert address.parse_interface("172.16.0.1") == "172.16.0.1/32"


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.256", "010.0.0.1", "fd00:::1", "10.0.0.1/24", "node1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        address.parse_address(text)


def test_a_prefix_with_host_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits"):
        address.parse_prefix("172.16.0.1/24")


def test_parts_of_an_interface() -> None:
    assert address.address_part("172.16.0.1/24") == "172.16.0.1"
    assert address.address_part("fd00::1") == "fd00::1"
    assert address.prefix_length("172.16.0.0/24") == 24
    assert address.prefix_length("172.16.0.1") == 32
    assert address.prefix_length("fd00::1") == 128
    assert address.host_prefix("172.16.0.1") == "172.16.0.1/32"
    assert address.host_prefix("fd00::1") == "fd00::1/128"
    assert address.network_of("172.16.3.1/16") == "172.16.0.0/16"
    assert address.network_of("fd00:0:0:1::5/48") == "fd00::/48"


def test_the_nth_address_stays_inside() -> None:
    assert address.nth_address("172.16.0.0/24", 0) == "172.16.0.0"
    assert address.nth_address("172.16.0.0/24", 255) == "172.16.0.255"
    assert address.nth_address("fd00::/64", 100) == "fd00::64"
    for outside in (-1, 256):
        with pytest.raises(ValueError, match="holds 256 addresses"):
            address.nth_address("172.16.0.0/24", outside)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("172.16.0.0/16", "172.16.5.0/24", True),
        ("172.16.0.0/16", "172.16.5.1", True),
        ("172.16.0.0/16", "172.16.5.1/24", True),
        ("172.16.0.0/16", "172.16.0.0/16", True),
        ("172.16.0.0/24", "172.16.0.0/16", False),
        ("172.16.0.0/16", "172.17.0.0/24", False),
        ("0.0.0.0/0", "fd00::1", False),
        ("::/0", "10.0.0.1", False),
        ("fd00::/48", "fd00:0:0:7::/64", True),
    ],
)
def test_containment_never_crosses_families(outer: str, inner: str, expected: bool) -> None:
    assert address.contains(outer, inner) is expected


@given(PREFIXES, PREFIXES)
def test_overlap_is_what_the_standard_library_calls_overlap(one: str, other: str) -> None:
    networks = ipaddress.ip_network(one), ipaddress.ip_network(other)
    expected = networks[0].version == networks[1].version and networks[0].overlaps(networks[1])
    assert address.overlaps(one, other) is address.overlaps(other, one) is expected


@given(INTERFACES)
def test_parsing_twice_changes_nothing_and_packs_to_the_same_bytes(text: str) -> None:
    canonical = address.parse_interface(text)
    assert address.parse_interface(canonical) == canonical
    assert address.packed(address.address_part(canonical)) == ipaddress.ip_interface(text).ip.packed
    assert address.contains(address.network_of(canonical), canonical)


def test_a_mac_gives_a_link_local_address() -> None:
    assert address.link_local_address("02:00:00:00:00:06") == "fe80::ff:fe00:6"
    assert address.link_local_address("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"
