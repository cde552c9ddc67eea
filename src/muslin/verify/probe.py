"""The engine: sends what proves or disproves each pair, many pairs at a time, in one thread.

Theory of operation:

1. One ``Station`` per namespace is opened (responders, observers) and watched by the loop.
2. The pairs, grouped by source, enter a window of pairs under way, as batches; a batch's client sockets are
   opened in one visit to the source's namespace. Nothing waits for a slow pair but the room that it takes in
   the window.
3. In each pair the ICMP, TCP and UDP exchanges run at once; a full-size probe follows a UDP answer where the
   packets leave the node.
4. Finally each node's fragment counter is compared with that of the beginning. Where it grew, the pairs of
   that node are probed again one by one, so that the fragments are attributed to the pairs that cause them;
   growth that does not come back is somebody else's traffic.

Limits: descriptors (three a namespace and family, three a pair under way; the soft limit is raised to the
hard one for the time of the run, the window shrinks to what remains). Kernel state that a run leaves behind:
learned neighbours and path MTUs, as any traffic does.
"""

from __future__ import annotations

import os
import resource
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import msgspec

from muslin.errors import UnsupportedError
from muslin.model.address import Family, family_of
from muslin.verify.fragments import fragments_made
from muslin.verify.loop import Loop
from muslin.verify.matrix import Pair
from muslin.verify.payload import NONCE_BYTES, canonical
from muslin.verify.probe_icmp import EchoAttempt, EchoObserver
from muslin.verify.probe_tcp import TcpAttempt, TcpResponder
from muslin.verify.probe_udp import FullSizeAttempt, UdpAttempt, UdpResponder
from muslin.verify.probing import Attempt, Cell, Probing
from muslin.verify.station import Station
from muslin.verify.verdict import FULL_SIZE, PROTOCOLS, CellResult, Protocol

WINDOW_PAIRS = 1024  # mostly pairs that wait for a lost packet: healthy ones are done before the next batch
BATCH_PAIRS = 32
_DESCRIPTORS_PER_PAIR = 3  # two clients, one accepted connection
_DESCRIPTORS_PER_STATION = 4  # snmp, snmp6, tcp, tcp6: opened only where they are needed
_DESCRIPTORS_SPARE = 32
_FRAGMENTS_AT_LEAST = 2  # what a packet becomes that does not fit into one

Progress = Callable[[int, int], None]
_ATTEMPTS: dict[Protocol, type[Attempt]] = {"icmp": EchoAttempt, "tcp": TcpAttempt, "udp": UdpAttempt}
_ORDER: tuple[Protocol, ...] = (*PROTOCOLS, FULL_SIZE)


def run_checks(
    pairs: Sequence[Pair],
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    timeout_s: float = 1.0,
    progress: Progress | None = None,
) -> tuple[CellResult, ...]:
    """Probe every pair and return what was seen, in the order of ``pairs``.

    ``timeout_s`` is how long each of two tries waits for its answer, in seconds. ``progress`` is called with
    the number of pairs done and of all. UnsupportedError when a raw socket or a namespace is refused,
    MuslinError when a namespace is gone.
    """
    if not pairs:
        return ()
    with ExitStack() as stack:
        stack.enter_context(_more_descriptors())
        run = _Run(stack, pairs, timeout_s)
        before = run.count_fragments()
        results = run.probe(pairs, protocols, run.window, progress)
        grown = {node for node, count in run.count_fragments().items() if count > before[node]}
        return tuple(run.attribute(result) if _suspect(result, grown) else result for result in results)


def _suspect(result: CellResult, grown: set[str]) -> bool:
    return result.pair.crosses_nodes and result.pair.source.node in grown and result.path_mtu is not None


