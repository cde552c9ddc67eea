"""Where container runtimes' calls come in: a unix socket, and a directory of calls that came while no agent listened.

Theory of operation: a connection is one call (``wire.cni_socket``). It is read whole, with the descriptor of the
container's namespace, checked, and given to the thread of ``agent.attachments``. The answer is the plugin's exit status
and one document. Calls for different containers wait for one another only in that thread, some milliseconds; DELs that
wait together are done together.

A runtime may lose patience and kill the plugin in the middle of an ADD; whoever does so calls DEL next, or never again.
So an ADD whose answer nobody took is taken back. On the socket that is seen two ways: the other end is closed before
the answer goes out, or it closes without having read it (ECONNRESET, unix(7)).

DELs of the spool are done in the order of their time, and each file goes once its call is done. A container that was
added after such a DEL is another one by the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from muslin.agent.attachment_plan import Netns, NodeFacts
from muslin.agent.attachments import Attachments
from muslin.agent.http import bind_unix, remove_unix
from muslin.agent.reservations import Key, Reservation
from muslin.errors import MuslinError
from muslin.wire.agent_api import Container, ContainersStatus
from muslin.wire.cni import NetworkConf, answer_version, parse_conf
from muslin.wire.cni_call import Call, parse_call
from muslin.wire.cni_error import CniError, ErrorCode, encode_error
from muslin.wire.cni_result import encode_result
from muslin.wire.cni_socket import (
    ANSWER_MAX_BYTES,
    HEADER_BYTES,
    SPOOL_NAME,
    Answer,
    Request,
    SpoolFile,
    encode_answer,
    parse_header,
    parse_request,
    parse_spool_name,
)

log = logging.getLogger("muslin.agent")

BACKLOG = 1024
"""Pods may start by the hundred, and each call is a connection."""
RECEIVE_BYTES = 1 << 16
CONNECTIONS_MAX = 128
"""Served at once, of two descriptors each; others wait to be accepted."""
REQUEST_S = 10.0
"""From a connection to the last byte of its request; the plugin sends it at once."""
TAKEN_S = 10.0
"""Until the plugin has taken its answer."""
TICK_S = 1.0
"""Between looks into the spool, and at whether a look at the kernel is due."""
LOOK_COST_FACTOR = 500
"""A look waits at least this many times the duration of the last: 0.2 % of a core."""
ASKED_COST_FACTOR = 20
"""And one that an event asks for: 5 % of a core, however many events there are."""

Outcome = TypeVar("Outcome")


class CniServer:
    """Serves one node's container runtimes. ``facts`` tells how the node is at that moment."""

    def __init__(
        self, path: Path, attachments: Attachments, facts: Callable[[], NodeFacts], resync_s: float = 30.0
    ) -> None:
        self._path, self._attachments, self._facts, self._resync_s = path, attachments, facts, resync_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="containers")
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: socket.socket | None = None
        self._waiting: list[tuple[Key, asyncio.Future[None]]] = []
        """DELs that the thread has not begun, with whom to tell."""
        self._look_at = self._asked_look_at = 0.0
        self._is_asked = False
        self.troubles: tuple[str, ...] = ()
        """What the last look found wrong, in sentences."""
        self._stuck: set[str] = set()
        """Files of the spool whose DEL was refused, and that this was said of."""

    # ---- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; MuslinError when the socket cannot be had."""
        listening = bind_unix(str(self._path))
        listening.listen(BACKLOG)
        inode = os.stat(self._path).st_ino
        loop = asyncio.get_running_loop()
        try:
            await self._in_thread(self._attachments.recover)
            self._listening = listening
            loop.add_reader(listening.fileno(), self._accept, listening)
            await self._keep()
        finally:
            self._listening = None
            loop.remove_reader(listening.fileno())
            remove_unix(str(self._path), inode)
            listening.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._thread.shutdown()

    def look_soon(self) -> None:
        """Something may have changed: have a look at the next tick."""
        self._is_asked = True

    async def list_all(self) -> tuple[Container, ...]:
        """The containers that there are, the oldest first."""
        known = await self._in_thread(self._attachments.all)
        return tuple(_shown(one) for one in sorted(known, key=lambda one: one.at))

    def status(self) -> ContainersStatus:
        """How many there are, and what is wrong with them."""
        facts = self._facts()
        return ContainersStatus(
            socket=str(self._path),
            bridge=facts.bridge,
            connected=self._attachments.count,
            free=self._attachments.free,
            troubles=self.troubles,
        )

    async def _keep(self) -> None:
        """Work off the spool, and see now and then that all containers are connected as they were."""
        while True:
            await self._work_off_spool()
            if self._is_due() and not (facts := self._facts()).trouble:
                await self._look(facts)
            await asyncio.sleep(TICK_S)

    def _is_due(self) -> bool:
        return time.monotonic() >= (self._asked_look_at if self._is_asked else self._look_at)

    async def _look(self, facts: NodeFacts) -> None:
        self._is_asked = False  # whoever asks from now on may have seen what this look comes too early for
        begun = time.monotonic()
        with contextlib.suppress(MuslinError, OSError):
            self._say(await self._in_thread(self._attachments.look, facts))
        ended = time.monotonic()
        self._asked_look_at = ended + ASKED_COST_FACTOR * (ended - begun)
        self._look_at = ended + max(0.0 if self.troubles else self._resync_s, LOOK_COST_FACTOR * (ended - begun))

    def _say(self, troubles: tuple[str, ...]) -> None:
        for trouble in set(troubles) - set(self.troubles):
            log.error("%s", trouble)
        self.troubles = troubles

    async def _in_thread(self, work: Callable[..., Outcome], *arguments: object) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # ---- one call --------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        if len(self._tasks) >= CONNECTIONS_MAX:
            asyncio.get_running_loop().remove_reader(listening.fileno())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept, self._listening)

    async def _serve(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            async with asyncio.timeout(REQUEST_S):
                data = await _receive(connection, fds)
            call, answer = await self._answer(parse_request(data), fds)
            if not await _is_taken(connection, answer) and call is not None and answer.exit_status == 0:
                log.warning("nobody took the answer to the ADD of %s: it is taken back", call.container_id)
                await self._delete(call)
        except TimeoutError:
            log.warning("a call of the CNI plugin came to nothing: it was not sent within %.0f s", REQUEST_S)
        except (OSError, ValueError) as error:
            log.warning("a call of the CNI plugin came to nothing: %s", error)
        except CniError as error:
            log.warning("%s", error)
        finally:
            connection.close()
            for fd in fds:
                os.close(fd)

    async def _answer(self, request: Request, fds: list[int]) -> tuple[Call | None, Answer]:
        """What a call comes to, and the call where that was an ADD; never an exception."""
        try:
            call = parse_call(request.environment)
            conf = parse_conf(request.stdin, call)
            document = await self._do(call, conf, request, fds)
            return call if call.command == "ADD" else None, Answer(exit_status=0, document=document)
        except CniError as error:
            told = error
        except (MuslinError, OSError) as error:
            told = CniError(ErrorCode.IO_FAILURE, str(error), "muslin status tells whether the agent is well")
        except Exception as error:
            log.exception("a call of the CNI plugin failed")
            told = CniError(ErrorCode.KERNEL_REFUSED, f"the agent failed: {error!r}", "its log tells more")
        log.info("%s: %s", request.environment.get("CNI_COMMAND", "CNI"), told)
        return None, Answer(exit_status=1, document=encode_error(told, answer_version(request.stdin)))

    async def _do(self, call: Call, conf: NetworkConf, request: Request, fds: list[int]) -> bytes:
        match call.command:
            case "ADD":
                netns = _netns_of(call, request, fds)
                result = await self._in_thread(self._attachments.add, call, conf, netns, self._facts())
                return await self._told_by(call, encode_result(result, conf.cni_version))
            case "CHECK":
                netns = _netns_of(call, request, fds)
                await self._in_thread(self._attachments.check, call, conf, netns, self._facts())
            case "DEL":
                _refuse_own_netns(call, request)
                await self._delete(call)
            case "GC":
                await self._in_thread(self._attachments.collect, conf)
            case "STATUS":
                await self._in_thread(self._attachments.status, self._facts())
        return b""

    async def _told_by(self, call: Call, document: bytes) -> bytes:
        """The document; CniError, and the ADD is taken back, where the plugin would not take it."""
        if len(document) <= ANSWER_MAX_BYTES:
            return document
        await self._delete(call)
        raise CniError(
            ErrorCode.BAD_CONFIG,
            f"the result has {len(document)} bytes with those of prevResult, and may have {ANSWER_MAX_BYTES}",
            "a plugin earlier in the list has said too much",
        )

    async def _delete(self, call: Call) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(((call.container_id, call.ifname), done))
        await self._in_thread(self._delete_waiting)
        await done

    def _delete_waiting(self) -> None:
        """In the thread: all DELs that wait by now. Those that come meanwhile are the next call's."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        failures: Mapping[Key, Exception] = {}
        try:
            failures = self._attachments.delete([key for key, _ in waiting])
        except Exception as error:  # nobody may be left waiting
            failures = dict.fromkeys((key for key, _ in waiting), error)
        for key, done in waiting:
            done.get_loop().call_soon_threadsafe(_settle, done, failures.get(key))

    # ---- the spool -------------------------------------------------------------------------------------------

    async def _work_off_spool(self) -> None:
        directory = self._path.parent / SPOOL_NAME
        try:
            names = os.listdir(directory)
        except OSError:
            return
        files = sorted(file for name in names if (file := parse_spool_name(name)) is not None)
        for file in files:
            path = directory / file.name
            if file.complete and not await self._is_done(path, file):
                continue
            # An incomplete one whose writer has ended: that has told its runtime of a failure.
            if file.complete or time.time() - file.at_ns / 1e9 > REQUEST_S:
                with contextlib.suppress(OSError):
                    path.unlink()

    async def _is_done(self, path: Path, file: SpoolFile) -> bool:
        """Do a DEL; whether it can be forgotten. What cannot be read will not be readable later.

        The network's configuration is nothing to it. It does nothing to what was added after it: a container that was
        stopped while the agent was away, and started again since.
        """
        try:
            request = parse_request(path.read_bytes())
            call = parse_call(request.environment)
            if call.command != "DEL":
                raise ValueError(f"it is {call.command}")
            _refuse_own_netns(call, request)
        except FileNotFoundError:  # its writer has found us after all, and taken it back
            return False
        except (OSError, ValueError, CniError) as error:
            log.warning("%s holds no DEL that can be done, and is removed: %s", path, error)
            return True
        failure: Exception | None
        try:
            key = (call.container_id, call.ifname)
            failure = await self._in_thread(self._attachments.delete_older, key, file.at_ns / 1e9)
        except (MuslinError, OSError) as error:
            failure = error
        if failure is None:
            log.info("the DEL of %s that came while no agent listened is done", call.container_id)
            self._stuck.discard(file.name)
        elif file.name not in self._stuck:
            log.error("%s cannot be done yet: %s", path, failure)
            self._stuck.add(file.name)
        return failure is None


def _shown(one: Reservation) -> Container:
    return Container(
        container_id=one.container_id,
        interface=one.ifname,
        network=one.network,
        addresses=one.addresses,
        mac=one.mac,
        mode=one.mode,
        cable=one.host_link,
        netns=one.netns_path,
        since=one.at,
    )


def _settle(done: asyncio.Future[None], failure: Exception | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


def _netns_of(call: Call, request: Request, fds: list[int]) -> Netns:
    """The container's namespace; CniError when there is none, before anything was touched."""
    _refuse_own_netns(call, request)
    if request.has_netns and not fds:
        raise CniError(ErrorCode.TRY_AGAIN, f"CNI_NETNS {call.netns!r} did not arrive", "the agent has many files open")
    if not request.has_netns:
        reason = os.strerror(request.netns_errno) if request.netns_errno else "it is not set"
        if request.netns_errno == errno.EINVAL:
            reason = "it is no network namespace"
        raise CniError(
            ErrorCode.BAD_NETNS,
            f"CNI_NETNS is {call.netns!r}, and cannot be entered: {reason}",
            "the runtime has to make the namespace first",
        )
    return Netns(fd=fds[0], inode=os.fstat(fds[0]).st_ino)


def _refuse_own_netns(call: Call, request: Request) -> None:
    """A path below /proc may have come to mean the host, when its process id was given out again."""
    if request.is_own_netns and not call.override:
        raise CniError(
            ErrorCode.BAD_NETNS,
            f"CNI_NETNS is {call.netns!r}, which is the namespace of the plugin itself",
            "set CNI_NETNS_OVERRIDE=1 if the host itself is to be connected",
        )


# ---- the socket --------------------------------------------------------------------------------------------


async def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """A whole request; the descriptor that its begin brought is put into ``fds`` at once. ValueError, ConnectionError.

    Others are not taken: the kernel closes those that nobody asks for.
    """
    data = b""
    missing = HEADER_BYTES
    while missing > 0:
        await _readable(connection)
        try:
            more, came, _, _ = socket.recv_fds(connection, RECEIVE_BYTES, 0 if data else 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        fds += came
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the plugin ended before it had said what it wants")
        data += more
        if len(data) >= HEADER_BYTES:
            missing = HEADER_BYTES + parse_header(data).body_bytes - len(data)
    return data


async def _is_taken(connection: socket.socket, answer: Answer) -> bool:
    """Send the answer; whether the plugin has read it."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TAKEN_S):
            with contextlib.suppress(BlockingIOError):
                if connection.recv(1) == b"":
                    return False
            await loop.sock_sendall(connection, encode_answer(answer))
            return await loop.sock_recv(connection, 1) == b""
    except (OSError, TimeoutError):
        return False


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())
