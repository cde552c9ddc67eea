"""What a lab remembers: one small file, written before each change.

Theory of operation: the file says what the lab should be (its topology) and what it may own (the keys of all kernel
objects that it made or was about to make, the old value of settings). ``down`` needs nothing else. It is replaced
atomically and synced, so that it survives ``kill -9`` at any moment, and the directory that holds it is the lock:
whoever changes a lab holds an flock(2) on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.errors import MuslinError, UsageError
from muslin.lab.paths import check_lab_name, runtime_directory
from muslin.lab.topology import Topology
from muslin.model.kernel import Key
from muslin.model.state import Owned

STATE_FILE = "state.json"


class Keeper(msgspec.Struct, frozen=True):
    """The process that holds a rootless lab's user namespace; ``started`` tells it from a later one of its number."""

    pid: int
    started: int
    """In clock ticks since boot (proc_pid_stat(5), field 22)."""


class LabState(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the state file."""

    schema: Literal["muslin.lab-state/v1"] = "muslin.lab-state/v1"
    name: str
    topology: Topology
    created_at: float
    """Seconds since the epoch."""
    boot_id: str
    complete: bool = False
    """Whether the last ``up`` ran to its end."""
    keys: tuple[tuple[str | int, ...], ...] = ()
    sysctls: tuple[tuple[tuple[str | int, ...], str], ...] = ()
    keeper: Keeper | None = None
    made_netns_directory: bool = False

    @property
    def owned(self) -> Owned:
        """What the lab may remove."""
        return Owned(keys=frozenset(self.keys), sysctls=dict(self.sysctls))

    def with_owned(self, owned: Owned) -> LabState:
        """The same, owning this."""
        keys: list[Key] = sorted(owned.keys, key=str)
        return msgspec.structs.replace(self, keys=tuple(keys), sysctls=tuple(owned.sysctls.items()))

    @property
    def own_netns(self) -> tuple[str, ...]:
        """The namespaces that the lab may own."""
        return tuple(str(key[1]) for key in self.keys if key[0] == "netns")


def boot_id() -> str:
    """An id that changes with each boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class LabDirectory:
    """The files of one lab."""

    def __init__(self, name: str, root: str | None = None) -> None:
        self.name = check_lab_name(name)
        self.root = root or runtime_directory()
        self.path = f"{self.root}/{name}"

    def read(self) -> LabState | None:
        """The state, None when there is no such lab; MuslinError when the file is not ours to understand."""
        try:
            with open(f"{self.path}/{STATE_FILE}", "rb") as file:
                return msgspec.json.decode(file.read(), type=LabState)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise MuslinError(
                f"the state file {self.path}/{STATE_FILE} of lab {self.name!r} cannot be understood: {error}",
                f"if no other version of muslin made it, remove it with: muslin lab prune --name {self.name}",
            ) from None

    def write(self, state: LabState) -> None:
        """Replace the state, durably; MuslinError when that cannot be, and then nothing has changed."""
        target = f"{self.path}/{STATE_FILE}"
        temporary = f"{target}.new"
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(state))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise MuslinError(
                f"the state of lab {self.name!r} cannot be written to {target}: {error.strerror}",
                f"free some space below {self.root}, or choose another place with MUSLIN_RUNTIME_DIR",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lab for a change; UsageError when another process does. The directory exists meanwhile."""
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)
            self._remove_if_empty()

    def _lock(self) -> int:
        while True:
            try:
                os.makedirs(self.path, mode=0o700, exist_ok=True)
            except OSError as error:
                raise MuslinError(
                    f"the directory {self.path} for lab {self.name!r} cannot be made: {error.strerror}",
                    "choose another place with MUSLIN_RUNTIME_DIR",
                ) from error
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise UsageError(
                    f"lab {self.name!r} is being changed by another muslin process",
                    "wait for it, then try again",
                ) from None
            # The holder before us may have removed the directory between our open and our lock.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)

    def remove(self) -> bool:
        """Remove all files of the lab, if there are any; the directory goes with the lock."""
        names = [entry.name for entry in os.scandir(self.path)]
        for name in names:
            self.remove_below(name)
        return bool(names)

    def keep_directories(self, names: set[str]) -> None:
        """Remove all directories of the lab but these: those of nodes that have left it."""
        unwanted = [entry.name for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False)]
        for name in unwanted:
            if name not in names:
                self.remove_below(name)

    def remove_below(self, name: str) -> None:
        """Remove one file or directory of the lab, with all that is in it; none of that name is fine.

        A link is removed, and never what it leads to (shutil.rmtree sees to that inside of a directory).
        """
        path = f"{self.path}/{name}"
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _remove_if_empty(self) -> None:
        for path in (self.path, self.root):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno not in (
                    errno.ENOTEMPTY,
                    errno.ENOENT,
                    errno.EEXIST,
                    errno.EBUSY,
                    errno.EACCES,
                ):
                    raise


def lab_names(root: str | None = None) -> list[str]:
    """The names of all labs that left something in the runtime directory, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(root or runtime_directory()) if entry.is_dir())
    except (FileNotFoundError, PermissionError):
        return []


class StateJournal:
    """A journal (see ``kernel.converge``) that lives in the lab's state file."""

    def __init__(self, directory: LabDirectory, state: LabState) -> None:
        self.directory = directory
        self.state = state

    @property
    def owned(self) -> Owned:
        """What the lab owns so far."""
        return self.state.owned

    def record(self, owned: Owned) -> None:
        """Write it down before it happens."""
        self.update(self.state.with_owned(owned))

    def update(self, state: LabState) -> None:
        """Write a new state."""
        if state != self.state or not os.path.exists(f"{self.directory.path}/{STATE_FILE}"):
            self.directory.write(state)
            self.state = state
