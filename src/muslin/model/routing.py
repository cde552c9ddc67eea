"""Where packets go next: next hops, routes, policy rules, neighbours and forwarding entries."""

from __future__ import annotations

import shlex
from typing import ClassVar, Literal, Self

from muslin.model.address import DEFAULT_PREFIX, family_of
from muslin.model.objects import KernelObject, Key, inside_netns, ip_command, link_key

TABLE_MAIN = 254  # rtnetlink.h RT_TABLE_MAIN
TABLE_LOCAL = 255  # rtnetlink.h RT_TABLE_LOCAL
PROTOCOL_KERNEL = 2  # rtnetlink.h RTPROT_KERNEL
PROTOCOL_BOOT = 3  # rtnetlink.h RTPROT_BOOT: what `ip route add` writes
PROTOCOL_MUSLIN = 77  # ours; unassigned in rtnetlink.h and in iproute2's rt_protos
IPV6_DEFAULT_METRIC = 1024  # IP6_RT_PRIO_USER, net/ip6_fib.h


class Nexthop(KernelObject, frozen=True, kw_only=True):
    """A next hop that routes share by its id (ip-nexthop(8)); one per peer keeps 10,000 routes cheap."""

    id: int
    link: str
    via: str | None = None
    onlink: bool = False
    protocol: int = PROTOCOL_MUSLIN

    stage: ClassVar[int] = 40

    @property
    def key(self) -> Key:
        """Namespace and id."""
        return ("nexthop", self.netns, self.id)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its link."""
        return (link_key(self.netns, self.link),)

    def _words(self) -> str:
        via = f" via {self.via}" if self.via else ""
        onlink = " onlink" if self.onlink else ""
        return f"id {self.id}{via} dev {self.link}{onlink} proto {self.protocol}"

    def describe(self) -> str:
        """``ip nexthop add``."""
        return ip_command(self.netns, f"nexthop add {self._words()}")

    def describe_replace(self) -> str:
        """``ip nexthop replace``."""
        return ip_command(self.netns, f"nexthop replace {self._words()}")

    def describe_delete(self) -> str:
        """``ip nexthop del``."""
        return ip_command(self.netns, f"nexthop del id {self.id}")


RouteKind = Literal[
    "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw"
]


class Route(KernelObject, frozen=True, kw_only=True):
    """A route (ip-route(8)). ``destination`` is a prefix, ``0.0.0.0/0`` or ``::/0`` for the default route."""

    destination: str
    link: str | None = None
    via: str | None = None
    nexthop_id: int | None = None
    source: str | None = None
    metric: int | None = None
    table: int = TABLE_MAIN
    protocol: int = PROTOCOL_BOOT
    scope: int | None = None
    kind: RouteKind = "unicast"
    onlink: bool | None = None
    mtu: int | None = None

    stage: ClassVar[int] = 50

    @property
    def effective_metric(self) -> int:
        """The metric that the kernel files the route under."""
        if self.metric:
            return self.metric
        return IPV6_DEFAULT_METRIC if family_of(self.destination) == 6 else 0

    @property
    def key(self) -> Key:
        """Namespace, table, destination and metric (fib_table_insert, net/ipv4/fib_trie.c)."""
        # IPv6 has one such route of the kernel's own on each link (fe80::/64, ff00::/8), all of one metric.
        on_link = (self.link or "") if self.protocol == PROTOCOL_KERNEL else ""
        return ("route", self.netns, self.table, self.destination, self.effective_metric, on_link)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its link or next hop object."""
        if self.link is not None:
            return (link_key(self.netns, self.link),)
        if self.nexthop_id is not None:
            return (("nexthop", self.netns, self.nexthop_id),)
        return inside_netns(self.netns)

    def satisfied_by(self, observed: Self) -> bool:
        """As for every object, but a metric left open is the family's default, which the key has compared.

        A route with a link of its own and no gateway asks for just that; a next hop object brings its gateway along.
        """
        # Written out, as this is asked of each of 10,000 routes on each look.
        same_way = self.via == observed.via or self.link is None or self.nexthop_id is not None
        return (
            same_way
            and self.protocol == observed.protocol
            and self.nexthop_id in (None, observed.nexthop_id)
            and self.link in (None, observed.link)
            and self.via in (None, observed.via)
            and self.source in (None, observed.source)
            and self.scope in (None, observed.scope)
            and self.onlink in (None, observed.onlink)
            and self.mtu in (None, observed.mtu)
            and (self.kind, self.table, self.destination, self.netns)
            == (observed.kind, observed.table, observed.destination, observed.netns)
        )

    @property
    def shown_destination(self) -> str:
        """The destination as ip-route(8) prints it."""
        return "default" if self.destination in DEFAULT_PREFIX.values() else self.destination

    def _words(self) -> str:
        family = "-6 " if self.shown_destination == "default" and family_of(self.destination) == 6 else ""
        kind = f"{self.kind} " if self.kind != "unicast" else ""
        own_way = not self.nexthop_id  # what is observed has the way of its next hop filled in, which ip refuses
        parts = [
            (f"via {self.via}", self.via and own_way),
            (f"nhid {self.nexthop_id}", self.nexthop_id),
            (f"dev {self.link}", self.link and own_way),
            ("onlink", self.onlink),
            (f"src {self.source}", self.source),
            (f"metric {self.metric}", self.metric),
            (f"table {self.table}", self.table != TABLE_MAIN),
            (f"proto {self.protocol}", self.protocol != PROTOCOL_BOOT),
            (f"mtu {self.mtu}", self.mtu),
        ]
        tail = " ".join(text for text, wanted in parts if wanted)
        return f"{family}route %s {kind}{self.shown_destination} {tail}".rstrip()

    def describe(self) -> str:
        """``ip route add``."""
        return ip_command(self.netns, self._words() % "add")

    def describe_replace(self) -> str:
        """``ip route replace``."""
        return ip_command(self.netns, self._words() % "replace")

    def describe_delete(self) -> str:
        """``ip route del``."""
        return ip_command(self.netns, self._words() % "del")


