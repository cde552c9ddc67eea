"""Operations: the steps between what the kernel holds and what it should hold, as data.

Theory of operation: ``plan.diff`` makes them, ``kernel.apply`` alone executes them, everybody else prints them. One
operation is one command of a person and one message to the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import msgspec

from muslin.model.kernel import AnyObject, Key, Link, LinkAttribute, NftTable, Veth, inside, link_key


class Create(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Add an object that is not there; the kernel refuses where its key is held by another one.

    ``against`` is the object of others that does hold it, where that is known: so the attempt changes nothing.
    """

    object: AnyObject
    against: AnyObject | None = None

    @property
    def key(self) -> Key:
        """The key of the object."""
        return self.object.key

    @property
    def made_keys(self) -> tuple[Key, ...]:
        """The keys of all that comes to be: a veth comes with both ends."""
        options = self.object.options if isinstance(self.object, Link) else None
        return (self.key, link_key(options.peer_netns, options.peer)) if isinstance(options, Veth) else (self.key,)

    def describe(self) -> str:
        """The command that a person would type."""
        return self.object.describe()


class Replace(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Turn the object that holds this key into ``object``, without a moment in which there is none."""

    object: AnyObject
    before: AnyObject | None = None

    @property
    def key(self) -> Key:
        """The key of the object."""
        return self.object.key

    def describe(self) -> str:
        """The command that a person would type."""
        return self.object.describe_replace()


class SetLink(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Change one attribute of a living link."""

    object: Link
    attribute: LinkAttribute

    @property
    def key(self) -> Key:
        """The key of the link."""
        return self.object.key

    def describe(self) -> str:
        """``ip link set``."""
        return self.object.describe_set(self.attribute)


class Delete(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Remove an object."""

    object: AnyObject

    @property
    def key(self) -> Key:
        """The key of the object."""
        return self.object.key

    def describe(self) -> str:
        """The command that a person would type."""
        return self.object.describe_delete()


Op = Create | Replace | SetLink | Delete

Outcome = Literal["done", "failed", "skipped"]


class OpResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became of one operation. ``errno`` is 0 unless it failed; ``reason`` is the kernel's word or ours."""

    op: Op
    outcome: Outcome
    errno: int = 0
    reason: str = ""
    previous: str | None = None
    """For a setting: the value that was overwritten."""

    @classmethod
    def failed(cls, op: Op, number: int, reason: str) -> OpResult:
        """The kernel refused; whoever is known to stand in the way is named."""
        against = op.against if isinstance(op, Create) else None
        holder = f"held by: {_shown(against)}" if against else ""
        return cls(op=op, outcome="failed", errno=number, reason="; ".join(filter(None, (reason, holder))))

    def describe(self) -> str:
        """One line: the command, and why it did not work."""
        if self.outcome == "done":
            return self.op.describe()
        name = os.strerror(self.errno) if self.errno else ""
        words = ": ".join(word for word in (self.outcome, name, self.reason) if word)
        return f"{self.op.describe().splitlines()[0]}: {words}"


class Report(msgspec.Struct, frozen=True):
    """What one pass of ``converge`` did, operation by operation."""

    results: tuple[OpResult, ...]

    @property
    def failed(self) -> tuple[OpResult, ...]:
        """The operations that the kernel refused."""
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def skipped(self) -> tuple[OpResult, ...]:
        """The operations that were not tried, because what they stand on is missing."""
        return tuple(result for result in self.results if result.outcome == "skipped")

    @property
    def wanting(self) -> tuple[OpResult, ...]:
        """Both."""
        return tuple(result for result in self.results if result.outcome != "done")

    @property
    def done(self) -> tuple[OpResult, ...]:
        """The operations that worked."""
        return tuple(result for result in self.results if result.outcome == "done")

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for now stands."""
        return len(self.done) == len(self.results)


def _shown(obj: AnyObject) -> str:
    """The command that would have made ``obj``; a table's is too long, so the one that shows it."""
    if isinstance(obj, NftTable):
        return inside(obj.netns, f"nft list table {obj.family} {obj.name}")
    return obj.describe()


def describe_all(ops: Iterable[Op]) -> list[str]:
    """The commands of all operations, in order."""
    return [op.describe() for op in ops]
