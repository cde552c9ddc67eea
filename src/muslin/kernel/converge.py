"""Make the kernel agree with a value: observe, diff, record, apply.

Theory of operation: ``converge`` is the one way in which Muslin changes a network. It is level-triggered: each call
looks at the kernel afresh and remembers nothing itself. Before the first change it tells a ``Journal`` what it is
about to own, so that whatever happens next, clean-up knows what is ours. Afterwards the journal learns what stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from muslin.kernel.base import Kernel, Scope, Witness
from muslin.model.kernel import AnyObject, Key, Link, NftTable, Sysctl
from muslin.model.ops import Create, Delete, Op, OpResult, Replace, Report
from muslin.model.state import DesiredState, Owned, Snapshot
from muslin.plan.diff import diff


class Journal(Protocol):
    """Where ownership is written down. ``owned`` is what earlier calls recorded."""

    @property
    def owned(self) -> Owned:
        """What is ours so far."""
        ...

    def record(self, owned: Owned) -> None:
        """Make ``owned`` durable before returning."""
        ...


class MemoryJournal:
    """A journal for one process's life: enough where marks on the objects tell what is ours."""

    def __init__(self, owned: Owned | None = None) -> None:
        self._owned = owned or Owned()

    @property
    def owned(self) -> Owned:
        """See ``Journal``."""
        return self._owned

    def record(self, owned: Owned) -> None:
        """See ``Journal``."""
        self._owned = owned


ScopeOf = Callable[[DesiredState, Owned], Scope]
"""How much to look at: ``Scope.of``, or ``Scope.around`` for what stands among thousands of others."""


def plan_ops(
    kernel: Kernel, desired: DesiredState, owned: Owned, scope_of: ScopeOf = Scope.of
) -> tuple[Snapshot, tuple[Op, ...]]:
    """What ``converge`` would do, and the snapshot that says so. Changes nothing."""
    observed = kernel.observe(scope_of(desired, owned))
    return observed, diff(desired, observed, owned)


def converge(
    kernel: Kernel,
    desired: DesiredState,
    journal: Journal | None = None,
    witness: Witness | None = None,
    *,
    one_by_one: bool = False,
    scope_of: ScopeOf = Scope.of,
) -> Report:
    """Make the kernel agree with ``desired``; one result for each operation that was needed."""
    journal = journal or MemoryJournal()
    results = _one_pass(kernel, desired, journal, witness, one_by_one, scope_of)
    removed = any(result.outcome == "done" and isinstance(result.op, Delete) for result in results)
    if removed and any(result.outcome != "done" for result in results):
        # New comes ahead of old; what the old stood in the way of has its chance now.
        done = [result for result in results if result.outcome == "done"]
        results = [*done, *_one_pass(kernel, desired, journal, witness, one_by_one, scope_of)]
    return Report(tuple(results))


def _one_pass(
    kernel: Kernel,
    desired: DesiredState,
    journal: Journal,
    witness: Witness | None,
    one_by_one: bool,
    scope_of: ScopeOf,
) -> list[OpResult]:
    observed, ops = plan_ops(kernel, desired, journal.owned, scope_of)
    journal.record(_ownership(journal.owned.with_marks(observed), desired, observed, ops))
    results = kernel.apply(ops, witness, one_by_one=one_by_one)
    _record_outcome(journal, desired, results)
    return results


def _ownership(owned: Owned, desired: DesiredState, observed: Snapshot, ops: Iterable[Op]) -> Owned:
    """All that was ours and all that is about to be, with the old value of each setting first touched now.

    What stands already is not ours, even if it serves us and we change it: it may be somebody else's.
    """
    fresh = _fresh(desired.by_key, observed, ops)
    roots = owned.keys | {key for key, obj in fresh.items() if isinstance(obj, Link | NftTable)}
    marks = Owned(keys=roots, marked=owned.marked)
    keys = roots | {key for key, obj in fresh.items() if not marks.covers(obj)}
    sysctls = dict(owned.sysctls)
    for op in ops:
        if isinstance(op, Replace) and isinstance(op.before, Sysctl):
            sysctls.setdefault(op.key, op.before.value)
    return msgspec.structs.replace(owned, keys=keys, sysctls=sysctls)


def _fresh(wanted: dict[Key, AnyObject], observed: Snapshot, ops: Iterable[Op]) -> dict[Key, AnyObject]:
    """What is about to be made, also what is wanted only for a moment, and what takes the place of another."""
    found: dict[Key, AnyObject] = {}
    for op in ops:
        if isinstance(op, Replace):
            found[op.key] = op.object
        elif isinstance(op, Create):
            for key in op.made_keys if isinstance(op.object, Link) else (op.key,):
                if key not in observed.objects:
                    found[key] = wanted.get(key, op.object)
    return found


def _record_outcome(journal: Journal, desired: DesiredState, results: list[OpResult]) -> None:
    """What was ours and is wanted no more is forgotten, unless its removal failed."""
    wanted = desired.by_key
    failed = [result.op for result in results if result.outcome != "done"]
    stuck = {op.key for op in failed if not isinstance(op, Create)}
    # Whatever has the name of a thing that we failed to make was made by somebody else.
    refused = {key for op in failed if isinstance(op, Create) for key in op.made_keys}

    def kept(key: Key) -> bool:
        return (key in wanted and key not in refused) or key in stuck

    owned = journal.owned
    # In a namespace that was made just now, only the writing itself could see what a setting was before.
    overwritten = {result.op.key: result.previous for result in results if result.previous is not None}
    sysctls = overwritten | owned.sysctls
    journal.record(
        msgspec.structs.replace(
            owned,
            keys=frozenset(filter(kept, owned.keys)),
            sysctls={key: value for key, value in sysctls.items() if kept(key)},
        )
    )
