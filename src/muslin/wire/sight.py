"""All that one namespace tells of itself at one moment, as the records that the kernel gave.

Theory of operation: who wants to say where a packet goes needs everything that the kernel looks at: dynamic
neighbours, what a bridge has learned, carriers, rules of others. ``model.state.Snapshot`` leaves those out, because no
plan asks for them; here is the whole, untranslated. Records carry interface numbers; ``link`` and ``name_of`` find
interfaces by either. Settings, packet filter and the numbers of other namespaces may be containers that read when they
are first asked. Nothing here is judged: that is ``explain``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from muslin.wire.rtnetlink import (
    AddressRecord,
    FdbRecord,
    LinkRecord,
    NeighbourRecord,
    NexthopRecord,
    RouteRecord,
    RuleRecord,
)


class TunnelProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program behind a TUN device, as its command line says: see ``tunnel.reference``."""

    pid: int
    device: str
    listen: str
    """``10.0.0.10:9000``, IPv6 in brackets."""
    peers: tuple[tuple[str, str], ...] = ()
    """(inner prefix, outer address and port)."""


class Sight(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One namespace. ``sysctls`` are values by path below /proc/sys, ``nft`` the objects of ``nft -j list ruleset``."""

    netns: str
    links: tuple[LinkRecord, ...] = ()
    addresses: tuple[AddressRecord, ...] = ()
    routes: tuple[RouteRecord, ...] = ()
    learned_mtus: tuple[RouteRecord, ...] = ()
    """Routes that the kernel keeps for single destinations that told of a smaller path MTU (RFC 1191)."""
    rules: tuple[RuleRecord, ...] = ()
    nexthops: tuple[NexthopRecord, ...] = ()
    neighbours: tuple[NeighbourRecord, ...] = ()
    fdb: tuple[FdbRecord, ...] = ()
    sysctls: Mapping[str, str] = {}
    nft: Sequence[dict[str, Any]] = ()
    netns_ids: Mapping[int, str] = {}
    """The names of other namespaces by the number that this one knows them by (IFLA_LINK_NETNSID)."""
    tunnels: tuple[TunnelProgram, ...] = ()
    unseen: Sequence[str] = ()
    """What the kernel would not show without more rights, known once it was asked for; it then counts as empty."""

    @cached_property
    def _by_name(self) -> dict[str, LinkRecord]:
        return {link.name: link for link in self.links}

    @cached_property
    def _by_ifindex(self) -> dict[int, LinkRecord]:
        return {link.ifindex: link for link in self.links}

    def link(self, name: str) -> LinkRecord | None:
        """The interface of this name."""
        return self._by_name.get(name)

    def link_at(self, ifindex: int) -> LinkRecord | None:
        """The interface of this number."""
        return self._by_ifindex.get(ifindex)

    def name_of(self, ifindex: int) -> str:
        """The name of an interface; empty for 0 and for one that has gone."""
        link = self._by_ifindex.get(ifindex)
        return link.name if link else ""

    def sysctl(self, path: str, default: int = 0) -> int:
        """A setting that is a number."""
        text = self.sysctls.get(path, "")
        return int(text) if text.lstrip("-").isdigit() else default

    @cached_property
    def local_addresses(self) -> dict[str, str]:
        """Own address to the name of the link that it is on; an address on two links to the first."""
        found: dict[str, str] = {}
        for one in self.addresses:
            found.setdefault(one.address.partition("/")[0], self.name_of(one.ifindex))
        return found

    def addresses_on(self, link: str) -> tuple[AddressRecord, ...]:
        """The addresses of one link, in the kernel's order."""
        record = self.link(link)
        return tuple(one for one in self.addresses if record and one.ifindex == record.ifindex)
