"""Layer 2: from a link and a MAC to the namespace that takes the frame, across cables and bridges.

Theory of operation: a frame that leaves a veth arrives at its other end. If that is a port of a bridge, the bridge
takes the frame itself when the MAC is its own; else it sends it by the port that its forwarding table (FDB) names, and
by every port when the table does not know the MAC. ``follow`` walks this with the tables that were observed and finds
who takes the frame. ``owners`` asks the same of an address: who on this layer-2 network would answer an ARP request or
neighbour solicitation for it. What lies beyond a link whose other end was not seen is ``outside``.

Not handled: VLANs, spanning tree, isolated ports; a vxlan device that is a bridge's port.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from muslin.model.address import family_of
from muslin.wire.rtnetlink import FdbRecord, LinkRecord, NeighbourRecord
from muslin.wire.sight import Sight

Network = Mapping[str, Sight]
"""Namespaces by name."""

# linux/neighbour.h NUD_*
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
STATE_NAMES = {
    INCOMPLETE: "incomplete", FAILED: "failed",
    REACHABLE: "reachable", STALE: "stale", DELAY: "delay", PROBE: "probe", NOARP: "noarp", PERMANENT: "permanent",
}  # fmt: skip
UNANSWERED = INCOMPLETE | FAILED
USABLE = REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT


class Port(msgspec.Struct, frozen=True):
    """A link in a namespace."""

    netns: str
    link: str


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge that a frame crosses. ``entered`` is empty for a frame of the bridge's own."""

    netns: str
    bridge: str
    entered: str
    left: str
    decision: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Who takes a frame: ``receiver`` None for nobody, and ``problem`` then says why, ``at`` which link of whom.

    ``port`` is the bridge port that it came in by where the receiver is a bridge.
    """

    crossings: tuple[Crossing, ...] = ()
    receiver: Port | None = None
    port: str = ""
    problem: str = ""
    at: Port | None = None
    outside: bool = False


def far_end(network: Network, sight: Sight, link: LinkRecord) -> Port | None:
    """The other end of a veth; None where it lies in a namespace that was not looked at."""
    if link.kind != "veth" or not link.peer_ifindex:
        return None
    netns = sight.netns if link.link_netnsid is None else sight.netns_ids.get(link.link_netnsid)
    other = network.get(netns) if netns is not None else None
    record = other.link_at(link.peer_ifindex) if other else None
    return Port(other.netns, record.name) if other and record else None


def ports_of(sight: Sight, bridge: LinkRecord) -> Iterator[LinkRecord]:
    """The ports of a bridge."""
    return (link for link in sight.links if link.master_ifindex == bridge.ifindex)


def master_of(sight: Sight, link: LinkRecord) -> LinkRecord | None:
    """The bridge that a link is a port of."""
    return sight.link_at(link.master_ifindex) if link.master_ifindex else None


def fdb_port(sight: Sight, bridge: LinkRecord, mac: str) -> FdbRecord | None:
    """Where a bridge's table says that a MAC is; None where it does not know."""
    return next((one for one in sight.fdb if one.master_ifindex == bridge.ifindex and one.mac == mac), None)


def follow(network: Network, netns: str, link: str, mac: str) -> Delivery:
    """Who takes a frame for ``mac`` that leaves by this link."""
    sight = network[netns]
    record = sight.link(link)
    if record is None:
        return Delivery(problem=f"there is no {link} in {netns}", at=Port(netns, link))
    return _leave(network, sight, record, mac, frozenset())


def _leave(network: Network, sight: Sight, link: LinkRecord, mac: str, seen: frozenset[tuple[str, str]]) -> Delivery:
    here = Port(sight.netns, link.name)
    if not link.up:
        return Delivery(problem=f"{link.name} is down", at=here)
    if link.kind == "bridge":
        return _switch(network, sight, link, None, mac, seen)
    if link.kind != "veth":
        return Delivery(outside=True, at=here)
    other = far_end(network, sight, link)
    if other is None:
        return Delivery(outside=True, at=here)
    far_sight = network[other.netns]
    far_link = far_sight.link(other.link)
    assert far_link is not None
    if not far_link.up:
        return Delivery(problem=f"{far_link.name}, the other end of {link.name}, is down", at=other)
    return _arrive(network, far_sight, far_link, mac, seen)


def _arrive(network: Network, sight: Sight, link: LinkRecord, mac: str, seen: frozenset[tuple[str, str]]) -> Delivery:
    bridge = master_of(sight, link)
    if bridge is not None:
        if (sight.netns, bridge.name) in seen:  # a loop of bridges
            return Delivery(problem=f"the frame came back to {bridge.name}", at=Port(sight.netns, bridge.name))
        return _switch(network, sight, bridge, link, mac, seen | {(sight.netns, bridge.name)})
    if link.mac == mac:
        return Delivery(receiver=Port(sight.netns, link.name))
    return Delivery(
        problem=f"{link.name} has the MAC {link.mac} and does not take frames for {mac}",
        at=Port(sight.netns, link.name),
    )


