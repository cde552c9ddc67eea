"""Addresses of containers: held against a naive twin, rotating, and as fast for 16,000 as for one."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muslin.lease import addresses
from muslin.lease.addresses import AddressOutside, AddressTaken, Pool, PoolExhausted, choose_all
from muslin.model.address import address_part, nth_address

SMALL = ("10.5.3.0/28", "fd00:5::30/125", "10.5.3.4/30", "10.5.3.4/31", "10.5.3.4/32", "fd00::/127")


class NaivePool:
    """What a pool promises, in the plainest way: lists, and a walk through all of the subnet."""

    def __init__(self, subnet: str) -> None:
        network = ipaddress.ip_network(subnet)
        hosts = [str(address) for address in network][2:]
        self.hosts = hosts[:-1] if network.version == 4 else hosts
        self.length = network.prefixlen
        self.unused = list(self.hosts)
        self.freed: list[str] = []
        self.taken: list[str] = []

    def reserve(self, wanted: str | None = None) -> str | type[Exception]:
        if wanted is None and not self.unused + self.freed:
            return PoolExhausted
        address = wanted or (self.unused + self.freed)[0]
        if address not in self.hosts:
            return AddressOutside
        if address in self.taken:
            return AddressTaken
        self.unused = [other for other in self.unused if other != address]
        self.freed = [other for other in self.freed if other != address]
        self.taken.append(address)
        return f"{address}/{self.length}"

    def release(self, address: str) -> None:
        if address in self.taken:
            self.taken.remove(address)
            self.freed.append(address)


def attempt(act: Callable[[], str]) -> str | type[Exception]:
    try:
        return act()
    except ValueError as error:
        return type(error)


class TwinMachine(RuleBasedStateMachine):
    """Every call goes to both; a restart is a new pool in the state of the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool("10.5.3.0/28")
        self.twin = NaivePool("10.5.3.0/28")

    @rule(subnet=st.sampled_from(SMALL))
    @precondition(lambda self: not self.twin.taken and not self.twin.freed)
    def choose_subnet(self, subnet: str) -> None:
        self.pool, self.twin = Pool(subnet), NaivePool(subnet)

    @rule()
    def reserve(self) -> None:
        assert attempt(self.pool.reserve) == self.twin.reserve()

    @rule(place=st.integers(-2, 17))
    def reserve_wanted(self, place: int) -> None:
        address = str(ipaddress.ip_network(self.pool.subnet).network_address + place)
        assert attempt(lambda: self.pool.reserve(address)) == self.twin.reserve(address)

    @rule(place=st.integers(-2, 17))
    def release(self, place: int) -> None:
        address = str(ipaddress.ip_network(self.pool.subnet).network_address + place)
        self.pool.release(address)
        self.twin.release(address)

    @rule()
    def choose_without_taking(self) -> None:
        assert attempt(self.pool.choose) == attempt(self.pool.choose)

    @rule()
    def restart(self) -> None:
        self.pool = Pool(
            self.pool.subnet, taken=list(self.twin.taken), freed=self.pool.freed(), cursor=self.pool.cursor
        )

    @invariant()
    def both_agree(self) -> None:
        assert self.pool.freed() == self.twin.freed
        assert (self.pool.total, self.pool.taken) == (len(self.twin.hosts), len(self.twin.taken))
        assert all(self.pool.is_taken(address) == (address in self.twin.taken) for address in self.twin.hosts)


TestTwin = TwinMachine.TestCase
TestTwin.settings = settings(max_examples=150, stateful_step_count=40)


# ---- what is handed out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "first", "last", "total"),
    [
        ("10.5.3.0/24", "10.5.3.2/24", "10.5.3.254/24", 253),
        ("10.5.3.4/30", "10.5.3.6/30", "10.5.3.6/30", 1),
        ("fd00:5:0:3::/126", "fd00:5:0:3::2/126", "fd00:5:0:3::3/126", 2),
    ],
)
def test_network_gateway_and_broadcast_are_never_handed_out(subnet: str, first: str, last: str, total: int) -> None:
    pool = Pool(subnet)
    handed = [pool.reserve() for _ in range(total)]
    assert (handed[0], handed[-1], pool.total, len(set(handed))) == (first, last, total, total)
    assert pool.gateway == nth_address(subnet, 1)
    with pytest.raises(PoolExhausted, match=rf"{subnet} is free: {total} of {total} are taken") as caught:
        pool.reserve()
    assert (caught.value.total, caught.value.taken) == (total, total)


@pytest.mark.parametrize("subnet", ["10.5.3.4/31", "10.5.3.4/32", "fd00::/127", "fd00::/128"])
def test_a_subnet_too_small_for_anybody_is_exhausted(subnet: str) -> None:
    with pytest.raises(PoolExhausted):
        Pool(subnet).reserve()
    with pytest.raises(AddressOutside, match="nothing of"):
        Pool(subnet).reserve(subnet.partition("/")[0])


