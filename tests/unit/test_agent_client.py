"""The client of the agent's API: what it brings, and what it says when there is nothing to bring."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muslin import agent_client
from muslin.agent_client import NoAgentError, default_socket, fetch_status, post_stop, wait_until_gone
from muslin.errors import EXIT_UNSUPPORTED, MuslinError, UnsupportedError, UsageError
from tests.unit.agent.node import FakeNode, make_status
from tests.unit.cli.agent_at import agent_at


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@contextmanager
def answering(path: str, answer: bytes) -> Iterator[None]:
    """Something that gives one answer to whoever comes first, whatever he says."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def http(status: str, body: bytes, server: str = "muslin/9.9") -> bytes:
    return f"HTTP/1.1 {status}\r\nServer: {server}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/run/muslin-agent/agent.sock"),
        ({"MUSLIN_AGENT_RUN_DIR": "/run/other"}, "/run/other/agent.sock"),
        ({"MUSLIN_AGENT_RUN_DIR": ""}, "/run/muslin-agent/agent.sock"),
    ],
)
def test_the_socket_is_found_by_the_agent_s_own_setting(environment: dict[str, str], expected: str) -> None:
    assert default_socket(environment) == expected


def test_the_status_arrives_whole(path: str) -> None:
    node = FakeNode()
    with agent_at(path, node):
        assert fetch_status(path) == node.now


def test_a_stop_is_passed_on_and_its_end_waited_for(path: str) -> None:
    node = FakeNode()
    with agent_at(path, node):
        post_stop(path, release=True)
        assert node.stops == [True]
        assert not wait_until_gone(path, 0.05)
    assert wait_until_gone(path, 5)


def test_no_agent_is_told_apart_and_says_how_to_start_one(path: str) -> None:
    with pytest.raises(NoAgentError, match="there is no such socket") as caught:
        fetch_status(path)
    assert caught.value.exit_code == EXIT_UNSUPPORTED
    assert "muslin agent" in caught.value.hint
    assert "--socket" in caught.value.hint


def test_an_agent_that_has_ended_and_left_its_socket_is_none(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
    with pytest.raises(NoAgentError, match="its agent has ended"):
        fetch_status(path)
    assert wait_until_gone(path, 0)


def test_a_socket_that_is_closed_to_us(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(agent_client._Connection, "connect", refuse)
    with pytest.raises(UnsupportedError, match="is closed to this user") as caught:
        fetch_status(path)
    assert not isinstance(caught.value, NoAgentError)
    assert "sudo" in caught.value.hint


def test_an_agent_that_hangs(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with pytest.raises(MuslinError, match=r"has not answered within 0\.1 s"):
            fetch_status(path, timeout_s=0.1)
        assert not wait_until_gone(path, 0)


@pytest.mark.parametrize(
    "answer",
    [
        http("404 Not Found", b'{"error": "there is nothing at /v1/status"}'),
        http("200 OK", b'{"schema": "muslin.agent-status/v2"}'),
        http("200 OK", b"[]"),
        http("200 OK", b"not json"),
        http("500 Oops", b"not json"),
    ],
)
def test_another_version_is_named(path: str, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(MuslinError, match=r"has version 9\.9 and this command") as caught:
        fetch_status(path)
    assert "restart the agent" in caught.value.hint


def test_what_the_agent_refuses_is_passed_on(path: str) -> None:
    answer = http("500 Oops", b'{"error": "cannot answer GET /v1/status"}')
    with answering(path, answer), pytest.raises(MuslinError, match="refuses: cannot answer GET"):
        fetch_status(path)


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ESMTP\r\n", b"\0" * 100])
def test_something_else_behind_the_socket(path: str, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(MuslinError, match="does not talk as an agent does"):
        fetch_status(path)


def test_a_path_that_is_no_socket_s() -> None:
    with pytest.raises(UsageError, match="cannot be a unix socket"):
        fetch_status("/" + "a" * 200)
    with pytest.raises(NoAgentError):
        fetch_status("/dev/null/agent.sock")


def test_a_failing_node_is_an_error_with_its_reason(path: str) -> None:
    node = FakeNode(make_status())
    node.failure = RuntimeError("half a status")
    with agent_at(path, node), pytest.raises(MuslinError, match="half a status"):
        fetch_status(path)


def test_nothing_is_left_open(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with agent_at(path, FakeNode()):
        for _ in range(5):
            fetch_status(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_whoever_asks_in_passing_gets_no_answer_instead_of_a_reason(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "agent.sock")
    assert agent_client.ask_status(nowhere) is None
    assert not agent_client.ask_to_stop(nowhere, release=True)
