"""What a kernel is to the rest of Muslin: something that can be looked at and told to do operations.

Theory of operation: ``Kernel`` is the protocol; ``kernel.linux`` is the real one and ``kernel.fake`` the one for
tests without privileges. Both pass the same contract suite. ``Scope`` says how much there is to look at, so that a
look costs what the question needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from muslin.model.kernel import FdbEntry, Key, Neighbour, Nexthop, NftElement, NftTable, Rule, Sysctl
from muslin.model.ops import Op, OpResult
from muslin.model.state import DesiredState, Owned, Snapshot

Witness = Callable[[Op], None]
"""Called ahead of each operation, by people who want to watch, count or pause."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at: links, addresses and routes of each namespace always, the rest where it is asked for."""

    netns: tuple[str, ...]
    sysctls: frozenset[tuple[str, str]] = frozenset()
    """(namespace, path) of each setting."""
    nft: frozenset[str] = frozenset()
    """Namespaces whose packet filter tables are read (some 10 ms each)."""
    nft_sets: frozenset[tuple[str, str, str, str]] = frozenset()
    """(namespace, family, table, set) of each set whose elements are read."""
    neighbours: bool = False
    fdb: bool = False
    nexthops: bool = False
    rules: bool = False

    @classmethod
    def of(cls, desired: DesiredState, owned: Owned | None = None) -> Scope:
        """Just what a diff of these two needs to see."""
        owned = owned or Owned()
        kinds = {type(obj) for obj in desired}
        tags = {str(key[0]) for key in owned.keys}
        places = dict.fromkeys([*desired.netns_names, *sorted({str(key[1]) for key in (*owned.keys, *owned.sysctls)})])
        settings = {(obj.netns, obj.name) for obj in desired if isinstance(obj, Sysctl)}
        settings |= {(str(key[1]), str(key[2])) for key in owned.sysctls}
        tables = {obj.netns for obj in desired if isinstance(obj, NftTable)}
        tables |= {str(key[1]) for key in owned.keys if key[0] == "nft"}
        sets = {(obj.netns, obj.family, obj.table, obj.set) for obj in desired if isinstance(obj, NftElement)}
        return cls(
            netns=tuple(places),
            nft_sets=frozenset(sets),
            sysctls=frozenset(settings),
            nft=frozenset(tables),
            neighbours=Neighbour in kinds or "neighbour" in tags,
            fdb=FdbEntry in kinds or "fdb" in tags,
            nexthops=Nexthop in kinds or "nexthop" in tags or owned.marked,
            rules=Rule in kinds or "rule" in tags or owned.marked,
        )


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

    def close(self) -> None:
        """Let go of sockets and files."""
        ...
