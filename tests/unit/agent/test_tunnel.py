"""The keeper of a tunnel, with a stand-in for the tunnel that behaves as a file tells it to, in the own namespace.

What a real tunnel makes of it is in tests/kernel/test_agent_tunnel.py.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.agent import tunnel as tunnel_room
from muslin.agent.tunnel import Pauses, TunnelKeeper
from muslin.errors import MuslinError
from muslin.kernel import programs
from muslin.model.network import Tunnel
from tests.contract.tunnel_bench import wait_for

DEVICE = f"none{os.getpid()}"
STAND_IN = """
import pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
said = dict(line.split("=", 1) for line in (here / "behaviour").read_text().splitlines())
def say(name):
    if name in said:
        print(said[name], file=sys.stderr, flush=True)
def reload(*_):
    with open(here / "reloads", "a") as file:
        file.write("one\\n")
    say("reload")
if "deaf" not in said:
    signal.signal(signal.SIGHUP, reload)
signal.signal(signal.SIGUSR1, lambda *_: say("counters"))
if "peers" in said:
    signal.signal(signal.SIGUSR2, lambda *_: say("peers"))
say("ready")
if "ends" in said:
    sys.exit(said["ends"])
while True:
    signal.pause()
"""
GOOD = {
    "ready": "ready to go",
    "reload": "reloaded 1 peers",
    "counters": '{"schema": "muslin.tunnel/v1", "no_peer": 7}',
}


class Desk:
    """A keeper's directory and a stand-in with a behaviour."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.behave(**GOOD)
        self.log, self.peers = path / "tunnel.log", path / "tunnel.peers"

    def behave(self, **said: str) -> None:
        (self.path / "behaviour").write_text("".join(f"{name}={line}\n" for name, line in said.items()))

    def keeper(self) -> TunnelKeeper:
        """Another one for the same directory, as after the agent was started again."""
        return TunnelKeeper(self.path, program=(sys.executable, "-I", "-S", "-c", STAND_IN, str(self.path)))

    def pids(self) -> list[int]:
        found = programs.find(programs.TUNNEL_MARK, [""])
        return [program.pid for program in found if str(self.path) in program.words]

    def reloads(self) -> int:
        path = self.path / "reloads"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for pid in made.pids():
        programs.end_processes([pid], grace_s=0)
        programs.reap(pid)


def wanted(*peers: tuple[str, str], port: int = 8285) -> Tunnel:
    return Tunnel(netns="", device=DEVICE, listen=f"10.0.0.10:{port}", peers=peers)


B = ("172.16.1.0/24", "10.0.0.20:8285")
C = ("172.16.2.0/24", "10.0.0.30:8285")


def test_peers_that_change_are_handed_over_and_those_that_do_not_are_not(desk: Desk) -> None:
    keeper = desk.keeper()
    assert (keeper.check(), keeper.status()) == ("", None)
    keeper.converge(wanted(B))
    (pid,) = desk.pids()
    assert desk.peers.read_text().splitlines()[1:] == ["172.16.1.0/24 10.0.0.20:8285"]

    keeper.converge(wanted(B))
    assert desk.reloads() == 0
    keeper.converge(wanted(B, C))

    assert (desk.pids(), desk.reloads()) == ([pid], 1)
    assert desk.peers.read_text().splitlines()[2:] == ["172.16.2.0/24 10.0.0.30:8285"]
    assert keeper.check() == ""
    keeper.converge(None)
    assert (desk.pids(), desk.peers.exists(), desk.log.exists()) == ([], False, False)
    assert (keeper.check(), keeper.status()) == ("", None)


def test_the_next_agent_adopts_what_was_told_the_same_and_tells_it_the_peers(desk: Desk) -> None:
    desk.keeper().converge(wanted(B))
    (pid,) = desk.pids()

    keeper = desk.keeper()
    keeper.converge(wanted(B))

    assert (desk.pids(), desk.reloads()) == ([pid], 1)
    keeper.converge(wanted(B))
    assert desk.reloads() == 1


def test_what_was_told_something_else_is_replaced(desk: Desk) -> None:
    desk.keeper().converge(wanted(B))
    before = desk.pids()
    keeper = desk.keeper()
    keeper.converge(wanted(B, port=8286))
    (pid,) = desk.pids()
    assert [pid] != before

    keeper.converge(wanted(B, port=8287))
    assert len(desk.pids()) == 1
    assert desk.pids() != [pid]


