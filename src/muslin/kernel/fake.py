"""A kernel in memory, for tests and dry runs without privileges.

Theory of operation: it keeps objects by key and follows the rules of Linux that a plan can trip over: what must
exist first, what falls with what, which gateways are within reach, and that a link taken down loses its routes. It
invents no objects of its own but ``lo``; the real kernel adds connected and local routes, link-local addresses and
the like. tests/contract holds both to one suite.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from muslin.kernel.base import Scope, Witness
from muslin.model.address import contains, family_of, network_of
from muslin.model.kernel import (
    Address,
    AnyObject,
    FdbEntry,
    Key,
    Link,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    link_key,
)
from muslin.model.ops import Create, Delete, Op, OpResult, Replace, SetLink
from muslin.model.state import Snapshot

DEFAULT_MTU_BYTES = 1500
LINK_LOCAL = "fe80:"  # RFC 4291 section 2.5.6
LOOPBACK_MTU_BYTES = 65536


class FakeKernel:
    """See ``muslin.kernel.base.Kernel``. ``refuse`` may name an errno for an operation, to play a fault."""

    def __init__(self, refuse: Callable[[Op], int] = lambda _: 0) -> None:
        self.objects: dict[Key, AnyObject] = {}
        self.refuse = refuse
        self._sysctls: dict[Key, str] = {}

    def forget(self, netns: str) -> None:
        """Nothing to let go of."""

    def close(self) -> None:
        """Nothing to let go of."""

    def settle(self, links: Iterable[Key]) -> None:
        """Everything has its effect at once here."""

    def observe(self, scope: Scope) -> Snapshot:
        """See ``Kernel.observe``."""
        inside = (obj for obj in self.objects.values() if obj.netns in scope.netns and self._in_scope(obj, scope))
        seen = [_with_unknown_end(obj, scope) for obj in inside]
        for netns, name in scope.sysctls:
            setting = Sysctl(netns=netns, name=name, value="")
            if all(key in self.objects for key in setting.requires):
                seen.append(msgspec.structs.replace(setting, value=self._sysctls.get(setting.key, "0")))
        return Snapshot.of(seen)

    @staticmethod
    def _in_scope(obj: AnyObject, scope: Scope) -> bool:
        match obj:
            case Address() | Route() if scope.links_only:
                return False
            case Link() | Address() | Route() if obj.netns in scope.links:
                return (obj.name if isinstance(obj, Link) else obj.link) in scope.links[obj.netns]
            case Neighbour() | FdbEntry():
                place = (obj.netns, obj.link)
                asked = scope.neighbours if isinstance(obj, Neighbour) else scope.fdb
                return asked and (scope.entry_links is None or place in scope.entry_links)
            case Nexthop():
                return scope.nexthops
            case Rule():
                return scope.rules
            case NftTable():
                return (obj.netns, obj.family, obj.name) in scope.nft
            case NftElement():
                return obj in scope.nft_elements or (obj.netns, obj.family, obj.table, obj.set) in scope.nft_sets
        return True

    def apply(self, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False) -> list[OpResult]:
        """See ``Kernel.apply``."""
        results: list[OpResult] = []
        missing: set[Key] = set()
        for op in ops:
            needed = (*op.object.requires, *((op.key,) if isinstance(op, SetLink) else ()))
            if not isinstance(op, Delete) and missing.intersection(needed):
                missing.update(op.made_keys if isinstance(op, Create) else (op.key,))
                results.append(OpResult(op=op, outcome="skipped", reason="what it needs failed"))
                continue
            if witness:
                witness(op)
            previous = self._sysctls.get(op.key, "0") if isinstance(op.object, Sysctl) else None
            number = self.refuse(op) or self._apply_one(op)
            if number and isinstance(op, Create):
                missing.update(op.made_keys)
            if number:
                results.append(OpResult.failed(op, number, os.strerror(number)))
            else:
                results.append(OpResult(op=op, outcome="done", previous=previous))
        return results

    def _apply_one(self, op: Op) -> int:
        """Do one operation; the errno, 0 when done."""
        if isinstance(op, Delete):
            self._remove(op.key)
            return 0
        if any(key not in self.objects for key in op.object.requires):
            return errno.ENODEV
        match op:
            case SetLink():
                return self._set_link(op)
            case Create() if op.key in self.objects:
                # An element that is in its set already stays there (nft_add_set_elem, net/netfilter/nf_tables_api.c).
                return 0 if isinstance(op.object, NftElement) else errno.EEXIST
            case Replace(object=NftTable() as table):
                self._drop_elements(table, op.before)
        return self._put(op.object)

    def _put(self, obj: AnyObject) -> int:
        match obj:
            case Sysctl():
                self._sysctls[obj.key] = obj.value
                return 0
            case Netns():
                self._put_link(Link(netns=obj.netns, name="lo", options=Loopback(), mtu=LOOPBACK_MTU_BYTES))
            case Link():
                return self._create_link(obj)
            case Route() if number := self._unreachable(obj):
                return number
        self.objects[obj.key] = obj
        return 0

    def _drop_elements(self, table: NftTable, before: AnyObject | None) -> None:
        kept = table.sets_kept_from(before) if isinstance(before, NftTable) else ()
        self._remove_where(
            lambda obj: isinstance(obj, NftElement) and obj.requires == (table.key,) and obj.set not in kept
        )

    def _create_link(self, link: Link) -> int:
        if isinstance(link.options, Veth):
            options = link.options
            if link_key(options.peer_netns, options.peer) in self.objects:
                return errno.EEXIST
            back = Veth(peer_netns=link.netns, peer=link.name)
            self._put_link(Link(netns=options.peer_netns, name=options.peer, options=back))
        self._put_link(link)
        return 0

    def _put_link(self, link: Link) -> None:
        made = Link(
            netns=link.netns,
            name=link.name,
            options=link.options,
            mtu=(None if isinstance(link.options, Tun) else link.mtu) or DEFAULT_MTU_BYTES,
            mac=link.mac or "",
            alias="",
            master="",
            hairpin=False,
            up=False,
        )
        self.objects[made.key] = made

    def _set_link(self, op: SetLink) -> int:
        there = self.objects.get(op.key)
        if not isinstance(there, Link):
            return errno.ENODEV
        value = getattr(op.object, op.attribute)
        if op.attribute == "master" and value and link_key(there.netns, value) not in self.objects:
            return errno.ENODEV
        self.objects[op.key] = msgspec.structs.replace(there, **{op.attribute: value})
        if op.attribute == "up" and not value:
            self._remove_where(lambda obj: isinstance(obj, Route) and there.key in obj.requires)
        return 0

    def _unreachable(self, route: Route) -> int:
        """The errno for a route whose link is down or whose gateway is not on a connected network."""
        if route.nexthop_id is not None or (route.link is None and route.via is None):
            return 0
        up = {
            obj.name for obj in self.objects.values() if isinstance(obj, Link) and obj.netns == route.netns and obj.up
        }
        if route.via is None or route.onlink:
            return errno.ENETDOWN if route.link not in up else 0
        via, via_family = route.via, family_of(route.via)
        if via.startswith(LINK_LOCAL):  # every link that is up has such addresses
            return 0 if route.link in up else errno.ENETDOWN
        near = [obj for obj in self.objects.values() if isinstance(obj, Address | Route) and obj.netns == route.netns]
        connected = [
            network_of(obj.address) if isinstance(obj, Address) else obj.destination
            for obj in near
            if (isinstance(obj, Address) or obj.via is None) and obj.link in up and route.link in (None, obj.link)
        ]
        if any(contains(prefix, via) for prefix in connected):
            return 0
        return errno.ENETUNREACH if via_family == 4 else errno.EHOSTUNREACH

    def _remove(self, key: Key) -> None:
        obj = self.objects.pop(key, None)
        if isinstance(obj, Netns):
            self._remove_where(lambda other: other.netns == obj.netns)
            for setting in [setting for setting in self._sysctls if setting[1] == obj.netns]:
                del self._sysctls[setting]
        if isinstance(obj, Link) and isinstance(obj.options, Veth):
            self._remove(link_key(obj.options.peer_netns, obj.options.peer))
        if isinstance(obj, Link | Nexthop | NftTable):
            self._remove_where(lambda other: key in other.requires)
            self._free_ports(key)

    def _free_ports(self, bridge: Key) -> None:
        for key, obj in self.objects.items():
            if isinstance(obj, Link) and obj.master and link_key(obj.netns, obj.master) == bridge:
                self.objects[key] = msgspec.structs.replace(obj, master="")

    def _remove_where(self, condition: Callable[[AnyObject], bool]) -> None:
        for key in [key for key, obj in self.objects.items() if condition(obj)]:
            self._remove(key)


def _with_unknown_end(obj: AnyObject, scope: Scope) -> AnyObject:
    """A veth end whose other end lies in a namespace that is not looked at does not say where."""
    if isinstance(obj, Link) and isinstance(obj.options, Veth) and obj.options.peer_netns not in scope.netns:
        return msgspec.structs.replace(obj, options=Veth(peer_netns="", peer=""))
    return obj
