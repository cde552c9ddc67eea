"""``muslin lab adopt``: which step a network made by hand amounts to, and what it lacks."""

from __future__ import annotations

from typing import Any

import click

from muslin.cli.output import counted, emit, output_option, say
from muslin.errors import EXIT_OK, EXIT_WARNINGS, UsageError

TITLES = {1: "a single namespace", 2: "a node with a bridge", 3: "routes between nodes", 4: "an overlay"}


@click.command()
@click.argument("names", metavar="[NETNS]...", nargs=-1)
@output_option
def adopt(names: tuple[str, ...], output: str) -> int:
    """Look at namespaces that were made by hand, and say which of the four steps they are, and what is missing.

    Without names it looks at this host and at all that `ip netns` names. Nothing is changed. Exit code 0: nothing is
    missing; 4: something is.

    \b
    ip netns add con; ip link add veth1 type veth peer name veth2 netns con; ...
    muslin lab adopt
    """
    from muslin.cli.host_network import HOST, host_network
    from muslin.explain.adopt import recognise

    with host_network() as network:
        unknown = [name for name in names if name not in network]
        if unknown:
            raise UsageError(f"there is no network namespace {unknown[0]!r}", "see: ip netns")
        seen = {name: network[name] for name in (names or network)}
        found = recognise(seen, HOST)
    emit(found, output, lambda: "\n\n".join(_draw(node) for node in found.nodes))
    if not found.nodes:
        say("no namespace here hangs on a cable to another: begin with muslin lab up --step 1 --print-commands")
    return EXIT_WARNINGS if any(node.missing for node in found.nodes) else EXIT_OK


def _draw(node: Any) -> str:
    lines = [f"{node.place}: step {node.step}, {TITLES[node.step]}; {counted(len(node.containers), 'container')}"]
    lines[0] += f" ({', '.join(node.containers)})"
    if not node.missing:
        lines.append("  ✓ nothing is missing")
    for lack in node.missing:
        lines.append(f"  ✗ {lack.place}: {lack.what}")
        lines += [f"      {lack.command}"] if lack.command else []
    return "\n".join(lines)
