"""Topology files: YAML or JSON text to a checked topology and back, with errors that point at the line.

Theory of operation: YAML is read in three passes, each of which bounds what the next one may meet. The first
takes parser events and refuses deep nesting, since the composer recurses in C. The second composes nodes,
which know their lines. The third turns nodes into plain values, notes the line of every path
(``$.nodes[1].name``), and refuses what YAML would let pass: duplicate keys, tags, aliases that expand without
end. msgspec then makes the topology, and its complaints and those of ``validate`` find their line by path:
the line itself or the nearest one around it.

JSON is nearly YAML; only tabs between its tokens need care. Plain scalars are read as in YAML 1.2: numbers
are decimal, and what else YAML 1.1 sees in digits (octal, base 60, dates) stays text.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import msgspec
import yaml

from muslin.errors import UsageError
from muslin.lab.address_faults import shown
from muslin.lab.topology import SCHEMA, Topology, resolve
from muslin.lab.validate import validate

MAX_BYTES = 1 << 20  # 1 MiB: some 20,000 containers, each with its addresses
MAX_DEPTH = 32  # a topology needs 7
MAX_VALUES = 250_000  # after aliases are expanded
MAX_REPORTED = 20  # problems, before "and N more"
START = f"start the file with `schema: {SCHEMA}`"

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

TAG = "tag:yaml.org,2002:"
TEXT_TAGS = {TAG + name for name in ("str", "timestamp", "value", "merge")}
TRUE_WORDS = {"true", "yes", "on"}

WORDS = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "null": "nothing", "array": "a list", "object": "a mapping (name: value)",
}  # fmt: skip
STRUCT_WORDS = {"StaticRoute": "a route", "Attachment": "a link", "Agents": "agents"}

COMPLAINT = re.compile(r"(?P<text>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)
MISMATCH = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING = re.compile(r"Object missing required field `(.*)`")
STEP_OF_PATH = re.compile(r"\.([^.\[]+)|\[(?:\d+|\.\.\.)\]")


def load_topology(source: str, text: str | bytes) -> Topology:
    """The topology in ``text``, resolved and sound; otherwise UsageError with ``source:line: field:``.

    ``source`` is the file's name for messages; ``-`` is shown as ``stdin``.
    """
    document = _Document("stdin" if source == "-" else source)
    data = document.read(_text(document, text))
    if not isinstance(data, dict):
        found = "nothing" if data is None else "a list" if isinstance(data, list) else "a single value"
        document.fail("$", f"found {found}, expected a topology: a mapping of fields such as nodes; {START}")
    if "schema" not in data:
        document.fail("$", f"schema is missing: {START}")
    try:
        topology = resolve(msgspec.convert(data, Topology))
    except msgspec.ValidationError as error:
        _explain(document, str(error))
    problems = validate(topology)
    if problems:
        lines = [document.line(problem.path, problem.message) for problem in problems[:MAX_REPORTED]]
        more = len(problems) - len(lines)
        raise UsageError("\n".join(lines) + (f"\nand {more} more problems" if more else ""))
    return topology


def dump_topology(topology: Topology) -> str:
    """A topology as YAML without the fields that hold defaults; ``load_topology`` gives the same one back."""
    return str(yaml.dump(_plain(topology), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100))


def topology_schema() -> dict[str, Any]:
    """The JSON schema of topology files, which ``schemas/topology-v1.json`` publishes."""
    schema = msgspec.json.schema(Topology)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}


def schema_text() -> str:
    """The text of ``schemas/topology-v1.json``."""
    return msgspec.json.format(msgspec.json.encode(topology_schema(), order="deterministic"), indent=2).decode() + "\n"


class _Document:
    """Plain values out of YAML text, and the line that each path came from."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {"$": 1}
        self._values = 0

    def read(self, text: str) -> object:
        """The only document in ``text`` as plain values; None when there is none."""
        if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
            text = text.replace("\t", " ")  # JSON allows tabs between tokens, and nowhere else
        try:
            self._check_depth(text)
            root = yaml.compose(text, Loader=Loader)
        except (yaml.YAMLError, UnicodeError) as error:
            self._explain_syntax(error, text)
        if root is None:
            return None
        self.lines["$"] = root.start_mark.line + 1
        return self._value(root, "$", 0)

    def line(self, path: str, message: str) -> str:
        """``FILE:LINE: FIELD: message``, with the line of the nearest known path around."""
        known = path
        while known not in self.lines:
            known = known[: max(known.rfind("."), known.rfind("["))]
        field = path.removeprefix("$").removeprefix(".")
        return f"{self.source}:{self.lines[known]}: {field + ': ' if field else ''}{message}"

    def fail(self, path: str, message: str) -> NoReturn:
        """UsageError at a path."""
        raise UsageError(self.line(path, message))

    def _check_depth(self, text: str) -> None:
        depth = 0
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                self.lines["$"] = event.start_mark.line + 1 if event.start_mark else 1
                self.fail("$", f"nested more than {MAX_DEPTH} levels deep, which no topology needs")

    def _explain_syntax(self, error: Exception, text: str) -> NoReturn:
        """A YAML error as one sentence."""
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
            self.fail("$", "holds bytes that no text has: expected YAML or JSON in UTF-8")
        line = mark.line + 1
        self.lines["$"] = line
        rows = text.split("\n")
        row = rows[line - 1] if line <= len(rows) else ""
        if row[mark.column : mark.column + 1] == "\t" or "\t" in row[: len(row) - len(row.lstrip())]:
            self.fail("$", "indented by a tab, expected spaces")
        context = f"{error.context}: " if error.context else ""
        self.fail("$", f"not valid YAML: {context}{error.problem}")

    def _value(self, node: yaml.Node, path: str, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            self.fail(path, f"aliases or lists grow to more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            self.fail(
                path.partition("[")[0],
                f"an alias contains itself, or is nested more than {MAX_DEPTH} levels deep",
            )
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return self._sequence(node, path, depth)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self.fail(path, f"the tag {shown(node.tag.replace(TAG, '!!'))} has no meaning here: leave it out")

    def _sequence(self, node: yaml.SequenceNode, path: str, depth: int) -> list[object]:
        values = []
        for index, item in enumerate(node.value):
            here = f"{path}[{index}]"
            self.lines[here] = item.start_mark.line + 1
            values.append(self._value(item, here, depth + 1))
        return values

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, object]:
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == TAG + "merge":
                merged |= self._merged(value_node, path, depth)
                continue
            key = self._key(key_node, path, line)
            here = f"{path}.{key}"
            if key in own:
                first = self.lines[here]
                self.lines[here] = line
                self.fail(here, f"given twice, first on line {first}: keep one")
            self.lines[here] = line
            own[key] = self._value(value_node, here, depth + 1)
        return merged | own

    def _merged(self, node: yaml.Node, path: str, depth: int) -> dict[str, object]:
        """The fields that a merge key (``<<``) brings; of several mappings the first one wins."""
        found: dict[str, object] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self._value(source, path, depth + 1)
            if not isinstance(value, dict):
                self.fail(path, "a merge key (<<) takes a mapping or a list of mappings")
            found = value | found
        return found

    def _key(self, node: yaml.Node, path: str, line: int) -> str:
        if isinstance(node, yaml.ScalarNode) and isinstance(key := self._scalar(node, path), str):
            return key
        self.lines[path] = line
        what = f"{shown(node.value)} is" if isinstance(node, yaml.ScalarNode) else "a list or mapping is"
        self.fail(path, f"{what} no name of a field, expected text")

    def _scalar(self, node: yaml.ScalarNode, path: str) -> object:
        text, tag = str(node.value), node.tag
        if tag == TAG + "null":
            return None
        if tag == TAG + "bool":
            return text.lower() in TRUE_WORDS
        if tag in (TAG + "int", TAG + "float"):
            return _number(text)
        if tag in TEXT_TAGS:
            return text
        self.fail(path, f"the tag {shown(tag.replace(TAG, '!!'))} has no meaning here: leave it out")


