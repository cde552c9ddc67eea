"""What a step adds to the one before: only the commands that are new.

Theory of operation: the talk shows a step as the script that is run on a node, so steps are compared node by node:
the commands for a node of the later step that the earlier step does not have for the node of that name. A node that
the earlier step does not have at all is built like the others; its commands are told apart.
"""

from __future__ import annotations

import msgspec

from muslin.lab.export import command_lines
from muslin.lab.plan import netns_of, plan
from muslin.lab.topology import Topology
from muslin.model.ops import Op
from muslin.plan.diff import creations


class NodeChange(msgspec.Struct, frozen=True, kw_only=True):
    """The commands that are new on one node (or segment, or router); ``whole`` when all of it is new."""

    name: str
    whole: bool
    commands: tuple[str, ...]
    removed: tuple[str, ...] = ()


def compare(lab: str, earlier: Topology, later: Topology) -> tuple[NodeChange, ...]:
    """What ``later`` adds to ``earlier``, by node, without those that stay the same."""
    before, after = _by_owner(lab, earlier), _by_owner(lab, later)
    old_tunnels = plan(lab, earlier).tunnels
    changes = []
    for name, ops in after.items():
        old = before.get(name, {})
        new = [op for command, op in ops.items() if command not in old]
        tunnels = [
            tunnel
            for tunnel in plan(lab, later).tunnels
            if _owner_of(lab, tunnel.netns) == name and tunnel not in old_tunnels
        ]
        gone = tuple(command for command, op in old.items() if command not in ops and not _overwritten(op, new))
        if new or tunnels or gone:
            commands = tuple(command_lines(new, tunnels))
            changes.append(NodeChange(name=name, whole=not old, commands=commands, removed=gone))
    return tuple(changes)


def _overwritten(old: Op, new: list[Op]) -> bool:
    """A setting with a new value needs no removal of the old one."""
    return any(op.key == old.key for op in new)


def _owner_of(lab: str, netns: str) -> str:
    """The node that a namespace belongs to: a container's is its node's."""
    return netns.removeprefix(netns_of(lab, "")).rpartition(".")[2]


def _by_owner(lab: str, topology: Topology) -> dict[str, dict[str, Op]]:
    found: dict[str, dict[str, Op]] = {}
    for op in creations(plan(lab, topology).state):
        found.setdefault(_owner_of(lab, op.object.netns), {})[op.describe()] = op
    return found
