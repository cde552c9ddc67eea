"""``muslin cni show``: the containers that runtimes have had connected on this host, as the agent knows them."""

from __future__ import annotations

import time

import click

from muslin.cli.output import draw_table, emit, output_option
from muslin.cli.status_view import duration
from muslin.errors import EXIT_OK
from muslin.wire.agent_api import ContainerList

COLUMNS = ("CONTAINER", "INTERFACE", "NETWORK", "ADDRESS", "MAC", "CABLE", "SINCE")
ID_SHOWN = 12
"""Characters; runtimes show as many."""


@click.command()
@click.option("--socket", metavar="PATH", help="The agent's socket.  [default: by MUSLIN_AGENT_RUN_DIR]")
@click.option("--full", is_flag=True, help="Show container ids whole.")
@output_option
def show(socket: str | None, full: bool, output: str) -> int:
    """List the containers that are connected: their addresses, and the node's end of each one's cable.

    One that has died without its runtime saying so stays listed for as long as it keeps its address.
    """
    from muslin.agent_client import default_socket, fetch_containers

    found = fetch_containers(socket or default_socket())
    emit(found, output, lambda: _draw(found, full))
    return EXIT_OK


def _draw(found: ContainerList, full: bool) -> str:
    now = time.time()
    rows: list[tuple[str, ...]] = [
        (
            one.container_id if full else one.container_id[:ID_SHOWN],
            one.interface,
            one.network or "-",
            " ".join(one.addresses),
            one.mac,
            one.cable,
            f"{duration(now - one.since)} ago",
        )
        for one in found.containers
    ]
    return draw_table(COLUMNS, rows) or "no container is connected"
