"""flannel's ``subnet.env``: what a node tells its CNI plugin, and what it reads again to have its last subnet back.

Theory of operation: lines ``NAME=value`` in the order and form in which flannel's WriteSubnetFile puts them
(pkg/subnet/subnet.go): network and subnet of each family that is on, MTU, whether flannel masquerades. FLANNEL_SUBNET
is not the subnet's own address but the gateway's, the first usable one, with the subnet's length. Reading is lenient,
as flannel's is (a dotenv file): blank lines, comments, ``export``, quotes and names of others are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from muslin.model.address import FAMILIES, Family, family_of, network_of, nth_address, parse_prefix, prefix_length

NETWORK_NAMES: dict[Family, str] = {4: "FLANNEL_NETWORK", 6: "FLANNEL_IPV6_NETWORK"}
SUBNET_NAMES: dict[Family, str] = {4: "FLANNEL_SUBNET", 6: "FLANNEL_IPV6_SUBNET"}
MTU_NAME = "FLANNEL_MTU"
MASQUERADE_NAME = "FLANNEL_IPMASQ"


class SubnetEnv(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the file. ``subnets`` are prefixes (``10.5.3.0/24``), at most one a family, as in a lease."""

    networks: tuple[str, ...]
    subnets: tuple[str, ...]
    mtu: int
    """Bytes."""
    ip_masq: bool = False


def encode_subnet_env(env: SubnetEnv) -> bytes:
    """The file as flannel writes it."""
    return "".join(f"{name}={value}\n" for name, value in _lines(env)).encode()


def _lines(env: SubnetEnv) -> Iterator[tuple[str, str]]:
    for family in FAMILIES:
        for subnet in (subnet for subnet in env.subnets if family_of(subnet) == family):
            # Several networks of one family, with commas, are what flannel wrote when it knew ClusterCIDRs.
            yield NETWORK_NAMES[family], ",".join(net for net in env.networks if family_of(net) == family)
            yield SUBNET_NAMES[family], f"{nth_address(subnet, 1)}/{prefix_length(subnet)}"
    yield MTU_NAME, str(env.mtu)
    yield MASQUERADE_NAME, "true" if env.ip_masq else "false"


def parse_subnet_env(text: bytes) -> SubnetEnv:
    """What the file says; ValueError naming the line's name and value when one cannot be right."""
    values = dict(_assignments(text.decode("utf-8", "replace")))
    networks: list[str] = []
    subnets: list[str] = []
    for family in FAMILIES:
        name = NETWORK_NAMES[family]
        networks += [_prefix(name, network, family) for network in values.get(name, "").split(",") if network]
        name = SUBNET_NAMES[family]
        subnets += [_prefix(name, values[name], family, gateway=True)] if values.get(name) else []
    return SubnetEnv(
        networks=tuple(networks),
        subnets=tuple(subnets),
        mtu=_mtu(values.get(MTU_NAME, "0")),
        ip_masq=values.get(MASQUERADE_NAME) == "true",
    )


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            yield name.strip(), value.strip().strip("\"'")


def _prefix(name: str, value: str, family: Family, gateway: bool = False) -> str:
    """The prefix; for a gateway's address with a length, the subnet that it is in."""
    expected = f"{'a gateway address with its length' if gateway else 'a prefix'} of IPv{family}"
    try:
        if "/" in value and family_of(value) == family:
            return network_of(value) if gateway else parse_prefix(value)
    except ValueError:
        pass
    raise ValueError(f"{name} is {value!r}; expected {expected}")


def _mtu(value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{MTU_NAME} is {value!r}; expected a number of bytes")
    return int(value)