def _number(text: str) -> object:
    """A decimal number; the text itself when it is none (octal, base 60, .nan) or has thousands of digits."""
    for kind in (int, float):
        try:
            return kind(text.replace("_", ""))
        except ValueError:
            continue
    return text


def _text(document: _Document, text: str | bytes) -> str:
    """The text, if it is any and not too long."""
    size = len(text)
    if size > MAX_BYTES:
        document.fail("$", f"holds {size} characters, more than the {MAX_BYTES} that a topology may have")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        document.lines["$"] = text.count(b"\n", 0, error.start) + 1
        document.fail("$", "holds bytes that no text has: expected YAML or JSON in UTF-8")


def _explain(document: _Document, complaint: str) -> NoReturn:
    """What msgspec says, in the words of a person and at its line."""
    match = COMPLAINT.fullmatch(complaint)
    text, path = (match["text"], match["path"] or "$") if match else (complaint, "$")
    kind = _type_at(path)
    if found := UNKNOWN.fullmatch(text):
        document.fail(f"{path}.{found[1]}", _unknown_field(found[1], kind))
    if found := MISSING.fullmatch(text):
        document.fail(path, f"{found[1]} is missing: {_struct_word(kind)} needs it")
    if text.startswith("Invalid enum value"):
        choices = ", ".join(str(choice) for choice in _choices(kind))
        document.fail(path, f"{text.removeprefix('Invalid enum value').strip()} is not known, expected {choices}")
    if found := MISMATCH.fullmatch(text):
        document.fail(path, _mismatch(found[1], found[2]))
    document.fail(path, text)


