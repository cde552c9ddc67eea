"""What an agent keeps on disk: what is its own, who it is, and the last good snapshot of the store.

Theory of operation: three files below the state directory, each replaced whole and synced, so that a reader finds the
old one or the new one after ``kill -9`` at any moment.

- ``owned.json``: keys of links and tables that the agent made and the old values of settings, written before each
  change (``kernel.converge.Journal``). It is of one boot: after a reboot nothing of it is there any more.
- ``node.json``: the MAC of the tunnel end point, the lease that was held last, the configurations that are followed.
- ``snapshot.json``: the store's last snapshot, which serves while the store is away.

One that cannot be read is set aside as ``NAME.broken`` and said; the agent goes on without it, since marks on the
objects and the store hold all of it too. The directory is locked (flock(2)) by the agent that uses it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from muslin.errors import MuslinError, UsageError
from muslin.model.config import NetworkConfig
from muslin.model.kernel import Key
from muslin.model.lease import ClusterSnapshot, Lease
from muslin.model.state import Owned
from muslin.wire.subnet_env import SubnetEnv, encode_subnet_env, parse_subnet_env

log = logging.getLogger("muslin.agent")

GUARD = "\0muslin-agent"
"""An abstract socket's name."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4)

CONTAINERS = "containers.db"
"""The addresses of containers (``agent.reservations``)."""

Document = TypeVar("Document")


class OwnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """``owned.json``."""

    schema: Literal["muslin.agent-owned/v1"] = "muslin.agent-owned/v1"
    boot_id: str
    keys: tuple[Key, ...] = ()
    sysctls: tuple[tuple[Key, str], ...] = ()


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """``node.json``."""

    schema: Literal["muslin.agent-node/v1"] = "muslin.agent-node/v1"
    vtep_mac: str = ""
    lease: Lease | None = None
    config: NetworkConfig | None = None
    previous: NetworkConfig | None = None
    """The configuration before, while some peer still follows it."""
    subnet_file: str = ""
    """Where subnet.env was written to."""


class StateDirectory:
    """The state directory of one agent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> int:
        """Hold the directory, made if it is not there; UsageError while another agent does. Closing the fd lets go."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"the state directory {self.path} cannot be used: {error.strerror}", "choose one with --state-dir"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UsageError(
                f"another agent uses the state directory {self.path}",
                "there is one agent a host; in another network namespace it needs a --state-dir of its own",
            ) from None
        return fd

    def read_node(self) -> NodeFile:
        """Who this node is; an empty answer where it has never run."""
        return self._read("node.json", NodeFile) or NodeFile()

    def write_node(self, node: NodeFile) -> None:
        """Keep it."""
        write_whole(self.path / "node.json", msgspec.json.encode(node))

    def read_snapshot(self) -> ClusterSnapshot | None:
        """The last good snapshot, None where there is none."""
        return self._read("snapshot.json", ClusterSnapshot)

    def write_snapshot(self, snapshot: ClusterSnapshot) -> None:
        """Keep it."""
        write_whole(self.path / "snapshot.json", msgspec.json.encode(snapshot))

    def journal(self) -> FileJournal:
        """What is ours by this directory."""
        return FileJournal(self)

    def read_owned(self) -> Owned:
        """What ``owned.json`` says, if it is of this boot. Marks count too, as the host is shared with others."""
        found = self._read("owned.json", OwnedFile)
        if found is None or found.boot_id != boot_id():
            return Owned(marked=True)
        return Owned(keys=frozenset(found.keys), sysctls=dict(found.sysctls), marked=True)

    def write_owned(self, owned: Owned) -> None:
        """Keep it, durably, before it is acted on."""
        keys = tuple(sorted(owned.keys, key=str))
        document = OwnedFile(boot_id=boot_id(), keys=keys, sysctls=tuple(owned.sysctls.items()))
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        write_whole(self.path / "owned.json", msgspec.json.encode(document))

    def files(self) -> list[Path]:
        """Every file of ours that is there."""
        names = ("owned.json", "node.json", "snapshot.json", CONTAINERS)
        endings = ("", ".broken", ".new", "-wal", "-shm")  # the last two are SQLite's
        candidates = [self.path / f"{name}{ending}" for name in names for ending in endings]
        return [path for path in candidates if path.exists()]

    def _read(self, name: str, kind: type[Document]) -> Document | None:
        path = self.path / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read, and the agent goes on without it: %s", path, error.strerror)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            aside = path.with_name(f"{name}.broken")
            log.warning("%s cannot be understood, and is set aside as %s: %s", path, aside.name, error)
            with contextlib.suppress(OSError):  # a disk that cannot be written to says so elsewhere
                path.replace(aside)
        return None


class FileJournal:
    """A journal (``kernel.converge.Journal``) in ``owned.json``."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._owned = directory.read_owned()

    @property
    def owned(self) -> Owned:
        """What is ours so far."""
        return self._owned

    def record(self, owned: Owned) -> None:
        """Write it down, unless it stands there already."""
        if owned != self._owned:
            self._directory.write_owned(owned)
            self._owned = owned


def hold_namespace() -> socket.socket:
    """Be the only agent of this network namespace; UsageError while another one is. Closing the socket lets go.

    Two of them would take each other's objects for their own and undo each other's work for ever. The name of an
    abstract socket belongs to the namespace (unix(7)), and goes with its process.
    """
    guard = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        guard.bind(GUARD)
    except OSError as error:
        guard.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise UsageError(
            "another agent runs in this network namespace, and two would undo each other's work",
            "end it first (muslin status tells its pid); one agent serves one network",
        ) from None
    return guard


def read_subnet_env(path: Path) -> SubnetEnv | None:
    """What an earlier run, of flannel or of ours, told the CNI plugins; None where nothing usable is there."""
    try:
        return parse_subnet_env(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_subnet_env(path: Path, env: SubnetEnv) -> None:
    """Replace the file, unless it says the same already."""
    text = encode_subnet_env(env)
    try:
        if path.read_bytes() == text:
            return
    except OSError:
        pass
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(path, text, mode=0o644)


def write_whole(path: Path, text: bytes, mode: int = 0o600) -> None:
    """Replace a file at once and durably; MuslinError naming it, and then the old one stands."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise MuslinError(f"{path} cannot be written: {error.strerror}", "free some space, or see its owner") from error


def boot_id() -> str:
    """Which boot of the host this is (random(4))."""
    return BOOT_ID.read_text().strip()
