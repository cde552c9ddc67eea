"""What a walk carries along: the packet, what NAT did to it, and how a hop grows and ends.

Theory of operation: a ``Parcel`` is the packet as it is at one moment; a walk replaces it where a router or NAT changes
it. A hop is made when a namespace gets the packet and grows with each question; ``stopped`` ends the walk with the hop
that says why.
"""

from __future__ import annotations

import msgspec

from muslin.explain.filter import Packet
from muslin.explain.frames import Delivery, Network, Port, far_end
from muslin.explain.lookup import Answer, why
from muslin.explain.path import Cause, Drop, Hop, Piece, RouteChoice
from muslin.explain.types import protocol_name, route_text, table_name, type_of
from muslin.model.address import family_of
from muslin.wire.rtnetlink import LinkRecord
from muslin.wire.sight import Sight


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """The packet on its way. ``source`` is empty until its namespace has chosen one."""

    destination: str
    source: str = ""
    protocol: str = "icmp"
    port: int | None = None
    ttl: int = 64
    size_bytes: int = 84
    fixed_size: bool = True
    """Whether it must not be cut: IPv4's DF, and always in IPv6."""
    reply: bool = False
    spoiled: Drop | None = None
    """Why whoever takes it will not find its checksum right."""
    pieces: tuple[Piece, ...] = ()
    """The fragments that it is cut into; none while it is whole."""

    @property
    def all_pieces(self) -> tuple[Piece, ...]:
        """Its fragments, or the whole as the only one."""
        return self.pieces or (Piece(size_bytes=self.size_bytes),)

    @property
    def packet(self) -> Packet:
        """As a packet filter sees it."""
        six = family_of(self.destination) == 6
        return Packet(
            source=self.source,
            destination=self.destination,
            protocol="icmpv6" if six and self.protocol == "icmp" else self.protocol,
            source_port=self.port if self.reply else None,
            destination_port=None if self.reply else self.port,
            ttl=self.ttl,
            size_bytes=self.size_bytes,
            reply=self.reply,
        )


class Translation(msgspec.Struct, frozen=True):
    """An address that a namespace put in place of another: ``part`` is source or destination of the request."""

    netns: str
    part: str
    before: str
    after: str


class DroppedError(Exception):
    """The walk is over: carries the hop that says why."""

    def __init__(self, hop: Hop) -> None:
        super().__init__()
        self.hop = hop


def link_of(answer: Answer) -> str:
    """The link that the answer leads to, empty for none."""
    return answer.way.link if answer.way else ""


def with_route(hop: Hop, sight: Sight, answer: Answer, parcel: Parcel) -> Hop:
    """The hop with the route that was chosen."""
    assert answer.chosen is not None
    route = answer.chosen.route
    choice = RouteChoice(
        type=type_of(route),
        text=route_text(sight, route),
        destination=route.destination,
        table=table_name(route.table),
        metric=route.metric,
        protocol=protocol_name(route.protocol),
        rule=answer.chosen.rule.priority,
        why=why(sight, answer),
        via=answer.way.via if answer.way else None,
        link=link_of(answer),
    )
    return msgspec.structs.replace(hop, route=choice, source=parcel.source)


def checked(hop: Hop, words: str) -> Hop:
    """The hop with one more answer of a setting or the packet filter."""
    return msgspec.structs.replace(hop, checks=(*hop.checks, words)) if words else hop


def noted(hop: Hop, words: str) -> Hop:
    """The hop with one more remark."""
    return msgspec.structs.replace(hop, notes=(*hop.notes, words))


def stopped(hop: Hop, drop: Drop) -> DroppedError:
    """The end of the walk, in this hop, for this reason."""
    return DroppedError(msgspec.structs.replace(hop, act="drops", drop=drop))


def stopped_by(
    hop: Hop, cause: Cause, sight: Sight, what: str, sentence: str, mend: str = "", told: str = ""
) -> DroppedError:
    """The same, with a reason that is made here."""
    return stopped(hop, Drop(cause=cause, netns=sight.netns, object=what, sentence=sentence, mend=mend, told=told))


