"""The keeper's identity, and what is said where the system forbids user namespaces."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from muslin.errors import EXIT_UNSUPPORTED
from muslin.lab import keeper
from muslin.lab.processes import started_ticks
from muslin.lab.state import Keeper


def test_a_keeper_is_alive_only_as_the_process_that_was_started() -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        ticks = started_ticks(process.pid)
        assert ticks is not None
        assert keeper.is_alive(Keeper(process.pid, ticks))
        assert not keeper.is_alive(Keeper(process.pid, ticks + 1)), "another one got the number"
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not keeper.is_alive(Keeper(process.pid, ticks or 0)), "a zombie keeps nothing"
        process.wait()
    assert not keeper.is_alive(Keeper(process.pid, ticks))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_setting_that_forbids_is_named_with_the_command_that_allows(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidding = [value for _, value, _ in keeper._SETTINGS]
    rows = []
    for number, (name, value, remedy) in enumerate(keeper._SETTINGS):
        file = tmp_path / Path(name).name
        # The others allow; a file that is not there has no say.
        file.write_text(f"{value if number == place else 'other'}\n")
        rows.append((str(file), value, remedy))
    monkeypatch.setattr(keeper, "_SETTINGS", (("/nonexistent", "0", "nothing"), *rows))

    error = keeper._refused("Operation not permitted")

    assert error.exit_code == EXIT_UNSUPPORTED
    assert error.what == f"this system forbids user namespaces ({rows[place][0]} is {forbidding[place]})"
    assert "sudo sysctl -w " in error.hint


def test_where_no_setting_forbids_the_kernels_own_word_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_SETTINGS", ())

    assert "Operation not permitted" in keeper._refused("[Errno 1] Operation not permitted").what
    assert "the keeper ended" in keeper._refused("").what


def test_entering_a_keeper_of_the_own_namespaces_changes_nothing() -> None:
    before = os.stat("/proc/self/ns/net").st_ino

    keeper.enter(Keeper(os.getpid(), 0))

    assert os.stat("/proc/self/ns/net").st_ino == before
