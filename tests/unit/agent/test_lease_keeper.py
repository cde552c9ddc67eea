"""The lease machine among a store, timers and a clock, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from muslin.agent.lease_keeper import LOOK_AT_CLOCK_S, LeaseKeeper
from muslin.lease.values import (
    AdvertisementChanged,
    Announce,
    ConfigChanged,
    Due,
    Machine,
    Rules,
    SnapshotSeen,
    Stop,
)
from muslin.model.lease import Advertisement, Lease
from muslin.store.base import StoreUnavailable
from muslin.store.memory import MemoryData, MemoryStore
from muslin.wire.flannel_config import parse_network_config
from tests.unit.agent.simulated import simulated

CONFIG = parse_network_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
DAY_S = 86_400.0
RULES = Rules(ttl_s=600, renew_margin_s=60)
NOON = 1_700_000_000.0


class World:
    """One keeper; ``skew_s`` moves the clock of the machine that it runs on."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.skew_s = 0.0
        self.data = MemoryData(self.now)
        self.store = MemoryStore(self.data)
        self.said: list[Announce] = []
        self.renewals: list[float] = []
        says = Advertisement(addresses=("10.0.0.1",), backend="vxlan")
        machine = Machine(advertisement=says, rules=rules)
        self.keeper = LeaseKeeper(self.store, machine, self.said.append, clock=self.now, dice=random.Random(1))
        renew = self.store.renew

        async def counted(lease: Lease, ttl_s: float, *, deadline_s: float = 10) -> Lease:
            self.renewals.append(asyncio.get_running_loop().time())
            return await renew(lease, ttl_s)

        self.store.renew = counted  # type: ignore[method-assign]

    def now(self) -> float:
        return NOON + asyncio.get_running_loop().time() + self.skew_s

    @property
    def state(self) -> str:
        return self.keeper.machine.state


@asynccontextmanager
async def holding() -> AsyncIterator[World]:
    """A keeper that has its lease and sees all that the store shows."""
    world = World()

    async def show() -> None:
        async for snapshot in world.store.watch():
            world.keeper.feed(SnapshotSeen(snapshot))

    world.keeper.feed(ConfigChanged(CONFIG))
    watching = asyncio.create_task(show())
    await asyncio.sleep(1)
    assert world.state == "holding"
    try:
        yield world
    finally:
        watching.cancel()
        await world.keeper.close()


@simulated
async def test_a_lease_is_renewed_in_time_and_seldom() -> None:
    async with holding() as world:
        await asyncio.sleep(DAY_S / 24)
        assert 3600 / 540 - 1 < len(world.renewals) < 3600 / 480 + 1
        assert world.state == "holding"
        assert len(world.data.entries) == 1


@simulated
@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S, 400.0, -400.0])
async def test_a_clock_that_is_set_costs_neither_the_lease_nor_a_storm_of_renewals(jump_s: float) -> None:
    async with holding() as world:
        await asyncio.sleep(100)
        (name,) = world.data.entries
        world.skew_s = jump_s
        await asyncio.sleep(3600)
        assert list(world.data.entries) == [name]
        assert world.state == "holding"
        assert len(world.renewals) < 12
        assert world.said[-1].lease is not None


@simulated
async def test_a_clock_set_forward_is_noticed_before_a_timer_would() -> None:
    async with holding() as world:
        entry = next(iter(world.data.entries.values()))
        assert entry.expires_at is not None
        world.skew_s = RULES.ttl_s - RULES.renew_margin_s  # the time for it has come, and the lease has not ended yet
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(LOOK_AT_CLOCK_S + 1)
        assert world.renewals
        assert world.renewals[0] - begun <= LOOK_AT_CLOCK_S


@simulated
async def test_a_store_that_is_away_keeps_the_lease_in_force_and_is_asked_seldom() -> None:
    async with holding() as world:
        name = next(iter(world.data.entries))
        world.data.outage = "the store burns"
        await asyncio.sleep(3600)
        last = world.said[-1]
        assert last.lease is not None
        assert "cannot renew" in last.warning
        assert len(world.renewals) < 3600 / 15
        world.data.outage = None
        await asyncio.sleep(61)
        assert (world.state, list(world.data.entries), world.said[-1].warning) == ("holding", [name], "")


@simulated
async def test_a_changed_advertisement_is_written_at_once_and_the_answer_is_announced() -> None:
    async with holding() as world:
        says = Advertisement(addresses=("10.0.0.1",), backend="host-gw")
        world.keeper.feed(AdvertisementChanged(says))
        await asyncio.sleep(0.1)
        assert (await world.store.snapshot()).leases[0].advertisement == says
        assert world.said[-1].lease is not None
        assert world.said[-1].lease.advertisement == says