@pytest.mark.parametrize("subnet", ["fd00:5:0:3::/64", "fd00::/8", "::/0", "10.0.0.0/8", "0.0.0.0/0"])
def test_a_subnet_of_any_length_works(subnet: str) -> None:
    pool = Pool(subnet)
    length = subnet.partition("/")[2]
    assert [pool.reserve(), pool.reserve()] == [f"{nth_address(subnet, place)}/{length}" for place in (2, 3)]
    highest = nth_address(subnet, ipaddress.ip_network(subnet).num_addresses - 2)
    assert pool.reserve(highest) == f"{highest}/{length}"
    pool.release(highest)
    assert not pool.is_taken(highest)


@pytest.mark.parametrize(
    "wanted",
    ["10.5.3.0", "10.5.3.1", "10.5.3.255", "10.5.4.2", "10.5.2.255", "9.0.0.1", "fd00::5", "10.5.3.1/24"],
)
def test_a_wanted_address_that_cannot_be_had_says_which_can(wanted: str) -> None:
    with pytest.raises(AddressOutside) as caught:
        Pool("10.5.3.0/24").reserve(wanted)
    assert str(caught.value) == (
        f"{address_part(wanted)} cannot be had on this node; it hands out 10.5.3.2 to 10.5.3.254"
    )


def test_a_wanted_address_may_have_any_length_and_gets_the_subnets() -> None:
    pool = Pool("10.5.3.0/24")
    assert pool.reserve("10.5.3.7/16") == "10.5.3.7/24"
    with pytest.raises(AddressTaken, match=r"10\.5\.3\.7 is taken") as caught:
        pool.reserve("10.5.3.7")
    assert caught.value.address == "10.5.3.7"
    assert str(AddressTaken("10.5.3.7", "web1/eth0")).startswith("10.5.3.7 is taken by web1/eth0;")


def test_addresses_rest_as_long_as_possible() -> None:
    pool = Pool("10.5.3.0/29")
    one, two = pool.reserve(), pool.reserve()
    pool.release(two)
    pool.release(one)
    handed = [pool.reserve() for _ in range(5)]
    assert handed == ["10.5.3.4/29", "10.5.3.5/29", "10.5.3.6/29", two, one]


def test_what_belongs_to_nobody_may_be_given_back() -> None:
    pool = Pool("10.5.3.0/24")
    for address in ("10.5.3.7", "10.5.3.1", "10.9.0.1", "fd00::1"):
        pool.release(address)
    assert (pool.freed(), pool.reserve()) == ([], "10.5.3.2/24")


@pytest.mark.parametrize("cursor", [-5, 0, 4, 7, 10**40])
def test_a_state_that_makes_no_sense_loses_no_address(cursor: int) -> None:
    pool = Pool(
        "10.5.3.0/29",
        taken=["10.5.3.4/29", "10.5.3.1", "10.9.0.1"],
        freed=["10.5.3.4", "10.5.3.5", "fd00::1", "10.5.3.5", "10.5.3.7"],
        cursor=cursor,
    )
    assert pool.freed() == ["10.5.3.5"]
    handed = {address_part(pool.reserve()) for _ in range(4)}
    assert handed == {f"10.5.3.{place}" for place in (2, 3, 5, 6)}
    with pytest.raises(PoolExhausted):
        pool.reserve()


def test_a_large_pool_keeps_no_queue_and_goes_round() -> None:
    pool = Pool("10.5.3.0/29", queue_max=4)
    handed = [pool.reserve() for _ in range(3)]
    pool.release(handed[1])
    pool.release("10.5.3.2")
    assert pool.freed() == []
    assert [pool.reserve() for _ in range(4)] == ["10.5.3.5/29", "10.5.3.6/29", "10.5.3.2/29", "10.5.3.3/29"]
    with pytest.raises(PoolExhausted):
        pool.reserve()


@given(st.lists(st.integers(2, 6) | st.none(), max_size=60))
def test_a_large_pool_never_hands_out_twice_and_everything_in_the_end(turns: list[int | None]) -> None:
    pool = Pool("10.5.3.0/29", queue_max=0)
    taken: set[str] = set()
    for place in turns:
        if place is None and len(taken) < pool.total:
            address = address_part(pool.reserve())
            assert address not in taken
            taken.add(address)
        elif place is not None:
            pool.release(f"10.5.3.{place}")
            taken.discard(f"10.5.3.{place}")
    rest = {address_part(pool.reserve()) for _ in range(pool.total - len(taken))}
    assert rest == {f"10.5.3.{place}" for place in range(2, 7)} - taken


def test_the_queue_of_the_largest_queued_pool_is_bounded_by_the_pool() -> None:
    assert Pool("10.5.0.0/16").is_queued
    assert not Pool("10.4.0.0/15").is_queued
    assert not Pool("fd00::/64").is_queued
    assert Pool("10.5.3.0/24").queues("10.5.3.7")
    assert not Pool("10.5.3.0/24").queues("10.5.4.7")


