"""A rule of nft's JSON listing as the text that a person would type.

Theory of operation: nft prints JSON for programs and text for people, and one costs a run of nft each. A rule has few
kinds of expression, so that its text is made here; what is not known shows as JSON, which says what it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def rule_text(expressions: Iterable[Mapping[str, Any]]) -> str:
    """The text of all expressions of a rule, without counters' numbers."""
    return " ".join(text for one in expressions if (text := _expression(one)))


def _expression(one: Mapping[str, Any]) -> str:
    name, value = next(iter(one.items()))
    if name == "match":
        op = "" if value["op"] in ("==", "in") else f"{value['op']} "
        return f"{_operand(value['left'])} {op}{_operand(value['right'])}"
    if name in ("accept", "drop", "return", "masquerade", "counter", "notrack"):
        return name
    if name in ("jump", "goto"):
        return f"{name} {value['target']}"
    if name == "reject":
        return "reject" if not value else f"reject with {value.get('type', '')} {value.get('expr', '')}".strip()
    if name in ("snat", "dnat") and isinstance(value, Mapping):
        port = f":{value['port']}" if "port" in value else ""
        return f"{name} to {value.get('addr', '')}{port}"
    if name == "log":
        return "log"
    if name == "mangle":
        return f"{_operand(value['key'])} set {_operand(value['value'])}"
    return json.dumps(dict(one))


def _operand(value: Any) -> str:
    if isinstance(value, list):
        return "{ " + ", ".join(_operand(one) for one in value) + " }"
    if not isinstance(value, Mapping):
        return str(value)
    name, inner = next(iter(value.items()))
    if name == "payload" and "field" in inner:
        return f"{inner['protocol']} {inner['field']}"
    if name == "meta":
        key = inner["key"]
        return key if key in ("iif", "oif", "iifname", "oifname", "mark") else f"meta {key}"
    if name == "ct":
        return f"ct {inner['key']}"
    if name == "prefix":
        return f"{inner['addr']}/{inner['len']}"
    if name == "range":
        return f"{_operand(inner[0])}-{_operand(inner[1])}"
    if name == "set":
        return _operand(inner)
    if name == "elem":
        return _operand(inner.get("val"))
    if name == "numgen":
        return f"numgen {inner['mode']} mod {inner['mod']}"
    return json.dumps(dict(value))
