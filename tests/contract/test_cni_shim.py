"""The plugin ``muslin-cni``, compiled, with an agent, with a bad one and without: what a runtime gets to see."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from muslin.wire.cni_socket import STDIN_MAX_BYTES
from tests.contract.cni_shim import (
    ADD,
    RESULT,
    Call,
    agent_at,
    answer,
    build,
    call,
    conf,
    do_not_read,
    impatient,
    missing,
    raw,
    wait_for_end,
    wait_until,
)

pytestmark = [pytest.mark.contract, pytest.mark.skipif(bool(missing()), reason=missing())]

COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
WITHOUT_AGENT = {"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50}
"""The code of each command's error; DEL succeeds."""
ERROR = b'{"cniVersion":"1.0.0","code":7,"msg":"no","details":""}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the agent is, or would be."""
    return tmp_path / "run" / "cni.sock"


def environment(command: str, **more: str) -> dict[str, str]:
    return {**ADD, "CNI_COMMAND": command, **more}


def spooled(path: Path) -> list[Path]:
    return sorted((path.parent / "cni-spool").glob("*"))


def assert_as_without_agent(command: str, done: Call, path: Path) -> None:
    if command == "DEL":
        done.assert_success()
        assert [file.suffix for file in spooled(path)] == [".del"]
    else:
        assert done.code == WITHOUT_AGENT[command]
        assert str(path) in done.document["msg"]
        assert not spooled(path)


# ---- alone -----------------------------------------------------------------------------------------------


def test_without_a_command_it_says_what_it_is_and_which_versions_it_knows() -> None:
    for variables in ({}, {"CNI_COMMAND": ""}):
        done = call(b"", variables)
        done.assert_success()
        assert "0.3.1, 0.4.0, 1.0.0, 1.1.0" in done.stderr


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"CNIVERSION":"9.9.9-rc1"}', "9.9.9-rc1"),
        (b"", "1.1.0"),
        (b'{"cniVersion":', "1.1.0"),
        (b'{"cniVersion":"\\"}"}', "1.1.0"),
        (b'{"cniVersion":7}', "1.1.0"),
    ],
)
def test_version_is_answered_with_dummies_in_the_environment_and_no_agent(stdin: bytes, version: str) -> None:
    """As podman asks: cni.md, VERSION before its operations."""
    dummies = environment("VERSION", CNI_NETNS="dummy", CNI_IFNAME="dummy", CNI_PATH="dummy", CNI_CONTAINERID="")
    done = call(stdin, dummies)
    assert (done.status, done.stderr) == (0, "")
    assert done.document == {"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.parametrize("command", ["add", "REMOVE", 'A"\\\x01\n', "x" * 5000])
def test_an_unknown_command_is_an_error_of_the_environment_in_the_version_asked_for(command: str) -> None:
    done = call(b'{"cniVersion":"0.3.1"}', environment(command))
    assert (done.code, done.document["cniVersion"]) == (4, "0.3.1")
    assert command[:200] in done.document["msg"]


def test_bytes_that_are_no_text_are_told_as_text() -> None:
    done = call(b"{}", {b"CNI_COMMAND": b"\xff\xc3\xa9\xed\xa0\x80"})  # type: ignore[dict-item]
    assert "\ufffdé\ufffd" in done.document["msg"]


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b'{"socket":"/x"', b'{"a":1}x', b'{"a":tru}', b'{"a":01}'])
def test_what_is_no_configuration_is_refused_and_the_place_is_named(stdin: bytes, command: str) -> None:
    done = call(stdin, environment(command))
    assert done.code == 6
    assert f" of {len(stdin)}" in done.document["msg"]


@pytest.mark.parametrize("value", ["7", '"relative"', '""', '"/' + "x" * 107 + '"', '"/a\\u0000b"', "{}"])
def test_a_socket_that_can_be_none_is_refused(value: str) -> None:
    done = call(b'{"cniVersion":"1.0.0","socket":' + value.encode() + b"}")
    assert done.code == 7
    assert '"socket"' in done.document["msg"]


def test_a_configuration_that_is_too_long_is_refused_and_one_that_just_fits_is_not(path: Path) -> None:
    fits = conf(path) + b" " * (STDIN_MAX_BYTES - len(conf(path)))
    assert call(fits + b" ").code == 7
    with agent_at(path, answer(RESULT)) as agent:
        assert call(fits).stdout == RESULT
    assert agent.seen[0].request.stdin == fits


def test_an_environment_that_is_too_long_is_refused(path: Path) -> None:
    assert call(conf(path), environment("ADD", CNI_ARGS="x" * 70_000)).code == 4
    assert call(conf(path), environment("ADD", OTHER="x" * 70_000)).code == 11


def test_a_del_that_names_no_attachment_is_refused(path: Path) -> None:
    path.parent.mkdir()
    for name in ("CNI_CONTAINERID", "CNI_IFNAME"):
        assert call(conf(path), environment("DEL", **{name: ""})).code == 4
    assert not spooled(path)


