"""When the kernel is looked at: counted over simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

from muslin.agent.agenda import COST_FACTOR, GAP_S, RETRY_MAX_S, RETRY_MIN_S, TIMER_FACTOR, Agenda
from tests.unit.agent.simulated import simulated


def now() -> float:
    return asyncio.get_running_loop().time()


async def watch(agenda: Agenda, lasting_s: float, after: Callable[[bool], None], took_s: float = 0.0) -> list[float]:
    """When there was something to do within that time; ``after`` is called when it is done."""
    times: list[float] = []
    try:
        async with asyncio.timeout(lasting_s):
            while True:
                is_look = await agenda.until_due()
                times.append(now())
                await asyncio.sleep(took_s)
                if is_look:
                    agenda.looked(took_s)
                after(is_look)
    except TimeoutError:
        return times


async def storm(agenda: Agenda) -> None:
    while True:
        agenda.look_soon()
        await asyncio.sleep(0.01)


@simulated
async def test_a_look_comes_when_it_was_asked_for_and_the_earliest_wish_counts() -> None:
    agenda = Agenda()
    agenda.look(30)
    agenda.look(2)
    agenda.look(10)
    assert await agenda.until_due()
    assert now() == 2


@simulated
async def test_a_step_does_not_wait_for_the_look_that_is_due_later_and_loses_it_not() -> None:
    agenda = Agenda()
    agenda.look(5)
    agenda.follow()
    assert not await agenda.until_due()
    assert now() == 0
    assert await agenda.until_due()
    assert now() == 5


@simulated
async def test_what_is_wished_for_during_the_work_is_done_after_it() -> None:
    agenda = Agenda()
    agenda.look()
    assert await agenda.until_due()
    agenda.follow()
    agenda.look()
    assert await agenda.until_due(), "a look does what a step would have"
    assert await watch(agenda, 60, lambda _: None) == []


@simulated
async def test_one_event_after_quiet_is_looked_after_within_a_moment() -> None:
    agenda = Agenda()
    agenda.looked(0.1)
    await asyncio.sleep(10)
    agenda.look_soon()
    assert await agenda.until_due()
    assert now() - 10 < 0.05


@simulated
async def test_a_storm_of_events_is_a_few_looks_a_second() -> None:
    agenda = Agenda()
    rain = asyncio.create_task(storm(agenda))
    times = await watch(agenda, 60, lambda _: None)
    rain.cancel()
    assert 60 / GAP_S / 2 < len(times) <= 60 / GAP_S + 1


@simulated
async def test_a_storm_takes_no_more_than_its_share_of_a_core_when_looks_are_dear() -> None:
    agenda, took_s = Agenda(), 1.5
    rain = asyncio.create_task(storm(agenda))
    times = await watch(agenda, 300, lambda _: None, took_s)
    rain.cancel()
    assert len(times) <= 300 / (took_s * (1 + COST_FACTOR)) + 1


@simulated
async def test_what_fails_for_ever_is_tried_after_pauses_that_double_to_a_minute() -> None:
    agenda = Agenda()
    agenda.look()
    times = await watch(agenda, 3600, lambda _: agenda.retry(was_look=True))
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[:4] == [RETRY_MIN_S, 2 * RETRY_MIN_S, 4 * RETRY_MIN_S, 8 * RETRY_MIN_S]
    assert pauses[-1] == RETRY_MAX_S
    assert len(times) < 70
    agenda.nothing_is_missing()
    agenda.retry(was_look=True)
    assert await agenda.until_due()


@simulated
async def test_a_store_that_changes_all_the_time_does_not_lengthen_the_pause_of_what_fails() -> None:
    agenda = Agenda()
    for _ in range(100):
        agenda.retry(was_look=False)
    assert await agenda.until_due()
    assert now() == RETRY_MIN_S


@simulated
async def test_the_timer_waits_for_what_was_set_or_longer_when_looks_are_dear() -> None:
    agenda = Agenda()
    agenda.look_anyway(30, 0.001)
    assert await agenda.until_due()
    assert now() == 30
    agenda.look_anyway(30, 1.0)
    assert await agenda.until_due()
    assert now() == 30 + TIMER_FACTOR
