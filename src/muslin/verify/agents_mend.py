"""A lab that was broken, and agents that mend it: whether they do, how fast, and by which commands.

Theory of operation: an agent puts back what belongs to its network as soon as the kernel tells it of a change, and
leaves alone what belongs to others: containers, firewalls, routes that somebody added. So after a fault the lab's pairs
are walked (``verify.diagnose``) until nothing is wrong any more, or until agents would long have acted. What they did
stands in their own status, with the time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from muslin.agent_client import ask_status
from muslin.lab.state import LabState
from muslin.verify.diagnose import is_well

PATIENCE_S = 3.0
"""An agent repairs within a second of the event (tests/lab/test_agent_repair.py); three tell that it will not."""
POLL_S = 0.05


class NodeRepair(msgspec.Struct, frozen=True, kw_only=True):
    """What one node's agent did: its commands, the first of them where there were many (``count``)."""

    node: str
    commands: tuple[str, ...]
    count: int


class Mended(msgspec.Struct, frozen=True, kw_only=True):
    """The agents have mended it. ``after_s``: from the fault to their repair, or until all was seen to be well."""

    after_s: float
    repairs: tuple[NodeRepair, ...]


def watch(state: LabState, sockets: Mapping[str, str], broken_at_s: float) -> Mended | None:
    """Wait for agents, given by node and socket, to mend a lab broken at this time (``time.time``); None: not theirs.

    This process must have entered the lab.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if is_well(state):
            well_at_s = time.time()
            return _mended(sockets, broken_at_s, well_at_s)
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)


def _mended(sockets: Mapping[str, str], broken_at_s: float, well_at_s: float) -> Mended:
    done: list[NodeRepair] = []
    times = []
    for node, socket in sockets.items():
        status = ask_status(socket)
        for repair in status.kernel.repairs if status else ():
            if repair.at >= broken_at_s:
                done.append(NodeRepair(node=node, commands=repair.commands, count=repair.count))
                times.append(repair.at)
    return Mended(after_s=min([*times, well_at_s]) - broken_at_s, repairs=tuple(done))
