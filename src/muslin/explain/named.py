"""Namespaces under the names that people give them.

Theory of operation: a lab's namespace ``muslin-lab-node1`` is ``node1`` to everybody, and a host's own has no name at
all. What was seen is the same under another name; a namespace is still looked at only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from muslin.wire.sight import Sight


class _Renamed(Mapping[int, str]):
    """The names of other namespaces by number, each as it is shown."""

    def __init__(self, ids: Mapping[int, str], shown: Mapping[str, str]) -> None:
        self._ids = ids
        self._shown = shown

    def __getitem__(self, number: int) -> str:
        netns = self._ids[number]
        return self._shown.get(netns, netns)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class NamedSights(Mapping[str, Sight]):
    """Sights under other names: ``names`` from the name that is shown to the namespace's own."""

    def __init__(self, sights: Mapping[str, Sight], names: Mapping[str, str]) -> None:
        self._sights = sights
        self._names = dict(names)
        self._shown = {netns: name for name, netns in names.items()}
        self._read: dict[str, Sight] = {}

    def __getitem__(self, name: str) -> Sight:
        if name not in self._read:
            sight = self._sights[self._names[name]]
            ids = _Renamed(sight.netns_ids, self._shown)
            self._read[name] = msgspec.structs.replace(sight, netns=name, netns_ids=ids)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
