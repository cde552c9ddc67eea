"""The agent's log on stderr: for people, for programs, or for the journal.

Theory of operation: the standard library's logging. What ``muslin`` says is logged from the chosen level on, what
libraries say from WARNING on. Under systemd stderr is the journal (JOURNAL_STREAM names its device and inode, see
systemd.exec(5)); then each line starts with the priority in angle brackets (sd-daemon(3)) and leaves the time to the
journal. A warning or an error that repeats is logged once a minute, with how often it was held back: an agent that
fails at each turn must not fill a disk.

A secret is a ``model.secret.Secret``, which formats as ``***``; nothing here looks for secrets in texts.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

REPEAT_S = 60.0
REMEMBERED = 500  # messages; a text that varies without end pushes out older ones
PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))  # syslog(3)
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "held_back"}


def set_up(
    log_format: Format, level: str, stream: TextIO | None = None, environment: Mapping[str, str] = os.environ
) -> None:
    """Send the log to ``stream``, stderr unless given; ``level`` is debug, info, warning or error."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.addFilter(RepeatFilter())
    priority = is_journal(out, environment)
    handler.setFormatter(JsonFormatter(priority) if log_format == "json" else TextFormatter(priority))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("muslin").setLevel(level.upper())
    logging.captureWarnings(True)


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether what is written there goes to the journal."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class RepeatFilter(logging.Filter):
    """Lets a text of one logger through once a minute, and then says how often it was held back."""

    def __init__(self, repeat_s: float = REPEAT_S) -> None:
        super().__init__()
        self._repeat_s = repeat_s
        self._seen: OrderedDict[tuple[str, int, str], list[float]] = OrderedDict()  # when it got through, how many not

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one gets through; what goes well does, each time."""
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, record.levelno, record.getMessage())
        seen = self._seen.get(key)
        # A clock that was put back must not silence anything for long.
        if seen is not None and 0 <= record.created - seen[0] < self._repeat_s:
            seen[1] += 1
            return False
        record.held_back = int(seen[1]) if seen else 0
        self._seen[key] = [record.created, 0]
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True


class TextFormatter(logging.Formatter):
    """``2026-02-03T04:05:06.789Z INFO agent.loop: what happened``; in the journal with a priority and no time."""

    def __init__(self, priority: bool = False) -> None:
        super().__init__()
        self._priority = priority

    def format(self, record: logging.LogRecord) -> str:
        """One line for one message, more for an exception's traceback."""
        where = record.name.removeprefix("muslin.")
        held_back = getattr(record, "held_back", 0)
        more = f" (and {held_back} times more since it was last logged)" if held_back else ""
        text = f"{record.levelname} {where}: {record.getMessage()}{more}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if not self._priority:
            return f"{_time(record)} {text}"
        return "\n".join(f"{_prefix(record)}{line}" for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, whatever was given as ``extra``, and an exception."""

    def __init__(self, priority: bool = False) -> None:
        super().__init__()
        self._priority = priority

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if held_back := getattr(record, "held_back", 0):
            document["held_back"] = held_back
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        line = json.dumps(document, default=str, ensure_ascii=False)
        return f"{_prefix(record)}{line}" if self._priority else line


def _prefix(record: logging.LogRecord) -> str:
    return next(f"<{priority}>" for level, priority in PRIORITIES if record.levelno >= level)


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z"
