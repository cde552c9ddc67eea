"""What a service manager hears, on a socket of the kinds that it may have."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.agent.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What NOTIFY_SOCKET says, and the socket behind it."""
    path = str(tmp_path / "notify")
    name = path if request.param == "path" else f"@muslin-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(10)
        yield name, listening


def test_every_state_is_told(manager: tuple[str, socket.socket]) -> None:
    name, listening = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "PATH": "/bin"}
    notifier = Notifier.from_environment(environment)
    assert environment == {"PATH": "/bin"}, "a child must not speak for us"
    assert notifier.watchdog_s == 30.0
    notifier.ready("3 of 3 peers\nprogrammed")
    notifier.status("all well")
    notifier.alive()
    notifier.stopping()
    heard = [listening.recv(1000).decode() for _ in range(4)]
    assert heard == ["READY=1\nSTATUS=3 of 3 peers programmed", "STATUS=all well", "WATCHDOG=1", "STOPPING=1"]
    notifier.close()
    notifier.status("said to nobody")
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_only_for_whom_it_was_set(environment: dict[str, str], watchdog_s: float | None) -> None:
    assert Notifier.from_environment(dict(environment)).watchdog_s == watchdog_s


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@muslin-nobody-listens", "vsock:2:1234"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    notifier = Notifier(address, watchdog_s=1.0)
    notifier.ready()
    notifier.status("anybody?")
    notifier.alive()
    notifier.stopping()
    notifier.close()


def test_a_manager_that_does_not_listen_holds_nobody_up(manager: tuple[str, socket.socket]) -> None:
    name, _ = manager
    notifier = Notifier(name)
    for number in range(5000):
        notifier.status(f"line {number}")
    notifier.close()
