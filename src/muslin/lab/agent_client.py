"""Asking an agent of the lab: a few requests of HTTP over its unix socket.

Theory of operation: an agent that does not answer is as good as none, whatever the reason: it has not started yet, has
ended and left its socket behind, or hangs. Who must know more looks at the process and its log.
"""

from __future__ import annotations

import http.client
import socket
from http import HTTPStatus

import msgspec

from muslin.wire.agent_api import AgentStatus, StopRequest

PATIENCE_S = 5.0
"""How long an agent may think about one question: it has one thread, which may be busy with the kernel."""
SOCKET_PATH_MAX = 107  # sun_path less the final NUL, unix(7)


class _Connection(http.client.HTTPConnection):
    """HTTP, not over TCP."""

    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Called by the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_status(path: str) -> AgentStatus | None:
    """What the agent behind this socket says of itself; None when nobody answers."""
    answer = _ask(path, "GET", "/v1/status")
    try:
        return msgspec.json.decode(answer, type=AgentStatus) if answer is not None else None
    except msgspec.MsgspecError:
        return None  # of another version; the lab's own are started anew


def ask_to_stop(path: str, *, release: bool) -> bool:
    """Whether the agent behind this socket has promised to end, with ``release`` after it has given its lease back."""
    body = msgspec.json.encode(StopRequest(release=release))
    return _ask(path, "POST", "/v1/stop", body) is not None


def _ask(path: str, method: str, target: str, body: bytes | None = None) -> bytes | None:
    connection = _Connection(path)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        answer = response.read()
        return answer if response.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED) else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
