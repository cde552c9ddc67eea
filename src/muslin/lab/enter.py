"""Become a program inside of a node or container of a lab.

Theory of operation: as ``ip netns exec`` does it: this process moves into the namespace, gets a mount namespace of
its own whose /sys shows that namespace's devices, and turns into the program. So the exit code, the terminal and
the signals are the program's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NoReturn

from muslin.errors import MuslinError, UsageError
from muslin.kernel import netns as netns_door
from muslin.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    MNT_DETACH,
    MS_REC,
    MS_SLAVE,
    mount,
    setns,
    umount,
    unshare,
)
from muslin.lab.agent_plan import etcd_members, run_directory, store_settings
from muslin.lab.paths import runtime_directory
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.lab.topology import full_name_of
from muslin.settings import BY_NAME

EXIT_NOT_FOUND = 127  # what a shell answers for a program that it cannot find
EXIT_NOT_EXECUTABLE = 126


def place_names(state: LabState) -> list[str]:
    """Everything of a lab that one can go into: nodes, containers, routers, members of etcd, segments."""
    topology = state.topology
    containers = [full_name_of(node, container) for node, container in topology.containers]
    nodes = [node.name for node in topology.nodes]
    return [
        *nodes,
        *containers,
        *(one.name for one in topology.routers),
        *(one.name for one in etcd_members(topology)),
        *(one.name for one in topology.segments),
    ]


def resolve_place(state: LabState, text: str) -> str:
    """The full name for ``text``, which may leave out the node where that is clear (``con1`` of one node)."""
    names = place_names(state)
    if text in names:
        return text
    short = [name for name in names if name.partition(".")[0] == text]
    if len(short) == 1:
        return short[0]
    if short:
        raise UsageError(f"{text!r} could be {' or '.join(short[:5])}", "give the full name")
    shown = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
    raise UsageError(f"lab {state.name!r} has no {text!r}", f"it has {shown}")


def become(state: LabState, place: str, command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Turn this process into ``command`` inside of ``place``; MuslinError when the program cannot be run."""
    runtime = runtime_directory()
    fd = netns_door.open_netns(netns_of(state.name, place))
    setns(fd, CLONE_NEWNET)
    os.close(fd)
    _show_own_sys()
    environment = {
        **os.environ,
        "MUSLIN_RUNTIME_DIR": runtime,
        "MUSLIN_PLACE": place,
        **_agent_environment(state, f"{runtime}/{state.name}", place),
        **environment,
    }
    try:
        os.execvpe(command[0], list(command), environment)
    except FileNotFoundError:
        error = MuslinError(f"the program {command[0]!r} is not on this machine, where the lab lives")
        error.exit_code = EXIT_NOT_FOUND
        raise error from None
    except OSError as failure:
        error = MuslinError(f"{command[0]!r} cannot be executed: {failure.strerror}")
        error.exit_code = EXIT_NOT_EXECUTABLE
        raise error from None


def _agent_environment(state: LabState, directory: str, place: str) -> dict[str, str]:
    """So that ``muslin status`` on a node finds the agent of that node, and ``muslin network`` its store."""
    if state.topology.agents is None or place not in {node.name for node in state.topology.nodes}:
        return {}
    settings = {"run-dir": run_directory(directory, place), **store_settings(directory, state.topology)}
    return {BY_NAME[name].environment[0]: value for name, value in settings.items()}


def _show_own_sys() -> None:
    """A /sys that shows the devices of this namespace; without it, programs still see them through netlink."""
    with contextlib.suppress(OSError):
        unshare(CLONE_NEWNS)
        mount("", "/", flags=MS_REC | MS_SLAVE)
        with contextlib.suppress(OSError):  # a rootless lab may not take the host's away, only cover it
            umount("/sys", MNT_DETACH)
        mount("sysfs", "/sys", "sysfs")
