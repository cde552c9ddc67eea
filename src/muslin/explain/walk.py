"""Walk a packet through namespaces, asking at each what its kernel would ask, in its order.

Theory of operation: a packet of a namespace's own is routed, gets a source address, passes output and postrouting, and
leaves. One that arrives passes ingress and prerouting, is routed with the link that it came by, passes the reverse path
filter, and is then either for this namespace (input) or forwarded: setting, TTL, size, forward, postrouting. Leaving
means a next hop, its MAC, and a frame that cables and bridges carry (``explain.frames``), or another packet around this
one (``explain.carry``), whose own way is a walk of the same kind. Every question leaves its answer in the hop; the
first refusal ends the walk with a ``Drop``.

The answer's way is a walk too, from the namespace that took the packet. What NAT did to the request, connection
tracking undoes: a walk notes each translation, and the walk of the answer is given them.

Not handled: multicast, what programs of others do behind TUN devices, IPsec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muslin.explain import carry, judge
from muslin.explain.filter import Finding, Hook, ask
from muslin.explain.fragments import carried, cut
from muslin.explain.frames import Delivery, Network, Port, follow, neighbour_of, owners, state_name
from muslin.explain.lookup import Answer, Query, lookup, why
from muslin.explain.mend import way_to
from muslin.explain.parcel import (
    DroppedError,
    Parcel,
    Translation,
    checked,
    link_of,
    lost,
    noted,
    stopped,
    stopped_by,
    unanswered,
    with_route,
)
from muslin.explain.path import Carriage, Cause, Drop, Hop, Path
from muslin.explain.source import source_of
from muslin.model.address import family_of
from muslin.wire.rtnetlink import LinkRecord
from muslin.wire.sight import Sight

MAX_HOPS = 80


class Walk:
    """One packet's way. ``hops`` grows; ``taken_by`` and ``parcel`` say how it ended."""

    def __init__(
        self, network: Network, translations: tuple[Translation, ...] = (), expected: str | None = None, depth: int = 0
    ) -> None:
        self.network = network
        self.hops: list[Hop] = []
        self.translations: list[Translation] = []
        self.nat: list[Drop] = []
        self.taken_by: str | None = None
        self.parcel = Parcel(destination="")
        self._undo = translations
        self._expected = expected
        self._depth = depth
        self._seen: set[tuple[str, str, str, str]] = set()

    # ---- the two ways to begin -----------------------------------------------------------------------------

    def start(self, netns: str, parcel: Parcel, oif: str = "") -> None:
        """Send ``parcel`` out of a namespace, and follow it to its end."""
        try:
            self._send(self.network[netns], parcel, oif)
        except DroppedError as end:
            self.hops.append(end.hop)

    def _send(self, sight: Sight, parcel: Parcel, oif: str) -> None:
        self.parcel = parcel
        hop = Hop(
            netns=sight.netns,
            act="sends",
            source=parcel.source,
            destination=parcel.destination,
            ttl_out=parcel.ttl,
            size_bytes=parcel.size_bytes,
        )
        answer, parcel = self._route_own(sight, parcel, oif, hop)
        hop = with_route(hop, sight, answer, parcel)
        if answer.is_local:
            self._take_own(sight, parcel, hop)
            return
        hop, parcel = self._filter(sight, "output", parcel, hop, oif=link_of(answer))
        link = self._out_link(sight, answer, hop)
        mtu = judge.mtu_of(sight, link, answer, parcel.destination, own=True)
        hop, parcel = self._fit(sight, parcel, link, mtu, hop, own=True)
        self._leave(sight, parcel, answer, link, hop)

    def _route_own(self, sight: Sight, parcel: Parcel, oif: str, hop: Hop) -> tuple[Answer, Parcel]:
        """The route and the source; a second look with the source, as a connected socket does it."""
        answer = lookup(sight, Query(destination=parcel.destination, source=parcel.source or None, oif=oif))
        source = parcel.source or source_of(sight, answer)
        if answer.chosen is None or answer.refused:
            raise self._no_route(sight, answer, hop)
        if source is None:
            sentence = f"{sight.netns} has no address of its own that it could put on the packet as source"
            raise stopped_by(hop, "no-source", sight, "addresses", sentence)
        if not parcel.source and any(rule.source for rule in sight.rules):
            answer = lookup(sight, Query(destination=parcel.destination, source=source, oif=oif))
            if answer.chosen is None or answer.refused:
                raise self._no_route(sight, answer, hop)
        self.parcel = msgspec.structs.replace(parcel, source=source)
        return answer, self.parcel

    def _take_own(self, sight: Sight, parcel: Parcel, hop: Hop) -> None:
        """A packet to an own address goes through lo, whichever link has that address."""
        lo = sight.link("lo")
        if lo is None or not lo.up:
            raise stopped_by(hop, "link-down", sight, "link lo", f"lo of {sight.netns} is down", "ip link set lo up")
        hop, parcel = self._filter(sight, "output", parcel, hop, oif="lo")
        hop, parcel = self._filter(sight, "input", parcel, hop, iif="lo")
        self._take(sight, parcel, msgspec.structs.replace(hop, act="takes", entered="lo", ttl_in=parcel.ttl))

    def arrive(self, port: Port, parcel: Parcel, bridge_port: str = "") -> None:
        """A packet comes in by a link."""
        sight = self.network[port.netns]
        if len(self.hops) > MAX_HOPS:
            raise stopped_by(
                self._hop_in(sight, port.link, bridge_port, parcel), "loop", sight, "routes", "too many hops"
            )
        hop = self._hop_in(sight, port.link, bridge_port, parcel)
        hop, parcel = self._filter(sight, "ingress", parcel, hop, iif=bridge_port or port.link)
        hop, parcel = self._filter(sight, "prerouting", parcel, hop, iif=port.link)
        hop, parcel = self._track(sight, "destination", parcel, hop)
        answer = lookup(sight, Query(destination=parcel.destination, source=parcel.source, iif=port.link))
        hop = with_route(hop, sight, answer, parcel) if answer.chosen else hop
        onward = "" if answer.is_local else link_of(answer)
        words, drop = judge.reverse_path(sight, port.link, parcel.source, parcel.destination, onward)
        hop = checked(hop, words)
        if drop is not None and (answer.chosen is not None or drop.cause == "martian"):
            raise stopped(hop, drop)
        if answer.is_local:
            hop, parcel = self._filter(sight, "input", parcel, hop, iif=port.link)
            self._take(sight, parcel, msgspec.structs.replace(hop, act="takes"))
            return
        self._forward(sight, port.link, parcel, answer, hop)

    def _hop_in(self, sight: Sight, link: str, bridge_port: str, parcel: Parcel) -> Hop:
        return Hop(
            netns=sight.netns,
            act="forwards",
            source=parcel.source,
            destination=parcel.destination,
            entered=link,
            port_in=bridge_port,
            ttl_in=parcel.ttl,
            size_bytes=parcel.size_bytes,
            pieces_in=parcel.pieces,
        )

    def _forward(self, sight: Sight, iif: str, parcel: Parcel, answer: Answer, hop: Hop) -> None:
        if drop := judge.forwarding(sight, iif, parcel.destination):
            raise stopped(hop, drop)
        hop = checked(hop, "forwarding is on")
        if answer.chosen is None or answer.refused:
            raise self._no_route(sight, answer, hop, told="ICMP: destination unreachable")
        mark = (sight.netns, iif, parcel.source, parcel.destination)
        if mark in self._seen:
            sentence = f"{sight.netns} gets the packet a second time: a routing loop, until the TTL is used up"
            raise stopped_by(hop, "loop", sight, f"route {hop.route.text if hop.route else ''}", sentence)
        self._seen.add(mark)
        if parcel.ttl <= 1:
            sentence = f"{sight.netns} would have to take the TTL from {parcel.ttl} to 0"
            raise stopped_by(hop, "ttl-exceeded", sight, "ttl", sentence, told="ICMP: time exceeded")
        link = self._out_link(sight, answer, hop)
        mtu = judge.mtu_of(sight, link, answer, parcel.destination, own=False)
        hop, parcel = self._fit(sight, parcel, link, mtu, hop, own=False)
        parcel = msgspec.structs.replace(parcel, ttl=parcel.ttl - 1)
        hop = msgspec.structs.replace(hop, ttl_out=parcel.ttl)
        hop, parcel = self._filter(sight, "forward", parcel, hop, iif=iif, oif=link.name)
        self._leave(sight, parcel, answer, link, hop)

    def _take(self, sight: Sight, parcel: Parcel, hop: Hop) -> None:
        if self._depth == 0 and self._expected not in (None, sight.netns):
            sentence = (
                f"{parcel.destination} is also an address of {sight.netns}, which took the packet for {self._expected}"
            )
            raise stopped_by(hop, "not-here", sight, f"address {parcel.destination}", sentence)
        if parcel.spoiled:
            sentence = f"{parcel.spoiled.sentence}, so that {sight.netns} drops it"
            raise stopped(hop, msgspec.structs.replace(parcel.spoiled, sentence=sentence, lost_in=sight.netns))
        ignores = sight.sysctl("net/ipv4/icmp_echo_ignore_all")
        if ignores and parcel.protocol == "icmp" and not parcel.reply and family_of(parcel.destination) == 4:
            sentence = f"{sight.netns} is told to ignore pings (net.ipv4.icmp_echo_ignore_all=1)"
            mend = "sysctl -w net.ipv4.icmp_echo_ignore_all=0"
            raise stopped_by(hop, "ping-ignored", sight, "sysctl net.ipv4.icmp_echo_ignore_all", sentence, mend)
        self.hops.append(hop)
        self.taken_by, self.parcel = sight.netns, parcel

    # ---- leaving ------------------------------------------------------------------------------------------

    def _out_link(self, sight: Sight, answer: Answer, hop: Hop) -> LinkRecord:
        name = link_of(answer)
        link = sight.link(name)
        if link is None or not link.up:
            sentence = f"{name or 'the link'} of {sight.netns} is down"
            raise stopped_by(hop, "link-down", sight, f"link {name}", sentence, f"ip link set {name} up")
        return link

    def _fit(
        self, sight: Sight, parcel: Parcel, link: LinkRecord, mtu: int, hop: Hop, *, own: bool
    ) -> tuple[Hop, Parcel]:
        hop = msgspec.structs.replace(hop, left=link.name, mtu=mtu, pieces_out=parcel.pieces)
        longest = max(piece.size_bytes for piece in parcel.all_pieces)
        family = family_of(parcel.destination)
        if longest <= mtu:
            return hop, parcel
        if parcel.fixed_size or (family == 6 and not own):
            drop = judge.too_big(sight, link.name, longest, mtu)
            raise stopped(hop, drop if own else judge.unheard(sight, drop, parcel.packet))
        pieces = cut(parcel.all_pieces, mtu, family)
        hop = noted(hop, f"{longest} bytes are more than the MTU of {mtu}: goes in {len(pieces)} fragments")
        return msgspec.structs.replace(hop, pieces_out=pieces), msgspec.structs.replace(parcel, pieces=pieces)

    def _leave(self, sight: Sight, parcel: Parcel, answer: Answer, link: LinkRecord, hop: Hop) -> None:
        hop, parcel = self._filter(sight, "postrouting", parcel, hop, oif=link.name, answer=answer)
        hop, parcel = self._track(sight, "source", parcel, hop)
        via = answer.way.via if answer.way else None
        own_gateway = via is not None and via in sight.local_addresses
        next_hop = parcel.destination if via is None or own_gateway else via
        ends = (parcel.source, parcel.destination)
        hop = msgspec.structs.replace(
            hop, next_hop=next_hop, left_as=ends if ends != (hop.source, hop.destination) else None
        )
        if own_gateway:
            hop = noted(
                hop, f"the gateway {via} is an own address: {parcel.destination} is asked for on the link itself"
            )
        if link.vxlan is not None:
            self._into_vxlan(sight, link, next_hop, parcel, hop)
        elif link.kind == "tun" and link.tun_type != "tap":
            self._into_tun(sight, link, parcel, hop)
        else:
            self._onto_link(sight, link, next_hop, parcel, hop)

    def _onto_link(self, sight: Sight, link: LinkRecord, next_hop: str, parcel: Parcel, hop: Hop) -> None:
        mac, hop = self._resolve(sight, link, next_hop, parcel.source, hop)
        found = follow(self.network, sight.netns, link.name, mac) if mac else Delivery(outside=True)
        if found.outside:
            self.hops.append(noted(hop, f"{link.name} leads out of what was looked at"))
            return
        crossings = list(found.crossings)
        if crossings and crossings[0].netns == sight.netns and crossings[0].bridge == link.name:
            first = crossings.pop(0)
            hop = msgspec.structs.replace(hop, port_out=first.left)
        if found.receiver is None:
            raise stopped(hop, lost(self.network, sight, link, next_hop, found))
        if neighbour_of(sight, link.name, next_hop) is None:
            for crossing in crossings:
                if drop := judge.unasked(self.network[crossing.netns], parcel.source, next_hop, crossing.bridge):
                    raise stopped(hop, drop)
        self.hops.append(hop)
        for crossing in crossings:
            self.hops.append(self._cross(crossing, parcel))
        self.arrive(found.receiver, parcel, found.port)

    def _cross(self, crossing: Any, parcel: Parcel) -> Hop:
        """A bridge on the way, with what its namespace's filter says where bridges show it their frames."""
        sight = self.network[crossing.netns]
        hop = Hop(
            netns=sight.netns,
            act="switches",
            source=parcel.source,
            destination=parcel.destination,
            entered=crossing.bridge,
            port_in=crossing.entered,
            left=crossing.bridge,
            port_out=crossing.left,
            ttl_in=parcel.ttl,
            ttl_out=parcel.ttl,
            size_bytes=parcel.size_bytes,
            pieces_in=parcel.pieces,
            pieces_out=parcel.pieces,
            neighbour=crossing.decision,
        )
        hop, _ = self._filter(sight, "ingress", parcel, hop, iif=crossing.entered)
        if judge.shows_filter(sight, parcel.destination):
            for hook in ("prerouting", "forward", "postrouting"):
                hop, _ = self._filter(sight, hook, parcel, hop, iif=crossing.bridge, oif=crossing.bridge)
        return hop

    def _resolve(self, sight: Sight, link: LinkRecord, next_hop: str, source: str, hop: Hop) -> tuple[str, Hop]:
        """The MAC of the next hop: from the table, or from whoever would answer; empty where that is outside."""
        holders = owners(self.network, sight.netns, link.name, next_hop)
        if len({mac for _, mac in holders}) > 1:
            names = " and ".join(sorted(port.netns for port, _ in holders))
            hop = noted(hop, f"{next_hop} is held by {names}: the packet goes to whoever answered last")
        known = neighbour_of(sight, link.name, next_hop)
        if known is not None and known.mac:
            words = f"{next_hop} is {known.mac} ({state_name(known.state)})"
            return known.mac, msgspec.structs.replace(hop, neighbour=words)
        if holders:
            port, mac = holders[0]
            if drop := judge.silent(self.network[port.netns], source, next_hop):
                raise stopped(hop, drop)
            word = "neighbour solicitation" if family_of(next_hop) == 6 else "ARP"
            return mac, msgspec.structs.replace(
                hop, neighbour=f"{next_hop} is {mac} (asked by {word}, {port.netns} answers)"
            )
        probe = follow(self.network, sight.netns, link.name, "")
        if probe.outside:
            return "", msgspec.structs.replace(hop, neighbour=f"{next_hop} has to be asked for outside")
        raise stopped(hop, unanswered(self.network, sight, link, next_hop, hop, probe))

    # ---- inside of other packets --------------------------------------------------------------------------

    def _into_vxlan(self, sight: Sight, link: LinkRecord, next_hop: str, parcel: Parcel, hop: Hop) -> None:
        mac, words, found = carry.into_vxlan(sight, link, next_hop)
        hop = msgspec.structs.replace(hop, neighbour=words)
        if isinstance(found, Drop):
            raise stopped(hop, found)
        underlay = sight.name_of(link.vxlan.device_ifindex) if link.vxlan else ""
        netns, _, hop = self._carry(sight, found, parcel, hop, underlay)
        if netns is None:
            return
        device = carry.out_of_vxlan(self.network[netns], found, mac)
        self._unpack(netns, device, parcel, hop)

    def _into_tun(self, sight: Sight, link: LinkRecord, parcel: Parcel, hop: Hop) -> None:
        found = carry.into_tun(sight, link, parcel.destination)
        if found is None:
            self.hops.append(noted(hop, f"a program that is not known holds {link.name}"))
            return
        if isinstance(found, Drop):
            raise stopped(hop, found)
        netns, outer, hop = self._carry(sight, found, parcel, hop, "")
        if netns is None:
            return
        device = carry.out_of_tunnel(self.network[netns], found, outer, parcel.source)
        self._unpack(netns, device, parcel, hop)

    def _carry(self, sight: Sight, found: Carriage, parcel: Parcel, hop: Hop, oif: str) -> tuple[str | None, str, Hop]:
        """Walk the outer packet: (who took it, its source as seen there, the hop); the hop is last if nobody did."""
        if self._depth >= 2:
            sentence = f"{sight.netns} would put a packet into a packet into a packet: a tunnel that leads into itself"
            raise stopped_by(hop, "loop", sight, f"link {hop.left}", sentence)
        outer = Walk(self.network, depth=self._depth + 1)
        packet = Parcel(
            destination=found.destination,
            source=found.source,
            protocol="udp",
            port=found.port,
            size_bytes=parcel.size_bytes + found.overhead_bytes,
            fixed_size=found.kind == "udp",
            pieces=carried(parcel.pieces, found.overhead_bytes, nested=self._depth > 0),
        )
        outer.start(sight.netns, packet, oif)
        source = found.source or outer.parcel.source
        carriage = msgspec.structs.replace(found, source=source, hops=tuple(outer.hops))
        hop = msgspec.structs.replace(hop, carried=carriage)
        if outer.taken_by is None:
            self.hops.append(hop)
        return outer.taken_by, outer.parcel.source, hop

    def _unpack(self, netns: str, device: LinkRecord | Drop, parcel: Parcel, hop: Hop) -> None:
        self.hops.append(hop)
        if isinstance(device, Drop):
            sight = self.network[netns]
            raise stopped(self._hop_in(sight, "", "", parcel), device)
        self.arrive(Port(netns, device.name), parcel)

    # ---- filter and translation ---------------------------------------------------------------------------

    def _filter(
        self,
        sight: Sight,
        hook: Hook,
        parcel: Parcel,
        hop: Hop,
        iif: str = "",
        oif: str = "",
        answer: Answer | None = None,
    ) -> tuple[Hop, Parcel]:
        found = ask(sight, hook, parcel.packet, iif, oif)
        for place in found.unsure:
            hop = noted(hop, f"cannot tell what the packet filter does here: {place.words}")
        if found.denied:
            raise stopped(hop, judge.denied(sight, hook, found.denied, found.rejects))
        if found.spoiled_by:
            parcel = msgspec.structs.replace(
                parcel, spoiled=judge.spoiled(sight, found.spoiled_by, parcel.packet.protocol)
            )
        if found.accepted_by:
            hop = checked(hop, f"nft {hook}: accepted by {found.accepted_by.words}")
        elif found.asked:
            hop = checked(hop, f"nft {hook}: no rule objects")
        return self._translate(sight, found, parcel, hop, answer)

    def _translate(
        self, sight: Sight, found: Finding, parcel: Parcel, hop: Hop, answer: Answer | None
    ) -> tuple[Hop, Parcel]:
        place = found.translated_by.words if found.translated_by else ""
        for part, after in (("source", found.source), ("destination", found.destination)):
            if not after:
                continue
            before = getattr(parcel, part)
            if after == "masquerade":
                after = (source_of(sight, answer) if answer else None) or before
            if after == before:
                continue
            self.translations.append(Translation(sight.netns, part, before, after))
            if found.translated_by:
                self.nat.append(judge.translated(sight, found.translated_by, part, before, after))
            parcel = msgspec.structs.replace(parcel, **{part: after})
            hop = noted(hop, f"NAT: {part} {before} becomes {after} ({place})")
        return hop, parcel

    def _track(self, sight: Sight, part: str, parcel: Parcel, hop: Hop) -> tuple[Hop, Parcel]:
        """Undo in an answer what NAT did to the request: its source is our destination and the other way round."""
        other = {"destination": "source", "source": "destination"}[part]
        for one in self._undo:
            if one.netns == sight.netns and one.part == other and getattr(parcel, part) == one.after:
                parcel = msgspec.structs.replace(parcel, **{part: one.before})
                hop = noted(hop, f"connection tracking: {part} {one.after} becomes {one.before} again")
        return hop, parcel

    def _no_route(self, sight: Sight, answer: Answer, hop: Hop, told: str = "") -> DroppedError:
        cause: Cause = "refusing-route" if answer.refused else "no-route"
        destination = answer.query.destination
        mend = "" if answer.refused else way_to(self.network, sight, destination)
        told = told or ("Network is unreachable" if not answer.refused else answer.refused)
        sentence = f"{sight.netns} has no way to {destination}: {why(sight, answer)}"
        return stopped_by(hop, cause, sight, f"route to {destination}", sentence, mend, told)


def path_of(walk: Walk, source: str, parcel: Parcel) -> Path:
    """The walk as a value."""
    dropped = bool(walk.hops) and walk.taken_by is None and _ends_in_drop(walk.hops[-1])
    return Path(
        source=walk.hops[0].source or source,
        destination=parcel.destination,
        protocol=parcel.protocol,
        size_bytes=parcel.size_bytes,
        outcome="arrives" if walk.taken_by is not None else "dropped" if dropped else "leaves",
        hops=tuple(walk.hops),
        arrived_as=walk.parcel.source if walk.taken_by is not None else "",
        ended_in=walk.taken_by or walk.hops[-1].netns,
        nat=tuple(walk.nat),
    )


def _ends_in_drop(hop: Hop) -> bool:
    return hop.drop is not None or (
        hop.carried is not None and bool(hop.carried.hops) and _ends_in_drop(hop.carried.hops[-1])
    )
