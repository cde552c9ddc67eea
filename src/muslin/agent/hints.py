"""Which of the kernel's events ask for a look: those that say that something wanted has changed.

Theory of operation: ``kernel.watch`` tells what happened, our own doing left out; ``concerns`` compares it with what is
wanted. A host's other traffic in its tables, containers that come and go, a firewall that is reloaded, costs this
comparison and no look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muslin.agent.reconcile import Interests, Reconciler
from muslin.kernel.watch import Hint, Watch
from muslin.model.address import contains, prefix_length
from muslin.model.kernel import PROTOCOL_MUSLIN, TABLE_LOCAL, Address, AnyObject, Link, Route
from muslin.plan.diff import is_deletable


class Hints:
    """See ``agent.node.KernelWatch``. ``tell_containers`` hears all of it, for whoever keeps containers connected."""

    def __init__(self, watch: Watch, tell_containers: Callable[[Sequence[Hint]], None] = lambda _: None) -> None:
        self._watch, self._tell_containers = watch, tell_containers

    def fileno(self) -> int:
        """Readable when there may be something."""
        return self._watch.fileno()

    def is_due(self, reconciler: Reconciler) -> bool:
        """Whether anything that was heard asks for a look."""
        hints, interests = self._watch.read(), reconciler.interests()
        self._tell_containers(hints)
        return any(concerns(hint, interests) for hint in hints)


def concerns(hint: Hint, interests: Interests) -> bool:
    """Whether it touches what is wanted or ours, how other nodes are reached, or a way to their containers."""
    obj = hint.object
    if obj is None or _moves_underlay(obj, interests.underlay):
        return True
    want = interests.wanted.get(obj.key)
    if want is not None:
        return hint.removed or not want.satisfied_by(obj)  # type: ignore[arg-type]
    if isinstance(obj, Route) and obj.protocol != PROTOCOL_MUSLIN:
        return _leads_to_peers(obj, interests)
    # A stray of ours, if a look would do something about it.
    return not hint.removed and interests.owned.covers(obj) and is_deletable(obj)


def _moves_underlay(obj: AnyObject, underlay: str) -> bool:
    """Whether it counts for the choice of the interface to other nodes; where there is none yet, any link does."""
    match obj:
        case Link():
            return not underlay or obj.name == underlay
        case Address():
            return not underlay or obj.link == underlay
        case Route():
            return prefix_length(obj.destination) == 0
    return False


def _leads_to_peers(route: Route, interests: Interests) -> bool:
    """Whether a route of somebody else is about containers of other nodes: ``status`` tells of it."""

    def lies_in(prefixes: tuple[str, ...]) -> bool:
        return any(contains(prefix, route.destination) for prefix in prefixes)

    return route.table != TABLE_LOCAL and lies_in(interests.networks) and not lies_in(interests.subnets)
