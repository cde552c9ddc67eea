"""Sets of kernel objects: what should be, what is, and what is ours.

Theory of operation: ``DesiredState`` is what a plan returns; ``Snapshot`` is what ``observe`` saw; ``Owned`` says
which of the things seen Muslin may remove. All are plain values, so that a diff is a pure function of three values.

On a host that others use too, things carry marks, so that they are known to be ours even when the record was lost:
routes, next hops and rules our protocol number, links an alias that begins with ``LINK_MARK``, and the packet filter
table is called ``OWN_TABLE``. What lies on such a link or in this table is ours with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from muslin.model.kernel import (
    PROTOCOL_MUSLIN,
    Address,
    AnyObject,
    FdbEntry,
    KernelObject,
    Key,
    Link,
    Neighbour,
    Netns,
    NftElement,
    NftTable,
)

LINK_MARK = "muslin:"
"""How the alias of a link of ours begins."""
OWN_TABLE = ("inet", "muslin")
"""Family and name of our packet filter table (``plan.traffic``)."""


Kind = TypeVar("Kind", bound=KernelObject)


def _group(objects: Iterable[AnyObject]) -> dict[type[KernelObject], list[Any]]:
    found: defaultdict[type[KernelObject], list[Any]] = defaultdict(list)
    for obj in objects:
        found[type(obj)].append(obj)
    return dict(found)


class DesiredState(msgspec.Struct, frozen=True, dict=True):
    """The objects that should exist, in the order in which a person would make them."""

    objects: tuple[AnyObject, ...] = ()

    def __iter__(self) -> Iterator[AnyObject]:
        return iter(self.objects)

    def __or__(self, other: DesiredState) -> DesiredState:
        return DesiredState(self.objects + other.objects)

    def only(self, kind: type[Kind]) -> list[Kind]:
        """The objects of one kind, in order."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[type[KernelObject], list[Any]]:
        return _group(self.objects)

    @cached_property
    def by_key(self) -> dict[Key, AnyObject]:
        """The objects by key, to be read only; a later object takes the place of an earlier one of the same key."""
        return {obj.key: obj for obj in self.objects}

    @property
    def netns_names(self) -> tuple[str, ...]:
        """The namespaces that this state speaks of, each once."""
        return tuple(dict.fromkeys(obj.netns for obj in self.objects))

    @property
    def own_netns(self) -> tuple[str, ...]:
        """The namespaces that this state makes."""
        return tuple(obj.netns for obj in self.objects if isinstance(obj, Netns))


class Snapshot(msgspec.Struct, frozen=True, dict=True):
    """What the kernel held when it was looked at, by key. Namespaces that do not exist simply are not in it."""

    objects: dict[Key, AnyObject] = {}

    @classmethod
    def of(cls, objects: Iterable[AnyObject]) -> Snapshot:
        """A snapshot of these objects."""
        return cls({obj.key: obj for obj in objects})

    def only(self, kind: type[Kind]) -> list[Kind]:
        """The objects of one kind."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[type[KernelObject], list[Any]]:
        return _group(self.objects.values())

    def in_netns(self, netns: str) -> list[AnyObject]:
        """All that was seen inside of one namespace."""
        return [obj for obj in self.objects.values() if obj.netns == netns]


class Owned(msgspec.Struct, frozen=True):
    """What Muslin may remove: objects it recorded before it made them, and objects that carry its mark.

    ``sysctls`` holds the value that each changed setting had before we first changed it.
    """

    keys: frozenset[Key] = frozenset()
    sysctls: dict[Key, str] = {}
    marked: bool = False
    """Whether marks count too, on hosts that we share with others, so that nothing needs to be recorded for each of
    10,000 peers."""
    sparing: bool = False
    """Whether what holds a wanted key, but is not ours, stays as it is. So it does where marks count."""

    def with_marks(self, observed: Snapshot) -> Owned:
        """The same, and the marked links and tables of ``observed``, so that what lies on them is ours too."""
        if not self.marked:
            return self
        roots: list[AnyObject] = [*observed.only(Link), *observed.only(NftTable)]
        return msgspec.structs.replace(self, keys=self.keys | {obj.key for obj in roots if _is_marked(obj)})

    def covers(self, obj: AnyObject) -> bool:
        """Whether ``obj`` is ours. What lies on a marked link counts only ``with_marks``."""
        if obj.key in self.keys:
            return True
        if not self.marked:
            return False
        if isinstance(obj, Address | Neighbour | FdbEntry | NftElement):
            return not self.keys.isdisjoint(obj.requires)
        return _is_marked(obj) or getattr(obj, "protocol", None) == PROTOCOL_MUSLIN


def _is_marked(obj: AnyObject) -> bool:
    """Whether it is a link or a table of ours by what it says of itself."""
    if isinstance(obj, Link):
        return is_link_mark(obj.alias)
    return isinstance(obj, NftTable) and (obj.family, obj.name) == OWN_TABLE


def is_link_mark(alias: str | None) -> bool:
    """Whether a link of this alias is ours."""
    return alias is not None and alias.startswith(LINK_MARK)
