"""``muslin status``: how the agent of this host is, whom it reaches, and what is wrong.

Theory of operation: the agent's own document, asked for over its socket, drawn as a head, a row for each peer, and
sentences. The same document decides on the exit code. What it says is not second-guessed here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from muslin.cli.output import emit, output_option, say
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_WARNINGS

if TYPE_CHECKING:
    from muslin.wire.agent_api import AgentStatus

PROBED_PEERS = 64
"""Up to so many are asked without being told to."""
POLL_S = 0.25


@click.command()
@click.option("--socket", "path", metavar="PATH", help="The agent's socket.  [default: by MUSLIN_AGENT_RUN_DIR]")
@click.option("--probe/--no-probe", default=None, help="Ask each peer by echo requests (default: up to 64 peers).")
@click.option("--all", "-a", "everything", is_flag=True, help="List every peer, also of many.")
@click.option("--wait", is_flag=True, help="Wait until the node is ready.")
@click.option(
    "--wait-duration",
    "wait_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long.",
)
@output_option
def status(path: str | None, probe: bool | None, everything: bool, wait: bool, wait_s: float, output: str) -> int:
    """Show how the agent of this host is, whom it reaches, and what is wrong.

    UNDERLAY is the answer of the other host, OVERLAY that of its end of the container network.

    Exit code 0: all fine; 1: not ready, or something is wrong; 3: no agent; 4: warnings only.
    """
    from muslin.agent.diagnosis import explain_faults
    from muslin.agent_client import default_socket
    from muslin.cli.status_view import draw

    found = look(path or default_socket(), probe, wait_s if wait else 0.0)
    faults = explain_faults(found)
    emit(found, output, lambda: draw(found, faults.wrong, faults.warnings, everything))
    if not found.ready or not found.healthy or faults.wrong:
        return EXIT_CHECK_FAILED
    return EXIT_WARNINGS if faults.warnings else EXIT_OK


def look(path: str, probe: bool | None, wait_s: float) -> AgentStatus:
    """Ask the agent; within ``wait_s`` until it is ready. NoAgentError when there is none to the end."""
    from muslin.agent_client import fetch_status

    found = _wait_for(path, wait_s) if wait_s else fetch_status(path)
    if wait_s and not found.ready:
        say(f"the node is not ready after {wait_s:g} s")
    if probe or (probe is None and len(found.peers) <= PROBED_PEERS):
        # Three requests a peer, each sent twice where nothing answers, at 500 a second.
        found = fetch_status(path, probe=True, timeout_s=10 + len(found.peers) * 6 / 500)
    return found


def _wait_for(path: str, wait_s: float) -> AgentStatus:
    from muslin.agent_client import NoAgentError, fetch_status

    deadline = time.monotonic() + wait_s
    while True:
        late = time.monotonic() >= deadline
        try:
            found = fetch_status(path)
            if found.ready or late:
                return found
        except NoAgentError:
            if late:
                raise
        time.sleep(POLL_S)
