"""Sets of kernel objects: what should be, what is, and what is ours.

Theory of operation: ``DesiredState`` is what a plan returns; ``Snapshot`` is what ``observe`` saw; ``Owned`` says
which of the things seen Muslin may remove. All are plain values, so that a diff is a pure function of three values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from muslin.model.kernel import PROTOCOL_MUSLIN, Address, AnyObject, FdbEntry, Key, Neighbour, Netns, NftElement


class DesiredState(msgspec.Struct, frozen=True):
    """The objects that should exist, in the order in which a person would make them."""

    objects: tuple[AnyObject, ...] = ()

    def __iter__(self) -> Iterator[AnyObject]:
        return iter(self.objects)

    def __or__(self, other: DesiredState) -> DesiredState:
        return DesiredState(self.objects + other.objects)

    @property
    def by_key(self) -> dict[Key, AnyObject]:
        """The objects by key; a later object takes the place of an earlier one of the same key."""
        return {obj.key: obj for obj in self.objects}

    @property
    def netns_names(self) -> tuple[str, ...]:
        """The namespaces that this state speaks of, each once."""
        return tuple(dict.fromkeys(obj.netns for obj in self.objects))

    @property
    def own_netns(self) -> tuple[str, ...]:
        """The namespaces that this state makes."""
        return tuple(obj.netns for obj in self.objects if isinstance(obj, Netns))


class Snapshot(msgspec.Struct, frozen=True):
    """What the kernel held when it was looked at, by key. Namespaces that do not exist simply are not in it."""

    objects: dict[Key, AnyObject] = {}

    @classmethod
    def of(cls, objects: Iterable[AnyObject]) -> Snapshot:
        """A snapshot of these objects."""
        return cls({obj.key: obj for obj in objects})

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
    """Whether marks count too, on hosts that we share with others: our route protocol number, and what lies on a
    link or in a table that is ours. So nothing needs to be recorded for each of 10,000 peers."""

    def covers(self, obj: AnyObject) -> bool:
        """Whether ``obj`` is ours."""
        if obj.key in self.keys:
            return True
        if not self.marked:
            return False
        if isinstance(obj, Address | Neighbour | FdbEntry | NftElement):
            return any(key in self.keys for key in obj.requires)
        return getattr(obj, "protocol", None) == PROTOCOL_MUSLIN