def _mismatch(expected: str, got: str) -> str:
    kinds = expected.split(" | ")
    hint = " (write it in quotes)" if "str" in kinds and got in ("int", "float", "bool") else ""
    wanted = " or ".join(WORDS.get(kind, kind) for kind in kinds)
    return f"found {WORDS.get(got, got)}, expected {wanted}{hint}"


def _unknown_field(name: str, kind: Any) -> str:
    import difflib  # needed for an error message alone

    known = kind.__struct_fields__ if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
    return f"is not a field of {_struct_word(kind)}: {hint}"


def _struct_word(kind: Any) -> str:
    name = getattr(kind, "__name__", "mapping")
    return STRUCT_WORDS.get(name, f"a {name.lower()}")


def _type_at(path: str) -> Any:
    """The type at a path of msgspec's: a struct, a tuple of them, or something plain."""
    kind: Any = Topology
    for step in STEP_OF_PATH.finditer(path):
        if step[1]:
            kind = typing.get_type_hints(kind).get(step[1]) if hasattr(kind, "__struct_fields__") else None
            kind = _without_none(kind)
        else:
            kind = next(iter(typing.get_args(kind)), None)
    return kind


def _without_none(kind: Any) -> Any:
    """The type of a field that may be left out, when it is given."""
    given = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    return given[0] if len(given) == 1 and type(None) in typing.get_args(kind) else kind


def _choices(kind: Any) -> Iterator[object]:
    """The values of a Literal, also inside of a union."""
    for argument in typing.get_args(kind):
        if typing.get_origin(argument) is not None:
            yield from _choices(argument)
        elif argument is not type(None):
            yield argument


def _plain(value: Any) -> Any:
    """Structs as dicts without defaults, tuples as lists: what a person would write."""
    if isinstance(value, msgspec.Struct):
        fields: Iterable[msgspec.structs.FieldInfo] = msgspec.structs.fields(value)
        pairs = ((field, getattr(value, field.name)) for field in fields)
        return {field.name: _plain(held) for field, held in pairs if held != field.default}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
