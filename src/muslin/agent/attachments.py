"""Real containers: connects them to this node's network and disconnects them, as a runtime asks through CNI.

Theory of operation: everything here runs in one thread, which alone touches what is kept of containers and what the
kernel has of them; the thread that looks after other nodes never waits for it, nor it for that one. An attachment is a
``Reservation`` (``agent.reservations``), kept on disk from before the first change to the kernel to after the last, and
what ``plan.attach`` makes of it:

    ADD    reserve -> plan -> converge -> complete          what fails is undone by the same journal, then released
    CHECK  reservation -> plan -> what converge would do, which is nothing where all is well
    DEL    reservations -> their keys -> converge to nothing -> release       all that wait at once: they cost one
    look   reservations -> what of them stands on the node -> put right; the unrecorded are adopted, the dead released

The kernel is looked at just around the cable in question (``Scope.around``), as there may be thousands. A node's cables
    look   reservations -> what of them stands on the node -> put right; unrecorded ones adopted, dead ones released
takes a cable away: it may be some container's only way.

A reservation whose cable is gone, and whose namespace is no more, belongs to a container that died without a word: a
reboot, say. Its runtime may still know it and start it again, and then it gets its addresses again; so it is kept while
the runtime's own note of it is there (libcni's cache), for ``PATIENCE_S`` without one, and not at all when addresses
run out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from muslin.agent.attachment_plan import (
    OWN,
    REMEDY,
    Netns,
    NodeFacts,
    attachment_of,
    cable_key,
    filters_in,
    in_use,
    is_inside,
    is_left_to_others,
    is_netns_of,
    named,
    node_keys,
    not_kept,
    other_mode_sentence,
    outside_sentence,
    refusal,
    refuse_what_cannot_be,
    result_of,
    unknown_sentence,
    unrecorded,
    wanted,
    wide_scope,
    with_mtu,
)
from muslin.agent.reservations import Key, Reservation, Reservations
from muslin.errors import MuslinError
from muslin.kernel.base import Kernel, Scope
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.watch import Hint
from muslin.lease.addresses import AddressOutside, AddressTaken, PoolExhausted
from muslin.model.kernel import AnyObject, Link, NftElement, NftTable
from muslin.model.ops import Report
from muslin.model.state import DesiredState, Owned, Snapshot
from muslin.plan import attach, sources
from muslin.plan.diff import diff
from muslin.wire.cni import NetworkConf
from muslin.wire.cni_call import Call
from muslin.wire.cni_error import CniError, ErrorCode
from muslin.wire.cni_result import Interface, Result, merge

log = logging.getLogger("muslin.agent")

PATIENCE_S = 300.0
CACHE = Path("/var/lib/cni/results")
"""Where libcni notes each attachment that a runtime has, as NETWORK-ID-INTERFACE."""


class Attachments:
    """All containers of this node. ``clock`` tells seconds since the epoch; ``cache`` is the runtimes' own record."""

    def __init__(
        self, kernel: Kernel, reservations: Reservations, boot_id: str, clock: Callable[[], float], cache: Path = CACHE
    ) -> None:
        self._kernel, self._reservations, self._boot_id = kernel, reservations, boot_id
        self._clock, self._cache = clock, cache
        self._has_looked = False
        self._unwanted: set[Key] = set()
        """Complete ones that are to go, and could not yet."""
        self._dead_since: dict[Key, float] = {}
        """Reservations that nobody seems to need any more, and since when."""

    # ---- ADD -------------------------------------------------------------------------------------------------

    def add(self, call: Call, conf: NetworkConf, netns: Netns, facts: NodeFacts) -> Result:
        """Connect a container; CniError, and then nothing is left of the attempt."""
        refuse_what_cannot_be(conf, facts)
        try:
            if not self._has_looked:  # what is connected and was not recorded has its addresses
                self.look(facts)
            self._reservations.set_subnets(facts.subnets)
            self._make_room(call, conf, netns)
        except (MuslinError, OSError) as error:
            raise not_kept(error) from error
        reservation = self._reserve(wanted(call, conf, netns, facts, self._boot_id, self._clock()), conf)
        journal = MemoryJournal(Owned(sparing=True))
        try:
            report = self._connect(attachment_of(reservation, facts, netns.name), facts, journal)
            if not report.ok:
                raise refusal(report, call)
            self._reservations.complete(reservation.key)
        except (CniError, MuslinError, OSError) as error:
            self._take_back(reservation, journal)
            raise error if isinstance(error, CniError) else not_kept(error) from error
        finally:
            self._kernel.forget(netns.name)
        return merge(conf.prev_result, result_of(reservation, facts, call, conf))

    def _connect(self, attachment: attach.Attachment, facts: NodeFacts, journal: MemoryJournal) -> Report:
        """Where nothing but the packet filter is missing, have the node's own things put right, and try again."""
        desired = DesiredState(attach.plan(attachment))
        report = converge(self._kernel, desired, journal, scope_of=Scope.around)
        if any(not isinstance(one.op.object, NftElement) for one in report.wanting) or report.ok:
            return report
        self._put_right(facts)
        return converge(self._kernel, desired, journal, scope_of=Scope.around)

    def _take_back(self, reservation: Reservation, journal: MemoryJournal) -> None:
        """Undo what there is of an ADD. What cannot be undone now is known to be incomplete: the next look sees it."""
        with contextlib.suppress(MuslinError, OSError):
            if converge(self._kernel, DesiredState(), journal, scope_of=Scope.around).ok:
                self._reservations.remove(reservation.key)

    def _make_room(self, call: Call, conf: NetworkConf, netns: Netns) -> None:
        """See to it that nothing stands of an earlier ADD; CniError when it is in use.

        podman starts a container after a reboot with the id that it had, in another namespace, without a DEL before.
        """
        known = self._reservations.get(call.container_id, call.ifname)
        if known is None:
            return
        if known.complete and known.netns_inode == netns.inode and self._has_cable(known):
            if conf.prev_result and any(is_inside(one, call) for one in conf.prev_result.interfaces):
                raise CniError(
                    ErrorCode.BAD_CONFIG,
                    f"the plugin {conf.type or 'muslin-cni'} stands twice in the list of network {conf.name!r}",
                    "take one of the two out of the list",
                )
            raise in_use(call)
        if failures := self._clear([known]):
            raise CniError(ErrorCode.KERNEL_REFUSED, failures[known.key], REMEDY)
        self._unwanted.discard(known.key)

    def _has_cable(self, reservation: Reservation) -> bool:
        seen = self._kernel.observe(Scope(netns=(OWN,), links={OWN: frozenset([reservation.host_link])}))
        return cable_key(reservation) in seen.objects

    def _reserve(self, wanted: Reservation, conf: NetworkConf) -> Reservation:
        try:
            try:
                return self._reservations.add(wanted, conf.addresses)
            except PoolExhausted:
                if not self._release_dead(in_need=True):
                    raise
                return self._reservations.add(wanted, conf.addresses)
        except AddressTaken as error:
            raise CniError(ErrorCode.ADDRESS_TAKEN, str(error), "ask for another address, or for none") from None
        except AddressOutside as error:
            raise CniError(
                ErrorCode.BAD_CONFIG, str(error), "a node has addresses of its own subnet alone: muslin status shows it"
            ) from None
        except PoolExhausted as error:
            raise CniError(
                ErrorCode.TRY_AGAIN, str(error), "remove containers, or give the network larger subnets (SubnetLen)"
            ) from None
        except MuslinError as error:
            raise not_kept(error) from None

    # ---- DEL, GC ---------------------------------------------------------------------------------------------

    def delete(self, keys: Iterable[Key]) -> dict[Key, CniError]:
        """Disconnect containers, by id and interface, those that are there; what was refused, by key."""
        known = [found for key in keys if (found := self._reservations.get(*key))]
        try:
            refused = self._clear(known)
        except (MuslinError, OSError) as error:
            return dict.fromkeys((one.key for one in known), not_kept(error))
        failures = {key: CniError(ErrorCode.KERNEL_REFUSED, words, REMEDY) for key, words in refused.items()}
        for one in known:
            if one.key not in failures:
                try:
                    self._forget([one])
                except MuslinError as error:
                    failures[one.key] = not_kept(error)
        return failures

    def delete_older(self, key: Key, at: float) -> CniError | None:
        """Disconnect a container, unless it was added later than ``at``; what was refused."""
        known = self._reservations.get(*key)
        return self.delete([key]).get(key) if known and known.at < at else None

    def take_back(self, key: Key) -> None:
        """Undo an ADD that nobody knows of; by the next look, where it cannot be done now."""
        if failures := self.delete([key]):
            log.error("what is left of %s cannot be removed yet: %s", key[0], failures[key])
            self._unwanted.add(key)

    def collect(self, conf: NetworkConf) -> None:
        """Disconnect all of this network that the runtime does not name as alive; CniError tells what stayed.

        No list is an empty one, as libcni has it. An adopted container is of any network.
        """
        alive = set(conf.valid_attachments or ())
        gone = [one for one in self._reservations.all() if one.network in (conf.name, "") and one.key not in alive]
        if failures := list(self.delete(one.key for one in gone).values()):
            raise CniError(failures[0].code, "; ".join(one.msg for one in failures), failures[0].details)

    def _clear(self, known: Sequence[Reservation]) -> dict[Key, str]:
        """Take cables and elements of these off the kernel, at once; what was refused, by reservation."""
        if not known:
            return {}
        owner = {key: one.key for one in known for key in node_keys(one)}
        report = converge(
            self._kernel, DesiredState(), MemoryJournal(Owned(keys=frozenset(owner))), scope_of=Scope.around
        )
        return {owner[result.op.key]: result.describe() for result in report.failed}

    def _forget(self, gone: Iterable[Reservation]) -> None:
        for one in gone:
            self._reservations.remove(one.key)
            self._dead_since.pop(one.key, None)

    # ---- CHECK, STATUS ---------------------------------------------------------------------------------------

    def check(self, call: Call, conf: NetworkConf, netns: Netns, facts: NodeFacts) -> None:
        """CniError when what the ADD made is not as it was; changes nothing.

        Later plugins may have given the interface another MAC or MTU (``prevResult`` says so), and others may have
        added to it.
        """
        known = self._reservations.get(call.container_id, call.ifname)
        if known is None or not known.complete:
            raise CniError(ErrorCode.UNKNOWN_CONTAINER, f"{named(call)} is not connected by this node", "add it again")
        previous = conf.prev_result or Result()
        told = [ip.address for ip in previous.ips]
        if told and (missing := [address for address in known.addresses if address not in told]):
            raise CniError(
                ErrorCode.BAD_CONFIG,
                f"{named(call)} has {' and '.join(missing)}, and prevResult tells of {told}",
                "prevResult has to be what the last ADD of this interface answered",
            )
        attachment = attachment_of(known, facts, netns.name)
        inside = next((one for one in previous.interfaces if is_inside(one, call)), Interface(name=call.ifname))
        attachment = msgspec.structs.replace(attachment, mac=inside.mac or attachment.mac)
        planned = (obj for obj in attach.plan(attachment) if not is_left_to_others(obj, attachment))
        desired = DesiredState(tuple(with_mtu(obj, inside.mtu) if obj.netns == netns.name else obj for obj in planned))
        try:
            _, ops = plan_ops(self._kernel, desired, Owned(sparing=True), _closely)
        finally:
            self._kernel.forget(netns.name)
        if ops:
            command = ops[0].describe().replace(netns.name, call.netns)
            more = f", and {len(ops) - 1} more" if len(ops) > 1 else ""
            raise CniError(
                ErrorCode.KERNEL_REFUSED,
                f"{named(call)} is not as it was made; missing: {command}{more}",
                "remove it and add it again",
            )

    def status(self, facts: NodeFacts) -> None:
        """CniError when an ADD could not work now, or when containers that are there may not be reached."""
        if facts.degraded:
            raise CniError(ErrorCode.NOT_AVAILABLE_AND_LIMITED, facts.degraded, "muslin status tells more")
        if facts.trouble:
            raise CniError(ErrorCode.NOT_AVAILABLE, facts.trouble, "muslin status tells more")
        self._reservations.set_subnets(facts.subnets)
        full = [pool for pool in self._reservations.pools if pool.taken >= pool.total]
        if full and not self._dead():
            raise CniError(
                ErrorCode.NOT_AVAILABLE,
                str(PoolExhausted(full[0].subnet, full[0].total, full[0].taken)),
                "remove containers, or give the network larger subnets (SubnetLen)",
            )

    @property
    def count(self) -> int:
        """How many there are; from any thread."""
        return self._reservations.count

    @property
    def free(self) -> dict[str, int]:
        """Addresses that are left, by subnet; from any thread."""
        return {pool.subnet: pool.total - pool.taken for pool in self._reservations.pools}

    def all(self) -> list[Reservation]:
        """All containers that this node has, and had and keeps addresses for."""
        return list(self._reservations.all())

    def concerns(self, hint: Hint, facts: NodeFacts) -> bool:
        """Whether somebody has changed what containers have on the node; from any thread.

        That a cable came or went is its runtime's doing, or ours.
        """
        obj = hint.object
        if obj is None or isinstance(obj, NftTable):
            return obj is None or obj.name == sources.TABLE
        if hint.removed == isinstance(obj, Link):  # of a link what it became, of all else that it went
            return False
        one = self._reservations.by_cable(obj.name if isinstance(obj, Link) else getattr(obj, "link", "") or "")
        if one is None or not one.complete:
            return False
        wanted = next((w for w in attach.plan_node_side(attachment_of(one, facts)) if w.key == obj.key), None)
        return wanted is not None and (hint.removed or not _alike(wanted, obj).satisfied_by(obj))

    # ---- looks -----------------------------------------------------------------------------------------------

    def look(self, facts: NodeFacts) -> tuple[str, ...]:
        """Put right what others have changed of it on the node, and release what is dead; what is wrong, in words."""
        self._reservations.set_subnets(facts.subnets)
        self.recover()
        failed, said = self._put_right(facts)
        self._release_dead()
        return (*failed[:1], *said, *outside_sentence(self.all(), facts))

    def _put_right(self, facts: NodeFacts) -> tuple[list[str], list[str]]:
        """See that the node has what it should have of each container; what was refused, and what is worth knowing.

        No cable is taken away: one that nobody has recorded is some container's all the same.
        """
        seen = self._kernel.observe(wide_scope([one.host_link for one in self.all()], facts))
        said = self._adopt(seen, facts)
        living = [one for one in self.all() if cable_key(one) in seen.objects]
        alike = [one for one in living if one.mode == facts.mode]
        others = [one for one in living if one.mode != facts.mode]
        table = sources.table(OWN, facts.filter_family)
        # Once it is there it stays, or the first container of many would wait for it again and again.
        is_wanted = table.key in seen.objects or any(one.spoof_check for one in alike)
        desired = DesiredState(
            (*([table] if is_wanted else []), *(obj for one in alike for obj in _on_the_node(one, seen, facts)))
        )
        results = self._kernel.apply(diff(desired, seen, filters_in(seen, facts.filter_family if others else None)))
        self._has_looked = True
        said += [*other_mode_sentence(others, facts), *unknown_sentence(seen, {one.host_link for one in living})]
        return [result.describe() for result in results if result.outcome == "failed"], said

    def _adopt(self, seen: Snapshot, facts: NodeFacts) -> list[str]:
        """Keep what is connected, and of which the record was lost: alias and packet filter tell what it was."""
        said = []
        for lost in unrecorded(seen, {one.host_link for one in self.all()}, facts, self._boot_id, self._clock()):
            with contextlib.suppress(AddressTaken, AddressOutside, PoolExhausted):  # then it goes, as a stray
                self._reservations.set_subnets(facts.subnets)
                self._reservations.add(lost, lost.addresses)
                said.append(f"nothing was recorded of the container {lost.container_id[:12]}, which is connected")
        return said

    def recover(self) -> None:
        """Undo what an agent was at when it was killed, or could not undo: its runtime has been told that it failed."""
        gone = [one.key for one in self._reservations.all() if not one.complete or one.key in self._unwanted]
        failures = self.delete(gone)
        self._unwanted &= failures.keys()
        for key, error in failures.items():
            log.error("what is left of %s cannot be removed: %s", "/".join(key), error.msg)

    def _release_dead(self, in_need: bool = False) -> bool:
        """Release what nobody needs any more; whether there was any."""
        now = self._clock()
        dead = self._dead()
        since = {one.key: self._dead_since.get(one.key, now) for one in dead}
        self._dead_since = dict(since)
        gone = [one for one in dead if in_need or (now - since[one.key] >= PATIENCE_S and not self._is_noted(one))]
        self._clear(gone)
        self._forget(gone)
        return bool(gone)

    def _dead(self) -> list[Reservation]:
        """Those of which neither the cable nor the namespace is there any more; most have their cable."""
        cables = self._kernel.observe(Scope(netns=(OWN,), links_only=True)).objects
        bare = (one for one in self._reservations.all() if cable_key(one) not in cables)
        return [one for one in bare if one.boot_id != self._boot_id or not is_netns_of(one)]

    def _is_noted(self, one: Reservation) -> bool:
        with contextlib.suppress(OSError):  # a name that is too long for a file is that of none
            return (self._cache / f"{one.network}-{one.container_id}-{one.ifname}").exists()
        return False


def _closely(desired: DesiredState, owned: Owned) -> Scope:
    """As ``Scope.around``, and every element that is wanted: for who wants to know, and not to make it so."""
    scope = Scope.around(desired, owned)
    return msgspec.structs.replace(scope, nft_elements=frozenset(desired.only(NftElement)))


def _on_the_node(one: Reservation, seen: Snapshot, facts: NodeFacts) -> list[AnyObject]:
    """What is wanted on the node of a container that is there."""
    there = seen.objects[cable_key(one)]
    return [_alike(obj, there) for obj in attach.plan_node_side(attachment_of(one, facts))]


def _alike(wanted: AnyObject, there: AnyObject) -> Any:
    """A cable as it is wanted: which namespace its other end lies in cannot be seen from here. All else as it is."""
    if isinstance(wanted, Link) and isinstance(there, Link):
        return msgspec.structs.replace(wanted, options=there.options)
    return wanted