def _switch(
    network: Network,
    sight: Sight,
    bridge: LinkRecord,
    entered: LinkRecord | None,
    mac: str,
    seen: frozenset[tuple[str, str]],
) -> Delivery:
    place = Port(sight.netns, bridge.name)
    if not bridge.up:
        return Delivery(problem=f"{bridge.name} is down", at=place)
    own = {bridge.mac, *(port.mac for port in ports_of(sight, bridge))}
    if entered is not None and mac in own:
        return Delivery(receiver=place, port=entered.name)
    known = fdb_port(sight, bridge, mac)
    ports = [port for port in ports_of(sight, bridge) if port is not entered and port.up]
    decision = "does not know the MAC: sends it by every port"
    if known is not None and (only := sight.link_at(known.ifindex)) in ports:
        ports, decision = [port for port in ports if port is only], "knows the MAC behind this port"
    failures = []
    for port in ports:
        found = _leave(network, sight, port, mac, seen | {(sight.netns, bridge.name)})
        if found.receiver is not None:
            crossing = Crossing(
                netns=sight.netns,
                bridge=bridge.name,
                entered=entered.name if entered else "",
                left=port.name,
                decision=decision,
            )
            return msgspec.structs.replace(found, crossings=(crossing, *found.crossings))
        failures.append(found)
    return _nobody(sight, bridge, mac, known, failures)


def _nobody(sight: Sight, bridge: LinkRecord, mac: str, known: FdbRecord | None, failures: list[Delivery]) -> Delivery:
    place = Port(sight.netns, bridge.name)
    if known is not None and failures:
        return failures[0]
    outside = next((one for one in failures if one.outside), None)
    return outside or Delivery(problem=f"no port of {bridge.name} leads to the MAC {mac}", at=place)


def segment(network: Network, netns: str, link: str) -> list[Port]:
    """Every link with a layer 3 that frames from this one reach, as far as cables and bridges are up; itself not."""
    start = network[netns].link(link)
    found: list[Port] = []
    seen: set[tuple[str, str]] = {(netns, link)}
    queue = [(network[netns], start)] if start is not None and start.up else []
    while queue:
        sight, record = queue.pop()
        for port in _adjacent(network, sight, record):
            if (port.netns, port.link) in seen:
                continue
            seen.add((port.netns, port.link))
            far_sight = network[port.netns]
            far = far_sight.link(port.link)
            if far is None or not far.up:
                continue
            bridge = master_of(far_sight, far)
            if bridge is None or far.kind == "bridge":
                found.append(port)
            if bridge is not None or far.kind == "bridge":
                queue.append((far_sight, far))
    return found


def _adjacent(network: Network, sight: Sight, link: LinkRecord) -> Iterator[Port]:
    """The far end of a cable, the other ports of a bridge that is up, and the bridge itself."""
    other = far_end(network, sight, link)
    if other is not None:
        yield other
    bridge = link if link.kind == "bridge" else master_of(sight, link)
    if bridge is not None and bridge.up:
        yield Port(sight.netns, bridge.name)
        yield from (Port(sight.netns, port.name) for port in ports_of(sight, bridge) if port.up)


def owners(network: Network, netns: str, link: str, address: str) -> list[tuple[Port, str]]:
    """(link, MAC) of everybody on this layer-2 network who answers for an address, an own namespace excepted."""
    found = []
    for port in segment(network, netns, link):
        sight = network[port.netns]
        if port.netns != netns and _answers(sight, port.link, address):
            record = sight.link(port.link)
            found.append((port, record.mac if record else ""))
    return found


def _answers(sight: Sight, link: str, address: str) -> bool:
    """IPv4 answers on any link for any own address unless arp_ignore says otherwise; IPv6 on the address's own."""
    on_link = any(one.address.partition("/")[0] == address for one in sight.addresses_on(link))
    # Settings are asked last: to read one, a namespace has to be entered, and most here have nothing to do with it.
    if family_of(address) == 6 or on_link or address not in sight.local_addresses:
        return on_link
    ignore = max(sight.sysctl("net/ipv4/conf/all/arp_ignore"), sight.sysctl(f"net/ipv4/conf/{link}/arp_ignore"))
    return ignore == 0


def neighbour_of(sight: Sight, link: str, address: str) -> NeighbourRecord | None:
    """What the neighbour table has for an address on a link, if it is of use."""
    record = sight.link(link)
    return next(
        (
            one
            for one in sight.neighbours
            if record is not None and one.ifindex == record.ifindex and one.address == address and one.state & USABLE
        ),
        None,
    )


def state_name(state: int) -> str:
    """``reachable`` of NUD_REACHABLE."""
    return next((name for bit, name in STATE_NAMES.items() if state & bit), "unknown")
