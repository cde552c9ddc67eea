"""The command line before it does anything: help, verbs, aliases, errors, and what all that costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import muslin
from muslin.cli.lab import lab
from muslin.cli.main import cli, run
from muslin.errors import ConvergeError, MuslinError, UnsupportedError, UsageError

SOURCE = str(Path(muslin.__file__).parents[1])
VERBS = list(lab.lazy)


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words), prog_name="muslin")


def raw(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "muslin", *words],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": SOURCE}, **options,
    )  # fmt: skip


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The packages that were imported, by -X importtime."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


# ---- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["lab"], ["completion"], *(["lab", verb] for verb in VERBS)], ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_verb_explains_itself(words: list[str], option: str) -> None:
    done = invoke(*words, option)

    assert done.exit_code == 0, done.output
    assert done.output.startswith("Usage: muslin")
    assert max(map(len, done.output.splitlines())) <= 110
    assert len(done.output.split()) > 15


def test_the_help_of_the_lab_tells_the_exit_codes_and_lists_every_verb_with_its_own_words() -> None:
    told = invoke("lab", "--help").output

    assert VERBS
    for code in ("0 fine", "1 a check failed", "2 wrong usage", "3 a privilege", "4 warnings only", "130 interrupted"):
        assert code in told
    for verb in VERBS:
        assert f"  {verb} " in told


def test_verbs_with_an_exit_code_of_their_own_tell_it() -> None:
    assert "1: at least one is not" in invoke("lab", "check", "--help").output
    assert "Exit code 4" in invoke("lab", "inspect", "--help").output
    assert "its exit code is ours" in invoke("lab", "exec", "--help").output


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("demo", "ls", "prune", "replay", "adopt")])
def test_every_verb_about_a_lab_takes_its_name(verb: str) -> None:
    assert "-n, --name NAME" in invoke("lab", verb, "--help").output


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").output.strip() == f"muslin, version {muslin.__version__}"


# ---- verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["lap"], "Did you mean 'lab'?"),
        (["lab", "chek"], "Did you mean 'check'?"),
        (["lab", "destory"], "Did you mean 'destroy'?"),
        (["lab", "qqq"], "See 'muslin lab --help'."),
    ],
)
def test_an_unknown_verb_names_the_nearest(words: list[str], hint: str) -> None:
    done = invoke(*words)

    assert done.exit_code == 2
    assert f"there is no command {words[-1]!r}. {hint}" in done.output


@pytest.mark.parametrize(("alias", "verb"), [("deploy", "up"), ("destroy", "down"), ("list", "ls")])
def test_aliases_of_other_tools_work_and_are_not_listed(alias: str, verb: str) -> None:
    context = click.Context(lab)

    assert lab.get_command(context, alias) is lab.get_command(context, verb)
    assert alias not in lab.list_commands(context)
    assert invoke("lab", alias, "--help").exit_code == 0


def test_the_table_of_verbs_agrees_with_the_verbs() -> None:
    context = click.Context(lab)
    for verb in lab.list_commands(context):
        command = lab.get_command(context, verb)
        assert command is not None
        assert command.name == verb


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("no", "do this"), 2, "muslin: no\n  do this\n"),
        (UnsupportedError("cannot"), 3, "muslin: cannot\n"),
        (ConvergeError("refused"), 1, "muslin: refused\n"),
        (MuslinError("broken"), 1, "muslin: broken\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "/x"), 3, "/x'\n  run as root"),
        (OSError(5, "Input/output error", "/x"), 1, "/x'\n"),
    ],
)
def test_an_error_is_a_sentence_and_a_code(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)

    assert run([]) == code
    assert told in capsys.readouterr().err


# ---- cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["lab", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_next_to_nothing(words: list[str]) -> None:
    done = raw(*words)

    assert done.returncode == 0
    found = imported(done)
    assert {"click", "muslin"} <= found, "the measurement works"
    assert found.isdisjoint({"rich", "yaml", "msgspec", "subprocess", "asyncio", "xml", "ipaddress"})


def test_json_does_not_pay_for_tables() -> None:
    done = raw("lab", "diff", "--step", "2", "--step", "3", "-o", "json")

    assert json.loads(done.stdout)["schema"] == "muslin.lab-diff/v1"
    assert imported(done).isdisjoint({"rich", "yaml"})
