"""One node of the network: the loop that holds a lease and keeps the kernel in agreement with everybody's.

Theory of operation:

    store.watch ──> Network ──> Wish ──┐                      ┌──> subnet.env, readiness, status, events
         └──> LeaseKeeper ──> lease ───┤                      │
    netlink events ("look again") ─────┼──> the kernel task ──┼──> what our lease says (LeaseKeeper)
    timer (look anyway) ───────────────┘    one pass a time   └──> the next look, when something failed

Everything but the passes runs in the event loop; the passes run in a thread of their own (``reconcile.Reconciler``).
When there is one, and that neither a storm of events nor the timer takes more than a share of a core, is ``Agenda``'s.

Our lease says what the kernel already does: a new backend is set up first and advertised then. While the store is away
and has not answered since the start, the last snapshot on disk serves. A lease that is lost takes all that is ours off
the kernel; that nothing is known yet changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from muslin.agent.agenda import Agenda
from muslin.agent.cni_server import CniServer
from muslin.agent.events import EventLog
from muslin.agent.files import StateDirectory, read_subnet_env, write_subnet_env
from muslin.agent.lease_keeper import LeaseKeeper
from muslin.agent.memory import Memory
from muslin.agent.metrics import Counters
from muslin.agent.network import Network
from muslin.agent.node_plan import Host, NodeInputs
from muslin.agent.reconcile import Outcome, Reconciler, Wish
from muslin.agent.status import repair_of, status_of
from muslin.agent.tunnel_counters import DropWatch
from muslin.agent.underlay import Underlay
from muslin.errors import MuslinError, UsageError
from muslin.lease.sight import is_ours, overlapping
from muslin.lease.values import AdvertisementChanged, Announce, ConfigChanged, Machine, Rules, SnapshotSeen, Stop
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.store.base import Store, StoreUnavailable
from muslin.wire.agent_api import AgentStatus, Container, Repair, TunnelStatus
from muslin.wire.subnet_env import SubnetEnv

log = logging.getLogger("muslin.agent")

Result = TypeVar("Result")

UNDERLAY_CHECK_S = 1.0
"""How often an interface to other nodes is looked for, at least, while there is none."""
HEARING_GAP_S = 0.02
"""Events that come within this time of others are heard together."""
TUNNEL_CHECK_S = 0.5
DROPS_CHECK_S = 30.0
"""How often the tunnel is asked for new kinds of drops, at least; each status and scrape asks, too."""
REFRESH_S = 1.0
REPAIRS_KEPT = 20
STUCK_S = 60.0
"""A pass that takes longer is a loop that is not alive."""


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator said, as far as the loop is concerned."""

    name: str
    store_kind: str
    subnet_file: Path
    masquerade: bool = False
    rules: Rules = Rules()
    resync_s: float = 30.0
    network_config: bytes = b""
    """Written to the store if it has none."""
    vtep_mac: str = ""
    """That of the VXLAN device; empty: the one that it had before, or a random one."""


class KernelWatch(Protocol):
    """Tells that something was changed by somebody else."""

    def fileno(self) -> int:
        """Readable when there may be something."""
        ...

    def is_due(self, reconciler: Reconciler) -> bool:
        """Whether what came since the last call asks for a look."""
        ...


