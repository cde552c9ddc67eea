"""How data reaches the reader: a table for people, JSON or YAML for programs, one option for all verbs.

Theory of operation: a verb makes one document (a frozen struct whose first field is its versioned schema) and a
function that draws it as text. ``emit`` prints one of the two on stdout. Colour follows https://no-color.org and is
off whenever stdout is not a terminal. All talk goes through ``say`` to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

Function = TypeVar("Function", bound=Callable[..., Any])

FORMATS = ("table", "json", "yaml")


def output_option(function: Function) -> Function:
    """The ``-o`` that every verb with data has."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="Form of the data.",
    )(function)


def emit(document: Any, output: str, draw: Callable[[], str]) -> None:
    """Print a document in the form that was asked for."""
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
    elif output == "yaml":
        click.echo(msgspec.yaml.encode(msgspec.to_builtins(document)), nl=False)
    elif text := draw():
        click.echo(text)


def say(text: str) -> None:
    """Talk to the person, not to the program that reads our data."""
    click.echo(text, err=True)


def counted(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``, ``2 processes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural if number != 1 else ''}"


def use_color() -> bool:
    """Whether stdout is a terminal of somebody who has not asked for plain text."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int:
    """Columns of the terminal, 120 where there is none."""
    import shutil

    return shutil.get_terminal_size((120, 40)).columns


def draw_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows under headings, as wide as they need to be: the cheap table, without an import to speak of."""
    if not rows:
        return ""
    widths = [max(len(line[index]) for line in (columns, *rows)) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in rows]
    head = "  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip()
    return "\n".join([click.style(head, bold=True) if use_color() else head, *(line.rstrip() for line in lines)])
