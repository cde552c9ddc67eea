"""The options that say what a lab looks like, the same for every verb that takes a topology."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from muslin.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

FAMILIES = {"4": (4,), "6": (6,), "dual": (4, 6)}
FILE_PATTERN = "*.muslin.yaml"
AGENTS_STEP = 4  # what --agents means where nothing else is said


def name_option(function: Function) -> Function:
    """``--name`` of the lab, on every verb."""
    from muslin.lab.paths import DEFAULT_LAB

    return click.option(
        "--name",
        "-n",
        default=DEFAULT_LAB,
        show_default=True,
        metavar="NAME",
        help="Which lab.",
        shell_complete=_complete_labs,
    )(function)


def _complete_labs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from muslin.lab.state import lab_names

    return [name for name in lab_names() if name.startswith(incomplete)]


def topology_options(function: Function) -> Function:
    """All options that make a topology; the verb gets them as keywords and hands them to ``topology_from``."""
    options = (
        click.option("--step", "-s", type=click.IntRange(1, 4), help="The talk's step."),
        click.option(
            "--topology",
            "-t",
            "file",
            metavar="FILE",
            type=click.Path(dir_okay=False, allow_dash=True),
            help="A topology file (YAML or JSON), - for stdin.",
        ),
        click.option("--nodes", type=click.IntRange(1), help="Number of nodes (steps 3 and 4)."),
        click.option("--containers", type=click.IntRange(1), help="Number of containers on each node."),
        click.option(
            "--underlay",
            type=click.Choice(["l2", "routed"]),
            help="One network, or one a node behind a router.",
        ),
        click.option("--family", type=click.Choice(list(FAMILIES)), help="IPv4, IPv6 or both."),
        click.option(
            "--backend",
            type=click.Choice(["none", "host-gw", "udp", "vxlan"]),
            help="What carries packets between nodes, if not the step's own.",
        ),
        click.option(
            "--tunnel",
            type=click.Choice(["c", "python"]),
            help="The tunnel of the backend udp: in C (the default where it was built), or the Python text.",
        ),
        click.option("--agents", is_flag=True, default=None, help="Run a real agent on each node (step 3 or 4)."),
        click.option(
            "--store", type=click.Choice(["sqlite", "etcd"]), help="Where the agents find each other (default: sqlite)."
        ),
        click.option(
            "--lease-ttl",
            "lease_ttl_s",
            type=click.IntRange(1),
            metavar="SECONDS",
            help="How long a node's subnet outlives its agent (default: a day).",
        ),
        click.option("--mtu", type=click.IntRange(576, 65535), help="MTU of the underlay, in bytes."),
        click.option("--network", "networks", multiple=True, metavar="PREFIX", help="The container network."),
        click.option(
            "--underlay-network", "underlays", multiple=True, metavar="PREFIX", help="The nodes' own network."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def topology_from(
    *,
    step: int | None,
    file: str | None,
    nodes: int | None = None,
    containers: int | None = None,
    underlay: str | None = None,
    family: str | None = None,
    backend: str | None = None,
    tunnel: str | None = None,
    agents: bool | None = None,
    store: str | None = None,
    lease_ttl_s: int | None = None,
    mtu: int | None = None,
    networks: tuple[str, ...] = (),
    underlays: tuple[str, ...] = (),
) -> Any:
    """The resolved, checked topology that the options ask for; UsageError when they make no sense."""
    shape = {
        "nodes": nodes,
        "containers": containers,
        "underlay": underlay,
        "families": FAMILIES[family] if family else None,
        "backend": backend,
        "tunnel": tunnel,
        "agents": _agents(agents, store, lease_ttl_s),
        "mtu": mtu,
        "networks": networks or None,
        "underlay_prefix": underlays or None,
    }
    given = {key: value for key, value in shape.items() if value is not None}
    if step is None and file is None and agents:
        step = AGENTS_STEP
    if step is None and file is None:
        file = _only_file()
    if step is not None and file is not None:
        raise UsageError("--step and --topology exclude each other", "give one of them")
    if step is None:
        if given:
            words = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise UsageError(f"a topology file says everything itself, so it goes without {words}")
        return _load(str(file))
    from muslin.lab.presets import preset

    return preset(step, **given)  # type: ignore[arg-type]


def _agents(wanted: bool | None, store: str | None, lease_ttl_s: int | None) -> Any:
    """What the agents are to be like; None for a lab without."""
    given = {"store": store, "lease_ttl_s": lease_ttl_s}
    given = {key: value for key, value in given.items() if value is not None}
    if not wanted:
        if given:
            raise UsageError("--store and --lease-ttl speak of agents, which this lab has none of", "add --agents")
        return None
    from muslin.lab.topology import Agents

    return Agents(**given)  # type: ignore[arg-type]


def _only_file() -> str:
    found = sorted(glob.glob(FILE_PATTERN))
    if len(found) > 1:
        raise UsageError(f"{len(found)} topology files here: {', '.join(found)}", "say which with --topology FILE")
    if not found:
        raise UsageError(
            "what should the lab look like?",
            f"give --step 1|2|3|4 or --topology FILE (or keep one {FILE_PATTERN} in this directory)",
        )
    return found[0]


def _load(file: str) -> Any:
    from muslin.lab.topology_file import load_topology

    if file == "-":
        return load_topology("stdin", sys.stdin.buffer.read())
    try:
        with open(file, "rb") as opened:
            return load_topology(file, opened.read())
    except OSError as error:
        raise UsageError(f"the topology file {file} cannot be read: {error.strerror}") from None
