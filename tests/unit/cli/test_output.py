"""Data in the form that was asked for, and colour only where it is welcome."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest
import yaml

from muslin.cli import output


class Document(msgspec.Struct):
    """Something to print."""

    schema: str
    names: tuple[str, ...]


DOCUMENT = Document("muslin.test/v1", ("a", "ü"))


def test_a_document_is_printed_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit(DOCUMENT, "json", lambda: "drawn")
    assert json.loads(capsys.readouterr().out) == {"schema": "muslin.test/v1", "names": ["a", "ü"]}
    output.emit(DOCUMENT, "yaml", lambda: "drawn")
    assert yaml.safe_load(capsys.readouterr().out) == {"schema": "muslin.test/v1", "names": ["a", "ü"]}
    output.emit(DOCUMENT, "table", lambda: "drawn")
    assert capsys.readouterr().out == "drawn\n"


def test_nothing_drawn_prints_not_even_an_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit(DOCUMENT, "table", lambda: "")

    assert capsys.readouterr().out == ""


def test_talk_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("hello")

    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # https://no-color.org: when present and not an empty string
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colour_is_for_terminals_of_people_who_want_it(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)

    assert output.use_color() is expected


def test_a_table_is_as_wide_as_its_cells() -> None:
    drawn = output.draw_table(("NAME", "N"), [("a", "1"), ("longer", "22")])

    assert drawn == "NAME    N\na       1\nlonger  22"
    assert output.draw_table(("NAME",), []) == ""
