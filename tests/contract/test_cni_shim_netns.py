"""What the plugin makes of CNI_NETNS: the very namespace goes along, and nothing else is opened or waited for."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.cni_shim import ADD, RESULT, Seen, agent_at, answer, call, conf, missing, wait_until

CAN_UNSHARE = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0

pytestmark = [
    pytest.mark.contract,
    pytest.mark.kernel,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not CAN_UNSHARE, reason="network namespaces cannot be made: not root"),
]

OWN = "/proc/self/ns/net"


@pytest.fixture
def other() -> Iterator[str]:
    """A path of a network namespace that is not ours."""
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE) as holder:
        path = f"/proc/{holder.pid}/ns/net"
        wait_until(lambda: os.stat(path).st_ino != os.stat(OWN).st_ino)
        yield path
        assert holder.stdin
        holder.stdin.close()


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def ask(tmp_path: Path, netns: object, command: str = "ADD") -> Seen:
    """What an agent gets to see."""
    path = tmp_path / "run" / "cni.sock"
    with agent_at(path, answer(RESULT)) as agent:
        done = call(conf(path), {**ADD, "CNI_COMMAND": command, "CNI_NETNS": str(netns)})
    assert (done.status, done.stdout) == (0, RESULT)
    (seen,) = agent.seen
    return seen


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_the_descriptor_is_of_that_very_namespace(tmp_path: Path, other: str, command: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(other)
    for path in (other, link):
        seen = ask(tmp_path, path, command)
        assert seen.netns == identity(other) != identity(OWN)
        assert (seen.request.has_netns, seen.request.is_own_netns, seen.request.netns_errno) == (True, False, 0)


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_its_own_namespace_is_told_as_such(tmp_path: Path, command: str) -> None:
    """By a recycled /proc/PID/ns/net a runtime would have the host's network taken for a container's."""
    for path in (OWN, f"/proc/{os.getpid()}/ns/net"):
        seen = ask(tmp_path, path, command)
        assert (seen.netns, seen.request.has_netns, seen.request.is_own_netns) == (identity(OWN), True, True)


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_a_command_without_a_container_does_not_look_at_it(tmp_path: Path, other: str, command: str) -> None:
    for path in (other, OWN, "/nonexistent"):
        seen = ask(tmp_path, path, command)
        assert (seen.netns, seen.request.flags, seen.request.netns_errno) == (None, 0, 0)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "device", "other kind of namespace", "user's namespace"])
def test_what_is_no_network_namespace_is_told_as_none(tmp_path: Path, kind: str, command: str) -> None:
    """A FIFO would hang; a plain file is what a namespace's mount leaves behind after a reboot."""
    path = tmp_path / "netns"
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/null")
        case "other kind of namespace":
            path = Path("/proc/self/ns/uts")
        case "user's namespace":
            path = Path("/proc/self/ns/user")
    seen = ask(tmp_path, path, command)
    assert (seen.netns, seen.request.flags, seen.request.netns_errno) == (None, 0, errno.EINVAL)


@pytest.mark.parametrize(
    ("netns", "error"),
    [
        ("/nonexistent/netns", errno.ENOENT),
        ("/dev/null/netns", errno.ENOTDIR),
        ("/proc/4194305/ns/net", errno.ENOENT),
        ("/" + "x" * 5000, errno.ENAMETOOLONG),
    ],
)
def test_why_it_could_not_be_opened_is_told(tmp_path: Path, netns: str, error: int) -> None:
    seen = ask(tmp_path, netns, "DEL")
    assert (seen.netns, seen.request.flags, seen.request.netns_errno) == (None, 0, error)
    assert seen.request.environment["CNI_NETNS"] == netns


def test_one_that_is_empty_is_none(tmp_path: Path) -> None:
    seen = ask(tmp_path, "", "DEL")
    assert (seen.netns, seen.request.flags, seen.request.netns_errno) == (None, 0, 0)


def test_a_namespace_that_has_ended_leaves_an_error_and_no_other_namespace(tmp_path: Path) -> None:
    with subprocess.Popen(["unshare", "-n", "true"]) as holder:
        path = f"/proc/{holder.pid}/ns/net"
        holder.wait()
    seen = ask(tmp_path, path, "DEL")
    assert (seen.netns, seen.request.netns_errno) == (None, errno.ENOENT)
