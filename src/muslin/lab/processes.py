"""The programs of a lab: tunnels to start and keep, and everything that must end with the lab.

Theory of operation: what lives in a lab's namespace belongs to the lab. So nothing is remembered about processes:
/proc tells which run in which namespace, a mark in a tunnel's environment tells what it is, and its command line
what it was told. A tunnel is converged like everything else: started if missing, replaced if told something else.
Processes are ended through a pidfd, checked after it was opened, so that a number used again hits nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

import msgspec

import muslin.tunnel.reference
from muslin.errors import MuslinError
from muslin.kernel import netns as netns_door
from muslin.model.network import Tunnel

TUNNEL_MARK = "MUSLIN_TUNNEL"
READY_TIMEOUT_S = 10.0
POLL_S = 0.005
GRACE_S = 2.0


class RunningTunnel(msgspec.Struct, frozen=True):
    """A tunnel found alive."""

    pid: int
    netns: str
    arguments: tuple[str, ...]


def tunnel_program() -> str:
    """The path of the tunnel program that a lab runs."""
    return os.path.abspath(muslin.tunnel.reference.__file__)


def describe_tunnel(tunnel: Tunnel, program: str = "muslin-tunnel") -> str:
    """The command that starts it, as a person would type it."""
    words = " ".join(shlex.quote(word) for word in tunnel.arguments)
    return f"ip netns exec {shlex.quote(tunnel.netns)} {program} {words} &"


def running_tunnels(netns_names: Iterable[str]) -> list[RunningTunnel]:
    """All tunnels that live in these namespaces."""
    inodes = {inode: netns for netns in netns_names if (inode := netns_door.inode_of(netns)) is not None}
    found = []
    for pid in netns_door.processes_in(set(inodes)):
        with contextlib.suppress(OSError):
            if f"{TUNNEL_MARK}=1".encode() in _read(f"/proc/{pid}/environ").split(b"\0"):
                words = _read(f"/proc/{pid}/cmdline").decode(errors="replace").rstrip("\0").split("\0")
                netns = inodes[os.stat(f"/proc/{pid}/ns/net").st_ino]
                arguments = tuple(word for word in words if word.startswith("--"))
                found.append(RunningTunnel(pid, netns, arguments))
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def missing_tunnels(wanted: Sequence[Tunnel], netns_names: Iterable[str]) -> list[Tunnel]:
    """The wanted tunnels that do not run in these namespaces, or were told something else."""
    alive = {(tunnel.netns, tunnel.arguments) for tunnel in running_tunnels(netns_names)}
    return [tunnel for tunnel in wanted if (tunnel.netns, tunnel.arguments) not in alive]


def end_unwanted_tunnels(wanted: Sequence[Tunnel], netns_names: Iterable[str]) -> int:
    """End the tunnels in these namespaces that are not wanted, or were told something else; how many there were."""
    asked = {(tunnel.netns, tunnel.arguments) for tunnel in wanted}
    unwanted = [tunnel for tunnel in running_tunnels(netns_names) if (tunnel.netns, tunnel.arguments) not in asked]
    end_processes([tunnel.pid for tunnel in unwanted])
    return len(unwanted)


def start_tunnels(tunnels: Sequence[Tunnel], log_directory: str) -> None:
    """Start tunnels, all at once, and return when each is ready; MuslinError when one does not get there."""
    processes = [(tunnel, _start(tunnel, log_directory)) for tunnel in tunnels]
    for tunnel, process in processes:
        _await_ready(tunnel, process, log_directory)


def log_path(log_directory: str, tunnel: Tunnel) -> str:
    """Where a tunnel's words go."""
    return f"{log_directory}/{tunnel.netns}.log"


def _start(tunnel: Tunnel, log_directory: str) -> subprocess.Popen[bytes]:
    # -I -S: the program needs the standard library alone, and starts in a third of the time without site-packages
    command = [sys.executable, "-I", "-S", tunnel_program(), *tunnel.arguments]
    with open(log_path(log_directory, tunnel), "wb") as log:
        return netns_door.call_in(
            tunnel.netns,
            lambda: subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={TUNNEL_MARK: "1", "PATH": os.environ.get("PATH", os.defpath)},
            ),
        )


def _await_ready(tunnel: Tunnel, process: subprocess.Popen[bytes], log_directory: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    path = log_path(log_directory, tunnel)
    while not any(line.startswith(b"ready") for line in _read(path).splitlines()):
        if process.poll() is not None or time.monotonic() > deadline:
            words = _read(path).decode(errors="replace").strip() or "it said nothing"
            ended = "ended" if process.returncode is not None else f"was not ready within {READY_TIMEOUT_S:.0f} s"
            raise MuslinError(f"the tunnel in {tunnel.netns} {ended}: {words}")
        time.sleep(POLL_S)
    # It outlives this process on purpose; Popen must not warn about that.
    process.returncode = 0


def end_everything_in(netns_names: Iterable[str]) -> list[int]:
    """End all processes that live in these namespaces, but for our own ancestors; the numbers of the ended."""
    inodes = {inode for netns in netns_names if (inode := netns_door.inode_of(netns)) is not None}
    spared = set(_ancestors())
    ended: list[int] = []
    # A dying process may still have started another one: look until nobody is left.
    while victims := [pid for pid in netns_door.processes_in(inodes) if pid not in spared and pid not in ended]:
        end_processes(victims)
        ended += victims
    return ended


def _ancestors() -> list[int]:
    found, pid = [], os.getpid()
    while pid > 0:
        found.append(pid)
        stat = _read(f"/proc/{pid}/stat").decode(errors="replace")
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def started_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc_pid_stat(5)); None when it has ended or never was."""
    try:
        fields = _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()
        # One that has ended and waits for its parent to notice holds no namespace any more.
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError):
        return None


def end_tunnels_logging_below(directory: str) -> list[int]:
    """End the tunnels of a lab whose namespaces have lost their names: each still has its log open. Their numbers."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to see
            if os.readlink(f"/proc/{entry}/fd/2").startswith(f"{directory}/"):
                found.append(int(entry))
    end_processes(found)
    return found


def end_processes(pids: Sequence[int], grace_s: float = GRACE_S) -> None:
    """Ask processes to end (SIGTERM), wait, then make them (SIGKILL). Gone already is fine."""
    handles = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles[os.pidfd_open(pid)] = pid
    try:
        for step, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
            for fd in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, step)
            if _await_end(set(handles), patience_s):
                return
    finally:
        for fd in handles:
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
