"""A judged report in the forms that people and machines read.

Theory of operation: each function takes a ``CheckReport`` and returns text or bytes; none prints, and none
knows the command line. Failures of one cause are one line with a count and examples, since 400 equal lines
hide the one that differs. ``rich`` is imported by the functions that draw, so that whoever wants JSON does
not pay for it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import msgspec

from muslin.verify.matrix import REQUIREMENTS, Requirement
from muslin.verify.verdict import CheckReport, Exchange, Fault, FaultKind, JudgedCell, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DEFAULT_WIDTH = 110  # characters
HEATMAP_COLUMNS = 24  # more destination addresses than this are grouped by node
EXAMPLES = 3

_LETTERS: dict[FaultKind, str] = {
    "nat": "N",
    "lost": "L",
    "refused": "R",
    "unreachable": "U",
    "ttl": "T",
    "fragmented": "F",
}
_TIMES: dict[Protocol, str] = {"icmp": "ICMP ms", "tcp": "TCP ms", "udp": "UDP ms"}  # the titles of the table
_MEANINGS = "N NAT, L lost, R refused, U unreachable, T wrong TTL, F fragmented"


class FaultGroup(NamedTuple):
    """Faults of one cause: all that they break, how often, and the first few sentences."""

    breaks: tuple[Requirement, ...]
    cause: str
    times: int
    examples: tuple[str, ...]


def group_faults(report: CheckReport) -> tuple[FaultGroup, ...]:
    """The faults of all cells by cause: first those that somebody named, then losses; the most frequent first."""
    groups: dict[tuple[bool, str], list[Fault]] = {}
    for cell in report.cells:
        for fault in cell.faults:
            groups.setdefault((fault.kind == "lost", fault.cause), []).append(fault)
    found = []
    for (_, cause), faults in sorted(groups.items(), key=lambda group: (group[0][0], -len(group[1]))):
        broken = {requirement for fault in faults for requirement in fault.breaks}
        breaks = tuple(requirement for requirement in REQUIREMENTS if requirement in broken)
        found.append(FaultGroup(breaks, cause, len(faults), tuple(fault.sentence for fault in faults[:EXAMPLES])))
    return tuple(found)


def render_totals(report: CheckReport) -> str:
    """``R1 16/16  R2 24/24  R3 40/40  underlay 8/8``."""
    words = []
    for requirement in REQUIREMENTS:
        total = report.totals[requirement]
        without_proof = f" ({total.unproven} without proof)" if total.unproven else ""
        if total.of:
            words.append(f"{requirement} {total.passed}/{total.of}{without_proof}")
    return "  ".join(words)


def render_verdict(report: CheckReport) -> str:
    """The verdict in one paragraph: totals, then each cause of failure once."""
    if not report.cells:
        return "FAILED: nothing was checked, so nothing is proved."
    word = "PASSED" if report.ok else "FAILED"
    good = len(report.cells) - len(report.failed)
    lines = [f"{word}: {good} of {len(report.cells)} checks in {report.duration_s:.2f} s.  {render_totals(report)}"]
    for group in group_faults(report):
        lines.extend(_group_lines(group))
    return "\n".join(lines)


def _group_lines(group: FaultGroup) -> Iterable[str]:
    if group.times == 1:
        return [f"  {group.examples[0]}"]
    more = group.times - len(group.examples)
    tail = [f"      ... and {more} more"] if more else []
    # A sentence is "R1 broken: SOURCE -> ADDRESS (NAME): detail", and the detail says more than the cause or just it.
    shown = [sentence.partition(" broken: ")[2].removesuffix(f": {group.cause}") for sentence in group.examples]
    examples = [f"      {example}" for example in shown]
    return [f"  {_enumerate(group.breaks)} broken {group.times} times: {group.cause}", *examples, *tail]


def _enumerate(words: Sequence[str]) -> str:
    """``R1, R2 and R3``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def render_table(report: CheckReport, wide: bool = False, *, color: bool = False, width: int = DEFAULT_WIDTH) -> str:
    """One row per cell; ``wide`` adds what each end saw."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    extra = ("OWN", "SENT", "SEEN", "TTL", "MTU") if wide else ()
    for title in ("OK?", "SOURCE", "ADDRESS", "DESTINATION", "PROVES", *_TIMES.values(), *extra):
        right = title in (*_TIMES.values(), "TTL", "MTU")
        table.add_column(title, no_wrap=True, justify="right" if right else "left")
    for cell in report.cells:
        table.add_row(*_row(cell, wide), style=None if cell.ok else "red")
    return _draw(table, color, width)


def _row(cell: JudgedCell, wide: bool) -> list[str]:
    result, pair = cell.result, cell.result.pair
    times: dict[str, str] = {exchange.protocol: _time_of(exchange) for exchange in result.exchanges}
    words = ["ok" if cell.ok else "FAIL", pair.source.name, pair.address, pair.destination.name]
    words.append(" ".join(cell.proved) or "-")
    words.extend(times.get(protocol, "-") for protocol in _TIMES)
    if wide:
        words.append(", ".join(result.own) or "-")
        words.append(_different(exchange.sent for exchange in result.exchanges))
        words.append(_different(exchange.seen for exchange in result.exchanges))
        words.append(_different(exchange.ttl for exchange in result.exchanges))
        words.append(str(result.path_mtu or "-"))
    return words


def _time_of(exchange: Exchange) -> str:
    return exchange.outcome if exchange.rtt_s is None else f"{exchange.rtt_s * 1000:.1f}"


def _different(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def render_heatmap(
    report: CheckReport, *, color: bool = False, ascii_only: bool = False, width: int = DEFAULT_WIDTH
) -> str:
    """Rows are sources, columns destination addresses, one cell each; by node where there are too many."""
    addresses = dict.fromkeys((c.result.pair.address, c.result.pair.destination.name) for c in report.cells)
    if len(addresses) > HEATMAP_COLUMNS:
        return _render_node_heatmap(report, color, width)
    return _render_cell_heatmap(report, list(addresses), color, ascii_only, width)


def _render_cell_heatmap(
    report: CheckReport, columns: Sequence[tuple[str, str]], color: bool, ascii_only: bool, width: int
) -> str:
    from rich.table import Table
    from rich.text import Text

    cells = {
        (c.result.pair.source.name, c.result.pair.address, c.result.pair.destination.name): c for c in report.cells
    }
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("source")
    for number in range(1, len(columns) + 1):
        table.add_column(str(number), justify="center")
    for source in dict.fromkeys(source for source, _, _ in cells):
        marks = [_mark(cells.get((source, *column)), ascii_only) for column in columns]
        table.add_row(source, *(Text(mark, style=style) for mark, style in marks))
    good = "." if ascii_only else "■"
    parts = [_draw(table, color, width).rstrip(), f"{good} good, {_MEANINGS}", *_legend(columns, width)]
    return "\n".join(parts) + "\n"


def _legend(columns: Sequence[tuple[str, str]], width: int) -> list[str]:
    """``1 = 10.0.0.10 node1``, as many beside each other as fit, numbered downwards."""
    entries = [f"{number:3} = {address} {name}" for number, (address, name) in enumerate(columns, 1)]
    room = max(map(len, entries)) + 2
    rows = -(-len(entries) // max(width // room, 1))
    return ["".join(entry.ljust(room) for entry in entries[row::rows]).rstrip() for row in range(rows)]


def _mark(cell: JudgedCell | None, ascii_only: bool) -> tuple[str, str]:
    """The character of a cell and its colour."""
    if cell is None:
        return " ", ""
    if cell.ok:
        return ("." if ascii_only else "■"), "green"
    kinds = {fault.kind for fault in cell.faults}
    letter = next((letter for kind, letter in _LETTERS.items() if kind in kinds), "?")
    return letter, "bold red"


def _render_node_heatmap(report: CheckReport, color: bool, width: int) -> str:
    from rich.table import Table
    from rich.text import Text

    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for cell in report.cells:
        key = (cell.result.pair.source.node, cell.result.pair.destination.node)
        failed, total = counts.get(key, (0, 0))
        counts[key] = (failed + (not cell.ok), total + 1)
    nodes = list(dict.fromkeys(node for place in (0, 1) for node in (key[place] for key in counts)))
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("from \\ to")
    for number in range(1, len(nodes) + 1):
        table.add_column(str(number), justify="right")
    for number, source in enumerate(nodes, 1):
        marks = [_node_mark(counts.get((source, destination))) for destination in nodes]
        table.add_row(f"{number} {source}", *(Text(mark, style=style) for mark, style in marks))
    note = "failed checks from node to node: '.' none, blank where nothing was checked"
    return f"{_draw(table, color, width).rstrip()}\n{note}\n"


def _node_mark(count: tuple[int, int] | None) -> tuple[str, str]:
    if count is None:
        return " ", ""
    failed, total = count
    if not failed:
        return ".", "green"
    return str(failed), "bold red" if failed == total else "magenta"  # yellow is unreadable on white


def _draw(table: RenderableType, color: bool, width: int) -> str:
    """The table as text, as wide as it needs to be: a terminal folds a long line, but nothing brings back a cut one."""
    from rich.console import Console
    from rich.measure import Measurement

    buffer = io.StringIO()
    console: Console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    console.width = max(width, needed)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def to_json(report: CheckReport) -> bytes:
    """The whole report as one JSON document of schema ``muslin.check/v1``."""
    return msgspec.json.encode(report)


def to_junit_xml(report: CheckReport) -> bytes:
    """JUnit: a suite per requirement, a test case per pair in it, failures with their sentences."""
    root = ElementTree.Element("testsuites", name="muslin check", time=f"{report.duration_s:.3f}")
    for requirement in REQUIREMENTS:
        cells = [cell for cell in report.cells if requirement in cell.result.pair.requirements]
        if cells:
            _add_suite(root, requirement, cells)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _add_suite(root: ElementTree.Element, requirement: Requirement, cells: Sequence[JudgedCell]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=requirement, tests=str(len(cells)))
    failures = sum(_add_case(suite, requirement, cell) for cell in cells)
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    suite.set("skipped", "0")


def _add_case(suite: ElementTree.Element, requirement: Requirement, cell: JudgedCell) -> bool:
    """One test case; True when it failed."""
    times = [exchange.rtt_s for exchange in cell.result.exchanges if exchange.rtt_s is not None]
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"muslin.{requirement}",
        name=cell.result.pair.title,
        time=f"{max(times, default=0.0):.6f}",
    )
    if requirement in cell.proved:
        return False
    sentences = [fault.sentence for fault in cell.faults if requirement in fault.breaks]
    without_proof = f"{requirement} not proved: {cell.result.pair.title}: no packet got through by which to tell"
    text = "\n".join(sentences or [without_proof])
    failure = ElementTree.SubElement(case, "failure", message=text.splitlines()[0], type=requirement)
    failure.text = text
    return True
