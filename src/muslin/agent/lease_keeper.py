"""Runs the lease machine: its actions become calls of the store and timers, their outcome its next input.

Theory of operation: ``feed`` gives the machine an input and carries out what it answers, in order. A call of the store
is a task, and what came of it is fed when it is known; the machine is made for answers that come late or never. It is
told of a time either by a timer or by the clock, whichever comes first: a timer alone would miss a clock that is set
forward, since leases end by the clock. No input is lost and none is fed from within another. What goes wrong where
nobody waits, in a call or at a timer, is a fault of this program: ``fault`` raises it for whoever runs the keeper.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

from muslin.lease.machine import step
from muslin.lease.values import (
    Action,
    Announce,
    Created,
    CreateFailed,
    CreateLease,
    CreateTaken,
    Deleted,
    DeleteFailed,
    DeleteLease,
    Due,
    Input,
    Machine,
    ReadFailed,
    Refresh,
    Renewed,
    RenewFailed,
    RenewLease,
    RenewLost,
    SnapshotSeen,
    Wait,
)
from muslin.store.base import Clock, LeaseLost, LeaseTaken, Store, StoreUnavailable

LOOK_AT_CLOCK_S = 15.0
"""How late a clock that was set forward is noticed at most."""


class LeaseKeeper:
    """Keeps one node's lease, in the running event loop. ``announce`` is called with what holds from then on."""

    def __init__(
        self,
        store: Store,
        machine: Machine,
        announce: Callable[[Announce], None],
        *,
        clock: Clock = time.time,
        dice: random.Random | None = None,
    ) -> None:
        self.machine = machine
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._store, self._announce, self._clock = store, announce, clock
        self._dice = dice or random.Random()
        self._inputs: deque[Input] = deque()
        self._is_stepping = False
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, event: Input) -> None:
        """Something has happened."""
        self._inputs.append(event)
        if self._is_stepping:  # an announcement led to another input: it has its turn after this one
            return
        self._is_stepping = True
        try:
            while self._inputs:
                result = step(self.machine, self._inputs.popleft(), self._clock(), self._dice)
                self.machine = result.machine
                for action in result.actions:
                    self._act(action)
        finally:
            self._is_stepping = False

    def _act(self, action: Action) -> None:
        match action:
            case Announce():
                self._announce(action)
            case Wait(until=until):
                self._wait(until)
            case _:
                task = asyncio.get_running_loop().create_task(self._call(action))
                self._calls.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.fault.done():
            self.fault.set_exception(error)

    async def _call(self, action: Action) -> None:
        """Ask the store and feed the answer."""
        answer: Input
        match action:
            case CreateLease(lease=lease, ttl_s=ttl_s):
                try:
                    answer = Created(await self._store.create(lease, ttl_s))
                except LeaseTaken:
                    answer = CreateTaken()
                except (StoreUnavailable, ValueError) as error:
                    answer = CreateFailed(_reason(error))
            case RenewLease(lease=lease, ttl_s=ttl_s):
                try:
                    answer = Renewed(await self._store.renew(lease, ttl_s))
                except LeaseLost:
                    answer = RenewLost()
                except (StoreUnavailable, ValueError) as error:
                    answer = RenewFailed(_reason(error))
            case DeleteLease(lease=lease):
                try:
                    await self._store.delete(lease)
                    answer = Deleted()
                except (StoreUnavailable, LeaseLost) as error:
                    answer = DeleteFailed(_reason(error))
            case Refresh():
                try:
                    answer = SnapshotSeen(await self._store.snapshot())
                except StoreUnavailable as error:
                    answer = ReadFailed(_reason(error))
            case _:
                raise TypeError(f"no call of a store: {action}")
        self.feed(answer)

    def _wait(self, until: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until is not None:
            left_s = max(until - self._clock(), 0.0)
            self._set_timer(until, left_s)

    def _set_timer(self, until: float, left_s: float) -> None:
        pause_s = min(left_s, LOOK_AT_CLOCK_S)
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._ring, until, left_s - pause_s)

    def _ring(self, until: float, left_s: float) -> None:
        """The time has come, or part of it has passed."""
        if left_s > 0 and self._clock() < until:
            self._set_timer(until, left_s)
            return
        self._timer = None
        try:
            self.feed(Due())
        except Exception as error:
            if not self.fault.done():
                self.fault.set_exception(error)

    async def close(self) -> None:
        """Forget timers and calls that are under way."""
        self._wait(None)
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        if not self.fault.done():
            self.fault.cancel()


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, StoreUnavailable | LeaseLost) else str(error)
