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
NODES: dict[Family, str] = {4: "nodes4", 6: "nodes6"}
SET_TYPE: dict[Family, str] = {4: "ipv4_addr", 6: "ipv6_addr"}
WORD: dict[Family, str] = {4: "ip", 6: "ip6"}
MULTICAST: dict[Family, str] = {4: "224.0.0.0/4", 6: "ff00::/8"}  # RFC 5771, RFC 4291


class TrafficOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's table is to do. ``tunnel_port``: UDP port of encapsulated packets, None when there are none."""

    networks: tuple[str, ...]
    forward: bool = True
    masquerade: bool = False
    tunnel_port: int | None = None


def plan(netns: str, options: TrafficOptions, nodes: Iterable[str]) -> tuple[AnyObject, ...]:
    """The table, and an element for the underlay address of each node; nothing when nothing is asked for."""
    chains = [*_forward(options), *_masquerade(options), *_strangers(options)]
    if not chains:
        return ()
    sets = [f"set {NODES[family]} {{\ntype {SET_TYPE[family]}\n}}" for family in NODES]
    table = NftTable(netns=netns, family="inet", name=TABLE, text="\n".join([*sets, *chains]))
    return (table, *(node_element(netns, address) for address in nodes))


def node_element(netns: str, address: str) -> NftElement:
    """The membership of one node's underlay address."""
    name = NODES[family_of(address)]
    return NftElement(netns=netns, family="inet", table=TABLE, set=name, address=address)


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
        rules = [rule for network in options.networks for rule in _masquerade_rules(network)]
        yield _chain("outbound", "nat hook postrouting priority srcnat", rules)


def _masquerade_rules(network: str) -> Iterator[str]:
    family = family_of(network)
    word = WORD[family]
    for inside in (network, f"@{NODES[family]}", MULTICAST[family]):
        yield f"{word} saddr {network} {word} daddr {inside} return"
    yield f"{word} saddr {network} masquerade fully-random"


def _strangers(options: TrafficOptions) -> Iterator[str]:
    if options.tunnel_port is not None:
        rules = [
            f"udp dport {options.tunnel_port} {WORD[family]} saddr != @{NODES[family]} counter drop" for family in NODES
        ]
        yield _chain("strangers", "filter hook input priority filter", rules)
