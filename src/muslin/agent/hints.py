"""Which of the kernel's events ask for a look: those that say that something wanted has changed.

Theory of operation: ``kernel.watch`` tells what happened, our own doing left out; ``concerns`` compares it with what is
wanted. A host's other traffic in its tables, containers that come and go, a firewall that is reloaded, costs this
comparison and no look.
"""

from __future__ import annotations

from muslin.agent.reconcile import Reconciler
from muslin.kernel.watch import Watch, concerns


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
        wanted, owned, links = reconciler.interests()
        return any(concerns(hint, wanted, owned, links) for hint in hints)
