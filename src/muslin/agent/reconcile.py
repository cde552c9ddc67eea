"""Makes this host's kernel agree with what the leases ask for: whole looks, and quick steps between them.

Theory of operation: everything here runs in one thread, the only one that touches the kernel, so that the event loop
answers while the kernel works.

- ``look`` observes, compares and puts right: the truth. The interface to other nodes is chosen from what was seen in
  that same look; if that makes another choice, the look is repeated with it.
- ``follow`` does what some changed leases ask for without looking, as if the kernel agreed with the plan before. If
  the kernel refuses any of it, it did not agree, and the outcome asks for a look.

What a look changes although no lease or setting asked for it is a repair: somebody else had changed it. A bridge that
had to be made anew gets back the ports that it was last seen with.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from muslin.agent.forwarding import ListTable, dropped_networks
from muslin.agent.node_plan import NodeInputs
from muslin.agent.planner import Change, Planner
from muslin.agent.underlay import Underlay, UnderlayOptions, choose_underlay
from muslin.errors import MuslinError, UsageError
from muslin.kernel import nft_counters
from muslin.kernel.base import Kernel, Scope, Witness
from muslin.kernel.converge import Journal, converge
from muslin.model.address import Family, family_of
from muslin.model.config import NetworkConfig, span_of
from muslin.model.kernel import PROTOCOL_MUSLIN, TABLE_MAIN, AnyObject, Key, Link, Route, Vxlan, link_key
from muslin.model.lease import Advertisement, Lease
from muslin.model.network import Refusal, Tunnel
from muslin.model.ops import Create, Delete, Op, OpResult, SetLink
from muslin.model.state import OWN_TABLE, DesiredState, Owned, Snapshot
from muslin.plan.diff import diff
from muslin.plan.traffic import STRANGERS, TABLE
from muslin.wire.agent_api import TunnelStatus

OWN = ""
UNDERLAY_TRIES = 3


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator said of this host."""

    name: str
    underlay: UnderlayOptions = UnderlayOptions()
    bridge: str = ""
    masquerade: bool = False
    fully_random: bool = True
    forward: bool = True


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The network as far as this host knows: its configuration, the own subnets, the leases of the others."""

    config: NetworkConfig
    subnets: tuple[str, ...]
    leases: tuple[Lease, ...]
    vtep_mac: str
    previous: NetworkConfig | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that the kernel refused, and since when it does."""

    result: OpResult
    words: str
    """The command, and why it did not work."""
    since: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a look or a step came to."""

    whole: bool
    duration_s: float
    objects: int
    split: dict[str, float] = {}
    """What the duration of a look is made of, in seconds."""
    done: tuple[Op, ...] = ()
    repairs: tuple[Op, ...] = ()
    refused: int = 0
    """Operations of this pass that the kernel did not take."""
    failures: tuple[Failure, ...] = ()
    """What is still missing, of this pass and those before."""
    leases: Mapping[str, Lease] = {}
    """Those of others that were planned for, by name; never changed afterwards."""
    refusals: tuple[Refusal, ...] = ()
    changed: tuple[str, ...] = ()
    """Names of leases that came, went or changed."""
    failed_leases: dict[str, str] = {}
    """Why the kernel does not have all that a lease asks for, by its name."""
    own_failed: bool = False
    """Whether something that the host needs whatever the peers is missing."""
    underlay: Underlay | None = None
    advertisement: Advertisement | None = None
    """What the own lease should say; None while that is unknown."""
    mtu: int = 0
    tunnel: Tunnel | None = None
    devices: tuple[str, ...] = ()
    """Names of the links whose traffic is the network's."""
    tunnel_ended: str = ""
    """A sentence when the tunnel's process is found to have ended by itself; once, however long it stays away."""
    tunnel_is_down: bool = False
    """Whether it could not be made to run, and will be tried again."""
    troubles: tuple[str, ...] = ()
    """Sentences: the interface, the tunnel, routes of others in the way."""
    look_again: bool = False


