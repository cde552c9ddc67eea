"""What the plugin keeps while nobody listens, and when it may not reach whom it should."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from muslin.wire.cni_socket import SPOOLED, SpoolFile, parse_request, parse_spool_name
from tests.contract.cni_shim import ADD, agent_at, answer, build, call, conf, missing, raw, wait_until

DELETE = {**ADD, "CNI_COMMAND": "DEL", "CNI_ARGS": "K8S_POD_NAME=p"}
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""Root to whom files are as closed as to anybody."""
CAN_DROP = subprocess.run([*WITHOUT_RIGHTS, "true"], capture_output=True, check=False).returncode == 0

pytestmark = [pytest.mark.contract, pytest.mark.skipif(bool(missing()), reason=missing())]
needs_setpriv = pytest.mark.skipif(not CAN_DROP, reason="capabilities cannot be dropped: not root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an agent was."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "cni.sock"


def spool(path: Path) -> Path:
    return path.parent / "cni-spool"


def names(path: Path) -> list[str]:
    return sorted(os.listdir(spool(path)))


def parse(name: str) -> SpoolFile:
    found = parse_spool_name(name)
    assert found is not None, name
    return found


# ---- the file ----------------------------------------------------------------------------------------------


def test_the_file_holds_the_request_exactly_for_its_owner_alone(path: Path) -> None:
    before = time.time_ns()
    done = call(conf(path), {**DELETE, "CNI_NETNS": "/nonexistent"})
    done.assert_success()
    (name,) = names(path)
    request = parse_request((spool(path) / name).read_bytes())
    assert (request.environment, request.stdin) == ({**DELETE, "CNI_NETNS": "/nonexistent"}, conf(path))
    assert (request.flags, request.netns_errno) == (SPOOLED, errno.ENOENT)
    assert before <= parse(name).at_ns <= time.time_ns()
    modes = [entry.stat().st_mode & 0o777 for entry in (spool(path), spool(path) / name)]
    assert modes == [0o700, 0o600]
    assert str(path) in done.stderr


def test_a_namespace_is_not_kept_but_that_it_was_the_hosts_own_is(path: Path) -> None:
    call(conf(path), {**DELETE, "CNI_NETNS": "/proc/self/ns/net"}).assert_success()
    request = parse_request((spool(path) / names(path)[0]).read_bytes())
    assert (request.is_spooled, request.has_netns, request.is_own_netns) == (True, False, True)


def test_whatever_stands_in_the_configuration_of_a_del_it_is_kept(path: Path) -> None:
    """At the usual place, which is nowhere in this test: success, and no file."""
    for stdin in (b"", b"{", conf(path)[:-1]):
        call(stdin, DELETE).assert_success()
    assert not spool(path).exists()


def test_many_at_once_are_all_kept_and_sort_by_time(path: Path) -> None:
    command = [build()]
    processes = []
    for number in range(40):
        variables = {**DELETE, "CNI_CONTAINERID": f"c{number}"}
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=variables))
    for process in processes:
        process.communicate(conf(path))
        assert process.returncode == 0
    found = [parse_request((spool(path) / name).read_bytes()) for name in names(path)]
    assert {each.environment["CNI_CONTAINERID"] for each in found} == {f"c{number}" for number in range(40)}
    call(conf(path), {**DELETE, "CNI_CONTAINERID": "last"}).assert_success()
    assert parse_request((spool(path) / names(path)[-1]).read_bytes()).environment["CNI_CONTAINERID"] == "last"


def limited(fate: signal.Handlers) -> tuple[str, ...]:
    """A wrapper with room for 512 bytes a file: what comes behind ends the writer, or is an error to it."""
    ignore = "trap '' XFSZ; " if fate is signal.SIG_IGN else ""
    return ("sh", "-c", f'ulimit -f 1; {ignore}exec "$0"')


