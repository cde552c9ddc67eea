"""Processes are found by what they hold, told apart from strangers, and ended by handle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.lab.plan import plan
from muslin.lab.presets import preset
from muslin.lab.processes import (
    describe_tunnel,
    end_everything_in,
    end_processes,
    end_tunnels_logging_below,
    log_path,
    running_tunnels,
    started_ticks,
    tunnel_program,
)

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_when_it_started(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = started_ticks(sleeper.pid)

    assert ticks is not None
    assert ticks >= (started_ticks(os.getpid()) or 0)
    assert started_ticks(sleeper.pid) == ticks


def test_one_that_ended_and_was_not_waited_for_is_known_no_more(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now

    assert os.path.exists(f"/proc/{sleeper.pid}")
    assert started_ticks(sleeper.pid) is None
    sleeper.wait()
    assert started_ticks(sleeper.pid) is None


def test_processes_are_asked_to_end(sleeper: subprocess.Popen[bytes]) -> None:
    end_processes([sleeper.pid])

    assert sleeper.wait(5) == -signal.SIGTERM


def test_those_that_will_not_are_made_to() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        end_processes([process.pid], grace_s=0.05)

        assert process.wait(5) == -signal.SIGKILL


def test_ending_nobody_or_one_that_is_gone_is_fine(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()

    end_processes([sleeper.pid])
    end_processes([])
    assert end_everything_in([]) == []
    assert end_everything_in(["no-such-namespace"]) == []


def test_tunnels_are_found_by_the_log_that_they_hold_open(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    near, far = tmp_path / "lab", tmp_path / "lab-2"
    processes = []
    for directory in (near, far):
        directory.mkdir()
        with open(directory / "tunnel.log", "w") as log:
            processes.append(subprocess.Popen(["sleep", "600"], stderr=log))
    try:
        (near / "tunnel.log").unlink()  # as after the lab's files were removed

        assert end_tunnels_logging_below(str(near)) == [processes[0].pid]
        assert processes[0].wait(5) == -signal.SIGTERM
        assert processes[1].poll() is None, "the log of a lab whose name only begins the same"
        assert sleeper.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_process_outside_of_the_named_namespaces_is_no_tunnel(sleeper: subprocess.Popen[bytes]) -> None:
    assert running_tunnels(["no-such-namespace"]) == []


def test_a_tunnel_is_described_as_the_command_that_starts_it() -> None:
    tunnel = plan("x", preset(4)).tunnels[0]

    assert describe_tunnel(tunnel).startswith("ip netns exec muslin-x-node1 muslin-tunnel --device=tun0 --listen=")
    assert describe_tunnel(tunnel).endswith(" &")
    assert log_path("/run/muslin/x", tunnel) == "/run/muslin/x/muslin-x-node1.log"
    assert os.path.isfile(tunnel_program())
