"""``muslin lab routes`` and ``muslin routes``: the tables as the kernel decides, each route with its type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from muslin.cli.lab_exec import complete_places
from muslin.cli.output import draw_table, emit, output_option, use_color
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_OK

COLUMNS = ("ORDER", "TYPE", "ROUTE", "TABLE", "METRIC", "BY")
_every_option = click.option("--all", "-a", "everything", is_flag=True, help="Also link-local, loopback and broadcast.")


@click.command("routes")
@click.argument("place", metavar="[NODE]", required=False, shell_complete=complete_places)
@name_option
@_every_option
@output_option
def lab_routes(place: str | None, name: str, everything: bool, output: str) -> int:
    """List the routes of a node, container or router (default: of all) in the order in which the kernel takes them.

    Each has its type: local, directly connected, static, dynamic, default. A line below says where the talk's
    order of types would choose another route than the kernel, whose order is policy rule, longest prefix, metric.

    \b
    muslin lab routes node1
    """
    from muslin.lab.enter import resolve_place
    from muslin.lab.places import lab_network
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    state = require(LabDirectory(name))
    segments = {segment.name for segment in state.topology.segments}
    with lab_network(state) as network:
        places = [resolve_place(state, place)] if place else [one for one in network if one not in segments]
        return _show((network[one] for one in places), everything, output)


@click.command("routes")
@click.argument("place", metavar="[NETNS]", required=False)
@_every_option
@output_option
def routes(place: str | None, everything: bool, output: str) -> int:
    """List this host's routes (or those of a network namespace) in the order in which the kernel takes them.

    See `muslin lab routes --help` for what is told of each.
    """
    from muslin.cli.host_network import HOST, host_network, no_namespace

    with host_network() as network:
        if place is not None and place not in network:
            raise no_namespace(place, "see: ip netns")
        return _show((network[one] for one in [place or HOST]), everything, output)


def _show(sights: Iterable[Any], everything: bool, output: str) -> int:
    from muslin.explain.tables import RoutesDocument, routes_of

    found = tuple(one for sight in sights for one in routes_of(sight, everything))
    emit(RoutesDocument(places=found), output, lambda: "\n\n".join(_draw(one) for one in found))
    return EXIT_OK


def _draw(found: Any) -> str:
    title = f"{found.place}, IPv{found.family}"
    rules = " · ".join(f"{rule.priority}: {rule.text}" for rule in found.rules)
    rows: list[tuple[str, ...]] = [
        (str(row.order), row.type, row.text, row.table, str(row.metric), row.protocol) for row in found.routes
    ]
    table = draw_table(COLUMNS, rows).splitlines()
    lines = [table[0]]
    for row, text in zip(found.routes, table[1:], strict=True):
        lines.append(text)
        lines += [f"       ≠ {row.differs}"] if row.differs else []
    head = click.style(title, bold=True) if use_color() else title
    return "\n".join([head, f"rules: {rules}", *lines])
