"""The lab of an ordinary user: everything from separate processes, found again through the keeper."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.support import (
    SEVERAL_USERS,
    SOURCE,
    Muslin,
    finish,
    is_alive,
    leftovers,
    place_apart,
    wait_until,
)
from tests.lab.test_fire import kill_after

pytestmark = [pytest.mark.lab, SEVERAL_USERS]

UID = 65534
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")

OPEN_TUN = """
mkdir -p {home}/dev
mount -t tmpfs -o mode=755 none {home}/dev
mknod {home}/dev/tun c 10 200
chmod {mode} {home}/dev/tun
mount --bind {home}/dev/tun /dev/net/tun
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory of that user's own; pytest's are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="rootless-", dir="/tmp"))
    os.chown(path, UID, UID)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def python(home: Path) -> tuple[tuple[str, ...], str]:
    """An interpreter and a source path that this user may read: the run's own or, if closed to others, copies."""

    def works(interpreter: str, source: str) -> bool:
        probe = "import click, msgspec, muslin.cli.main, rich, yaml"
        command = [*AS_USER, interpreter, "-c", probe]
        env = {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, env=env, check=False, capture_output=True, cwd="/").returncode == 0

    if works(sys.executable, SOURCE):
        return (sys.executable,), SOURCE
    copy = home / "packages"
    shutil.copytree(sysconfig.get_path("purelib"), copy)
    shutil.copytree(Path(SOURCE) / "muslin", copy / "muslin", dirs_exist_ok=True)
    subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
    for interpreter in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if works(interpreter, str(copy)):
            return (interpreter,), str(copy)
    pytest.fail(f"no Python that user {UID} may run: {sys.executable} and /usr/bin/python3 do not work for it")


@pytest.fixture
def user(home: Path, python: tuple[tuple[str, ...], str]) -> Iterator[Muslin]:
    """The command line of an ordinary user on a machine where /dev/net/tun is open, as on most distributions."""
    yield from _user(home, python, "0666")


def _user(home: Path, python: tuple[tuple[str, ...], str], mode: str) -> Iterator[Muslin]:
    script = OPEN_TUN.format(home=home, mode=mode)
    runtime = home / "run"
    with place_apart(script, "-m", "--propagation", "private") as pid:
        one = Muslin(
            runtime / "muslin",
            ("nsenter", "-t", str(pid), "-m", *AS_USER),
            {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "MUSLIN_RUNTIME_DIR": ""},
            *python,
        )
        runtime.mkdir(exist_ok=True)
        os.chown(runtime, UID, UID)
        yield one
        keepers = [one.state(name)["keeper"]["pid"] for name in one.names if (one.runtime / name).exists()]
        one.down_all()
        wait_until(lambda: not any(map(is_alive, keepers)), "the keepers have ended")
        assert not leftovers(one.runtime)
        # The keeper and all that lives in its namespaces carry the run's token, but for tunnels.
        assert not list_processes_of_user()
        runtime.rmdir()
    (home / "dev").rmdir()


