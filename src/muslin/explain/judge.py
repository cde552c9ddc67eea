"""What settings say of a packet: forwarding, reverse path filter, sizes, and which frames a bridge shows the filter.

Theory of operation: each function asks one question of one namespace and answers with words, and with a ``Drop`` where
the kernel would drop the packet. The order in which the kernel asks is in ``explain.walk``. IPv4's reverse path filter
is net/ipv4/fib_frontend.c, __fib_validate_source: the source is looked up as a destination, and strict (1) wants the
answer to leave by the link that the packet came in by, loose (2) by any. IPv6 has no such setting.
"""

from __future__ import annotations

import msgspec

from muslin.explain.filter import Packet, Place, ask
from muslin.explain.lookup import Answer, Query, lookup
from muslin.explain.path import Drop
from muslin.explain.types import route_text, type_of
from muslin.model.address import family_of
from muslin.wire.rtnetlink import AF_INET, LinkRecord
from muslin.wire.sight import Sight

MODES = {0: "off", 1: "strict", 2: "loose"}


def reverse_path(sight: Sight, iif: str, source: str, destination: str, oif: str = "") -> tuple[str, Drop | None]:
    """The reverse path filter's answer for a packet that came in by ``iif``; empty words where it is not asked.

    ``oif`` is where the packet would go on to: policy rules see its answer come in there.
    """
    if family_of(source) == 6:
        return "", None
    if source in sight.local_addresses and not _accepts_own(sight, iif):
        sentence = (
            f"{sight.netns} has the address {source} itself, so a packet from it that comes in by {iif} is martian"
        )
        return "", Drop(cause="martian", netns=sight.netns, object=f"address {source}", sentence=sentence)
    every, own = sight.sysctl("net/ipv4/conf/all/rp_filter"), sight.sysctl(f"net/ipv4/conf/{iif}/rp_filter")
    mode = max(every, own)
    if mode == 0:
        return "", None
    answer = lookup(sight, Query(destination=source, source=destination, iif=oif))
    # A route that refuses leads nowhere, so for the filter it is none.
    found = answer.chosen.route if answer.chosen and not answer.refused else None
    link = answer.way.link if answer.way else ""
    if found is None or (mode == 1 and link != iif and not _uses(sight, answer, iif)):
        back = f"the answer to {source} would leave by {link}" if found else f"there is no route back to {source}"
        by = f" ({type_of(found)}: {route_text(sight, found)})" if found else ""
        setting = "all" if every == mode else iif
        filters = f"{sight.netns} filters by reverse path, {MODES[mode]} ({setting}/rp_filter={mode})"
        sentence = f"{filters}: the packet came in by {iif}, and {back}{by}"
        mend = f"sysctl -w net.ipv4.conf.{setting}.rp_filter=2" if found else ""
        drop = Drop(
            cause="reverse-path",
            netns=sight.netns,
            object=f"sysctl net.ipv4.conf.{setting}.rp_filter",
            sentence=sentence,
            mend=mend,
        )
        return "", drop
    return f"reverse path {MODES.get(mode, mode)}: {source} is behind {link}, fine", None


def _accepts_own(sight: Sight, iif: str) -> bool:
    """Whether packets that come in with an address of one's own as source are no martians."""
    return any(sight.sysctl(f"net/ipv4/conf/{one}/accept_local") for one in ("all", iif))


def silent(holder: Sight, source: str, next_hop: str) -> Drop | None:
    """Why the holder of an address answers no ARP request: it has the asker's address as well.

    The request's sender is checked as a packet's source is (net/ipv4/arp.c, arp_process asks ip_route_input).
    """
    if family_of(next_hop) == 6 or source not in holder.local_addresses:
        return None
    if _accepts_own(holder, holder.local_addresses[next_hop]):
        return None
    sentence = (
        f"{holder.netns} has the address {source} itself, so it does not answer when {source} asks for {next_hop}"
    )
    return Drop(cause="martian", netns=holder.netns, object=f"address {source}", sentence=sentence)


def _uses(sight: Sight, answer: Answer, iif: str) -> bool:
    """Whether one of the ways of a multipath route leads back by this link."""
    assert answer.chosen is not None
    return any(sight.name_of(hop.ifindex) == iif for hop in answer.chosen.route.multipath)


def forwarding(sight: Sight, iif: str, destination: str) -> Drop | None:
    """Whether the namespace lets packets of others through; None when it does."""
    if family_of(destination) == 6:
        path, name = "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"
    else:
        path, name = f"net/ipv4/conf/{iif}/forwarding", "net.ipv4.ip_forward"
    if sight.sysctl(path):
        return None
    return Drop(
        cause="forwarding-off",
        netns=sight.netns,
        object=f"sysctl {name}",
        sentence=f"{sight.netns} is not {destination} and does not forward ({path.replace('/', '.')}=0)",
        mend=f"sysctl -w {name}=1",
    )


