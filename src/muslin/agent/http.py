"""A small HTTP/1.1 server on asyncio: who may connect, what a request may cost, and how an answer goes out.

Theory of operation: h11 knows the protocol and does no I/O; this file reads, writes, and sets the limits. A connection
is a task. It waits for a request (``Limits.idle_s``), reads it whole (``Limits.request_s`` from its first byte on),
asks the routes for an answer, writes that, and begins again, unless one side wants to close. An answer that is a
stream goes out chunk by chunk until it ends or the reader leaves, and closes the connection.

Whatever a handler raises becomes an answer: an ``HttpError`` its own status, anything else 500 with a log entry. Errors
are JSON, ``{"error": ...}``. A client that sends garbage, too much or too slowly gets an answer where there is still
one to be had, and loses its connection, never anybody else's.

A unix socket is closed to others from its first moment on. One that a dead agent left behind is replaced, a living one
is refused.

Not handled: TLS, compression, ranges, pipelined requests beyond answering them in order, half-closed connections (a
client that stops sending has left).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

import h11
import msgspec

import muslin
from muslin.errors import MuslinError
from muslin.wire.agent_api import ErrorDocument

log = logging.getLogger(__name__)

READ_BYTES = 64 << 10
HEAD_BYTES = 16 << 10  # h11's own bound on a request's head
SOCKET_MODE = 0o600
BACKLOG = 128
ACCEPTING_S = 0.01
"""A connection that was accepted takes a few turns of the loop to get its transport."""
JSON = "application/json"


class Limits(NamedTuple):
    """What a client may cost."""

    idle_s: float = 60.0
    """Between requests."""
    request_s: float = 10.0
    """From a request's first byte to its last."""
    write_s: float = 10.0
    """Until a full buffer has room again: a reader that is slower is dropped."""
    closing_s: float = 2.0
    """For answers under way when the server closes, and for a client to stop sending what was refused."""
    body_bytes: int = 64 << 10
    connections: int = 100
    """At once, on each socket."""


LIMITS = Limits()


class Request(NamedTuple):
    """A whole request. ``query`` has each name's values in order; of a HEAD the method is GET."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    body: bytes


class Response(NamedTuple):
    """An answer: ``body``, or a ``stream`` of chunks, which closes the connection after it."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    stream: AsyncGenerator[bytes, None] | None = None


class HttpError(Exception):
    """Raised by a handler to answer with this status and sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path to method to handler."""


def json_response(status: int, document: msgspec.Struct) -> Response:
    """A document as JSON on one line."""
    return Response(status, msgspec.json.encode(document) + b"\n")


def error_response(status: int, text: str) -> Response:
    """An error as JSON."""
    return json_response(status, ErrorDocument(error=text))


async def answer(routes: Routes, request: Request) -> tuple[Response, str]:
    """The answer to a request, and for a method that the path does not know, those that it does; never an exception."""
    methods = routes.get(request.path)
    if methods is None:
        return error_response(404, f"there is nothing at {request.path}; there is {', '.join(routes)}"), ""
    handler = methods.get(request.method)
    if handler is None:
        allowed = ", ".join(methods)
        return error_response(405, f"{request.path} does not know {request.method}; it knows {allowed}"), allowed
    try:
        return await handler(request), ""
    except HttpError as error:
        return error_response(error.status, str(error)), ""
    except Exception as error:
        log.exception("cannot answer %s %s", request.method, request.path)
        return error_response(500, f"cannot answer {request.method} {request.path}: {error!r}; see the log"), ""


