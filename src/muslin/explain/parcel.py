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
from muslin.explain.path import Cause, Drop, Hop, RouteChoice
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


def lost(sight: Sight, link: LinkRecord, found: Delivery) -> Drop:
    """The drop of a frame that reached nobody."""
    at = found.at or Port(sight.netns, link.name)
    down = found.problem.endswith("is down")
    mend = f"ip link set {at.link} up" if down else ""
    sentence = f"the frame leaves {sight.netns} by {link.name} and reaches nobody: {found.problem} ({at.netns})"
    return Drop(
        cause="link-down" if down else "lost-frame",
        netns=at.netns,
        object=f"link {at.link}",
        sentence=sentence,
        mend=mend,
    )


def unanswered(network: Network, sight: Sight, link: LinkRecord, next_hop: str, hop: Hop, probe: Delivery) -> Drop:
    """Nobody answers for the next hop: something between here and its holder, or an address that nobody has."""
    if probe.problem.endswith("is down"):
        return lost(sight, link, probe)
    holder = next((one for one in network.values() if next_hop in one.local_addresses), None)
    if holder is not None and holder.netns != sight.netns and (found := cut_off(network, holder, next_hop)):
        return found
    where = f"{holder.netns} has it, and is not on this layer-2 network" if holder else "nobody has it"
    sentence = f"nobody on the layer-2 network of {link.name} in {sight.netns} answers for {next_hop}: {where}"
    by_route = hop.route is not None and holder is not None and next_hop == hop.destination
    place = f"route {hop.route.text}" if hop.route and by_route else f"neighbour {next_hop}"
    return Drop(cause="no-neighbour", netns=sight.netns, object=place, sentence=sentence, told="ICMP: host unreachable")


def cut_off(network: Network, holder: Sight, address: str) -> Drop | None:
    """What cuts the holder of an address off: its link, the other end, or that this is no port of a bridge."""
    link = holder.link(holder.local_addresses[address])
    far = far_end(network, holder, link) if link else None
    ends: list[tuple[Sight, LinkRecord | None]] = [(holder, link)]
    ends += [(network[far.netns], network[far.netns].link(far.link))] if far else []
    who = f"nobody answers for {address}: {holder.netns} has it"
    for sight, end in ends:
        if end is not None and not end.up:
            sentence = f"{who}, and {end.name} of {sight.netns} is down"
            mend = f"ip link set {end.name} up"
            return Drop(cause="link-down", netns=sight.netns, object=f"link {end.name}", sentence=sentence, mend=mend)
    if far is None:
        return None
    sight, end = ends[-1]
    bridge = next((one for one in sight.links if one.kind == "bridge"), None)
    if end is None or bridge is None or end.master_ifindex or sight.addresses_on(end.name):
        return None
    sentence = f"{who}, and the other end of its cable, {end.name} of {sight.netns}, is no port of a bridge"
    mend = f"ip link set {end.name} master {bridge.name}"
    return Drop(cause="unplugged", netns=sight.netns, object=f"link {end.name}", sentence=sentence, mend=mend)
