"""Kernel settings, packet filter tables, and the elements of their sets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import msgspec

from muslin.model.objects import KernelObject, Key, inside, inside_netns, link_key

# Without flags: ranges and elements that time out are more than an address.
_ADDRESS_SET = re.compile(
    r"^set (\S+) \{\ntype (ipv4_addr|ipv6_addr|ifname \. (?:ether_addr|ipv4_addr|ipv6_addr))\n\}$", re.MULTILINE
)

NftFamily = Literal["ip", "ip6", "inet", "arp", "bridge", "netdev"]


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
        return inside_netns(self.netns)

    def satisfied_by(self, observed: Self) -> bool:
        """As for every object; the kernel puts tabs between several numbers."""
        return self.value.split() == observed.value.split()

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
    observed and what is desired compare as text. Sets stand in it without their elements (see ``NftElement``).
    """

    family: NftFamily
    name: str
    text: str

    stage: ClassVar[int] = 21

    @property
    def key(self) -> Key:
        """Namespace, family and table name."""
        return ("nft", self.netns, self.family, self.name)

    @property
    def address_sets(self) -> dict[str, str]:
        """The type of each set of single elements, which are objects of their own (``NftElement``)."""
        return dict(_ADDRESS_SET.findall(self.text))

    def sets_kept_from(self, before: Self) -> frozenset[str]:
        """The sets whose elements live on when this table takes the place of ``before``: both declare them alike."""
        return frozenset(name for name, _ in self.address_sets.items() & before.address_sets.items())

    def with_elements(self, elements: Mapping[str, Sequence[str]]) -> Self:
        """The table with these addresses in its sets from the start: for a script, not for comparison."""
        text = self.text
        for name, addresses in elements.items():
            head = f"set {name} {{\ntype {self.address_sets[name]}\n"
            if addresses:
                text = text.replace(head, f"{head}elements = {{ {', '.join(addresses)} }}\n", 1)
        return msgspec.structs.replace(self, text=text)

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


class NftElement(KernelObject, frozen=True, kw_only=True):
    """An element of a set of an nftables table: apart from the table, since large sets change one by one (nft(8)).

    ``address`` is an address, or an interface with an address or a MAC, ``eth0 . 10.0.0.2``.
    """

    family: NftFamily
    table: str
    set: str
    address: str

    stage: ClassVar[int] = 22

    @classmethod
    def of_key(cls, key: Key) -> Self:
        """The element of this key, which says all of it."""
        _, netns, family, table, name, address = map(str, key)
        return cls(netns=netns, family=family, table=table, set=name, address=address)  # type: ignore[arg-type]

    @property
    def key(self) -> Key:
        """Namespace, table, set and address."""
        return ("nft-element", self.netns, self.family, self.table, self.set, self.address)

    @property
    def requires(self) -> tuple[Key, ...]:
        """Its table."""
        return (("nft", self.netns, self.family, self.table),)

    def describe(self) -> str:
        """``nft add element``."""
        return self._command("add")

    def describe_delete(self) -> str:
        """``nft delete element``."""
        return self._command("delete")

    def _command(self, verb: str) -> str:
        words = f"nft {verb} element {self.family} {self.table} {self.set} {{ {self.address} }}"
        return inside(self.netns, words.replace("{", "'{").replace("}", "}'"))
