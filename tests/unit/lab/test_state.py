"""What a lab remembers survives, is replaced as a whole, and is changed by one process at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from muslin.errors import MuslinError, UsageError
from muslin.lab.presets import preset
from muslin.lab.state import STATE_FILE, Keeper, LabDirectory, LabState, StateJournal, boot_id, lab_names
from muslin.model.kernel import link_key, netns_key
from muslin.model.state import Owned


def some_state() -> LabState:
    return LabState(
        name="a",
        topology=preset(4, underlay="routed", families=(4, 6)),
        created_at=12.5,
        boot_id=boot_id(),
        keys=(netns_key("muslin-a-node1"), link_key("muslin-a-node1", "br0"), ("route", "x", 254, "0.0.0.0/0", 0, "")),
        sysctls=((("sysctl", "muslin-a-node1", "net/ipv4/ip_forward"), "0"),),
        keeper=Keeper(17, 99),
    )


@pytest.fixture
def directory(tmp_path: Path) -> LabDirectory:
    found = LabDirectory("a", str(tmp_path / "run"))
    os.makedirs(found.path)
    return found


def test_a_state_comes_back_as_it_was_written(directory: LabDirectory) -> None:
    assert directory.read() is None
    directory.write(some_state())

    assert directory.read() == some_state()
    assert os.listdir(directory.path) == [STATE_FILE]


def test_a_state_tells_what_the_lab_owns() -> None:
    state = some_state()

    assert state.own_netns == ("muslin-a-node1",)
    assert link_key("muslin-a-node1", "br0") in state.owned.keys
    assert state.owned.sysctls == {("sysctl", "muslin-a-node1", "net/ipv4/ip_forward"): "0"}
    assert state.with_owned(state.owned).owned == state.owned
    assert state.with_owned(Owned()).own_netns == ()


def no_space(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_state_and_nothing_else(
    directory: LabDirectory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory.write(some_state())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        with pytest.raises(
            MuslinError, match=r"lab 'a' cannot be written to .*state\.json: No space left on device"
        ) as failure:
            directory.write(LabState(name="a", topology=preset(1), created_at=0, boot_id=""))

    assert directory.root in failure.value.hint
    assert directory.read() == some_state()
    assert os.listdir(directory.path) == [STATE_FILE]


def test_a_write_is_synced_before_it_takes_the_old_ones_place(
    directory: LabDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            order.append(name)
            call(*arguments)

        return called

    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync))
    monkeypatch.setattr(os, "rename", noting("rename", os.rename))

    directory.write(some_state())

    assert order == ["sync", "rename"]


@pytest.mark.parametrize("text", ["", "{", "null", '{"schema": "muslin.lab-state/v2"}', "\0"])
def test_a_file_that_is_no_state_is_named_with_the_remedy(directory: LabDirectory, text: str) -> None:
    Path(directory.path, STATE_FILE).write_text(text)

    with pytest.raises(MuslinError, match=r"state\.json of lab 'a' cannot be understood") as failure:
        directory.read()
    assert "muslin lab prune --name a" in failure.value.hint


def test_one_process_at_a_time_changes_a_lab(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    with LabDirectory("a", root).locked():
        with pytest.raises(UsageError, match="lab 'a' is being changed by another muslin process"):
            LabDirectory("a", root).locked().__enter__()
        with LabDirectory("b", root).locked():
            assert lab_names(root) == ["a", "b"]
    with LabDirectory("a", root).locked():
        assert lab_names(root) == ["a"]

    assert not os.path.exists(root), "an empty directory goes with the lock"


def test_a_lock_keeps_files_and_other_labs_in_place(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    first = LabDirectory("a", root)
    with first.locked():
        first.write(some_state())

    assert lab_names(root) == ["a"]
    with first.locked():
        assert first.remove() is True
        assert first.remove() is False
    assert lab_names(root) == []
    assert not os.path.exists(root)


def test_a_lock_on_a_directory_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = LabDirectory("a", str(tmp_path / "run"))
    opened = os.open
    removals = ["once"]

    def open_then_lose(path: str, *arguments: int) -> int:
        fd = opened(path, *arguments)
        if removals:
            removals.pop()
            os.rmdir(path)
        return fd

    monkeypatch.setattr(os, "open", open_then_lose)
    with directory.locked():
        assert os.path.isdir(directory.path)


def test_a_directory_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(MuslinError, match="file/run/a for lab 'a' cannot be made: Not a directory") as failure:
        LabDirectory("a", str(tmp_path / "file" / "run")).locked().__enter__()
    assert "MUSLIN_RUNTIME_DIR" in failure.value.hint


def test_a_journal_writes_what_changes_and_only_that(directory: LabDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[LabState] = []
    monkeypatch.setattr(directory, "write", written.append)
    journal = StateJournal(directory, some_state())

    journal.update(some_state())
    assert written == [some_state()], "the first word is written even if it is nothing new"

    Path(directory.path, STATE_FILE).touch()
    journal.update(some_state())
    assert len(written) == 1
    journal.record(Owned(keys=frozenset({netns_key("n")})))
    assert [state.own_netns for state in written] == [("muslin-a-node1",), ("n",)]
    assert journal.owned == Owned(keys=frozenset({netns_key("n")}))


def test_there_are_no_labs_where_there_is_no_directory(tmp_path: Path) -> None:
    assert lab_names(str(tmp_path / "nowhere")) == []


def test_directories_go_with_all_in_them_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").touch()
    directory = LabDirectory("a", str(tmp_path / "run"))
    with directory.locked():
        home = Path(directory.path)
        (home / "node1" / "state").mkdir(parents=True)
        (home / "node1" / "state" / "file").touch()
        (home / "node1" / "away").symlink_to(outside)
        (home / "node1" / "state" / "away").symlink_to(outside / "deep" / "file")
        (home / "away").symlink_to(outside)
        directory.write(some_state())

        assert directory.remove() is True

    assert not os.path.exists(directory.root)
    assert (outside / "deep" / "file").exists()


def test_directories_of_nodes_that_have_left_go(directory: LabDirectory, tmp_path: Path) -> None:
    directory.write(some_state())
    for name in ("node1", "node2"):
        Path(directory.path, name, "state").mkdir(parents=True)
    Path(directory.path, "link").symlink_to(tmp_path)

    directory.keep_directories({"node1"})

    assert sorted(os.listdir(directory.path)) == ["link", "node1", STATE_FILE]
    directory.remove_below("node2")
    assert tmp_path.exists()
