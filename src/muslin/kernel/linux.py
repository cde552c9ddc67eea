"""The real kernel behind the ``Kernel`` protocol."""

from __future__ import annotations

from collections.abc import Sequence

from muslin.kernel.apply import apply
from muslin.kernel.base import Scope, Witness
from muslin.kernel.observe import observe
from muslin.kernel.sessions import Sessions
from muslin.model.ops import Op, OpResult
from muslin.model.state import Snapshot


class LinuxKernel:
    """Linux, all namespaces from this one process."""

    def __init__(self) -> None:
        self.sessions = Sessions()

    def observe(self, scope: Scope) -> Snapshot:
        """See ``Kernel.observe``."""
        return observe(self.sessions, scope)

    def apply(self, ops: Sequence[Op], witness: Witness | None = None) -> list[OpResult]:
        """See ``Kernel.apply``."""
        return apply(self.sessions, ops, witness)

    def close(self) -> None:
        """See ``Kernel.close``."""
        self.sessions.close()

    def __enter__(self) -> LinuxKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
