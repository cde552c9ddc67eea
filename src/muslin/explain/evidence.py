"""What the kernel itself says of a packet's end, held against what was predicted.

Theory of operation: three witnesses tell what became of a packet that was sent: counters that moved meanwhile
(``wire.counters``), nftables' own trace of it (``wire.nft_trace``), and neighbour entries that stayed without an
answer. Where a drop was predicted, they confirm it, or contradict it: the counter that this cause moves did not move,
or another rule ended the packet. Where nothing was predicted and the packet is lost all the same, they name the cause
alone. A counter is of the whole namespace: other packets can move it too, so what it confirms is told with its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from muslin.explain.path import Cause, Drop

COUNTED: dict[Cause, tuple[str, ...]] = {
    "forwarding-off": ("IpInAddrErrors", "Ip6InAddrErrors"),
    "reverse-path": ("TcpExtIPReversePathFilter",),
    "too-big": ("IpFragFails", "Ip6InTooBigErrors", "Ip6FragFails"),
    "black-hole": ("IpFragFails", "Ip6InTooBigErrors", "Ip6FragFails"),
    "ttl-exceeded": ("IpInHdrErrors", "Ip6InHdrErrors"),
    "no-route": ("IpExtInNoRoutes", "Ip6InNoRoutes"),
    "wrong-mac": ("/rx_otherhost_dropped",),
    "no-tunnel": ("/tx_dropped",),
    "link-down": ("/tx_dropped",),
    "bad-checksum": (
        "UdpInCsumErrors", "Udp6InCsumErrors", "TcpInCsumErrors", "IcmpInCsumErrors", "Icmp6InCsumErrors",
    ),
}  # fmt: skip
"""The counters of which one moves with a drop of this cause (Linux 6.18, tests/lab/test_evidence.py)."""
ALWAYS_COUNTED: tuple[Cause, ...] = ("forwarding-off", "reverse-path", "too-big", "black-hole", "ttl-exceeded")
"""Those that no kernel we run on drops without counting it."""
UNANSWERED: tuple[Cause, ...] = ("no-neighbour", "link-down", "unplugged", "lost-frame", "not-here", "martian")
"""Those of which a neighbour entry tells that stays without an answer."""

MEANING: dict[str, str] = {
    "IpInAddrErrors": "it is not for an address of its own, and it does not forward",
    "Ip6InAddrErrors": "it is not for an address of its own, and it does not forward",
    "TcpExtIPReversePathFilter": "the reverse path filter",
    "IpFragFails": "too long for the next link, and not to be cut",
    "Ip6InTooBigErrors": "too long for the next link",
    "IpInHdrErrors": "an error in the IP header, or a TTL that is used up",
    "Ip6InHdrErrors": "an error in the IP header, or a hop limit that is used up",
    "IpExtInNoRoutes": "no route",
    "Ip6InNoRoutes": "no route",
    "IpOutNoRoutes": "no route",
    "Ip6OutNoRoutes": "no route",
    "UdpInCsumErrors": "a wrong UDP checksum",
    "Udp6InCsumErrors": "a wrong UDP checksum",
    "TcpInCsumErrors": "a wrong TCP checksum",
    "IcmpInCsumErrors": "a wrong ICMP checksum",
    "Icmp6InCsumErrors": "a wrong ICMPv6 checksum",
    "IpExtInCsumErrors": "a wrong IP checksum",
    "IpExtInTruncatedPkts": "shorter than its header says",
    "UdpNoPorts": "nobody listens on the UDP port",
    "Udp6NoPorts": "nobody listens on the UDP port",
    "UdpRcvbufErrors": "the receiver's buffer is full",
    "IpReasmFails": "pieces that could not be put together",
    "Ip6ReasmFails": "pieces that could not be put together",
    "IpOutDiscards": "discarded on its way out",
    "Ip6OutDiscards": "discarded on its way out",
    "IpInDiscards": "discarded on its way in",
    "Ip6InDiscards": "discarded on its way in",
    "/rx_otherhost_dropped": "a frame for another MAC",
    "/tx_dropped": "the link took it not",
    "/rx_dropped": "the link dropped it on its way in",
}
"""What a counter of losses says, in words. Other counters say nothing of a loss."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """A counter of losses that moved in a place while the packet was on its way."""

    place: str
    name: str
    more: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A rule or policy that ended the packet, by nftables' trace: ``rule`` as a drop's object has it."""

    place: str
    rule: str


