"""Raise a lab, change it, take it away.

Theory of operation: ``up`` writes down what it is about to own, converges the kernel to the topology's plan, then
the tunnels. On a lab that is up already the same code repairs it or turns it into another step; on a fresh one a
failure or an interrupt takes everything back. ``down`` needs the state file alone: it ends what lives in the lab's
namespaces, removes those, and then the file. Without root, a keeper holds a user namespace (``lab.keeper``) that
this process moves into before it touches the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator

import msgspec

from muslin.errors import EXIT_INTERRUPTED, ConvergeError, MuslinError, UnsupportedError, UsageError
from muslin.kernel import netns as netns_door
from muslin.kernel import tun
from muslin.kernel.base import Kernel
from muslin.kernel.converge import converge, plan_ops
from muslin.kernel.linux import LinuxKernel
from muslin.lab import keeper as keeper_door
from muslin.lab.paths import is_privileged
from muslin.lab.plan import NETNS_PREFIX, LabPlan, plan
from muslin.lab.processes import (
    describe_tunnel,
    end_everything_in,
    end_processes,
    end_tunnels_logging_below,
    end_unwanted_tunnels,
    missing_tunnels,
    start_tunnels,
)
from muslin.lab.state import LabDirectory, LabState, StateJournal, boot_id, lab_names
from muslin.lab.topology import Topology
from muslin.model.kernel import Netns, link_key
from muslin.model.network import Refusal, Tunnel
from muslin.model.ops import Delete, Op, Report
from muslin.model.state import DesiredState
from muslin.plan.diff import creations

UNSUPPORTED_ERRNOS = (errno.EPERM, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOSYS)

OnCommand = Callable[[str], None]
"""Called with each command ahead of its execution."""


class InterruptedLabError(MuslinError):
    """A person interrupted the change of a lab that was up before."""

    exit_code = EXIT_INTERRUPTED


class UpReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``up`` did."""

    fresh: bool
    report: Report
    started: tuple[Tunnel, ...]
    stopped: int
    """Tunnels that were ended, because they are wanted no more or with other peers."""
    refusals: tuple[Refusal, ...]

    @property
    def changed(self) -> bool:
        """Whether anything had to be done."""
        return bool(self.report.results or self.started or self.stopped)


class DownReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``down`` did."""

    existed: bool
    removed: tuple[str, ...] = ()
    """Namespaces."""
    ended: int = 0
    """Processes."""


def preview(directory: LabDirectory, topology: Topology) -> tuple[LabPlan, tuple[Op, ...], tuple[Tunnel, ...]]:
    """What ``up`` would do: the plan, the operations, the tunnels to start. Changes nothing."""
    lab_plan = plan(directory.name, topology)
    state = directory.read()
    if state is None or not enter(state):
        return lab_plan, creations(lab_plan.state), lab_plan.tunnels
    with LinuxKernel() as kernel:
        _, ops = plan_ops(kernel, lab_plan.state, state.owned)
    return lab_plan, ops, tuple(missing_tunnels(lab_plan.tunnels, state.own_netns))


def enter(state: LabState) -> bool:
    """Go where the lab's namespaces are; False when they are gone (a reboot, or the keeper ended)."""
    if state.boot_id != boot_id():
        return False
    if state.keeper is None:
        return True
    if not keeper_door.is_alive(state.keeper):
        return False
    keeper_door.enter(state.keeper)
    return True


def require(directory: LabDirectory) -> LabState:
    """The state of a lab that is up, entered; UsageError, with what to do, otherwise."""
    state = directory.read()
    if state is None:
        raise UsageError(f"there is no lab {directory.name!r}", "raise it with: muslin lab up --step 4")
    if not enter(state):
        raise UsageError(
            f"lab {directory.name!r} is gone, since the machine was rebooted or its keeper ended",
            f"clear it away with: muslin lab down --name {directory.name}",
        )
    return state


def up(
    directory: LabDirectory,
    topology: Topology,
    on_command: OnCommand | None = None,
    *,
    one_by_one: bool = False,
) -> UpReport:
    """Raise the lab, or make it what ``topology`` says. ConvergeError names what the kernel refused."""
    lab_plan = plan(directory.name, topology)
    if lab_plan.tunnels:
        tun.check_available()
    with directory.locked():
        journal, fresh = _open_journal(directory, topology)
        with LinuxKernel() as kernel, _taken_back_if(fresh, kernel, journal):
            _refuse_foreign_namespaces(lab_plan, journal)
            return _raise(kernel, journal, lab_plan, fresh, on_command, one_by_one)


def _raise(
    kernel: Kernel,
    journal: StateJournal,
    lab_plan: LabPlan,
    fresh: bool,
    on_command: OnCommand | None,
    one_by_one: bool,
) -> UpReport:
    names = (*lab_plan.state.own_netns, *journal.state.own_netns)
    stopped = end_unwanted_tunnels(lab_plan.tunnels, names)
    _end_unwanted(lab_plan, journal)
    witness = (lambda op: on_command(op.describe())) if on_command else None
    report = converge(kernel, lab_plan.state, journal, witness, one_by_one=one_by_one)
    _raise_unless_ok(report)
    missing = missing_tunnels(lab_plan.tunnels, names)
    for tunnel in missing if on_command else ():
        on_command(describe_tunnel(tunnel))  # type: ignore[misc]
    start_tunnels(missing, journal.directory.path)
    kernel.settle(link_key(tunnel.netns, tunnel.device) for tunnel in missing)
    journal.update(msgspec.structs.replace(journal.state, complete=True))
    return UpReport(
        fresh=fresh,
        report=report,
        started=tuple(missing),
        stopped=stopped,
        refusals=lab_plan.refusals,
    )


