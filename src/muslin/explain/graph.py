"""A network as boxes and lines: what was seen, ready to be drawn.

Theory of operation: each namespace is a box with its links and addresses; each veth between two namespaces is a cable;
each tunnel end that a namespace knows (a vxlan forwarding entry, a peer of a TUN program) is a tunnel to whoever has
that underlay address. All of it is observed, so a cable that is down or a bridge port that is not plugged in shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from muslin.explain.carry import split_endpoint
from muslin.explain.frames import Network, far_end, master_of
from muslin.wire.sight import Sight

Role = Literal["segment", "router", "store", "node", "container"]


class LinkBox(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A link of a box; ``master`` is the bridge that it is a port of."""

    name: str
    up: bool
    kind: str = ""
    master: str = ""
    addresses: tuple[str, ...] = ()


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace."""

    name: str
    role: Role
    links: tuple[LinkBox, ...]


class Cable(msgspec.Struct, frozen=True, kw_only=True):
    """A veth between two boxes; ``up`` when both ends are."""

    near: str
    near_link: str
    far: str
    far_link: str
    up: bool


class TunnelLine(msgspec.Struct, frozen=True, kw_only=True):
    """That ``near`` sends packets to ``far`` inside of others, by this device."""

    near: str
    far: str
    kind: str
    link: str


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What ``graph -o json`` prints."""

    schema: Literal["muslin.graph/v1"] = "muslin.graph/v1"
    boxes: tuple[Box, ...]
    cables: tuple[Cable, ...]
    tunnels: tuple[TunnelLine, ...] = ()

    def box(self, name: str) -> Box:
        """The box of this name."""
        return next(box for box in self.boxes if box.name == name)

    def cables_of(self, name: str) -> list[Cable]:
        """The cables of a box, each seen from it."""
        found = []
        for one in self.cables:
            if one.near == name:
                found.append(one)
            elif one.far == name:
                turned = Cable(near=one.far, near_link=one.far_link, far=one.near, far_link=one.near_link, up=one.up)
                found.append(turned)
        return found


def graph_of(network: Network, roles: Mapping[str, Role]) -> Graph:
    """All that was seen, as boxes and lines."""
    return Graph(
        boxes=tuple(_box(network[name], roles.get(name, "node")) for name in network),
        cables=tuple(_cables(network)),
        tunnels=tuple(dict.fromkeys(line for name in network for line in _tunnels(network, network[name]))),
    )


def _box(sight: Sight, role: Role) -> Box:
    links = []
    for link in sight.links:
        if link.name == "lo":
            continue
        master = master_of(sight, link)
        own = tuple(one.address for one in sight.addresses_on(link.name) if not one.address.startswith("fe80"))
        links.append(
            LinkBox(name=link.name, up=link.up, kind=link.kind, master=master.name if master else "", addresses=own)
        )
    return Box(name=sight.netns, role=role, links=tuple(links))


def _cables(network: Network) -> Iterator[Cable]:
    seen: set[frozenset[tuple[str, str]]] = set()
    for name in network:
        sight = network[name]
        for link in sight.links:
            far = far_end(network, sight, link)
            if far is None or far.netns == name:
                continue
            ends = frozenset({(name, link.name), (far.netns, far.link)})
            if ends not in seen:
                seen.add(ends)
                other = network[far.netns].link(far.link)
                up = link.up and other is not None and other.up
                yield Cable(near=name, near_link=link.name, far=far.netns, far_link=far.link, up=up)


def _tunnels(network: Network, sight: Sight) -> Iterator[TunnelLine]:
    for entry in sight.fdb:
        link = sight.link_at(entry.ifindex)
        holder = _holder(network, entry.destination or "")
        if link is not None and link.vxlan is not None and holder:
            yield TunnelLine(near=sight.netns, far=holder, kind="vxlan", link=link.name)
    for program in sight.tunnels:
        for _, endpoint in program.peers:
            holder = _holder(network, split_endpoint(endpoint)[0])
            if holder:
                yield TunnelLine(near=sight.netns, far=holder, kind="udp", link=program.device)


def _holder(network: Network, address: str) -> str:
    return next((name for name in network if address and address in network[name].local_addresses), "")