class Unanswered(msgspec.Struct, frozen=True, kw_only=True):
    """A next hop that was asked for, and that nobody answered for: ``state`` is ``incomplete`` or ``failed``."""

    place: str
    link: str
    address: str
    state: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the kernel said meanwhile. ``traced``: the places whose packet filter was traced."""

    counts: tuple[Count, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()
    traced: tuple[str, ...] = ()
    untraced: tuple[str, ...] = ()
    """Where and why it could not be traced, in words."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """``confirms`` the prediction, or ``contradicts`` it, each in words and perhaps empty."""

    confirms: str = ""
    contradicts: str = ""


def moved(place: str, before: Mapping[str, int], after: Mapping[str, int]) -> list[Count]:
    """The counters of losses that moved between two readings."""
    return [
        Count(place=place, name=name, more=value - before.get(name, 0))
        for name, value in after.items()
        if value > before.get(name, 0) and meaning(name)
    ]


def meaning(name: str) -> str:
    """What a counter says of a loss; empty for one that says nothing of any."""
    return MEANING.get(name) or MEANING.get(name[name.find("/") :] if "/" in name else "", "")


def weigh(drop: Drop, evidence: Evidence, reached: bool) -> Proof:
    """A predicted drop and what the kernel said; ``reached``: the packet came to the drop's place, and was seen there.

    What never got there could move nothing, and of what a place sends itself it counts less: no contradiction then.
    """
    place = drop.lost_in or drop.netns
    if drop.cause == "filter" and place in evidence.traced:
        return _weigh_verdicts(drop, evidence, reached)
    if counts := [one for one in evidence.counts if one.place == place and _is_of(one.name, drop.cause)]:
        return Proof(confirms=f"{place} counted it: {_told(counts)}")
    if drop.cause in UNANSWERED and evidence.unanswered:
        one = evidence.unanswered[0]
        return Proof(confirms=_nobody(one))
    if drop.cause in ALWAYS_COUNTED and reached:
        return Proof(contradicts=_uncounted(drop.cause, place, evidence))
    return Proof()


def _uncounted(cause: Cause, place: str, evidence: Evidence) -> str:
    first, *more = COUNTED[cause]
    still = f"neither {' nor '.join((first, *more))} moved" if more else f"{first} did not move"
    other = _told(one for one in evidence.counts if one.place == place)
    return f"{place} should have counted it, and {still}{'; but ' if other else ''}{other}"


def _weigh_verdicts(drop: Drop, evidence: Evidence, reached: bool) -> Proof:
    rules = [one.rule for one in evidence.verdicts if one.place == drop.netns]
    wanted = drop.object.removeprefix("nft ")
    if wanted in rules:
        return Proof(confirms=f"{drop.netns}'s nft trace names the same rule: {wanted}")
    if rules:
        return Proof(contradicts=f"{drop.netns}'s nft trace names another rule: {', '.join(rules)}")
    if evidence.unanswered and not reached:  # what it drops is the question for a MAC
        return Proof(confirms=_nobody(evidence.unanswered[0]))
    return Proof(contradicts=f"{drop.netns}'s nft trace saw no rule drop it" if reached else "")


def _is_of(name: str, cause: Cause) -> bool:
    return any(name == one or (one.startswith("/") and name.endswith(one)) for one in COUNTED.get(cause, ()))


def unpredicted(evidence: Evidence, places: Sequence[str]) -> str:
    """Why a packet was lost of which nothing was predicted, by what the kernel says; empty where it says nothing.

    ``places`` are those on the way, the one where it was seen last first.
    """
    for place in places:
        rules = [one.rule for one in evidence.verdicts if one.place == place]
        if rules:
            return f"the packet filter of {place} dropped it, says its nft trace: {rules[0]}"
    for place in places:
        if told := _told(one for one in evidence.counts if one.place == place):
            return f"{place} dropped it, and counted why: {told}"
    return next((_nobody(one) for one in evidence.unanswered if one.place in places), "")


def _told(counts: Iterable[Count]) -> str:
    return ", ".join(f"{one.name} +{one.more} ({meaning(one.name)})" for one in counts)


def _nobody(one: Unanswered) -> str:
    return f"{one.place} asked for {one.address} on {one.link}, and nobody answers ({one.state})"
