"""The agent's API: which address shows what, on the unix socket and on TCP.

Theory of operation: the loop is known here by the protocol ``Node`` alone, so that the API is tested without one. The
documents are those of ``wire.agent_api``. On the unix socket, which only its owner may open:

    GET  /v1/status      all of it; ?probe=1 asks the peers by echo requests first
    GET  /v1/peers       the peers alone; ?probe=1 and, any number of times, ?name=10.5.34.0-24
    GET  /v1/containers  the containers that runtimes have had connected
    GET  /v1/health      whether the loop is alive: 200, or 503 with the reason
    GET  /v1/events      a line of JSON for each event, for as long as the reader stays; ?since=N behind event N,
                         ?follow=0 ends with the last one. An empty line now and then shows that we are there
    GET  /v1/metrics     Prometheus' text, also as /metrics
    POST /v1/stop        end; {"release": true} gives the lease back first. Answers at once, with 202

On TCP, where anybody may ask: /healthz, /readyz and /metrics, which say nothing that would be worth hiding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from muslin.agent.diagnosis import explain
from muslin.agent.events import EventLog
from muslin.agent.http import Handler, HttpError, Request, Response, Routes, json_response
from muslin.agent.metrics import CONTENT_TYPE, Counters, render
from muslin.agent.probe import probe_peers
from muslin.wire.agent_api import (
    AgentStatus,
    Container,
    ContainerList,
    Event,
    Health,
    PeerCounts,
    PeerList,
    PeerStatus,
    Readiness,
    StopRequest,
)

HEARTBEAT_S = 15.0
NDJSON = "application/x-ndjson"


class Node(Protocol):
    """What the API needs of the loop. Nothing here may block: the API runs in the loop's own thread."""

    @property
    def events(self) -> EventLog:
        """What has happened."""

    @property
    def counters(self) -> Counters:
        """What the metrics need beyond the status."""

    def status(self) -> AgentStatus:
        """How things are at this moment, without probes."""

    async def refresh(self) -> None:
        """Read anew what the status shows and costs a moment to read: the figures of tunnel and packet filter."""

    def health(self) -> tuple[bool, str]:
        """Whether the loop is alive, and if not, a sentence that says why."""

    async def list_containers(self) -> tuple[Container, ...]:
        """The containers that runtimes have had connected."""

    async def stop(self, release: bool) -> None:
        """Note the wish to end, and with ``release`` to give the lease back before; return without waiting for it."""


class Api:
    """The handlers, and the two tables of where they are found."""

    def __init__(self, node: Node, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._node = node
        self._heartbeat_s = heartbeat_s
        self._probing = asyncio.Lock()

    def unix_routes(self) -> Routes:
        """For the node's owner."""
        return {
            "/v1/status": {"GET": self._status},
            "/v1/peers": {"GET": self._peers},
            "/v1/containers": {"GET": self._containers},
            "/v1/health": {"GET": self._health},
            "/v1/events": {"GET": self._events},
            "/v1/metrics": {"GET": self._metrics},
            "/v1/stop": {"POST": self._stop},
            **self.tcp_routes(),
        }

    def tcp_routes(self) -> Routes:
        """For anybody."""
        handlers: dict[str, Handler] = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics}
        return {path: {"GET": handler} for path, handler in handlers.items()}

    async def _status(self, request: Request) -> Response:
        return json_response(200, await self._look(request, None))

    async def _peers(self, request: Request) -> Response:
        names = request.query.get("name")
        status = await self._look(request, names)
        unknown = set(names or ()) - {peer.name for peer in status.peers}
        if unknown:
            raise HttpError(404, f"there is no peer {min(unknown)}; GET /v1/peers lists them")
        peers = tuple(peer for peer in status.peers if names is None or peer.name in names)
        return json_response(200, PeerList(peers=peers))

    async def _containers(self, _: Request) -> Response:
        return json_response(200, ContainerList(containers=await self._node.list_containers()))

    async def _look(self, request: Request, names: Sequence[str] | None) -> AgentStatus:
        """The status; where probes are asked for, after them, one reader's after another's."""
        await self._node.refresh()
        if not _asked(request, "probe"):
            return explain(self._node.status())
        async with self._probing:
            return await probe_peers(self._node.status(), names)

    async def _health(self, _: Request) -> Response:
        healthy, reason = self._node.health()
        return json_response(200 if healthy else 503, Health(healthy=healthy, reason=reason))

    async def _ready(self, _: Request) -> Response:
        readiness = readiness_of(self._node.status())
        return json_response(200 if readiness.ready else 503, readiness)

    async def _metrics(self, _: Request) -> Response:
        await self._node.refresh()
        text = await asyncio.to_thread(render, self._node.status(), self._node.counters)
        return Response(200, text, CONTENT_TYPE)

    async def _events(self, request: Request) -> Response:
        since = _whole(request, "since")
        if _asked(request, "follow", default=True):
            return Response(200, content_type=NDJSON, stream=self._follow(since))
        return Response(200, _lines(self._node.events.after(since)), NDJSON)

    async def _follow(self, since: int) -> AsyncGenerator[bytes, None]:
        while True:
            events = await self._node.events.wait_after(since, self._heartbeat_s)
            since = events[-1].number if events else since
            yield _lines(events) or b"\n"

    async def _stop(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(request.body or b"{}", type=StopRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, f'the body is no stop request: {error}; for example {{"release": true}}') from None
        await self._node.stop(wanted.release)
        return json_response(202, wanted)


def readiness_of(status: AgentStatus) -> Readiness:
    """What /readyz says."""
    return Readiness(ready=status.ready, subnet_programmed=status.subnet_programmed, peers=count_peers(status.peers))


def count_peers(peers: Sequence[PeerStatus]) -> PeerCounts:
    """How many are in which state."""
    states = [peer.state for peer in peers]
    return PeerCounts(
        total=len(states),
        programmed=states.count("programmed"),
        pending=states.count("pending"),
        refused=states.count("refused"),
        failed=states.count("failed"),
    )


def _lines(events: Sequence[Event]) -> bytes:
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


def _asked(request: Request, name: str, default: bool = False) -> bool:
    """Whether a switch is on: ``?probe=1``, or just ``?probe``."""
    values = request.query.get(name)
    return values[-1] not in ("0", "false", "no") if values else default


def _whole(request: Request, name: str) -> int:
    """A whole number of the query, 0 where it is absent; HttpError 400 for anything else."""
    text = request.query.get(name, ["0"])[-1]
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise HttpError(400, f"{name} is {text[:60]!r}; expected a whole number")
    return int(text)
