"""Real etcd members on loopback, ways to hurt them, and a relay that can lose what passes through it.

Theory of operation: a member is a process with a data directory below pytest's and ports that were free a moment
ago. Tests speak to it as an operator would, through its JSON gateway, so that they need no second gRPC client.
"""

import asyncio
import base64
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

START_S = 30.0
FAST_RAFT = ("--heartbeat-interval", "50", "--election-timeout", "500")
"""In milliseconds; ten times as fast as etcd's own, and still calm on two busy cores."""


def find_etcd() -> str:
    """The server's program; without it, the test is skipped."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("needs etcd (Debian and Ubuntu: etcd-server)")
    return program


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def text64(text: bytes) -> str:
    """Bytes as the gateway wants them."""
    return base64.b64encode(text).decode()


class Member:
    """One etcd process, and the files and ports that it keeps over restarts."""

    def __init__(self, name: str, directory: Path, options: Sequence[str] = (), scheme: str = "http") -> None:
        self.name = name
        self.directory = directory
        self.options = tuple(options)
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str) -> None:
        """Start the process; ``ready`` tells when it serves."""
        urls = ("--listen-client-urls", self.url, "--advertise-client-urls", self.url)
        peers = ("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url)
        where = ("--name", self.name, "--data-dir", str(self.directory / self.name), "--initial-cluster", cluster)
        command = [find_etcd(), *where, *urls, *peers, *FAST_RAFT, *self.options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() != "x86_64":
            environment["ETCD_UNSUPPORTED_ARCH"] = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
        with open(self.directory / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """End the process as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop the process; its sockets stay open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, path: str, token: str = "", **body: Any) -> dict[str, Any]:
        """A call through the JSON gateway, e.g. ``ask("kv/compaction", revision=7)``."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": token} if token else {})
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def put(self, key: str, value: bytes) -> None:
        """Write a key as any other user of etcd might."""
        self.ask("kv/put", key=text64(key.encode()), value=text64(value))

    def is_leader(self) -> bool:
        """Whether this member leads the cluster."""
        status = self.ask("maintenance/status")
        return bool(status["leader"] == status["header"]["member_id"])

    def enable_auth(self, password: str) -> None:
        """From now on only ``root`` with this password may do anything."""
        self.ask("auth/user/add", name="root", password=password)
        self.ask("auth/role/add", name="root")
        self.ask("auth/user/grant", user="root", role="root")
        self.ask("auth/enable")


class Cluster:
    """Members that know each other; a context manager that leaves no process."""

    def __init__(self, directory: Path, size: int = 1) -> None:
        self.members = [Member(f"m{number}", directory) for number in range(size)]

    @property
    def urls(self) -> tuple[str, ...]:
        """All endpoints."""
        return tuple(member.url for member in self.members)

    @property
    def known(self) -> str:
        """etcd's ``--initial-cluster``."""
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def start(self, *members: Member) -> None:
        """Start these members, all if none is named, and wait until they serve."""
        for member in members or self.members:
            member.start(self.known)
        for member in members or self.members:
            wait_until_ready(member)

    def leader(self) -> Member:
        """The member that leads."""
        return next(member for member in self.members if member.process is not None and member.is_leader())

    def heal(self) -> None:
        """Wake the frozen, start the killed, and wait until all serve."""
        for member in self.members:
            if member.process is not None:
                member.thaw()
            else:
                member.start(self.known)
        for member in self.members:
            wait_until_ready(member)

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for member in self.members:
            member.kill()


def wait_until_ready(member: Member) -> None:
    """Until the member serves and knows a leader; an answer that one has to log in counts as well."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            member.ask("kv/range", key=text64(b"ready"))
            return
        except urllib.error.HTTPError as error:
            if b"user name is empty" in error.read():
                return
        except OSError:
            pass
        assert member.process is not None
        assert member.process.poll() is None, (member.directory / f"{member.name}.log").read_text()[-2000:]
        assert time.monotonic() < deadline, f"{member.name} does not serve"
        time.sleep(0.02)  # noqa: TID251 - the pause of a wait for a condition


class Relay:
    """A TCP relay in front of a member, in the test's event loop; an async context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._flows: set[asyncio.Task[None]] = set()
        self._answers_pass = asyncio.Event()
        self._answers_pass.set()
        self._limit_bytes: int | None = None
        self.requests = 0
        """Chunks that passed towards the server while answers were held."""
        self.url = ""

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.cut()

    def hold_answers(self) -> None:
        """From now on requests reach the server and its answers reach nobody."""
        self._answers_pass.clear()
        self.requests = 0

    def break_after(self, limit_bytes: int) -> None:
        """From now on each new connection breaks as soon as so many bytes of answers have passed."""
        self._limit_bytes = limit_bytes

    async def cut(self) -> None:
        """Break all connections, and let new ones through."""
        self._limit_bytes = None
        flows = set(self._flows)
        for flow in flows:
            flow.cancel()
        if flows:
            await asyncio.wait(flows)
        self._answers_pass.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flow = asyncio.ensure_future(self._pass(reader, writer))
        self._flows.add(flow)
        flow.add_done_callback(self._flows.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(writer.transport.abort)
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            stack.callback(upstream.transport.abort)
            ways = {
                asyncio.ensure_future(self._copy(reader, upstream, is_answer=False)),
                asyncio.ensure_future(self._copy(upstream_reader, writer, is_answer=True)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        left_bytes = self._limit_bytes if is_answer else None
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536 if left_bytes is None else left_bytes):
                if left_bytes is not None:
                    left_bytes -= len(chunk)
                if is_answer:
                    await self._answers_pass.wait()
                elif not self._answers_pass.is_set():
                    self.requests += 1
                writer.write(chunk)
                await writer.drain()


@contextlib.contextmanager
def running_cluster(directory: Path, size: int = 1) -> Iterator[Cluster]:
    """A cluster that serves."""
    find_etcd()
    with Cluster(directory, size) as cluster:
        yield cluster
