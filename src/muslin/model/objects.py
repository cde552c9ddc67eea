"""What all kernel objects share: key, requirements, comparison, and how a namespace is spelled in a command."""

from __future__ import annotations

import shlex
from typing import ClassVar, Self

import msgspec

Key = tuple[str | int, ...]


def ip_command(netns: str, words: str) -> str:
    """``ip -n NETNS WORDS``, or ``ip WORDS`` for the own namespace."""
    return f"ip -n {shlex.quote(netns)} {words}" if netns else f"ip {words}"


def inside(netns: str, words: str) -> str:
    """``ip netns exec NETNS WORDS``, or the words alone for the own namespace."""
    return f"ip netns exec {shlex.quote(netns)} {words}" if netns else words


class KernelObject(msgspec.Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The base of all kernel objects; ``netns`` is the name of the namespace that holds it.

    None is part of a cycle, so the garbage collector need not walk 50,000 of them again and again (``gc=False``).
    """

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
        return inside_netns(self.netns)

    def satisfied_by(self, observed: Self) -> bool:
        """Whether ``observed`` (same key) is what this object asks for."""
        # Equal is by far the most frequent, and the comparison of whole structs costs a twentieth.
        return self == observed or all(
            getattr(self, field) in (None, getattr(observed, field)) for field in self.__struct_fields__
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


def inside_netns(netns: str) -> tuple[Key, ...]:
    """What an object needs that just has to be in a namespace: that namespace, unless it is the own one."""
    return (netns_key(netns),) if netns else ()
