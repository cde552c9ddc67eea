"""An event loop in which time passes only by waiting: an hour of an agent takes as long as its work does.

Theory of operation: the loop's clock stands while there is something to do and jumps to the next timer when there is
not. Kernel work runs in the loop itself, as a thread would be overtaken by such a clock.
"""

from __future__ import annotations

import asyncio
import functools
import json
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from muslin.agent.node import Node

Parameters = ParamSpec("Parameters")
STEPS_MAX = 2_000_000
"""Turns of the loop in one test, as a bound for those that never wait."""


class _Selector(selectors.DefaultSelector):
    """Never waits for a time: moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.steps += 1
        assert self.steps < STEPS_MAX, "the loop turns without end"
        if timeout is None:  # no timer at all: something outside has to come, like the end of a thread
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """``time`` is that of the jumping clock."""

    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def simulated(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    """Run an async test in simulated time."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def without_thread(node: Node) -> Node:
    """The node with its passes in the loop's own thread; each costs the simulated clock nothing."""

    async def at_once(work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()

    node._in_thread = at_once  # type: ignore[method-assign]
    return node


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait for a condition, in simulated seconds."""
    for _ in range(int(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


def config(backend: str = "vxlan", network: str = "10.5", **options: object) -> bytes:
    """A network whose agents lease the subnets 1 to 49; the tests' own peers have others."""
    pool = {"Network": f"{network}.0.0/16", "SubnetMin": f"{network}.1.0", "SubnetMax": f"{network}.49.0"}
    return json.dumps({**pool, "Backend": {"Type": backend, **options}}).encode()
