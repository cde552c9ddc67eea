"""The objects of a Linux network as frozen values.

Theory of operation: each class is one kind of thing that the kernel holds inside a network namespace (a link, an
address, a route, ...). A value names its namespace, so that a whole lab of namespaces is one flat set of values.
Every object has

- ``key``: what the kernel itself tells such objects apart by. Two objects with one key cannot coexist;
- ``requires``: keys of the objects that must exist first;
- ``satisfied_by``: whether an observed object is what this one asks for. A field that is None asks for nothing;
- ``describe``: the command that a person would type to add it (``ip``, ``bridge``, ``sysctl``, ``nft``).

The empty namespace name is the namespace that Muslin itself runs in (an agent's host). Names of namespaces are
those of ip-netns(8).
"""

from __future__ import annotations

import shlex
from typing import ClassVar, Literal, Self

import msgspec

from muslin.model.address import DEFAULT_PREFIX, family_of

TABLE_MAIN = 254  # rtnetlink.h RT_TABLE_MAIN
TABLE_LOCAL = 255  # rtnetlink.h RT_TABLE_LOCAL
PROTOCOL_KERNEL = 2  # rtnetlink.h RTPROT_KERNEL
PROTOCOL_BOOT = 3  # rtnetlink.h RTPROT_BOOT: what `ip route add` writes
PROTOCOL_MUSLIN = 77  # ours; unassigned in rtnetlink.h and in iproute2's rt_protos
VXLAN_PORT = 8472  # the kernel's default port (drivers/net/vxlan), not IANA's 4789
IFNAME_MAX = 15  # IFNAMSIZ less the final NUL, linux/if.h

Key = tuple[str | int, ...]
IPV6_DEFAULT_METRIC = 1024  # IP6_RT_PRIO_USER, net/ip6_fib.h


def ip_command(netns: str, words: str) -> str:
    """``ip -n NETNS WORDS``, or ``ip WORDS`` for the own namespace."""
    return f"ip -n {shlex.quote(netns)} {words}" if netns else f"ip {words}"


def inside(netns: str, words: str) -> str:
    """``ip netns exec NETNS WORDS``, or the words alone for the own namespace."""
    return f"ip netns exec {shlex.quote(netns)} {words}" if netns else words


