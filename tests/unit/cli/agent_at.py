"""An agent's API with a fake node behind it, in a thread, for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from muslin.agent.api import Api
from muslin.agent.http import HttpServer
from tests.unit.agent.node import FakeNode


@contextlib.contextmanager
def agent_at(path: str, node: FakeNode) -> Iterator[None]:
    """Serve at ``path`` until the end."""
    loop = asyncio.new_event_loop()
    ready, end = threading.Event(), asyncio.Event()

    async def serve() -> None:
        server = HttpServer()
        await server.listen_unix(path, Api(node).unix_routes())
        ready.set()
        await end.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10), "the agent never came up"
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
