"""Which tunnel programs there are: the core in C where it was built, and the Python text, which always is.

Theory of operation: both take the same arguments and obey the same signals; one suite holds them to it. The core is
called ``muslin-tunnel`` beside this file where a wheel brought it, and ``muslin-tunnel-core`` beside the interpreter
where ``./run`` compiled it. Whoever wants the core and has none gets the Python text, and is told by ``why_python``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal

Kind = Literal["c", "python"]
KINDS: tuple[Kind, ...] = ("c", "python")
REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference.py")


def core_path() -> str | None:
    """The program in C; None where there is none."""
    places = (
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "muslin-tunnel"),
        os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "muslin-tunnel-core"),
    )
    return next((place for place in places if os.access(place, os.X_OK)), None)


def tunnel_command(kind: Kind = "c") -> tuple[str, ...]:
    """How to start a tunnel of that kind, without its arguments; the Python one where the other was not built."""
    core = core_path() if kind == "c" else None
    # -I -S: the program needs the standard library alone, and starts in a third of the time without site-packages
    return (core,) if core else (sys.executable, "-I", "-S", REFERENCE)


def is_python(words: Sequence[str]) -> bool:
    """Whether a command line is that of the Python tunnel."""
    return any(os.path.basename(word) == "reference.py" for word in words)


def why_python(kind: Kind) -> str:
    """A sentence for whoever asked for the core and gets the Python tunnel, else nothing."""
    if kind == "python" or core_path():
        return ""
    return "the tunnel in C was not built (it takes a C compiler, such as gcc): the one in Python runs, which is slower"


def main(arguments: Sequence[str] | None = None) -> int:
    """Be a tunnel, the fastest there is; for the command ``muslin-tunnel``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    core = core_path()
    if core:
        os.execv(core, ["muslin-tunnel", *words])
    from muslin.tunnel import reference

    return reference.main(words)


if __name__ == "__main__":
    sys.exit(main())
