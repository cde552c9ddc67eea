"""Ask an agent over its unix socket: that of this host, or those of a lab.

Theory of operation: the standard library's HTTP client on a unix socket. What can go wrong is told apart by what a
person would do next: start an agent (``NoAgentError``), become root, wait, or use programs of one version.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Mapping
from typing import TypeVar

import msgspec

import muslin
from muslin.errors import MuslinError, UnsupportedError, UsageError
from muslin.settings import BY_NAME
from muslin.wire.agent_api import AgentStatus, ContainerList, ErrorDocument, StopRequest

SOCKET_NAME = "agent.sock"
TIMEOUT_S = 5.0
"""How long an agent may think: it has one thread, which may be busy."""
POLL_S = 0.1
SOCKET_PATH_MAX = 107
"""Bytes: sun_path less the final NUL, unix(7)."""

Document = TypeVar("Document", bound=msgspec.Struct)


class NoAgentError(UnsupportedError):
    """Nobody is behind the socket."""


def default_socket(environment: Mapping[str, str] = os.environ) -> str:
    """Where the agent of this host listens, by the same setting that the agent goes by."""
    setting = BY_NAME["run-dir"]
    given = (environment[name] for name in setting.environment if environment.get(name))
    return os.path.join(next(given, setting.default), SOCKET_NAME)


def fetch_status(path: str, probe: bool = False, timeout_s: float = TIMEOUT_S) -> AgentStatus:
    """What the agent says of itself; with ``probe`` after it has asked its peers. NoAgentError, MuslinError."""
    return _ask(path, "GET", f"/v1/status?probe={int(probe)}", None, AgentStatus, timeout_s)


def fetch_containers(path: str, timeout_s: float = TIMEOUT_S) -> ContainerList:
    """The containers that it has connected. NoAgentError, MuslinError."""
    return _ask(path, "GET", "/v1/containers", None, ContainerList, timeout_s)


def ask_status(path: str) -> AgentStatus | None:
    """The same, or None when nobody answers: not started yet, ended, hanging, or of another version."""
    try:
        return fetch_status(path)
    except MuslinError:
        return None


def post_stop(path: str, release: bool, timeout_s: float = TIMEOUT_S) -> None:
    """Tell the agent to end, with ``release`` to give its lease back before; it has promised to when this returns."""
    _ask(path, "POST", "/v1/stop", StopRequest(release=release), StopRequest, timeout_s)


def ask_to_stop(path: str, *, release: bool) -> bool:
    """Whether the agent has promised to end; False when nobody answers."""
    try:
        post_stop(path, release)
    except MuslinError:
        return False
    return True


def wait_until_gone(path: str, timeout_s: float) -> bool:
    """Whether the agent has ended within this time."""
    deadline = time.monotonic() + timeout_s
    while _is_there(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_there(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(POLL_S)
        try:
            caller.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # closed to us, or too busy
    return True


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("agent", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Called by the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(
    path: str, method: str, target: str, body: msgspec.Struct | None, expected: type[Document], timeout_s: float
) -> Document:
    connection = _Connection(path, timeout_s)
    try:
        connection.request(method, target, msgspec.json.encode(body) if body else None)
        response = connection.getresponse()
        return _read(path, response.status, response.getheader("Server", ""), response.read(), expected)
    except (OSError, http.client.HTTPException) as error:
        raise _failure(path, error, timeout_s) from error
    finally:
        connection.close()


def _read(path: str, status: int, server: str, answer: bytes, expected: type[Document]) -> Document:
    """The document of an answer; MuslinError when it is another one."""
    theirs = server.partition("/")[2] or "unknown"
    another = MuslinError(
        f"the agent at {path} has version {theirs} and this command {muslin.__version__}: they talk differently",
        "restart the agent after an upgrade, or use the command that came with it",
    )
    try:
        if status < 300:
            return msgspec.json.decode(answer, type=expected)
        said = msgspec.json.decode(answer, type=ErrorDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise another from error
    if status == 404:
        raise another
    raise MuslinError(f"the agent at {path} refuses: {said.error}")


def _failure(path: str, error: Exception, timeout_s: float) -> MuslinError:
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            gone = "its agent has ended" if isinstance(error, ConnectionRefusedError) else "there is no such socket"
            return NoAgentError(
                f"no agent answers at {path}: {gone}",
                "start one with `muslin agent`, or `systemctl start muslin-agent` where it is a service;\n"
                "  one with another --run-dir is found by --socket PATH or MUSLIN_AGENT_RUN_DIR",
            )
        case PermissionError():
            return UnsupportedError(f"the agent's socket {path} is closed to this user", "ask as root, with sudo")
        case TimeoutError():
            return MuslinError(
                f"the agent at {path} has not answered within {timeout_s:g} s", "its log tells what it is busy with"
            )
        case OSError(errno=None) if not isinstance(error, http.client.HTTPException):
            # A path that is too long, which Python finds by itself.
            return UsageError(f"{path} cannot be a unix socket: {error}")
    return MuslinError(f"what is at {path} does not talk as an agent does: {str(error) or type(error).__name__}")