# ---- both families ---------------------------------------------------------------------------------------


def pools(*subnets: str) -> list[Pool]:
    return [Pool(subnet) for subnet in subnets]


def test_a_lease_of_both_families_gives_an_address_of_each() -> None:
    assert choose_all(pools("10.5.3.0/24", "fd00:5:0:3::/64")) == ("10.5.3.2/24", "fd00:5:0:3::2/64")


def test_all_or_nothing() -> None:
    both = pools("10.5.3.0/24", "fd00:5:0:3::/126")
    for _ in range(2):
        both[1].reserve()
    with pytest.raises(PoolExhausted, match="fd00"):
        choose_all(both)
    assert (both[0].taken, both[0].choose()) == (0, "10.5.3.2/24")


def test_each_family_may_want_its_own() -> None:
    both = pools("10.5.3.0/24", "fd00:5:0:3::/64")
    assert choose_all(both, ["fd00:5:0:3::9"]) == ("10.5.3.2/24", "fd00:5:0:3::9/64")
    assert choose_all(both, ["fd00:5:0:3::9", "10.5.3.9"]) == ("10.5.3.9/24", "fd00:5:0:3::9/64")


def test_a_wanted_family_that_the_lease_lacks() -> None:
    with pytest.raises(AddressOutside, match=r"fd00::9 cannot be had on this node; it hands out 10\.5\.3\.2"):
        choose_all(pools("10.5.3.0/24"), ["fd00::9"])
    with pytest.raises(AddressOutside, match="no subnet"):
        choose_all([], ["fd00::9"])
    assert choose_all([]) == ()


@pytest.mark.parametrize(
    ("wanted", "held", "chosen"),
    [
        ([], ["10.5.3.7/24"], "10.5.3.7/24"),
        (["10.5.3.7"], ["10.5.3.7/24"], "10.5.3.7/24"),
        (["10.5.3.8"], ["10.5.3.7/24"], "10.5.3.8/24"),
        ([], ["10.5.2.7/23"], "10.5.3.2/24"),
        ([], ["10.5.3.7/25"], "10.5.3.7/24"),
        ([], ["fd00::7/64"], "10.5.3.2/24"),
    ],
)
def test_what_is_held_already_is_kept_where_it_fits(wanted: Sequence[str], held: Sequence[str], chosen: str) -> None:
    (pool,) = pools("10.5.3.0/24")
    for address in held:
        if pool.has(address):
            pool.take(address)
    assert choose_all([pool], wanted, held) == (chosen,)


def test_what_is_held_gives_no_right_to_what_another_holds() -> None:
    (pool,) = pools("10.5.3.0/24")
    pool.take("10.5.3.7")
    pool.take("10.5.3.8")
    with pytest.raises(AddressTaken):
        choose_all([pool], ["10.5.3.8"], ["10.5.3.7/24"])
    with pytest.raises(AddressOutside):
        choose_all([pool], ["10.5.3.1"], ["10.5.3.7/24"])


# ---- what it costs ---------------------------------------------------------------------------------------


def count_steps(act: Callable[[], object]) -> int:
    """How many lines of the pool's module run."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != addresses.__file__:
            return None
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("subnet", ["10.5.0.0/16", "fd00:5:0:3::/64"])
def test_with_16_000_reservations_each_call_takes_as_many_steps_as_with_one(subnet: str) -> None:
    def costs(pool: Pool, place: int) -> list[int]:
        calls: list[Callable[[], object]] = [
            lambda: pool.reserve(),
            lambda: pool.reserve(nth_address(subnet, 60_000)),
            lambda: pool.release(nth_address(subnet, 60_000)),
            lambda: pool.release(nth_address(subnet, place)),
            lambda: pool.is_taken(nth_address(subnet, place)),
        ]
        return [count_steps(call) for call in calls]

    empty, full = Pool(subnet), Pool(subnet)
    for one in (empty, full):
        one.reserve()
        one.reserve()
    for _ in range(16_000):
        full.reserve()
    few, many = costs(empty, 2), costs(full, 8_000)
    assert all(steps > 3 for steps in few), "the steps are counted"
    assert many == few


def test_handing_out_again_what_was_given_back_takes_as_many_steps_however_many_wait() -> None:
    def cost(freed: int) -> int:
        subnet = "10.5.0.0/16"
        pool = Pool(subnet, freed=[nth_address(subnet, place) for place in range(2, 2 + freed)], cursor=1 << 16)
        for place in range(2, 2 + freed, 2):  # taken out of the middle, by containers that wanted them
            pool.reserve(nth_address(subnet, place))
        return count_steps(pool.reserve)

    assert cost(2_000) == cost(4) > 3
