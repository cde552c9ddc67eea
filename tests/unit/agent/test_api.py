"""The API over its socket, with a node that says what it is told to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.agent import api as api_module
from muslin.agent.api import Api
from muslin.agent.http import HttpServer
from muslin.wire.agent_api import AgentStatus, Event, LeaseStatus, PeerList, ProbeResult, Readiness
from tests.contract.asynchronous import asynchronous
from tests.unit.agent.node import FakeNode, make_peer, make_status

HEARTBEAT_S = 0.05


class Agent:
    """A fake node behind real sockets."""

    def __init__(self, path: Path) -> None:
        self.node = FakeNode()
        self.path = str(path)
        self.port = 0
        self.server = HttpServer()

    async def start(self) -> None:
        api = Api(self.node, HEARTBEAT_S)
        await self.server.listen_unix(self.path, api.unix_routes())
        self.port = await self.server.listen_tcp("127.0.0.1", 0, api.tcp_routes())

    async def ask(self, target: str, method: str = "GET", body: bytes = b"", tcp: bool = False) -> tuple[int, bytes]:
        opened = asyncio.open_connection("127.0.0.1", self.port) if tcp else asyncio.open_unix_connection(self.path)
        reader, writer = await opened
        try:
            head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            first, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            return int(first.split()[1]), answer
        finally:
            writer.close()

    async def error(self, *words: Any) -> tuple[int, str]:
        status, answer = await self.ask(*words)
        return status, json.loads(answer)["error"]


Test = Callable[[Agent], Awaitable[None]]


def with_agent(test: Test) -> Callable[[Path], None]:
    @asynchronous
    async def run(tmp_path: Path) -> None:
        agent = Agent(tmp_path / "agent.sock")
        await agent.start()
        try:
            await test(agent)
        finally:
            await agent.server.close()

    run.__name__ = test.__name__
    return run


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str] | None]:
    """Whom the API had asked, in place of asking them."""
    asked: list[Sequence[str] | None] = []

    async def probe(status: AgentStatus, names: Sequence[str] | None = None) -> AgentStatus:
        asked.append(names)
        answer = ProbeResult(address="10.0.0.2", outcome="reached", rtt_ms=0.5)
        peers = tuple(msgspec.structs.replace(peer, underlay=answer) for peer in status.peers)
        return msgspec.structs.replace(status, peers=peers)

    monkeypatch.setattr(api_module, "probe_peers", probe)
    return asked


@with_agent
async def test_the_status_is_the_whole_document(agent: Agent) -> None:
    status, answer = await agent.ask("/v1/status")
    assert status == 200
    assert msgspec.json.decode(answer, type=AgentStatus) == agent.node.now
    assert agent.node.refreshed == 1


@with_agent
async def test_peers_that_something_is_wrong_with_get_their_sentence_without_a_probe(agent: Agent) -> None:
    agent.node.now = make_status(peers=(make_peer(2, state="refused", reason="it uses another backend"),))
    _, answer = await agent.ask("/v1/status?probe=0")
    (peer,) = msgspec.json.decode(answer, type=AgentStatus).peers
    assert "it uses another backend" in peer.sentence


def test_probes_are_made_where_they_are_asked_for(tmp_path: Path, probes: list[Sequence[str] | None]) -> None:
    @with_agent
    async def run(agent: Agent) -> None:
        await agent.ask("/v1/status")
        await agent.ask("/v1/peers?probe=0")
        assert probes == []
        _, answer = await agent.ask("/v1/status?probe=1")
        assert msgspec.json.decode(answer, type=AgentStatus).peers[0].underlay is not None
        _, answer = await agent.ask("/v1/peers?probe&name=10.5.3.0-24")
        (peer,) = msgspec.json.decode(answer, type=PeerList).peers
        assert (peer.name, peer.underlay is not None) == ("10.5.3.0-24", True)
        assert probes == [None, ["10.5.3.0-24"]]

    run(tmp_path)


@with_agent
async def test_peers_can_be_named(agent: Agent) -> None:
    _, answer = await agent.ask("/v1/peers")
    assert [peer.name for peer in msgspec.json.decode(answer, type=PeerList).peers] == ["10.5.2.0-24", "10.5.3.0-24"]
    assert await agent.error("/v1/peers?name=10.5.9.0-24") == (
        404, "there is no peer 10.5.9.0-24; GET /v1/peers lists them",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/health", "/healthz"])
def test_health_follows_the_loop(tmp_path: Path, path: str) -> None:
    @with_agent
    async def run(agent: Agent) -> None:
        assert await agent.ask(path) == (200, b'{"healthy":true,"reason":""}\n')
        agent.node.now = make_status(healthy=False)
        assert await agent.ask(path) == (503, b'{"healthy":false,"reason":"no pass has ended for 90 s"}\n')

    run(tmp_path)


@with_agent
async def test_readiness_counts_the_peers(agent: Agent) -> None:
    status, answer = await agent.ask("/readyz")
    assert status == 200
    assert json.loads(answer)["peers"] == {"total": 2, "programmed": 2, "pending": 0, "refused": 0, "failed": 0}
    peers = tuple(make_peer(2 + n, state=state) for n, state in enumerate(("pending", "failed", "refused", "failed")))
    agent.node.now = make_status(ready=False, peers=peers, lease=LeaseStatus(state="seeking"))
    status, answer = await agent.ask("/readyz")
    found = msgspec.json.decode(answer, type=Readiness)
    assert (status, found.ready, found.subnet_programmed) == (503, False, False)
    assert (found.peers.total, found.peers.pending, found.peers.failed, found.peers.refused) == (4, 1, 2, 1)


@with_agent
async def test_tcp_shows_health_readiness_and_metrics_and_nothing_else(agent: Agent) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await agent.ask(path, tcp=True))[0] == 200
    for path in ("/v1/status", "/v1/peers", "/v1/health", "/v1/events", "/v1/metrics", "/v1/stop"):
        assert (await agent.ask(path, tcp=True))[0] == 404
    assert (await agent.ask("/v1/stop", "POST", tcp=True))[0] == 404
    assert agent.node.stops == []


@with_agent
async def test_metrics_are_prometheus_text_at_both_addresses(agent: Agent) -> None:
    for path in ("/metrics", "/v1/metrics"):
        status, answer = await agent.ask(path)
        assert status == 200
        assert b'\nmuslin_peers{state="programmed"} 2.0\n' in answer


@with_agent
async def test_stop_is_passed_on_and_answered_at_once(agent: Agent) -> None:
    assert await agent.ask("/v1/stop", "POST") == (202, b'{"release":false}\n')
    assert await agent.ask("/v1/stop", "POST", b'{"release": true}') == (202, b'{"release":true}\n')
    assert agent.node.stops == [False, True]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"release": "yes"}', b"\xff\xfe", b'"\xff"'])
def test_a_stop_that_cannot_be_read_stops_nothing(tmp_path: Path, body: bytes) -> None:
    @with_agent
    async def run(agent: Agent) -> None:
        status, text = await agent.error("/v1/stop", "POST", body)
        assert status == 400
        assert 'for example {"release": true}' in text
        assert agent.node.stops == []

    run(tmp_path)


@with_agent
async def test_a_get_does_not_stop_the_agent(agent: Agent) -> None:
    assert await agent.error("/v1/stop") == (405, "/v1/stop does not know GET; it knows POST")
    assert agent.node.stops == []


@with_agent
async def test_a_node_that_fails_is_an_error_and_not_the_end(agent: Agent) -> None:
    agent.node.failure = RuntimeError("in the middle of a change")
    status, text = await agent.error("/v1/status")
    assert status == 500
    assert "in the middle of a change" in text
    agent.node.failure = None
    assert (await agent.ask("/v1/status"))[0] == 200


# ---- events ------------------------------------------------------------------------------------------------


def events_of(answer: bytes) -> list[Event]:
    return [msgspec.json.decode(line, type=Event) for line in answer.splitlines() if line]


@with_agent
async def test_what_has_happened_can_be_had_without_waiting(agent: Agent) -> None:
    assert await agent.ask("/v1/events?follow=0") == (200, b"")
    for kind in ("one", "two", "three"):
        agent.node.events.add(kind, "text")
    _, answer = await agent.ask("/v1/events?follow=0")
    assert [event.kind for event in events_of(answer)] == ["one", "two", "three"]
    _, answer = await agent.ask("/v1/events?follow=0&since=2")
    assert [event.kind for event in events_of(answer)] == ["three"]


@pytest.mark.parametrize("since", ["x", "-1", "1.5", "", "9" * 40])
def test_events_behind_nonsense_are_refused(tmp_path: Path, since: str) -> None:
    @with_agent
    async def run(agent: Agent) -> None:
        status, text = await agent.error(f"/v1/events?since={since}")
        assert status == 400
        assert "expected a whole number" in text

    run(tmp_path)


@with_agent
async def test_events_are_followed_with_a_heartbeat_between_them(agent: Agent) -> None:
    agent.node.events.add("old", "text")
    agent.node.events.add("known", "text")
    reader, writer = await asyncio.open_unix_connection(agent.path)
    writer.write(b"GET /v1/events?since=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    assert b'"known"' in await read_chunk(reader)
    assert await read_chunk(reader) == b"\n", "a sign of life"
    agent.node.events.add("new", "text")
    while (chunk := await read_chunk(reader)) == b"\n":
        pass
    assert [event.number for event in events_of(chunk)] == [3]
    writer.close()


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]
