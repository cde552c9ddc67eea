"""The agent's API: which address shows what, on the unix socket and on TCP.

Theory of operation: the loop is known here by the protocol ``Node`` alone, so that the API is tested without one. The
documents are those of ``wire.agent_api``. On the unix socket, which only its owner may open:

    GET  /v1/status    all of it; ?probe=1 asks the peers by echo requests first
    GET  /v1/peers     the peers alone; ?probe=1 and, any number of times, ?name=10.5.34.0-24
    GET  /v1/health    whether the loop is alive: 200, or 503 with the reason
    GET  /v1/events    a line of JSON for each event, for as long as the reader stays; ?since=N behind event N,
                       ?follow=0 ends with the last one. An empty line now and then shows that we are there
    GET  /v1/metrics   Prometheus' text, also as /metrics
    POST /v1/stop      end; {"release": true} gives the lease back first. Answers at once, with 202

On TCP, where anybody may ask: /healthz, /readyz and /metrics, which say nothing that would be worth hiding.
"""

from __future__ import annotations

from typing import Protocol

from muslin.agent.events import EventLog
from muslin.agent.metrics import Counters
from muslin.wire.agent_api import AgentStatus


class Node(Protocol):
    """What the API needs of the loop. Nothing here may block: the API runs in the loop's own thread."""

    @property
    def events(self) -> EventLog:
        """What has happened."""

    @property
    def counters(self) -> Counters:
        """What the metrics need beyond the status."""

    def status(self) -> AgentStatus:
        """How things are at this moment, without probes."""

    def health(self) -> tuple[bool, str]:
        """Whether the loop is alive, and if not, a sentence that says why."""

    async def stop(self, release: bool) -> None:
        """Note the wish to end, and with ``release`` to give the lease back before; return without waiting for it."""
