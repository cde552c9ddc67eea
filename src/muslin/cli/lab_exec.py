"""``muslin lab exec`` and ``shell``: be inside of a node or container."""

from __future__ import annotations

import os

import click

from muslin.cli.topology_options import name_option


def complete_places(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The places of the lab that ``--name`` names, for the shell."""
    from muslin.lab.enter import place_names
    from muslin.lab.state import LabDirectory

    state = LabDirectory(context.params.get("name") or "lab").read()
    return [place for place in place_names(state) if place.startswith(incomplete)] if state else []


place_argument = click.argument("place", metavar="NODE", shell_complete=complete_places)


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@place_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def exec_(name: str, place: str, command: tuple[str, ...]) -> None:
    """Run a command in a node (`node1`), container (`con1.node1`), router or segment; its exit code is ours.

    \b
    muslin lab exec node1 -- ip route
    muslin lab exec con1.node1 -- ping -c 1 172.16.1.2
    """
    from muslin.lab.enter import become, resolve_place
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("which command? For example: muslin lab exec node1 -- ip addr")
    state = require(LabDirectory(name))
    become(state, resolve_place(state, place), words, {})


@click.command()
@name_option
@place_argument
def shell(name: str, place: str) -> None:
    """Open a shell in a node, container, router or segment."""
    from muslin.lab.enter import become, resolve_place
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    state = require(LabDirectory(name))
    full = resolve_place(state, place)
    program = os.environ.get("SHELL") or "/bin/sh"
    # A start-up file would put its own prompt over the one that says where we are.
    quiet = ("--norc",) if os.path.basename(program) == "bash" else ()
    become(state, full, (program, *quiet), {"PS1": f"[{name}: {full}] # "})
