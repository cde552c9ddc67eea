"""flannel's network configuration: its defaults, Go's leniency about case, and faults that name the key."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.model.config import NetworkConfig, SubnetPool
from muslin.wire.flannel_config import encode_network_config, parse_network_config


def parse(**values: Any) -> NetworkConfig:
    return parse_network_config(msgspec.json.encode(values))


def fault_of(**values: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(**values)
    return str(caught.value)


# The cases of flannel's own pkg/subnet/config_test.go.
FLANNEL_CASES = {
    '{ "network": "10.3.0.0/16" }': SubnetPool(
        network="10.3.0.0/16", subnet_length=24, subnet_min="10.3.1.0", subnet_max="10.3.255.0"
    ),
    '{ "enableIPv6": true, "ipv6Network": "fc00::/48", "enableIPv4": false }': SubnetPool(
        network="fc00::/48", subnet_length=64, subnet_min="fc00:0:0:1::", subnet_max="fc00:0:0:ffff::"
    ),
    '{ "Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28 }': SubnetPool(
        network="10.3.0.0/16", subnet_length=28, subnet_min="10.3.5.0", subnet_max="10.3.8.0"
    ),
    '{ "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetMin": "fc00:0:0:1::", '
    '"IPv6SubnetMax": "fc00:0:0:f::", "IPv6SubnetLen": 124, "enableIPv4": false }': SubnetPool(
        network="fc00::/48", subnet_length=124, subnet_min="fc00:0:0:1::", subnet_max="fc00:0:0:f::"
    ),
}


@pytest.mark.parametrize("text", FLANNEL_CASES)
def test_flannels_own_cases(text: str) -> None:
    assert parse_network_config(text.encode()).pools == (FLANNEL_CASES[text],)


def test_defaults() -> None:
    assert parse(Network="10.5.0.0/16") == NetworkConfig(
        pools=(SubnetPool(network="10.5.0.0/16", subnet_length=24, subnet_min="10.5.1.0", subnet_max="10.5.255.0"),),
        backend="udp",
        backend_options={},
        nftables=False,
    )


@pytest.mark.parametrize(
    ("network", "length"), [("10.5.0.0/22", 24), ("10.5.0.0/23", 25), ("10.5.0.0/24", 26), ("10.5.0.0/28", 30)]
)
def test_a_small_network_is_cut_in_four(network: str, length: int) -> None:
    pool = parse(Network=network).pools[0]
    assert (pool.subnet_length, pool.count) == (length, 3)


def test_two_families_and_a_backend() -> None:
    config = parse(
        Network="10.5.0.0/16",
        EnableIPv6=True,
        IPv6Network="fd00:5::/48",
        EnableNFTables=True,
        Backend={"Type": "VXLAN", "VNI": 7, "DirectRouting": True},
    )
    assert config.families == (4, 6)
    assert config.networks == ("10.5.0.0/16", "fd00:5::/48")
    assert (config.backend, config.backend_options, config.nftables) == (
        "vxlan",
        {"VNI": 7, "DirectRouting": True},
        True,
    )


def test_case_does_not_count_and_the_later_of_two_wins() -> None:
    config = parse_network_config(b'{"NETWORK": "10.1.0.0/16", "network": "10.2.0.0/16", "backend": {"TYPE": "alloc"}}')
    assert (config.networks, config.backend) == (("10.2.0.0/16",), "alloc")


def test_null_zero_and_host_bits_are_as_in_go() -> None:
    config = parse(
        Network="10.5.3.7/16", SubnetLen=0, SubnetMin="0.0.0.0", SubnetMax=None, Backend=None, EnableIPv4=None
    )
    assert config == parse(Network="10.5.0.0/16")


def test_what_means_nothing_is_reported() -> None:
    config = parse(Network="10.5.0.0/16", IPv6Network="fd00:5::/48", IPv6SubnetLen=999, Netwrok="10.6.0.0/16")
    assert config.ignored == ("Netwrok", "IPv6Network", "IPv6SubnetLen")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "Network is missing, though EnableIPv4 is true; expected an IPv4 prefix of length 1 to 28, such as"),
        ({"Network": "10.5.0.0"}, 'Network is "10.5.0.0"; expected an IPv4 prefix'),
        ({"Network": "fd00::/48"}, 'Network is "fd00::/48"; expected an IPv4 prefix'),
        ({"Network": "10.5.0.0/29"}, 'Network is "10.5.0.0/29"; expected an IPv4 prefix of length 1 to 28'),
        ({"Network": "0.0.0.0/0"}, 'Network is "0.0.0.0/0"; expected'),
        ({"Network": 10}, "Network is 10; expected"),
        ({"Network": "10.5.0.0/16", "EnableIPv4": "yes"}, 'EnableIPv4 is "yes"; expected true or false'),
        ({"Network": "10.5.0.0/16", "EnableIPv6": True}, "IPv6Network is missing, though EnableIPv6 is true"),
        ({"EnableIPv4": False}, "EnableIPv4 and EnableIPv6 are both false; expected at least one"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 31}, "SubnetLen is 31; expected a whole number from 18 (four subnets"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 17}, "SubnetLen is 17; expected a whole number from 18"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 24.5}, "SubnetLen is 24.5; expected a whole number"),
        ({"Network": "10.5.0.0/16", "SubnetLen": True}, "SubnetLen is true; expected a whole number"),
        ({"Network": "10.5.0.0/16", "SubnetLen": False}, "SubnetLen is false; expected a whole number"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}, 'SubnetMin is "10.6.0.0"; expected the first address of'),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.1"}, 'SubnetMin is "10.5.1.1"; expected the first address of'),
        ({"Network": "10.5.0.0/16", "SubnetMin": ""}, 'SubnetMin is ""; expected'),
        ({"Network": "10.5.0.0/16", "SubnetMax": 3}, "SubnetMax is 3; expected"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "fd00::"}, 'SubnetMax is "fd00::"; expected'),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"},
            "SubnetMax is 10.5.8.0; expected one not below SubnetMin, 10.5.9.0",
        ),
        ({"Network": "10.5.0.0/16", "EnableNFTables": 1}, "EnableNFTables is 1; expected true or false"),
        ({"Network": "10.5.0.0/16", "Backend": "vxlan"}, 'Backend is "vxlan"; expected an object such as {"Type"'),
        ({"Network": "10.5.0.0/16", "Backend": {}}, "Backend.Type is null; expected the name of a backend"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_is_expected(values: dict[str, Any], fault: str) -> None:
    assert fault_of(**values).startswith(fault)


def test_all_faults_are_told_at_once() -> None:
    told = fault_of(Network="x", EnableIPv6=True, IPv6Network="y", Backend=3, EnableNFTables=4).splitlines()
    assert [line.split(" ")[0] for line in told] == ["Network", "IPv6Network", "Backend", "EnableNFTables"]


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"3", b'"10.5.0.0/16"'])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="the network configuration is"):
        parse_network_config(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 1 << 33)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["10.5.0.0/16", "fd00:5::/48", "10.5.1.0", "fd00:5:0:1::", "vxlan"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["Type", "VNI", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    ["Network", "IPv6Network", "EnableIPv4", "enableipv6", "SubnetLen", "SubnetMin", "SubnetMax", "IPv6SubnetLen",
     "IPv6SubnetMin", "IPv6SubnetMax", "Backend", "EnableNFTables", "x"]
)  # fmt: skip


@given(st.dictionaries(KEYS, JSON))
def test_anything_is_a_configuration_or_a_fault(values: dict[str, Any]) -> None:
    try:
        config = parse_network_config(msgspec.json.encode(values))
    except ValueError:
        return
    assert parse_network_config(encode_network_config(config)) == msgspec.structs.replace(config, ignored=())


@given(st.integers(1, 28), st.data())
def test_what_is_written_is_read_again(length: int, data: st.DataObject) -> None:
    network = str(ipaddress.ip_network(("10.200.100.48", length), strict=False))
    subnet_length = data.draw(st.integers(length + 2, 30))
    config = parse(Network=network, SubnetLen=subnet_length, Backend={"Type": "vxlan", "VNI": 3})
    assert parse_network_config(encode_network_config(config)) == config
    pool = config.pools[0]
    first, last = pool.subnet(0), pool.subnet(pool.count - 1)
    assert (pool.index_of(first), pool.index_of(last)) == (0, pool.count - 1)
    assert ipaddress.ip_network(last)[-1] == ipaddress.ip_network(network)[-1]
    assert int(ipaddress.ip_network(first)[0]) == int(ipaddress.ip_network(network)[0]) + pool.size
