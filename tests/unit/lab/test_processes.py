"""The programs of a lab: how its tunnels are described and found, and what ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.lab.plan import plan
from muslin.lab.presets import preset
from muslin.lab.processes import (
    describe_tunnel,
    end_everything_in,
    end_tunnels_logging_below,
    log_path,
    running_tunnels,
    tunnel_program,
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_an_empty_or_a_lost_lab_has_nothing_to_end() -> None:
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
