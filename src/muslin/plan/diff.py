"""The steps from what the kernel holds to what it should hold: a pure function of three values.

Theory of operation: ``diff(desired, observed, owned)`` walks the desired objects in order. An object that is missing
is created; one whose key is held by something else is replaced (links: removed and made again, if they are ours); a
living link gets only the attributes that differ. On a host that others use too (``Owned.sparing``) what holds a wanted
key and is not ours is not replaced: its creation is tried nevertheless, so that the kernel refuses and the report
says who is in the way. Then everything that is ours, is there and is wanted no more is deleted. Additions come before
deletions, so that a changed network never has a moment with neither the old nor the new way. What the kernel removes
by itself (all in a deleted namespace, addresses and routes of a deleted link, the other end of a deleted veth) gets
no operation.

The order is that of ``STAGES``: within a stage the order of the desired state is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from muslin.model.address import address_part, family_of, network_of
from muslin.model.kernel import (
    LINK_ATTRIBUTES,
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
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    link_key,
    netns_key,
)
from muslin.model.ops import Create, Delete, Op, Replace, SetLink
from muslin.model.state import DesiredState, Owned, Snapshot, is_link_mark

# A link is set up after its addresses: so it never speaks with an address that it is about to change.
STAGE_LINK_ATTRIBUTES = 12
STAGE_LINK_UP = 25
# A next hop that is in use turns its routes at once: only when neighbour and forwarding entry are there at the new end.
STAGE_NEXTHOP_TURNED = 47
LINK_LOCAL = "fe80:"  # RFC 4291 section 2.5.6
NOT_TO_BE_TAKEN = Route | Nexthop | Rule | NftTable | FdbEntry | Neighbour
"""What is somebody's as a whole, other than a setting, an attribute of a link, or an address that is what it says."""


def diff(desired: DesiredState, observed: Snapshot, owned: Owned | None = None) -> tuple[Op, ...]:
    """The operations, in order, that make ``observed`` into ``desired`` and leave what is not ``owned`` alone."""
    owned = (owned or Owned()).with_marks(observed)
    wanted = desired.by_key
    doomed = _links_in_the_way(wanted, observed, owned)
    living = _without(observed, doomed)
    removals = [Delete(observed.objects[key]) for key in doomed if _stands_first(key, doomed, observed)]
    replaced = _addresses_in_the_way(wanted, living, owned)
    removals += [Delete(address) for address in replaced]
    living = _without(living, [address.key for address in replaced])
    shaken = _shaken_by(replaced, living)
    living = _without_lost_elements(wanted, living)
    additions = sorted(_additions(wanted, living, owned, shaken), key=_stage)
    return (*removals, *additions, *_deletions(wanted, living, owned))


def _stage(op: Op) -> int:
    if isinstance(op, SetLink):
        return STAGE_LINK_UP if op.attribute == "up" else STAGE_LINK_ATTRIBUTES
    if isinstance(op, Replace) and isinstance(op.object, Nexthop):
        return STAGE_NEXTHOP_TURNED
    return op.object.rank


def _links_in_the_way(wanted: dict[Key, AnyObject], observed: Snapshot, owned: Owned) -> list[Key]:
    """Links of ours that hold a wanted name but are of another make, which cannot be changed in place."""
    return [
        key
        for key, obj in wanted.items()
        if isinstance(obj, Link)
        and isinstance(there := observed.objects.get(key), Link)
        and there.options != obj.options
        and not isinstance(there.options, Loopback)
        and owned.covers(there)
    ]


def _stands_first(key: Key, doomed: list[Key], observed: Snapshot) -> bool:
    """False for the second end of a veth whose other end is removed too: both go with the first."""
    peer = _peer_key(observed.objects[key])
    return peer not in doomed[: doomed.index(key)]


def _peer_key(obj: AnyObject) -> Key | None:
    if isinstance(obj, Link) and isinstance(obj.options, Veth):
        return link_key(obj.options.peer_netns, obj.options.peer)
    return None


