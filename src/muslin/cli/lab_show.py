"""``muslin lab ls``, ``inspect``, ``diff`` and ``export``: what looks and changes nothing."""

from __future__ import annotations

import time
from typing import Any, Literal

import click
import msgspec

from muslin.cli.output import counted, draw_table, emit, output_option, say
from muslin.cli.topology_options import name_option, topology_from, topology_options
from muslin.errors import EXIT_OK, EXIT_WARNINGS, UsageError


class LabRow(msgspec.Struct, frozen=True, kw_only=True):
    """One lab in the list. ``age_s`` in seconds; ``agents`` and ``ready`` are how many should run, and how many do."""

    name: str
    condition: str
    step: int | None
    backend: str
    nodes: int
    containers: int
    rootless: bool
    age_s: int
    store: str = ""
    """Where its agents find each other; empty where there are none."""
    agents: int = 0
    ready: int = 0


class LabList(msgspec.Struct, frozen=True, kw_only=True):
    """What ``ls -o json`` prints."""

    schema: Literal["muslin.lab-list/v1"] = "muslin.lab-list/v1"
    labs: tuple[LabRow, ...]


@click.command()
@click.option("--name", "-n", default=None, metavar="NAME", help="Only this lab.")
@click.option("--quiet", "-q", is_flag=True, help="Names only.")
@output_option
def ls(name: str | None, quiet: bool, output: str) -> int:
    """List the labs on this machine: those of this user."""
    from muslin.lab.state import lab_names

    rows = tuple(_lab_row(one) for one in lab_names() if name in (None, one))
    if quiet:
        click.echo("".join(f"{row.name}\n" for row in rows), nl=False)
        return EXIT_OK
    columns = ("NAME", "CONDITION", "STEP", "BACKEND", "NODES", "CONTAINERS", "AGENTS", "ROOTLESS", "AGE")
    emit(LabList(labs=rows), output, lambda: draw_table(columns, [_cells(row) for row in rows]))
    if not rows:
        say("no lab is up; raise one with: muslin lab up --step 4")
    return EXIT_OK


def _lab_row(name: str) -> LabRow:
    from muslin.errors import MuslinError
    from muslin.lab.run import condition_of
    from muslin.lab.state import LabDirectory

    directory = LabDirectory(name)
    try:
        state = directory.read()
    except MuslinError:
        state = None
    topology = state.topology if state else None
    return LabRow(
        name=name,
        condition=condition_of(directory),
        step=topology.step if topology else None,
        backend=topology.backend if topology else "",
        nodes=len(topology.nodes) if topology else 0,
        containers=len(topology.containers) if topology else 0,
        rootless=bool(state and state.keeper),
        age_s=round(time.time() - state.created_at) if state else 0,
        **(_agents_of(directory, topology) if topology and topology.agents else {}),
    )


def _agents_of(directory: Any, topology: Any) -> dict[str, Any]:
    """Asked over their sockets, which are files: so it needs no way into the lab's namespaces."""
    from muslin.agent_client import ask_status
    from muslin.lab.agent_plan import agents

    found = [ask_status(agent.socket) for agent in agents(directory.path, topology, str)]
    ready = sum(bool(status and status.ready) for status in found)
    return {"store": topology.agents.store, "agents": len(found), "ready": ready}


