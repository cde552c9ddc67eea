"""What a lab is like at this moment, as a document: read from the kernel, compared with what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.kernel.base import Kernel, Scope
from muslin.kernel.converge import plan_ops
from muslin.lab.plan import netns_of
from muslin.lab.plan import plan as plan_lab
from muslin.lab.processes import running_tunnels
from muslin.lab.state import LabState
from muslin.lab.topology import full_name_of
from muslin.model.kernel import TABLE_MAIN, Address, Link, Route, Veth
from muslin.model.ops import describe_all
from muslin.model.state import Snapshot


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


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace of the lab: a segment, router, node or container."""

    name: str
    role: Literal["segment", "router", "node", "container"]
    netns: str
    links: tuple[LinkView, ...]
    routes: tuple[str, ...]
    tunnel_pid: int | None = None


class LabView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole lab. ``drift`` lists the commands that would make it what it should be."""

    schema: Literal["muslin.lab-inspect/v1"] = "muslin.lab-inspect/v1"
    name: str
    step: int | None
    backend: str
    complete: bool
    rootless: bool
    places: tuple[PlaceView, ...]
    drift: tuple[str, ...]


def inspect(kernel: Kernel, state: LabState, only: str | None = None) -> LabView:
    """Read the lab from the kernel; ``only`` one place of it, drift included for all."""
    lab_plan = plan_lab(state.name, state.topology)
    places = [(role, name) for role, name in _places(state) if only in (None, name)]
    names = tuple(netns_of(state.name, name) for _, name in _places(state))
    observed = kernel.observe(Scope(netns=names))
    _, ops = plan_ops(kernel, lab_plan.state, state.owned)
    tunnels = {tunnel.netns: tunnel.pid for tunnel in running_tunnels(names)}
    stopped = tuple(f"start the tunnel in {tunnel.netns}" for tunnel in lab_plan.tunnels if tunnel.netns not in tunnels)
    return LabView(
        name=state.name,
        step=state.topology.step,
        backend=state.topology.backend,
        complete=state.complete,
        rootless=state.keeper is not None,
        places=tuple(_place_view(state, observed, role, name, tunnels) for role, name in places),
        drift=(*describe_all(ops), *stopped),
    )


def _places(state: LabState) -> Iterator[tuple[Literal["segment", "router", "node", "container"], str]]:
    for segment in state.topology.segments:
        yield "segment", segment.name
    for router in state.topology.routers:
        yield "router", router.name
    for node in state.topology.nodes:
        yield "node", node.name
        for container in node.containers:
            yield "container", full_name_of(node, container)


def _place_view(
    state: LabState,
    observed: Snapshot,
    role: Literal["segment", "router", "node", "container"],
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
