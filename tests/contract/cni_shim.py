"""The plugin ``muslin-cni`` under test, and an agent that does what a script says: how its contract is asked.

Theory of operation: the plugin is compiled from native/ for a run of the tests, with a socket of its own as the usual
one, and once more with little patience, so that silence is over soon. ``ScriptedAgent`` serves one connection after
another in a thread: it takes the request apart by the codec of the real agent, notes it and the namespace that came
along, and then does its act. What the plugin wrote is looked at by ``Call``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from muslin.wire.cni_socket import HEADER_BYTES, Answer, Request, encode_answer, parse_header, parse_request

ROOT = Path(__file__).parents[2]
PATIENCE_MS = 300
SANITIZED = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
LIMIT_S = 30.0
"""How long a call may take before it counts as hanging."""
NOBODY = "/nonexistent/muslin-test/cni.sock"
"""The usual socket of the plugins under test: on this machine, no agent may be reached by a mistake."""

ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "",
    "CNI_PATH": "/opt/cni/bin",
}
RESULT = b'{"cniVersion":"1.0.0","ips":[]}'


def missing() -> str:
    """What this machine lacks to compile the plugin, empty if nothing."""
    return "" if shutil.which("cc") else "no C compiler (cc)"


@functools.cache
def build(flags: str = "-O2") -> str:
    """The plugin's path, compiled once a run with these flags."""
    directory = tempfile.TemporaryDirectory(prefix="muslin-cni-")
    _directories.append(directory)
    path = os.path.join(directory.name, "muslin-cni")
    environment = {**os.environ, "CFLAGS": f'{flags} -DDEFAULT_SOCKET="{NOBODY}"'}
    subprocess.run([ROOT / "native" / "build", path, "cni"], env=environment, check=True)
    return path


_directories: list[tempfile.TemporaryDirectory[str]] = []
"""They go with the process."""


def impatient() -> str:
    """The plugin as it is, but for how long it waits."""
    return build(f"-O2 -DPATIENCE_MS={PATIENCE_MS}")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a call."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def document(self) -> Any:
        """What stands on stdout: one JSON document."""
        return json.loads(self.stdout)

    @property
    def code(self) -> int:
        """Of the error that it is."""
        assert self.status == 1, self
        assert self.document["msg"], self
        assert set(self.document) == {"cniVersion", "code", "msg", "details"}
        return int(self.document["code"])

    def assert_success(self) -> None:
        """Of a command that has nothing to say."""
        assert (self.status, self.stdout) == (0, b""), self


def conf(path: object, **more: Any) -> bytes:
    """A network configuration with the agent at this socket."""
    return json.dumps(
        {"cniVersion": "1.0.0", "name": "net", "type": "muslin-cni", "socket": str(path), **more}
    ).encode()


def call(
    stdin: bytes,
    environment: Mapping[str, str | bytes] = ADD,
    program: str = "",
    wrapper: tuple[str, ...] = (),
    **options: Any,
) -> Call:
    """Run the plugin to its end."""
    done = subprocess.run(
        [*wrapper, program or build()],
        input=stdin,
        env=dict(environment),
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        **options,
    )
    return Call(status=done.returncode, stdout=done.stdout, stderr=done.stderr.decode())


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition that nobody signals."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        threading.Event().wait(0.005)


# ---- the agent -----------------------------------------------------------------------------------------------

Act = Callable[[socket.socket], None]


def answer(document: bytes = b"", exit_status: int = 0) -> Act:
    """Answer as an agent does."""
    return lambda connection: connection.sendall(encode_answer(Answer(exit_status=exit_status, document=document)))


def raw(data: bytes) -> Act:
    """Answer with these bytes."""
    return lambda connection: connection.sendall(data)


def wait_for_end(connection: socket.socket) -> None:
    """Say nothing until the other end is closed."""
    while connection.recv(4096):
        pass


def do_not_read(connection: socket.socket) -> None:
    """Take nothing until the other end is closed."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()  # POLLHUP is told unasked


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came. ``netns``: device and inode of what came along, None where nothing did."""

    request: Request
    data: bytes
    netns: tuple[int, int] | None


class ScriptedAgent:
    """Listens at ``path``; ``act`` is what it does after it has read a request, or before where ``reads`` is false."""

    def __init__(self, path: Path, act: Act, reads: bool = True) -> None:
        self.seen: list[Seen] = []
        self.ended = 0
        """Connections that were served and closed."""
        self._act, self._reads = act, reads
        path.parent.mkdir(exist_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # it was shut down
                return
            with connection, contextlib.suppress(ConnectionError):
                if self._reads:
                    self.seen.append(_read(connection))
                self._act(connection)
            self.ended += 1


def _read(connection: socket.socket) -> Seen:
    data, fds, _, _ = socket.recv_fds(connection, HEADER_BYTES, 4)
    while len(data) < HEADER_BYTES or len(data) < HEADER_BYTES + parse_header(data).body_bytes:
        more = connection.recv(1 << 16)
        assert more, "the request is cut short"
        data += more
    assert len(fds) <= 1
    netns = None
    for fd in fds:
        found = os.fstat(fd)
        netns = (found.st_dev, found.st_ino)
        os.close(fd)
    return Seen(request=parse_request(data), data=data, netns=netns)


@contextlib.contextmanager
def agent_at(path: Path, act: Act, reads: bool = True) -> Iterator[ScriptedAgent]:
    """An agent until the end."""
    agent = ScriptedAgent(path, act, reads)
    try:
        yield agent
    finally:
        agent.close()
        path.unlink()
