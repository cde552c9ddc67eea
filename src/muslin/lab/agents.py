"""The programs of a lab whose nodes run agents: started, awaited, replaced, asked to go.

Theory of operation: as for tunnels, nothing is remembered about processes: a mark in its environment says whose agent
or member a process is, its command line what it was told. Agents are converged like everything else: those that are
missing or were told something else are started, all at once; then the lab waits until each holds the subnet that the
topology gives its node and has brought every other node into its kernel. A configuration that changed is written into
the store, and the same wait tells when all have followed. An agent whose node leaves gives its lease back first, so
that the others forget it at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from muslin.agent_client import SOCKET_PATH_MAX, ask_status, ask_to_stop
from muslin.errors import MuslinError, UsageError
from muslin.kernel import programs
from muslin.lab import datastore
from muslin.lab.agent_plan import Agent, Member
from muslin.lab.agent_plan import agents as plan_agents
from muslin.lab.agent_plan import members as plan_members
from muslin.lab.plan import netns_of
from muslin.lab.topology import Topology
from muslin.wire.agent_api import AgentStatus, PeerStatus

AGENT_MARK = "MUSLIN_LAB_AGENT"
MEMBER_MARK = "MUSLIN_LAB_ETCD"
START_S = 30.0
START_EACH_S = 2.0
"""For each agent on top: on one processor they start one after the other."""
RELEASE_S = 10.0
"""How long an agent may take to give its lease back and end."""
POLL_S = 0.05
LAST_LINES = 5
KEPT_ENVIRONMENT = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME")
"""What an agent finds programs and packages by; nothing else of our environment, least of all settings of agents."""

OnCommand = Callable[[str], None]
SignOfLife = Callable[[], bool]
"""Whether an agent's process is still there."""


