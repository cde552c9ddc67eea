"""A trace again: as a picture in the terminal, and as one HTML file that shows it by itself.

Theory of operation: a trace is a document (``verify.trace``, schema muslin.trace/v1), so that it can be kept, mailed
and replayed anywhere. ``frames`` makes a picture for each sighting: the places in the order in which the packet comes
to them, and where it is. ``html_page`` puts the document into ``replay.html``, a page without anything from outside: it
draws an SVG, has a scrub bar, answers to arrow keys, tells each step to screen readers, and shows what changed in the
headers. The document goes in as JSON in which no ``<`` is left, so nothing in it can end the script.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import msgspec

from muslin.errors import UsageError
from muslin.explain.taps import Line
from muslin.verify.trace import Trace

DATA_MARK = "/*TRACE*/null"
TITLE_MARK = "<!--TITLE-->"


def parse_trace(name: str, data: bytes) -> Trace:
    """The trace in a file; UsageError for anything else."""
    try:
        return msgspec.json.decode(data, type=Trace)
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"{name} is no trace that this version understands: {error}",
            "make one with: muslin lab trace SRC DST -o json > FILE",
        ) from None


def html_page(trace: Trace) -> str:
    """The whole page."""
    page = resources.files("muslin.verify").joinpath("replay.html").read_text(encoding="utf-8")
    data = msgspec.json.encode(trace).decode().replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", "")
    title = f"{trace.source} to {trace.destination}"
    return page.replace(TITLE_MARK, title.replace("<", "")).replace(DATA_MARK, data)


def frames(trace: Trace) -> Iterator[str]:
    """A picture for each sighting, in order."""
    lines = [line for line in trace.lines if line.predicted or line.leg == "error"]
    places = list(dict.fromkeys(line.place for line in lines))
    for number, line in enumerate(lines, start=1):
        yield f"{_row(places, line)}\n{number:>3}/{len(lines)}  {_words(line)}"


def _row(places: list[str], line: Line) -> str:
    """All places, the one where the packet is in brackets, with its link."""
    return "  ".join(f"[{place} {line.link}]" if place == line.place else f" {place} " for place in places)


def _words(line: Line) -> str:
    packet = f"{line.source} > {line.destination}"
    if line.outer_source:
        packet = f"{line.outer_source} > {line.outer_destination} carries {packet}"
    mark = f"  ≠ {line.differs}" if line.differs else ""
    changes = f"  ({'; '.join(line.changes)})" if line.changes else ""
    return f"{line.leg}, {line.direction} by {line.link} of {line.place}: {packet}, TTL {line.ttl}{changes}{mark}"