def list_processes_of_user() -> set[str]:
    """Processes of this user below this run: found by the token, or by being a tunnel of this user."""
    token = f"MUSLIN_TEST_RUN={os.environ['MUSLIN_TEST_RUN']}"
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            mine = os.stat(f"/proc/{pid}").st_uid == UID
            if mine and token in Path(f"/proc/{pid}/environ").read_text().split("\0") and is_alive(int(pid)):
                found.add(pid + " " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def keeper_of(user: Muslin, name: str) -> int:
    return int(user.state(name)["keeper"]["pid"])


def test_an_ordinary_user_has_all_of_the_lab(user: Muslin) -> None:
    before = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    name = user.up("--step", 4)

    report = user.json("check", "--name", name)
    assert report["ok"] is True
    assert len(report["cells"]) == 48
    row = user.json("ls", "--name", name)["labs"][0]
    assert (row["rootless"], row["condition"]) == (True, "up")
    assert user.json("inspect", "--name", name)["drift"] == []
    # Nothing of it is seen outside; inside, plain `ip netns` shows it.
    now = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    assert not [entry for entry in now - before if f"-{name}-" in entry]
    listed = user.inside(name, "node1", "ip", "netns").stdout
    assert {line.split()[0] for line in listed.splitlines()} == {
        f"muslin-{name}-{place}"
        for place in ("lan0", "node1", "con1.node1", "con2.node1", "node2", "con1.node2", "con2.node2")
    }
    pid_and_more = user.inside(name, "con1.node1", "ip", "netns", "exec", f"muslin-{name}-con1.node2", "ip", "-4", "a")
    assert "172.16.1.2/24" in pid_and_more.stdout
    user.inside(name, "con1.node1", "sh", "-c", "exit 7", code=7)
    devices = user.inside(name, "con1.node1", "ls", "/sys/class/net").stdout.split()
    assert set(devices) == {"lo", "veth11"}

    keeper = keeper_of(user, name)
    gone = user.json("down", name)
    assert len(gone["labs"][0]["removed"]) == 7
    assert gone["labs"][0]["ended"] == 2
    wait_until(lambda: not is_alive(keeper), "the keeper has ended")


def test_an_ordinary_user_changes_breaks_and_mends_a_lab(user: Muslin) -> None:
    name = user.up("--step", 2)
    user.up("--step", 3, name=name)
    user.lab("check", "--name", name)

    user.inside(name, "node1", "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert "net.ipv4.ip_forward=1" in user.lab("inspect", "--name", name, code=4).stderr
    user.lab("check", "--name", name, "--timeout", "0.4", code=1)

    user.up("--step", 4, name=name)
    user.lab("check", "--name", name)
    again = user.json("up", "--name", name, "--step", 4)
    assert again["commands"] == []


def test_an_ordinary_user_gets_vxlan_and_packet_filters(user: Muslin) -> None:
    name = user.up("--step", 4, "--backend", "vxlan", "--family", "dual")
    user.lab("check", "--name", name)
    user.inside(name, "node1", "nft", "add table ip sneaky")
    assert "sneaky" in user.inside(name, "node1", "nft", "list", "tables").stdout


@pytest.mark.parametrize("options", [["--backend", "vxlan", "--family", "dual"], ["--backend", "udp"]])
def test_an_ordinary_user_has_agents_on_his_nodes(user: Muslin, options: list[str]) -> None:
    name = user.up("--agents", *options, "--containers", 1)

    user.lab("check", "--name", name)
    row = user.json("ls", "--name", name)["labs"][0]
    assert (row["agents"], row["ready"], row["rootless"]) == (2, 2, True)
    told = user.inside(name, "node1", *user.python, "-m", "muslin", "status", "--no-probe").stdout
    assert told.startswith("node1  ready, 1 of 1 peer programmed")
    user.up("--agents", *options, "--containers", 1, "--nodes", 3, name=name)
    user.lab("check", "--name", name)
    user.lab("inspect", "--name", name)  # exit code 0: no drift
    user.lab("down", name)
    assert not leftovers(user.runtime)


def test_an_ordinary_user_has_etcd_on_hosts_of_his_lab(user: Muslin) -> None:
    if shutil.which("etcd") is None:
        pytest.skip("needs etcd (Debian and Ubuntu: etcd-server)")
    name = user.up("--agents", "--store", "etcd", "--step", 3, "--containers", 1)

    user.lab("check", "--name", name)
    places = {place["name"]: place["etcd"] for place in user.json("inspect", "--name", name)["places"]}
    assert [places[f"etcd{number}"]["healthy"] for number in (1, 2, 3)] == [True] * 3


def test_two_labs_of_an_ordinary_user_do_not_disturb_each_other(user: Muslin) -> None:
    first, second = user.up("--step", 3), user.up("--step", 3)

    user.lab("check", "--name", first)
    user.lab("down", first)
    user.lab("check", "--name", second)
    assert user.lab("ls", "-q").stdout.split() == [second]


def test_the_demo_runs_for_an_ordinary_user(user: Muslin) -> None:
    done = user.lab("demo", "--name", user.new_name())

    assert done.stdout.count("PASSED") == 4
    assert not list_processes_of_user()


def test_an_up_killed_by_surprise_is_taken_away_by_down(user: Muslin) -> None:
    name = user.new_name()
    for number in range(6):
        process = user.start("up", "--name", name, "--step", 4, "--nodes", 3, "--containers", 3)
        kill_after(process, 0.12 + 0.09 * number)
        user.lab("down", name)
        wait_until(
            lambda: not leftovers(user.runtime) and not list_processes_of_user(), f"kill {number} leaves nothing"
        )


def test_a_lab_whose_keeper_ended_is_lost_and_down_clears_it(user: Muslin) -> None:
    name = user.up("--step", 4)
    os.kill(keeper_of(user, name), signal.SIGKILL)
    wait_until(lambda: not is_alive(keeper_of(user, name)), "the keeper has ended")

    assert user.json("ls", "--name", name)["labs"][0]["condition"] == "lost"
    told = user.lab("check", "--name", name, code=2).stderr
    assert f"lab '{name}' is gone" in told
    assert f"muslin lab down --name {name}" in told
    assert user.json("down", name)["labs"][0]["ended"] == 2
    assert not leftovers(user.runtime)


def test_a_lab_whose_keeper_ended_can_simply_be_raised_again(user: Muslin) -> None:
    name = user.up("--step", 4)
    os.kill(keeper_of(user, name), signal.SIGKILL)

    user.up("--step", 4, name=name)

    user.lab("check", "--name", name)
    user.lab("down", name)
    assert not leftovers(user.runtime)


def test_an_interrupted_up_of_an_ordinary_user_takes_all_back(user: Muslin) -> None:
    process = user.start("up", "--name", user.new_name(), "--step", 4, "--pause", stdin=subprocess.PIPE)

    finish(process, 130, "\n" * 10)

    assert not leftovers(user.runtime)
    wait_until(lambda: not list_processes_of_user(), "no process is left")


def test_a_closed_tun_device_is_named_with_what_opens_it(home: Path, python: tuple[tuple[str, ...], str]) -> None:
    for user in _user(home, python, "0600"):
        name = user.new_name()
        told = user.lab("up", "--name", name, "--step", 4, code=3).stderr
        assert "/dev/net/tun is closed to this user" in told
        assert "chmod 0666 /dev/net/tun" in told
        assert not leftovers(user.runtime)

        user.up("--step", 4, "--backend", "vxlan", name=name)
        user.lab("check", "--name", name)


def test_forbidden_user_namespaces_are_named_with_the_setting(muslin: Muslin) -> None:
    # The limit counts for a user namespace of its own, whose root without capabilities is an ordinary user.
    with place_apart("echo 0 > /proc/sys/user/max_user_namespaces", "-U", "-r", "-m") as pid:
        wrap = ("nsenter", "-t", str(pid), "-U", "-m", "--preserve-credentials", "setpriv", "--bounding-set=-all")
        told = muslin.lab("up", "--name", muslin.new_name(), "--step", 2, wrap=wrap, code=3).stderr

    assert "/proc/sys/user/max_user_namespaces is 0" in told
    assert "sysctl -w user.max_user_namespaces=" in told
    assert not leftovers(muslin.runtime)