class Crew(msgspec.Struct, frozen=True, kw_only=True):
    """All programs of a lab: what should run."""

    directory: str
    topology: Topology
    agents: tuple[Agent, ...]
    members: tuple[Member, ...]

    @classmethod
    def of(cls, lab: str, directory: str, topology: Topology) -> Crew:
        """The programs of a resolved topology."""
        place = partial(netns_of, lab)
        return cls(
            directory=directory,
            topology=topology,
            agents=plan_agents(directory, topology, place),
            members=plan_members(directory, topology, place),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of its nodes and members, each of which has a directory."""
        return (*(agent.node for agent in self.agents), *(member.name for member in self.members))


class CrewReport(msgspec.Struct, frozen=True, kw_only=True):
    """What raising a crew took."""

    started: tuple[str, ...] = ()
    """Nodes whose agent, and members that, were started."""
    reconfigured: bool = False
    """Whether the store was told of another network than it knew."""


# ---- which programs run ----------------------------------------------------------------------------------


class RunningProgram(msgspec.Struct, frozen=True):
    """An agent or a member found alive."""

    name: str
    process: programs.Program
    arguments: tuple[str, ...]
    """Those that tell it from another: not the interpreter, nor the configuration for a store that has none."""


def running(crew: Crew) -> list[RunningProgram]:
    """The agents and members that live in the lab's namespaces, whatever they were told."""
    places = [agent.netns for agent in crew.agents] + [member.netns for member in crew.members]
    found = [process for mark in (AGENT_MARK, MEMBER_MARK) for process in programs.find(mark, places)]
    told: dict[tuple[str, tuple[str, ...]], programs.Program] = {}
    # A child of an agent looks like its parent until it has become what it is to be: the elder is the agent.
    for process in sorted(found, key=lambda one: (one.started, one.pid)):
        if (arguments := _arguments_of(process.words)) is not None:
            told.setdefault((process.value, arguments), process)
    return [RunningProgram(name, process, arguments) for (name, arguments), process in told.items()]


def _arguments_of(words: Sequence[str]) -> tuple[str, ...] | None:
    """None for what is neither agent nor member: a program that an agent runs for a moment bears its mark too."""
    if os.path.basename(words[0]) == "etcd":
        return tuple(words[1:])
    if "agent" not in words or "--network-config" not in words:
        return None
    return tuple(words[words.index("agent") + 1 : words.index("--network-config")])


def missing(crew: Crew, alive: Iterable[RunningProgram]) -> tuple[list[Member], list[Agent]]:
    """The members and agents that do not run, or were told something else."""
    told = {(program.name, program.arguments) for program in alive}
    members = [member for member in crew.members if (member.name, member.arguments) not in told]
    return members, [agent for agent in crew.agents if (agent.node, agent.arguments) not in told]


def is_to_be_told(crew: Crew) -> bool:
    """Whether the agents that run follow another backend than the lab wants, as far as they say."""
    said = (ask_status(agent.socket) for agent in crew.agents)
    first = next((status.network for status in said if status and status.network), None)
    return first is not None and first.backend != crew.topology.backend


# ---- raising them ----------------------------------------------------------------------------------------


def raise_crew(crew: Crew, on_command: OnCommand | None = None) -> CrewReport:
    """Have all of them run, told what they should be, and every agent done with its part; MuslinError otherwise."""
    alive = running(crew)
    signs = {program.name: partial(_is_alive, program.process) for program in alive}
    members, agents = missing(crew, alive)
    replaced = {one.name for one in members} | {one.node for one in agents}
    programs.end_processes([program.process.pid for program in alive if program.name in replaced])
    for member in members:
        _tell(on_command, member.commands)
        _start_member(member)
    _await_members(crew.members)
    reconfigured = datastore.write_network(crew.directory, crew.topology, crew.agents, crew.members)
    for agent in agents:
        _tell(on_command, agent.commands)
        signs[agent.node] = partial(_has_not_ended, _start_agent(agent))
    await_agents(crew, signs)
    started = (*(member.name for member in members), *(agent.node for agent in agents))
    return CrewReport(started=started, reconfigured=reconfigured)


def _is_alive(process: programs.Program) -> bool:
    return process.is_alive


def _has_not_ended(child: int) -> bool:
    """Of a child, whose number stays its own until it is reaped; it has no mark in /proc before it is wholly there."""
    return programs.started_ticks(child) is not None


def _tell(on_command: OnCommand | None, commands: Iterable[str]) -> None:
    for command in commands if on_command else ():
        on_command(command)  # type: ignore[misc]


def _start_member(member: Member) -> None:
    os.makedirs(member.directory, mode=0o700, exist_ok=True)
    command = [datastore.etcd_program(), *member.arguments]
    programs.start(member.netns, command, {**datastore.etcd_environment(), MEMBER_MARK: member.name}, member.log)


def _start_agent(agent: Agent) -> int:
    """Its number."""
    if len(agent.socket.encode()) > SOCKET_PATH_MAX:
        raise UsageError(
            f"the path {agent.socket} is longer than the {SOCKET_PATH_MAX} bytes that a socket's may have",
            "choose a shorter name with --name, or a shorter place with MUSLIN_RUNTIME_DIR",
        )
    os.makedirs(agent.run_directory, mode=0o700, exist_ok=True)
    if not os.path.exists(agent.subnet_file):
        with open(agent.subnet_file, "wb") as file:
            file.write(agent.subnet_env)
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    # -P: a file in somebody's directory is not a module
    command = [sys.executable, "-P", "-m", "muslin", *agent.words]
    return programs.start(agent.netns, command, {**kept, AGENT_MARK: agent.node}, agent.log)


def _await_members(members: Sequence[Member]) -> None:
    deadline = time.monotonic() + START_S
    for member in members:
        while not datastore.is_healthy(member):
            if time.monotonic() > deadline:
                words = _last_words(member.log)
                raise MuslinError(f"{member.name} does not serve after {START_S:.0f} s; its last words:{words}")
            time.sleep(POLL_S)


def await_agents(crew: Crew, signs: Mapping[str, SignOfLife]) -> None:
    """Return once every agent has done its part; MuslinError, naming what is missing where, if that takes too long."""
    patience_s = START_S + START_EACH_S * len(crew.agents)
    deadline = time.monotonic() + patience_s
    waiting = list(crew.agents)
    while True:
        faults = {agent.node: fault for agent in waiting if (fault := _fault(crew, agent))}
        waiting = [agent for agent in waiting if agent.node in faults]
        if not waiting:
            return
        _refuse_if_ended(waiting, signs)
        if time.monotonic() > deadline:
            told = "\n  ".join(f"{node}: {fault}" for node, fault in faults.items())
            words = _last_words(waiting[0].log)
            raise MuslinError(
                f"not all agents are done after {patience_s:.0f} s:\n  {told}\n"
                f"last words of the agent of {waiting[0].node}:{words}"
            )
        time.sleep(POLL_S)


def _refuse_if_ended(waiting: Sequence[Agent], signs: Mapping[str, SignOfLife]) -> None:
    for agent in waiting:
        if not signs[agent.node]():
            raise MuslinError(f"the agent of {agent.node} has ended; its last words:{_last_words(agent.log)}")


def _last_words(path: str) -> str:
    """The end of a log: it goes with a lab that is taken back, so the message has to hold it."""
    lines = programs.read_from(path).strip().splitlines()[-LAST_LINES:]
    return "".join(f"\n  {line.strip()}" for line in lines) or " none"


def _fault(crew: Crew, agent: Agent) -> str:
    """What an agent has still to do, in a sentence; empty when it is done."""
    status = ask_status(agent.socket)
    if status is None:
        return "it does not answer"
    if status.lease.subnets and set(status.lease.subnets) != set(agent.subnets):
        held, wanted = " and ".join(status.lease.subnets), " and ".join(agent.subnets)
        raise MuslinError(
            f"the agent of {agent.node} has leased {held}, since {wanted} was not free",
            f"see who has it with: muslin lab exec {agent.node} -- muslin network show",
        )
    if not status.ready or status.network is None:
        return status.problems[0] if status.problems else "it is not ready"
    if status.network.backend != crew.topology.backend:
        return f"it still follows the backend {status.network.backend}"
    return _peer_fault(crew, agent, status)


def _peer_fault(crew: Crew, agent: Agent, status: AgentStatus) -> str:
    peers: dict[frozenset[str], PeerStatus] = {frozenset(peer.subnets): peer for peer in status.peers}
    for other in crew.agents:
        peer = peers.get(frozenset(other.subnets))
        if other is agent:
            continue
        if peer is None:
            return f"it does not know {other.node} yet"
        if peer.backend != crew.topology.backend:
            return f"{other.node} still speaks {peer.backend}"
        # A peer that cannot be served is served by no waiting; the plan has warned of it.
        if peer.state not in ("programmed", "refused"):
            return f"{other.node} is {peer.state}: {peer.reason}" if peer.reason else f"{other.node} is {peer.state}"
    return ""


# ---- letting them go -------------------------------------------------------------------------------------


def release(crew: Crew, nodes: Iterable[str]) -> None:
    """Have the agents of these nodes give their leases back and end. Those that do not will end with their node."""
    leaving = {agent.node: agent for agent in crew.agents if agent.node in set(nodes)}
    processes = [program.process for program in running(crew) if program.name in leaving]
    if any([ask_to_stop(agent.socket, release=True) for agent in leaving.values()]):
        deadline = time.monotonic() + RELEASE_S
        while any(process.is_alive for process in processes) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def end_members(crew: Crew) -> list[int]:
    """End the members of etcd at once: what they know goes with them, so nobody waits for a farewell."""
    names = {member.name for member in crew.members}
    pids = [program.process.pid for program in running(crew) if program.name in names]
    programs.end_processes(pids, grace_s=0)
    return pids
