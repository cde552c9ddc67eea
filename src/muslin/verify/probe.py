"""The engine: sends what proves or disproves each pair, many pairs at a time, in one thread.

Theory of operation:

1. One ``Station`` per namespace is opened (responders, observers) and watched by the loop.
2. The pairs enter in batches, blocks of (source node, destination node) along a Z-order curve (see below). A
   bound holds for the pairs that are fresh, so that tunnels written in Python are not overrun, and a larger one
   for all that are under way: a pair that has waited for PATIENCE_S most likely waits for a lost packet, which
   costs nobody anything.
3. In each pair the ICMP, TCP and UDP exchanges run at once; a full-size probe follows a UDP answer where the
   packets leave the node.
4. A run that is large enough to have caused losses itself asks again before it calls a pair lost: first a few
   dozen of the pairs without an answer, evenly spread; the rest only if one of those recovers, and no longer than
   AGAIN_S. A network that is really broken is therefore judged quickly.
5. Finally each node's fragment counter is compared with that of the beginning. Where it grew, one pair of each
   kind between two nodes is probed again alone, so that the fragments are attributed to the pairs that cause them;
   growth that does not come back is somebody else's traffic.

The order keeps few neighbours in use at a time, because the kernel's table of them is small and shared by all
namespaces; a large run gives them back as it goes (see ``neighbours``).

Limits: descriptors (three a namespace and family, three a pair under way; the soft limit is raised to the
hard one for the time of the run, the window shrinks to what remains). Kernel state that a run leaves behind:
path MTUs and, of a small run, learned neighbours, as any traffic does.
"""

from __future__ import annotations

import os
import resource
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from muslin.verify.station import Station, open_clients, tour
from muslin.verify.verdict import FULL_SIZE, PROTOCOLS, CellResult, Protocol

WINDOW_PAIRS = 1024  # under way
FRESH_PAIRS = 96  # of them, under way for less than PATIENCE_S
PATIENCE_S = 0.1
BATCH_PAIRS = 32
AGAIN_PAIRS = 64  # asked again first; the rest follow if that helps any of them
AGAIN_S = 30.0
FORGET_PAIRS = 1000  # after so many pairs their neighbours are given back
_DESCRIPTORS_PER_PAIR = 3  # two clients, one accepted connection
_DESCRIPTORS_PER_STATION = 5  # snmp, snmp6, tcp, tcp6, netlink: opened only where they are needed
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
        results = run.probe(pairs, protocols, progress)
        if len(pairs) > FRESH_PAIRS:
            run.ask_again(results, protocols)
        grown = {node for node, count in run.count_fragments().items() if count > before[node]}
        return tuple(run.attribute(result) if _suspect(result, grown) else result for result in results)


def _suspect(result: CellResult, grown: set[str]) -> bool:
    return result.pair.crosses_nodes and result.pair.source.node in grown and result.path_mtu is not None


