"""A lab without root: a user namespace that a small process keeps, and the way into it.

Theory of operation: inside a user namespace its maker is root over what the namespace owns: network namespaces,
mounts, TUN devices. ``start`` forks a child that makes the namespaces, gives itself a /run of its own (all entries
of the real one, plus an empty netns directory, so that even ``ip netns`` works), and then becomes a ``sleep`` that
holds them. ``enter`` moves the calling process in, for good; it must have a single thread. The keeper waits for word
that its number has been written down; without it, it ends, so that ``kill -9`` of its maker leaves no orphan.
"""

from __future__ import annotations

import contextlib
import os
import stat

from muslin.errors import UnsupportedError
from muslin.kernel.programs import started_ticks
from muslin.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    mount,
    setns,
    unshare,
)
from muslin.lab.state import Keeper

_GO = b"g"
_READY = "ready"
_SETTINGS = (
    # (file, value that forbids, what to do)
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "allow user namespaces: sudo sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "let AppArmor allow them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "allow user namespaces: sudo sysctl -w user.max_user_namespaces=10000",
    ),
)


class KeeperProcess:
    """A keeper that was just made and waits for permission to stay."""

    def __init__(self, pid: int, permission_fd: int) -> None:
        self.identity = Keeper(pid, started_ticks(pid) or 0)
        self._permission_fd = permission_fd

    def allow_to_stay(self) -> None:
        """Call this once its identity is written down."""
        os.write(self._permission_fd, _GO)
        os.close(self._permission_fd)


def start() -> KeeperProcess:
    """Make a keeper; UnsupportedError, with the setting that would change it, where the system forbids it."""
    permission_read, permission_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    uid, gid = os.geteuid(), os.getegid()
    pid = os.fork()
    if pid == 0:
        os.close(permission_write)
        os.close(report_read)
        _keep(permission_read, report_write, uid, gid)
    os.close(permission_read)
    os.close(report_write)
    with os.fdopen(report_read) as report:
        word = report.readline()
    if word != _READY:
        os.close(permission_write)
        os.waitpid(pid, 0)
        raise _refused(word)
    return KeeperProcess(pid, permission_write)


def _keep(permission_fd: int, report_fd: int, uid: int, gid: int) -> None:
    """The child: make everything, report, wait for permission, become ``sleep``. Never returns."""
    try:
        os.setsid()
        _make_namespaces(uid, gid)
        os.write(report_fd, _READY.encode())
    except OSError as error:
        os.write(report_fd, str(error).encode())
        os._exit(1)
    os.close(report_fd)
    if os.read(permission_fd, 1) != _GO:
        os._exit(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.chdir("/")
    try:
        os.execvp("sleep", ["sleep", "infinity"])
    finally:
        os._exit(1)


def _make_namespaces(uid: int, gid: int) -> None:
    unshare(CLONE_NEWUSER)
    # user_namespaces(7): a group map may be written without privilege only after setgroups has been denied.
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    unshare(CLONE_NEWNS | CLONE_NEWNET)
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    _cover_run()


def _cover_run() -> None:
    """A private /run that still shows every entry of the real one, and has room for ``netns``."""
    entries = []
    for entry in os.scandir("/run"):
        if entry.is_symlink():
            entries.append((entry.name, os.readlink(entry.path), -1))
        elif entry.name != "netns":
            with contextlib.suppress(OSError):
                entries.append((entry.name, "", os.open(entry.path, os.O_PATH | os.O_CLOEXEC)))
    mount("tmpfs", "/run", "tmpfs", data="mode=0755,size=16m")
    for name, link, fd in entries:
        target = f"/run/{name}"
        if fd < 0:
            os.symlink(link, target)
            continue
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC))
        with contextlib.suppress(OSError):  # what cannot be shown is not needed for a network
            mount(f"/proc/self/fd/{fd}", target, flags=MS_BIND | MS_REC)
        os.close(fd)


def _refused(word: str) -> UnsupportedError:
    for path, forbidding, remedy in _SETTINGS:
        with contextlib.suppress(OSError), open(path) as file:
            if file.read().strip() == forbidding:
                return UnsupportedError(f"this system forbids user namespaces ({path} is {forbidding})", remedy)
    return UnsupportedError(
        f"no user namespace can be made here: {word or 'the keeper ended'}",
        "run as root, or on a kernel with CONFIG_USER_NS and outside of a container that forbids it",
    )


def is_alive(keeper: Keeper) -> bool:
    """Whether the keeper still runs and is the one that we started."""
    return started_ticks(keeper.pid) == keeper.started


def enter(keeper: Keeper) -> None:
    """Move this process, which must have one thread, into the keeper's namespaces, as root there; twice is once."""
    for kind, flag in (("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS), ("net", CLONE_NEWNET)):
        if os.stat(f"/proc/{keeper.pid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
            continue
        fd = os.open(f"/proc/{keeper.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, flag)
        finally:
            os.close(fd)
