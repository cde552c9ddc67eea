"""CNI's errors: the codes, the exception that carries one, and the document that a runtime reads.

Theory of operation: a plugin that fails says so on its standard output, as one JSON document with a code, a short
message and, optionally, details; the runtime shows them to its user. The message says what was attempted, on which
object and why it failed; the details say what would mend it. Codes below 100 are those of the specification
(containernetworking/cni SPEC.md, "Error"), the others are ours.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the specification, all that we speak; their order as text is their order in time."""
NEWEST = VERSIONS[-1]


class ErrorCode(IntEnum):
    """Codes of SPEC.md, "Error", and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    """The message names key and value."""
    UNKNOWN_CONTAINER = 3
    """There is nothing that a DEL would have to undo."""
    BAD_ENVIRONMENT = 4
    """The message names each variable that is missing or wrong."""
    IO_FAILURE = 5
    UNDECODABLE = 6
    BAD_CONFIG = 7
    BAD_NETNS = 8
    """Not in SPEC.md, but libcni's ErrInvalidNetNS: CNI_NETNS is none, or the plugin's own."""
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    """STATUS: an ADD would fail."""
    NOT_AVAILABLE_AND_LIMITED = 51
    """STATUS: besides, containers that are attached may have lost connectivity."""
    ADDRESS_TAKEN = 100
    INTERFACE_IN_USE = 101
    KERNEL_REFUSED = 102


class CniError(Exception):
    """A failure that a runtime is told: ``code``, ``msg`` (what failed, and why), ``details`` (what would mend it)."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg} (CNI error {self.code}){f': {self.details}' if self.details else ''}"


def encode_error(error: CniError, version: str) -> bytes:
    """The error as the document of SPEC.md, "Error", of ``version``; what is no Unicode in it is shown as escapes."""
    document = {"cniVersion": version, "code": error.code, "msg": _printable(error.msg)}
    if error.details:
        document["details"] = _printable(error.details)
    return msgspec.json.encode(document)


def _printable(text: str) -> str:
    """A name of a file or a variable may hold bytes that are no UTF-8, which Python keeps as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
