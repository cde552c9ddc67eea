"""``muslin network``: the network's configuration and its leases, as they stand in the store."""

from __future__ import annotations

import click

from muslin.cli.main import CONTEXT_SETTINGS, LazyGroup


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    aliases={"ls": "show"},
    lazy={
        "show": ("muslin.cli.network_show:show", "Print the network's configuration and all leases."),
        "set": ("muslin.cli.network_change:set_", "Write the network's configuration."),
        "reserve": ("muslin.cli.network_change:reserve", "Keep a subnet for a node, without an end."),
        "release": ("muslin.cli.network_change:release", "Remove a lease or a reservation."),
    },
)
def network() -> None:
    """The network that all nodes share, as it stands in the store: its configuration, and who has which subnet.

    These verbs need no agent. They find the store by the agent's settings; `muslin config show` prints them.

    \b
    Exit codes: 0 fine · 1 the store cannot be asked, or somebody was faster · 2 wrong usage or
    configuration · 3 a privilege or package is missing · 4 warnings only · 130 interrupted.
    """
