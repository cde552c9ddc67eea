"""Where a lab keeps its files, and which names it may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.errors import UsageError
from muslin.lab import paths


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    paths._default_runtime_directory.cache_clear()
    yield
    paths._default_runtime_directory.cache_clear()


@pytest.mark.parametrize("name", ["a", "lab", "my-lab-2", "0", "x" * 32])
def test_a_lab_may_be_called_this(name: str) -> None:
    assert paths.check_lab_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "a b", "ä", "x" * 33, "a\n"])
def test_a_lab_may_not_be_called_this(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a lab") as failure:
        paths.check_lab_name(name)
    assert "lower-case letters, digits and hyphens" in failure.value.hint


def test_the_environment_decides_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSLIN_RUNTIME_DIR", "/somewhere")

    assert paths.runtime_directory() == "/somewhere"


def test_root_keeps_labs_below_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSLIN_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(paths, "is_privileged", lambda: True)

    assert paths.runtime_directory() == "/run/muslin"


def test_others_keep_them_in_their_own_runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MUSLIN_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(paths, "is_privileged", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    assert paths.runtime_directory() == f"{tmp_path}/muslin"


def test_without_a_runtime_directory_the_state_directory_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MUSLIN_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(paths, "is_privileged", lambda: False)
    monkeypatch.setattr(os, "getuid", lambda: 999_999_999)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert paths.runtime_directory() == f"{tmp_path}/muslin"

    paths._default_runtime_directory.cache_clear()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.runtime_directory() == "/home/me/.local/state/muslin"


def test_capabilities_are_those_that_proc_shows() -> None:
    shown = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))

    assert f"{paths.effective_capabilities():016x}" == shown.split()[1]
