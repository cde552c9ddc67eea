"""What has happened lately: a numbered ring of events that any number of readers follow at their own pace.

Theory of operation: an event gets the next number and pushes the oldest out when the ring is full. A reader keeps the
number of the last event that it has seen and asks for those after it, waiting where there is none: so a slow reader
costs nothing, and sees by the numbers what it has missed. Numbers begin at 1 with each start of the agent; a reader
that asks beyond the last one comes from before a restart, and gets all that there is.

For one event loop: ``add`` from another thread would not wake the readers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from muslin.wire.agent_api import Event

CAPACITY = 1000


class EventLog:
    """The ring. ``clock`` tells seconds since the epoch."""

    def __init__(self, capacity: int = CAPACITY, clock: Callable[[], float] = time.time) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._clock = clock
        self._news = asyncio.Event()
        self.last = 0
        """The number of the latest event, 0 before the first."""

    def add(self, kind: str, text: str) -> Event:
        """Note that something has happened: ``kind`` in one word, ``text`` as a sentence."""
        self.last += 1
        event = Event(number=self.last, at=self._clock(), kind=kind, text=text)
        self._events.append(event)
        self._news.set()
        self._news = asyncio.Event()
        return event

    def after(self, number: int) -> tuple[Event, ...]:
        """The events behind this one, oldest first, as far as they are still there."""
        if number > self.last:
            number = 0
        return tuple(event for event in self._events if event.number > number)

    async def wait_after(self, number: int, timeout_s: float) -> tuple[Event, ...]:
        """The same; where there is none, the next one, or none after ``timeout_s``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not (events := self.after(number)):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return ()
        return events