def test_one_that_ends_in_the_middle_leaves_nothing_that_passes_for_whole(path: Path) -> None:
    stdin = conf(path, padding="x" * 2000)
    done = call(stdin, DELETE, wrapper=limited(signal.SIG_DFL))
    assert done.status == -signal.SIGXFSZ
    (name,) = names(path)
    assert parse(name).complete is False
    call(stdin, DELETE).assert_success()  # what it left is in nobody's way
    assert [parse(name).complete for name in names(path)] == [False, True]


def test_one_that_cannot_write_says_so_and_leaves_nothing(path: Path) -> None:
    done = call(conf(path, padding="x" * 2000), DELETE, wrapper=limited(signal.SIG_IGN))
    assert done.code == 5
    assert os.strerror(errno.EFBIG) in done.document["msg"]
    assert names(path) == []


# ---- an agent that comes back ------------------------------------------------------------------------------


def test_an_agent_that_comes_up_meanwhile_is_asked_and_nothing_is_kept(path: Path) -> None:
    """It has read its spool before the file was in it. The plugin is held where it tells that the DEL is kept."""
    read_end, write_end = os.pipe()
    filler = os.open(f"/proc/self/fd/{write_end}", os.O_WRONLY | os.O_NONBLOCK)
    room = fcntl.fcntl(filler, fcntl.F_GETPIPE_SZ)
    assert os.write(filler, bytes(room)) == room
    process = subprocess.Popen([build()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write_end, env=DELETE)
    assert process.stdin
    process.stdin.write(conf(path))
    process.stdin.close()
    wait_until(lambda: spool(path).exists() and [name for name in names(path) if name.endswith(".del")])
    with agent_at(path, answer()) as agent:
        os.close(write_end)
        os.close(filler)
        with open(read_end, "rb") as reader:
            assert b"no agent answers" in reader.read()
        assert process.wait(30) == 0
    assert [seen.request.environment["CNI_COMMAND"] for seen in agent.seen] == ["DEL"]
    assert names(path) == []
    assert process.stdout
    assert process.stdout.read() == b""
    process.stdout.close()


def test_an_agent_that_refuses_is_heard_and_nothing_is_kept(path: Path) -> None:
    error = b'{"cniVersion":"1.0.0","code":8,"msg":"no","details":""}'
    with agent_at(path, answer(error, 1)):
        done = call(conf(path), DELETE)
    assert (done.status, done.stdout, spool(path).exists()) == (1, error, False)


def test_one_that_goes_away_leaves_it_to_the_next(path: Path) -> None:
    with agent_at(path, raw(b"\0")) as agent:
        call(conf(path), DELETE).assert_success()
    (name,) = names(path)
    kept = parse_request((spool(path) / name).read_bytes())
    assert (kept.environment, kept.stdin) == (agent.seen[0].request.environment, agent.seen[0].request.stdin)


# ---- what is closed to us ----------------------------------------------------------------------------------


@needs_setpriv
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_a_socket_that_is_closed_to_us_is_an_error_of_every_command(path: Path, command: str) -> None:
    """No waiting helps: the plugin has the wrong user."""
    with agent_at(path, answer()) as agent:
        path.chmod(0)
        done = call(conf(path), {**ADD, "CNI_COMMAND": command}, wrapper=WITHOUT_RIGHTS)
    assert (done.code, agent.seen) == (5, [])
    assert os.strerror(errno.EACCES) in done.document["msg"]
    assert not spool(path).exists()


@needs_setpriv
def test_a_spool_that_is_closed_to_us_is_an_error(path: Path) -> None:
    path.parent.chmod(0o555)
    done = call(conf(path), DELETE, wrapper=WITHOUT_RIGHTS)
    path.parent.chmod(0o755)
    assert done.code == 5
    assert "cannot be kept" in done.document["msg"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_is_no_spool(path: Path, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        spool(path).touch()
    else:
        spool(path).symlink_to(tmp_path)
    done = call(conf(path), DELETE)
    assert done.code == 5
    assert sorted(tmp_path.iterdir()) == [path.parent]


def test_a_socket_of_another_kind_is_an_error(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(str(path))
        assert call(conf(path), DELETE).code == 5
