"""Pools of subnets as numbers."""

from __future__ import annotations

import pytest

from muslin.model.config import NetworkConfig, SubnetPool, span_of

POOL = SubnetPool(network="10.5.0.0/16", subnet_length=24, subnet_min="10.5.1.0", subnet_max="10.5.9.0")
POOL_V6 = SubnetPool(network="fd00:5::/48", subnet_length=64, subnet_min="fd00:5:0:1::", subnet_max="fd00:5:0:ffff::")


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("10.5.1.0/24", (0x0A050100, 0x0A0501FF)),
        ("10.5.1.7/24", (0x0A050100, 0x0A0501FF)),
        ("10.5.1.7", (0x0A050107, 0x0A050107)),
        ("0.0.0.0/0", (0, 0xFFFFFFFF)),
        ("::1", (1, 1)),
        ("::/127", (0, 1)),
    ],
)
def test_spans(text: str, span: tuple[int, int]) -> None:
    assert span_of(text) == span


@pytest.mark.parametrize(
    "text", ["", "x", "10.5.1/24", "10.5.1.0/33", "10.5.1.0/-1", "10.5.1.0/", "::/129", "10.5.1.0/x"]
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        span_of(text)


def test_subnets_have_numbers() -> None:
    assert (POOL.count, POOL.size, POOL.subnet(0), POOL.subnet(8)) == (9, 256, "10.5.1.0/24", "10.5.9.0/24")
    assert (POOL_V6.count, POOL_V6.subnet(1)) == (0xFFFF, "fd00:5:0:2::/64")
    with pytest.raises(ValueError, match="has 9 subnets to lease, number 9 is outside"):
        POOL.subnet(9)
    for outside in ("10.5.0.0/24", "10.5.10.0/24", "10.5.1.0/25", "10.6.1.0/24", "fd00:5:0:1::/64"):
        assert POOL.index_of(outside) is None


def test_a_lease_fits_with_one_subnet_of_each_pool() -> None:
    config = NetworkConfig(pools=(POOL, POOL_V6), backend="vxlan")
    assert config.accepts(("10.5.1.0/24", "fd00:5:0:1::/64"))
    assert not config.accepts(("10.5.1.0/24",))
    assert not config.accepts(("10.5.1.0/24", "10.5.2.0/24"))
    assert (config.families, config.pool_of(6), config.pool_of(4)) == ((4, 6), POOL_V6, POOL)
    assert NetworkConfig(pools=(POOL,), backend="vxlan").pool_of(6) is None
