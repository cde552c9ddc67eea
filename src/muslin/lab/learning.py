"""How far somebody has come in the course: a small file that outlives the lab and the machine's next start.

Theory of operation: the file holds the lessons that are done and the points of each. It lives where users' state lives
(XDG_STATE_HOME, the XDG base directory specification), since the runtime directory is emptied with each boot.
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from muslin.errors import MuslinError


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Lesson to (points, of)."""

    schema: Literal["muslin.learn/v1"] = "muslin.learn/v1"
    done: dict[str, tuple[int, int]] = {}

    def with_lesson(self, name: str, points: int, of: int) -> Progress:
        """The same, with one more lesson done."""
        return Progress(done={**self.done, name: (points, of)})

    @property
    def total(self) -> tuple[int, int]:
        """All points, and how many there were to get."""
        return sum(points for points, _ in self.done.values()), sum(of for _, of in self.done.values())


def progress_file() -> str:
    """Where it is kept."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{home}/muslin/learn.json"


def read_progress() -> Progress:
    """What is kept; nothing done where there is no file. MuslinError for one that cannot be understood."""
    try:
        with open(progress_file(), "rb") as file:
            return msgspec.json.decode(file.read(), type=Progress)
    except FileNotFoundError:
        return Progress()
    except msgspec.MsgspecError as error:
        raise MuslinError(
            f"{progress_file()} cannot be understood: {error}", "begin anew with: muslin lab learn --restart"
        ) from None


def write_progress(progress: Progress) -> None:
    """Keep it; MuslinError where that cannot be."""
    path = progress_file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.encode(progress))
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise MuslinError(
            f"how far you have come cannot be kept in {path}: {error.strerror}", "choose a place with XDG_STATE_HOME"
        ) from None
