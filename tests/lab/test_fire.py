"""Clean-up under fire: whatever is killed or interrupted, `down NAME` afterwards leaves nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest

from tests.lab.support import (
    Muslin,
    finish,
    leftovers,
    netns_names,
    read_until,
    wait_until,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BIGGER = ("--step", 4, "--nodes", 4, "--containers", 4)
WARM_UPS = 3  # the fastest of them counts: moments after the end would kill nobody
UP_MOMENTS = 30
DOWN_MOMENTS = 8


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill -9 at this moment of its life; whether it still lived."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    stopped = process.wait(10) == -signal.SIGKILL
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return stopped


def durations_s(muslin: Muslin, name: str) -> tuple[float, float]:
    """How long `up` and `down` take."""
    begun = time.monotonic()
    muslin.up(*BIGGER, name=name)
    is_up = time.monotonic()
    muslin.lab("down", name)
    return is_up - begun, time.monotonic() - is_up


def test_up_killed_at_any_moment_is_taken_away_by_down(muslin: Muslin) -> None:
    name = muslin.new_name()
    whole_s = min(durations_s(muslin, name)[0] for _ in range(WARM_UPS))
    chance = random.Random(20_26)
    killed = 0

    for number in range(UP_MOMENTS):
        # One moment in each of thirty equal parts, so that early and late ones are among them.
        moment_s = whole_s * (number + chance.random()) / UP_MOMENTS
        killed += kill_after(muslin.start("up", "--name", name, *BIGGER), moment_s)

        muslin.lab("down", name)

        wait_until(lambda: not leftovers(muslin.runtime), f"nothing is left of an up killed after {moment_s:.3f} s")
    assert killed >= UP_MOMENTS // 2


def test_down_killed_at_any_moment_is_finished_by_the_next(muslin: Muslin) -> None:
    name = muslin.new_name()
    whole_s = min(durations_s(muslin, name)[1] for _ in range(WARM_UPS))
    chance = random.Random(20_27)
    killed = 0

    for number in range(DOWN_MOMENTS):
        muslin.up(*BIGGER, name=name)
        moment_s = whole_s * (number + chance.random()) / DOWN_MOMENTS
        killed += kill_after(muslin.start("down", name), moment_s)

        muslin.lab("down", name)

        wait_until(lambda: not leftovers(muslin.runtime), f"nothing is left of a down killed after {moment_s:.3f} s")
    assert killed >= DOWN_MOMENTS // 2


def test_a_lab_whose_up_was_killed_can_simply_be_raised_again(muslin: Muslin) -> None:
    name = muslin.new_name()
    process = muslin.start("up", "--name", name, *BIGGER)
    wait_until(lambda: len(netns_names(name)) > 10, "the lab is half up")
    assert kill_after(process, 0)
    assert muslin.json("ls", "--name", name)["labs"][0]["condition"] == "half up"

    muslin.up(*BIGGER, name=name)

    assert muslin.json("check", "--name", name, "--sample", 60)["ok"] is True


@pytest.mark.parametrize("file", ["state.json.new", "muslin-x-node1.log"])
def test_files_without_a_state_of_an_up_or_down_killed_at_its_first_or_last_moment_go(
    muslin: Muslin, file: str
) -> None:
    name = muslin.new_name()
    (muslin.runtime / name).mkdir(parents=True)
    (muslin.runtime / name / file).write_text("{")
    assert muslin.json("ls", "--name", name)["labs"][0]["condition"] == "half up"

    muslin.lab("down", name)

    assert not leftovers(muslin.runtime)


@pytest.mark.parametrize("commands", [1, 5, 15])
def test_an_interrupted_up_of_a_fresh_lab_takes_everything_back(muslin: Muslin, commands: int) -> None:
    name = muslin.new_name()
    process = muslin.start("up", "--name", name, "--step", 4, "--pause", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("\n" * commands)
    process.stdin.flush()
    read_until(process.stderr.fileno(), lambda text: text.count("[Enter]") == commands + 1, "it asks again")
    assert len(netns_names(name)) == min(commands, 7), "it is in the middle of its work"

    process.send_signal(signal.SIGINT)

    done = finish(process, 130)
    assert "interrupted" in done.stderr
    assert not leftovers(muslin.runtime)


def test_an_interrupt_in_the_rush_of_a_fresh_up_takes_everything_back(muslin: Muslin) -> None:
    for wanted in (1, 8, 21):
        name = muslin.new_name()
        process = muslin.start("up", "--name", name, *BIGGER)
        wait_until(lambda name=name, wanted=wanted: len(netns_names(name)) >= wanted, "it has begun")  # type: ignore[misc]

        process.send_signal(signal.SIGINT)

        finish(process, 130)
        assert not leftovers(muslin.runtime)


def test_an_interrupted_update_leaves_the_lab_and_says_so(muslin: Muslin) -> None:
    name = muslin.up("--step", 2)
    process = muslin.start("up", "--name", name, "--step", 4, "--pause", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("\n" * 3)
    process.stdin.flush()
    read_until(process.stderr.fileno(), lambda text: text.count("[Enter]") == 4, "it asks again")

    process.send_signal(signal.SIGINT)

    done = finish(process, 130)
    assert f"lab '{name}' is left half changed" in done.stderr
    assert f"muslin lab down --name {name}" in done.stderr
    assert {"node1", "con1.node1", "node2"} <= netns_names(name)
    assert muslin.json("ls", "--name", name)["labs"][0]["condition"] == "half up"
    muslin.up("--step", 4, name=name)
    assert muslin.json("check", "--name", name)["ok"] is True


def test_sigterm_during_a_fresh_up_leaves_what_down_takes_away(muslin: Muslin) -> None:
    name = muslin.new_name()
    process = muslin.start("up", "--name", name, *BIGGER)
    wait_until(lambda: len(netns_names(name)) > 5, "it has begun")
    process.send_signal(signal.SIGTERM)
    finish(process, None)

    muslin.lab("down", name)

    assert not leftovers(muslin.runtime)
