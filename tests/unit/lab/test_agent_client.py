"""An agent is asked over its socket; whatever is wrong with it, nobody answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from muslin.lab import agent_client
from muslin.lab.agent_client import ask_status, ask_to_stop
from tests.unit.lab.test_agents import status

Serve = Callable[[bytes], list[bytes]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Answer one connection with these bytes; the requests that came are in the list, once they have."""
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "agent.sock"))
    listener.listen()

    def start(answer: bytes) -> list[bytes]:
        requests: list[bytes] = []

        def body() -> None:
            with listener.accept()[0] as connection:
                requests.append(connection.recv(65536))
                connection.sendall(answer)

        threads.append(threading.Thread(target=body))
        threads[-1].start()
        return requests

    yield start
    for thread in threads:
        thread.join()
    listener.close()


def answer(code: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {code}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_a_status_is_what_the_agent_says(serve: Serve, tmp_path: Path) -> None:
    requests = serve(answer("200 OK", msgspec.json.encode(status(1, ()))))

    assert ask_status(f"{tmp_path}/agent.sock") == status(1, ())
    assert requests[0].startswith(b"GET /v1/status HTTP/1.1\r\n")


@pytest.mark.parametrize("said", [answer("200 OK", b"{}"), answer("503 No", b""), b"", b"\0\0\r\n"])
def test_what_is_no_answer_is_none(serve: Serve, tmp_path: Path, said: bytes) -> None:
    serve(said)

    assert ask_status(f"{tmp_path}/agent.sock") is None


def test_nobody_and_somebody_silent_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "PATIENCE_S", 0.05)
    path = f"{tmp_path}/agent.sock"
    assert ask_status(path) is None
    assert ask_status("/" + "x" * 200) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert ask_status(path) is None
    assert ask_to_stop(path, release=True) is False, "a socket that its agent has left behind"


def test_a_wish_to_stop_is_a_request_with_a_body(serve: Serve, tmp_path: Path) -> None:
    requests = serve(answer("202 Accepted", b"{}"))

    assert ask_to_stop(f"{tmp_path}/agent.sock", release=True) is True
    # The body may come in a packet of its own.
    assert requests[0].startswith(b"POST /v1/stop HTTP/1.1\r\n")