@simulated
async def test_what_an_announcement_leads_to_has_its_turn_after_it() -> None:
    world = World()
    order: list[str] = []

    def announce(news: Announce) -> None:
        order.append(news.sentence)
        if len(order) == 1:
            world.keeper.feed(Stop())
            order.append("fed")

    world.keeper._announce = announce
    world.keeper.feed(ConfigChanged(CONFIG))
    assert order[:2] == ["waits for the store to show its leases", "fed"]
    assert world.state == "released"
    await world.keeper.close()


@simulated
async def test_a_stop_gives_the_lease_back_when_asked_to() -> None:
    async with holding() as world:
        world.keeper.feed(Stop(release=True))
        await asyncio.sleep(0.1)
        assert (world.state, world.data.entries) == ("released", {})


@simulated
async def test_a_lease_that_cannot_be_given_back_does_not_hold_up_the_end() -> None:
    async with holding() as world:
        world.data.outage = "the store burns"
        world.keeper.feed(Stop(release=True))
        await asyncio.sleep(0.1)
        assert world.state == "released"
        assert "will end by itself" in world.said[-1].sentence


@simulated
async def test_a_reservation_is_neither_renewed_nor_given_back() -> None:
    world = World()
    says = world.keeper.machine.advertisement
    await world.store.reserve(Lease(subnets=("10.5.77.0/24",), advertisement=says))
    world.keeper.feed(ConfigChanged(CONFIG))
    world.keeper.feed(SnapshotSeen(await world.store.snapshot()))
    await asyncio.sleep(DAY_S)
    assert (world.state, world.renewals) == ("holding", [])
    world.keeper.feed(Stop(release=True))
    await asyncio.sleep(0.1)
    assert world.state == "released"
    assert list(world.data.entries) == ["10.5.77.0-24"]
    await world.keeper.close()


@simulated
async def test_an_end_amid_a_call_ends_the_call_and_leaves_no_timer() -> None:
    async with holding() as world:
        calls = 0

        async def hangs(*_: object, **__: object) -> Lease:
            nonlocal calls
            calls += 1
            await asyncio.sleep(DAY_S)
            raise AssertionError("it was cancelled")

        world.store.renew = hangs  # type: ignore[method-assign]
        world.keeper.feed(Due())
        await asyncio.sleep(1)
        assert (calls, world.state) == (1, "renewing")
        await world.keeper.close()
        assert world.keeper.fault.cancelled()
        await asyncio.sleep(DAY_S)
        assert (calls, world.state) == (1, "renewing")


@simulated
async def test_a_fault_in_a_call_is_not_lost() -> None:
    async with holding() as world:

        async def broken(*_: object, **__: object) -> Lease:
            raise RuntimeError("not thought of")

        world.store.renew = broken  # type: ignore[method-assign]
        world.keeper.feed(Due())
        with pytest.raises(RuntimeError, match="not thought of"):
            await world.keeper.fault


@simulated
async def test_a_fault_at_a_timer_is_not_lost() -> None:
    async with holding() as world:

        def broken(_: Announce) -> None:
            raise RuntimeError("not thought of")

        world.keeper._announce = broken
        world.data.outage = "the store burns"  # so that there will be something to announce
        with pytest.raises(RuntimeError, match="not thought of"):
            await world.keeper.fault


@simulated
async def test_many_nodes_at_once_get_a_subnet_each() -> None:
    worlds = [World() for _ in range(20)]
    data = worlds[0].data
    for number, world in enumerate(worlds):
        world.keeper._store = MemoryStore(data)
        says = Advertisement(addresses=(f"10.0.1.{number}",), backend="vxlan")
        world.keeper.feed(AdvertisementChanged(says))
        world.keeper.feed(ConfigChanged(CONFIG))
        world.keeper.feed(SnapshotSeen(await world.store.snapshot()))
    await asyncio.sleep(60)
    assert len(data.entries) == 20
    held = {world.said[-1].lease.name for world in worlds if world.said[-1].lease}
    assert held == set(data.entries)
    for world in worlds:
        await world.keeper.close()


@simulated
async def test_what_the_store_says_of_itself_is_in_the_warning() -> None:
    world = World()

    async def away(*_: object, **__: object) -> Lease:
        raise StoreUnavailable("etcd at 10.0.0.5 does not answer", "a hint")

    world.store.create = away  # type: ignore[method-assign]
    world.keeper.feed(ConfigChanged(CONFIG))
    world.keeper.feed(SnapshotSeen(await world.store.snapshot()))
    await asyncio.sleep(600)
    assert world.state == "seeking"
    assert world.said[-1].warning == "cannot have a lease written: etcd at 10.0.0.5 does not answer"
    await world.keeper.close()
