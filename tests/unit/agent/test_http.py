"""The HTTP server over real sockets: what it answers, what it bears, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import muslin
from muslin.agent.http import HttpError, HttpServer, Limits, Request, Response, Routes, bind_unix, remove_unix
from muslin.errors import MuslinError
from tests.contract.asynchronous import asynchronous, until_true

QUICK = Limits(idle_s=0.2, request_s=0.2, write_s=0.2, closing_s=0.2, body_bytes=1000, connections=20)
PATIENT = Limits(connections=20)


class Site:
    """Routes that do one thing each, and a server for them."""

    def __init__(self, path: Path, limits: Limits = PATIENT) -> None:
        self.path = str(path)
        self.server = HttpServer(limits)
        self.gate = asyncio.Event()
        self.waiting = 0
        self.streams_ended = 0
        self.routes: Routes = {
            "/echo": {"POST": self.echo, "GET": self.echo},
            "/fail": {"GET": self.fail},
            "/refuse": {"GET": self.refuse},
            "/wait": {"GET": self.wait},
            "/stream": {"GET": self.stream},
            "/flood": {"GET": self.flood},
        }

    async def echo(self, request: Request) -> Response:
        return Response(200, request.body or json.dumps(request.query).encode(), "text/plain")

    async def fail(self, _: Request) -> Response:
        raise ZeroDivisionError("the handler is broken")

    async def refuse(self, _: Request) -> Response:
        raise HttpError(409, "not now")

    async def wait(self, _: Request) -> Response:
        self.waiting += 1
        await self.gate.wait()
        return Response(200, b"done")

    async def stream(self, _: Request) -> Response:
        async def lines() -> AsyncGenerator[bytes, None]:
            try:
                yield b"one\n"
                await self.gate.wait()
                yield b"two\n"
            finally:
                self.streams_ended += 1

        return Response(200, content_type="text/plain", stream=lines())

    async def flood(self, _: Request) -> Response:
        async def lines() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                self.streams_ended += 1

        return Response(200, stream=lines())

    async def ask(self, data: bytes) -> bytes:
        """Send these bytes and read until the server closes."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(data)
            return await reader.read()
        finally:
            writer.close()

    async def get(self, target: str, method: str = "GET", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{length}Connection: close\r\n\r\n"
        return parse(await self.ask(head.encode() + body))


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def with_site(limits: Limits = PATIENT) -> Callable[[Callable[[Site], Awaitable[None]]], Callable[[Path], None]]:
    """A test with a server that listens and is closed afterwards."""

    def decorate(test: Callable[[Site], Awaitable[None]]) -> Callable[[Path], None]:
        @asynchronous
        async def run(tmp_path: Path) -> None:
            site = Site(tmp_path / "agent.sock", limits)
            await site.server.listen_unix(site.path, site.routes)
            try:
                await test(site)
            finally:
                await site.server.close()
            assert not Path(site.path).exists()

        run.__name__ = test.__name__
        return run

    return decorate


def is_alive(site: Site) -> Awaitable[None]:
    async def check() -> None:
        status, _, body = await site.get("/echo?a=1")
        assert (status, body) == (200, b'{"a": ["1"]}')

    return check()


# ---- answers -----------------------------------------------------------------------------------------------


@with_site()
async def test_a_request_is_answered(site: Site) -> None:
    status, headers, body = await site.get("/echo", "POST", b"hello")
    assert (status, body) == (200, b"hello")
    assert headers["server"] == f"muslin/{muslin.__version__}"
    assert headers["content-length"] == "5"


@with_site()
async def test_a_head_is_a_get_without_the_body(site: Site) -> None:
    status, headers, body = await site.get("/echo?a=1", "HEAD")
    assert (status, headers["content-length"], body) == (200, "12", b"")
    status, headers, body = await site.get("/stream", "HEAD")
    assert (status, body) == (200, b"")


@pytest.mark.parametrize(
    ("target", "method", "status", "told"),
    [
        ("/nowhere", "GET", 404, "there is nothing at /nowhere; there is /echo"),
        ("/fail", "POST", 405, "/fail does not know POST; it knows GET"),
        ("/refuse", "GET", 409, "not now"),
        ("/fail", "GET", 500, "ZeroDivisionError('the handler is broken')"),
    ],
)
def test_errors_are_json(tmp_path: Path, target: str, method: str, status: int, told: str) -> None:
    @with_site()
    async def run(site: Site) -> None:
        found, headers, body = await site.get(target, method)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert told in json.loads(body)["error"]
        assert headers.get("allow") == ("get" if status == 405 else None)
        await is_alive(site)

    run(tmp_path)


def test_what_a_handler_raises_is_logged_with_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @with_site()
    async def run(site: Site) -> None:
        await site.get("/fail")

    run(tmp_path)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "cannot answer GET /fail"
    assert record.exc_info is not None


@with_site()
async def test_a_connection_serves_one_request_after_the_other(site: Site) -> None:
    reader, writer = await asyncio.open_unix_connection(site.path)
    for number in range(3):
        writer.write(f"GET /echo?n={number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await reader.readuntil(b"}")
        assert f'"{number}"'.encode() in answer
    # Two at once are answered in their order.
    writer.write(b"GET /echo?n=8 HTTP/1.1\r\nHost: x\r\n\r\nGET /echo?n=9 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'"8"' in await reader.readuntil(b"}")
    assert b'"9"' in await reader.readuntil(b"}")
    writer.close()


@with_site()
async def test_http_1_0_is_answered_and_closed(site: Site) -> None:
    status, _, body = parse(await site.ask(b"GET /echo?a=1 HTTP/1.0\r\n\r\n"))
    assert (status, body) == (200, b'{"a": ["1"]}')


@with_site()
async def test_a_client_may_wait_for_leave_to_send_its_body(site: Site) -> None:
    reader, writer = await asyncio.open_unix_connection(site.path)
    writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    writer.write(b"ok")
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.close()


# ---- clients that misbehave --------------------------------------------------------------------------------

GARBAGE = [
    b"\0\1\2\3\r\n\r\n",
    b"hello\r\n\r\n",
    b"GET /echo HTTP/1.1\r\n\r\n",  # no Host
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
    b"GET /echo HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # TLS
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_told_so_and_harms_nobody(tmp_path: Path, data: bytes) -> None:
    @with_site()
    async def run(site: Site) -> None:
        status, headers, body = parse(await site.ask(data))
        assert 400 <= status < 600
        assert headers["connection"] == "close"
        assert "error" in json.loads(body)
        await is_alive(site)

    run(tmp_path)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"2000\r\n" + b"x" * 8192 + b"\r\n",
    ],
    ids=["whole", "announced", "chunked"],
)
def test_a_body_that_is_too_long_is_refused_and_not_collected(tmp_path: Path, request_bytes: bytes) -> None:
    @with_site(QUICK)
    async def run(site: Site) -> None:
        status, _, body = parse(await site.ask(request_bytes))
        assert status == 413
        assert "1000 bytes" in json.loads(body)["error"]
        await is_alive(site)

    run(tmp_path)


