"""What a container runtime asks of a CNI plugin, first part: the environment.

Theory of operation: the variables say what to do with which container; which command needs which stands in one table.
All that are missing or wrong are named in one error 4, since a person who mends one wants to know of the others.

An interface's name is held against what the kernel does with it, which is more than the specification says: it would
make ``eth%d`` the first free ``ethN``, and takes names byte by byte, where a byte of a UTF-8 letter may be a space.

Rules: containernetworking/cni SPEC.md 1.1.0, "Parameters" and "CNI operations"; pkg/skel and pkg/utils where it says
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import msgspec

from muslin.model.link import IFNAME_MAX
from muslin.wire.cni_error import CniError, ErrorCode
from muslin.wire.json_text import SHOWN_CHARACTERS

Command = Literal["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"]
COMMANDS: tuple[Command, ...] = get_args(Command)

WORD = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
"""A container's id and a network's name: SPEC.md, "Parameters" and "Configuration format"."""
_SPACES = frozenset(b"\t\n\v\f\r \xa0")
"""isspace() of the kernel (lib/ctype.c), which dev_valid_name (net/core/dev.c) refuses byte by byte."""
_SYSCTL_NAMES = ("all", "default")
"""In net.ipv4.conf they stand for all interfaces, and none may have them (sysctl_dev_name_is_allowed, net/ip.h)."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The environment. What the command does not look at is empty."""

    command: Command
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    """CNI_NETNS as it was given; on DEL it may be empty, or lead nowhere, or hold bytes that are no UTF-8."""
    args: dict[str, str] = {}
    """CNI_ARGS. Unknown ones are no fault."""
    override: bool = False
    """CNI_NETNS_OVERRIDE: CNI_NETNS may be the plugin's own namespace."""


def parse_call(env: Mapping[str, str]) -> Call:
    """The call that these variables make; CniError 4 names every one that is missing or wrong."""
    command = _command(env.get("CNI_COMMAND", ""))
    faults: list[str] = []
    values: dict[str, str] = {}
    for name, variable in _VARIABLES.items():
        value = env.get(name, "")
        if not value and command in variable.required:
            faults.append(f"{name} is missing")
        elif value and command in variable.checked and (fault := variable.fault(value)):
            faults.append(f"{name} {fault}")
        values[name] = value if command in variable.read else ""
    if faults:
        raise CniError(
            ErrorCode.BAD_ENVIRONMENT,
            f"{command} cannot be done: {'; '.join(faults)}",
            "the container runtime sets these variables; its log says what it meant by them",
        )
    return Call(
        command=command,
        container_id=values["CNI_CONTAINERID"],
        ifname=values["CNI_IFNAME"],
        netns=values["CNI_NETNS"],
        args={key: value for key, _, value in _pairs(values["CNI_ARGS"])},
        override=env.get("CNI_NETNS_OVERRIDE", "").upper() in ("1", "TRUE"),
    )


def _command(given: str) -> Command:
    for command in COMMANDS:
        if command == given:
            return command
    state = f"is {_shown(given)}" if given else "is missing"
    raise CniError(ErrorCode.BAD_ENVIRONMENT, f"CNI_COMMAND {state}; expected one of {', '.join(COMMANDS)}")


def _container_fault(value: str) -> str:
    expected = "letters, digits, '_', '.', '-', the first a letter or a digit"
    return "" if WORD.fullmatch(value) else f"is {_shown(value)}; expected {expected}"


def _ifname_fault(value: str) -> str:
    """What the kernel's dev_valid_name and dev_alloc_name have against a name, "" when nothing."""
    if fault := _netns_fault(value):
        return fault
    if len(value.encode()) > IFNAME_MAX:
        return f"is {_shown(value)}, longer than {IFNAME_MAX} bytes"
    if value in (".", "..", *_SYSCTL_NAMES):
        return f"is {_shown(value)}, which no interface can be called"
    if "/" in value or ":" in value or "%" in value or value.split() != [value] or _SPACES.intersection(value.encode()):
        return f"is {_shown(value)}; the name of an interface has no '/', ':', '%' and no white space"
    return ""


def _netns_fault(value: str) -> str:
    """Variables of bytes that are no UTF-8 arrive with lone surrogates, which JSON cannot say."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"is {_shown(value)}, which is no UTF-8 and cannot be told in a result"
    return ""


def _args_fault(value: str) -> str:
    bad = [f"{key}{equals}" for key, equals, _ in _pairs(value) if not (key and equals)]
    return f"holds {_shown(bad[0])}; expected KEY=VALUE with ';' between them" if bad else ""


def _pairs(text: str) -> list[tuple[str, str, str]]:
    """``K=V;K2=V2`` in parts."""
    return [part.partition("=") for part in text.split(";") if part]


def _no_fault(_: str) -> str:
    return ""


def _shown(value: str) -> str:
    return repr(value[:SHOWN_CHARACTERS])


class _Variable(NamedTuple):
    """Which commands need a variable, which hold it against its rules, which use it, and the rules."""

    required: frozenset[str]
    checked: frozenset[str]
    read: frozenset[str]
    fault: Callable[[str], str]


_NONE: frozenset[str] = frozenset()
_MAKE = frozenset({"ADD", "CHECK"})
_ALL = _MAKE | {"DEL"}
_VARIABLES: dict[str, _Variable] = {
    "CNI_CONTAINERID": _Variable(_ALL, _ALL, _ALL, _container_fault),
    "CNI_IFNAME": _Variable(_ALL, _ALL, _ALL, _ifname_fault),
    "CNI_NETNS": _Variable(_MAKE, _MAKE, _ALL, _netns_fault),
    "CNI_PATH": _Variable(frozenset({"GC"}), _NONE, _NONE, _no_fault),
    "CNI_ARGS": _Variable(_NONE, _MAKE, _MAKE, _args_fault),
}
"""SPEC.md, "CNI operations". CNI_PATH leads to delegates, of which we have none."""