def _cells(row: LabRow) -> tuple[str, ...]:
    age = _duration(row.age_s)
    step = str(row.step or "-")
    return (
        row.name,
        row.condition,
        step,
        row.backend,
        str(row.nodes),
        str(row.containers),
        f"{row.ready}/{row.agents} by {row.store}" if row.agents else "-",
        "yes" if row.rootless else "no",
        age,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


@click.command()
@click.argument("place", metavar="[NODE]", required=False)
@name_option
@output_option
def inspect(place: str | None, name: str, output: str) -> int:
    """Show links, addresses and routes of a lab (or of one place in it), and where it is not what it should be.

    Exit code 4 when the lab has drifted; `muslin lab up` with the same options repairs it.
    """
    from muslin.kernel.linux import LinuxKernel
    from muslin.lab.enter import resolve_place
    from muslin.lab.inspect import inspect as look
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    directory = LabDirectory(name)
    state = require(directory)
    only = resolve_place(state, place) if place else None
    with LinuxKernel() as kernel:
        view = look(kernel, state, directory.path, only)
    emit(view, output, lambda: "\n".join(_draw_place(one) for one in view.places))
    if view.drift:
        are = "is" if len(view.drift) == 1 else "are"
        say(f"{counted(len(view.drift), 'thing')} {are} not as it should be; this would mend it:")
        for command in view.drift:
            say(f"  {command}")
    return EXIT_WARNINGS if view.drift else EXIT_OK


def _draw_place(place: Any) -> str:
    tunnel = f"  tunnel: process {place.tunnel_pid}" if place.tunnel_pid else ""
    lines = [f"{place.role} {click.style(place.name, bold=True)}  ({place.netns}){tunnel}"]
    lines += [_agent_words(place.agent)] if place.agent else []
    lines += [_member_words(place.etcd)] if place.etcd else []
    for link in place.links:
        state = "up" if link.up else "down"
        extra = f" port of {link.master}" if link.master else ""
        peer = f" <-> {link.peer}" if link.peer else ""
        addresses = ", ".join(address for address in link.addresses if not address.startswith("fe80")) or "-"
        lines.append(f"  {link.name:<10} {link.kind:<8} {state:<4} mtu {link.mtu:<5} {addresses}{extra}{peer}")
    lines += [f"    route {route}" for route in place.routes]
    return "\n".join(lines) + "\n"


def _agent_words(agent: Any) -> str:
    if agent.pid is None:
        return "  agent: none runs"
    lease = f"leases {', '.join(agent.subnets)}" if agent.subnets else "no lease"
    ends = f" for {_duration(agent.expires_at - time.time())} more" if agent.expires_at else ""
    problems = "".join(f"\n    {problem}" for problem in agent.problems)
    peers = f"{agent.programmed} of {counted(agent.peers, 'peer')} programmed"
    return f"  agent: process {agent.pid}, {'ready' if agent.ready else 'not ready'}, {lease}{ends}, {peers}{problems}"


def _member_words(member: Any) -> str:
    if member.pid is None:
        return "  etcd: none runs"
    return f"  etcd: process {member.pid}, {'serving' if member.healthy else 'not serving'} at {member.endpoint}"


class DiffDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``diff -o json`` prints."""

    schema: Literal["muslin.lab-diff/v1"] = "muslin.lab-diff/v1"
    earlier: int
    later: int
    changes: tuple[Any, ...]


@click.command()
@click.option("--step", "-s", "steps", multiple=True, type=click.IntRange(1, 4), help="Twice: from which, to which.")
@click.option("--all", "everything", is_flag=True, help="Also what is wholly new, or new on the wire between nodes.")
@name_option
@output_option
def diff(steps: tuple[int, ...], everything: bool, name: str, output: str) -> int:
    """Show only the commands that one step adds to another.

    \b
    muslin lab diff --step 2 --step 3
    """
    from muslin.lab.compare import compare
    from muslin.lab.presets import preset

    if len(steps) != 2:
        raise UsageError("diff compares two steps", "for example: muslin lab diff --step 2 --step 3")
    earlier, later = preset(steps[0]), preset(steps[1])  # type: ignore[arg-type]
    changes = compare(name, earlier, later)
    both = {node.name for node in earlier.nodes} & {node.name for node in later.nodes}
    shown = changes if everything else tuple(change for change in changes if change.name in both)
    document = DiffDocument(earlier=steps[0], later=steps[1], changes=shown)
    emit(document, output, lambda: "\n".join(_draw_change(change) for change in shown))
    for change in changes:
        if change not in shown:
            what = "new" if change.whole else "changed for it"
            say(f"# {change.name} is {what}: {len(change.commands)} more lines (--all shows them)")
    return EXIT_OK


def _draw_change(change: Any) -> str:
    new = "" if not change.whole else " (new)"
    gone = [f"# no more: {command}" for command in change.removed]
    return "\n".join([f"# on {change.name}{new}", *gone, *change.commands])


@click.command()
@topology_options
@name_option
@click.option(
    "--as",
    "form",
    type=click.Choice(["sh", "yaml", "json"]),
    default="sh",
    show_default=True,
    help="What to print.",
)
def export(name: str, form: str, **shape: Any) -> int:
    """Print a lab as a shell script that rebuilds it without muslin (but for agents), or as a topology file.

    Without --step or --topology it is the lab that is up.

    \b
    muslin lab export --step 4 --as sh > lab.sh;  sudo sh lab.sh;  sudo sh lab.sh down
    """
    from muslin.lab.state import LabDirectory

    state = LabDirectory(name).read() if not any(shape.values()) else None
    topology = state.topology if state else topology_from(**shape)
    click.echo(_export(name, form, topology), nl=False)
    return EXIT_OK


def _export(name: str, form: str, topology: Any) -> str:
    if form == "sh":
        from muslin.lab.export import shell_script
        from muslin.lab.plan import plan

        return shell_script(name, plan(name, topology), *_programs(name, topology))
    if form == "yaml":
        from muslin.lab.topology_file import dump_topology

        return dump_topology(topology)
    return msgspec.json.format(msgspec.json.encode(topology), indent=2).decode() + "\n"


def _programs(name: str, topology: Any) -> tuple[Any, Any]:
    """Agents and members of etcd for a script, which has a directory of its own for their files."""
    from functools import partial

    from muslin.lab.agent_plan import agents, members
    from muslin.lab.plan import netns_of

    directory, place = f"/run/muslin-script-{name}", partial(netns_of, name)
    return agents(directory, topology, place), members(directory, topology, place)