class KernelObject(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The base of all kernel objects; ``netns`` is the name of the namespace that holds it."""

    netns: str

    stage: ClassVar[int] = 0

    @property
    def rank(self) -> int:
        """Creation order between kinds: lower first; removal goes the other way."""
        return self.stage

    @property
    def key(self) -> Key:
        """What the kernel tells objects of this kind apart by."""
        raise NotImplementedError

    @property
    def requires(self) -> tuple[Key, ...]:
        """The keys of the objects that this one stands on."""
        return (netns_key(self.netns),) if self.netns else ()

    def satisfied_by(self, observed: Self) -> bool:
        """Whether ``observed`` (same key) is what this object asks for."""
        return all(
            wanted is None or wanted == getattr(observed, field)
            for field in self.__struct_fields__
            if (wanted := getattr(self, field)) is not None
        )

    def describe(self) -> str:
        """The command that adds this object."""
        raise NotImplementedError

    def describe_delete(self) -> str:
        """The command that removes this object."""
        raise NotImplementedError

    def describe_replace(self) -> str:
        """The command that turns whatever holds this key into this object."""
        raise NotImplementedError


def netns_key(netns: str) -> Key:
    """The key of the namespace called ``netns``."""
    return ("netns", netns)


def link_key(netns: str, name: str) -> Key:
    """The key of link ``name`` in ``netns``."""
    return ("link", netns, name)


class Netns(KernelObject, frozen=True, kw_only=True):
    """A named network namespace, as ``ip netns add`` makes it."""

    stage: ClassVar[int] = 0

    @property
    def key(self) -> Key:
        """Its name."""
        return netns_key(self.netns)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Nothing."""
        return ()

    def describe(self) -> str:
        """``ip netns add``."""
        return f"ip netns add {shlex.quote(self.netns)}"

    def describe_delete(self) -> str:
        """``ip netns delete``."""
        return f"ip netns delete {shlex.quote(self.netns)}"


class Loopback(msgspec.Struct, frozen=True, tag=True):
    """``lo``: made by the kernel with the namespace."""

    def words(self) -> str:
        """Nobody types a command to make it."""
        return "type loopback"


class Veth(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """One end of a virtual cable (veth(4)); each end is a Link of its own and names the other."""

    peer_netns: str
    peer: str

    def words(self) -> str:
        """The tail of ``ip link add NAME ...``."""
        place = f" netns {shlex.quote(self.peer_netns)}" if self.peer_netns else ""
        return f"type veth peer name {shlex.quote(self.peer)}{place}"


class Bridge(msgspec.Struct, frozen=True, tag=True):
    """A software switch (ip-link(8), type bridge)."""

    def words(self) -> str:
        """The tail of ``ip link add NAME ...``."""
        return "type bridge"


class Tun(msgspec.Struct, frozen=True, tag=True):
    """A persistent layer-3 device whose other side is a program (Documentation/networking/tuntap.rst)."""

    def words(self) -> str:
        """Not ``ip link``: see ``Link.describe``."""
        return "mode tun"


class Vxlan(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A VXLAN tunnel end point (RFC 7348; ip-link(8), type vxlan)."""

    vni: int
    local: str
    port: int = VXLAN_PORT
    underlay: str | None = None
    learning: bool = False
    gbp: bool = False

    def words(self) -> str:
        """The tail of ``ip link add NAME ...``."""
        device = f" dev {self.underlay}" if self.underlay else ""
        learning = "" if self.learning else " nolearning"
        gbp = " gbp" if self.gbp else ""
        return f"type vxlan id {self.vni} local {self.local}{device} dstport {self.port}{learning}{gbp}"


class OtherKind(msgspec.Struct, frozen=True, tag=True):
    """A link of a kind that Muslin does not build (observed only)."""

    kind: str

    def words(self) -> str:
        """The tail of ``ip link add NAME ...``."""
        return f"type {self.kind}"


LinkOptions = Loopback | Veth | Bridge | Tun | Vxlan | OtherKind

LinkAttribute = Literal["mtu", "mac", "alias", "master", "up"]
LINK_ATTRIBUTES: tuple[LinkAttribute, ...] = ("mtu", "mac", "alias", "master", "up")
"""The attributes that change on a living link, in the order in which they are best set."""


class Link(KernelObject, frozen=True, kw_only=True):
    """A network interface. ``master`` is the bridge that it is a port of, "" for none; ``mtu`` in bytes."""

    name: str
    options: LinkOptions
    mtu: int | None = None
    mac: str | None = None
    alias: str | None = None
    master: str | None = None
    up: bool | None = None

    stage: ClassVar[int] = 10

    @property
    def key(self) -> Key:
        """Namespace and interface name."""
        return link_key(self.netns, self.name)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its namespace, the peer's namespace, the device below."""
        needed = list(KernelObject.requires.fget(self))  # type: ignore[attr-defined]
        if isinstance(self.options, Veth) and self.options.peer_netns:
            needed.append(netns_key(self.options.peer_netns))
        if isinstance(self.options, Vxlan) and self.options.underlay:
            needed.append(link_key(self.netns, self.options.underlay))
        return tuple(needed)

    def describe(self) -> str:
        """``ip link add`` (or ``ip tuntap add``), with the MTU where one is asked for."""
        if isinstance(self.options, Tun):
            return ip_command(self.netns, f"tuntap add dev {self.name} mode tun")
        mac = f" address {self.mac}" if self.mac else ""
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        return ip_command(self.netns, f"link add {self.name}{mac}{mtu} {self.options.words()}")

    def describe_set(self, attribute: LinkAttribute) -> str:
        """``ip link set`` for one attribute."""
        value = getattr(self, attribute)
        words = {
            "mtu": f"mtu {value}",
            "mac": f"address {value}",
            "alias": f"alias {shlex.quote(str(value))}",
            "master": f"master {value}" if value else "nomaster",
            "up": "up" if value else "down",
        }[attribute]
        return ip_command(self.netns, f"link set {self.name} {words}")

    def describe_delete(self) -> str:
        """``ip link delete``."""
        return ip_command(self.netns, f"link delete {self.name}")


class Address(KernelObject, frozen=True, kw_only=True):
    """An address with its prefix length (``172.16.0.1/24``) on a link; IPv6 without duplicate address detection."""

    link: str
    address: str

    stage: ClassVar[int] = 20

    @property
    def key(self) -> Key:
        """Namespace, link, address and length."""
        return ("address", self.netns, self.link, self.address)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its link."""
        return (link_key(self.netns, self.link),)

    def describe(self) -> str:
        """``ip addr add``."""
        no_dad = " nodad" if family_of(self.address) == 6 else ""
        return ip_command(self.netns, f"addr add {self.address} dev {self.link}{no_dad}")

    def describe_delete(self) -> str:
        """``ip addr del``."""
        return ip_command(self.netns, f"addr del {self.address} dev {self.link}")


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
        return KernelObject.requires.fget(self)  # type: ignore[attr-defined,no-any-return]

    def satisfied_by(self, observed: Self) -> bool:
        """As for every object, but a metric left open is the family's default, which the key has compared."""
        return KernelObject.satisfied_by(msgspec.structs.replace(self, metric=None), observed)

    @property
    def shown_destination(self) -> str:
        """The destination as ip-route(8) prints it."""
        return "default" if self.destination in DEFAULT_PREFIX.values() else self.destination

    def _words(self) -> str:
        family = "-6 " if self.shown_destination == "default" and family_of(self.destination) == 6 else ""
        kind = f"{self.kind} " if self.kind != "unicast" else ""
        parts = [
            (f"via {self.via}", self.via),
            (f"nhid {self.nexthop_id}", self.nexthop_id),
            (f"dev {self.link}", self.link),
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


class Sysctl(KernelObject, frozen=True, kw_only=True):
    """A kernel setting below /proc/sys, as a path (``net/ipv4/ip_forward``; slashes, since links may have dots)."""

    name: str
    value: str

    @property
    def rank(self) -> int:
        """Before the links, since new ones inherit; an interface's own once it is there, and before it is up."""
        return 22 if self.link else 5

    @property
    def key(self) -> Key:
        """Namespace and path."""
        return ("sysctl", self.netns, self.name)

    @property
    def link(self) -> str | None:
        """The interface that the setting is for, None when it is for all."""
        parts = self.name.split("/")
        if len(parts) > 4 and parts[2] in ("conf", "neigh") and parts[3] not in ("all", "default"):
            return parts[3]
        return None

    @property
    def requires(self) -> tuple[Key, ...]:
        """The interface that the setting is for, if any."""
        if self.link:
            return (link_key(self.netns, self.link),)
        return KernelObject.requires.fget(self)  # type: ignore[attr-defined,no-any-return]

    def describe(self) -> str:
        """``sysctl -w``; dots, unless an interface name contains one (sysctl(8))."""
        name = self.name if "." in self.name else self.name.replace("/", ".")
        return inside(self.netns, f"sysctl -q -w {shlex.quote(f'{name}={self.value}')}")

    def describe_replace(self) -> str:
        """The same: a setting always exists."""
        return self.describe()


class NftTable(KernelObject, frozen=True, kw_only=True):
    """A whole nftables table, replaced as one (nft(8)).

    ``text`` is the body in the very form in which ``nft -s list table`` prints it, less indentation: so what is
    observed and what is desired compare as text.
    """

    family: Literal["ip", "ip6", "inet", "arp", "bridge", "netdev"]
    name: str
    text: str

    stage: ClassVar[int] = 60

    @property
    def key(self) -> Key:
        """Namespace, family and table name."""
        return ("nft", self.netns, self.family, self.name)

    @property
    def script(self) -> str:
        """What ``nft -f`` reads to put this table in place of one with the same name."""
        # `table` first makes the table if it is missing, so that `delete` cannot fail; all is one transaction.
        head = f"table {self.family} {self.name}\ndelete table {self.family} {self.name}\n"
        return f"{head}table {self.family} {self.name} {{\n{self.text}\n}}\n"

    def describe(self) -> str:
        """``nft -f -`` with the table as a here document."""
        return inside(self.netns, f"nft -f - <<'END'\n{self.script}END")

    def describe_replace(self) -> str:
        """The same: the script replaces."""
        return self.describe()

    def describe_delete(self) -> str:
        """``nft delete table``."""
        return inside(self.netns, f"nft delete table {self.family} {self.name}")


AnyObject = Netns | Link | Address | Nexthop | Route | Rule | Neighbour | FdbEntry | Sysctl | NftTable
"""The closed set of kinds, as msgspec needs it for decoding."""
