"""What a kernel is to the rest of Muslin: something that can be looked at and told to do operations.

Theory of operation: ``Kernel`` is the protocol; ``kernel.linux`` is the real one and ``kernel.fake`` the one for
tests without privileges. Both pass the same contract suite. ``Scope`` says how much there is to look at, so that a
look costs what the question needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from muslin.model.kernel import FdbEntry, Key, Link, Neighbour, Nexthop, NftElement, NftTable, Rule, Sysctl, Vxlan
from muslin.model.ops import Op, OpResult
from muslin.model.state import OWN_TABLE, DesiredState, Owned, Snapshot

Witness = Callable[[Op], None]
"""Called ahead of each operation, by people who want to watch, count or pause."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at: links, addresses and routes of each namespace always, the rest where it is asked for."""

    netns: tuple[str, ...]
    sysctls: frozenset[tuple[str, str]] = frozenset()
    """(namespace, path) of each setting."""
    nft: frozenset[tuple[str, str, str]] = frozenset()
    """(namespace, family, name) of each packet filter table; one that is there takes some 5 ms."""
    nft_sets: frozenset[tuple[str, str, str, str]] = frozenset()
    """(namespace, family, table, set) of each set whose elements are read."""
    neighbours: bool = False
    fdb: bool = False
    entry_links: frozenset[tuple[str, str]] | None = None
    """(namespace, link) of the links whose neighbours and forwarding entries these two mean; None for all links."""
    nexthops: bool = False
    rules: bool = False
    links: dict[str, frozenset[str]] = {}
    """By namespace, the only links that are looked at there, with their addresses and routes; elsewhere it is all."""
    links_only: bool = False
    """Links without their addresses and routes, of which there may be thousands."""
    nft_elements: frozenset[NftElement] = frozenset()
    """Elements that are asked for one by one, beside the sets that are read whole."""

    @classmethod
    def around(cls, desired: DesiredState, owned: Owned | None = None, crowded: str = "") -> Scope:
        """As ``of``, for what stands among thousands of others: of the namespace ``crowded`` what these two name.

        Of elements those that may have to go: to add one that is there already does no harm.
        """
        owned = owned or Owned()
        links = {str(key[2]) for key in {*owned.keys, *desired.by_key} if key[0] == "link" and key[1] == crowded}
        elements = {NftElement.of_key(key) for key in owned.keys if key[0] == "nft-element"}
        return msgspec.structs.replace(
            cls.of(desired, owned),
            links={crowded: frozenset(links)},
            nft_sets=frozenset(),
            nft_elements=frozenset(elements),
        )

    @classmethod
    def of(cls, desired: DesiredState, owned: Owned | None = None) -> Scope:
        """Just what a diff of these two needs to see."""
        owned = owned or Owned()
        tags = {key[0] for key in owned.keys}
        recorded = sorted({str(key[1]) for key in (*owned.keys, *owned.sysctls)})
        places = tuple(dict.fromkeys([*desired.netns_names, *recorded]))
        settings = {(obj.netns, obj.name) for obj in desired.only(Sysctl)}
        settings |= {(str(key[1]), str(key[2])) for key in owned.sysctls}
        # The last peer's entries have to be seen, too, when no other is wanted any more.
        vxlans = [link for link in desired.only(Link) if isinstance(link.options, Vxlan)] if owned.marked else []
        return cls(
            netns=places,
            nft_sets=_sets(desired),
            sysctls=frozenset(settings),
            nft=_tables(desired, owned, places),
            neighbours=bool(desired.only(Neighbour) or vxlans or "neighbour" in tags),
            fdb=bool(desired.only(FdbEntry) or vxlans or "fdb" in tags),
            entry_links=_entry_links(desired, owned, vxlans),
            nexthops=bool(desired.only(Nexthop) or "nexthop" in tags or owned.marked),
            rules=bool(desired.only(Rule) or "rule" in tags or owned.marked),
        )


def _tables(desired: DesiredState, owned: Owned, places: tuple[str, ...]) -> frozenset[tuple[str, str, str]]:
    found = {(obj.netns, str(obj.family), obj.name) for obj in desired.only(NftTable)}
    found |= {(str(netns), str(family), str(name)) for tag, netns, family, name in _tagged(owned, "nft")}
    if owned.marked:
        found |= {(netns, *OWN_TABLE) for netns in places}
    return frozenset(found)


def _sets(desired: DesiredState) -> frozenset[tuple[str, str, str, str]]:
    """Sets that elements are wanted in, and those of a wanted table: what is in them may be wanted no more."""
    found = {(obj.netns, str(obj.family), obj.table, obj.set) for obj in desired.only(NftElement)}
    tables = desired.only(NftTable)
    return frozenset(found | {(obj.netns, obj.family, obj.name, name) for obj in tables for name in obj.address_sets})


def _entry_links(desired: DesiredState, owned: Owned, vxlans: Iterable[Link]) -> frozenset[tuple[str, str]]:
    found = {(obj.netns, obj.link) for obj in desired.only(Neighbour)}
    found |= {(obj.netns, obj.link) for obj in desired.only(FdbEntry)}
    found |= {(str(key[1]), str(key[2])) for key in (*_tagged(owned, "neighbour"), *_tagged(owned, "fdb"))}
    return frozenset(found | {(link.netns, link.name) for link in vxlans})


def _tagged(owned: Owned, tag: str) -> Iterator[Key]:
    return (key for key in owned.keys if key[0] == tag)


class Kernel(Protocol):
    """Something that holds network objects."""

    def observe(self, scope: Scope) -> Snapshot:
        """What there is. OSError when any part could not be read whole: there is no half snapshot."""
        ...

    def apply(self, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False) -> list[OpResult]:
        """Do the operations in order and say what became of each; never raises for a single one of them.

        Packed together unless ``one_by_one``; the witness hears of each ahead of the package that it goes with.
        """
        ...

    def settle(self, links: Iterable[Key]) -> None:
        """Return once carrier changes of these links (by key) have had their effect on bridges and routes."""
        ...

    def forget(self, netns: str) -> None:
        """Close what is open of a namespace: else it, and all that is in it, lives on when its owner removes it."""
        ...

    def close(self) -> None:
        """Let go of sockets and files."""
        ...
