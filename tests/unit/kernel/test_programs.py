"""Programs are found by what they hold, told apart from strangers, heard by their log, and ended by handle.

Everything runs in the own network namespace, which needs no privilege.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from muslin.kernel import programs

MARK = f"MUSLIN_TEST_{uuid.uuid4().hex}"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
TALKING = """
import os, signal, sys
say = lambda line: print(line, file=sys.stderr, flush=True)
signal.signal(signal.SIGUSR1, lambda *_: say("heard"))
say(f"ready {os.getcwd()} {sorted(os.listdir('/proc/self/fd'))} {os.getsid(0) == os.getpid()} {sys.stdin.read()!r}")
while True:
    signal.pause()
"""
DEADLINE_S = 10.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[str]:
    """Of a program that this test may start."""
    yield str(tmp_path / "log")
    for program in programs.find(MARK, [""]):
        programs.end_processes([program.pid], grace_s=0)
        programs.reap(program.pid)


def start(log: str, code: str = TALKING, value: str = "1") -> int:
    return programs.start("", [sys.executable, "-I", "-c", code, "--told=this"], {MARK: value}, log)


def hear(log: str, pid: int, word: str, offset_bytes: int = 0) -> str | None:
    alive = programs.started_ticks
    return programs.wait_for_line(log, (word,), lambda: alive(pid) is not None, DEADLINE_S, offset_bytes)


def test_a_program_is_cut_off_from_its_maker(log: str) -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        pid = start(log)
    finally:
        os.close(leaked)

    # In the root directory, with files 0, 1, 2 and the directory that lists them, a session's leader, without input.
    assert hear(log, pid, "ready") == "ready / ['0', '1', '2', '3'] True ''"
    assert Path(f"/proc/{pid}/environ").read_bytes() == f"{MARK}=1\0".encode()


def test_a_program_is_found_by_its_mark(log: str) -> None:
    assert programs.find(MARK, [""]) == []
    pid = start(log, value="some name")

    (found,) = programs.find(MARK, [""])

    assert (found.pid, found.netns, found.value, found.uid) == (pid, "", "some name", os.getuid())
    assert found.words[0] == sys.executable
    assert found.arguments == ("--told=this",)
    assert found.is_alive
    assert programs.find(MARK, ["no-such-namespace"]) == []
    assert programs.find(MARK[:-1], [""]) == [], "a name that only begins the same"


def test_what_ended_is_found_no_more(log: str) -> None:
    pid = start(log)
    (found,) = programs.find(MARK, [""])
    programs.end_processes([pid])

    assert os.path.exists(f"/proc/{pid}"), "a zombie, until its parent looks"
    assert programs.find(MARK, [""]) == []
    assert not found.is_alive
    programs.reap(pid)
    assert not os.path.exists(f"/proc/{pid}")
    programs.reap(pid)
    assert programs.identify(pid, MARK, "") is None


def test_what_cannot_be_started_is_an_os_error(log: str) -> None:
    with pytest.raises(FileNotFoundError):
        programs.start("", ["/no/such/program"], {}, log)
    with pytest.raises(FileNotFoundError):
        programs.start("no-such-namespace", ["/bin/true"], {}, log)


def test_a_signal_reaches_the_program_and_nobody_with_its_number(log: str) -> None:
    pid = start(log)
    (found,) = programs.find(MARK, [""])
    assert programs.wait_until_it_catches(found, signal.SIGUSR1, DEADLINE_S)
    assert not programs.wait_until_it_catches(found, signal.SIGHUP, 0)
    earlier = msgspec.structs.replace(found, started=found.started - 1)

    assert not programs.send_signal(earlier, signal.SIGKILL)
    assert programs.send_signal(found, signal.SIGUSR1)
    assert hear(log, pid, "heard") == "heard"
    programs.end_processes([pid])
    assert not programs.send_signal(found, signal.SIGUSR1)
    assert not programs.wait_until_it_catches(found, signal.SIGUSR1, DEADLINE_S)
    programs.reap(pid)


def test_only_whole_lines_after_the_offset_are_heard(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ready once\nsomething\nready ag")

    def hear_now(offset_bytes: int) -> str | None:
        return programs.wait_for_line(str(log), ("ready", "not"), lambda: True, 0, offset_bytes)

    assert hear_now(0) == "ready once"
    assert hear_now(1) is None
    with log.open("a") as file:
        file.write("ain\n")
    assert hear_now(1) == "ready again"
    assert programs.read_from(str(tmp_path / "none")) == ""


def test_the_last_words_of_one_that_ends_are_heard_and_then_nothing_is_waited_for(log: str) -> None:
    begun = time.monotonic()
    pid = start(log, "import sys; sys.exit('no luck')")

    assert hear(log, pid, "ready") is None
    assert hear(log, pid, "no") == "no luck"
    assert time.monotonic() - begun < DEADLINE_S
    programs.reap(pid)


def test_a_process_is_known_by_when_it_started(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = programs.started_ticks(sleeper.pid)

    assert ticks is not None
    assert ticks >= (programs.started_ticks(os.getpid()) or 0)
    assert programs.started_ticks(sleeper.pid) == ticks


def test_one_that_ended_and_was_not_waited_for_is_known_no_more(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now

    assert os.path.exists(f"/proc/{sleeper.pid}")
    assert programs.started_ticks(sleeper.pid) is None
    sleeper.wait()
    assert programs.started_ticks(sleeper.pid) is None


def test_processes_are_asked_to_end(sleeper: subprocess.Popen[bytes]) -> None:
    assert not programs.await_end([sleeper.pid], 0.01)
    programs.end_processes([sleeper.pid])

    assert programs.await_end([sleeper.pid], 0.01)
    assert sleeper.wait(5) == -signal.SIGTERM


def test_those_that_will_not_are_made_to() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        programs.end_processes([process.pid], grace_s=0.05)

        assert process.wait(5) == -signal.SIGKILL


def test_ending_nobody_or_one_that_is_gone_is_fine(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()

    programs.end_processes([sleeper.pid])
    programs.end_processes([])
    assert programs.await_end([sleeper.pid], 0)
