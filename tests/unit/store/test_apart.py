"""What runs apart leaves no mark on its caller: neither grpclib's cancellations, nor a task, nor a complaint."""

import asyncio

import pytest
from grpclib.utils import Wrapper

from muslin.store.etcd_api.apart import run_apart
from tests.contract.asynchronous import asynchronous

LONG_S = 60.0


async def wait_in(wrapper: Wrapper) -> None:
    with wrapper:
        await asyncio.sleep(LONG_S)


@asynchronous
async def test_a_lost_connection_does_not_count_as_a_cancellation_of_the_caller() -> None:
    caller = asyncio.current_task()
    assert caller is not None
    wrapper = Wrapper()
    asyncio.get_running_loop().call_later(0.01, wrapper.cancel, ConnectionError("lost"))
    with pytest.raises(ConnectionError, match="lost"):
        await run_apart(wait_in(wrapper), LONG_S)
    assert caller.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(LONG_S)


@asynchronous
async def test_a_caller_that_is_cancelled_as_the_connection_is_lost_ends() -> None:
    wrapper = Wrapper()
    caller = asyncio.ensure_future(run_apart(wait_in(wrapper), LONG_S))
    await asyncio.sleep(0.01)
    wrapper.cancel(ConnectionError("lost"))
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@asynchronous
async def test_what_takes_too_long_is_ended() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(LONG_S)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await run_apart(work(), 0.01)
    assert ended.is_set()


@asynchronous
async def test_its_result_and_its_error_are_the_callers() -> None:
    async def divide(one: int, other: int) -> float:
        return one / other

    assert await run_apart(divide(6, 3), LONG_S) == 2
    with pytest.raises(ZeroDivisionError):
        await run_apart(divide(1, 0), LONG_S)