@with_site(QUICK)
async def test_a_request_that_trickles_in_is_given_up(site: Site) -> None:
    assert parse(await site.ask(b"GET /echo HT"))[0] == 408
    assert parse(await site.ask(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe"))[0] == 408
    await is_alive(site)


@with_site(QUICK)
async def test_a_connection_that_says_nothing_is_closed_without_a_word(site: Site) -> None:
    assert await site.ask(b"") == b""


@with_site()
async def test_clients_that_leave_in_the_middle_are_forgotten(site: Site) -> None:
    for data in (
        b"",
        b"GET /ec",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe",
        b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        _, writer = await asyncio.open_unix_connection(site.path)
        writer.write(data)
        await writer.drain()
        writer.close()
    site.gate.set()
    await until_true(lambda: not site.server._connections)
    await is_alive(site)


@with_site(QUICK)
async def test_a_reader_that_does_not_read_is_dropped(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(site.path)
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await until_true(lambda: site.streams_ended == 1)
        await until_true(lambda: not site.server._connections)
    await is_alive(site)


@with_site(QUICK)
async def test_more_connections_than_allowed_are_told_so(site: Site) -> None:
    held = [await asyncio.open_unix_connection(site.path) for _ in range(QUICK.connections)]
    for _, writer in held:
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await until_true(lambda: site.waiting == QUICK.connections)
    status, _, body = await site.get("/echo")
    assert status == 503
    assert "20 connections" in json.loads(body)["error"]
    site.gate.set()
    for reader, writer in held:
        assert b"done" in await reader.readuntil(b"done")
        writer.close()
    await until_true(lambda: not site.server._connections)
    await is_alive(site)


@with_site()
async def test_many_clients_at_once_all_get_their_own_answer(site: Site) -> None:
    async def one(number: int) -> None:
        status, _, body = await site.get("/echo", "POST", f"I am {number}".encode())
        assert (status, body) == (200, f"I am {number}".encode())

    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(PATIENT.connections)))
    await until_true(lambda: not site.server._connections)


# ---- streams -----------------------------------------------------------------------------------------------

STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


@with_site()
async def test_a_stream_arrives_piece_by_piece_and_ends(site: Site) -> None:
    reader, writer = await asyncio.open_unix_connection(site.path)
    writer.write(STREAM)
    head = await reader.readuntil(b"one\n")
    assert b"chunked" in head.lower()
    site.gate.set()
    assert (await reader.read()).endswith(b"two\n\r\n0\r\n\r\n")
    writer.close()


@with_site()
async def test_a_stream_ends_when_its_reader_leaves(site: Site) -> None:
    reader, writer = await asyncio.open_unix_connection(site.path)
    writer.write(STREAM)
    await reader.readuntil(b"one\n")
    writer.close()
    await until_true(lambda: site.streams_ended == 1)
    await is_alive(site)


@asynchronous
async def test_a_stream_ends_whole_when_the_server_closes(tmp_path: Path) -> None:
    site = Site(tmp_path / "agent.sock")
    await site.server.listen_unix(site.path, site.routes)
    reader, writer = await asyncio.open_unix_connection(site.path)
    writer.write(STREAM)
    await reader.readuntil(b"one\n")
    await site.server.close()
    assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
    writer.close()


# ---- closing and sockets -----------------------------------------------------------------------------------


@asynchronous
async def test_an_answer_under_way_goes_out_before_the_server_is_closed(tmp_path: Path) -> None:
    site = Site(tmp_path / "agent.sock")
    await site.server.listen_unix(site.path, site.routes)
    asked = asyncio.ensure_future(site.get("/wait"))
    idle_reader, idle_writer = await asyncio.open_unix_connection(site.path)
    await until_true(lambda: site.waiting == 1)
    closing = asyncio.ensure_future(site.server.close())
    assert await idle_reader.read() == b"", "who waits for nothing is closed at once"
    site.gate.set()
    status, _, body = await asked
    assert (status, body) == (200, b"done")
    await closing
    idle_writer.close()


@asynchronous
async def test_an_answer_that_does_not_come_does_not_keep_the_server(tmp_path: Path) -> None:
    site = Site(tmp_path / "agent.sock", QUICK)
    await site.server.listen_unix(site.path, site.routes)
    asked = asyncio.ensure_future(site.ask(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"))
    await until_true(lambda: site.waiting == 1)
    await site.server.close()
    with contextlib.suppress(ConnectionError):
        assert await asked == b""


def test_the_socket_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "er" / "agent.sock")
    before = os.umask(0)
    try:
        opened = bind_unix(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    opened.close()


def test_a_socket_that_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    bind_unix(path).close()
    assert Path(path).is_socket()
    with bind_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_living_agent_s_socket_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with bind_unix(path):
        with pytest.raises(MuslinError, match=r"an agent is at .* already"):
            bind_unix(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(MuslinError, match="a file is there that is none"):
        bind_unix(str(path))
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(MuslinError, match="path too long") as caught:
        bind_unix(str(tmp_path / ("a" * 120)))
    assert "--run-dir" in caught.value.hint


def test_only_the_own_socket_is_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with bind_unix(path):
        inode = os.stat(path).st_ino
        remove_unix(path, inode + 1)
        assert Path(path).is_socket()
        remove_unix(path, inode)
        assert not Path(path).exists()
        remove_unix(path, inode)


@asynchronous
async def test_tcp_has_routes_of_its_own(tmp_path: Path) -> None:
    site = Site(tmp_path / "agent.sock")
    port = await site.server.listen_tcp("127.0.0.1", 0, {"/echo": {"GET": site.echo}})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /fail HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert parse(await reader.read())[0] == 404
    writer.close()
    other: Any = HttpServer()
    with pytest.raises(MuslinError, match=f"cannot serve health on 127.0.0.1 port {port}: ") as caught:
        await other.listen_tcp("127.0.0.1", port, {})
    assert "--healthz-port" in caught.value.hint
    await site.server.close()
