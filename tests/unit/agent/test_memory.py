"""What a node remembers: written down in time, and seldom."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from muslin.agent.files import StateDirectory
from muslin.agent.memory import SAVE_AFTER_S, Memory
from muslin.errors import MuslinError
from muslin.model.lease import ClusterSnapshot
from tests.unit.agent.simulated import simulated


class CountingDirectory(StateDirectory):
    """Counts what is written to it; ``is_full`` lets nothing be."""

    writes = 0
    is_full = False

    def write_node(self, node):  # type: ignore[no-untyped-def]
        self._count()
        super().write_node(node)

    def write_snapshot(self, snapshot: ClusterSnapshot) -> None:
        self._count()
        super().write_snapshot(snapshot)

    def _count(self) -> None:
        if self.is_full:
            raise MuslinError("the file cannot be written: No space left on device")
        self.writes += 1


@pytest.fixture
def directory(tmp_path: Path) -> CountingDirectory:
    return CountingDirectory(tmp_path)


@simulated
async def test_who_the_node_is_is_written_at_once_and_only_when_it_changes(directory: CountingDirectory) -> None:
    memory = Memory(directory)
    for _ in range(3):
        memory.remember(vtep_mac="02:00:00:00:00:01")
    memory.remember()
    assert directory.writes == 1
    assert Memory(directory).node.vtep_mac == "02:00:00:00:00:01"


@simulated
async def test_a_hundred_snapshots_a_second_are_one_write_in_two_and_the_last_one_counts(
    directory: CountingDirectory,
) -> None:
    memory = Memory(directory)
    assert memory.last_snapshot() is None
    for revision in range(1000):
        memory.keep(ClusterSnapshot(revision=revision))
        await asyncio.sleep(0.01)
    await asyncio.sleep(SAVE_AFTER_S)
    assert directory.writes <= 10 / SAVE_AFTER_S + 1
    assert memory.last_snapshot() == ClusterSnapshot(revision=999)
    writes = directory.writes
    await asyncio.sleep(60)
    assert directory.writes == writes


@simulated
async def test_at_the_end_what_waits_is_written_and_nothing_later(directory: CountingDirectory) -> None:
    memory = Memory(directory)
    memory.keep(ClusterSnapshot(revision=7))
    memory.save()
    memory.save()
    assert directory.writes == 1
    assert Memory(directory).last_snapshot() == ClusterSnapshot(revision=7)
    await asyncio.sleep(60)
    assert directory.writes == 1


@simulated
async def test_a_disk_that_was_full_has_everything_as_soon_as_there_is_room(
    directory: CountingDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(directory)
    directory.is_full = True
    with caplog.at_level(logging.ERROR):
        memory.remember(vtep_mac="02:00:00:00:00:01")
        memory.keep(ClusterSnapshot(revision=7))
        await asyncio.sleep(SAVE_AFTER_S + 1)
    assert caplog.text.count("No space left") == 3
    assert memory.node.vtep_mac == "02:00:00:00:00:01"
    directory.is_full = False
    memory.keep(ClusterSnapshot(revision=8))
    await asyncio.sleep(SAVE_AFTER_S + 1)
    again = Memory(directory)
    assert (again.node, again.last_snapshot()) == (memory.node, ClusterSnapshot(revision=8))
