"""flannel's keys and values: golden bytes, what is refused and why, and that nothing gets lost."""

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.lease import Advertisement
from muslin.wire.flannel_lease import (
    encode_config_key,
    encode_lease_key,
    encode_name,
    encode_value,
    parse_name,
    parse_value,
)

VXLAN = Advertisement(addresses=("192.0.2.1",), backend="vxlan", data={"VNI": 1, "VtepMAC": "6a:3f:aa:bb:cc:dd"})
DUAL = Advertisement(
    addresses=("192.0.2.1", "2001:db8::1"),
    backend="vxlan",
    data={"VNI": 1, "VtepMAC": "6a:3f:aa:bb:cc:dd"},
    data_v6={"VNI": 1, "VtepMAC": "6a:3f:aa:bb:cc:de"},
)
GOLDEN: list[tuple[Advertisement, bytes]] = [
    (
        VXLAN,
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"6a:3f:aa:bb:cc:dd"}}',
    ),
    (
        DUAL,
        b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"6a:3f:aa:bb:cc:dd"},'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"6a:3f:aa:bb:cc:de"}}',
    ),
    (
        Advertisement(addresses=("192.0.2.1",), backend="host-gw"),
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}',
    ),
    (
        Advertisement(addresses=("2001:db8::1",), backend=""),
        b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}',
    ),
    (
        Advertisement(addresses=("192.0.2.1",), backend="x", data={"a": "<&>\u2028\u2029\u00e9"}),
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"x",'
        b'"BackendData":{"a":"\\u003c\\u0026\\u003e\\u2028\\u2029\xc3\xa9"}}',
    ),
]


@pytest.mark.parametrize(("advertisement", "value"), GOLDEN)
def test_values_are_what_go_makes_of_them(advertisement: Advertisement, value: bytes) -> None:
    assert encode_value(advertisement) == value
    assert parse_value(value) == advertisement


def test_names_and_keys() -> None:
    assert encode_name(("10.5.34.0/24",)) == "10.5.34.0-24"
    assert encode_name(("10.5.34.0/24", "fc00:5:34::/64")) == "10.5.34.0-24&fc00:5:34::-64"
    assert parse_name("fc00:5:34::-64") == ("fc00:5:34::/64",)
    assert encode_config_key("/coreos.com/network/") == b"/coreos.com/network/config"
    assert encode_lease_key("/coreos.com//network", "10.5.34.0-24") == b"/coreos.com/network/subnets/10.5.34.0-24"
    assert encode_lease_key("network", "") == b"network/subnets/"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "no prefix length"),
        ("10.5.34.0", "no prefix length"),
        ("10.5.34.0-33", "no prefix length from 0 to 32"),
        ("10.5.34.0-024", "no prefix length"),
        ("10.5.34.0-\u0662\u0664", "no prefix length"),
        ("10.5.34.1-24", "host bits"),
        ("10.5.34.256-32", "no IPv4 address"),
        ("10.5.034.0-24", "no IPv4 address"),
        ("FC00::-64", "usual spelling"),
        ("fc00:0::-64", "usual spelling"),
        ("::ffff:10.5.0.0-112", "usual spelling"),
        ("fc00::-64&10.5.34.0-24", "IPv4 first"),
        ("10.5.34.0-24&10.5.35.0-24", "IPv4 first"),
        ("10.5.34.0-24&", "no prefix length"),
        ("10.5.34.0\0-24", "no IPv4 address"),
        ("subnet", "no prefix length"),
    ],
)
def test_names_that_are_refused(name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_name(name)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"", "truncated"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"{}", "neither PublicIP nor PublicIPv6"),
        (b'{"PublicIP":"0.0.0.0","PublicIPv6":"::"}', "neither"),
        (b'{"PublicIP":"192.0.2.256"}', "PublicIP: '192.0.2.256'"),
        (b'{"PublicIP":"2001:db8::1"}', "PublicIP: "),
        (b'{"PublicIPv6":"192.0.2.1"}', "PublicIPv6: "),
        (b'{"PublicIP":7}', "PublicIP"),
        (b'{"PublicIP":"192.0.2.1","BackendData":"text"}', "BackendData"),
        (b'{"PublicIP":"192.0.2.1","BackendType":null}', "BackendType"),
        (b'{"PublicIP":"192.0.2.1","BackendData":{"a":"\xff"}}', "utf"),
    ],
)
def test_values_that_are_refused(value: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){fault}"):
        parse_value(value)


def test_unknown_fields_are_skipped_and_null_data_is_none() -> None:
    value = b'{"Later":[1],"PublicIP":"192.0.2.1","BackendType":"host-gw","BackendData":null}'
    assert parse_value(value) == Advertisement(addresses=("192.0.2.1",), backend="host-gw")


@pytest.mark.parametrize("addresses", [(), ("192.0.2.1", "192.0.2.2"), ("nowhere",), ("192.0.2.1", "::ffff:1.2.3.4")])
def test_advertisements_that_are_refused(addresses: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="PublicIP"):
        encode_value(Advertisement(addresses=addresses, backend="host-gw"))


# ---- nothing gets lost -----------------------------------------------------------------------------------

# Go and Python spell those two kinds of IPv6 address differently, so they are refused.
IPV6 = st.ip_addresses(v=6).filter(lambda address: int(address) >> 32 not in (0, 0xFFFF))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DATA: st.SearchStrategy[dict[str, Any]] = st.dictionaries(st.text(), JSON, max_size=4)


@st.composite
def advertisements(draw: st.DrawFn) -> Advertisement:
    v4 = draw(st.ip_addresses(v=4).filter(lambda address: int(address) != 0).map(str) | st.none())
    v6 = draw((IPV6 if v4 is None else IPV6 | st.none()).map(lambda address: address and str(address)))
    return Advertisement(
        addresses=tuple(address for address in (v4, v6) if address),
        backend=draw(st.text()),
        data=draw(DATA),
        data_v6=draw(DATA),
    )


@given(advertisements())
def test_what_is_written_is_read_again(advertisement: Advertisement) -> None:
    value = encode_value(advertisement)
    assert parse_value(value) == advertisement
    assert not set(b"<>&") & set(value)
    assert json.loads(value)["BackendType" if advertisement.backend else "PublicIP"]


@given(st.ip_addresses(v=4), st.integers(0, 32), IPV6, st.integers(33, 128), st.sampled_from([(4,), (6,), (4, 6)]))
def test_names_are_read_again(
    v4: ipaddress.IPv4Address, length: int, v6: ipaddress.IPv6Address, length_v6: int, families: tuple[int, ...]
) -> None:
    network, network_v6 = ipaddress.ip_network((v4, length), strict=False), ipaddress.ip_network((v6, length_v6), False)
    subnets = tuple(str({4: network, 6: network_v6}[family]) for family in families)
    if network_v6.network_address.packed[:10] != bytes(10):
        assert parse_name(encode_name(subnets)) == subnets


@given(st.text() | st.from_regex(r"[0-9a-f.:&-]*", fullmatch=True))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        subnets = parse_name(text)
    except ValueError:
        return
    assert encode_name(subnets) == text


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_value_or_a_value_error(value: bytes) -> None:
    try:
        advertisement = parse_value(value)
    except ValueError:
        return
    assert parse_value(encode_value(advertisement)) == advertisement
