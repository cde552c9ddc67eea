"""What a namespace's packet filter does to a packet: nft's own listing, asked rule by rule.

Theory of operation: ``nft -j list ruleset`` gives chains with hook and priority, and rules as lists of expressions
(libnftables-json(5)). ``ask`` goes through the chains of one hook in order of priority and through their rules as the
kernel does: a match that does not hold ends the rule, a verdict ends the chain. It returns the first rule that drops or
rejects, the addresses that rules change, and every rule whose effect cannot be told from here: chance (``numgen``),
expressions that are not known. Such a rule is taken not to match, and named.

Not handled: maps, flow tables, marks that rules set, compatibility expressions of iptables (they are named).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from muslin.explain.lookup import inside
from muslin.explain.rule_text import rule_text
from muslin.model.address import family_of
from muslin.wire.sight import Sight

Hook = Literal["ingress", "prerouting", "input", "forward", "output", "postrouting"]
UNKNOWN = object()
VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto")
TRANSLATIONS = ("masquerade", "snat", "dnat", "redirect")
# What a rule may hold besides matches and verdicts without any effect on the way (nft(8)).
SILENT = ("counter", "log", "limit", "comment", "notrack", "ct count")
HARMLESS = ("nftrace", "priority")  # what a rule may set of a packet without any effect on the way
MAX_DEPTH = 16  # NFT_JUMP_STACK_SIZE, net/netfilter


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule may look at. ``protocol`` is icmp, icmpv6, tcp or udp; ``reply`` whether it answers a request."""

    source: str
    destination: str
    protocol: str = "icmp"
    source_port: int | None = None
    destination_port: int | None = None
    ttl: int = 64
    size_bytes: int = 84
    mark: int = 0
    reply: bool = False
    icmp_type: str = ""
    """Of an ICMP message that is no echo, by nft's name for it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a rule: its table, chain and handle, and its text."""

    family: str
    table: str
    chain: str
    handle: int | None = None
    text: str = ""
    """The rule, or ``policy drop``."""

    @property
    def words(self) -> str:
        """``inet filter forward: ip saddr 10.0.0.1 drop``."""
        return f"{self.family} {self.table} {self.chain}: {self.text}"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one hook does. ``denied`` is the rule that drops or rejects, ``rejects`` whether it tells the sender."""

    denied: Place | None = None
    rejects: bool = False
    source: str | None = None
    """What a rule makes of the source address; ``masquerade`` for the outgoing link's own."""
    destination: str | None = None
    translated_by: Place | None = None
    unsure: tuple[Place, ...] = ()
    accepted_by: Place | None = None
    """The last rule that accepts by a match of its own."""
    asked: int = 0
    """How many rules were looked at."""
    spoiled_by: Place | None = None
    """The rule that writes a checksum of its own into the packet."""


def ask(sight: Sight, hook: Hook, packet: Packet, iif: str = "", oif: str = "") -> Finding:
    """What the chains of this hook do to the packet."""
    if not sight.nft:
        return Finding()
    return _Ruleset(sight.nft).ask(hook, packet, iif, oif)


class _Ruleset:
    """One namespace's rules, by chain."""

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        self.base: list[dict[str, Any]] = []
        self.rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self.sets: dict[tuple[str, str, str], list[Any]] = {}
        for one in objects:
            if (chain := one.get("chain")) and "hook" in chain:
                self.base.append(chain)
            elif rule := one.get("rule"):
                self.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
            elif named := one.get("set"):
                self.sets[named["family"], named["table"], named["name"]] = named.get("elem", [])

    def ask(self, hook: Hook, packet: Packet, iif: str, oif: str) -> Finding:
        families = (
            ("netdev", "inet") if hook == "ingress" else ("inet", "ip" if family_of(packet.destination) == 4 else "ip6")
        )
        chains = [one for one in self.base if one["hook"] == hook and one["family"] in families]
        found = Finding()
        for chain in sorted(chains, key=lambda one: int(one.get("prio", 0))):
            if hook == "ingress" and iif not in _devices(chain):
                continue
            if chain.get("type") == "nat" and packet.reply:
                continue  # NAT rules see only the first packet of a flow; its answers follow by conntrack
            found = _Run(self, packet, iif, oif).through(chain, found)
            if found.denied:
                break
        return found


