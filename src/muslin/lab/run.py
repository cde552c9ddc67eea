"""Raise a lab, change it, take it away.

Theory of operation: ``up`` writes down what it is about to own, converges the kernel to the topology's plan, then
the tunnels. Where nodes run agents, it converges as far as that goes without them, has the agents do their part
(``lab.agents``), and converges once more, now with the bridges that they have made. On a lab that is up already the
same code repairs it or turns it into another step; on a fresh one a failure or an interrupt takes everything back.
``down`` needs the state file alone: it ends what lives in the lab's namespaces, removes those, and then the file.
Without root, a keeper holds a user namespace (``lab.keeper``) that this process moves into before it touches the
kernel.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator

import msgspec

from muslin.errors import EXIT_INTERRUPTED, ConvergeError, MuslinError, UnsupportedError, UsageError
from muslin.kernel import netns as netns_door
from muslin.kernel import programs, tun
from muslin.kernel.base import Kernel
from muslin.kernel.converge import converge, plan_ops
from muslin.kernel.linux import LinuxKernel
from muslin.lab import keeper as keeper_door
from muslin.lab.agent_faults import unchangeable
from muslin.lab.paths import is_privileged
from muslin.lab.plan import NETNS_PREFIX, LabPlan, plan
from muslin.lab.processes import (
    describe_tunnel,
    end_everything_in,
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


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What ``up`` would do, in order."""

    plan: LabPlan
    ops: tuple[Op, ...]
    tunnels: tuple[Tunnel, ...] = ()
    programs: tuple[str, ...] = ()
    """Nodes whose agent, and members of etcd that, are to be started."""
    commands: tuple[str, ...] = ()
    """The commands that start them."""
    late_ops: tuple[Op, ...] = ()
    """What has to wait for the agents."""
    reconfigures: bool = False
    """Whether the agents that run would be told of another network."""


class UpReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``up`` did."""

    fresh: bool
    report: Report
    started: tuple[Tunnel, ...]
    stopped: int
    """Tunnels that were ended, because they are wanted no more or with other peers."""
    refusals: tuple[Refusal, ...]
    programs: tuple[str, ...] = ()
    """Nodes whose agent, and members of etcd that, were started."""
    reconfigured: bool = False
    """Whether the agents were told of another network."""

    @property
    def changed(self) -> bool:
        """Whether anything had to be done."""
        return bool(self.report.results or self.started or self.stopped or self.programs or self.reconfigured)


class DownReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``down`` did."""

    existed: bool
    removed: tuple[str, ...] = ()
    """Namespaces."""
    ended: int = 0
    """Processes."""


def preview(directory: LabDirectory, topology: Topology) -> Preview:
    """What ``up`` would do. Changes nothing."""
    lab_plan = plan(directory.name, topology)
    state = directory.read()
    if state is None or not enter(state):
        ops, tunnels, alive = creations(lab_plan.state), lab_plan.tunnels, False
    else:
        _refuse_another_kind_of_lab(state, topology)
        with LinuxKernel() as kernel:
            _, ops = plan_ops(kernel, lab_plan.state, state.owned)
        tunnels, alive = tuple(missing_tunnels(lab_plan.tunnels, state.own_netns, topology.tunnel)), True
    found = Preview(
        plan=lab_plan,
        ops=tuple(op for op in ops if not lab_plan.needs_agent(op)),
        tunnels=tunnels,
        late_ops=tuple(op for op in ops if lab_plan.needs_agent(op)),
    )
    return _with_crew(found, directory, topology, alive) if topology.agents else found


def _with_crew(found: Preview, directory: LabDirectory, topology: Topology, alive: bool) -> Preview:
    from muslin.lab import agents

    crew = agents.Crew.of(directory.name, directory.path, topology)
    members, absent = agents.missing(crew, agents.running(crew) if alive else [])
    commands = [command for member in members for command in member.commands]
    commands += [command for agent in absent for command in agent.commands]
    names = (*(member.name for member in members), *(agent.node for agent in absent))
    told = alive and agents.is_to_be_told(crew)
    return msgspec.structs.replace(found, programs=names, commands=tuple(commands), reconfigures=told)


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
    _check_available(topology)
    with directory.locked():
        journal, fresh = _open_journal(directory, topology)
        with LinuxKernel() as kernel, _taken_back_if(fresh, kernel, journal):
            _refuse_foreign_namespaces(lab_plan, journal)
            return _raise(kernel, journal, lab_plan, fresh, on_command, one_by_one)


