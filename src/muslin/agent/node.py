"""One node of the network: the loop that holds a lease and keeps the kernel in agreement with everybody's.

Theory of operation:

    store.watch ──> Network ──> Wish ──┐                      ┌──> subnet.env, readiness, status, events
         └──> LeaseKeeper ──> lease ───┤                      │
    netlink events ("look again") ─────┼──> the kernel task ──┼──> what our lease says (LeaseKeeper)
    timer (look anyway) ───────────────┘    one pass a time   └──> the next look, when something failed

Everything but the passes runs in the event loop; the passes run in a thread of their own (``reconcile.Reconciler``).
What asks for one only sets a flag: a burst of events is one look. Looks follow one another with pauses that grow with
what a look costs, so that neither a storm of events nor the timer takes more than a share of a core.

Our lease says what the kernel already does: a new backend is set up first and advertised then. While the store is away
and has not answered since the start, the last snapshot on disk serves. A lease that is lost takes all that is ours off
the kernel; that nothing is known yet changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from muslin.agent.events import EventLog
from muslin.agent.files import StateDirectory, read_subnet_env, write_subnet_env
from muslin.agent.lease_keeper import LeaseKeeper
from muslin.agent.metrics import Counters
from muslin.agent.network import LINGER_S, Network
from muslin.agent.node_plan import Host, NodeInputs
from muslin.agent.reconcile import Outcome, Reconciler, Wish
from muslin.agent.status import status_of
from muslin.agent.underlay import Underlay
from muslin.errors import MuslinError, UsageError
from muslin.lease.values import AdvertisementChanged, Announce, ConfigChanged, Machine, Rules, SnapshotSeen, Stop
from muslin.model.lease import Advertisement, Lease
from muslin.store.base import Store, StoreUnavailable
from muslin.wire.agent_api import AgentStatus, TunnelStatus
from muslin.wire.subnet_env import SubnetEnv

log = logging.getLogger("muslin.agent")

Result = TypeVar("Result")

DEBOUNCE_S = 0.02
"""How long the events of one change are waited for."""
COST_FACTOR = 4
"""After a look, this many times its duration passes before events lead to the next."""
TIMER_FACTOR = 500
"""The timer waits at least this many times the duration of a look: 0.2 % of a core."""
RETRY_MIN_S, RETRY_MAX_S = 0.5, 60.0
TUNNEL_CHECK_S = 0.5
SAVE_AFTER_S = 2.0
"""How long after a change the snapshot is written to disk, with those that came meanwhile."""
REFRESH_S = 1.0
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
    bridge: str = ""


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
        self.store, self.reconciler, self.watch, self.directory = store, reconciler, watch, directory
        self.started_at = time.time()
        self.node_file = directory.read_node()
        self.network = Network(self.node_file.config, self.node_file.previous)
        self.keeper: LeaseKeeper | None = None
        self.announced: Announce | None = None
        self.from_disk = False
        self.last_look: Outcome | None = None
        self.last: Outcome | None = None
        self.looked_at: float | None = None
        self.looks = 0
        self.changed_at: dict[str, float] = {}
        self.trouble = ""
        self.last_look_at: float | None = None
        self.tunnel_status: TunnelStatus | None = None
        self.strangers_dropped: int | None = None
        self.repairs: list[tuple[float, Outcome]] = []
        self.known: frozenset[str] = frozenset()
        """Names of the leases that the last pass knew."""
        self.programmed: tuple[str, ...] = ()
        """The subnets that the kernel was made to agree with."""
        self._stopping = asyncio.Event()
        self._work = asyncio.Event()
        self._look_at: float | None = None
        self._follow = False
        self._retry_s = RETRY_MIN_S
        self._refreshed_at = -REFRESH_S
        self._busy_since: float | None = None
        self._had_lease = False
        self._is_down = False
        self._save: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernel")

    # ---- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until ``stop``; the network stays as it is."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.watch.fileno(), self._hear)
        self.store.on_trouble = self._on_store_trouble
        tasks: list[asyncio.Task[None]] = []
        try:
            underlay = await self._until_underlay()
            if underlay is not None:
                await self._begin(underlay)
                work = (self._follow_store(), self._keep_kernel(), self._keep_tunnel())
                tasks = [asyncio.create_task(one) for one in (*work, self._until_stopped())]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            loop.remove_reader(self.watch.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()

    async def stop(self, release: bool) -> None:
        """End, and with ``release`` give the lease back first; returns at once."""
        if self.keeper is not None:
            self.keeper.feed(Stop(release=release))
        if not release or self.keeper is None:
            self._stopping.set()

    def look(self) -> None:
        """Have a look at the kernel now."""
        self._ask(look=True)

    async def _until_stopped(self) -> None:
        await self._stopping.wait()

    async def _until_underlay(self) -> Underlay | None:
        """The interface to other nodes, as soon as there is one; None when stopped before."""
        while not self._stopping.is_set():
            self._work.clear()
            try:
                return await self._in_thread(self.reconciler.choose)
            except (UsageError, OSError) as error:
                self._say_trouble(error.what if isinstance(error, UsageError) else str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._work.wait()
        return None

    async def _begin(self, underlay: Underlay) -> None:
        self.trouble = ""
        mac = self.node_file.vtep_mac or await self._in_thread(self.reconciler.mac_of_own_device) or random_mac()
        self._remember(vtep_mac=mac, subnet_file=str(self.options.subnet_file))
        env = read_subnet_env(self.options.subnet_file)
        former = self.node_file.lease.subnets if self.node_file.lease else ()
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
        self._save_snapshot()
        await self.store.close()
        self._thread.shutdown()

    # ---- the store -------------------------------------------------------------------------------------------

    async def _follow_store(self) -> None:
        async with aclosing(self.store.watch()) as snapshots:  # type: ignore[type-var]
            async for snapshot in snapshots:
                self.from_disk = False
                self._take_config(self.network.take(snapshot, time.time()))
                if snapshot.config is None and self.options.network_config:
                    await self._write_config()
                self._keeper.feed(SnapshotSeen(snapshot))
                if self._save is None:
                    self._save = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._save_snapshot)
                self._ask(follow=True)

    @property
    def _keeper(self) -> LeaseKeeper:
        assert self.keeper is not None, "the store is followed only once the keeper is there"
        return self.keeper

    def _take_config(self, is_new: bool) -> None:
        """Another configuration: the kernel follows first, then the lease says so. Without a lease, at once."""
        config = self.network.config
        if config is None:
            return
        if self._keeper.machine.lease is None and self.reconciler.underlay is not None:
            inputs = NodeInputs(
                name=self.options.name,
                config=config,
                underlay=self.reconciler.underlay,
                subnets=(),
                vtep_mac=self.node_file.vtep_mac,
            )
            self._advertise(Host(inputs).advertisement())
        if config != self._keeper.machine.config:
            self._keeper.feed(ConfigChanged(config))
        if is_new:
            self._tell("config", f"the network is {' and '.join(config.networks)} by the backend {config.backend}")
            self._remember(config=config, previous=self.network.previous)
            self._ask(look=True)

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
        if self.network.snapshot is None and (snapshot := self.directory.read_snapshot()) is not None:
            self.network.take(snapshot, time.time())
            self.from_disk = True
            self._ask(look=True)

    def _on_lease(self, news: Announce) -> None:
        before, self.announced = self.announced, news
        if news.sentence and (before is None or before.sentence != news.sentence):
            self._tell("lease", news.sentence, logging.ERROR if news.state == "lost" else logging.INFO)
        if news.warning and (before is None or before.warning != news.warning):
            self._tell("lease", news.warning, logging.WARNING)
        if news.lease is not None:
            self._had_lease = True
            if self.node_file.lease is None or news.lease.subnets != self.node_file.lease.subnets:
                self._remember(lease=news.lease)
        if (before.lease.subnets if before and before.lease else ()) != (news.lease.subnets if news.lease else ()):
            self._ask(look=True)
        if news.state == "released":
            self._stopping.set()

    def _lease_in_force(self) -> Lease | None:
        """The lease, or the one of an earlier run while the store has not been heard of."""
        if self.announced is not None and self.announced.lease is not None:
            return self.announced.lease
        return self.node_file.lease if self.from_disk and not self._had_lease else None

    # ---- the kernel ------------------------------------------------------------------------------------------

    def _ask(self, *, look: bool = False, follow: bool = False, after_s: float = 0.0) -> None:
        """Have the kernel task do something, soon."""
        if look:
            at = time.monotonic() + after_s
            self._look_at = at if self._look_at is None else min(self._look_at, at)
        self._follow |= follow
        self._work.set()

    def _hear(self) -> None:
        if not self.watch.is_due(self.reconciler):
            return
        since_s = time.monotonic() - (self.looked_at or 0.0)
        cost_s = self.last_look.duration_s * COST_FACTOR if self.last_look else 0.0
        self._ask(look=True, after_s=max(DEBOUNCE_S, cost_s - since_s))

    async def _keep_kernel(self) -> None:
        while True:
            await self._until_work()
            self._work.clear()
            now = time.monotonic()
            look, self._follow = self._look_at is not None and self._look_at <= now, False
            if look:
                self._look_at = None
            await self._pass(look)

    async def _until_work(self) -> None:
        """Until a look is due or leases have changed."""
        while not self._follow:
            wait_s = None if self._look_at is None else self._look_at - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                return
            self._work.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._work.wait()

    async def _pass(self, look: bool) -> None:
        lease = self._lease_in_force()
        if self.network.let_go(lease.name if lease else "", time.time()):
            self._remember(previous=None)
            look = True
        wish = self.network.wish(lease, self.node_file.vtep_mac) if lease else None
        if wish is not None:
            work: Callable[[], Outcome] = partial(self.reconciler.look if look else self.reconciler.follow, wish)
        elif self._had_lease and not self._is_down:
            work = self.reconciler.withdraw
        else:
            return
        self._busy_since = time.monotonic()
        try:
            outcome = await self._in_thread(work)
        except (OSError, MuslinError) as error:
            self._say_trouble(f"the kernel could not be looked at: {error}")
            self._retry()
        else:
            self._is_down = wish is None
            self._took(outcome, wish)
        finally:
            self._busy_since = None

    def _took(self, outcome: Outcome, wish: Wish | None) -> None:
        """Draw the conclusions from a pass."""
        self.last = outcome
        self.trouble = ""
        if outcome.changed or outcome.whole:
            self.known = frozenset(lease.name for lease in (wish.leases if wish else ()))
        self.counters.devices = outcome.devices
        self.counters.applied += len(outcome.done)
        self.counters.failed += outcome.refused
        self.counters.repaired += len(outcome.repairs)
        now = time.time()
        self.changed_at |= dict.fromkeys(outcome.changed, now)
        if outcome.whole:
            self.last_look, self.looks, self.looked_at = outcome, self.looks + 1, time.monotonic()
            self.last_look_at = now
            self.counters.passes.observe(outcome.duration_s)
            self._ask(look=True, after_s=max(self.options.resync_s, outcome.duration_s * TIMER_FACTOR))
        if outcome.repairs:
            self.repairs = [*self.repairs[-19:], (now, outcome)]
            what = outcome.repairs[0].describe().splitlines()[0]
            more = f" and {len(outcome.repairs) - 1} more" if len(outcome.repairs) > 1 else ""
            self._tell("repair", f"somebody had changed the network; put right: {what}{more}", logging.WARNING)
        if outcome.changed:
            self._tell("peers", _peers_sentence(outcome.changed))
        self._write_subnet_env(outcome, wish.subnets if wish else ())
        if outcome.advertisement is not None and self._keeper.machine.lease is not None:
            self._advertise(outcome.advertisement)
        if self.network.previous is not None:
            self._ask(look=True, after_s=LINGER_S)
        if outcome.look_again:
            self._ask(look=True)
        elif outcome.failures or outcome.troubles:
            self._retry()
        else:
            self._retry_s = RETRY_MIN_S

    def _retry(self) -> None:
        self._ask(look=True, after_s=self._retry_s)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)

    def _write_subnet_env(self, outcome: Outcome, subnets: tuple[str, ...]) -> None:
        """Tell CNI plugins once the subnet can be used; a lost one no longer."""
        if not subnets:
            self.programmed = ()
            self.options.subnet_file.unlink(missing_ok=True)
            return
        if outcome.own_failed or self.network.config is None:
            return
        self.programmed = subnets
        networks = self.network.config.networks
        env = SubnetEnv(networks=networks, subnets=subnets, mtu=outcome.mtu, ip_masq=self.options.masquerade)
        try:
            write_subnet_env(self.options.subnet_file, env)
        except (MuslinError, OSError) as error:
            self._say_trouble(str(error))

    async def _keep_tunnel(self) -> None:
        """Have a look when the tunnel's process has ended."""
        while True:
            await asyncio.sleep(TUNNEL_CHECK_S)
            if self.last is None or self.last.tunnel is None or self._busy_since is not None:
                continue
            if words := await self._in_thread(self.reconciler.check_tunnel):
                self._tell("tunnel", words, logging.WARNING)
                self._ask(look=True)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ---- what is kept, said and shown ------------------------------------------------------------------------

    def _remember(self, **changes: object) -> None:
        """Write down who this node is; a disk that is full costs the memory, not the network."""
        node = msgspec.structs.replace(self.node_file, **changes)
        if node == self.node_file:
            return
        self.node_file = node
        try:
            self.directory.write_node(node)
        except MuslinError as error:
            log.error("%s", error.what)

    def _save_snapshot(self) -> None:
        if self._save is not None:
            self._save.cancel()
            self._save = None
        if self.network.snapshot is None or self.from_disk:
            return
        try:
            self.directory.write_snapshot(self.network.snapshot)
        except MuslinError as error:
            log.error("%s", error.what)

    def _tell(self, kind: str, text: str, level: int = logging.INFO) -> None:
        self.events.add(kind, text)
        log.log(level, "%s", text)

    def _say_trouble(self, text: str) -> None:
        if text != self.trouble:
            self._tell("trouble", text, logging.ERROR)
        self.trouble = text

    def status(self) -> AgentStatus:
        """How things are."""
        return status_of(self)

    def summary(self) -> tuple[bool, str]:
        """Whether the node is ready, and how it is in a few words; cheap."""
        if not self.programmed or self.last is None:
            return False, ""
        missing = len(self.last.refusals) + len(self.last.failed_leases)
        peers = f"{len(self.known) - missing} of {len(self.known)} peers programmed"
        return True, f"{' and '.join(self.programmed)}, {peers}"

    async def refresh(self) -> None:
        """Read the figures that cost a moment, of the tunnel and the packet filter; while a look goes on, later."""
        if self._busy_since is None and time.monotonic() - self._refreshed_at > REFRESH_S:
            self._refreshed_at = time.monotonic()
            self.tunnel_status, self.strangers_dropped = await self._in_thread(self.reconciler.figures)

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