class TunnelDoor(Protocol):
    """Starts, changes and ends the process of the udp backend (``agent.tunnel``)."""

    def converge(self, tunnel: Tunnel | None) -> None:
        """Have this tunnel run, or none; MuslinError in the program's own words."""
        ...

    def check(self) -> str:
        """A sentence when the tunnel should run and does not."""
        ...

    def status(self) -> TunnelStatus | None:
        """The running tunnel, with its counters."""
        ...


class Interests(NamedTuple):
    """What an event can touch. ``wanted`` may be asked for keys and not be walked through: it changes meanwhile."""

    wanted: Mapping[Key, AnyObject]
    owned: Owned
    underlay: str
    """The link to other nodes, empty while there is none."""
    networks: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    """Of this node, within the networks."""


class SeeingKernel:
    """A kernel that remembers what was seen last, and how long looking and writing took.

    It always looks at the host itself: marks tell what is ours even when nothing is wanted and no record names a place.
    ``ahead_of_removals`` is called when all that is new is there and all that is old still is.
    """

    def __init__(self, kernel: Kernel, ahead_of_removals: Callable[[], None] = lambda: None) -> None:
        self._kernel, self._ahead_of_removals = kernel, ahead_of_removals
        self.seen = Snapshot()
        self.observe_s = self.apply_s = 0.0

    def observe(self, scope: Scope) -> Snapshot:
        """See ``Kernel.observe``."""
        begun = time.perf_counter()
        if OWN not in scope.netns:
            netns, nft = (*scope.netns, OWN), scope.nft | {(OWN, *OWN_TABLE)}
            scope = msgspec.structs.replace(scope, netns=netns, nft=nft)
        self.seen = self._kernel.observe(scope)
        self.observe_s += time.perf_counter() - begun
        return self.seen

    def apply(self, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False) -> list[OpResult]:
        """See ``Kernel.apply``."""
        begun = time.perf_counter()
        end = len(ops)
        while end and isinstance(ops[end - 1], Delete):
            end -= 1
        results = self._kernel.apply(ops[:end], witness, one_by_one=one_by_one)
        if end < len(ops):
            self._ahead_of_removals()
            results += self._kernel.apply(ops[end:], witness, one_by_one=one_by_one)
        self.apply_s += time.perf_counter() - begun
        return results

    def forget(self, netns: str) -> None:
        """See ``Kernel``."""
        self._kernel.forget(netns)

    def settle(self, links: Iterable[Key]) -> None:
        """See ``Kernel.settle``."""
        self._kernel.settle(links)

    def close(self) -> None:
        """See ``Kernel.close``."""
        self._kernel.close()