def _check_available(topology: Topology) -> None:
    """UnsupportedError ahead of everything where the programs of a lab could not run."""
    if topology.backend == "udp":
        tun.check_available()
    if topology.agents:
        from muslin.lab import datastore

        datastore.check_available(topology)


def _raise(
    kernel: Kernel,
    journal: StateJournal,
    lab_plan: LabPlan,
    fresh: bool,
    on_command: OnCommand | None,
    one_by_one: bool,
) -> UpReport:
    names = (*lab_plan.state.own_netns, *journal.state.own_netns)
    topology = journal.state.topology
    # Where there are agents, tunnels are theirs.
    stopped = 0 if topology.agents else end_unwanted_tunnels(lab_plan.tunnels, names, topology.tunnel)
    _end_unwanted(lab_plan, journal)
    witness = (lambda op: on_command(op.describe())) if on_command else None
    report = converge(kernel, lab_plan.before_agents, journal, witness, one_by_one=one_by_one)
    _raise_unless_ok(report)
    done = UpReport(fresh=fresh, report=report, started=(), stopped=stopped, refusals=lab_plan.refusals)
    if topology.agents:
        done = _raise_agents(done, journal, on_command)
        late = converge(kernel, lab_plan.state, journal, witness, one_by_one=one_by_one)
        _raise_unless_ok(late)
        done = msgspec.structs.replace(done, report=Report((*report.results, *late.results)))
    missing = missing_tunnels(lab_plan.tunnels, names, topology.tunnel)
    for tunnel in missing if on_command else ():
        on_command(describe_tunnel(tunnel))  # type: ignore[misc]
    start_tunnels(missing, journal.directory.path, topology.tunnel)
    kernel.settle(link_key(tunnel.netns, tunnel.device) for tunnel in missing)
    journal.update(msgspec.structs.replace(journal.state, complete=True))
    return msgspec.structs.replace(done, started=tuple(missing))


def _raise_agents(done: UpReport, journal: StateJournal, on_command: OnCommand | None) -> UpReport:
    from muslin.lab import agents

    crew = agents.Crew.of(journal.directory.name, journal.directory.path, journal.state.topology)
    journal.directory.keep_directories({*crew.names})
    raised = agents.raise_crew(crew, on_command)
    return msgspec.structs.replace(done, programs=raised.started, reconfigured=raised.reconfigured)


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
        _refuse_another_kind_of_lab(state, topology)
        _release_leaving(directory, state, topology)
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


def _refuse_another_kind_of_lab(state: LabState, topology: Topology) -> None:
    """UsageError where a lab that is up would have to change hands: what one made, the other knows nothing of."""
    word = unchangeable(state.topology, topology)
    if word:
        raise UsageError(
            f"lab {state.name!r} is up {word}, which cannot change while it is",
            f"take it down first: muslin lab down {state.name}",
        )


def _release_leaving(directory: LabDirectory, state: LabState, topology: Topology) -> None:
    """The agents of nodes that are about to go give their leases back while they still can."""
    leaving = {node.name for node in state.topology.nodes} - {node.name for node in topology.nodes}
    if state.topology.agents and leaving:
        from muslin.lab import agents

        agents.release(agents.Crew.of(state.name, directory.path, state.topology), leaving)


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
    ended = _end_members(directory, state) + end_everything_in(names)
    failed = Report(tuple(kernel.apply([Delete(Netns(netns=name)) for name in names]))).failed
    if failed:
        raise MuslinError(
            f"{len(failed)} namespaces of lab {state.name!r} could not be removed: {failed[0].describe()}",
            f"try again with: muslin lab down --name {state.name}",
        )
    if state.made_netns_directory:
        netns_door.remove_directory()
    if state.keeper is not None and keeper_door.is_alive(state.keeper):
        programs.end_processes([state.keeper.pid])
    directory.remove()
    return DownReport(existed=True, removed=tuple(names), ended=len(ended))


def _end_members(directory: LabDirectory, state: LabState) -> list[int]:
    """A member of etcd that is asked to end first tells the others, and waits for them: nobody needs that any more."""
    if state.topology.agents is None or state.topology.agents.store != "etcd":
        return []
    from muslin.lab import agents

    return agents.end_members(agents.Crew.of(state.name, directory.path, state.topology))


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
