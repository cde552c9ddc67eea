"""What can go wrong in a way that a caller must tell apart.

Theory of operation: an error message is a sentence for a person: what was attempted, on which object, why it
failed, and what would mend it. ``OSError`` keeps its errno and travels as it is between the rooms; the types below
exist only where a caller branches, and each carries the exit code that the command line ends with.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSUPPORTED = 3
EXIT_WARNINGS = 4
EXIT_INTERRUPTED = 130


class MuslinError(Exception):
    """A failure that a person can read: ``what`` happened and, as ``hint``, what would mend it."""

    exit_code = EXIT_CHECK_FAILED

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  {self.hint}" if self.hint else self.what


class UsageError(MuslinError):
    """The request itself is wrong: an option, a topology, a name, or a state that does not allow it."""

    exit_code = EXIT_USAGE


class UnsupportedError(MuslinError):
    """This machine or user lacks a privilege, a kernel feature or a program."""

    exit_code = EXIT_UNSUPPORTED


class ConvergeError(MuslinError):
    """Some operations on the kernel failed; the text lists them."""