def test_the_next_agent_ends_a_tunnel_that_is_wanted_no_more(desk: Desk) -> None:
    desk.keeper().converge(wanted(B))
    desk.peers.unlink()  # a service manager may clear the directory away
    desk.log.unlink()

    desk.keeper().converge(None)

    assert desk.pids() == []


def test_one_that_does_not_listen_to_us_is_replaced(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.behave(**GOOD, deaf="yes")
    desk.keeper().converge(wanted(B))
    (pid,) = desk.pids()
    desk.behave(**GOOD)
    monkeypatch.setattr(tunnel_room, "READY_TIMEOUT_S", 0.3)

    desk.keeper().converge(wanted(B))

    assert len(desk.pids()) == 1
    assert desk.pids() != [pid]


def test_one_of_another_user_is_let_be(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.keeper().converge(wanted(B))
    (pid,) = desk.pids()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getuid", lambda: 12345)
        keeper = desk.keeper()
        keeper.converge(wanted(B))
        assert pid in desk.pids()
        assert len(desk.pids()) == 2


def test_it_cannot_start_in_its_own_words(desk: Desk) -> None:
    desk.log.write_text("ready long ago\n")
    desk.behave(ends="no luck with the device")
    keeper = desk.keeper()

    with pytest.raises(MuslinError, match=f"the tunnel of {DEVICE} did not start: no luck with the device"):
        keeper.converge(wanted(B), now=100.0)

    assert keeper.check(100.0) == (
        f"the tunnel of {DEVICE} does not run: no luck with the device; it is started again in 1 s"
    )
    assert keeper.status() is None
    keeper.converge(None)
    assert not desk.peers.exists()


def test_a_program_that_is_not_there_is_said(desk: Desk) -> None:
    keeper = TunnelKeeper(desk.path, program=("/no/such/tunnel",))

    with pytest.raises(MuslinError, match="No such file"):
        keeper.converge(wanted(B))
    assert "No such file" in keeper.check()


def test_one_that_never_gets_ready_is_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_room, "READY_TIMEOUT_S", 0.2)
    desk.behave(counters="{}")

    with pytest.raises(MuslinError, match="was not ready within 0 s: it said nothing"):
        desk.keeper().converge(wanted(B))
    assert desk.pids() == []


def test_one_that_keeps_ending_is_started_after_growing_pauses(desk: Desk) -> None:
    desk.behave(ends="no luck")
    keeper, starts = desk.keeper(), []
    for second in range(100, 200):
        with pytest.raises(MuslinError) as raised:
            keeper.converge(wanted(B), now=float(second))
        if "did not start" in raised.value.what:
            starts.append(second)

    assert [after - before for before, after in itertools.pairwise(starts)] == [1, 2, 4, 8, 16, 30, 30]
    desk.behave(**GOOD)
    keeper.converge(wanted(B, port=8286), now=200.0)
    assert keeper.check() == "", "another address is another chance"


def test_one_that_was_left_here_is_known_before_another_is_asked_for(desk: Desk) -> None:
    assert desk.keeper().status() is None
    desk.keeper().converge(wanted(B))
    keeper = desk.keeper()

    left = keeper.status()

    assert left is not None
    assert ([left.pid], left.device) == (desk.pids(), DEVICE)
    keeper.converge(None)
    assert keeper.status() is None
    assert desk.pids() == []


def test_one_that_ended_is_named_and_started_again(desk: Desk) -> None:
    keeper = desk.keeper()
    keeper.converge(wanted(B), now=100.0)
    (pid,) = desk.pids()
    with desk.log.open("a") as log:
        log.write('the device is gone\n{"no_peer": 1}\n')
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: programs.started_ticks(pid) is None, "its end")

    assert keeper.check(200.0) == f"the tunnel of {DEVICE} does not run: the device is gone"
    assert keeper.status() is None
    keeper.converge(wanted(B), now=200.0)
    assert not os.path.exists(f"/proc/{pid}"), "not even a zombie is left"
    assert keeper.check(200.0) == ""


