"""``muslin lab up``, ``down`` and ``prune``: what changes a lab."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal

import click
import msgspec

from muslin.cli.output import counted, emit, output_option, say
from muslin.cli.topology_options import name_option, topology_from, topology_options
from muslin.errors import EXIT_OK, EXIT_WARNINGS, MuslinError, UsageError


class UpDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``up -o json`` prints."""

    schema: Literal["muslin.lab-up/v1"] = "muslin.lab-up/v1"
    name: str
    fresh: bool
    dry_run: bool
    commands: tuple[str, ...]
    tunnels: int
    programs: tuple[str, ...]
    """Nodes whose agent, and members of etcd that, are started."""
    warnings: tuple[str, ...]


@click.command()
@topology_options
@name_option
@click.option("--dry-run", is_flag=True, help="Print the commands and change nothing.")
@click.option("--print-commands", is_flag=True, help="Print each command ahead of its execution.")
@click.option("--pause", is_flag=True, help="Wait for Enter ahead of each command.")
@click.option("--allow-overlap", is_flag=True, help="Use addresses that this host has routes to: a lab is isolated.")
@output_option
def up(
    name: str,
    dry_run: bool,
    print_commands: bool,
    pause: bool,
    allow_overlap: bool,
    output: str,
    **shape: Any,
) -> int:
    """Raise a lab; repair it, or turn it into another one, if it is up already.

    \b
    muslin lab up --step 3
    muslin lab up --step 4 --underlay routed --nodes 5 --containers 10
    muslin lab up --topology examples/routed.yaml --name mine
    muslin lab up --agents --backend vxlan    each node runs an agent, as a machine would
    muslin lab up --step 2 --pause            the talk's live demo, command by command
    """
    from muslin.lab.state import LabDirectory

    topology = topology_from(**shape)
    directory = LabDirectory(name)
    if not allow_overlap:
        refuse_overlap(topology)
    if dry_run:
        return _dry_run(directory, topology, output)
    return _up(directory, topology, output, print_commands or pause, pause)


def refuse_overlap(topology: Any) -> None:
    """UsageError when this host has routes into the lab's networks: people would take one for the other."""
    from muslin.kernel.routes import routed_prefixes
    from muslin.lab.overlaps import host_conflicts

    problems = host_conflicts(topology, routed_prefixes())
    if problems:
        raise UsageError("\n".join(problem.message for problem in problems))


def _dry_run(directory: Any, topology: Any, output: str) -> int:
    from muslin.lab.export import command_lines
    from muslin.lab.run import preview

    found = preview(directory, topology)
    commands = tuple(command_lines(found.ops, found.tunnels, found.commands, found.late_ops))
    warnings = tuple(refusal.reason for refusal in found.plan.refusals)
    document = UpDocument(
        name=directory.name,
        fresh=directory.read() is None,
        dry_run=True,
        commands=commands,
        tunnels=len(found.tunnels),
        programs=found.programs,
        warnings=warnings,
    )
    emit(document, output, lambda: "\n".join(commands))
    if found.reconfigures:
        say(f"the agents would be told, by their store, to follow the backend {topology.backend}")
    elif not commands:
        say(f"lab {directory.name!r} is up and as it should be: nothing to do")
    return _warn(warnings)


def _up(directory: Any, topology: Any, output: str, show: bool, pause: bool) -> int:
    from muslin.lab.run import up as raise_lab
    from muslin.tunnel.programs import why_python

    def show_command(command: str) -> None:
        click.echo(command, err=output != "table")
        if pause:
            _wait_for_enter()

    with _Progress(directory.name, wanted=not show and len(topology.containers) > 20) as advance:
        report = raise_lab(directory, topology, show_command if show else advance, one_by_one=pause)
    warnings = tuple(refusal.reason for refusal in report.refusals)
    document = UpDocument(
        name=directory.name,
        fresh=report.fresh,
        dry_run=False,
        commands=tuple(result.op.describe() for result in report.report.results),
        tunnels=len(report.started),
        programs=report.programs,
        warnings=warnings,
    )
    emit(document, output, lambda: "")
    say(_summary(directory.name, topology, report))
    if report.started and (words := why_python(topology.tunnel)):
        say(words)
    return _warn(warnings)


def _summary(name: str, topology: Any, report: Any) -> str:
    if not report.changed:
        return f"lab {name!r} was up already, and as it should be"
    word = "is up" if report.fresh else "is now"
    what = f"step {topology.step}: " if topology.step else ""
    size = f"{what}{counted(len(topology.nodes), 'node')}, {counted(len(topology.containers), 'container')}"
    size += f" ({counted(len(report.report.results), 'command')}{_programs(topology, report)})"
    option = "" if name == "lab" else f" --name {name}"
    return (
        f"lab {name!r} {word} {size}\n"
        f"  next: muslin lab check{option} · muslin lab shell{option} {topology.nodes[0].name}"
        f" · muslin lab down{option}"
    )


