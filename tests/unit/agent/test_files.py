"""What an agent keeps on disk: whole at any moment, of this boot, and of one agent."""

from __future__ import annotations

import logging
import os
import signal
import stat
from pathlib import Path

import msgspec
import pytest

from muslin.agent import files
from muslin.agent.files import NodeFile, StateDirectory, hold_namespace, read_subnet_env, write_subnet_env, write_whole
from muslin.errors import MuslinError, UsageError
from muslin.model.kernel import link_key
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.model.state import Owned
from muslin.wire.flannel_config import parse_network_config
from muslin.wire.subnet_env import SubnetEnv

LEASE = Lease(
    subnets=("10.5.3.0/24", "fc00:5:3::/64"),
    advertisement=Advertisement(addresses=("10.0.0.1",), backend="vxlan", data={"VNI": 1}),
    expires_at=1e9,
    revision=7,
)
OWNED = Owned(
    keys=frozenset({link_key("", "vxlan1")}), sysctls={("sysctl", "", "net/ipv4/ip_forward"): "0"}, marked=True
)


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def test_what_was_written_is_read_again(directory: StateDirectory) -> None:
    config = parse_network_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}')
    node = NodeFile(vtep_mac="02:00:00:00:00:01", lease=LEASE, config=config, previous=config, subnet_file="/run/x")
    snapshot = ClusterSnapshot(revision=9, config=b"\x00{", leases=(LEASE,), unreadable=("x",))
    directory.write_node(node)
    directory.write_snapshot(snapshot)
    directory.write_owned(OWNED)
    again = StateDirectory(directory.path)
    assert (again.read_node(), again.read_snapshot(), again.read_owned()) == (node, snapshot, OWNED)
    assert {stat.S_IMODE(path.stat().st_mode) for path in again.files()} == {0o600}


def test_where_nothing_was_written_there_is_nothing(directory: StateDirectory) -> None:
    assert directory.read_node() == NodeFile()
    assert directory.read_snapshot() is None
    assert directory.read_owned() == Owned(marked=True)
    assert directory.files() == []


def test_what_an_earlier_boot_owned_does_not_count(
    directory: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write_owned(OWNED)
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(files, "BOOT_ID", other)
    assert directory.read_owned() == Owned(marked=True)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": "muslin.agent-node/v9"}', b"null"])
def test_what_cannot_be_understood_is_set_aside_and_said(
    directory: StateDirectory, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    for name in ("owned.json", "node.json", "snapshot.json"):
        (directory.path / name).write_bytes(garbage)
    assert directory.read_node() == NodeFile()
    assert directory.read_snapshot() is None
    assert directory.read_owned() == Owned(marked=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert all(f"{directory.path}" in record.getMessage() for record in caplog.records)
    assert sorted(path.name for path in directory.files()) == [
        f"{n}.json.broken" for n in ("node", "owned", "snapshot")
    ]


def test_a_file_that_cannot_be_read_or_set_aside_is_said(
    directory: StateDirectory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory.path / "node.json").mkdir()
    assert directory.read_node() == NodeFile()
    assert "node.json cannot be read" in caplog.text
    (directory.path / "snapshot.json").write_bytes(b"{")

    def refuse(*_: object) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    assert directory.read_snapshot() is None


def test_one_agent_has_the_directory_and_a_second_is_told_so(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "state"
    fd = StateDirectory(place).lock()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    with pytest.raises(UsageError, match="another agent uses the state directory") as caught:
        StateDirectory(place).lock()
    assert "--state-dir" in caught.value.hint
    os.close(fd)
    os.close(StateDirectory(place).lock())


def test_a_directory_that_cannot_be_is_a_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used: Not a directory"):
        StateDirectory(tmp_path / "file" / "state").lock()


def test_one_agent_has_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GUARD", f"\0muslin-test-{os.getpid()}")
    with hold_namespace(), pytest.raises(UsageError, match="another agent runs in this network namespace"):
        hold_namespace()
    hold_namespace().close()


def test_the_journal_writes_changes_alone_and_knows_them_only_once_they_are_written(directory: StateDirectory) -> None:
    journal = directory.journal()
    journal.record(OWNED)
    written = (directory.path / "owned.json").stat().st_ino
    journal.record(OWNED)
    assert (directory.path / "owned.json").stat().st_ino == written, "a file is replaced only when it says otherwise"
    assert directory.journal().owned == OWNED

    def refuse(_: Owned) -> None:
        raise MuslinError("disk full")

    directory.write_owned = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(MuslinError):
        journal.record(Owned(marked=True))
    assert journal.owned == OWNED


def test_a_file_that_cannot_be_written_stays_as_it_was_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(MuslinError, match=f"{path} cannot be written: Is a directory"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    with pytest.raises(MuslinError, match="Not a directory"):
        write_whole(path / "below", b"new")


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path, sizes = tmp_path / "file", (100_000, 200_000)
    write_whole(path, b"0" * sizes[0])
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            try:
                for turn in range(1, 1_000_000):
                    write_whole(path, b"%d" % (turn % 2) * sizes[turn % 2])
            finally:
                os._exit(1)
        before, seen = path.stat().st_ino, 0
        while seen < 5:  # until it is amid its writing
            seen += path.stat().st_ino != before
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        text = path.read_bytes()
        assert text in (b"0" * sizes[0], b"1" * sizes[1])


def test_subnet_env_is_for_everybody_and_replaced_only_when_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "run" / "subnet.env"
    assert read_subnet_env(path) is None
    env = SubnetEnv(networks=("10.5.0.0/16",), subnets=("10.5.3.0/24",), mtu=1450)
    write_subnet_env(path, env)
    assert read_subnet_env(path) == env
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    written = path.stat().st_ino
    write_subnet_env(path, env)
    assert path.stat().st_ino == written
    write_subnet_env(path, msgspec.structs.replace(env, mtu=1400))
    assert (read_subnet_env(path) or env).mtu == 1400
    path.write_text("FLANNEL_SUBNET=nonsense\n")
    assert read_subnet_env(path) is None