class Reconciler:
    """The one who writes. ``clock`` tells seconds since the epoch."""

    def __init__(
        self,
        kernel: Kernel,
        journal: Journal,
        tunnels: TunnelDoor,
        host: HostOptions,
        clock: Callable[[], float] = time.time,
        list_table: ListTable = lambda _: "",
    ) -> None:
        self.planner: Planner | None = None
        self.underlay: Underlay | None = None
        self.bridge = host.bridge
        self._kernel = SeeingKernel(kernel, self._widen_tunnel)
        self._journal, self._tunnels, self._host, self._clock = journal, tunnels, host, clock
        self._list_table = list_table
        self._failures: dict[Key, Failure] = {}
        self._ports: tuple[str, ...] = ()
        self._troubles: tuple[str, ...] = ()
        """What the last look found wrong beyond single operations."""
        self._tunnel_trouble = self._tunnel_ended = ""
        self._tunnel_peers: tuple[tuple[str, str], ...] = ()
        self._is_new = True
        """Whether no look has gone through yet with this planner: then nothing of it is a repair."""
        self._expected: set[Key] = set()
        self._changed: tuple[str, ...] = ()
        """The keys and the leases whose plan has changed since a pass has gone through."""

    # ---- the interface to other nodes ------------------------------------------------------------------------

    def choose(self) -> Underlay:
        """The interface to use as of now; UsageError when none fits."""
        self._kernel.observe(Scope(netns=(OWN,)))
        self.underlay = choose_underlay(self._kernel.seen, self._host.underlay)
        return self.underlay

    def mac_of_own_device(self) -> str:
        """The MAC of a VXLAN device that an earlier run left, empty where there is none: peers know it."""
        owned = self._journal.owned.with_marks(self._kernel.seen)
        links = (obj for obj in self._kernel.seen.objects.values() if isinstance(obj, Link) and owned.covers(obj))
        return next((link.mac for link in links if link.mac and isinstance(link.options, Vxlan)), "")

    # ---- looks and steps -------------------------------------------------------------------------------------

    def look(self, wish: Wish) -> Outcome:
        """Make the kernel agree with ``wish``, whatever it holds now."""
        begun = time.perf_counter()
        self._kernel.observe_s = self._kernel.apply_s = plan_s = 0.0
        troubles: tuple[str, ...] = ()
        results: tuple[OpResult, ...] = ()
        latest: tuple[OpResult, ...] = ()
        for _ in range(UNDERLAY_TRIES):
            underlay = self.underlay or self.choose()
            plan_begun = time.perf_counter()
            planner = self._planner_for(wish, underlay)
            self._is_new |= planner is not self.planner
            self.planner = planner
            self._note(planner.update(wish.leases))
            plan_s += time.perf_counter() - plan_begun
            latest = converge(self._kernel, planner.state, self._journal).results
            results += latest
            try:
                chosen = choose_underlay(self._kernel.seen, self._host.underlay)
            except UsageError as error:  # keep to the last one: it may come back, and nothing is better meanwhile
                troubles = (error.what,)
                break
            if chosen == self.underlay:
                break
            self.underlay = chosen
        repairs = () if self._is_new else tuple(r.op for r in results if self._is_repair(r))
        self._is_new = False
        returned = self._return_ports(results)
        results += returned
        self._failures = self._failed((*latest, *returned))
        self._troubles = (*troubles, *self._obstacles())
        outcome = self._outcome(begun, results, repairs, whole=True)
        split = {"plan": plan_s, "observe": self._kernel.observe_s, "apply": self._kernel.apply_s}
        return msgspec.structs.replace(outcome, split=split | {"compare": outcome.duration_s - sum(split.values())})

    def _obstacles(self) -> Iterator[str]:
        """What others on this host have set up that takes containers' packets away."""
        if self.planner is not None:
            yield from _in_the_way(self.planner, self._kernel.seen)
            yield from dropped_networks(self.planner.inputs.config.networks, self._list_table)

    def follow(self, wish: Wish) -> Outcome:
        """Do what changed leases ask for, if that is all that has changed; else look.

        What the kernel refused before is left to a look: only that sees whose it is that stands there.
        """
        planner = self.planner
        if planner is None or self.underlay is None or planner is not self._planner_for(wish, self.underlay):
            return self.look(wish)
        begun = time.perf_counter()
        change = planner.update(wish.leases)
        self._note(change)
        wanted = diff(DesiredState(change.after), Snapshot.of(change.before), self._journal.owned)
        ops = [op for op in wanted if op.key not in self._failures]
        results = tuple(self._kernel.apply(ops)) if ops else ()
        failed = self._failed(results)
        self._failures |= failed
        look_again = bool(failed) or len(ops) < len(wanted)
        return self._outcome(begun, results, (), whole=False, look_again=look_again)

    def withdraw(self) -> Outcome:
        """Remove all that is ours: the lease is lost, or everything is to go."""
        begun = time.perf_counter()
        self.planner = None
        self._converge_tunnel(None)
        results = converge(self._kernel, DesiredState(), self._journal).results
        self._failures = self._failed(results)
        try:
            self.choose()  # with another address this may be another node, which has a lease
        except UsageError as error:
            self._troubles = (error.what,)
        else:
            self._troubles = ()
        return self._outcome(begun, results, (), whole=True)

    def interests(self) -> Interests:
        """By what to judge an event, from any thread while a pass goes on."""
        planner, underlay = self.planner, self.underlay
        return Interests(
            wanted=planner.wanted if planner else {},
            owned=self._journal.owned,
            underlay=underlay.link if underlay else "",
            networks=planner.inputs.config.networks if planner else (),
            subnets=planner.inputs.subnets if planner else (),
        )

    def check_tunnel(self) -> str:
        """A sentence when the tunnel's process has ended by itself."""
        return self._tunnels.check()

    def tunnel_status(self) -> TunnelStatus | None:
        """The tunnel's process with what it counts."""
        return self._tunnels.status()

    def figures(self) -> tuple[TunnelStatus | None, int | None]:
        """The tunnel's process with what it counts, and how many packets of strangers were dropped."""
        ports = self.planner.host.filtering.tunnel_ports if self.planner else ()
        return self._tunnels.status(), nft_counters.read_packets(OWN, "inet", TABLE, STRANGERS) if ports else None

    def _planner_for(self, wish: Wish, underlay: Underlay) -> Planner:
        """The planner that there is, or another one where more than leases has changed."""
        host = self._host
        inputs = NodeInputs(
            name=host.name,
            config=wish.config,
            underlay=underlay,
            subnets=wish.subnets,
            vtep_mac=wish.vtep_mac,
            previous=wish.previous,
            bridge=host.bridge,
            masquerade=host.masquerade,
            fully_random=host.fully_random,
            forward=host.forward,
        )
        return self.planner if self.planner is not None and self.planner.inputs == inputs else Planner(inputs)

    # ---- after the kernel ------------------------------------------------------------------------------------

    def _note(self, change: Change) -> None:
        self._expected |= {obj.key for obj in (*change.before, *change.after)}
        self._changed += change.leases

    def _is_repair(self, result: OpResult) -> bool:
        return result.outcome == "done" and result.op.key not in self._expected and result.op.key not in self._failures

    def _failed(self, results: Iterable[OpResult]) -> dict[Key, Failure]:
        """What failed, by key; what did so before is told since then. Of several of one key, what failed first."""
        now, before = self._clock(), self._failures
        failed: dict[Key, Failure] = {}
        for result in results:
            key = result.op.key
            if result.outcome != "done" and key not in failed:
                since = before[key].since if key in before else now
                failed[key] = Failure(result=result, words=result.describe(), since=since)
        return failed

    def _return_ports(self, results: Iterable[OpResult]) -> tuple[OpResult, ...]:
        """The results of giving a bridge that was made just now the ports that the one before had."""
        bridge, seen = self.bridge, self._kernel.seen
        if not bridge:
            return ()
        key = link_key(OWN, bridge)
        if not any(r.op.key == key and isinstance(r.op, Create) and r.outcome == "done" for r in results):
            links = (obj for obj in seen.objects.values() if isinstance(obj, Link) and obj.netns == OWN)
            self._ports = tuple(link.name for link in links if link.master == bridge)
            return ()
        lost = (seen.objects.get(link_key(OWN, name)) for name in self._ports)
        free = (port for port in lost if isinstance(port, Link) and not port.master)
        return tuple(
            self._kernel.apply([SetLink(msgspec.structs.replace(port, master=bridge), "master") for port in free])
        )

    def _converge_tunnel(self, tunnel: Tunnel | None) -> None:
        """Have it run, or say what is wrong with it from now on; that it had ended by itself is noted."""
        if tunnel is not None and not self._tunnel_trouble:
            self._tunnel_ended = self._tunnel_ended or self._tunnels.check()
        try:
            self._tunnels.converge(tunnel)
        except MuslinError as error:
            self._tunnel_trouble = error.what
            return
        self._tunnel_trouble = ""
        self._tunnel_peers = tunnel.peers if tunnel is not None else ()
        if tunnel is not None:
            self._kernel.settle([link_key(OWN, tunnel.device)])

    def _widen_tunnel(self) -> None:
        """Have the tunnel run and know the peers of before and of now, so that each way is there before one goes."""
        tunnel = self.planner.tunnel if self.planner else None
        if tunnel is not None:
            claimed = {prefix for prefix, _ in tunnel.peers}
            former = tuple(entry for entry in self._tunnel_peers if entry[0] not in claimed)
            self._converge_tunnel(msgspec.structs.replace(tunnel, peers=(*tunnel.peers, *former)))

    def _outcome(
        self,
        begun: float,
        results: tuple[OpResult, ...],
        repairs: tuple[Op, ...],
        *,
        whole: bool,
        look_again: bool = False,
    ) -> Outcome:
        planner = self.planner
        tunnel = planner.tunnel if planner else None
        changed, self._changed = self._changed, ()
        self._expected.clear()
        if planner is not None and (whole or changed):
            self._converge_tunnel(tunnel)
        tunnel_ended, self._tunnel_ended = self._tunnel_ended, ""
        failures = tuple(self._failures.values())
        own = {obj.key for obj in planner.own.objects} if planner and failures else set()
        return Outcome(
            whole=whole,
            duration_s=time.perf_counter() - begun,
            objects=len(planner.wanted) if planner else 0,
            done=tuple(result.op for result in results if result.outcome == "done"),
            repairs=repairs,
            refused=sum(result.outcome != "done" for result in results),
            failures=failures,
            refusals=tuple(planner.refusals) if planner else (),
            leases=planner.leases if planner else {},
            changed=tuple(dict.fromkeys(changed)),
            failed_leases=_failed_leases(planner, failures) if planner and failures else {},
            own_failed=any(failure.result.op.key in own for failure in failures),
            underlay=self.underlay,
            advertisement=planner.host.advertisement() if planner else None,
            mtu=planner.host.mtu if planner else 0,
            tunnel=tunnel,
            devices=planner.devices if planner else (),
            tunnel_ended=tunnel_ended,
            tunnel_is_down=bool(self._tunnel_trouble),
            troubles=(*self._troubles, *filter(None, (self._tunnel_trouble,))),
            look_again=look_again,
        )


