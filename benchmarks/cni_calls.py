"""Calling CNI plugins as a runtime does, many times: posix_spawn, and a wait for each.

Theory of operation: a ``Contender`` is a plugin with its configuration, in a network namespace of its own that plays
the node. All its calls are started by this one process, which enters that namespace for as long as they take: a child
begins where its parent is. There is no thread and no shell between a call and its end; with a concurrency above one,
as many children as that are in flight, and whenever one has ended the next is started. stdin is a file, written once;
stdout is a file a call, read only when the call failed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from muslin.kernel import netns as netns_door
from muslin.kernel.syscalls import CLONE_NEWNET, setns

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin, ready to be called."""

    name: str
    program: Path
    path: str
    """CNI_PATH: where it finds the plugins that it calls itself."""
    node: str
    """The namespace that it is called in."""
    conf: Mapping[str, Any]
    """What it gets on stdin."""


class Calls(msgspec.Struct, frozen=True):
    """What a batch of calls took: each one, from start to its end, and all together, in seconds."""

    each_s: tuple[float, ...]
    wall_s: float


class PluginFailed(RuntimeError):
    """A call failed, which a benchmark has no figure for."""


def add_all(contender: Contender, containers: Sequence[str], concurrency: int, directory: Path) -> Calls:
    """Attach each of these containers, named as their namespaces are."""
    return _call_all(contender, "ADD", containers, concurrency, directory)


def delete_all(contender: Contender, containers: Sequence[str], concurrency: int, directory: Path) -> Calls:
    """Take them all away."""
    return _call_all(contender, "DEL", containers, concurrency, directory)


def _call_all(
    contender: Contender, command: str, containers: Sequence[str], concurrency: int, directory: Path
) -> Calls:
    stdin = directory / f"{contender.name}.json"
    stdin.write_text(json.dumps(contender.conf))
    waiting = iter(containers)
    running: dict[int, tuple[float, Path]] = {}
    took = []

    def start_next() -> None:
        name = next(waiting, None)
        if name is None:
            return
        stdout = directory / f"{contender.name}-{len(running)}-{name}.out"
        begun = time.perf_counter()
        running[_spawn(contender, command, name, stdin, stdout)] = (begun, stdout)

    with _inside(contender.node):
        first = time.perf_counter()
        for _ in range(concurrency):
            start_next()
        while running:
            pid, status = os.waitpid(-1, 0)
            now = time.perf_counter()
            if pid not in running:
                continue
            begun, stdout = running.pop(pid)
            took.append(now - begun)
            _judge(contender, command, status, stdout)
            start_next()
        wall_s = time.perf_counter() - first
    return Calls(tuple(took), wall_s)


def _spawn(contender: Contender, command: str, name: str, stdin: Path, stdout: Path) -> int:
    told = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": netns_door.path_of(name),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": contender.path,
    }
    files = (
        (os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(stdout), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    )
    program = str(contender.program)
    return os.posix_spawn(program, [program], {**ENVIRONMENT, **told}, file_actions=files)


def _judge(contender: Contender, command: str, status: int, stdout: Path) -> None:
    if code := os.waitstatus_to_exitcode(status):
        raise PluginFailed(f"{contender.name}: {command} ended with {code}: {stdout.read_text().strip()}")
    stdout.unlink()


@contextmanager
def _inside(netns: str) -> Iterator[None]:
    """Put this process, which has one thread, into a namespace for a while."""
    home, away = netns_door.open_netns(""), netns_door.open_netns(netns)
    try:
        setns(away, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(away)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, min(len(ranked) - 1, round(share * len(ranked) + 0.5) - 1))]
