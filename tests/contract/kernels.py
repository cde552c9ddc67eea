"""The two kernels under one contract, each with namespaces of its own that go when the test ends.

``World.by_hand`` is what somebody else uses to change things behind our back: on Linux another process's view, with
sockets and memory of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator

import msgspec
import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.base import Kernel, Scope
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.fake import FakeKernel
from muslin.kernel.linux import LinuxKernel
from muslin.model.kernel import (
    PROTOCOL_KERNEL,
    TABLE_LOCAL,
    Address,
    AnyObject,
    Key,
    Link,
    Route,
    Sysctl,
    Veth,
)
from muslin.model.ops import Create, Delete, Op, Replace, Report
from muslin.model.state import DesiredState, Owned, Snapshot

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace")
KERNELS = [
    pytest.param("fake", id="fake"),
    pytest.param("linux", id="linux", marks=[pytest.mark.kernel, NEEDS_ROOT]),
    pytest.param("quick", id="quick", marks=[pytest.mark.kernel, NEEDS_ROOT]),
]
"""``quick`` is Linux again, where a removal of links ends when they are out of sight (``kernel.removal``)."""
_serial = itertools.count()


class World:
    """A kernel, what we own in it, and names that nobody else uses."""

    def __init__(self, kind: str) -> None:
        self.kernel: Kernel = FakeKernel() if kind == "fake" else LinuxKernel(removes_quickly=kind == "quick")
        self.by_hand: Kernel = self.kernel if kind == "fake" else LinuxKernel()
        self.journal = MemoryJournal()
        self.lab = f"mzcontract-{os.getpid()}-{next(_serial)}"
        self.prefix = f"muslin-{self.lab}-"

    def netns(self, short: str) -> str:
        return self.prefix + short

    def converge(self, objects: Iterable[AnyObject]) -> Report:
        return converge(self.kernel, DesiredState(tuple(objects)), self.journal)

    def build(self, objects: Iterable[AnyObject]) -> Report:
        """Converge, and see that it worked and left nothing to do."""
        wanted = tuple(objects)
        report = self.converge(wanted)
        assert report.ok, [result.describe() for result in (*report.failed, *report.skipped)]
        assert self.ops_left(wanted) == []
        return report

    def ops_left(self, objects: Iterable[AnyObject]) -> list[str]:
        """The commands that a further converge would run."""
        _, ops = plan_ops(self.kernel, DesiredState(tuple(objects)), self.journal.owned)
        return [op.describe() for op in ops]

    def change_by_hand(self, *ops: Op) -> None:
        """Behind our back."""
        for result in self.by_hand.apply(ops):
            assert result.outcome == "done", result.describe()

    def look(self, *objects: AnyObject) -> dict[Key, AnyObject]:
        """What there is now in the places of these objects, with all their kinds."""
        return self.by_hand.observe(Scope.of(DesiredState(objects), Owned())).objects

    def close(self) -> None:
        self.by_hand.close()
        self.kernel.close()
        for name in netns_door.names():
            if name.startswith(self.prefix):
                with contextlib.suppress(FileNotFoundError):
                    netns_door.delete(name)


@pytest.fixture(params=KERNELS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    try:
        yield made
    finally:
        made.close()


def undo(obj: AnyObject) -> Op:
    """How somebody would spoil this object."""
    if isinstance(obj, Sysctl):
        return Replace(msgspec.structs.replace(obj, value="0" if obj.value != "0" else "1"))
    return Delete(obj)


def created(report: Report) -> list[Key]:
    return [result.op.key for result in report.results if isinstance(result.op, Create)]


def has_chance_in_it(obj: AnyObject) -> bool:
    """Whether Linux made it out of a random MAC address, or will a moment later (RFC 4862 section 5.3).

    So it does with the local routes of an IPv6 address, in a worker (addrconf_dad_work, net/ipv6/addrconf.c).
    """
    if (
        isinstance(obj, Route)
        and (obj.table, obj.protocol) == (TABLE_LOCAL, PROTOCOL_KERNEL)
        and ":" in obj.destination
    ):
        return True
    text = obj.address if isinstance(obj, Address) else obj.destination if isinstance(obj, Route) else ""
    return text.startswith(("fe80:", "ff00:"))


def comparable(snapshot: Snapshot, prefix: str, wanted_macs: set[Key]) -> set[AnyObject]:
    """All objects, with names and MACs that differ from build to build made equal."""

    def plain(name: str) -> str:
        return name.removeprefix(prefix)

    found: set[AnyObject] = set()
    for key, obj in snapshot.objects.items():
        if has_chance_in_it(obj):
            continue
        changed = msgspec.structs.replace(obj, netns=plain(obj.netns))
        if isinstance(changed, Link):
            mac = changed.mac if key in wanted_macs else ""
            options = changed.options
            if isinstance(options, Veth):
                options = msgspec.structs.replace(options, peer_netns=plain(options.peer_netns))
            changed = msgspec.structs.replace(changed, mac=mac, options=options)
        found.add(changed)
    return found
