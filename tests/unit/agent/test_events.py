"""The ring of events and those who follow it."""

from __future__ import annotations

import asyncio

from muslin.agent.events import EventLog
from tests.contract.asynchronous import asynchronous


def test_events_are_numbered_from_one_and_the_oldest_go() -> None:
    log = EventLog(capacity=3, clock=lambda: 12.5)
    assert log.after(0) == ()
    for number in range(1, 6):
        event = log.add("kind", f"text {number}")
        assert (event.number, event.at, event.kind, event.text) == (number, 12.5, "kind", f"text {number}")
    assert log.last == 5
    assert [event.number for event in log.after(0)] == [3, 4, 5], "the numbers show what is missing"
    assert [event.number for event in log.after(4)] == [5]
    assert log.after(5) == ()


def test_who_asks_from_before_a_restart_gets_all() -> None:
    log = EventLog()
    log.add("start", "the agent has started")
    assert [event.number for event in log.after(812)] == [1]


@asynchronous
async def test_what_is_there_is_had_at_once_and_what_comes_is_waited_for() -> None:
    log = EventLog()
    log.add("one", "first")
    assert [event.kind for event in await log.wait_after(0, 60)] == ["one"]
    waiting = asyncio.ensure_future(log.wait_after(1, 60))
    await asyncio.sleep(0)
    log.add("two", "second")
    assert [event.kind for event in await waiting] == ["two"]


@asynchronous
async def test_waiting_ends_empty_when_nothing_comes() -> None:
    assert await EventLog().wait_after(0, 0.01) == ()


@asynchronous
async def test_all_who_wait_are_woken_and_none_misses_one() -> None:
    log = EventLog()

    async def follow(wanted: int) -> list[int]:
        seen: list[int] = []
        while len(seen) < wanted:
            seen += [event.number for event in await log.wait_after(seen[-1] if seen else 0, 60)]
        return seen

    readers = [asyncio.ensure_future(follow(200)) for _ in range(20)]
    for number in range(200):
        log.add("kind", str(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    for seen in await asyncio.gather(*readers):
        assert seen == list(range(1, 201))
