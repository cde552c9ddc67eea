"""Calls to a cluster of etcd members: failover, log-in, deadlines, and a watch that notices silence.

Theory of operation: all calls and watches of a client share one link to one member, chosen at random at the start
so that nodes spread over the members. A try that fails for a reason that another member may not have (no
connection, no answer in time, no leader) retires the link, and the next try goes to the next member; after a round
of all of them the tries pause. A refusal that every member would repeat is raised at once.

* An answer may be lost after the request was carried out. ``Call.unsure`` says so, and whoever wrote must then look
  whether it was his own earlier try that he finds.
* Tokens die with a restart and of old age. The server's complaint is what makes us log in, for the first time too;
  so a password that is set costs nothing while etcd asks for none.
* A watch requires a leader, so a member that lost its cluster ends it. A member that froze says nothing: after some
  silence the watch asks it a question by the same connection, and no answer ends the watch.

No message holds a password or token: they leave this file only as fields of a request.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

from grpclib.client import Stream, StreamStreamMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from h2.exceptions import H2Error

from muslin.store.base import Backoff, StoreUnavailable
from muslin.store.etcd_api import rpc_pb2 as pb
from muslin.store.etcd_api.apart import run_apart
from muslin.store.etcd_api.link import EtcdOptions, Link, parse_endpoint
from muslin.store.etcd_api.methods import AUTHENTICATE, RANGE, WATCH, Method, Request, Response

BROKEN = (OSError, GRPCError, StreamTerminatedError, ProtocolError, H2Error)
"""How a try can fail. A timeout is an OSError; anything else is a fault of ours."""
FINAL = {
    Status.PERMISSION_DENIED,
    Status.FAILED_PRECONDITION,
    Status.NOT_FOUND,
    Status.ALREADY_EXISTS,
    Status.INVALID_ARGUMENT,
    Status.OUT_OF_RANGE,
    Status.UNIMPLEMENTED,
}
"""Refusals that another member would repeat."""
LOG_IN_WORDS = ("user name is empty", "invalid auth token", "auth store is old")
"""What etcd says to who should log in (again); the status alone does not tell."""
_WatchStream = Stream[pb.WatchRequest, pb.WatchResponse]
MAX_LOG_INS = 3
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0


class EtcdRefused(StoreUnavailable):
    """etcd answered, and the answer was no; ``reason`` is its own text."""

    def __init__(self, what: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{what}: {reason}", hint)
        self.reason = reason


class Compacted(StoreUnavailable):
    """The history that a watch asked for is no longer there."""


class Call:
    """One operation of possibly many tries: what it is, its deadline, and what went wrong so far."""

    def __init__(self, what: str, deadline_s: float, max_tries: int | None = None) -> None:
        self.what = what
        self.unsure = False
        """Whether a request may have been carried out although its answer never came."""
        self._until = asyncio.get_running_loop().time() + deadline_s
        self._tries_left = max_tries
        self._backoff = Backoff(PAUSE_MIN_S, PAUSE_MAX_S)
        self._failures = 0
        self._why = ""
        self.log_ins = 0

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._until - asyncio.get_running_loop().time()

    async def fail(self, link: Link, error: BaseException, members: int) -> None:
        """Note a failed try and pause, or raise StoreUnavailable if there is to be no other."""
        self.unsure = True
        self._failures += 1
        # The deadline cuts the last try short, and then silence says less than what was heard before.
        if not (self._why and isinstance(error, TimeoutError)):
            self._why = f"{link.endpoint}: {describe(error)}"
        pause_s = self._backoff.pause_s() if self._failures >= members else 0.0
        if self._failures == self._tries_left or self.left_s() <= pause_s:
            raise StoreUnavailable(f"etcd: cannot {self.what}: {self._why}")
        await asyncio.sleep(pause_s)


class EtcdClient:
    """A client of one cluster."""

    def __init__(self, options: EtcdOptions) -> None:
        self.options = options
        for endpoint in options.endpoints:
            parse_endpoint(endpoint)
        self._next = random.randrange(len(options.endpoints))
        self._link: Link | None = None
        self._token = ""
        self._closed = False

    async def call(self, method: Method[Request, Response], request: Request, call: Call) -> Response:
        """Ask until somebody answers; raises StoreUnavailable, and EtcdRefused for a no."""
        while True:
            token, link = self._token, self._current()
            try:
                return await self._try(link, method, request, token, call.left_s())
            except BROKEN as error:
                if wants_log_in(error):
                    await self._log_in(link, token, call)
                    continue
                raise_if_final(error, call.what)
                self._give_up(link)
                await call.fail(link, error, len(self.options.endpoints))

    async def watch(self, request: pb.WatchCreateRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        """Responses, the first saying that the watch stands; raises StoreUnavailable when it ends, as all do."""
        link = self._current()
        try:
            async with aclosing(self._stream(link, request)) as responses:
                async for response in responses:
                    yield response
        except BROKEN as error:
            self._give_up(link)
            raise StoreUnavailable(f"etcd: the watch at {link.endpoint} broke: {describe(error)}") from error

    async def close(self) -> None:
        """Close the connection; calls after this fail."""
        self._closed = True
        if self._link is not None:
            self._link.retire()

    def _current(self) -> Link:
        """The link to use now."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._link is None:
            endpoint = self.options.endpoints[self._next]
            self._next = (self._next + 1) % len(self.options.endpoints)
            try:
                self._link = Link(self.options, endpoint)
            except OSError as error:
                raise StoreUnavailable(f"etcd: no TLS for {endpoint} with the files given: {error}") from error
        return self._link

    def _give_up(self, link: Link) -> None:
        """Have the next try go to the next member, unless another call has seen to that."""
        link.retire()
        if self._link is link:
            self._link = None

    async def _try(
        self, link: Link, method: Method[Request, Response], request: Request, token: str, left_s: float
    ) -> Response:
        metadata = {"token": token} if token else {}
        with link.use() as channel:
            return await run_apart(method.call(channel, request, metadata), min(self.options.attempt_s, left_s))

    async def _log_in(self, link: Link, stale_token: str, call: Call) -> None:
        """Get a token, unless another call has got a newer one than ``stale_token``."""
        options = self.options
        if self._token != stale_token:
            return
        if not options.username:
            raise EtcdRefused(f"etcd: cannot {call.what}", "etcd wants a user name", "Set etcd's user and password.")
        call.log_ins += 1
        if call.log_ins > MAX_LOG_INS:
            raise EtcdRefused(f"etcd: cannot {call.what}", "tokens are refused as soon as they are given")
        request = pb.AuthenticateRequest(name=options.username, password=options.password.reveal())
        try:
            self._token = (await self._try(link, AUTHENTICATE, request, "", call.left_s())).token
        except BROKEN as error:
            if isinstance(error, GRPCError) and "not enabled" in (error.message or ""):
                self._token = ""
                return
            raise_if_final(error, f"log in as {options.username!r}", "Check etcd's user and password.")
            self._give_up(link)
            await call.fail(link, error, len(options.endpoints))

    async def _stream(self, link: Link, request: pb.WatchCreateRequest) -> AsyncGenerator[pb.WatchResponse, None]:
        metadata = {"hasleader": "true"} | ({"token": self._token} if self._token else {})
        with link.use() as channel:
            method = StreamStreamMethod(channel, WATCH.path, WATCH.request, WATCH.response)
            async with method.open(metadata=metadata) as stream:
                begin = _ask_to_watch(stream, pb.WatchRequest(create_request=request))
                response = _check_watch(await run_apart(begin, self.options.attempt_s))
                while True:
                    yield response
                    receive = asyncio.ensure_future(stream.recv_message())
                    try:
                        await self._wait(receive, link, request.key)
                    finally:
                        receive.cancel()
                        await asyncio.wait({receive})
                    response = _check_watch(receive.result())

    async def _wait(self, receive: asyncio.Future[pb.WatchResponse | None], link: Link, key: bytes) -> None:
        """Until something was received; in long silence the member has to answer a question."""
        question = pb.RangeRequest(key=key, count_only=True, serializable=True)
        while True:
            done, _ = await asyncio.wait({receive}, timeout=self.options.heartbeat_s)
            if done:
                return
            token = self._token
            try:
                await self._try(link, RANGE, question, token, self.options.attempt_s)
            except GRPCError as error:
                if not wants_log_in(error):
                    raise
                await self._log_in(link, token, Call("watch", self.options.attempt_s, max_tries=1))


