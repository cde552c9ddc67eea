"""``muslin lab learn``: a guided course through the four steps, on living networks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from typing import Any

import click

from muslin.cli.output import draw_table, say, use_color
from muslin.errors import EXIT_OK, UsageError

LEARN_LAB = "learn"
WIDEST = 100
"""Columns of text; on a narrower terminal, its own."""
EXAMPLES = {
    "number": "a number, such as 64",
    "address": "an address, such as 10.0.0.10",
    "word": "a word",
    "yes or no": "yes or no",
}


OTHER_TERMINAL = {
    "check": "who reaches whom",
    "shell node1": "a shell in there: ip route, ip link",
    "diagnose": "the cause, and what mends it",
}
INTRODUCTION = (
    "You predict what the network will do, then look, and are told why. Answer with a word or a number; quit stops, and"
    " the same command goes on from there. Real networks of your own kernel are raised for it, and taken away at the"
    " end."
)


class _LeaveError(Exception):
    """The learner stops for today."""


@click.command()
@click.argument("lesson", metavar="[LESSON]", required=False)
@click.option("--list", "listing", is_flag=True, help="List the lessons, and how far you have come.")
@click.option("--restart", is_flag=True, help="Forget how far you have come, and begin anew.")
@click.option("--name", "-n", default=LEARN_LAB, show_default=True, metavar="NAME", help="Name of the course's lab.")
def learn(lesson: str | None, listing: bool, restart: bool, name: str) -> int:
    """Learn container networking step by step: read, predict, look, and find what is broken.

    Goes on where you stopped; `quit` stops. Answers are found on the lab that is up, never in a book. Each lesson
    leaves the lab up, so that you can look around in another terminal: muslin lab shell --name learn node1
    """
    from muslin.lab.course import COURSE
    from muslin.lab.learning import Progress, read_progress, write_progress

    progress = Progress() if restart else read_progress()
    if restart:
        write_progress(progress)
    if listing:
        click.echo(_list(COURSE, progress))
        return EXIT_OK
    chosen = [one for one in COURSE if (one.name == lesson if lesson else one.name not in progress.done)]
    if lesson and not chosen:
        raise UsageError(f"there is no lesson {lesson!r}", f"there is {', '.join(one.name for one in COURSE)}")
    try:
        if not (progress.done or lesson):
            click.echo(_wrapped(INTRODUCTION))
        for one in chosen:
            points, of = _teach(one, f"lesson {COURSE.index(one) + 1} of {len(COURSE)}", name)
            progress = progress.with_lesson(one.name, points, of)
            write_progress(progress)
    except _LeaveError:
        say(f"\nkept. Go on with: muslin lab learn. The lab stays up; muslin lab down {name} takes it away")
        return EXIT_OK
    points, of = progress.total
    click.echo(f"\nThat was all: {points} of {of} points. Next: muslin lab myths, or muslin lab up and break --random")
    _take_down(name)
    return EXIT_OK


def _list(course: Any, progress: Any) -> str:
    rows: list[tuple[str, ...]] = []
    for one in course:
        points = progress.done.get(one.name)
        rows.append((one.name, str(one.step), "{} of {}".format(*points) if points else "-", one.title))
    return draw_table(("LESSON", "STEP", "POINTS", "WHAT IT IS ABOUT"), rows)


def _take_down(name: str) -> None:
    from muslin.lab.run import down
    from muslin.lab.state import LabDirectory

    down(LabDirectory(name))


def _wrapped(text: str, indent: str = "") -> str:
    """Paragraphs, as wide as the terminal is, within reason."""
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    paragraphs = (
        textwrap.fill(one, width, initial_indent=indent, subsequent_indent=indent) for one in text.split("\n\n")
    )
    return "\n\n".join(paragraphs)


def _teach(lesson: Any, number: str, name: str) -> tuple[int, int]:
    """One lesson; the points, and how many there were."""
    from muslin.lab.faults import undo
    from muslin.lab.presets import preset
    from muslin.lab.run import require, up
    from muslin.lab.state import LabDirectory

    directory = LabDirectory(name)
    state = directory.read()
    if state is not None:
        undo(require(directory), directory)
    up(directory, preset(lesson.step))
    state = require(directory)
    line = f"── {number}, on step {lesson.step}: {lesson.title}"
    click.echo(f"\n{click.style(line, bold=True) if use_color() else line}\n\n{_wrapped(lesson.text)}")
    points = sum(_ask(state, question) for question in lesson.questions)
    of = len(lesson.questions)
    if lesson.exercise:
        points += _exercise(state, directory, lesson)
        of += 1
    click.echo(f"\n{points} of {of} points")
    return points, of


def _read(prompt: str) -> str:
    click.echo(f"{prompt} ", nl=False)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if line and not sys.stdin.isatty():
        click.echo(line.strip())  # what a terminal would have shown
    if not line or line.strip().lower() in ("quit", "exit", "q"):
        raise _LeaveError
    return line.strip()


def _ask(state: Any, question: Any) -> int:
    """Predict, then look, then be told."""
    from muslin.lab.lesson_answers import FINDERS, is_answer, is_right
    from muslin.lab.places import lab_network

    click.echo(f"\n{_wrapped(f'? {question.ask}')}")
    given = _read(f"  your prediction ({question.kind}):")
    while not is_answer(given, question.kind):
        given = _read(f"  it takes {EXAMPLES[question.kind]}; quit stops. Your prediction:")
    with lab_network(state) as network:
        right = FINDERS[question.find](network)
    place, command = question.look
    click.echo(f"  {place}$ {' '.join(command)}\n{_look(state, place, command)}")
    good = is_right(given, right)
    told = f"{'✓ right' if good else '✗ no, it is'}: {right}. {question.because}"
    click.echo(_wrapped(told, "  "))
    return int(good)


def _look(state: Any, place: str, command: tuple[str, ...]) -> str:
    """What a command prints in a place, indented."""
    from muslin.kernel.netns import call_in
    from muslin.lab.plan import netns_of

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)

    try:
        done = call_in(netns_of(state.name, place), run)
    except FileNotFoundError:
        return f"    ({command[0]} is not installed here)"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return "\n".join(f"    {line}" for line in lines if line.strip())


def _exercise(state: Any, directory: Any, lesson: Any) -> int:
    """Something is broken; a point for who mends it without having it solved."""
    from muslin.cli.lab_check import run_check
    from muslin.lab.fault_catalogue import FAULTS
    from muslin.lab.faults import HINTS, inject, undo
    from muslin.lab.run import up

    fault = next(one for one in FAULTS if one.name == lesson.fault)
    with directory.locked():
        inject(state, directory, fault, 1)
    click.echo(f"\n{_wrapped(f'! {lesson.exercise}')}\n  In another terminal:")
    for verb, what in OTHER_TERMINAL.items():
        click.echo(f"    {f'muslin lab {verb} --name {state.name}':<42}{what}".rstrip())
    hints = 0
    while True:
        said = _read("  done, hint, or solve?").lower()
        if said == "hint":
            click.echo(_wrapped(fault.hints[min(hints, HINTS - 1)], "  "))
            hints += 1
        elif said == "solve":
            click.echo(_wrapped(f"it was {fault.name}, and is mended for you. {fault.lesson}", "  "))
            break
        elif run_check(state).ok:
            click.echo(_wrapped(f"✓ mended. It was {fault.name}. {fault.lesson}", "  "))
            break
        else:
            click.echo(f"  ✗ not yet: muslin lab check --name {state.name} shows who is hit")
    with directory.locked():
        undo(state, directory)
    up(directory, state.topology)
    return int(said != "solve")
