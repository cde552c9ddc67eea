"""The plugin ``muslin-cni``, compiled: where it is, which files are of it, and what it says of an agent.

Theory of operation: it lies beside this file where a wheel brought it, and beside the interpreter where ``./run``
compiled it. A copy is known by the sentence that each of them holds, whatever version it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from muslin.errors import MuslinError, UnsupportedError

NAME = "muslin-cni"
MARK = b"muslin-cni: connects containers through Muslin's agent"
"""Stands in every version of the program (native/cni.c)."""
MAX_BYTES = 16 << 20
"""More has no version of it."""
ANSWER_S = 10.0


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin says on failure; SPEC.md of CNI, section Error."""

    code: int = 0
    msg: str = ""
    details: str = ""


def find_program() -> Path:
    """The program; UnsupportedError where it was not built."""
    places = (Path(__file__).with_name(NAME), Path(os.path.abspath(sys.executable)).with_name(NAME))
    for place in places:
        if place.is_file():
            return place
    raise UnsupportedError(
        "the CNI plugin muslin-cni was not built, as there was no C compiler",
        "install one (apt-get install gcc libc6-dev, or dnf install gcc glibc-static), then start ./run again, or\n"
        "  install the package again",
    )


def is_program(path: Path) -> bool:
    """Whether a file is the plugin, of any version. OSError when it cannot be read."""
    return path.is_file() and path.stat().st_size <= MAX_BYTES and MARK in path.read_bytes()


def ask_plugin_status(program: Path, configuration: dict[str, object]) -> None:
    """Have the plugin ask its agent whether a container could be added now; MuslinError with what it says if not."""
    try:
        done = subprocess.run(
            [program],
            input=msgspec.json.encode(configuration),
            env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(program.parent)},
            capture_output=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MuslinError(
            f"the agent has not told the plugin within {ANSWER_S:g} s whether a container could be added",
            "its log tells what it is busy with",
        ) from None
    if done.returncode == 0:
        return
    try:
        said = msgspec.json.decode(done.stdout, type=ErrorDocument)
    except msgspec.DecodeError:
        said = ErrorDocument(msg=done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}")
    raise MuslinError(f"the plugin says that no container could be added: {said.msg}", said.details)
