"""How the plugin ``muslin-cni`` and the agent talk, over a unix socket or by a file of the spool.

Theory of operation: the plugin sends one request and waits for one answer. A request is a header, the variables whose
names begin with ``CNI_``, and standard input as it was; the descriptor of the network namespace comes along with the
first byte (SCM_RIGHTS, unix(7)). An answer is the plugin's exit status and what it writes to standard output. Numbers
are in native byte order, as both ends are on one machine. ::

    request  4s magic "MCNI"   u16 version   u16 flags   i32 netns_errno   u32 environment_bytes   u32 stdin_bytes
             NAME=VALUE NUL, again and again; standard input
    answer   u32 exit_status   u32 document_bytes;   the document

While no agent listens, a DEL is kept: the same request as a file ``NANOSECONDS-PID.del`` of the directory
``cni-spool`` beside the socket, with a flag that says so and without a descriptor. The twin in C is native/cni.h.
"""

from __future__ import annotations

import re
import struct

import msgspec

MAGIC = b"MCNI"
VERSION = 1
SOCKET_NAME = "cni.sock"
"""In the agent's run directory."""
SPOOL_NAME = "cni-spool"
"""A directory beside the socket."""

ENVIRONMENT_MAX_BYTES = 1 << 16
STDIN_MAX_BYTES = 1 << 20
ANSWER_MAX_BYTES = 1 << 20

NETNS = 1
"""Flag: a descriptor is attached."""
OWN_NETNS = 2
"""Flag: CNI_NETNS is the very namespace that the plugin runs in."""
SPOOLED = 4
"""Flag: the request is from the spool."""

_HEADER = struct.Struct("=4sHHiII")
_ANSWER = struct.Struct("=II")
HEADER_BYTES = _HEADER.size
ANSWER_HEADER_BYTES = _ANSWER.size

_SPOOL_FILE = re.compile(r"([0-9]{20})-([0-9]{1,10})\.(del|tmp)", re.ASCII)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What goes ahead of a request. Lengths in bytes, within their bounds."""

    flags: int = 0
    netns_errno: int = 0
    """Why CNI_NETNS could not be opened; EINVAL: what is there is no network namespace. 0: it could, or is not set."""
    environment_bytes: int = 0
    stdin_bytes: int = 0

    @property
    def body_bytes(self) -> int:
        """How much comes behind it."""
        return self.environment_bytes + self.stdin_bytes


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call of the plugin. The environment has the names that begin with ``CNI_``, bytes that are no UTF-8 escaped as
    in ``os.environ``."""

    environment: dict[str, str]
    stdin: bytes = b""
    flags: int = 0
    netns_errno: int = 0

    @property
    def has_netns(self) -> bool:
        """Whether the namespace's descriptor has come along."""
        return bool(self.flags & NETNS)

    @property
    def is_own_netns(self) -> bool:
        """Whether CNI_NETNS is the namespace that the plugin ran in: the host's."""
        return bool(self.flags & OWN_NETNS)

    @property
    def is_spooled(self) -> bool:
        """Whether nobody waits for an answer."""
        return bool(self.flags & SPOOLED)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the plugin is to do: end with this status (0 to 255) and have this document on its standard output."""

    exit_status: int
    document: bytes = b""


class SpoolFile(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A file's name in the spool; they sort by time. One that is not ``complete`` is being written, or was when its
    writer ended."""

    at_ns: int
    """Nanoseconds since the epoch."""
    pid: int
    complete: bool = True

    @property
    def name(self) -> str:
        """As it stands in the directory."""
        return f"{self.at_ns:020d}-{self.pid}.{'del' if self.complete else 'tmp'}"


# ---- requests --------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """The bytes of a request; ValueError when it is too long or an environment could not be one."""
    environment = b"".join(map(_encode_variable, request.environment.items()))
    header = Header(
        flags=request.flags,
        netns_errno=request.netns_errno,
        environment_bytes=len(environment),
        stdin_bytes=len(request.stdin),
    )
    _check_lengths(header)
    numbers = (header.flags, header.netns_errno, header.environment_bytes, header.stdin_bytes)
    return _HEADER.pack(MAGIC, VERSION, *numbers) + environment + request.stdin


