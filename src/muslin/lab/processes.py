"""The programs of a lab: tunnels to start and keep, and everything that must end with the lab.

Theory of operation: what lives in a lab's namespace belongs to the lab. So nothing is remembered about processes:
``kernel.programs`` finds the tunnels by their mark, and what each is and was told by its command line. A tunnel is
converged like everything else: started if missing, replaced if it is of another kind or was told something else.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Sequence

from muslin.errors import MuslinError
from muslin.kernel import netns as netns_door
from muslin.kernel import programs
from muslin.kernel.programs import Program, end_processes
from muslin.kernel.programs import started_ticks as started_ticks
from muslin.model.network import Tunnel
from muslin.tunnel.programs import REFERENCE, Kind, is_python, tunnel_command

READY_TIMEOUT_S = 10.0


def tunnel_program() -> str:
    """The path of the tunnel program that anybody with a Python can run."""
    return REFERENCE


def describe_tunnel(tunnel: Tunnel, program: str = "muslin-tunnel") -> str:
    """The command that starts it, as a person would type it."""
    words = " ".join(shlex.quote(word) for word in tunnel.arguments)
    return f"ip netns exec {shlex.quote(tunnel.netns)} {program} {words} &"


def running_tunnels(netns_names: Iterable[str]) -> list[Program]:
    """All tunnels that live in these namespaces."""
    return programs.find(programs.TUNNEL_MARK, netns_names)


def missing_tunnels(wanted: Sequence[Tunnel], netns_names: Iterable[str], kind: Kind = "c") -> list[Tunnel]:
    """The wanted tunnels that do not run in these namespaces, or are of another kind, or were told something else."""
    alive = {(tunnel.netns, tunnel.arguments) for tunnel in running_tunnels(netns_names) if _is_of_kind(tunnel, kind)}
    return [tunnel for tunnel in wanted if (tunnel.netns, tunnel.arguments) not in alive]


def _is_of_kind(tunnel: Program, kind: Kind) -> bool:
    return is_python(tunnel.words) == is_python(tunnel_command(kind))


def end_unwanted_tunnels(wanted: Sequence[Tunnel], netns_names: Iterable[str], kind: Kind = "c") -> int:
    """End the tunnels in these namespaces that are not wanted, or not as they were told; how many there were."""
    asked = {(tunnel.netns, tunnel.arguments) for tunnel in wanted}
    unwanted = [
        tunnel
        for tunnel in running_tunnels(netns_names)
        if (tunnel.netns, tunnel.arguments) not in asked or not _is_of_kind(tunnel, kind)
    ]
    end_processes([tunnel.pid for tunnel in unwanted])
    return len(unwanted)


def start_tunnels(tunnels: Sequence[Tunnel], log_directory: str, kind: Kind = "c") -> None:
    """Start tunnels, all at once, and return when each is ready; MuslinError when one does not get there."""
    pids = [(tunnel, _start(tunnel, log_directory, kind)) for tunnel in tunnels]
    for tunnel, pid in pids:
        _await_ready(tunnel, pid, log_directory)


def log_path(log_directory: str, tunnel: Tunnel) -> str:
    """Where a tunnel's words go."""
    return f"{log_directory}/{tunnel.netns}.log"


def _start(tunnel: Tunnel, log_directory: str, kind: Kind) -> int:
    path = log_path(log_directory, tunnel)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # the words of an earlier one
    command = [*tunnel_command(kind), *tunnel.arguments]
    environment = {programs.TUNNEL_MARK: "1", "PATH": os.environ.get("PATH", os.defpath)}
    return programs.start(tunnel.netns, command, environment, path)


def _await_ready(tunnel: Tunnel, pid: int, log_directory: str) -> None:
    path = log_path(log_directory, tunnel)

    def is_alive() -> bool:
        return programs.started_ticks(pid) is not None

    if programs.wait_for_line(path, ("ready",), is_alive, READY_TIMEOUT_S) is None:
        words = programs.read_from(path).strip() or "it said nothing"
        ended = f"was not ready within {READY_TIMEOUT_S:.0f} s" if is_alive() else "ended"
        raise MuslinError(f"the tunnel in {tunnel.netns} {ended}: {words}")


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
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


def end_tunnels_logging_below(directory: str) -> list[int]:
    """End the tunnels of a lab whose namespaces have lost their names: each still has its log open. Their numbers."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to see
            if os.readlink(f"/proc/{entry}/fd/2").startswith(f"{directory}/"):
                found.append(int(entry))
    end_processes(found)
    return found
