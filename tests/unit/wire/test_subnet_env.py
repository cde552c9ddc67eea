"""subnet.env as flannel writes it, and read with a dotenv reader's patience."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.wire.subnet_env import SubnetEnv, encode_subnet_env, parse_subnet_env

DUAL = SubnetEnv(
    networks=("10.5.0.0/16", "fd00:5::/48"), subnets=("10.5.72.0/24", "fd00:5:0:7::/64"), mtu=1430, ip_masq=True
)
DUAL_TEXT = b"""\
FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24
FLANNEL_IPV6_NETWORK=fd00:5::/48
FLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
"""
ONE = SubnetEnv(networks=("10.5.0.0/16",), subnets=("10.5.72.0/24",), mtu=1450)
ONE_TEXT = b"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
SIX = SubnetEnv(networks=("fd00:5::/48",), subnets=("fd00:5:0:7::/64",), mtu=1430)
SIX_TEXT = (
    b"FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
)


@pytest.mark.parametrize(("env", "text"), [(DUAL, DUAL_TEXT), (ONE, ONE_TEXT), (SIX, SIX_TEXT)])
def test_the_golden_text(env: SubnetEnv, text: bytes) -> None:
    assert encode_subnet_env(env) == text
    assert parse_subnet_env(text) == env


def test_a_dotenv_file_is_read() -> None:
    text = b"\n# flannel\nexport FLANNEL_SUBNET='10.5.72.1/24'\r\nFLANNEL_NETWORK = \"10.5.0.0/16\"\nOTHER=1\nrubbish\n"
    assert parse_subnet_env(text) == SubnetEnv(networks=("10.5.0.0/16",), subnets=("10.5.72.0/24",), mtu=0)


def test_several_networks_of_old_are_kept() -> None:
    text = ONE_TEXT.replace(b"10.5.0.0/16", b"10.5.0.0/16,10.6.0.0/16")
    assert parse_subnet_env(text).networks == ("10.5.0.0/16", "10.6.0.0/16")
    assert encode_subnet_env(parse_subnet_env(text)) == text


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            b"FLANNEL_SUBNET=10.5.72.1",
            "FLANNEL_SUBNET is '10.5.72.1'; expected a gateway address with its length of IPv4",
        ),
        (b"FLANNEL_SUBNET=fd00::1/64", "FLANNEL_SUBNET is 'fd00::1/64'; expected"),
        (b"FLANNEL_IPV6_SUBNET=x/64", "FLANNEL_IPV6_SUBNET is 'x/64'; expected"),
        (b"FLANNEL_NETWORK=10.5.0.1/16", "FLANNEL_NETWORK is '10.5.0.1/16'; expected a prefix of IPv4"),
        (b"FLANNEL_MTU=big", "FLANNEL_MTU is 'big'; expected a number of bytes"),
    ],
)
def test_a_fault_names_its_line(line: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_subnet_env(line)
    assert str(caught.value).startswith(fault)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_a_fault(text: bytes) -> None:
    with suppress(ValueError):
        parse_subnet_env(text)
