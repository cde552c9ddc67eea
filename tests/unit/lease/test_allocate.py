"""Free subnets: never one that is taken, any that is free, and numbers when there is none."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.lease.allocate import Exhausted, allocate, reserved_in, taken_in
from muslin.model.address import overlaps
from muslin.model.config import NetworkConfig, SubnetPool
from tests.unit.lease.examples import CONFIG, DUAL, POOL, SMALL, lease, snapshot

TINY = SubnetPool(network="10.5.0.0/24", subnet_length=28, subnet_min="10.5.0.16", subnet_max="10.5.0.240")
TINY_CONFIG = NetworkConfig(pools=(TINY,), backend="vxlan")
SUBNETS_OF_ANY_LENGTH = st.builds(
    lambda address, length: str(ipaddress.ip_network((address, length), strict=False)),
    st.integers(int(ipaddress.ip_address("10.4.255.0")), int(ipaddress.ip_address("10.5.1.255"))),
    st.integers(25, 32),
)


def naive_free(pool: SubnetPool, taken: list[str]) -> set[str]:
    candidates = (pool.subnet(index) for index in range(pool.count))
    return {subnet for subnet in candidates if not any(overlaps(subnet, other) for other in taken)}


@given(st.lists(SUBNETS_OF_ANY_LENGTH, max_size=12), st.integers())
def test_the_naive_scan_agrees(taken: list[str], seed: int) -> None:
    free = naive_free(TINY, taken)
    dice = random.Random(seed)
    if not free:
        with pytest.raises(Exhausted):
            allocate(TINY_CONFIG, taken, dice)
        return
    chosen = allocate(TINY_CONFIG, taken, dice)
    assert chosen[0] in free
    # What is drawn next, as if other nodes had been faster each time, is every free subnet once.
    drawn = set(chosen)
    while len(drawn) < len(free):
        (subnet,) = allocate(TINY_CONFIG, [*taken, *drawn], dice)
        assert subnet in free - drawn
        drawn.add(subnet)
    with pytest.raises(Exhausted):
        allocate(TINY_CONFIG, [*taken, *drawn], dice)


def test_all_free_subnets_are_equally_likely() -> None:
    taken = [TINY.subnet(index) for index in range(TINY.count) if index % 3]
    dice = random.Random(1)
    counted = Counter(allocate(TINY_CONFIG, taken, dice)[0] for _ in range(5000))
    assert counted.keys() == naive_free(TINY, taken)
    assert max(counted.values()) < 1.2 * min(counted.values())


def test_a_wanted_subnet_is_taken_if_it_is_free_and_fits() -> None:
    dice = random.Random(1)
    assert allocate(CONFIG, [], dice, wanted=["10.5.7.0/24"]) == ("10.5.7.0/24",)
    assert allocate(CONFIG, ["10.5.7.0/24"], dice, wanted=["10.5.7.0/24"]) != ("10.5.7.0/24",)
    for other in ("10.6.7.0/24", "10.5.7.0/25", "10.5.0.0/24", "fd00:5:0:7::/64"):
        assert POOL.index_of(allocate(CONFIG, [], dice, wanted=[other])[0]) is not None


def test_both_families_get_one_number_where_it_is_free() -> None:
    dice = random.Random(2)
    v4, v6 = allocate(DUAL, [], dice, wanted=["10.5.7.0/24"])
    assert (v4, v6) == ("10.5.7.0/24", "fd00:5:0:7::/64")
    v4, v6 = allocate(DUAL, ["fd00:5:0:7::/64"], dice, wanted=["10.5.7.0/24"])
    assert v4 == "10.5.7.0/24"
    assert v6 != "fd00:5:0:7::/64"
    # The family that is kept leads: its containers have addresses already.
    assert allocate(DUAL, [], dice, wanted=["10.5.7.0/24", "fd00:5:0:9::/64"])[1] == "fd00:5:0:9::/64"


def test_exhaustion_has_the_numbers() -> None:
    config = NetworkConfig(pools=(SMALL,), backend="vxlan")
    with pytest.raises(Exhausted) as caught:
        allocate(config, ["10.5.0.2/31", "10.5.0.4/31"], random.Random(1), reserved=["10.5.0.6/31"])
    assert str(caught.value).startswith(
        "no subnet is free: 10.5.0.0/29 has 3 subnets of length 31 from 10.5.0.2 to 10.5.0.6, and all of them are "
        "taken, 1 by reservations;"
    )


def test_a_name_is_taken_also_if_its_lease_is_garbage() -> None:
    seen = snapshot(lease("10.5.1.0/24"), lease("10.5.2.0/24", expires_at=None), unreadable=("10.5.3.0-24", "rubbish"))
    assert taken_in(seen) == ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]
    assert reserved_in(seen) == ["10.5.2.0/24"]


def test_an_enormous_pool_costs_no_more_than_its_leases() -> None:
    pool = SubnetPool(
        network="fd00::/16", subnet_length=64, subnet_min="fd00:0:0:1::", subnet_max="fd00:ffff:ffff:ffff::"
    )
    config = NetworkConfig(pools=(pool,), backend="vxlan")
    taken = [pool.subnet(index * 3) for index in range(5000)]
    assert pool.index_of(allocate(config, taken, random.Random(3))[0]) is not None


def test_twenty_nodes_that_read_before_any_writes_rarely_collide() -> None:
    """flannel draws among the first 100 free ones: 20 nodes at once collide with a probability of 87 %."""
    wide = SubnetPool(network="10.0.0.0/8", subnet_length=24, subnet_min="10.0.1.0", subnet_max="10.255.255.0")
    config = NetworkConfig(pools=(wide,), backend="vxlan")
    drawn = {allocate(config, [], random.Random(node))[0] for node in range(20)}
    assert len(drawn) == 20
