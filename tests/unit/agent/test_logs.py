"""The log, line by line."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.agent.logs import REMEMBERED, JsonFormatter, RepeatFilter, TextFormatter, is_journal, set_up
from muslin.model.secret import Secret


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("muslin")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def record(
    message: str = "peer %s is gone", *arguments: Any, level: int = logging.INFO, **more: Any
) -> logging.LogRecord:
    values = {
        "name": "muslin.agent.loop",
        "levelno": level,
        "levelname": logging.getLevelName(level),
        "msg": message,
        "args": arguments,
        "created": 1_770_091_506.789,
        "msecs": 789.0,
    }
    return logging.makeLogRecord(values | more)


def test_a_line_of_text() -> None:
    assert TextFormatter().format(record("peer %s is gone", "10.0.0.2")) == (
        "2026-02-03T04:05:06.789Z INFO agent.loop: peer 10.0.0.2 is gone"
    )


@pytest.mark.parametrize(
    ("level", "prefix"),
    [(logging.DEBUG, "<7>"), (logging.INFO, "<6>"), (logging.WARNING, "<4>"), (logging.ERROR, "<3>"), (50, "<3>")],
)
def test_the_journal_gets_priorities_and_no_times(level: int, prefix: str) -> None:
    line = TextFormatter(priority=True).format(record("so it is", level=level))
    assert line == f"{prefix}{logging.getLevelName(level)} agent.loop: so it is"
    assert JsonFormatter(priority=True).format(record("so it is", level=level)).startswith(prefix + "{")


def failing_record() -> logging.LogRecord:
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError as error:
        return record("it failed", exc_info=(type(error), error, error.__traceback__))


def test_each_line_of_a_traceback_has_its_priority() -> None:
    lines = TextFormatter(priority=True).format(failing_record()).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<6>") for line in lines)
    assert lines[-1] == "<6>ZeroDivisionError: no"


def test_a_line_of_json_has_what_was_given_and_is_one_line() -> None:
    line = JsonFormatter().format(record("peer %s is gone\n", "10.0.0.2", peer="10.5.2.0-24", where=Path("/x")))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-02-03T04:05:06.789Z",
        "level": "info",
        "logger": "muslin.agent.loop",
        "message": "peer 10.0.0.2 is gone\n",
        "peer": "10.5.2.0-24",
        "where": "/x",
    }
    assert "ZeroDivisionError: no" in json.loads(JsonFormatter().format(failing_record()))["exception"]


def test_a_secret_is_never_shown() -> None:
    secret = Secret("hunter2")
    for formatter in (TextFormatter(), JsonFormatter()):
        told = formatter.format(record("password %s %r", secret, secret, password=secret, all={"password": secret}))
        assert "hunter2" not in told
        assert "***" in told


def warning(text: str, *words: object, level: int = logging.WARNING, **more: Any) -> logging.LogRecord:
    return record(text, *words, level=level, **more)


def test_what_repeats_is_told_once_a_minute_with_its_count() -> None:
    repeat = RepeatFilter(60)
    told = [moment for moment in range(0, 300) if repeat.filter(warning("the store is away", created=float(moment)))]
    assert told == [0, 60, 120, 180, 240]
    last = warning("the store is away", created=300.0)
    assert repeat.filter(last)
    assert TextFormatter().format(last).endswith("the store is away (and 59 times more since it was last logged)")
    assert json.loads(JsonFormatter().format(last))["held_back"] == 59


def test_other_texts_levels_and_loggers_are_not_held_back() -> None:
    repeat = RepeatFilter(60)
    assert repeat.filter(warning("peer %s is gone", "a"))
    assert repeat.filter(warning("peer %s is gone", "b"))
    assert repeat.filter(warning("peer %s is gone", "a", level=logging.ERROR))
    assert repeat.filter(warning("peer %s is gone", "a", name="muslin.store"))
    assert not repeat.filter(warning("peer %s is gone", "a"))


def test_a_clock_that_is_put_back_silences_nothing() -> None:
    repeat = RepeatFilter(60)
    assert repeat.filter(warning("hello", created=1000.0))
    assert repeat.filter(warning("hello", created=10.0))


def test_memory_of_texts_is_bounded() -> None:
    repeat = RepeatFilter(60)
    for number in range(3 * REMEMBERED):
        repeat.filter(warning(f"number {number}"))
    assert len(repeat._seen) == REMEMBERED


def test_what_goes_well_is_told_each_time() -> None:
    repeat = RepeatFilter(60)
    assert all(repeat.filter(record("the network is 10.5.0.0/16")) for _ in range(3))


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": "nonsense"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_ours_is_logged_from_the_level_on_and_libraries_from_warning_on() -> None:
    stream = io.StringIO()
    set_up("text", "debug", stream, {})
    logging.getLogger("muslin.agent").debug("ours")
    logging.getLogger("library").info("theirs, of no interest")
    logging.getLogger("library").warning("theirs")
    assert [line.partition(" ")[2] for line in stream.getvalue().splitlines()] == [
        "DEBUG agent: ours",
        "WARNING library: theirs",
    ]
    set_up("json", "warning", again := io.StringIO(), {})
    logging.getLogger("muslin.agent").info("of no interest")
    logging.getLogger("muslin.agent").warning("ours")
    assert [json.loads(line)["message"] for line in again.getvalue().splitlines()] == ["ours"]
    assert len(stream.getvalue().splitlines()) == 2, "set up anew, it is not logged twice"
