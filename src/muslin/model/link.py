"""Namespaces, the links in them, and the addresses on those."""

from __future__ import annotations

import shlex
from typing import ClassVar, Literal

import msgspec

from muslin.model.address import family_of
from muslin.model.objects import KernelObject, Key, inside_netns, ip_command, link_key, netns_key

VXLAN_PORT = 8472  # the kernel's default port (drivers/net/vxlan), not IANA's 4789
IFNAME_MAX = 15  # IFNAMSIZ less the final NUL, linux/if.h


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

LINK_MARK = "muslin:"
"""How the alias of a link begins that an agent made: on a host shared with others, it is ours by that alone."""

LinkAttribute = Literal["mtu", "mac", "alias", "master", "hairpin", "up"]
LINK_ATTRIBUTES: tuple[LinkAttribute, ...] = ("mtu", "mac", "alias", "master", "hairpin", "up")
"""The attributes that change on a living link, in the order in which they are best set."""


class Link(KernelObject, frozen=True, kw_only=True):
    """A network interface. ``master`` is the bridge that it is a port of, "" for none; ``mtu`` in bytes.

    ``hairpin``: whether the bridge may send a frame out of the port that it came in by, as a container that reaches
    itself by an address of the node's makes necessary (bridge(8)).
    """

    name: str
    options: LinkOptions
    mtu: int | None = None
    mac: str | None = None
    alias: str | None = None
    master: str | None = None
    hairpin: bool | None = None
    up: bool | None = None

    stage: ClassVar[int] = 10

    @property
    def rank(self) -> int:
        """A device that stands on another link comes after that."""
        return self.stage + (isinstance(self.options, Vxlan) and self.options.underlay is not None)

    @property
    def key(self) -> Key:
        """Namespace and interface name."""
        return link_key(self.netns, self.name)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its namespace, the peer's namespace, the device below."""
        needed = list(inside_netns(self.netns))
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
            "hairpin": f"type bridge_slave hairpin {'on' if value else 'off'}",
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

    def describe_replace(self) -> str:
        """``ip addr replace``."""
        return self.describe().replace(" addr add ", " addr replace ", 1)

    def describe_delete(self) -> str:
        """``ip addr del``."""
        return ip_command(self.netns, f"addr del {self.address} dev {self.link}")