def _end_unwanted(lab_plan: LabPlan, journal: StateJournal) -> None:
    """What lives in namespaces that are about to go would keep them alive."""
    wanted = set(lab_plan.state.own_netns)
    end_everything_in(name for name in journal.state.own_netns if name not in wanted)


def _open_journal(directory: LabDirectory, topology: Topology) -> tuple[StateJournal, bool]:
    """The journal of the lab and whether it is new. Afterwards this process is where the lab's namespaces are."""
    state = directory.read()
    if state is not None and not enter(state):
        _forget(directory)
        state = None
    if state is not None:
        journal = StateJournal(directory, state)
        journal.update(msgspec.structs.replace(state, topology=topology, complete=False))
        return journal, False
    fresh = LabState(
        name=directory.name,
        topology=topology,
        created_at=time.time(),
        boot_id=boot_id(),
        made_netns_directory=is_privileged() and not netns_door.directory_exists(),
    )
    journal = StateJournal(directory, fresh)
    if not is_privileged():
        process = keeper_door.start()
        journal.update(msgspec.structs.replace(fresh, keeper=process.identity))
        process.allow_to_stay()
        keeper_door.enter(process.identity)
    journal.update(journal.state)
    return journal, True


def _refuse_foreign_namespaces(lab_plan: LabPlan, journal: StateJournal) -> None:
    ours = set(journal.state.own_netns)
    foreign = [name for name in netns_door.names() if name in lab_plan.state.own_netns and name not in ours]
    if foreign:
        raise UsageError(
            f"the network namespace {foreign[0]} exists already, and lab {journal.directory.name!r} did not make it",
            f"choose another name with --name, or remove it with: ip netns delete {foreign[0]}",
        )


@contextlib.contextmanager
def _taken_back_if(fresh: bool, kernel: Kernel, journal: StateJournal) -> Iterator[None]:
    """Take a fresh lab back when raising it fails or is interrupted; leave an older one to repair or remove."""
    name = journal.directory.name
    try:
        yield
    except BaseException as failure:
        if fresh:
            _tear_down(kernel, journal.directory, journal.state)
        elif isinstance(failure, KeyboardInterrupt):
            raise InterruptedLabError(
                f"interrupted: lab {name!r} is left half changed",
                f"go on with the same muslin lab up, or take it away with: muslin lab down --name {name}",
            ) from None
        raise


def _raise_unless_ok(report: Report) -> None:
    if report.ok:
        return
    lines = [result.describe() for result in report.failed]
    lines += [f"{len(report.skipped)} more operations depend on these"] if report.skipped else []
    text = "the kernel refused:\n  " + "\n  ".join(lines)
    if all(result.errno in UNSUPPORTED_ERRNOS for result in report.failed):
        raise UnsupportedError(text, "this kernel or user lacks the feature; see 'Requirements' in the README")
    raise ConvergeError(text)


def down(directory: LabDirectory) -> DownReport:
    """Take the lab away, with all that lives in it; a lab that is not there is fine."""
    with directory.locked():
        state = directory.read()
        if state is None:
            # An `up` or `down` that was killed before its first or after its last state may have left other files.
            return DownReport(existed=directory.remove())
        with LinuxKernel() as kernel:
            if not enter(state):
                return DownReport(existed=True, ended=_forget(directory))
            return _tear_down(kernel, directory, state)


def _forget(directory: LabDirectory) -> int:
    """Clear away a lab of an earlier boot or of a keeper that ended: its tunnels hold all that may be left of it."""
    ended = end_tunnels_logging_below(directory.path)
    directory.remove()
    return len(ended)


def _tear_down(kernel: Kernel, directory: LabDirectory, state: LabState) -> DownReport:
    present = set(netns_door.names())
    names = [name for name in state.own_netns if name in present]
    ended = end_everything_in(names)
    failed = Report(tuple(kernel.apply([Delete(Netns(netns=name)) for name in names]))).failed
    if failed:
        raise MuslinError(
            f"{len(failed)} namespaces of lab {state.name!r} could not be removed: {failed[0].describe()}",
            f"try again with: muslin lab down --name {state.name}",
        )
    if state.made_netns_directory:
        netns_door.remove_directory()
    if state.keeper is not None and keeper_door.is_alive(state.keeper):
        end_processes([state.keeper.pid])
    directory.remove()
    return DownReport(existed=True, removed=tuple(names), ended=len(ended))


def desired_state(state: LabState) -> DesiredState:
    """What the lab should be, by its state file."""
    return plan(state.name, state.topology).state


def condition_of(directory: LabDirectory) -> str:
    """``up``, ``half up`` (an ``up`` did not end), ``lost`` (reboot, keeper gone) or ``unreadable``."""
    try:
        state = directory.read()
    except MuslinError:
        return "unreadable"
    if state is None:
        return "half up"
    if state.boot_id != boot_id() or (state.keeper and not keeper_door.is_alive(state.keeper)):
        return "lost"
    return "up" if state.complete else "half up"


def orphans(root: str | None = None) -> list[str]:
    """Namespaces with a lab's kind of name that no state file accounts for."""
    states = []
    for name in lab_names(root):
        with contextlib.suppress(MuslinError):
            states.append(LabDirectory(name, root).read())
    known = {netns for state in states if state for netns in state.own_netns}
    return [netns for netns in netns_door.names() if netns.startswith(NETNS_PREFIX) and netns not in known]


def remove_orphan(netns: str) -> None:
    """End what lives in a namespace and remove it."""
    end_everything_in([netns])
    netns_door.delete(netns)