def _programs(topology: Any, report: Any) -> str:
    """What there is to say of agents: how many were started, and whether the others were told something new."""
    nodes = {node.name for node in topology.nodes}
    agents = sum(name in nodes for name in report.programs)
    members = len(report.programs) - agents
    told = "the agents told" if report.reconfigured and not report.fresh else ""
    parts = [
        counted(agents, "agent") if agents else "",
        counted(members, "member") + " of etcd" if members else "",
        told,
    ]
    return "".join(f", {part}" for part in parts if part)


def _warn(warnings: tuple[str, ...]) -> int:
    for warning in dict.fromkeys(warnings):
        say(f"warning: {warning}")
    return EXIT_WARNINGS if warnings else EXIT_OK


def _wait_for_enter() -> None:
    click.echo("  [Enter] runs it, Ctrl-C takes everything back ", err=True, nl=False)
    if not sys.stdin.readline():
        raise KeyboardInterrupt


class _Progress:
    """A line on stderr that counts, for work that takes more than a moment."""

    def __init__(self, name: str, wanted: bool) -> None:
        self._name = name
        self._wanted = wanted and sys.stderr.isatty()
        self._count = 0

    def __enter__(self) -> Any:
        return self.advance

    def advance(self, _command: str) -> None:
        """One more command."""
        self._count += 1
        if self._wanted and self._count % 25 == 0:
            click.echo(f"\rraising lab {self._name!r}: {self._count} commands", err=True, nl=False)

    def __exit__(self, *_: object) -> None:
        if self._wanted and self._count >= 25:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.command()
@click.argument("lab_name", metavar="[NAME]", required=False)
@name_option
@click.option("--all", "every", is_flag=True, help="All labs of this user.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before --all.")
@output_option
def down(lab_name: str | None, name: str, every: bool, yes: bool, output: str) -> int:
    """Take a lab away: its namespaces, all that runs in them, and its files. No topology file is needed."""
    from muslin.lab.state import lab_names

    names = lab_names() if every else [lab_name or name]
    if every and names and not yes:
        click.confirm(f"Take away {', '.join(names)}?", abort=True, err=True)
    reports = [_down_one(one) for one in names]
    document = {"schema": "muslin.lab-down/v1", "labs": reports}
    emit(document, output, lambda: "")
    return EXIT_OK


def _down_one(name: str) -> dict[str, Any]:
    from muslin.lab.run import down as take_away
    from muslin.lab.state import LabDirectory

    report = take_away(LabDirectory(name))
    if not report.existed:
        say(f"there is no lab {name!r}: nothing to do")
    else:
        ended = f" and ended {counted(report.ended, 'process')}" if report.ended else ""
        say(f"lab {name!r} is gone: removed {counted(len(report.removed), 'namespace')}{ended}")
    return {"name": name, "existed": report.existed, "removed": report.removed, "ended": report.ended}


@click.command()
@click.option("--name", "-n", default=None, metavar="NAME", help="Only this lab.")
@click.option("--dry-run", is_flag=True, help="Only list.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def prune(name: str | None, dry_run: bool, yes: bool) -> int:
    """Clear away labs that are half up, lost in a reboot or not understood, and namespaces without a lab."""
    found = list(_leftovers(name))
    if not found:
        say("nothing to clear away")
        return EXIT_OK
    for what, _ in found:
        click.echo(what)
    if dry_run:
        return EXIT_OK
    if not yes:
        click.confirm("Remove these?", abort=True, err=True)
    for what, remove in found:
        remove()
        say(f"removed {what}")
    return EXIT_OK


def _leftovers(only: str | None) -> Iterator[tuple[str, Any]]:
    """(what it is, a function that removes it) for everything that no healthy lab accounts for."""
    from functools import partial

    from muslin.lab.run import condition_of, orphans, remove_orphan
    from muslin.lab.state import LabDirectory, lab_names

    for name in lab_names():
        directory = LabDirectory(name)
        condition = condition_of(directory)
        if only in (None, name) and condition != "up":
            yield f"lab {name!r} ({condition})", partial(_remove_lab, directory)
    for netns in orphans():
        if only is None or netns.startswith(f"muslin-{only}-"):
            yield f"namespace {netns}, of no lab", partial(remove_orphan, netns)


def _remove_lab(directory: Any) -> None:
    from muslin.lab.run import down as take_away

    try:
        take_away(directory)
    except MuslinError:
        with directory.locked():
            directory.remove()