class Node:
    """The loop of one agent."""

    def __init__(
        self,
        options: NodeOptions,
        store: Store,
        reconciler: Reconciler,
        watch: KernelWatch,
        directory: StateDirectory,
    ) -> None:
        self.options = options
        self.events = EventLog()
        self.counters = Counters()
        self.store, self.reconciler, self.watch = store, reconciler, watch
        self.started_at = time.time()
        self.memory = Memory(directory)
        self.network = Network(self.memory.node.config, self.memory.node.previous)
        self.keeper: LeaseKeeper | None = None
        self.announced: Announce | None = None
        self.from_disk = False
        self.last_look: Outcome | None = None
        self.last: Outcome | None = None
        self.looks = 0
        self.changed_at: dict[str, float] = {}
        self.trouble = ""
        self.last_look_at: float | None = None
        self.tunnel_status: TunnelStatus | None = None
        self.strangers_dropped: int | None = None
        self.repairs: deque[Repair] = deque(maxlen=REPAIRS_KEPT)
        self.containers: CniServer | None = None
        """Who serves container runtimes, where somebody does."""
        self.known: Mapping[str, Lease] = {}
        """The leases that the last pass planned for, by name."""
        self.programmed: tuple[str, ...] = ()
        """The subnets that the kernel was made to agree with."""
        self._listens_again: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()
        self._agenda = Agenda()
        self._refreshed_at = -REFRESH_S
        self._drop_watch = DropWatch()
        self._busy_since: float | None = None
        self._had_lease = False
        """Whether being without a lease means that one was lost, and not that none is known yet."""
        self._is_withdrawn = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")

    # ---- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until ``stop``; the network stays as it is."""
        loop = asyncio.get_running_loop()
        self._listen()
        self.store.on_trouble = self._on_store_trouble
        tasks: list[asyncio.Task[None]] = []
        try:
            underlay = await self._until_underlay()
            if underlay is not None:
                await self._begin(underlay)
                work = (self._follow_store(), self._keep_kernel(), self._keep_tunnel(), self._until_stopped())
                tasks = [asyncio.create_task(one) for one in work]
                done, _ = await asyncio.wait((*tasks, self._keeper.fault), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            if self._listens_again is not None:
                self._listens_again.cancel()
            loop.remove_reader(self.watch.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()

    async def stop(self, release: bool) -> None:
        """``end``, for the API."""
        self.end(release)

    def end(self, release: bool = False) -> None:
        """End, and with ``release`` give the lease back first; returns at once. Asked again without, it ends now."""
        if self.keeper is not None:
            self.keeper.feed(Stop(release=release))
        if not release or self.keeper is None:
            self._stopping.set()
            self._agenda.follow()

    def look(self) -> None:
        """Have a look at the kernel now."""
        self._agenda.look()

    async def _until_stopped(self) -> None:
        await self._stopping.wait()

    async def _until_underlay(self) -> Underlay | None:
        """The interface to other nodes, as soon as there is one; None when stopped before."""
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                return await self._in_thread(self.reconciler.choose)
            except (UsageError, OSError) as error:
                self._say_trouble(error.what if isinstance(error, UsageError) else str(error))
            self._agenda.looked(time.monotonic() - begun)
            self._agenda.look(UNDERLAY_CHECK_S)
            await self._agenda.until_due()
        return None

    async def _begin(self, underlay: Underlay) -> None:
        self.trouble = ""
        known = self.options.vtep_mac or self.memory.node.vtep_mac
        mac = known or await self._in_thread(self.reconciler.mac_of_own_device) or random_mac()
        self.memory.remember(vtep_mac=mac, subnet_file=str(self.options.subnet_file))
        env = read_subnet_env(self.options.subnet_file)
        former = self.memory.node.lease.subnets if self.memory.node.lease else ()
        machine = Machine(
            advertisement=Advertisement(addresses=underlay.public_addresses, backend=""),
            previous=env.subnets if env else former,
            rules=self.options.rules,
        )
        self.keeper = LeaseKeeper(self.store, machine, self._on_lease)
        log.info("node %s: uses %s, %s", self.options.name, underlay.link, " and ".join(underlay.addresses))

    async def _end(self) -> None:
        if self.keeper is not None:
            if not self._stopping.is_set() or self.keeper.machine.state not in ("released", "lost"):
                self.keeper.feed(Stop())
            await self.keeper.close()
        self.memory.save()
        await self.store.close()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)  # a pass that is under way comes to its end

    # ---- the store -------------------------------------------------------------------------------------------

    async def _follow_store(self) -> None:
        async with aclosing(self.store.watch()) as snapshots:  # type: ignore[type-var]
            async for snapshot in snapshots:
                self.from_disk = False
                self._take_config(self.network.take(snapshot))
                self._note_loss(snapshot)
                if snapshot.config is None and self.options.network_config:
                    await self._write_config()
                self._keeper.feed(SnapshotSeen(snapshot))
                self.memory.keep(snapshot)
                self._agenda.follow()

    @property
    def _keeper(self) -> LeaseKeeper:
        assert self.keeper is not None, "the store is followed only once the keeper is there"
        return self.keeper

    def _note_loss(self, snapshot: ClusterSnapshot) -> None:
        """The lease of an earlier run is lost, as one of this run would be, if the store shows it to be another's."""
        former = self.memory.node.lease
        if former is not None and not self._had_lease:
            says = self._keeper.machine.advertisement
            self._had_lease = any(not is_ours(other, says) for other in overlapping(snapshot, former.subnets))

    def _take_config(self, is_new: bool) -> None:
        """Another configuration: the kernel follows first, then the lease says so. Without a lease, at once."""
        config = self.network.config
        if config is None:
            return
        self._introduce()
        if config != self._keeper.machine.config:
            self._keeper.feed(ConfigChanged(config))
        if is_new:
            self._tell("config", f"the network is {' and '.join(config.networks)} by the backend {config.backend}")
            self.memory.remember(config=config, previous=self.network.previous)
            self._agenda.look()

    def _introduce(self) -> None:
        """Without a lease nothing has to be made ready before the next one speaks of it."""
        underlay, config = self.reconciler.underlay, self.network.config
        if self._keeper.machine.lease is None and underlay is not None and config is not None:
            mac = self.memory.node.vtep_mac
            host = Host(NodeInputs(name=self.options.name, config=config, underlay=underlay, subnets=(), vtep_mac=mac))
            self._advertise(host.advertisement())

    async def _write_config(self) -> None:
        try:
            await self.store.write_config(self.options.network_config)
        except StoreUnavailable as error:
            log.warning("the network's configuration could not be written: %s", error.what)

    def _advertise(self, says: Advertisement) -> None:
        if says != self._keeper.machine.advertisement:
            self._keeper.feed(AdvertisementChanged(says))

    def _on_store_trouble(self, trouble: str | None) -> None:
        if trouble is None:
            self._tell("store", "the store answers again")
            return
        self.counters.store_errors += 1
        self._tell("store", f"the store is away, and what it said last holds: {trouble}", logging.WARNING)
        if self.network.snapshot is None and (snapshot := self.memory.last_snapshot()) is not None:
            self.network.take(snapshot)
            self.from_disk = True
            self._agenda.look()

    def _on_lease(self, news: Announce) -> None:
        before, self.announced = self.announced, news
        if news.sentence and (before is None or before.sentence != news.sentence):
            self._tell("lease", news.sentence, logging.ERROR if news.state == "lost" else logging.INFO)
        if news.warning and (before is None or before.warning != news.warning):
            self._tell("lease", news.warning, logging.WARNING)
        if news.lease is not None:
            self._had_lease = True
            known = self.memory.node.lease
            if known is None or (known.subnets, known.advertisement) != (news.lease.subnets, news.lease.advertisement):
                self.memory.remember(lease=news.lease)
        if (before.lease.subnets if before and before.lease else ()) != (news.lease.subnets if news.lease else ()):
            self._agenda.look()
        if news.state == "released":
            self._stopping.set()

    def lease_in_force(self) -> Lease | None:
        """The lease, or the one of an earlier run while the store has not been heard of."""
        if self.announced is not None and self.announced.lease is not None:
            return self.announced.lease
        return self.memory.node.lease if self.from_disk and not self._had_lease else None

    # ---- the kernel ------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self.watch.fileno(), self._hear)

    def _hear(self) -> None:
        """What has come, and no more of it for a moment: a container that comes causes twenty events."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.watch.fileno())
        self._listens_again = loop.call_later(HEARING_GAP_S, self._listen)
        try:
            is_due = self.watch.is_due(self.reconciler)
        except OSError as error:
            self._listens_again.cancel()
            log.error("the kernel's events cannot be heard any more, and the timer has to do: %s", error)
            is_due = True
        if is_due:
            self._agenda.look_soon()

    async def _keep_kernel(self) -> None:
        while True:
            await self._pass(await self._agenda.until_due())

    async def _pass(self, look: bool) -> None:
        lease = self.lease_in_force()
        if self.network.let_go(lease.name if lease else "", asyncio.get_running_loop().time()):
            self.memory.remember(previous=None)
            look = True
        wish = self.network.wish(lease, self.memory.node.vtep_mac) if lease else None
        if wish is not None:
            work: Callable[[], Outcome] = partial(self.reconciler.look if look else self.reconciler.follow, wish)
        elif self._had_lease and (look or not self._is_withdrawn):
            work = self.reconciler.withdraw
        else:
            return
        begun = self._busy_since = time.monotonic()
        try:
            outcome = await self._in_thread(work)
        except (OSError, MuslinError) as error:
            what = error.what if isinstance(error, MuslinError) else f"the kernel could not be looked at: {error}"
            self._say_trouble(what)
            self._agenda.looked(time.monotonic() - begun)
            self._agenda.retry(was_look=True)
        else:
            self._is_withdrawn = wish is None
            self._took(outcome, wish)
        finally:
            self._busy_since = None

    def _took(self, outcome: Outcome, wish: Wish | None) -> None:
        """Draw the conclusions from a pass."""
        self.last = outcome
        self.known = outcome.leases
        self.counters.devices = outcome.devices
        self.counters.applied += len(outcome.done)
        self.counters.failed += outcome.refused
        self.counters.repaired += len(outcome.repairs)
        now = time.time()
        self.changed_at |= dict.fromkeys(outcome.changed, now)
        if outcome.whole:
            self.last_look, self.looks, self.last_look_at = outcome, self.looks + 1, now
            self.changed_at = {name: at for name, at in self.changed_at.items() if name in self.known}
            self.counters.passes.observe(outcome.duration_s)
            self._agenda.looked(outcome.duration_s)
            self._agenda.look_anyway(self.options.resync_s, outcome.duration_s)
        if outcome.repairs:
            self.repairs.append(repair_of(outcome.repairs, now))
            what = outcome.repairs[0].describe().splitlines()[0]
            more = f" and {len(outcome.repairs) - 1} more" if len(outcome.repairs) > 1 else ""
            self._tell("repair", f"somebody had changed the network; put right: {what}{more}", logging.WARNING)
        if outcome.tunnel_ended:
            self._tell("tunnel", outcome.tunnel_ended, logging.WARNING)
        if outcome.changed:
            self._tell("peers", _peers_sentence(outcome.changed))
        self._say_trouble(self._tell_plugins(outcome, wish.subnets if wish else ()))
        if outcome.advertisement is not None and self._keeper.machine.lease is not None:
            self._advertise(outcome.advertisement)
        self._introduce()
        self._plan_next(outcome)

    def _plan_next(self, outcome: Outcome) -> None:
        if (lingers_s := self.network.lingers_s(asyncio.get_running_loop().time())) is not None:
            self._agenda.look(lingers_s)
        if outcome.look_again:
            self._agenda.look_soon()
        elif outcome.failures or outcome.troubles:
            self._agenda.retry(was_look=outcome.whole)
        else:
            self._agenda.nothing_is_missing()

    def _tell_plugins(self, outcome: Outcome, subnets: tuple[str, ...]) -> str:
        """Write subnet.env once the subnet can be used, and remove it with a lost one; a sentence when that fails."""
        file, config = self.options.subnet_file, self.network.config
        try:
            if not subnets:
                self.programmed = ()
                file.unlink(missing_ok=True)
            elif config is not None and not outcome.own_failed:
                self.programmed = subnets
                masquerade = self.options.masquerade
                write_subnet_env(
                    file, SubnetEnv(networks=config.networks, subnets=subnets, mtu=outcome.mtu, ip_masq=masquerade)
                )
        except MuslinError as error:
            return error.what
        except OSError as error:
            return f"{file} cannot be written or removed: {error.strerror}"
        return ""

    async def _keep_tunnel(self) -> None:
        """Have a look when the tunnel's process has ended, and ask it now and then what it drops."""
        asked_at = 0.0
        while True:
            await asyncio.sleep(TUNNEL_CHECK_S)
            if self.last is None or self.last.tunnel is None or self._busy_since is not None:
                continue
            if await self._in_thread(self.reconciler.check_tunnel) and not self.last.tunnel_is_down:
                self._agenda.look_soon()
            if (now := asyncio.get_running_loop().time()) - asked_at >= DROPS_CHECK_S:
                asked_at = now
                with suppress(OSError):
                    self._notice_drops(await self._in_thread(self.reconciler.tunnel_status))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ---- what is said and shown ------------------------------------------------------------------------------

    def _tell(self, kind: str, text: str, level: int = logging.INFO) -> None:
        self.events.add(kind, text)
        log.log(level, "%s", text)

    def _say_trouble(self, text: str) -> None:
        if text and text != self.trouble:
            self._tell("trouble", text, logging.ERROR)
        self.trouble = text

    def status(self) -> AgentStatus:
        """How things are."""
        return status_of(self)

    def summary(self) -> tuple[bool, str]:
        """Whether the node is ready, and how it is in a few words; cheap."""
        if not self.programmed or self.last is None:
            why = self.trouble or (self.announced.warning or self.announced.sentence if self.announced else "")
            return False, f"not ready: {why or 'starting'}"
        missing = {refusal.peer for refusal in self.last.refusals} | self.last.failed_leases.keys()
        peers = f"{len(self.known) - len(missing)} of {len(self.known)} peers programmed"
        return True, f"{' and '.join(self.programmed)}, {peers}"

    async def refresh(self) -> None:
        """Read the figures that cost a moment, of the tunnel and the packet filter; while a look goes on, later."""
        is_late = time.monotonic() - self._refreshed_at > REFRESH_S
        if is_late and self._busy_since is None and not self._stopping.is_set():
            self._refreshed_at = time.monotonic()
            with suppress(OSError, MuslinError):  # the status is asked for most when something does not work
                self.tunnel_status, self.strangers_dropped = await self._in_thread(self.reconciler.figures)
            self._notice_drops(self.tunnel_status)

    def _notice_drops(self, tunnel: TunnelStatus | None) -> None:
        for sentence in self._drop_watch.notice(tunnel, asyncio.get_running_loop().time()):
            self._tell("drop", sentence, logging.WARNING)

    async def list_containers(self) -> tuple[Container, ...]:
        """The containers that runtimes have had connected."""
        return self.containers.list_all() if self.containers else ()

    def health(self) -> tuple[bool, str]:
        """Whether the loop is alive."""
        if self._busy_since is not None and (busy_s := time.monotonic() - self._busy_since) > STUCK_S:
            return False, f"the kernel task has been busy for {busy_s:.0f} s"
        return True, ""


def _peers_sentence(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"followed what the store says of {shown}"


def random_mac() -> str:
    """A locally administered unicast MAC (IEEE 802-2014 section 8.4)."""
    first = random.SystemRandom().randrange(64) << 2 | 0b10
    return ":".join(f"{octet:02x}" for octet in (first, *random.SystemRandom().randbytes(5)))