def lost(network: Network, sight: Sight, link: LinkRecord, next_hop: str, found: Delivery) -> Drop:
    """The drop of a frame that reached nobody: a cable at either end that leads nowhere, or what the bridge says."""
    down = found.problem.endswith("is down")
    if not down and (cause := cut_off(network, sight, link, next_hop)):
        return cause
    at = found.at or Port(sight.netns, link.name)
    mend = f"ip link set {at.link} up" if down else ""
    sentence = f"the frame leaves {sight.netns} by {link.name} and reaches nobody: {found.problem} ({at.netns})"
    cause_name: Cause = "link-down" if down else "lost-frame"
    return Drop(cause=cause_name, netns=at.netns, object=f"link {at.link}", sentence=sentence, mend=mend)


def unanswered(network: Network, sight: Sight, link: LinkRecord, next_hop: str, hop: Hop, probe: Delivery) -> Drop:
    """Nobody answers for the next hop: something between here and its holder, or an address that nobody has."""
    if probe.problem.endswith("is down"):
        return lost(network, sight, link, next_hop, probe)
    if cause := cut_off(network, sight, link, next_hop):
        return cause
    holder = _holder(network, next_hop)
    where = f"{holder.netns} has it, and is not on this layer-2 network" if holder else "nobody has it"
    by_route = hop.route is not None and holder is not None and next_hop == hop.destination
    if by_route and hop.route:
        where += f", though the route {hop.route.text} says so"
    sentence = f"nobody on the layer-2 network of {link.name} in {sight.netns} answers for {next_hop}: {where}"
    place = f"route {hop.route.text}" if hop.route and by_route else f"neighbour {next_hop}"
    return Drop(cause="no-neighbour", netns=sight.netns, object=place, sentence=sentence, told="ICMP: host unreachable")


def _holder(network: Network, address: str) -> Sight | None:
    sights = (network.get(name) for name in network)  # on a host, one may go while we look
    return next((one for one in sights if one is not None and address in one.local_addresses), None)


def cut_off(network: Network, sight: Sight, link: LinkRecord, next_hop: str) -> Drop | None:
    """What cuts us, or the holder of the next hop, off: a link, its other end, or that this is no port of a bridge."""
    holder = _holder(network, next_hop)
    cables = [(sight, link, f"{link.name} of {sight.netns} reaches nobody")]
    if holder is not None and holder.netns != sight.netns:
        far_link = holder.link(holder.local_addresses[next_hop])
        if far_link is not None:
            cables.append((holder, far_link, f"nobody answers for {next_hop}: {holder.netns} has it"))
    found = (_broken_cable(network, *cable) for cable in cables)
    return next((drop for drop in found if drop), None)


def _broken_cable(network: Network, sight: Sight, link: LinkRecord, who: str) -> Drop | None:
    far = far_end(network, sight, link)
    far_sight = network[far.netns] if far else None
    end = far_sight.link(far.link) if far_sight and far else None
    for place, one in ((sight, link), (far_sight, end)):
        if place is not None and one is not None and not one.up:
            sentence = f"{who}, and {one.name} of {place.netns} is down"
            mend = f"ip link set {one.name} up"
            return Drop(cause="link-down", netns=place.netns, object=f"link {one.name}", sentence=sentence, mend=mend)
    if far_sight is None or end is None or end.master_ifindex:
        return None
    if any(not one.address.startswith("fe80") for one in far_sight.addresses_on(end.name)):
        return None
    bridge = next((one for one in far_sight.links if one.kind == "bridge"), None)
    if bridge is None:
        return None
    sentence = f"{who}, and the other end of the cable, {end.name} of {far_sight.netns}, is no port of a bridge"
    mend = f"ip link set {end.name} master {bridge.name}"
    return Drop(cause="unplugged", netns=far_sight.netns, object=f"link {end.name}", sentence=sentence, mend=mend)
