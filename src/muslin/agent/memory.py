"""What a node remembers from one run to the next, written down as it changes.

Theory of operation: who the node is is written at once, the store's snapshot some seconds after a change, with the
changes that came meanwhile. A disk that is full costs the memory, not the network: it is said, and what could not be
written is tried again with what is written next.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from muslin.agent.files import StateDirectory
from muslin.errors import MuslinError
from muslin.model.lease import ClusterSnapshot

log = logging.getLogger("muslin.agent")

SAVE_AFTER_S = 2.0
"""How long after a change the snapshot is written to disk, with those that came meanwhile."""


class Memory:
    """The state directory of a running node; belongs to its event loop."""

    def __init__(self, directory: StateDirectory) -> None:
        self.node = directory.read_node()
        """Who this node is."""
        self._directory = directory
        self._written = self.node
        self._unsaved: ClusterSnapshot | None = None
        self._timer: asyncio.TimerHandle | None = None

    def remember(self, **changes: object) -> None:
        """Change fields of ``node``, and write it down unless it stands there already."""
        self.node = msgspec.structs.replace(self.node, **changes)
        if self.node == self._written:
            return
        try:
            self._directory.write_node(self.node)
            self._written = self.node
        except MuslinError as error:
            log.error("%s", error.what)

    def last_snapshot(self) -> ClusterSnapshot | None:
        """What the store said last, as an earlier run has heard it."""
        return self._directory.read_snapshot()

    def keep(self, snapshot: ClusterSnapshot) -> None:
        """Write down soon what the store says now."""
        self._unsaved = snapshot
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self.save)

    def save(self) -> None:
        """Write down what waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.remember()
        if self._unsaved is None:
            return
        try:
            self._directory.write_snapshot(self._unsaved)
            self._unsaved = None
        except MuslinError as error:
            log.error("%s", error.what)
