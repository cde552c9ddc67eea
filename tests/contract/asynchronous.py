"""Coroutines as tests: each gets an event loop of its own and a deadline, so that a lost wake-up fails by name."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Item = TypeVar("Item")
TEST_S = 60.0


def asynchronous(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    """Run an async test to its end."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def until(iterator: AsyncIterator[Item], wanted: Callable[[Item], bool]) -> Item:
    """The first item that is wanted."""
    async for item in iterator:
        if wanted(item):
            return item
    raise AssertionError("the iterator ended")


async def until_true(condition: Callable[[], object], pause_s: float = 0.01) -> None:
    """Wait for a condition that nobody signals; the test's deadline bounds it."""
    while not condition():
        await asyncio.sleep(pause_s)