def _failed_leases(planner: Planner, failures: Iterable[Failure]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for failure in failures:
        for name in planner.leases_wanting(failure.result.op.key):
            reasons.setdefault(name, failure.words)
    return reasons


def _in_the_way(planner: Planner, seen: Snapshot) -> Iterator[str]:
    """Routes of others that are longer than a peer's and lead a part of its containers elsewhere."""
    networks = [(family_of(network), *span_of(network)) for network in planner.inputs.config.networks]
    own = [(family_of(subnet), *span_of(subnet)) for subnet in planner.inputs.subnets]
    found = []
    for obj in seen.only(Route):
        # Of ours, of the bridge or of an overlay's device, or asked only by a rule of others.
        is_ours = obj.protocol == PROTOCOL_MUSLIN or link_key(OWN, obj.link or "") in planner.wanted
        if is_ours or obj.kind != "unicast" or obj.table != TABLE_MAIN:
            continue
        span = (family_of(obj.destination), *span_of(obj.destination))
        # A route to a container of this host (the CNI plugin ptp makes one for each) is where it belongs.
        if _in_one_of(networks, span) and not _in_one_of(own, span):
            found.append((obj, span))
    if not found:
        return
    leases = planner.leases.items()
    spans = sorted(((family_of(net), *span_of(net)), name) for name, lease in leases for net in lease.subnets)
    for obj, (family, first, last) in found:
        # Of the leases that begin at or before the route, the last one: they hardly ever overlap.
        number = bisect_right(spans, (family, first), key=lambda entry: entry[0][:2]) - 1
        if number >= 0 and _in_one_of([spans[number][0]], (family, first, last)):
            route = obj.describe().removeprefix("ip route add ")
            yield (
                f"the route {route}, which is not Muslin's, leads a part of {spans[number][1]} elsewhere: remove it, "
                "or give the network another range"
            )


Span = tuple[Family, int, int]


def _in_one_of(spans: Iterable[Span], inner: Span) -> bool:
    family, first, last = inner
    return any(family == other and low <= first and last <= high for other, low, high in spans)