def _without(observed: Snapshot, removed: Iterable[Key]) -> Snapshot:
    """The snapshot less these objects and all that the kernel takes away with them."""
    gone = set(removed)
    if not gone:
        return observed
    gone |= {peer for key in gone if (peer := _peer_key(observed.objects[key]))}
    # What stands on a link may carry more itself: look again until nothing more falls.
    while fallen := {
        key for key, obj in observed.objects.items() if key not in gone and gone.intersection(obj.requires)
    }:
        gone |= fallen
    return Snapshot({key: obj for key, obj in observed.objects.items() if key not in gone})


def _addresses_in_the_way(wanted: dict[Key, AnyObject], observed: Snapshot, owned: Owned) -> list[Address]:
    """Addresses of ours that are wanted no more and have to go ahead of others of the same link.

    IPv6 does not take one address twice with two lengths. An IPv4 address that is removed after the addition of
    another of its subnet takes that along (secondary addresses, __inet_del_ifa in net/ipv4/devinet.c).
    """
    unwanted = [obj for obj in observed.only(Address) if obj.key not in wanted and owned.covers(obj)]
    if not unwanted:
        return []
    places = {(obj.netns, obj.link) for obj in unwanted}
    to_come = {
        (obj.netns, obj.link, _exclusive(obj.address))
        for obj in wanted.values()
        if isinstance(obj, Address) and (obj.netns, obj.link) in places
    }
    return [obj for obj in unwanted if (obj.netns, obj.link, _exclusive(obj.address)) in to_come]


def _exclusive(interface: str) -> str:
    """What two addresses of a link must not share while one of them is removed."""
    return address_part(interface) if family_of(interface) == 6 else network_of(interface)


def _shaken_by(removed: list[Address], observed: Snapshot) -> set[Key]:
    """What the kernel may take away with these: other IPv4 addresses of the subnet, with the last one all routes."""
    places = {(obj.netns, obj.link) for obj in removed if family_of(obj.address) == 4}
    if not places:
        return set()
    found: list[Address | Route] = [obj for obj in observed.only(Address) if family_of(obj.address) == 4]
    found += [obj for obj in observed.only(Route) if family_of(obj.destination) == 4]
    return {obj.key for obj in found if (obj.netns, obj.link) in places}


def _without_lost_elements(wanted: dict[Key, AnyObject], observed: Snapshot) -> Snapshot:
    """The snapshot less the elements of sets that go with a table which will be put in place anew.

    Those of a set that is declared as before live on.
    """
    kept: dict[Key, frozenset[str]] = {}
    for there in observed.only(NftTable):
        table = wanted.get(there.key)
        if isinstance(table, NftTable) and not table.satisfied_by(there):
            kept[there.key] = table.sets_kept_from(there)
    if not kept:
        return observed
    lost = {
        obj.key for obj in observed.only(NftElement) if (key := obj.requires[0]) in kept and obj.set not in kept[key]
    }
    return Snapshot({key: obj for key, obj in observed.objects.items() if key not in lost})


def _additions(wanted: dict[Key, AnyObject], observed: Snapshot, owned: Owned, shaken: set[Key]) -> Iterator[Op]:
    made: set[Key] = set()
    for key, obj in wanted.items():
        there = observed.objects.get(key)
        if isinstance(obj, Link):
            yield from _link_ops(obj, there if isinstance(there, Link) else None, made, owned)
            made.add(key)
        elif there is None:
            yield Replace(obj) if isinstance(obj, Sysctl) else Create(obj)
        elif not obj.satisfied_by(there):  # type: ignore[arg-type]
            yield _replacement(obj, there, owned)
        elif shaken and key in shaken:
            yield Replace(obj, there)
    yield from _restored_sysctls(wanted, observed, owned)


def _replacement(obj: AnyObject, there: AnyObject, owned: Owned) -> Op:
    """The operation that puts an object in another one's place; what is others' stays, and the kernel will refuse."""
    if (owned.marked or owned.sparing) and isinstance(obj, NOT_TO_BE_TAKEN) and not owned.covers(there):
        return Create(obj, against=there)
    return Replace(obj, there)


