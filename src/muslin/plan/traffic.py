"""Packet filter of a node: what is let through, what is translated, what is refused, as one table of our own.

Theory of operation: the table ``inet muslin`` has a set of all nodes' underlay addresses for each family, and up to
three chains. ``forward`` accepts the container network. ``outbound`` translates what containers send to the world
outside, and never what stays inside: to containers (R1) or to nodes (R2). ``strangers`` drops encapsulated packets
that come from no node, and counts them. The text is exactly what ``nft -s -t list`` prints, so it can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from muslin.model.address import Family, family_of
from muslin.model.kernel import AnyObject, NftElement, NftTable

TABLE = "muslin"
STRANGERS = "strangers"
"""The chain that drops encapsulated packets that come from no node."""
NODES: dict[Family, str] = {4: "nodes4", 6: "nodes6"}
SET_TYPE: dict[Family, str] = {4: "ipv4_addr", 6: "ipv6_addr"}
WORD: dict[Family, str] = {4: "ip", 6: "ip6"}
MULTICAST: dict[Family, str] = {4: "224.0.0.0/4", 6: "ff00::/8"}  # RFC 5771, RFC 4291


class TrafficOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's table is to do. ``tunnel_ports``: UDP ports that encapsulated packets come to."""

    networks: tuple[str, ...]
    forward: bool = True
    masquerade: bool = False
    fully_random: bool = True
    """Whether the source port of what is translated is drawn at random (nft(8), ``fully-random``)."""
    tunnel_ports: tuple[int, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether there is a table at all."""
        return self.forward or self.masquerade or bool(self.tunnel_ports)


def plan(netns: str, options: TrafficOptions, nodes: Iterable[str]) -> tuple[AnyObject, ...]:
    """The table, and an element for the underlay address of each node; nothing when nothing is asked for."""
    if not options.wanted:
        return ()
    chains = [*_forward(options), *_masquerade(options), *_strangers(options)]
    sets = [f"set {NODES[family]} {{\ntype {SET_TYPE[family]}\n}}" for family in NODES]
    table = NftTable(netns=netns, family="inet", name=TABLE, text="\n".join([*sets, *chains]))
    return (table, *node_elements(netns, nodes))


def node_elements(netns: str, nodes: Iterable[str]) -> Iterator[NftElement]:
    """The membership of each node's underlay address."""
    for address in dict.fromkeys(nodes):
        yield NftElement(netns=netns, family="inet", table=TABLE, set=NODES[family_of(address)], address=address)


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    lines = [f"chain {name} {{", f"type {hook}; policy accept;", *rules, "}"]
    return "\n".join(lines)


def _forward(options: TrafficOptions) -> Iterator[str]:
    if options.forward:
        rules = [
            f"{WORD[family_of(network)]} {end} {network} accept"
            for network in options.networks
            for end in ("saddr", "daddr")
        ]
        yield _chain("forward", "filter hook forward priority filter", rules)


def _masquerade(options: TrafficOptions) -> Iterator[str]:
    if options.masquerade:
        flags = " fully-random" if options.fully_random else ""
        rules = [rule for network in options.networks for rule in _masquerade_rules(network, flags)]
        yield _chain("outbound", "nat hook postrouting priority srcnat", rules)


def _masquerade_rules(network: str, flags: str) -> Iterator[str]:
    family = family_of(network)
    word = WORD[family]
    for inside in (network, f"@{NODES[family]}", MULTICAST[family]):
        yield f"{word} saddr {network} {word} daddr {inside} return"
    yield f"{word} saddr {network} masquerade{flags}"


def _strangers(options: TrafficOptions) -> Iterator[str]:
    if options.tunnel_ports:
        rules = [
            f"udp dport {port} {WORD[family]} saddr != @{NODES[family]} counter drop"
            for port in options.tunnel_ports
            for family in NODES
        ]
        yield _chain(STRANGERS, "filter hook input priority filter", rules)