def test_a_refusal_of_the_peers_is_said_and_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.behave(**GOOD | {"reload": "not reloaded: line 2 of it: no"})
    keeper = desk.keeper()
    keeper.converge(wanted(B))
    for count in (1, 2):
        with pytest.raises(MuslinError, match="did not take its peers: not reloaded: line 2"):
            keeper.converge(wanted(B, C))
        assert desk.reloads() == count
    assert keeper.check() == ""


def test_one_that_does_not_answer_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_room, "RELOAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(tunnel_room, "COUNTERS_TIMEOUT_S", 0.1)
    desk.behave(ready="ready to go")
    keeper = desk.keeper()
    keeper.converge(wanted(B))

    with pytest.raises(MuslinError, match="did not answer"):
        keeper.converge(wanted(B, C))
    status = keeper.status()
    assert status is not None
    assert status.counters == {}


def test_rival_claims_to_a_prefix_are_said_and_hold_up_nobody(desk: Desk) -> None:
    keeper = desk.keeper()
    with pytest.raises(MuslinError, match=r"172\.16\.1\.0/24 is claimed by two peers"):
        keeper.converge(wanted(B, (B[0], C[1]), C))

    assert desk.peers.read_text().splitlines()[1:] == [" ".join(B), " ".join(C)]
    assert keeper.check() == ""


def test_counters_are_asked_for_once_a_second(desk: Desk) -> None:
    keeper = desk.keeper()
    keeper.converge(wanted(B, C, ("fd00::/64", B[1])))
    (pid,) = desk.pids()

    first = keeper.status(now=100.0)

    assert first is not None
    assert (first.pid, first.device, first.listen, first.peers) == (pid, DEVICE, "10.0.0.10:8285", 2)
    assert first.counters == {"no_peer": 7}
    keeper.status(now=100.9)
    assert desk.log.read_text().count("no_peer") == 1
    keeper.status(now=101.0)
    assert desk.log.read_text().count("no_peer") == 2


def test_counters_by_peer_are_asked_for_where_they_are_counted(desk: Desk) -> None:
    keeper = desk.keeper()
    keeper.converge(wanted(B))
    status = keeper.status(now=100.0)
    assert status is not None
    assert status.peer_counters == {}
    assert keeper.check() == "", "the signal would have ended it"

    keeper.converge(None)
    desk.behave(**GOOD, peers='{"schema": "muslin.tunnel-peers/v1", "peers": {"10.0.0.2:1": {"too_big": 3}}}')
    keeper.converge(wanted(B))
    status = keeper.status(now=200.0)
    assert status is not None
    assert (status.counters, status.peer_counters) == ({"no_peer": 7}, {"10.0.0.2:1": {"too_big": 3}})


def test_the_log_is_emptied_when_it_is_long_and_heard_when_it_was_taken_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_room, "LOG_MAX_BYTES", 100)
    desk.log.write_text("an old word\n" * 100)
    keeper = desk.keeper()
    keeper.converge(wanted(B))
    assert desk.log.read_text() == "ready to go\n"
    for second in range(100, 110):
        assert keeper.status(float(second)) is not None
    assert desk.log.stat().st_size < 200

    desk.log.unlink()
    keeper.converge(wanted(B, C))
    assert desk.reloads() == 1


class TestPauses:
    """Seconds between starts."""

    def test_a_steady_run_is_forgiven(self) -> None:
        pauses = Pauses()
        for now in (100.0, 101.0, 103.0):
            assert pauses.left_s(now) == 0
            pauses.note_start(now)
        assert pauses.left_s(103.5) == 3.5
        assert pauses.left_s(163.0) == 0
        pauses.note_start(163.0)
        assert pauses.left_s(163.0) == 1

    def test_one_that_was_ready_is_started_again_at_once_but_not_for_ever(self) -> None:
        pauses, waited = Pauses(), []
        for now in (100.0, 101.0, 102.0, 103.0, 104.0):
            waited.append(pauses.left_s(now))
            pauses.note_start(now)
            pauses.note_ready()
        assert waited == [0, 0, 0, 0, 0]
        assert pauses.left_s(104.0) == 2
        pauses.note_start(164.0)
        pauses.note_ready()
        assert pauses.left_s(164.0) == 0

    def test_they_stay_within_bounds(self) -> None:
        pauses = Pauses()
        for count in range(10_000):
            pauses.note_start(count * 30.0)
        assert pauses.left_s(9_999 * 30.0) == 30