def _unanswered(result: CellResult) -> bool:
    return any(exchange.outcome != "answered" for exchange in result.exchanges)


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
        self._fresh = 0
        self._nodes = {
            party.node: party.netns
            for pair in pairs
            for party in (pair.source, pair.destination)
            if party.role == "node"
        }
        families = _families_by_netns(pairs)
        self._window = _window(families)
        self._stations = {netns: Station(netns, wanted) for netns, wanted in families.items()}
        for station in self._stations.values():
            stack.callback(station.close)
        tour((netns, station.open_inside) for netns, station in self._stations.items())
        observers: dict[str, EchoObserver] = {}
        for netns, station in self._stations.items():
            observers[netns] = EchoObserver(self._probing, station, observers)
            UdpResponder(self._probing, station)
            stack.callback(TcpResponder(self._probing, station).close)
        self._touched: set[str] = set()  # nodes whose neighbours are to be given back
        self._ended = 0  # pairs since that was last done
        self._by_node: dict[str, set[str]] = {}
        for pair in pairs:
            for party in (pair.source, pair.destination):
                self._by_node.setdefault(party.node, set()).add(party.netns)
        self._attributed: dict[tuple[str, ...], int] = {}
        stack.callback(self._close_cells)

    def _close_cells(self) -> None:
        for cell in list(self._probing.live.values()):
            self._end(cell)

    def count_fragments(self) -> dict[str, int]:
        """The fragments that each node has made so far."""
        return {node: fragments_made(self._stations[netns]) for node, netns in self._nodes.items()}

    def attribute(self, result: CellResult) -> CellResult:
        """The result with the fragments that its source's node makes of a full-size packet.

        Pairs of one kind take one way: between the same nodes, from node or container to a container or to the
        same address of a node. The first of a kind is probed again, alone.
        """
        pair = result.pair
        target = pair.address if pair.destination.role == "node" else "container"
        kind = (pair.source.node, pair.source.role, pair.destination.node, target, str(result.path_mtu))
        if kind not in self._attributed:
            self._attributed[kind] = self._count_alone(result)
        made = self._attributed[kind]
        return msgspec.structs.replace(result, outer_fragments=made) if made else result

    def _count_alone(self, result: CellResult) -> int:
        """Probe one pair and count the fragments made meanwhile.

        A kernel may have learned from the first full-size packet, and now say "too big" instead of
        fragmenting (VXLAN teaches IPv6 routes so): a smaller path MTU at the second time proves the fragments
        of the first.
        """
        station = self._stations[self._nodes[result.pair.source.node]]
        before = fragments_made(station)
        (again,) = self.probe([result.pair], ("udp",))
        made = fragments_made(station) - before
        if not made and again.path_mtu is not None and again.path_mtu < (result.path_mtu or 0):
            return _FRAGMENTS_AT_LEAST
        return made

    def ask_again(self, results: list[CellResult], protocols: Sequence[Protocol]) -> None:
        """Replace results without an answer by better ones, if there are."""
        places = [place for place, result in enumerate(results) if _unanswered(result)]
        first = places[:: -(-len(places) // AGAIN_PAIRS) or 1]
        rest = sorted(set(places) - set(first))
        end = self._loop.now() + AGAIN_S
        recovered = self._replace(results, first, protocols)
        while rest and recovered and self._loop.now() < end:
            self._replace(results, rest[:WINDOW_PAIRS], protocols)
            del rest[:WINDOW_PAIRS]

    def _replace(self, results: list[CellResult], places: Sequence[int], protocols: Sequence[Protocol]) -> bool:
        """Whether any result at ``places`` became better."""
        found = self.probe([results[place].pair for place in places], protocols)
        better = [(place, result) for place, result in zip(places, found, strict=True) if not _unanswered(result)]
        for place, result in better:
            results[place] = result
        return bool(better)

    def probe(
        self, pairs: Sequence[Pair], protocols: Sequence[Protocol], progress: Progress | None = None
    ) -> list[CellResult]:
        """Probe ``pairs`` in an order of our own; the results come in theirs."""
        results: dict[int, CellResult] = {}
        order = in_local_order(pairs)
        size = min(BATCH_PAIRS, self._window)
        waiting = deque(order[start : start + size] for start in range(0, len(order), size))

        def note(place: int, cell: Cell) -> None:
            results[place] = _result_of(cell)
            self._end(cell)
            if progress is not None:
                progress(len(results), len(pairs))

        def finished() -> bool:
            if self._ended >= FORGET_PAIRS:
                self.forget_neighbours()
            if waiting and self._has_room(len(waiting[0])):
                self._start_batch([(place, pairs[place]) for place in waiting.popleft()], protocols, note)
                self._loop.hurry()  # first read what came back, then start the next batch
            return len(results) == len(pairs)

        self._loop.run(finished)
        if len(pairs) >= FORGET_PAIRS:
            self.forget_neighbours()
        return [results[place] for place in range(len(pairs))]

    def forget_neighbours(self) -> None:
        """Give back what the kernel learned in the namespaces asked since the last time."""
        for node in self._touched:
            for netns in self._by_node[node]:
                self._stations[netns].forget_neighbours()
        self._touched.clear()
        self._ended = 0

    def _has_room(self, count: int) -> bool:
        return len(self._probing.live) + count <= self._window and self._fresh + count <= FRESH_PAIRS

    def _start_batch(
        self,
        batch: Sequence[tuple[int, Pair]],
        protocols: Sequence[Protocol],
        note: Callable[[int, Cell], None],
    ) -> None:
        stations = [(self._stations[pair.source.netns], self._stations[pair.destination.netns]) for _, pair in batch]
        families = [family_of(pair.address) for _, pair in batch]
        clients = open_clients([(source, family) for (source, _), family in zip(stations, families, strict=True)])
        cells = []
        for (_, pair), ends, sockets in zip(batch, stations, clients, strict=True):
            cells.append(Cell(self._numbers, pair, ends, sockets))
            self._probing.live[self._numbers] = cells[-1]
            self._numbers += 1
        self._fresh += len(cells)
        self._loop.call_later(PATIENCE_S, partial(self._lose_patience, cells))
        for (place, _), cell in zip(batch, cells, strict=True):
            _Conversation(self._probing, cell, protocols, partial(note, place)).start()

    def _lose_patience(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self._fresh -= cell.fresh
            cell.fresh = False

    def _end(self, cell: Cell) -> None:
        self._probing.live.pop(cell.number, None)
        self._lose_patience([cell])
        self._touched.update((cell.pair.source.node, cell.pair.destination.node))
        self._ended += 1
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


def in_local_order(pairs: Sequence[Pair]) -> list[int]:
    """The places of the pairs, those of one source node and one destination node together, along a Z-order curve.

    Whatever part of the list is looked at, it speaks of about as few nodes as can be. Nodes ask before containers:
    a router that has no way says so to nodes only (it has no way back to containers either), and five times at
    once to each, of which answers to containers would take their part (net/ipv4/route.c, ip_error).
    """
    nodes = dict.fromkeys(party.node for pair in pairs for party in (pair.source, pair.destination))
    # The binary digits of a number, read as digits of base 4, leave room for another number's between them.
    spread = {node: int(f"{number:b}", 4) for number, node in enumerate(nodes)}
    keys = [
        (pair.source.role == "container", 2 * spread[pair.source.node] + spread[pair.destination.node])
        for pair in pairs
    ]
    return sorted(range(len(pairs)), key=keys.__getitem__)


def _result_of(cell: Cell) -> CellResult:
    exchanges = sorted(cell.exchanges, key=lambda exchange: _ORDER.index(exchange.protocol))
    return CellResult(
        pair=cell.pair,
        own=cell.source.own[cell.family],
        exchanges=tuple(exchanges),
        path_mtu=cell.path_mtu,
    )
