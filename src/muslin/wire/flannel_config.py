"""flannel's network configuration (its ``net-conf.json``, the ``config`` key in etcd): JSON to a value and back.

Theory of operation: as Go's encoding/json reads it. Keys count without regard to case, of two that differ in case
alone the later wins, ``null`` is as good as absent, a prefix may have host bits set (net.ParseCIDR drops them). Zero
means "the default" for lengths and addresses (pkg/subnet/config.go tests for 0). Unlike flannel, which checks only when
the configuration comes from etcd, everything is always checked, all faults are reported at once, and a sentence names
the key, its value and what is expected. Keys that mean nothing are not an error, as in Go, but they are reported.

Rules and defaults are those of flannel-io/flannel pkg/subnet/config.go (ParseConfig, CheckNetworkConfig).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from muslin.model.address import FAMILIES, HOST_BITS, Family, family_of, prefix_length
from muslin.model.config import NetworkConfig, SubnetPool, span_of
from muslin.wire.json_text import show

DEFAULT_BACKEND = "udp"  # parseBackendType: "if len(be) == 0"; flannel's configuration.md says vxlan, its code does not
SUBNET_LENGTH_STEP = 2  # "Use +2": a network has at least four subnets, as the first one is not used


class _Keys(NamedTuple):
    """The keys of one family."""

    enable: str
    network: str
    length: str
    minimum: str
    maximum: str


class _Limits(NamedTuple):
    """The lengths of one family."""

    usual: int
    """Of a subnet, if four of them fit into the network."""
    longest: int
    """Of a subnet: four addresses, for network, gateway, one container, broadcast."""
    enabled: bool
    """Whether the family is on when nothing is said."""


KEYS: dict[Family, _Keys] = {
    4: _Keys("EnableIPv4", "Network", "SubnetLen", "SubnetMin", "SubnetMax"),
    6: _Keys("EnableIPv6", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"),
}
LIMITS: dict[Family, _Limits] = {
    4: _Limits(usual=24, longest=30, enabled=True),  # ParseConfig: "Enable ipv4 by default"; "must be less than /31"
    6: _Limits(usual=64, longest=126, enabled=False),  # "must be less than /127"
}
NFTABLES = "EnableNFTables"
BACKEND = "Backend"
ALL_KEYS = (*KEYS[4], *KEYS[6], NFTABLES, BACKEND)
_SPELLINGS = {key.casefold(): key for key in ALL_KEYS}


def parse_network_config(text: bytes) -> NetworkConfig:
    """The configuration; ValueError with one line for each fault."""
    values, unknown = _by_key(text)
    faults: list[str] = []
    pools: list[SubnetPool] = []
    idle: list[str] = []
    for family in FAMILIES:
        try:
            if _boolean(values, KEYS[family].enable, LIMITS[family].enabled):
                pools.append(_pool(values, family))
            else:
                idle += [key for key in KEYS[family][1:] if key in values]
        except ValueError as error:
            faults.append(str(error))
    backend, options, nftables = _general(values, faults)
    if not pools and not faults:
        faults.append(f"{KEYS[4].enable} and {KEYS[6].enable} are both false; expected at least one of them to be true")
    if faults:
        raise ValueError("\n".join(faults))
    return NetworkConfig(
        pools=tuple(pools),
        backend=backend,
        backend_options=options,
        nftables=nftables,
        ignored=tuple(unknown + idle),
    )


def encode_network_config(config: NetworkConfig) -> bytes:
    """The configuration as flannel reads it, with every default spelt out; what was ignored is left out."""
    values: dict[str, Any] = {}
    for family in FAMILIES:
        pool, keys = config.pool_of(family), KEYS[family]
        values[keys.enable] = pool is not None
        if pool is not None:
            values |= zip(keys[1:], (pool.network, pool.subnet_length, pool.subnet_min, pool.subnet_max), strict=True)
    values[NFTABLES] = config.nftables
    values[BACKEND] = {"Type": config.backend} | config.backend_options
    return msgspec.json.encode(values)


def _by_key(text: bytes) -> tuple[dict[str, Any], list[str]]:
    """The values by flannel's spelling of their keys, and the keys that are none of flannel's."""
    try:
        given = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"the network configuration is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"the network configuration is {show(given)}; expected a JSON object such as {_EXAMPLE}")
    known = {_SPELLINGS[key.casefold()]: value for key, value in given.items() if key.casefold() in _SPELLINGS}
    unknown = [key for key in given if key.casefold() not in _SPELLINGS]
    return {key: value for key, value in known.items() if value is not None}, unknown


_EXAMPLE = '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'


def _pool(values: Mapping[str, Any], family: Family) -> SubnetPool:
    keys = KEYS[family]
    network = _network(values, family)
    length = _subnet_length(values, family, network)
    size = 1 << (HOST_BITS[family] - length)
    first, last = span_of(network)
    # The first subnet is left out: an interface with its .0 address would have the network's own address.
    subnet_min = _boundary(values, keys.minimum, network, length, first + size)
    subnet_max = _boundary(values, keys.maximum, network, length, last + 1 - size)
    if span_of(subnet_max) < span_of(subnet_min):
        raise ValueError(f"{keys.maximum} is {subnet_max}; expected one not below {keys.minimum}, {subnet_min}")
    return SubnetPool(network=network, subnet_length=length, subnet_min=subnet_min, subnet_max=subnet_max)


def _network(values: Mapping[str, Any], family: Family) -> str:
    keys, longest = KEYS[family], LIMITS[family].longest - SUBNET_LENGTH_STEP
    expected = f"an IPv{family} prefix of length 1 to {longest}, such as {_SUCH_AS[family]}"
    if keys.network not in values:
        raise ValueError(f"{keys.network} is missing, though {keys.enable} is true; expected {expected}")
    given = values[keys.network]
    try:
        network = str(ipaddress.ip_network(given, strict=False)) if isinstance(given, str) and "/" in given else ""
    except ValueError:
        network = ""
    if not network or family_of(network) != family or not 1 <= prefix_length(network) <= longest:
        raise ValueError(f"{keys.network} is {show(given)}; expected {expected}")
    return network


_SUCH_AS: dict[Family, str] = {4: "10.5.0.0/16", 6: "fd00:5::/48"}


def _subnet_length(values: Mapping[str, Any], family: Family, network: str) -> int:
    key, limits = KEYS[family].length, LIMITS[family]
    shortest = prefix_length(network) + SUBNET_LENGTH_STEP
    given = values.get(key, 0)
    if given == 0 and type(given) is int:
        return max(limits.usual, shortest)
    if type(given) is not int or not shortest <= given <= limits.longest:
        raise ValueError(
            f"{key} is {show(given)}; expected a whole number from {shortest} (four subnets of {network}) "
            f"to {limits.longest} (four addresses)"
        )
    return given


def _boundary(values: Mapping[str, Any], key: str, network: str, length: int, default: int) -> str:
    """SubnetMin or SubnetMax as an address: inside of the network, on the boundary of a subnet."""
    family, given = family_of(network), values.get(key)
    expected = f"the first address of a subnet of length {length} in {network}"
    try:
        address = ipaddress.ip_address(given if isinstance(given, str) else _zero(given))
    except ValueError:
        raise ValueError(f"{key} is {show(given)}; expected {expected}") from None
    number = int(address) or default
    first, last = span_of(network)
    right_family = int(address) == 0 or address.version == family
    if not right_family or not first <= number <= last or number % (1 << (HOST_BITS[family] - length)):
        raise ValueError(f"{key} is {show(given)}; expected {expected}")
    return str(ipaddress.IPv6Address(number) if family == 6 else ipaddress.IPv4Address(number))


def _zero(given: object) -> int:
    """0, "not given", of None alone."""
    if given is not None:
        raise ValueError("not an address")
    return 0


def _general(values: Mapping[str, Any], faults: list[str]) -> tuple[str, dict[str, Any], bool]:
    """Backend type and options, and EnableNFTables."""
    backend, options, nftables = DEFAULT_BACKEND, dict[str, Any](), False
    try:
        backend, options = _backend(values.get(BACKEND, {"Type": DEFAULT_BACKEND}))
    except ValueError as error:
        faults.append(str(error))
    try:
        nftables = _boolean(values, NFTABLES, False)
    except ValueError as error:
        faults.append(str(error))
    return backend, options, nftables


def _backend(given: object) -> tuple[str, dict[str, Any]]:
    """Type, in lower case as flannel looks it up, and the other options as they are written."""
    if not isinstance(given, dict):
        raise ValueError(f'{BACKEND} is {show(given)}; expected an object such as {{"Type": "vxlan"}}')
    options = {key: value for key, value in given.items() if key.casefold() != "type"}
    backend = next((value for key, value in reversed(given.items()) if key.casefold() == "type"), None)
    if not isinstance(backend, str) or not backend:
        raise ValueError(f'{BACKEND}.Type is {show(backend)}; expected the name of a backend, such as "vxlan"')
    return backend.lower(), options


def _boolean(values: Mapping[str, Any], key: str, default: bool) -> bool:
    given = values.get(key, default)
    if not isinstance(given, bool):
        raise ValueError(f"{key} is {show(given)}; expected true or false")
    return given
