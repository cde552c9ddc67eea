"""``muslin lab graph``: the lab as it is, drawn."""

from __future__ import annotations

from typing import Any

import click

from muslin.cli.output import emit, output_option
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_OK


@click.command()
@name_option
@click.option(
    "--as", "form", type=click.Choice(["text", "svg", "mermaid"]), default="text", show_default=True,
    help="For the terminal, a browser, or markdown.",
)  # fmt: skip
@output_option
def graph(name: str, form: str, output: str) -> int:
    """Draw the lab as it is at this moment: places, cables, addresses and tunnels; what is down shows.

    \b
    muslin lab graph
    muslin lab graph --as svg > lab.svg
    """
    from muslin.explain import graph_draw
    from muslin.explain.graph import graph_of
    from muslin.lab.places import lab_network
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    state = require(LabDirectory(name))
    with lab_network(state) as network:
        found = graph_of(network, _roles(state))
    draw = {"text": graph_draw.draw_text, "svg": graph_draw.draw_svg, "mermaid": graph_draw.draw_mermaid}[form]
    emit(found, output, lambda: draw(found))
    return EXIT_OK


def _roles(state: Any) -> dict[str, Any]:
    from muslin.lab.agent_plan import etcd_members
    from muslin.lab.enter import place_names

    topology = state.topology
    roles = {name: "container" for name in place_names(state)}
    groups = (
        ("node", topology.nodes),
        ("segment", topology.segments),
        ("router", topology.routers),
        ("store", etcd_members(topology)),
    )
    return roles | {one.name: role for role, group in groups for one in group}