class HttpServer:
    """Any number of listening sockets, each with its own routes, under common limits."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._socket_file: tuple[str, int] | None = None
        self._closing = False

    async def listen_unix(self, path: str, routes: Routes) -> None:
        """Serve on a unix socket that only its owner may open; MuslinError when another agent does."""
        opened = bind_unix(path)
        self._socket_file = (path, os.stat(path).st_ino)
        self._servers.append(await asyncio.start_unix_server(self._handler(routes), sock=opened, backlog=BACKLOG))

    async def listen_tcp(self, host: str, port: int, routes: Routes) -> int:
        """Serve on TCP; the port, which the kernel chooses for 0. MuslinError when it cannot be had."""
        try:
            server = await asyncio.start_server(self._handler(routes), host, port, backlog=BACKLOG)
        except OSError as error:
            what = f"cannot serve health on {host} port {port}: {error.strerror or error}"
            raise MuslinError(
                what, "choose another with --healthz-ip and --healthz-port, or port 0 for none"
            ) from error
        self._servers.append(server)
        chosen: int = server.sockets[0].getsockname()[1]
        return chosen

    async def close(self) -> None:
        """Take no more requests, let answers under way go out for a moment, and end every connection."""
        self._closing = True
        if self._socket_file is not None:
            remove_unix(*self._socket_file)
        await self._stop_listening()
        for task, connection in self._connections.items():
            if not connection.answering:
                task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=self._limits.closing_s)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=self._limits.closing_s)
        for server in self._servers:
            await server.wait_closed()

    async def _stop_listening(self) -> None:
        # asyncio loses a connection that was accepted and has not got its transport yet when its server is closed
        # (Server._attach asserts); so first accept no more, then let those get through, and be turned away.
        for server in self._servers:
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
        await asyncio.sleep(ACCEPTING_S)
        for server in self._servers:
            server.close()

    def _handler(self, routes: Routes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._closing:
                writer.transport.abort()
                return
            same = sum(connection.routes is routes for connection in self._connections.values())
            full = same >= self._limits.connections
            connection = Connection(reader, writer, routes, self._limits)
            task = asyncio.get_running_loop().create_task(connection.refuse() if full else connection.serve())
            self._connections[task] = connection
            task.add_done_callback(self._forget)

        return connected

    def _forget(self, task: asyncio.Task[None]) -> None:
        # Closed already, unless the task was cancelled before it began.
        self._connections.pop(task).close()


class Connection:
    """One client. ``answering`` while a request of it is being worked on, except by a stream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routes: Routes, limits: Limits
    ) -> None:
        self._reader, self._writer = reader, writer
        self.routes, self._limits = routes, limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._deadline = 0.0
        self.answering = False

    def close(self) -> None:
        """Take no more of it."""
        self._writer.close()

    async def serve(self) -> None:
        """Answer requests until one side has enough."""
        await self._guard(self._serve_all())

    async def refuse(self) -> None:
        """Say that there are too many, and close."""
        await self._guard(self._give_up(503, f"there are {self._limits.connections} connections already"))

    async def _guard(self, work: Awaitable[object]) -> None:
        """Do the work and close, whatever happens: nobody awaits this task for its result."""
        try:
            await work
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client left, or is too slow to be told
        except asyncio.CancelledError:
            pass  # the server closes
        except Exception:
            log.exception("a connection of the API failed")
        finally:
            await self._close()

    async def _close(self) -> None:
        """Let go of the connection once all is written; at once, if the client does not take it."""
        self._writer.close()
        try:
            async with asyncio.timeout(self._limits.write_s):
                await self._writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            self._writer.transport.abort()

    async def _serve_all(self) -> None:
        while await self._serve_one():
            pass

    async def _serve_one(self) -> bool:
        """One request and its answer; False when the connection is at its end."""
        try:
            head = await self._read_head()
            if head is None:
                return False
            self.answering = True
            request = _request(head, await self._read_body(head))
        except h11.RemoteProtocolError as error:
            return await self._give_up(error.error_status_hint, f"that is no HTTP request: {error}")
        except HttpError as error:
            return await self._give_up(error.status, str(error))
        except TimeoutError:
            return await self._give_up(408, f"the request was not there within {self._limits.request_s:g} s")
        response, allowed = await answer(self.routes, request)
        if response.stream is not None:
            self.answering = False
        await self._send(response, allowed, head_only=head.method == b"HEAD")
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self.answering = False
        return True

    # ---- reading -------------------------------------------------------------------------------------------

    async def _read_head(self) -> h11.Request | None:
        """The next request without its body, None when the client has left or said nothing for too long."""
        self._deadline = asyncio.get_running_loop().time() + self._limits.request_s
        if self._http.trailing_data[0] == b"" and not await self._receive(self._limits.idle_s):
            return None
        self._deadline = asyncio.get_running_loop().time() + self._limits.request_s
        event = await self._next_event()
        return event if isinstance(event, h11.Request) else None

    async def _read_body(self, head: h11.Request) -> bytes:
        """The body; HttpError 413 when it is too long, as soon as that is known."""
        limit = self._limits.body_bytes
        too_long = HttpError(413, f"a request may have {limit} bytes of body")
        if int(dict(head.headers).get(b"content-length", b"0")) > limit:
            raise too_long
        if self._http.they_are_waiting_for_100_continue:
            await self._write(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > limit:
                raise too_long
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("the client left in the middle of its request")
        return bytes(body)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout_at(self._deadline):
                self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _receive(self, timeout_s: float) -> bool:
        """Hand what comes next to h11; False at the end and when nothing comes."""
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError:
            return False
        self._http.receive_data(data)
        return bool(data)

    # ---- writing -------------------------------------------------------------------------------------------

    async def _send(self, response: Response, allowed: str = "", head_only: bool = False, last: bool = False) -> None:
        headers = [("Server", f"muslin/{muslin.__version__}"), ("Content-Type", response.content_type)]
        headers += [("Allow", allowed)] if allowed else []
        if response.stream is None:
            headers.append(("Content-Length", str(len(response.body))))
        if response.stream is not None or last:
            headers.append(("Connection", "close"))
        await self._write(h11.Response(status_code=response.status, headers=headers))
        if response.stream is not None and not head_only:
            await self._send_stream(response.stream)
        elif response.body and not head_only:
            await self._write(h11.Data(data=response.body))
        await self._write(h11.EndOfMessage())

    async def _send_stream(self, stream: AsyncGenerator[bytes, None]) -> None:
        """Pass the chunks on until there are no more, the reader leaves, or the server closes."""
        pump = asyncio.ensure_future(self._pump(stream))
        gone = asyncio.ensure_future(self._wait_for_end())
        try:
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the server closes: the reader shall see a whole stream that ends, not a broken one
        finally:
            for task in (pump, gone):
                task.cancel()
            outcome, _ = await asyncio.gather(pump, gone, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def _pump(self, stream: AsyncGenerator[bytes, None]) -> None:
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                await self._write(h11.Data(data=chunk))

    async def _wait_for_end(self) -> None:
        while await self._reader.read(READ_BYTES):
            pass

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(self._limits.write_s):
                await self._writer.drain()

    async def _give_up(self, status: int, text: str) -> bool:
        """Answer, if that is still possible, and be done with this client."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send(error_response(status, text), last=True)
            # Closing with something unread would reset the connection, and with it the answer.
            self._writer.write_eof()
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(self._limits.closing_s):
                    await self._wait_for_end()
        return False


def _request(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("ascii", "replace").partition("?")
    method = head.method.decode("ascii", "replace")
    return Request("GET" if method == "HEAD" else method, path, parse_qs(query, keep_blank_values=True), body)


# ---- the unix socket ---------------------------------------------------------------------------------------


def bind_unix(path: str) -> socket.socket:
    """A listening socket at ``path``, mode 0600, in place of one that nobody listens at; MuslinError otherwise."""
    _refuse_occupied(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        # The file gets the mode that the socket has by then (net/unix/af_unix.c, unix_bind_bsd): never a moment open.
        os.fchmod(opened.fileno(), SOCKET_MODE)
        opened.bind(path)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        # The kernel takes 107 bytes for the path of a unix socket (unix(7)); Python says so without an errno.
        reason = error.strerror or str(error)
        raise MuslinError(f"cannot make the agent's socket {path}: {reason}", "choose another --run-dir") from error
    return opened


def _refuse_occupied(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise MuslinError(f"cannot make the agent's socket {path}: a file is there that is none", "take it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(path)
        except BlockingIOError:
            pass  # its queue is full: it lives
        except OSError:
            return
    raise MuslinError(
        f"an agent is at {path} already", "see it with `muslin status`, or give this one a --run-dir of its own"
    )


def remove_unix(path: str, inode: int) -> None:
    """Take the socket's file away, unless it is another one by now."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
