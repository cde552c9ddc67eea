"""What containers may send: frames and packets of their own MAC and addresses, as one table for all of them.

Theory of operation: the table ``muslin_cni`` looks at what comes out of cables whose name begins with ``CHECKED``.
Three sets say what is allowed, by the name of the cable: its MAC, its IPv4 and its IPv6 addresses. A container is an
element in each, so a packet costs the same lookup beside one other container as beside thousands. Ports of a bridge are
seen by the family ``bridge``, where ARP is checked as well; cables that end in the node's own stack by ``inet``.

IPv6 link-local addresses and the unspecified one are let through (RFC 4861 needs them): they lead nowhere but to the
other end, or to the ports of the same bridge. So are ARP probes, whose sender is 0.0.0.0 (RFC 5227). What is dropped is
counted. The text is exactly what ``nft -s -t list`` prints, so it can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from muslin.model.address import address_part, family_of
from muslin.model.kernel import NftElement, NftTable
from muslin.wire.nftables import JOINT

CHECKED = "mus"
"""How the name of a cable begins whose container's packets are checked."""
UNCHECKED = "mut"
"""And of one that may send what it likes."""
TABLE = "muslin_cni"
CABLES = "cables"
SOURCES = {4: "sources4", 6: "sources6"}

Family = Literal["bridge", "inet"]

_SETS = {CABLES: "ether_addr", SOURCES[4]: "ipv4_addr", SOURCES[6]: "ipv6_addr"}
_ARP = (
    f"iifname . arp saddr ether != @{CABLES} counter drop",
    f"arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @{SOURCES[4]} counter drop",
)
_PRIORITY: dict[Family, str] = {"bridge": "dstnat", "inet": "raw"}  # -300 in both: before all that translates


def table(netns: str, family: Family) -> NftTable:
    """The table, with its sets empty."""
    sets = [f"set {name} {{\ntype ifname . {kind}\n}}" for name, kind in _SETS.items()]
    rules = [
        f'iifname != "{CHECKED}*" return',
        f"iifname . ether saddr != @{CABLES} counter drop",
        f"iifname . ip saddr != @{SOURCES[4]} counter drop",
        *(_ARP if family == "bridge" else ()),
        f"ip6 saddr != {{ ::, fe80::/10 }} iifname . ip6 saddr != @{SOURCES[6]} counter drop",
    ]
    hook = f"type filter hook prerouting priority {_PRIORITY[family]}; policy accept;"
    chain = "\n".join(["chain containers {", hook, *rules, "}"])
    return NftTable(netns=netns, family=family, name=TABLE, text="\n".join([*sets, chain]))


def elements(netns: str, family: Family, cable: str, mac: str, addresses: Iterable[str]) -> Iterator[NftElement]:
    """What one container may send: ``cable`` is the node's end, ``addresses`` with or without length."""
    allowed = [(CABLES, mac), *((SOURCES[family_of(a)], address_part(a)) for a in addresses)]
    for name, value in allowed:
        yield NftElement(netns=netns, family=family, table=TABLE, set=name, address=f"{cable}{JOINT}{value}")
