"""The parts of the door to namespaces that need no privilege."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from muslin.kernel import netns


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(netns, "NETNS_DIRECTORY", str(tmp_path / "netns"))
    return tmp_path / "netns"


def test_the_empty_name_is_the_own_namespace() -> None:
    assert netns.path_of("") == "/proc/self/ns/net"
    assert netns.path_of("n1") == "/run/netns/n1"
    assert netns.inode_of("") == os.stat("/proc/self/ns/net").st_ino
    assert netns.call_in("", lambda: threading.current_thread()) is threading.current_thread()


def test_without_the_directory_there_are_no_names(directory: Path) -> None:
    assert netns.names() == []
    assert not netns.directory_exists()
    assert netns.inode_of("n1") is None
    with pytest.raises(FileNotFoundError):
        netns.open_netns("n1")


def test_names_are_sorted_and_a_plain_file_is_no_namespace(directory: Path) -> None:
    directory.mkdir()
    for name in ("n2", "n1"):
        (directory / name).touch()
    assert netns.names() == ["n1", "n2"]
    assert netns.directory_exists()
    assert netns.inode_of("n1") is None


def test_a_thread_hands_over_results_and_errors() -> None:
    def fail() -> None:
        raise ValueError("from inside")

    assert netns.in_thread(lambda: threading.current_thread().name) == "netns"
    with pytest.raises(ValueError, match="from inside"):
        netns.in_thread(fail)


def test_the_processes_of_a_namespace_include_our_own() -> None:
    own = netns.inode_of("")
    assert own is not None
    assert os.getpid() in netns.processes_in({own})
    assert netns.processes_in(set()) == []