# ---- with an agent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_all_that_is_asked_reaches_the_agent_and_what_it_answers_the_runtime(path: Path, command: str) -> None:
    wanted = environment(command, CNI_ARGS="IgnoreUnknown=1;IP=10.1.0.5", CNI_NETNS_OVERRIDE="1")
    with agent_at(path, answer(RESULT)) as agent:
        done = call(conf(path, unknown=[1, {"a": None}]), {**wanted, "HOME": "/root", "XCNI_A": "b"})
    assert (done.status, done.stdout, done.stderr) == (0, RESULT, "")
    (seen,) = agent.seen
    assert (seen.request.environment, seen.request.stdin) == (wanted, conf(path, unknown=[1, {"a": None}]))
    assert (seen.request.flags, seen.request.netns_errno, seen.netns) == (0, 0, None)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("status", [1, 3, 255])
def test_an_error_of_the_agent_is_passed_on_with_its_status(path: Path, command: str, status: int) -> None:
    with agent_at(path, answer(ERROR, status)):
        done = call(conf(path), environment(command))
    assert (done.status, done.stdout) == (status, ERROR)


@pytest.mark.parametrize("command", ["CHECK", "DEL", "GC", "STATUS"])
def test_success_without_a_document_is_nothing_on_standard_output(path: Path, command: str) -> None:
    with agent_at(path, answer()):
        call(conf(path), environment(command)).assert_success()
    assert not spooled(path)


def test_a_del_goes_to_the_agent_whatever_else_its_configuration_holds(path: Path) -> None:
    stdin = conf(path, prevResult={"ips": "garbage"})
    with agent_at(path, answer()) as agent:
        call(stdin, environment("DEL")).assert_success()
    assert agent.seen[0].request.stdin == stdin


@pytest.mark.parametrize("key", ["socket", "Socket", "SOCKET"])
def test_names_count_whatever_their_case_and_the_last_of_two(path: Path, key: str) -> None:
    text = str(path).replace("/", "\\u002f")
    with agent_at(path, answer(RESULT)):
        done = call(f'{{"socket": "/else", "{key}": "{text}", "socket": null, "a": {{"socket": "/b"}}}}'.encode())
    assert done.stdout == RESULT


def test_an_agent_may_answer_before_it_has_read(path: Path) -> None:
    """As one does that refuses by the header alone."""
    stdin = conf(path, padding="x" * 900_000)
    with agent_at(path, answer(ERROR, 1), reads=False):
        done = call(stdin)
    assert (done.status, done.stdout) == (1, ERROR)


def test_a_long_answer_arrives_whole_through_a_pipe_that_does_not_wait(path: Path) -> None:
    document = b'{"a":"' + b"x" * 900_000 + b'"}'
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with agent_at(path, answer(document)), open(read_end, "rb") as reader:
        process = subprocess.Popen([build()], stdin=subprocess.PIPE, stdout=write_end, env=ADD)
        os.close(write_end)
        assert process.stdin
        process.stdin.write(conf(path))
        process.stdin.close()
        assert reader.read() == document
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=II", 0, 0),  # an ADD without a result
        struct.pack("=II", 1, 0),  # a failure without a reason
        struct.pack("=II", 256, 2) + b"{}",
        struct.pack("=II", 0, 2) + b"[]",
        struct.pack("=II", 0, 4) + b"{}{}",
        struct.pack("=II", 0, (1 << 20) + 1) + b" " * (1 << 20) + b"x",
        struct.pack("=II", 0, 0xFFFFFFFF),
    ],
)
def test_an_answer_that_makes_no_sense_never_reaches_the_runtime(path: Path, data: bytes) -> None:
    with agent_at(path, raw(data)):
        done = call(conf(path))
    assert done.code == 5
    assert "makes no sense" in done.document["msg"]