def _link_ops(obj: Link, there: Link | None, made: set[Key], owned: Owned) -> Iterator[Op]:
    # A link of others that serves us must not come to look like one of ours, nor change the MAC that others know.
    theirs = owned.marked and there is not None and is_link_mark(obj.alias) and not owned.covers(there)
    if there is None and not isinstance(obj.options, Loopback):
        by_peer = _peer_key(obj) in made
        if not by_peer:
            yield Create(obj)
        there = _as_created(obj, by_peer)
    elif there is not None and there.options != obj.options and not isinstance(there.options, Loopback):
        # Somebody else's link holds the name: the kernel will refuse, and the report will say so.
        yield Create(obj, against=there)
        return
    for attribute in LINK_ATTRIBUTES:
        wanted = getattr(obj, attribute)
        if wanted is None or (there is not None and getattr(there, attribute) == wanted):
            continue
        if not (theirs and attribute in ("alias", "mac")):
            yield SetLink(obj, attribute)


def _as_created(obj: Link, by_peer: bool) -> Link:
    """The link as it is right after its creation: down, no port; size and MAC come with its own message only."""
    fresh = msgspec.structs.replace(obj, up=False, alias="", master="", hairpin=False)
    if by_peer or isinstance(obj.options, Tun):
        return msgspec.structs.replace(fresh, mtu=None, mac=None)
    return fresh


def _restored_sysctls(wanted: dict[Key, AnyObject], observed: Snapshot, owned: Owned) -> Iterator[Op]:
    """Settings that we changed and want no more go back to what they were."""
    for key, value in owned.sysctls.items():
        there = observed.objects.get(key)
        if key not in wanted and isinstance(there, Sysctl) and there.value != value:
            yield Replace(msgspec.structs.replace(there, value=value), there)


def _deletions(wanted: dict[Key, AnyObject], observed: Snapshot, owned: Owned) -> Iterator[Op]:
    unwanted = {
        key: obj
        for key, obj in observed.objects.items()
        if key not in wanted and owned.covers(obj) and is_deletable(obj)
    }
    dying = {key for key, obj in unwanted.items() if isinstance(obj, Netns)}
    gone: set[Key] = set()
    for key, obj in unwanted.items():  # a veth has two ends and one removal
        if not _inside_any(obj, dying) and _peer_key(obj) not in gone:
            gone.add(key)
    roots = [unwanted[key] for key in gone if not _falls_with(unwanted[key], gone)]
    yield from (Delete(obj) for obj in sorted(roots, key=lambda obj: (-obj.rank, str(obj.key))))


def _inside_any(obj: AnyObject, dying: set[Key]) -> bool:
    return not isinstance(obj, Netns) and netns_key(obj.netns) in dying


def _falls_with(obj: AnyObject, gone: set[Key]) -> bool:
    """Whether the kernel removes ``obj`` at once together with one of these.

    The near end of a cable into a namespace that goes would follow too, but later: namespaces are taken apart in
    the background (cleanup_net, net/core/net_namespace.c), and its name would be taken until then.
    """
    return any(key in gone for key in obj.requires if key[0] != "netns")


def is_deletable(obj: AnyObject) -> bool:
    """Whether an object that is ours and wanted no more is removed; others come and go with what they stand on."""
    if isinstance(obj, Link):
        return not isinstance(obj.options, Loopback | OtherKind)
    if isinstance(obj, Address) and obj.address.startswith(LINK_LOCAL):
        return False  # the kernel's own, on a link that is ours
    return not isinstance(obj, Sysctl)


def creations(state: DesiredState) -> tuple[Op, ...]:
    """The operations that build ``state`` where none of its namespaces exists yet: what an export prints."""
    names = set(state.own_netns)
    missing = [obj.netns for obj in state if not isinstance(obj, Netns) and obj.netns not in names]
    if missing:
        raise ValueError(f"the state also speaks of namespaces that it does not make: {sorted(set(missing))}")
    return diff(state, Snapshot())
