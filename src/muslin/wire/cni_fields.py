"""The fields of a CNI document, read the way Go reads them.

Theory of operation: runtimes and plugins are written in Go, whose encoding/json matches keys without regard to case,
lets the later of two that differ in case alone win, and takes ``null`` for absent; containerd really does write
``Servers`` for ``servers``. So a document is decoded to plain objects first, and each object is read through
``Fields``. A value of another type than expected is error 7 that names the key's whole path and the value. Keys that
nobody asks for are no fault; ``others`` keeps them for whoever has to pass them on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from muslin.model.address import HOST_BITS, family_of, packed
from muslin.wire.cni_error import CniError, ErrorCode
from muslin.wire.json_text import show

DEPTH_MAX = 100
"""Of nesting. Whatever is read may be written again from deeper within the interpreter's stack, and must fit there."""

Value = TypeVar("Value")


def decode_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``text``; error 6 when it is none. ``what`` says in the error what it should have been."""
    try:
        document = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and msgspec's errors are ValueErrors
        raise CniError(ErrorCode.UNDECODABLE, f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CniError(ErrorCode.UNDECODABLE, f"{what} is {show(document)}; expected a JSON object")
    # As many brackets as a usual document has at most: only one that has more is looked at again.
    if text.count(b"{") + text.count(b"[") > DEPTH_MAX and _depth(document) > DEPTH_MAX:
        raise CniError(ErrorCode.UNDECODABLE, f"{what} is nested more than {DEPTH_MAX} levels deep")
    return document


def _depth(document: object) -> int:
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [inner for value in level for inner in _inner(value) if isinstance(inner, dict | list)]
    return depth


def _inner(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


class Fields:
    """One JSON object. ``place`` is where it stands in its document, such as ``prevResult.ips[0].``, for errors."""

    __slots__ = ("_given", "_place", "_values")

    def __init__(self, given: Mapping[str, Any], place: str = "") -> None:
        self._given = given
        self._place = place
        self._values = {key.casefold(): value for key, value in given.items()}

    def raw(self, key: str) -> object:
        """The value, whatever it is; None when absent."""
        return self._values.get(key.casefold())

    def text(self, key: str) -> str:
        """A string; empty when absent."""
        return self._typed(key, str, "a string") or ""

    def number(self, key: str) -> int | None:
        """A whole number, None when absent."""
        return self._typed(key, int, "a whole number")

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._typed(key, bool, "true or false")
        return default if value is None else value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        expected = "a list of strings"
        values = self._typed(key, list, expected) or []
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, expected)
        return tuple(values)

    def inner(self, key: str) -> Fields:
        """The object below ``key``; an empty one when absent."""
        return Fields(self._typed(key, dict, "an object") or {}, f"{self._place}{key}.")

    def items(self, key: str) -> list[Fields]:
        """The objects in a list; none when absent."""
        expected = "a list of objects"
        values = self._typed(key, list, expected) or []
        if not all(isinstance(value, dict) for value in values):
            raise self.fault(key, expected)
        return [Fields(value, f"{self._place}{key}[{index}].") for index, value in enumerate(values)]

    def address(self, key: str) -> str:
        """An address without length, as it is spelt; empty when absent."""
        text = self.text(key)
        if text and not is_address(text):
            raise self.fault(key, "an address, such as 10.5.3.7")
        return text

    def interface_address(self, key: str) -> str:
        """An address with its length, as it is spelt; error 7 when absent."""
        text = self.text(key)
        if not is_interface_address(text):
            raise self.fault(key, "an address with its length, such as 10.5.3.7/24")
        return text

    def others(self, known: frozenset[str]) -> dict[str, Any]:
        """What stands under other keys than ``known``, which are in lower case, as it is."""
        return {key: value for key, value in self._given.items() if key.casefold() not in known}

    def fault(self, key: str, expected: str, code: ErrorCode = ErrorCode.BAD_CONFIG) -> CniError:
        """The error that names the key and its value."""
        value = self._values.get(key.casefold())
        state = "is missing" if value is None else f"is {show(value)}"
        return CniError(code, f"{self._place}{key} {state}; expected {expected}")

    def _typed(self, key: str, kind: type[Value], expected: str) -> Value | None:
        value = self._values.get(key.casefold())
        if value is None:
            return None
        if type(value) is not kind:  # and not isinstance: True is no number here
            raise self.fault(key, expected)
        return value


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, without length or zone."""
    try:
        packed(text)
    except (OSError, ValueError):
        return False
    return True


def is_interface_address(text: str) -> bool:
    """Whether this is an address with a prefix length that its family allows."""
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit() and len(length) <= 3):
        return False
    return is_address(address) and int(length) <= HOST_BITS[family_of(address)]