async def _ask_to_watch(stream: _WatchStream, request: pb.WatchRequest) -> pb.WatchResponse | None:
    await stream.send_message(request)
    return await stream.recv_message()


def _check_watch(response: pb.WatchResponse | None) -> pb.WatchResponse:
    """The response, if the watch goes on after it."""
    if response is None:
        raise StreamTerminatedError("the member ended it")
    if response.compact_revision:
        raise Compacted(f"etcd: history before revision {response.compact_revision} was compacted")
    if response.canceled:
        raise StreamTerminatedError(response.cancel_reason or "the member cancelled it")
    return response


def wants_log_in(error: BaseException) -> bool:
    """Whether the server would answer somebody who is logged in (again)."""
    if not isinstance(error, GRPCError):
        return False
    return error.status is Status.UNAUTHENTICATED or any(words in (error.message or "") for words in LOG_IN_WORDS)


def raise_if_final(error: BaseException, what: str, hint: str = "") -> None:
    """Raise EtcdRefused if trying again would be of no use."""
    if not isinstance(error, GRPCError) or error.status not in FINAL:
        return
    if error.status is Status.PERMISSION_DENIED:
        hint = "Give etcd's user a role that may read and write below the prefix."
    raise EtcdRefused(f"etcd: cannot {what}", describe(error), hint) from error


def describe(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, GRPCError):
        return error.message or error.status.name.lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