class Rule(KernelObject, frozen=True, kw_only=True):
    """A policy rule: which table is asked for which packets (ip-rule(8))."""

    family: Literal[4, 6]
    priority: int
    table: int
    source: str | None = None
    destination: str | None = None
    iif: str | None = None
    fwmark: int | None = None
    protocol: int = PROTOCOL_MUSLIN

    stage: ClassVar[int] = 55

    @property
    def key(self) -> Key:
        """Everything: the kernel allows several rules of one priority."""
        return (
            "rule",
            self.netns,
            self.family,
            self.priority,
            self.table,
            self.source or "",
            self.destination or "",
            self.iif or "",
            self.fwmark or 0,
        )

    def satisfied_by(self, observed: Self) -> bool:
        """Always: the key compares what the kernel compares; who wrote the rule changes nothing that it does."""
        return self.key == observed.key

    def _words(self) -> str:
        parts = [
            (f"from {self.source}", self.source),
            (f"to {self.destination}", self.destination),
            (f"iif {self.iif}", self.iif),
            (f"fwmark {self.fwmark}", self.fwmark),
        ]
        match = " ".join(text for text, wanted in parts if wanted)
        tail = f"priority {self.priority} {match}".rstrip()
        return f"-{self.family} rule %s {tail} lookup {self.table} protocol {self.protocol}"

    def describe(self) -> str:
        """``ip rule add``."""
        return ip_command(self.netns, self._words() % "add")

    def describe_delete(self) -> str:
        """``ip rule del``."""
        return ip_command(self.netns, self._words() % "del")


class Neighbour(KernelObject, frozen=True, kw_only=True):
    """A permanent entry of the neighbour (ARP, ND) table: which MAC has ``address`` (ip-neighbour(8))."""

    link: str
    address: str
    mac: str

    stage: ClassVar[int] = 45

    @property
    def key(self) -> Key:
        """Namespace, link and address."""
        return ("neighbour", self.netns, self.link, self.address)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its link."""
        return (link_key(self.netns, self.link),)

    def _words(self) -> str:
        return f"neigh %s {self.address} lladdr {self.mac} dev {self.link} nud permanent"

    def describe(self) -> str:
        """``ip neigh add``."""
        return ip_command(self.netns, self._words() % "add")

    def describe_replace(self) -> str:
        """``ip neigh replace``."""
        return ip_command(self.netns, self._words() % "replace")

    def describe_delete(self) -> str:
        """``ip neigh del``."""
        return ip_command(self.netns, f"neigh del {self.address} dev {self.link}")


class FdbEntry(KernelObject, frozen=True, kw_only=True):
    """Which VXLAN tunnel end point (``destination``) a MAC lies behind (bridge(8), ``fdb ... self``)."""

    link: str
    mac: str
    destination: str

    stage: ClassVar[int] = 46

    @property
    def key(self) -> Key:
        """Namespace, link and MAC: we never want one MAC at two ends."""
        return ("fdb", self.netns, self.link, self.mac)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its link."""
        return (link_key(self.netns, self.link),)

    def _command(self, verb: str) -> str:
        bridge = f"bridge -n {shlex.quote(self.netns)}" if self.netns else "bridge"
        return f"{bridge} fdb {verb} {self.mac} dev {self.link} dst {self.destination} self permanent"

    def describe(self) -> str:
        """``bridge fdb add``."""
        return self._command("add")

    def describe_replace(self) -> str:
        """``bridge fdb replace``."""
        return self._command("replace")

    def describe_delete(self) -> str:
        """``bridge fdb del``."""
        return self._command("del")
