"""Verbs that change this host's network, with a kernel in memory in the place of the real one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

import muslin.agent.files
import muslin.agent.logs
import muslin.cli.agent
import muslin.kernel.linux
import muslin.kernel.watch
from muslin.agent_client import NoAgentError, fetch_status, post_stop
from muslin.cli import settings_options
from muslin.cli.main import run
from muslin.errors import MuslinError
from muslin.kernel.fake import FakeKernel
from muslin.kernel.watch import Hint
from muslin.model.kernel import Address, Link, OtherKind
from muslin.settings import FLANNEL_PREFIX
from muslin.wire.agent_api import AgentStatus


class HostKernel(FakeKernel):
    """What ``LinuxKernel`` is to the verbs; all of them get the same one."""

    ports = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class DeafWatch:
    """Hears nothing."""

    def __init__(self, *_: object) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._read

    def read(self) -> list[Hint]:
        return []

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class FakeHost:
    """A machine with one interface; its settings come from the environment."""

    def __init__(self, directory: Path) -> None:
        self.state, self.run, self.subnet_file = directory / "state", directory / "run", directory / "subnet.env"
        self.store = directory / "store.sqlite"
        self.socket = str(self.run / "agent.sock")
        self.kernel = HostKernel()
        link = Link(netns="", name="eth0", options=OtherKind(kind="ether"), mtu=1500, up=True)
        address = Address(netns="", link="eth0", address="10.0.0.1/24")
        self.kernel.objects |= {link.key: link, address.key: address}
        self.settings = {
            "STATE_DIR": self.state,
            "RUN_DIR": self.run,
            "SUBNET_FILE": self.subnet_file,
            "STORE": "sqlite",
            "STORE_PATH": self.store,
            "IFACE": "eth0",
            "NETWORK_CONFIG": '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}',
            "HEALTHZ_PORT": "0",
        }

    def agent(self, *words: str, once_ready: Callable[[AgentStatus], object]) -> int:
        """``muslin agent`` until ``once_ready``, which is called in a thread of its own, has ended it."""
        failures: list[BaseException] = []
        ended = threading.Event()

        def wait() -> None:
            try:
                once_ready(self._ready_status(ended))
            except BaseException as error:
                failures.append(error)
                with suppress(MuslinError):
                    post_stop(self.socket, release=False)

        thread = threading.Thread(target=wait)
        thread.start()
        code = run(["agent", *words])
        ended.set()
        thread.join()
        if failures:
            raise failures[0]
        return code

    def _ready_status(self, ended: threading.Event) -> AgentStatus:
        """The agent's status as soon as it is ready."""
        for _ in range(1000):
            with suppress(NoAgentError):
                status = fetch_status(self.socket)
                if status.ready:
                    return status
            if ended.wait(0.01):
                raise AssertionError("the agent ended before it was ready")
        raise AssertionError("the agent was not ready within 10 s")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHost]:
    """The host of one test; nothing of this machine counts."""
    found = FakeHost(tmp_path)
    monkeypatch.setattr(settings_options, "DEFAULT_FILE", str(tmp_path / "agent.yaml"))
    for name in [name for name in os.environ if name.startswith((FLANNEL_PREFIX, "MUSLIN_AGENT_"))]:
        monkeypatch.delenv(name)
    for name, value in found.settings.items():
        monkeypatch.setenv(f"MUSLIN_AGENT_{name}", str(value))
    monkeypatch.setattr(muslin.kernel.linux, "LinuxKernel", lambda *_, **__: found.kernel)
    monkeypatch.setattr(muslin.kernel.watch, "Watch", DeafWatch)
    monkeypatch.setattr(muslin.cli.agent, "require_privilege", lambda: None)
    monkeypatch.setattr(muslin.agent.files, "GUARD", f"\0muslin-test-{tmp_path}")
    monkeypatch.setattr(muslin.agent.logs, "set_up", lambda *_: None)
    level = logging.getLogger("muslin").level
    yield found
    logging.getLogger("muslin").setLevel(level)
