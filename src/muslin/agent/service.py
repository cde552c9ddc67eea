"""An agent as a service: its loop, its sockets, the service manager, and signals.

Theory of operation: the loop begins at once, and the sockets open beside it, so that a node can be asked from the
first moment on. SIGTERM and SIGINT end the agent and leave network and lease as they are, for the next start; what is
to go, goes by ``muslin uninstall``. SIGHUP has it look at the kernel now.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress

import msgspec

from muslin.agent.api import Api
from muslin.agent.http import HttpServer
from muslin.agent.node import Node
from muslin.agent.notify import Notifier

log = logging.getLogger("muslin.agent")

SOCKET_NAME = "agent.sock"
LOOK_AROUND_S = 1.0
"""How often the service manager is told, and the log, that readiness has changed."""


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where the agent can be asked. ``healthz_port`` 0: not over TCP."""

    socket: str
    healthz_ip: str = ""
    healthz_port: int = 0


async def serve(node: Node, addresses: Addresses, notifier: Notifier) -> None:
    """Run until a signal or a request ends it; MuslinError when a socket cannot be opened."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.end)
    loop.add_signal_handler(signal.SIGHUP, node.look)
    api, server = Api(node), HttpServer()
    await server.listen_unix(addresses.socket, api.unix_routes())
    try:
        if addresses.healthz_port:
            await server.listen_tcp(addresses.healthz_ip, addresses.healthz_port, api.tcp_routes())
        await _run(node, notifier)
    finally:
        await server.close()
        notifier.close()


async def _run(node: Node, notifier: Notifier) -> None:
    """The loop, and beside it who tells how it is and who serves runtimes; what goes wrong in one ends all."""
    running = asyncio.create_task(node.run())
    beside = [asyncio.create_task(_look_around(node, notifier))]
    if node.containers is not None:
        beside.append(asyncio.create_task(node.containers.run()))
    try:
        done, _ = await asyncio.wait((running, *beside), return_when=asyncio.FIRST_COMPLETED)
        if running not in done:
            node.end()
        await running
    finally:
        for task in beside:
            task.cancel()
        notifier.stopping()
        for task in beside:
            with suppress(asyncio.CancelledError):
                await task


async def _look_around(node: Node, notifier: Notifier) -> None:
    """Tell the service manager that we are alive, and how we are whenever that changes."""
    pause_s = min(LOOK_AROUND_S, (notifier.watchdog_s or LOOK_AROUND_S) / 2)
    told = ""
    was_ready = is_known = False
    while True:
        healthy, _ = node.health()
        if healthy:
            notifier.alive()
        ready, words = node.summary()
        if ready and not was_ready:
            log.info("%s", words)
        if ready and not is_known:
            notifier.ready(words)
            is_known = True
        elif words != told:
            notifier.status(words)
        told, was_ready = words, ready
        await asyncio.sleep(pause_s)
