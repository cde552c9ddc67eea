"""Running grpclib's code in a task of its own.

Theory of operation: when a connection is lost, grpclib cancels the task that waits for it and then raises an error of
its own in place of the ``CancelledError`` (``grpclib.utils.Wrapper``). That harms the task in two ways. Its count of
cancellations (``Task.cancelling``) stays raised for ever, and ``asyncio.timeout``, which asks whether it is zero
(Python 3.11), from then on lets a ``CancelledError`` out where it owes a ``TimeoutError``. And a cancellation that
comes from somebody else at the same moment is swallowed. So no task but one made for the single purpose enters
grpclib: its count ends with it, and the caller's cancellation reaches the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def run_apart(work: Coroutine[Any, Any, Result], limit_s: float) -> Result:
    """What ``work`` returns or raises; TimeoutError if it takes longer. It has ended when this returns."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=max(limit_s, 0.0))
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # asyncio complains of an error that nobody has looked at
    if not done:
        raise TimeoutError
    return task.result()