@contextmanager
def _more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Run:
    """The stations of all namespaces, and the pairs that are probed by them."""

    def __init__(self, stack: ExitStack, pairs: Sequence[Pair], timeout_s: float) -> None:
        self._loop = stack.enter_context(Loop())
        self._probing = Probing(self._loop, secrets.token_bytes(NONCE_BYTES), timeout_s)
        self._numbers = 0
        self._nodes = {
            party.node: party.netns
            for pair in pairs
            for party in (pair.source, pair.destination)
            if party.role == "node"
        }
        families = _families_by_netns(pairs)
        self.window = _window(families)
        self._stations: dict[str, Station] = {}
        observers: dict[str, EchoObserver] = {}
        for netns, wanted in families.items():
            station = self._stations[netns] = Station(netns, wanted)
            stack.callback(station.close)
            station.open()
            observers[netns] = EchoObserver(self._probing, station, observers)
            UdpResponder(self._probing, station)
            stack.callback(TcpResponder(self._probing, station).close)
        stack.callback(self._close_cells)

    def _close_cells(self) -> None:
        for cell in list(self._probing.live.values()):
            self._end(cell)

    def count_fragments(self) -> dict[str, int]:
        """The fragments that each node has made so far."""
        return {node: fragments_made(self._stations[netns]) for node, netns in self._nodes.items()}

    def attribute(self, result: CellResult) -> CellResult:
        """Probe one pair alone and note the fragments that its source's node makes meanwhile.

        A kernel may have learned from the first full-size packet, and now say "too big" instead of
        fragmenting (VXLAN teaches IPv6 routes so): a smaller path MTU at the second time proves the fragments
        of the first.
        """
        station = self._stations[self._nodes[result.pair.source.node]]
        before = fragments_made(station)
        (again,) = self.probe([result.pair], ("udp",), 1)
        made = fragments_made(station) - before
        if not made and again.path_mtu is not None and again.path_mtu < (result.path_mtu or 0):
            made = _FRAGMENTS_AT_LEAST
        return msgspec.structs.replace(result, outer_fragments=made) if made else result

    def probe(
        self,
        pairs: Sequence[Pair],
        protocols: Sequence[Protocol],
        window: int,
        progress: Progress | None = None,
    ) -> list[CellResult]:
        """Probe ``pairs``, at most ``window`` of them under way."""
        results: dict[int, CellResult] = {}
        waiting = deque(_batches(pairs, min(BATCH_PAIRS, window)))

        def note(place: int, cell: Cell) -> None:
            results[place] = _result_of(cell)
            self._end(cell)
            if progress is not None:
                progress(len(results), len(pairs))

        def finished() -> bool:
            if waiting and len(self._probing.live) + len(waiting[0]) <= window:
                self._start_batch([(place, pairs[place]) for place in waiting.popleft()], protocols, note)
                self._loop.hurry()  # first read what came back, then start the next batch
            return len(results) == len(pairs)

        self._loop.run(finished)
        return [results[place] for place in range(len(pairs))]

    def _start_batch(
        self,
        batch: Sequence[tuple[int, Pair]],
        protocols: Sequence[Protocol],
        note: Callable[[int, Cell], None],
    ) -> None:
        source = self._stations[batch[0][1].source.netns]
        clients = source.open_clients(family_of(pair.address) for _, pair in batch)
        for (place, pair), sockets in zip(batch, clients, strict=True):
            destination = self._stations[pair.destination.netns]
            cell = Cell(self._numbers, pair, (source, destination), sockets)
            self._numbers += 1
            self._probing.live[cell.number] = cell
            _Conversation(self._probing, cell, protocols, partial(note, place)).start()

    def _end(self, cell: Cell) -> None:
        self._probing.live.pop(cell.number, None)
        for client in (cell.udp, cell.tcp):
            if client.fileno() >= 0:
                self._loop.forget(client.fileno())
                client.close()


class _Conversation:
    """All exchanges of one cell, in their order."""

    def __init__(
        self, probing: Probing, cell: Cell, protocols: Sequence[Protocol], done: Callable[[Cell], None]
    ) -> None:
        self._probing = probing
        self._cell = cell
        self._protocols = protocols
        self._done = done
        self._open = 0
        self._udp: UdpAttempt | None = None

    def start(self) -> None:
        """Learn the source address, then ask by every protocol."""
        self._connect_udp()
        attempts = [_ATTEMPTS[protocol](self._probing, self._cell, self._ended) for protocol in self._protocols]
        self._open = len(attempts)
        for attempt in attempts:
            self._begin(attempt)

    def _connect_udp(self) -> None:
        cell = self._cell
        responder = cell.destination.udp[cell.family]
        try:
            cell.udp.connect((cell.pair.address, responder.getsockname()[1]))
        except OSError as error:
            cell.unconnected = error
            return
        cell.sent = canonical(cell.udp.getsockname()[0])
        self._probing.loop.watch(cell.udp.fileno(), self._udp_ready)

    def _udp_ready(self, events: int) -> None:
        if self._udp is not None:
            self._udp.ready(events)

    def _begin(self, attempt: Attempt) -> None:
        if isinstance(attempt, UdpAttempt):
            self._udp = attempt
        attempt.start()

    def _ended(self, attempt: Attempt) -> None:
        cell = self._cell
        if attempt.protocol == "tcp":
            self._probing.loop.forget(cell.tcp.fileno())
        answered = cell.exchanges[-1].outcome == "answered"
        if attempt.protocol == "udp" and answered and cell.pair.crosses_nodes:
            self._begin(FullSizeAttempt(self._probing, cell, self._ended))
            return
        self._open -= 1
        if self._open == 0:
            self._done(cell)


def _families_by_netns(pairs: Sequence[Pair]) -> dict[str, set[Family]]:
    families: dict[str, set[Family]] = {}
    for pair in pairs:
        for party in (pair.source, pair.destination):
            families.setdefault(party.netns, set()).add(family_of(pair.address))
    return families


def _window(families: dict[str, set[Family]]) -> int:
    """How many pairs may be under way with the descriptors that there are."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    stations = sum(3 * len(wanted) + _DESCRIPTORS_PER_STATION for wanted in families.values())
    needed = len(os.listdir("/proc/self/fd")) + stations + _DESCRIPTORS_SPARE
    if limit == resource.RLIM_INFINITY:
        return WINDOW_PAIRS
    room = (limit - needed) // _DESCRIPTORS_PER_PAIR
    if room < 1:
        what = f"checking {len(families)} namespaces needs {needed} open files, the limit is {limit}"
        raise UnsupportedError(what, "raise the hard limit (`ulimit -Hn`), or check fewer endpoints")
    return min(WINDOW_PAIRS, room)


def _batches(pairs: Sequence[Pair], size: int) -> Iterator[list[int]]:
    """The places of the pairs, by source namespace, ``size`` at most in each batch."""
    by_source: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        by_source.setdefault(pair.source.netns, []).append(place)
    for places in by_source.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _result_of(cell: Cell) -> CellResult:
    exchanges = sorted(cell.exchanges, key=lambda exchange: _ORDER.index(exchange.protocol))
    return CellResult(
        pair=cell.pair,
        own=cell.source.own[cell.family],
        exchanges=tuple(exchanges),
        path_mtu=cell.path_mtu,
    )
