"""When the kernel task has something to do: at once for changed leases, and now and then to look.

Theory of operation: whoever wants something notes it here, and the one who works waits for it (``until_due``); a burst
of wishes is one piece of work. Looks keep their distance:

- what was heard leads to a look a moment later, but never sooner after the one before than ``GAP_S``, nor than
  ``COST_FACTOR`` times what that one took;
- the timer waits ``TIMER_FACTOR`` times what a look takes, or longer;
- what failed is tried again after pauses that double with each look in vain.

So neither a storm of events, nor a kernel that refuses for ever, nor the timer takes more than a share of a core. For
one event loop, and by its clock, which nobody can set.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

DEBOUNCE_S = 0.02
"""How long the events of one change are waited for."""
GAP_S = 0.25
"""Events lead to no more than one look within this time."""
COST_FACTOR = 4
"""After a look, this many times its duration passes before events lead to the next."""
TIMER_FACTOR = 500
"""The timer waits at least this many times the duration of a look: 0.2 % of a core."""
RETRY_MIN_S, RETRY_MAX_S = 0.5, 60.0


class Agenda:
    """What is to be done, and when."""

    def __init__(self) -> None:
        self._work = asyncio.Event()
        self._follow = False
        self._look_at: float | None = None
        self._heard_at: float | None = None
        """When the first event came that no look has followed yet."""
        self._free_at = float("-inf")
        """When events may lead to a look again."""
        self._retry_s = RETRY_MIN_S

    def follow(self) -> None:
        """Leases have changed, or something else that needs no look."""
        self._follow = True
        self._work.set()

    def look(self, after_s: float = 0.0) -> None:
        """A look, in ``after_s`` at the latest."""
        at = _now() + after_s
        self._look_at = at if self._look_at is None else min(self._look_at, at)
        self._work.set()

    def look_soon(self) -> None:
        """Something has happened that asks for a look."""
        if self._heard_at is None:
            self._heard_at = _now()
            self._work.set()

    def look_anyway(self, resync_s: float, took_s: float) -> None:
        """The timer: a look although nothing is heard until then."""
        self.look(max(resync_s, took_s * TIMER_FACTOR))

    def looked(self, took_s: float) -> None:
        """A look has ended, whatever came of it."""
        self._free_at = _now() + max(GAP_S, took_s * COST_FACTOR)

    def retry(self, *, was_look: bool) -> None:
        """Something is missing: look again, and after a look in vain the longer the more often that was so."""
        self.look(self._retry_s)
        if was_look:
            self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)

    def nothing_is_missing(self) -> None:
        """The next time that something fails, the pause is short again."""
        self._retry_s = RETRY_MIN_S

    async def until_due(self) -> bool:
        """Wait until there is something to do; whether that is a look, or else what changed leases ask for."""
        while not self._follow and not self._look_is_due():
            self._work.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_look_at()):
                    await self._work.wait()
        self._follow = False
        if not self._look_is_due():
            return False
        self._look_at = self._heard_at = None
        return True

    def _look_is_due(self) -> bool:
        at = self._next_look_at()
        return at is not None and at <= _now()

    def _next_look_at(self) -> float | None:
        # How long the last look took is known only at its end, so what was heard meanwhile is dated here.
        heard = () if self._heard_at is None else (max(self._heard_at + DEBOUNCE_S, self._free_at),)
        asked = () if self._look_at is None else (self._look_at,)
        return min((*heard, *asked), default=None)


def _now() -> float:
    return asyncio.get_running_loop().time()
