"""Which of the kernel's events ask for a look: those that say that something wanted has changed.

Theory of operation: ``kernel.watch`` tells what happened, our own doing left out; ``concerns`` compares it with what is
wanted. A host's other traffic in its tables, containers that come and go, a firewall that is reloaded, costs this
comparison and no look.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from muslin.agent.reconcile import Reconciler
from muslin.kernel.watch import Hint, Watch
from muslin.model.address import prefix_length
from muslin.model.kernel import Address, AnyObject, Key, Link, Route
from muslin.model.state import Owned
from muslin.plan.diff import is_deletable


class Hints:
    """See ``agent.node.KernelWatch``."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def fileno(self) -> int:
        """Readable when there may be something."""
        return self._watch.fileno()

    def is_due(self, reconciler: Reconciler) -> bool:
        """Whether anything that was heard asks for a look."""
        hints = self._watch.read()
        wanted, owned, underlay = reconciler.interests()
        return any(concerns(hint, wanted, owned, underlay) for hint in hints)


def concerns(hint: Hint, wanted: Mapping[Key, AnyObject], owned: Owned, underlay: Collection[str]) -> bool:
    """Whether what happened touches what is wanted or ours, or how other nodes are reached (links ``underlay``)."""
    obj = hint.object
    if obj is None or _moves_underlay(obj, underlay):
        return True
    want = wanted.get(obj.key)
    if hint.removed:
        return want is not None
    if want is not None:
        return not want.satisfied_by(obj)  # type: ignore[arg-type]
    return owned.covers(obj) and is_deletable(obj)  # a stray of ours, if a look would do something about it


def _moves_underlay(obj: AnyObject, underlay: Collection[str]) -> bool:
    """Whether it counts for the choice of the interface to other nodes; where there is none yet, any link does."""
    match obj:
        case Link():
            return obj.name in underlay or not underlay
        case Address():
            return obj.link in underlay or not underlay
        case Route():
            return prefix_length(obj.destination) == 0
    return False
