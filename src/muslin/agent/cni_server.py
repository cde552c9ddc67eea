"""Where container runtimes' calls come in: a unix socket, and a directory of calls that came while no agent listened.

Theory of operation: a connection is one call (``wire.cni_socket``). One thread does it all, from accepting to the
kernel, without handing anything over: an ADD takes two milliseconds, and passing it from thread to thread took as long
again. Each round it waits for something to come, reads what has come, and works off the calls that are whole. DELs that
came together are done together; the others one after another.

A runtime may lose patience and kill the plugin in the middle of an ADD; whoever does so calls DEL next, or never again.
So an ADD whose answer nobody took is taken back. On the socket that is seen two ways: the other end is closed before
the answer goes out, or it closes without having read it (ECONNRESET, unix(7)).

Between calls the thread looks after the containers that there are (``Attachments.look``) and works off the spool: DELs
in the order of their time, each file gone once its call is done. A container that was added after such a DEL is another
one by the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from muslin.agent.attachment_plan import Netns, NodeFacts
from muslin.agent.attachments import Attachments
from muslin.agent.http import bind_unix, remove_unix
from muslin.agent.reservations import Reservation
from muslin.errors import MuslinError
from muslin.kernel.netns import wandering
from muslin.kernel.watch import Hint
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
REQUEST_S = 10.0
"""From a connection to the last byte of its request; the plugin sends it at once."""
TAKEN_S = 10.0
"""Until the plugin has taken its answer."""
SEND_S = 1.0
"""For an answer that does not fit into the socket at once, which hardly any does not."""
CONNECTIONS_MAX = 128
"""Served at once, of two descriptors each; others wait to be accepted."""
PRIORITY = -10
"""As nice(1) counts. Whoever starts containers by the hundred has every processor busy, and all of them wait for us."""
TICK_S = 1.0
"""Between looks into the spool, and at whether a look at the kernel is due."""
IDLE_TICK_S = 5.0
"""The same while there is no container."""
LOOK_COST_FACTOR = 500
"""A look waits at least this many times the duration of the last: 0.2 % of a core."""
ASKED_COST_FACTOR = 20
"""And one that an event asks for: 5 % of a core, however many events there are."""


class _Caller:
    """One connection: a request that is being read, or an answer that is being taken."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + REQUEST_S
        self.fds: list[int] = []
        self.added: Call | None = None
        """The ADD that this was, once it is answered."""
        self.is_answered = False
        self._data = b""
        self._missing = HEADER_BYTES

    def receive(self) -> Request | None:
        """Read what has come; the request once it is whole. ValueError, ConnectionError, BlockingIOError.

        A descriptor is taken with its begin; others the kernel closes, as nobody asks for them.
        """
        wanted = 0 if self._data else 1
        more, fds, _, _ = socket.recv_fds(self.connection, RECEIVE_BYTES, wanted, socket.MSG_CMSG_CLOEXEC)
        self.fds += fds
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the plugin ended before it had said what it wants")
        self._data += more
        if len(self._data) >= HEADER_BYTES:
            self._missing = HEADER_BYTES + parse_header(self._data).body_bytes - len(self._data)
        return parse_request(self._data) if self._missing <= 0 else None

    def has_gone(self) -> bool:
        """Whether the plugin has closed its end; ConnectionError where it did without having read its answer."""
        try:
            return self.connection.recv(1) == b""
        except BlockingIOError:
            return False

    def answer(self, answer: Answer) -> None:
        """Send the answer; OSError when it is not taken in time."""
        self.is_answered = True
        self.deadline = time.monotonic() + TAKEN_S
        self.connection.settimeout(SEND_S)
        self.connection.sendall(encode_answer(answer))
        self.connection.setblocking(False)

    def close(self) -> None:
        """Let go of the connection and of what came with it."""
        self.connection.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class CniServer:
    """Serves one node's container runtimes. ``facts`` tells how the node is at that moment, to any thread."""

    def __init__(
        self, path: Path, attachments: Attachments, facts: Callable[[], NodeFacts], resync_s: float = 30.0
    ) -> None:
        self._path, self._attachments, self._facts, self._resync_s = path, attachments, facts, resync_s
        self._callers: dict[socket.socket, _Caller] = {}
        self._is_ending = False
        self._tick_at = self._accept_at = self._look_at = self._asked_look_at = 0.0
        self._is_asked = False
        self.troubles: tuple[str, ...] = ()
        """What the last look found wrong, in sentences."""
        self._stuck: set[str] = set()
        """Files of the spool whose DEL was refused, and that this was said of."""

    # ---- for the agent's loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; MuslinError when the socket cannot be had."""
        listening = bind_unix(str(self._path))
        listening.listen(BACKLOG)
        inode = os.stat(self._path).st_ino
        wake, woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(woken, selectors.EVENT_READ)
        ended = asyncio.get_running_loop().create_future()
        thread = threading.Thread(target=self._live, args=(listening, ended), name="containers")
        thread.start()
        try:
            await ended
        finally:
            self._is_ending = True
            wake.send(b"!")
            await asyncio.to_thread(thread.join)
            self._selector.close()
            remove_unix(str(self._path), inode)
            for opened in (listening, wake, woken):
                opened.close()

    def hear(self, hints: Sequence[Hint]) -> None:
        """Have a look at the next tick, where somebody has changed what containers have on the node."""
        facts = self._facts() if hints else NodeFacts()
        if any(self._attachments.concerns(hint, facts) for hint in hints):
            self.look_soon()

    def look_soon(self) -> None:
        """Have a look at the next tick."""
        self._is_asked = True

    def list_all(self) -> tuple[Container, ...]:
        """The containers that there are, the oldest first."""
        return tuple(_shown(one) for one in sorted(self._attachments.all(), key=lambda one: one.at))

    def status(self) -> ContainersStatus:
        """How many there are, and what is wrong with them."""
        return ContainersStatus(
            socket=str(self._path),
            bridge=self._facts().bridge,
            connected=self._attachments.count,
            free=self._attachments.free,
            troubles=self.troubles,
        )

    # ---- the thread ------------------------------------------------------------------------------------------

    def _live(self, listening: socket.socket, ended: asyncio.Future[None]) -> None:
        failure: BaseException | None = None
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PRIORITY)
        try:
            self._attachments.recover()
            with wandering():
                while not self._is_ending:
                    self._round(listening)
        except BaseException as error:  # whatever it is, the agent ends with it, and says it
            failure = error
        finally:
            for caller in list(self._callers.values()):
                self._let_go(caller)
            ended.get_loop().call_soon_threadsafe(_settle, ended, failure)

    def _round(self, listening: socket.socket) -> None:
        """Wait for calls, and do those that are whole."""
        if len(self._callers) < CONNECTIONS_MAX and time.monotonic() >= self._accept_at:
            with contextlib.suppress(KeyError):  # it is registered already
                self._selector.register(listening, selectors.EVENT_READ)
        calls: list[tuple[_Caller, Request]] = []
        for key, _ in self._selector.select(max(0.0, self._tick_at - time.monotonic())):
            if key.fileobj is listening:
                self._accept(listening)
            elif (caller := self._callers.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                calls += self._hear(caller)
        self._do_all(calls)
        if time.monotonic() >= self._tick_at:
            self._tick()
            is_idle = not (self._attachments.count or self._callers)
            self._tick_at = time.monotonic() + (IDLE_TICK_S if is_idle else TICK_S)

    def _tick(self) -> None:
        now = time.monotonic()
        for caller in [caller for caller in self._callers.values() if now > caller.deadline]:
            calls = list(self._hear(caller))  # it may have come while others were served
            self._do_all(calls)
            if not calls and caller.connection in self._callers:
                self._lose(caller, f"it was not sent within {REQUEST_S:.0f} s")
        self._work_off_spool()
        if now >= (self._asked_look_at if self._is_asked else self._look_at) and not (facts := self._facts()).trouble:
            self._look(facts)

    def _look(self, facts: NodeFacts) -> None:
        self._is_asked = False  # whoever asks from now on may have seen what this look comes too early for
        begun = time.monotonic()
        try:
            self._say(self._attachments.look(facts))
        except (MuslinError, OSError) as error:
            self._say((f"it could not be seen whether containers are connected as they were: {error}",))
        ended = time.monotonic()
        self._asked_look_at = ended + ASKED_COST_FACTOR * (ended - begun)
        self._look_at = ended + max(0.0 if self.troubles else self._resync_s, LOOK_COST_FACTOR * (ended - begun))

    def _say(self, troubles: tuple[str, ...]) -> None:
        for trouble in set(troubles) - set(self.troubles):
            log.error("%s", trouble)
        self.troubles = troubles

    # ---- connections -----------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        try:
            while len(self._callers) < CONNECTIONS_MAX:
                connection, _ = listening.accept()
                connection.setblocking(False)
                self._callers[connection] = _Caller(connection)
                self._selector.register(connection, selectors.EVENT_READ)
        except BlockingIOError:
            return
        except OSError as error:
            log.error("no call of the CNI plugin can be taken for now: %s", error)
            self._accept_at = time.monotonic() + TICK_S
        # The others wait in the backlog, until one of these has gone or descriptors are to be had.
        self._selector.unregister(listening)

    def _hear(self, caller: _Caller) -> Iterable[tuple[_Caller, Request]]:
        """The call of a connection on which something came, if that made it whole; or the end of one."""
        try:
            if caller.is_answered:
                if caller.has_gone():
                    self._let_go(caller)
                return ()
            request = caller.receive()
        except BlockingIOError:
            return ()
        except (OSError, ValueError) as error:
            self._lose(caller, str(error))
            return ()
        return () if request is None else ((caller, request),)

    def _lose(self, caller: _Caller, why: str) -> None:
        """A plugin that is gone, or does not talk as one: what it has had done and does not know of is taken back."""
        if caller.added is not None:
            log.warning("nobody took the answer to the ADD of %s: it is taken back", caller.added.container_id)
            self._attachments.take_back((caller.added.container_id, caller.added.ifname))
        elif not caller.is_answered:
            log.warning("a call of the CNI plugin came to nothing: %s", why)
        self._let_go(caller)

    def _let_go(self, caller: _Caller) -> None:
        self._callers.pop(caller.connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(caller.connection)
        caller.close()

    # ---- calls -----------------------------------------------------------------------------------------------

    def _do_all(self, calls: list[tuple[_Caller, Request]]) -> None:
        """Do these calls and answer them; of DELs that follow one another all at once."""
        deletes: list[tuple[_Caller, Request, Call]] = []
        for caller, request in calls:
            try:
                call = parse_call(request.environment)
                conf = parse_conf(request.stdin, call)
                if call.command == "DEL":
                    _refuse_own_netns(call, request)
                    deletes.append((caller, request, call))
                    continue
                # What comes behind them may be an ADD of the same container.
                self._delete_all(deletes)
                deletes = []
                document = self._do(call, conf, request, caller.fds)
                caller.added = call if call.command == "ADD" else None
                self._answer(caller, Answer(exit_status=0, document=document))
            except Exception as error:
                self._answer(caller, _refusal(error, request))
        self._delete_all(deletes)

    def _delete_all(self, deletes: list[tuple[_Caller, Request, Call]]) -> None:
        failures = self._delete([call for _, _, call in deletes]) if deletes else []
        for (caller, request, _), failure in zip(deletes, failures, strict=True):
            self._answer(caller, _refusal(failure, request) if failure else Answer(exit_status=0))

    def _answer(self, caller: _Caller, answer: Answer) -> None:
        try:
            if caller.has_gone():
                raise ConnectionResetError(errno.ECONNRESET, "the plugin has ended")
            caller.answer(answer)
        except OSError as error:
            self._lose(caller, str(error))

    def _do(self, call: Call, conf: NetworkConf, request: Request, fds: list[int]) -> bytes:
        match call.command:
            case "ADD":
                result = self._attachments.add(call, conf, _netns_of(call, request, fds), self._facts())
                return self._told(call, encode_result(result, conf.cni_version))
            case "CHECK":
                self._attachments.check(call, conf, _netns_of(call, request, fds), self._facts())
            case "GC":
                self._attachments.collect(conf)
            case "STATUS":
                self._attachments.status(self._facts())
        return b""

    def _told(self, call: Call, document: bytes) -> bytes:
        """The document; CniError, and the ADD is taken back, where the plugin would not take it."""
        if len(document) <= ANSWER_MAX_BYTES:
            return document
        self._attachments.take_back((call.container_id, call.ifname))
        raise CniError(
            ErrorCode.BAD_CONFIG,
            f"the result has {len(document)} bytes with those of prevResult, and may have {ANSWER_MAX_BYTES}",
            "a plugin earlier in the list has said too much",
        )

    def _delete(self, calls: list[Call]) -> list[Exception | None]:
        """Disconnect all of these at once; for each what was refused."""
        keys = [(call.container_id, call.ifname) for call in calls]
        try:
            failures = self._attachments.delete(keys)
        except Exception as error:
            return [error] * len(calls)
        return [failures.get(key) for key in keys]

    # ---- the spool -------------------------------------------------------------------------------------------

    def _work_off_spool(self) -> None:
        directory = self._path.parent / SPOOL_NAME
        try:
            names = os.listdir(directory)
        except OSError:
            return
        for file in sorted(file for name in names if (file := parse_spool_name(name)) is not None):
            path = directory / file.name
            if file.complete and not self._is_done(path, file):
                continue
            # An incomplete one whose writer has ended: that has told its runtime of a failure.
            if file.complete or time.time() - file.at_ns / 1e9 > REQUEST_S:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _is_done(self, path: Path, file: SpoolFile) -> bool:
        """Do a DEL; whether it can be forgotten. What cannot be read will not be readable later.

        The network's configuration is nothing to it, nor is the namespace: its runtime was told of a success.
        """
        try:
            request = parse_request(path.read_bytes())
            call = parse_call(request.environment)
            if call.command != "DEL":
                raise ValueError(f"it is {call.command}")
        except FileNotFoundError:  # its writer has found us after all, and taken it back
            return False
        except (OSError, ValueError, CniError) as error:
            log.warning("%s holds no DEL that can be done, and is removed: %s", path, error)
            return True
        failure: Exception | None
        try:
            failure = self._attachments.delete_older((call.container_id, call.ifname), file.at_ns / 1e9)
        except (MuslinError, OSError) as error:
            failure = error
        if failure is None:
            log.info("the DEL of %s, which came while no agent listened, is done", call.container_id)
            self._stuck.discard(file.name)
        elif file.name not in self._stuck:
            log.error("%s cannot be done yet: %s", path, failure)
            self._stuck.add(file.name)
        return failure is None


def _refusal(error: Exception, request: Request) -> Answer:
    """What the runtime is told of a failure, whatever it is."""
    match error:
        case CniError():
            told = error
        case MuslinError() | OSError():
            told = CniError(ErrorCode.IO_FAILURE, str(error), "muslin status tells whether the agent is well")
        case _:
            log.error("a call of the CNI plugin failed", exc_info=error)
            told = CniError(ErrorCode.KERNEL_REFUSED, f"the agent failed: {error!r}", "its log tells more")
    log.info("%s: %s", request.environment.get("CNI_COMMAND", "CNI"), told)
    return Answer(exit_status=1, document=encode_error(told, answer_version(request.stdin)))


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


def _settle(ended: asyncio.Future[None], failure: BaseException | None) -> None:
    if ended.cancelled():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)


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