def parse_header(data: bytes) -> Header:
    """The header that a request begins with; ValueError naming what cannot be right."""
    if len(data) < HEADER_BYTES:
        raise ValueError(f"a request has {len(data)} bytes; expected at least the {HEADER_BYTES} of its header")
    magic, version, flags, netns_errno, environment_bytes, stdin_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"a request begins with {magic!r}; expected {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"a request has version {version}; expected {VERSION}: use plugin and agent of one version")
    header = Header(flags=flags, netns_errno=netns_errno, environment_bytes=environment_bytes, stdin_bytes=stdin_bytes)
    _check_lengths(header)
    return header


def parse_request(data: bytes) -> Request:
    """A whole request, as it came over the socket or stands in a file of the spool; ValueError naming what is wrong."""
    header = parse_header(data)
    expected = HEADER_BYTES + header.body_bytes
    if len(data) != expected:
        raise ValueError(f"a request has {len(data)} bytes; expected {expected} by its header")
    split = HEADER_BYTES + header.environment_bytes
    return Request(
        environment=_parse_environment(data[HEADER_BYTES:split]),
        stdin=data[split:],
        flags=header.flags,
        netns_errno=header.netns_errno,
    )


def _check_lengths(header: Header) -> None:
    for what, length, most in (
        ("environment", header.environment_bytes, ENVIRONMENT_MAX_BYTES),
        ("standard input", header.stdin_bytes, STDIN_MAX_BYTES),
    ):
        if length > most:
            raise ValueError(f"the {what} of a request has {length} bytes; expected at most {most}")


def _encode_variable(variable: tuple[str, str]) -> bytes:
    name, value = variable
    text = f"{name}={value}".encode("utf-8", "surrogateescape")
    if not name or "=" in name or b"\0" in text:
        raise ValueError(f"{name!r} cannot be a variable with the value {value!r}; expected no NUL, and no = in a name")
    return text + b"\0"


def _parse_environment(data: bytes) -> dict[str, str]:
    """Name to value; of a name that is there twice the first, as in getenv(3)."""
    if data and not data.endswith(b"\0"):
        raise ValueError("the environment of a request does not end with NUL")
    variables: dict[str, str] = {}
    for text in data.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"{text!r} in the environment of a request is no NAME=VALUE")
        variables.setdefault(name, value)
    return variables


# ---- answers ---------------------------------------------------------------------------------------------


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer; ValueError when the plugin would not take it."""
    if not 0 <= answer.exit_status <= 255:
        raise ValueError(f"the exit status is {answer.exit_status}; expected 0 to 255")
    if len(answer.document) > ANSWER_MAX_BYTES:
        raise ValueError(f"an answer has {len(answer.document)} bytes; expected at most {ANSWER_MAX_BYTES}")
    return _ANSWER.pack(answer.exit_status, len(answer.document)) + answer.document


def parse_answer(data: bytes) -> Answer:
    """A whole answer; ValueError naming what is wrong."""
    if len(data) < ANSWER_HEADER_BYTES:
        raise ValueError(f"an answer has {len(data)} bytes; expected at least the {ANSWER_HEADER_BYTES} of its header")
    exit_status, document_bytes = _ANSWER.unpack_from(data)
    if len(data) != ANSWER_HEADER_BYTES + document_bytes:
        raise ValueError(f"an answer has {len(data)} bytes; expected {ANSWER_HEADER_BYTES + document_bytes}")
    return Answer(exit_status=exit_status, document=data[ANSWER_HEADER_BYTES:])


# ---- the spool -------------------------------------------------------------------------------------------


def parse_spool_name(name: str) -> SpoolFile | None:
    """What a file's name in the spool tells; None where it is not the plugin's."""
    found = _SPOOL_FILE.fullmatch(name)
    if found is None:
        return None
    return SpoolFile(at_ns=int(found[1]), pid=int(found[2]), complete=found[3] == "del")