def _devices(chain: Mapping[str, Any]) -> tuple[str, ...]:
    device = chain.get("dev", ())
    return (device,) if isinstance(device, str) else tuple(device)


class _Run:
    """One packet in one base chain."""

    def __init__(self, ruleset: _Ruleset, packet: Packet, iif: str, oif: str) -> None:
        self.ruleset, self.packet, self.iif, self.oif = ruleset, packet, iif, oif

    def through(self, chain: Mapping[str, Any], found: Finding) -> Finding:
        key = (chain["family"], chain["table"], chain["name"])
        found, verdict = self._chain(key, found, 0)
        if verdict in ("", "return") and chain.get("policy") == "drop":
            return msgspec.structs.replace(found, denied=_place(key, None, "policy drop"))
        return found

    def _chain(self, key: tuple[str, str, str], found: Finding, depth: int) -> tuple[Finding, str]:
        for rule in self.ruleset.rules.get(key, ()):
            found, verdict = self._rule(key, rule, found, depth)
            if verdict in ("accept", "drop", "reject", "return"):
                return found, verdict
        return found, ""

    def _rule(
        self, key: tuple[str, str, str], rule: Mapping[str, Any], found: Finding, depth: int
    ) -> tuple[Finding, str]:
        place = _place(key, rule.get("handle"), rule_text(rule["expr"]))
        found = msgspec.structs.replace(found, asked=found.asked + 1)
        for expression in rule["expr"]:
            name, value = next(iter(expression.items()))
            if name == "match":
                holds = self._matches(key, value)
                if holds is UNKNOWN:
                    return msgspec.structs.replace(found, unsure=(*found.unsure, place)), ""
                if not holds:
                    return found, ""
            elif name in VERDICTS:
                return self._verdict(key, name, value, place, found, depth)
            elif name in TRANSLATIONS:
                return self._translate(name, value, place, found), "accept"
            elif name == "mangle" and (protocol := _checksum_of(value)):
                if protocol != self.packet.protocol:
                    return found, ""
                found = msgspec.structs.replace(found, spoiled_by=place)
            elif name == "mangle" and value["key"].get("meta", {}).get("key") in HARMLESS:
                continue
            elif name not in SILENT:
                return msgspec.structs.replace(found, unsure=(*found.unsure, place)), ""
        return found, ""

    def _verdict(
        self, key: tuple[str, str, str], name: str, value: Any, place: Place, found: Finding, depth: int
    ) -> tuple[Finding, str]:
        if name in ("drop", "reject"):
            return msgspec.structs.replace(found, denied=place, rejects=name == "reject"), name
        if name in ("jump", "goto") and depth < MAX_DEPTH:
            found, verdict = self._chain((*key[:2], value["target"]), found, depth + 1)
            return found, "return" if name == "goto" and not verdict else verdict.replace("return", "")
        if name == "accept":
            return msgspec.structs.replace(found, accepted_by=place), name
        return found, name

    def _translate(self, name: str, value: Any, place: Place, found: Finding) -> Finding:
        address = value.get("addr") if isinstance(value, dict) else None
        if name == "masquerade":
            return msgspec.structs.replace(found, source="masquerade", translated_by=place)
        if name == "snat" and isinstance(address, str):
            return msgspec.structs.replace(found, source=address, translated_by=place)
        if name == "dnat" and isinstance(address, str):
            return msgspec.structs.replace(found, destination=address, translated_by=place)
        return msgspec.structs.replace(found, unsure=(*found.unsure, place))

    def _matches(self, key: tuple[str, str, str], match: Mapping[str, Any]) -> Any:
        left = self._value(match["left"])
        if left is UNKNOWN:
            return UNKNOWN
        if left is None:  # of another family or protocol than the packet: an implicit match that fails
            return False
        holds = self._is_in(key, left, match["right"])
        if holds is UNKNOWN:
            return UNKNOWN
        op = match["op"]
        if op in ("==", "in"):
            return holds
        if op == "!=":
            return not holds
        if op in ("<", ">", "<=", ">=") and isinstance(left, int) and isinstance(match["right"], int):
            right = match["right"]
            return {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[op]
        return UNKNOWN

    def _value(self, left: Any) -> Any:
        """What the packet has there; None where it has no such field."""
        if "payload" in left and "field" in left["payload"]:
            return self._field(left["payload"]["protocol"], left["payload"]["field"])
        if "meta" in left:
            return self._meta(left["meta"]["key"])
        if "ct" in left and left["ct"].get("key") == "state":
            return "established" if self.packet.reply else "new"
        return UNKNOWN

    def _field(self, protocol: str, field: str) -> Any:
        packet = self.packet
        four = family_of(packet.destination) == 4
        if protocol in ("ip", "ip6"):
            if four != (protocol == "ip"):
                return None
            values = {"saddr": packet.source, "daddr": packet.destination, "ttl": packet.ttl, "hoplimit": packet.ttl}
            values |= {"length": packet.size_bytes, "protocol": packet.protocol, "nexthdr": packet.protocol}
            return values.get(field, UNKNOWN)
        if protocol in ("tcp", "udp", "th"):
            if protocol not in ("th", packet.protocol):
                return None
            return {"sport": packet.source_port, "dport": packet.destination_port}.get(field, UNKNOWN)
        if protocol in ("icmp", "icmpv6"):
            if protocol != packet.protocol:
                return None
            echo = "echo-reply" if packet.reply else "echo-request"
            return packet.icmp_type or echo if field == "type" else UNKNOWN
        return None if protocol in ("sctp", "dccp", "ah", "esp", "arp") else UNKNOWN

    def _meta(self, key: str) -> Any:
        four = family_of(self.packet.destination) == 4
        return {
            "iifname": self.iif,
            "iif": self.iif,
            "oifname": self.oif,
            "oif": self.oif,
            "l4proto": self.packet.protocol,
            "nfproto": "ipv4" if four else "ipv6",
            "protocol": "ip" if four else "ip6",
            "mark": self.packet.mark,
            "length": self.packet.size_bytes,
        }.get(key, UNKNOWN)

    def _is_in(self, key: tuple[str, str, str], left: Any, right: Any) -> Any:
        if isinstance(right, str) and right.startswith("@"):
            return self._is_in(key, left, self.ruleset.sets.get((*key[:2], right[1:]), []))
        if isinstance(right, list):
            return any(self._is_in(key, left, one) is True for one in right)
        if isinstance(right, dict):
            return self._is_in_object(key, left, right)
        if isinstance(left, str) and isinstance(right, str) and right.endswith("*"):
            return left.startswith(right[:-1])
        return left == right or str(left) == str(right) or _PROTOCOL_NAMES.get(str(left)) == right

    def _is_in_object(self, key: tuple[str, str, str], left: Any, right: Mapping[str, Any]) -> Any:
        if "set" in right:
            return self._is_in(key, left, right["set"])
        if "prefix" in right and isinstance(left, str):
            return inside(f"{right['prefix']['addr']}/{right['prefix']['len']}", left)
        if "range" in right and isinstance(left, int):
            return right["range"][0] <= left <= right["range"][1]
        if "elem" in right:
            return self._is_in(key, left, right["elem"].get("val"))
        return UNKNOWN


def _checksum_of(mangle: Mapping[str, Any]) -> str:
    """The protocol into whose checksum field this statement writes; 0 is none in UDP, and no fault (RFC 768)."""
    payload = mangle["key"].get("payload", {})
    if payload.get("field") != "checksum" or mangle["value"] == 0:
        return ""
    return str(payload["protocol"])


_PROTOCOL_NAMES = {"icmpv6": "ipv6-icmp"}


def _place(key: tuple[str, str, str], handle: int | None, text: str) -> Place:
    return Place(family=key[0], table=key[1], chain=key[2], handle=handle, text=text)
