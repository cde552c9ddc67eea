"""``muslin lab demo``: the story of the four steps, told on real networks."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import click

from muslin.cli.lab_check import draw_report, run_check
from muslin.cli.output import counted, use_color
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

DEMO_LAB = "demo"


@click.command()
@click.option("--step", "-s", "steps", multiple=True, type=click.IntRange(1, 4), help="Only these steps.")
@click.option("--pause", is_flag=True, help="Wait for Enter after each step.")
@click.option("--name", "-n", default=DEMO_LAB, show_default=True, metavar="NAME", help="Name of the demo's lab.")
def demo(steps: tuple[int, ...], pause: bool, name: str) -> int:
    """Tell the story of all four steps, with their checks, and clean up.

    Each step turns the network of the one before into the next; only the commands that this takes are shown.
    Needs no root where the system allows user namespaces.
    """
    from muslin.lab.run import down
    from muslin.lab.state import LabDirectory
    from muslin.lab.story import STORY

    directory = LabDirectory(name)
    if directory.read() is not None:
        raise UsageError(
            f"a lab {name!r} is there already",
            f"take it away with: muslin lab down {name}, or give another --name",
        )
    _title("Muslin: from nothing to an overlay network in four steps")
    click.echo(
        "R1 all containers reach all containers · R2 nodes and containers reach each other · R3 the address\n"
        "that a container has is the one that others see. All of it without NAT, and proved after each step."
    )
    chapters = [chapter for chapter in STORY if not steps or chapter.step in steps]
    try:
        passed = [_tell(directory, chapter, pause and chapter is not chapters[-1]) for chapter in chapters]
    finally:
        report = down(directory)
    _title("Cleaned up")
    gone = f"{counted(len(report.removed), 'namespace')} and {counted(report.ended, 'process')}"
    click.echo(f"{gone} are gone; nothing is left behind.")
    if all(passed):
        click.echo("\nNow yourself:  muslin lab up --step 4;  muslin lab shell con1.node1;  muslin lab --help")
    return EXIT_OK if all(passed) else EXIT_CHECK_FAILED


def _title(text: str) -> None:
    line = f"── {text} " + "─" * max(0, 96 - len(text))
    click.echo(f"\n{click.style(line, fg='cyan', bold=True) if use_color() else line}")


def _tell(directory: Any, chapter: Any, pause: bool) -> bool:
    """One step: picture, idea, commands, a look, the verdict."""
    from muslin.lab.presets import preset
    from muslin.lab.run import require, up

    topology = preset(chapter.step)
    _title(f"Step {chapter.step}: {chapter.title}")
    click.echo(f"\n{chapter.picture}\n{chapter.idea}\n")
    _show_commands(directory, topology)
    up(directory, topology)
    state = require(directory)
    for what, place, command in chapter.look:
        _look(state, what, place, command)
    report = run_check(state)
    click.echo(f"\n{draw_report(report, heatmap=True) if report.ok else draw_report(report)}")
    if pause:
        click.echo("\n[Enter] goes on to the next step ", err=True, nl=False)
        sys.stdin.readline()
    return bool(report.ok)


def _show_commands(directory: Any, topology: Any) -> None:
    from muslin.lab.export import command_lines
    from muslin.lab.run import preview

    found = preview(directory, topology)
    for line in command_lines(found.ops, found.tunnels):
        click.echo(click.style(line, dim=True) if line.startswith("#") and use_color() else f"  {line}")


def _look(state: Any, what: str, place: str, command: tuple[str, ...]) -> None:
    """Run one command in a place and show its output, as a person at its prompt would see it."""
    from muslin.kernel.netns import call_in
    from muslin.lab.plan import netns_of

    click.echo(f"\n{what}\n  {place}$ {' '.join(command)}")
    try:
        done = call_in(
            netns_of(state.name, place),
            lambda: subprocess.run(command, capture_output=True, text=True, check=False, timeout=10),
        )
    except FileNotFoundError:
        click.echo(f"  ({command[0]} is not installed here)")
        return
    for line in (done.stdout or done.stderr).splitlines():
        if line.strip():
            click.echo(f"    {line}")