def mtu_of(sight: Sight, link: LinkRecord, answer: Answer, destination: str, own: bool) -> int:
    """The longest packet that leaves this way: of the link, of the route, or as learned for packets of its own."""
    sizes = [link.mtu]
    route = answer.chosen.route if answer.chosen else None
    if route is not None and route.mtu and (own or route.family != AF_INET):
        sizes.append(route.mtu)
    if own:
        sizes += [one.mtu for one in sight.learned_mtus if one.mtu and one.destination.partition("/")[0] == destination]
    return min(sizes)


def too_big(sight: Sight, link: str, size_bytes: int, mtu: int) -> Drop:
    """The drop of a packet that may not be cut."""
    return Drop(
        cause="too-big",
        netns=sight.netns,
        object=f"link {link}",
        sentence=f"{size_bytes} bytes are more than {link}'s MTU of {mtu} in {sight.netns}, and must not be cut",
        told=f"ICMP: fragmentation needed, MTU {mtu}",
    )


def denied(sight: Sight, hook: str, place: Place, rejects: bool) -> Drop:
    """The drop by a rule of the packet filter, with the command that takes the rule away."""
    mend = without(place)
    return Drop(
        cause="filter",
        netns=sight.netns,
        object=f"nft {place.words}",
        sentence=f"the packet filter of {sight.netns} {'rejects' if rejects else 'drops'} it in {hook} ({place.words})",
        mend=mend,
        told="ICMP: administratively prohibited" if rejects else "",
    )


def without(place: Place) -> str:
    """The command that takes a rule away, or a policy back."""
    chain = f"{place.family} {place.table} {place.chain}"
    if place.handle is not None:
        return f"nft delete rule {chain} handle {place.handle}"
    return f"nft chain {chain} '{{ policy accept ; }}'"


def translated(sight: Sight, place: Place, part: str, before: str, after: str) -> Drop:
    """What NAT did, and the command that takes its rule away."""
    sentence = f"{sight.netns} puts {after} in the place of the {part} {before}: NAT ({place.words})"
    return Drop(cause="nat", netns=sight.netns, object=f"nft {place.words}", sentence=sentence, mend=without(place))


def spoiled(sight: Sight, place: Place, protocol: str) -> Drop:
    """What becomes of a packet into which a rule writes a checksum; who drops it is known when it gets there."""
    sentence = f"{sight.netns} writes a {protocol.upper()} checksum that is not the packet's ({place.words})"
    return Drop(
        cause="bad-checksum", netns=sight.netns, object=f"nft {place.words}", sentence=sentence, mend=without(place)
    )


def unheard(sight: Sight, drop: Drop, packet: Packet) -> Drop:
    """The same drop, or a black hole where the message that would tell the sender of it does not get out."""
    six = family_of(packet.source) == 6
    message = Packet(
        source=packet.destination,
        destination=packet.source,
        protocol="icmpv6" if six else "icmp",
        icmp_type="packet-too-big" if six else "destination-unreachable",
    )
    for hook in ("output", "postrouting"):
        found = ask(sight, hook, message)
        if found.denied:
            sentence = f"{drop.sentence}; and the ICMP message that says so is dropped in {hook} ({found.denied.words})"
            return Drop(
                cause="black-hole",
                netns=sight.netns,
                object=f"nft {found.denied.words}",
                sentence=sentence,
                mend=without(found.denied),
            )
    return drop


def unasked(sight: Sight, source: str, next_hop: str, bridge: str) -> Drop | None:
    """What keeps a bridge from passing on the question for a MAC; None where it does, and always for ARP, no IP packet.

    The packet that is to go there then waits, and is not even sent.
    """
    if family_of(next_hop) == 4 or not shows_filter(sight, next_hop):
        return None
    question = Packet(source=source, destination=next_hop, protocol="icmpv6", icmp_type="nd-neighbor-solicit", ttl=255)
    for hook in ("prerouting", "forward", "postrouting"):
        found = ask(sight, hook, question, bridge, bridge)
        if found.denied:
            drop = denied(sight, hook, found.denied, found.rejects)
            asked = f"the neighbour solicitation for {next_hop}, without which nothing can be sent there"
            return msgspec.structs.replace(drop, sentence=f"{drop.sentence}: {asked}")
    return None


def shows_filter(sight: Sight, destination: str) -> bool:
    """Whether frames that a bridge switches pass the IP packet filter too (br_netfilter)."""
    word = "ip6" if family_of(destination) == 6 else "ip"
    return bool(sight.nft) and bool(sight.sysctl(f"net/bridge/bridge-nf-call-{word}tables"))
