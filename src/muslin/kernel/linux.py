"""The real kernel behind the ``Kernel`` protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from muslin.kernel.apply import apply, settle
from muslin.kernel.base import Scope, Witness
from muslin.kernel.netlink import OwnPorts
from muslin.kernel.observe import observe
from muslin.kernel.sessions import Sessions
from muslin.model.kernel import Key
from muslin.model.ops import Op, OpResult
from muslin.model.state import Snapshot


class LinuxKernel:
    """Linux, all namespaces from this one process. ``removes_quickly``: see ``kernel.removal``.

    ``ports`` are another one's, where the two shall take each other's doing for their own.
    """

    def __init__(self, ports: OwnPorts | None = None, *, removes_quickly: bool = False) -> None:
        self.sessions = Sessions(ports, removes_quickly=removes_quickly)

    @property
    def ports(self) -> OwnPorts:
        """Our sockets, by which a ``Watch`` knows our own doing."""
        return self.sessions.ports

    def observe(self, scope: Scope) -> Snapshot:
        """See ``Kernel.observe``."""
        return observe(self.sessions, scope)

    def apply(self, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False) -> list[OpResult]:
        """See ``Kernel.apply``."""
        return apply(self.sessions, ops, witness, one_by_one=one_by_one)

    def settle(self, links: Iterable[Key]) -> None:
        """See ``Kernel.settle``."""
        settle(self.sessions, links)

    def forget(self, netns: str) -> None:
        """See ``Kernel.forget``."""
        self.sessions.forget(netns)

    def close(self) -> None:
        """See ``Kernel.close``."""
        self.sessions.close()

    def __enter__(self) -> LinuxKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
