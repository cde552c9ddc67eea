"""Programs that live in network namespaces: start one, find it again, hear it, tell it something, end it.

Theory of operation: nothing is remembered about programs. A mark in the environment says that one was started here,
its command line says what it was told, and /proc says in which namespace it lives; so whoever comes later, in another
process, finds what an earlier one started. A number alone is no identity, since the kernel uses it again; number and
start time are. Signals go through a pidfd, compared with the start time after it was opened, and waiting for an end
is polling a pidfd, which works for programs that are nobody's children. The empty name stands for the namespace that
this process runs in; only what lives in it is found then, not what runs elsewhere on the machine.

What is started outlives its maker: a session of its own, no terminal, no files but its log. It stays in its maker's
control group, though: a service manager that ends a whole group (systemd's KillMode=control-group) ends it too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from muslin.kernel import netns as netns_door

TUNNEL_MARK = "MUSLIN_TUNNEL"
"""Of the udp backend's tunnels, whoever starts them."""
POLL_S = 0.005
GRACE_S = 2.0


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A marked program, found alive."""

    pid: int
    started: int
    """In clock ticks since boot (proc_pid_stat(5))."""
    uid: int
    """The real user, as seen from this process's user namespace: who started it, whatever rights it has."""
    netns: str
    value: str
    """What the mark says."""
    words: tuple[str, ...]
    """Its command line, from the interpreter on."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words that are options."""
        return tuple(word for word in self.words if word.startswith("--"))

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return started_ticks(self.pid) == self.started


def start(netns: str, command: Sequence[str], environment: Mapping[str, str], log: str) -> int:
    """Start a program in a namespace, its stderr appended to the file ``log``; its number. OSError if that fails.

    It is a child of this process; whoever stays long enough to see it end has to ``reap`` it.
    """
    with open(log, "ab") as words:
        process = netns_door.call_in(
            netns,
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,
                cwd="/",
                env=environment,
            ),
        )
    # It may outlive this process, on purpose; Popen must not warn about that.
    process.returncode = 0
    return process.pid


def reap(pid: int) -> None:
    """Have the kernel forget a child that has ended; what is nobody's child here has a parent elsewhere."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def find(mark: str, netns_names: Iterable[str]) -> list[Program]:
    """All programs with this name in their environment that live in these namespaces."""
    inodes = {inode: netns for netns in netns_names if (inode := netns_door.inode_of(netns)) is not None}
    found = []
    for pid in netns_door.processes_in(set(inodes)):
        with contextlib.suppress(OSError, KeyError):  # it ended, or moved, while we looked
            netns = inodes[os.stat(f"/proc/{pid}/ns/net").st_ino]
            if program := identify(pid, mark, netns):
                found.append(program)
    return found


def identify(pid: int, mark: str, netns: str) -> Program | None:
    """The program with this number, None when it has ended, bears no such mark or is not ours to see."""
    try:
        environment = _read(f"/proc/{pid}/environ").split(b"\0")
        values = [entry for entry in environment if entry.startswith(f"{mark}=".encode())]
        started = started_ticks(pid)
        if not values or started is None:
            return None
        return Program(
            pid=pid,
            started=started,
            uid=int(_status_field(pid, "Uid").split()[0]),
            netns=netns,
            value=values[0].decode(errors="replace").partition("=")[2],
            words=tuple(_read(f"/proc/{pid}/cmdline").decode(errors="replace").rstrip("\0").split("\0")),
        )
    except OSError:
        return None


def started_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc_pid_stat(5)); None when it has ended or never was."""
    try:
        fields = _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()
        # One that has ended and waits for its parent to notice holds no namespace any more.
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError):
        return None


def wait_until_it_catches(program: Program, number: signal.Signals, timeout_s: float) -> bool:
    """Whether, in time, a signal would reach a handler of the program's own; before, it might end it."""
    deadline = time.monotonic() + timeout_s
    while program.is_alive:
        if catches(program, number):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return False


def catches(program: Program, number: signal.Signals) -> bool:
    """Whether the program has a handler for a signal (SigCgt of proc_pid_status(5))."""
    with contextlib.suppress(OSError):  # it is ending
        return bool(int(_status_field(program.pid, "SigCgt"), 16) >> number - 1 & 1)
    return False


def _status_field(pid: int, name: str) -> str:
    """A field of /proc/PID/status (proc_pid_status(5)). OSError when there is no such process."""
    for line in _read(f"/proc/{pid}/status").decode(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise ProcessLookupError(f"process {pid} tells no {name}")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def send_signal(program: Program, number: signal.Signals) -> bool:
    """Send a signal to the program, and to no other that has its number now; whether it was there to get it."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(program.pid)
        try:
            if program.is_alive:
                signal.pidfd_send_signal(fd, number)
                return True
        finally:
            os.close(fd)
    return False


def wait_for_line(
    path: str, starts: tuple[str, ...], is_alive: Callable[[], bool], timeout_s: float, offset_bytes: int = 0
) -> str | None:
    """The first whole line of a log, from ``offset_bytes`` on, that begins with one of these words.

    None when the time is up, or when its writer has ended without such a line.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        alive = is_alive()  # asked before reading, so that the last words of one that ends are heard
        for line in read_from(path, offset_bytes).split("\n")[:-1]:
            if line.startswith(starts):
                return line
        if not alive or time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)


def read_from(path: str, offset_bytes: int = 0) -> str:
    """The text of a log from an offset on; empty when it is gone, with its writer or without."""
    try:
        with open(path, "rb") as file:
            file.seek(offset_bytes)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def end_processes(pids: Sequence[int], grace_s: float = GRACE_S) -> None:
    """Ask processes to end (SIGTERM), wait, then make them (SIGKILL). Gone already is fine."""
    with _handles(pids) as fds:
        for step in (signal.SIGTERM, signal.SIGKILL):
            for fd in fds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, step)
            if _await_end(fds, grace_s if step == signal.SIGTERM else GRACE_S):
                return


def await_end(pids: Iterable[int], patience_s: float) -> bool:
    """Whether all of these processes, which need not be our children, end in time."""
    with _handles(pids) as fds:
        return _await_end(fds, patience_s)


@contextlib.contextmanager
def _handles(pids: Iterable[int]) -> Iterator[set[int]]:
    """A pidfd for each process that is still there."""
    fds = set()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fds.add(os.pidfd_open(pid))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _await_end(fds: set[int], patience_s: float) -> bool:
    """Whether all processes behind these pidfds end in time: a pidfd is readable once its process has ended."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    deadline = time.monotonic() + patience_s
    left = set(fds)
    while left and (remaining_s := deadline - time.monotonic()) > 0:
        for fd, _ in waiting.poll(remaining_s * 1000):
            waiting.unregister(fd)
            left.discard(fd)
    return not left
