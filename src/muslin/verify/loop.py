"""A minimal event loop: epoll and timers, one thread.

Theory of operation: asyncio would cost more at start (50 ms) than the talk's whole matrix takes, and it has
no way to read a socket's error queue. Handlers get the epoll bits; timers fire in order of their deadline.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
FAILED = select.EPOLLERR | select.EPOLLHUP

Handler = Callable[[int], None]
_MAX_WAIT_S = 0.5  # so that a handler's mistake shows as slowness, never as a hang


class Timer:
    """A call that is still to come; ``cancel`` takes it back."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Never call."""
        self.cancelled = True


class Loop:
    """Waits for sockets and deadlines, and calls whoever asked."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._hurry = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._epoll.close()

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def watch(self, fd: int, handler: Handler, events: int = READABLE) -> None:
        """Call ``handler`` with the epoll bits whenever ``fd`` is ready (level-triggered)."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a watched ``fd``."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no longer; call it before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call after ``delay_s`` seconds unless cancelled."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.now() + delay_s, next(self._order), timer))
        return timer

    def hurry(self) -> None:
        """Do not wait in the next turn."""
        self._hurry = True

    def run(self, finished: Callable[[], bool]) -> None:
        """Serve events until ``finished`` says so."""
        while not finished():
            for fd, events in self._epoll.poll(self._wait_s(), 256):
                if handler := self._handlers.get(fd):
                    handler(events)
            self._fire()

    def _wait_s(self) -> float:
        if self._hurry:
            self._hurry = False
            return 0.0
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return _MAX_WAIT_S
        return min(max(self._timers[0][0] - self.now(), 0.0), _MAX_WAIT_S)

    def _fire(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                timer.callback()
