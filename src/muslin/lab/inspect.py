"""What a lab is like at this moment, as a document: read from the kernel, compared with what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.kernel.base import Kernel, Scope
from muslin.kernel.converge import plan_ops
from muslin.lab.agent_plan import Agent, Member, etcd_members
from muslin.lab.plan import netns_of
from muslin.lab.plan import plan as plan_lab
from muslin.lab.processes import running_tunnels
from muslin.lab.state import LabState
from muslin.lab.topology import full_name_of
from muslin.model.kernel import TABLE_MAIN, Address, Link, Route, Veth
from muslin.model.ops import describe_all
from muslin.model.state import Snapshot

Role = Literal["segment", "router", "store", "node", "container"]


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """One interface. ``mtu`` in bytes; ``peer`` is ``INTERFACE@PLACE`` at the other end of a veth."""

    name: str
    kind: str
    up: bool
    mtu: int
    mac: str
    master: str
    peer: str
    addresses: tuple[str, ...]


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """The agent of a node: its process, and what it says of itself; ``pid`` None where none runs."""

    pid: int | None
    ready: bool = False
    subnets: tuple[str, ...] = ()
    """Of its lease."""
    expires_at: float | None = None
    """When that ends unless it is renewed, in seconds since the epoch."""
    peers: int = 0
    programmed: int = 0
    """How many of them are in the kernel."""
    problems: tuple[str, ...] = ()


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member of etcd; ``pid`` None where it does not run."""

    pid: int | None
    endpoint: str
    healthy: bool = False


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace of the lab: a segment, router, node or container, or a member of the agents' store."""

    name: str
    role: Role
    netns: str
    links: tuple[LinkView, ...]
    routes: tuple[str, ...]
    tunnel_pid: int | None = None
    agent: AgentView | None = None
    etcd: MemberView | None = None


class LabView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole lab. ``drift`` lists the commands that would make it what it should be.

    What agents have made is theirs to keep in order; it is shown and no part of the drift.
    """

    schema: Literal["muslin.lab-inspect/v1"] = "muslin.lab-inspect/v1"
    name: str
    step: int | None
    backend: str
    complete: bool
    rootless: bool
    places: tuple[PlaceView, ...]
    drift: tuple[str, ...]


def inspect(kernel: Kernel, state: LabState, directory: str, only: str | None = None) -> LabView:
    """Read the lab, whose files are in ``directory``, from the kernel; ``only`` one place of it, with all drift."""
    lab_plan = plan_lab(state.name, state.topology)
    places = [(role, name) for role, name in _places(state) if only in (None, name)]
    names = tuple(netns_of(state.name, name) for _, name in _places(state))
    observed = kernel.observe(Scope(netns=names))
    _, ops = plan_ops(kernel, lab_plan.state, state.owned)
    tunnels = {tunnel.netns: tunnel.pid for tunnel in running_tunnels(names)}
    stopped = [f"start the tunnel in {tunnel.netns}" for tunnel in lab_plan.tunnels if tunnel.netns not in tunnels]
    agents, members, absent = _programs(state, directory)
    return LabView(
        name=state.name,
        step=state.topology.step,
        backend=state.topology.backend,
        complete=state.complete,
        rootless=state.keeper is not None,
        places=tuple(
            msgspec.structs.replace(
                _place_view(state, observed, role, name, tunnels), agent=agents.get(name), etcd=members.get(name)
            )
            for role, name in places
        ),
        drift=(*describe_all(ops), *stopped, *absent),
    )


def _programs(state: LabState, directory: str) -> tuple[dict[str, AgentView], dict[str, MemberView], list[str]]:
    """The agents and members of etcd by place, and what it would take to have those that are missing."""
    if state.topology.agents is None:
        return {}, {}, []
    from muslin.lab import agents as agents_door

    crew = agents_door.Crew.of(state.name, directory, state.topology)
    alive = agents_door.running(crew)
    pids = {program.name: program.process.pid for program in alive}
    members, agents = agents_door.missing(crew, alive)
    absent = [f"start etcd in {member.netns}" for member in members]
    absent += [f"start the agent in {agent.netns}" for agent in agents]
    return (
        {agent.node: _agent_view(pids.get(agent.node), agent) for agent in crew.agents},
        {member.name: _member_view(pids.get(member.name), member) for member in crew.members},
        absent,
    )


def _agent_view(pid: int | None, agent: Agent) -> AgentView:
    from muslin.agent_client import ask_status

    status = ask_status(agent.socket) if pid is not None else None
    if status is None:
        return AgentView(pid=pid)
    return AgentView(
        pid=pid,
        ready=status.ready,
        subnets=status.lease.subnets,
        expires_at=status.lease.expires_at,
        peers=len(status.peers),
        programmed=status.programmed,
        problems=status.problems,
    )


def _member_view(pid: int | None, member: Member) -> MemberView:
    from muslin.lab.datastore import is_healthy

    return MemberView(pid=pid, endpoint=member.endpoint, healthy=pid is not None and is_healthy(member))


def _places(state: LabState) -> Iterator[tuple[Role, str]]:
    for segment in state.topology.segments:
        yield "segment", segment.name
    for router in state.topology.routers:
        yield "router", router.name
    for member in etcd_members(state.topology):
        yield "store", member.name
    for node in state.topology.nodes:
        yield "node", node.name
        for container in node.containers:
            yield "container", full_name_of(node, container)


def _place_view(
    state: LabState,
    observed: Snapshot,
    role: Role,
    name: str,
    tunnels: dict[str, int],
) -> PlaceView:
    netns = netns_of(state.name, name)
    objects = observed.in_netns(netns)
    addresses: dict[str, list[str]] = {}
    for obj in objects:
        if isinstance(obj, Address):
            addresses.setdefault(obj.link, []).append(obj.address)
    routes = [obj for obj in objects if isinstance(obj, Route) and obj.table == TABLE_MAIN]
    return PlaceView(
        name=name,
        role=role,
        netns=netns,
        links=tuple(_link_view(state, obj, addresses) for obj in objects if isinstance(obj, Link)),
        routes=tuple(_route_words(route) for route in routes if not route.destination.startswith("fe80")),
        tunnel_pid=tunnels.get(netns),
    )


def _link_view(state: LabState, link: Link, addresses: dict[str, list[str]]) -> LinkView:
    peer = ""
    if isinstance(link.options, Veth) and link.options.peer:
        peer = f"{link.options.peer}@{link.options.peer_netns.removeprefix(netns_of(state.name, ''))}"
    return LinkView(
        name=link.name,
        kind=type(link.options).__name__.lower(),
        up=bool(link.up),
        mtu=link.mtu or 0,
        mac=link.mac or "",
        master=link.master or "",
        peer=peer,
        addresses=tuple(addresses.get(link.name, ())),
    )


def _route_words(route: Route) -> str:
    via = f" via {route.via}" if route.via else ""
    link = f" dev {route.link}" if route.link else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"{route.shown_destination}{via}{link}{metric}"