# ---- without one, or with one that fails -------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_where_nobody_listens_a_del_is_kept_and_the_others_are_to_be_tried_again(path: Path, command: str) -> None:
    path.parent.mkdir()
    assert_as_without_agent(command, call(conf(path), environment(command)), path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_socket_that_an_agent_left_behind_is_as_none(path: Path, command: str) -> None:
    with agent_at(path, answer()):
        os.link(path, path.with_name("left"))
    path.with_name("left").rename(path)
    assert_as_without_agent(command, call(conf(path), environment(command)), path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("data", [b"", struct.pack("=I", 0), struct.pack("=II", 0, len(RESULT)) + RESULT[:-1]])
def test_an_agent_that_goes_away_before_it_has_answered_is_as_none(path: Path, command: str, data: bytes) -> None:
    for reads in (True, False):
        with agent_at(path, raw(data), reads):
            done = call(conf(path), environment(command))
        assert_as_without_agent(command, done, path)
        for file in spooled(path):
            file.unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_agent_that_is_silent_is_as_none_when_the_time_is_over(path: Path, command: str) -> None:
    with agent_at(path, wait_for_end):
        done = call(conf(path), environment(command), impatient())
    assert_as_without_agent(command, done, path)


def test_an_agent_that_does_not_read_is_as_a_silent_one(path: Path) -> None:
    with agent_at(path, do_not_read, reads=False):
        done = call(conf(path, padding="x" * 900_000), ADD, impatient())
    assert done.code == 11


def test_an_agent_that_accepts_nobody_is_as_a_silent_one(path: Path) -> None:
    """All places in its queue are taken, so that connecting waits."""
    path.parent.mkdir()
    with contextlib.ExitStack() as closing:
        listener = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting.setblocking(False)
                waiting.connect(str(path))
        for command in COMMANDS:
            assert_as_without_agent(command, call(conf(path), environment(command), impatient()), path)
            for file in spooled(path):
                file.unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_where_no_agent_was_ever_set_up_a_del_has_nothing_to_undo(tmp_path: Path, command: str) -> None:
    path = tmp_path / "run" / "cni.sock"
    done = call(conf(path), environment(command))
    if command == "DEL":
        done.assert_success()
    else:
        assert done.code == WITHOUT_AGENT[command]
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_is_killed_is_noticed(path: Path) -> None:
    with agent_at(path, wait_for_end) as agent:
        process = subprocess.Popen([build()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ADD)
        assert process.stdin
        process.stdin.write(conf(path))
        process.stdin.close()
        wait_until(lambda: agent.seen)
        assert agent.ended == 0
        process.kill()
        wait_until(lambda: agent.ended == 1)
        assert process.stdout
        assert (process.wait(30), process.stdout.read()) == (-signal.SIGKILL, b"")
        process.stdout.close()


# ---- standard streams ------------------------------------------------------------------------------------


def closed(*streams: str) -> tuple[str, ...]:
    """A wrapper that closes standard streams."""
    return ("sh", "-c", f'exec "$0" {" ".join(streams)}')


def test_with_standard_output_closed_nothing_is_done(path: Path) -> None:
    with agent_at(path, answer(RESULT)) as agent:
        for streams in ((">&-",), ("<&-", ">&-"), ("<&-", ">&-", "2>&-")):
            assert call(conf(path), wrapper=closed(*streams)).status == 1
        assert call(conf(path), wrapper=closed("1</dev/null")).status == 1
        assert call(conf(path), environment("VERSION"), wrapper=closed(">&-")).status == 1
    assert agent.seen == []


def test_with_standard_input_closed_there_is_no_configuration() -> None:
    assert call(b"", wrapper=closed("<&-")).code == 5


def test_with_standard_error_closed_nothing_that_is_said_gets_elsewhere(path: Path) -> None:
    path.parent.mkdir()
    call(conf(path), environment("DEL"), wrapper=closed("2>&-")).assert_success()
    (file,) = spooled(path)
    assert file.read_bytes().endswith(conf(path))


def test_nothing_that_is_opened_takes_the_place_of_a_closed_stream(path: Path) -> None:
    """What is said on standard error would go to the agent, or into a file of the spool."""
    with agent_at(path, wait_for_end) as agent:
        command = [*closed("2>&-"), build()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ADD)
        assert process.stdin
        process.stdin.write(conf(path))
        process.stdin.close()
        wait_until(lambda: agent.seen)
        assert os.readlink(f"/proc/{process.pid}/fd/2") == "/"
        process.kill()
        process.wait(30)


def test_standard_input_that_is_never_closed_is_not_waited_for_without_an_end() -> None:
    read_end, write_end = os.pipe()
    done = subprocess.run([impatient()], stdin=read_end, env=ADD, capture_output=True, timeout=30, check=False)
    os.close(read_end)
    os.close(write_end)
    assert Call(status=done.returncode, stdout=done.stdout, stderr="").code == 5


def test_a_reader_that_has_gone_away_is_an_error_and_no_signal(path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with agent_at(path, answer(RESULT)):
        done = subprocess.run(
            [build()], input=conf(path), env=ADD, stdout=write_end, stderr=subprocess.PIPE, timeout=30, check=False
        )
    os.close(write_end)
    assert (done.returncode, b"Broken pipe" in done.stderr) == (1, True)


def test_a_reader_that_does_not_read_is_not_waited_for_without_an_end(path: Path) -> None:
    read_end, write_end = os.pipe()
    with agent_at(path, answer(b'{"a":"' + b"x" * 200_000 + b'"}')):
        done = subprocess.run(
            [impatient()], input=conf(path), env=ADD, stdout=write_end, stderr=subprocess.PIPE, timeout=30, check=False
        )
    os.close(read_end)
    os.close(write_end)
    assert (done.returncode, b"timed out" in done.stderr) == (1, True)
