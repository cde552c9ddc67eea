"""An agent as a service: signals, sockets, and what the service manager hears."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from muslin.agent import service
from muslin.agent.notify import Notifier
from muslin.agent.service import Addresses, serve
from muslin.agent_client import fetch_status, post_stop
from muslin.errors import MuslinError
from muslin.store.memory import MemoryData
from tests.contract.asynchronous import asynchronous
from tests.unit.agent.hosts import Host, config, eventually


class Manager(Notifier):
    """Writes down what a service manager would have heard."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        super().__init__(watchdog_s=watchdog_s)
        self.heard: list[str] = []

    def _send(self, *lines: str) -> None:
        self.heard += lines


class Service:
    """An agent on a host in memory, served at a socket."""

    def __init__(self, directory: Path, watchdog_s: float | None = None) -> None:
        self.host = Host(1, directory, MemoryData())
        self.node = self.host.node(config())
        self.manager = Manager(watchdog_s)
        self.socket = str(directory / "agent.sock")

    async def serve(self, **more: object) -> None:
        try:
            await serve(self.node, Addresses(socket=self.socket, **more), self.manager)  # type: ignore[arg-type]
        finally:
            self.host.watch.close()


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOOK_AROUND_S", 0.02)


@asynchronous
async def test_it_is_ready_once_and_tells_how_it_is_until_it_stops(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: "READY=1" in agent.manager.heard)
    assert agent.manager.heard.count("READY=1") == 1
    assert f"STATUS={agent.node.programmed[0]}, 0 of 0 peers programmed" in agent.manager.heard
    agent.node.programmed = ()
    await eventually(lambda: agent.manager.heard[-1].startswith("STATUS=not ready: "))
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    assert agent.manager.heard[-1] == "STOPPING=1"
    assert agent.manager.heard.count("READY=1") == 1


@asynchronous
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_and_leaves_network_and_lease(tmp_path: Path, number: signal.Signals) -> None:
    agent = Service(tmp_path)
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: agent.node.programmed)
    before = dict(agent.host.kernel.objects)
    os.kill(os.getpid(), number)
    await task
    assert agent.host.kernel.objects == before
    assert len(agent.host.store.data.entries) == 1
    assert not os.path.exists(agent.socket)


@asynchronous
async def test_a_signal_before_there_is_an_interface_ends_it_too(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    agent.host.kernel.objects.clear()
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: agent.node.trouble)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(2):
        await task
    assert "READY=1" not in agent.manager.heard


@asynchronous
async def test_sighup_has_it_look_now(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: agent.node.looks)
    looks = agent.node.looks
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: agent.node.looks > looks)
    agent.node.end()
    await task


@asynchronous
async def test_it_can_be_asked_from_the_first_moment_on_and_told_to_give_its_lease_back(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    link = agent.host.kernel.objects.pop(("link", "", "eth0"))
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: os.path.exists(agent.socket) and agent.node.trouble)
    status = await asyncio.to_thread(fetch_status, agent.socket)
    assert (status.ready, status.lease.state) == (False, "idle")
    agent.host.put(link)
    await eventually(lambda: agent.node.programmed)
    await asyncio.to_thread(post_stop, agent.socket, True)
    await task
    assert agent.host.store.data.entries == {}


@asynchronous
async def test_the_watchdog_is_fed_while_the_loop_is_alive_and_not_while_a_pass_hangs(tmp_path: Path) -> None:
    agent = Service(tmp_path, watchdog_s=1.0)
    task = asyncio.create_task(agent.serve())
    await eventually(lambda: agent.manager.heard.count("WATCHDOG=1") > 3)
    agent.node.health = lambda: (False, "the kernel task has been busy for 61 s")  # type: ignore[method-assign]
    fed = agent.manager.heard.count("WATCHDOG=1")
    await asyncio.sleep(0.2)
    assert agent.manager.heard.count("WATCHDOG=1") == fed
    agent.node.end()
    await task


@asynchronous
async def test_a_socket_that_cannot_be_opened_is_an_error_and_nothing_runs(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    (tmp_path / "agent.sock").mkdir()
    with pytest.raises(MuslinError, match=r"agent\.sock"):
        await agent.serve()
    assert agent.node.looks == 0


@asynchronous
async def test_a_fault_in_the_loop_ends_the_service_with_it(tmp_path: Path) -> None:
    agent = Service(tmp_path)

    def broken(*_: object) -> None:
        raise RuntimeError("not thought of")

    agent.node._took = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError, match="not thought of"):
        await agent.serve()
    assert "STOPPING=1" in agent.manager.heard


@asynchronous
async def test_a_fault_while_looking_around_is_not_lost(tmp_path: Path) -> None:
    agent = Service(tmp_path)

    def broken() -> tuple[bool, str]:
        raise RuntimeError("not thought of")

    agent.node.summary = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not thought of"):
        await agent.serve()


@asynchronous
async def test_a_stop_amid_a_pass_waits_for_its_end_and_the_api_answers_meanwhile(tmp_path: Path) -> None:
    agent = Service(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    look = agent.node.reconciler.look

    def slow(wish):  # type: ignore[no-untyped-def]
        begun.set()
        go_on.wait(10)
        return look(wish)

    agent.node.reconciler.look = slow  # type: ignore[method-assign]
    task = asyncio.create_task(agent.serve())
    await eventually(begun.is_set)
    agent.node.end()
    await asyncio.sleep(0.1)
    assert not task.done()
    await asyncio.to_thread(fetch_status, agent.socket)
    go_on.set()
    await task
