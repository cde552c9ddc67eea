"""``muslin tunnel``: the user-space tunnels of this namespace, asked what they have counted."""

from __future__ import annotations

import os
import signal
import stat
from typing import Any, Literal

import click
import msgspec

from muslin.cli.main import CONTEXT_SETTINGS, LazyGroup
from muslin.cli.output import draw_table, emit, output_option
from muslin.errors import EXIT_OK, MuslinError, UsageError

ANSWER_TIMEOUT_S = 2.0


class TunnelStats(msgspec.Struct, frozen=True, kw_only=True):
    """One tunnel. ``peers``: by endpoint, what was counted of it by reason; only of those that were heard of."""

    pid: int
    program: str
    device: str
    listen: str
    counters: dict[str, int]
    peers: dict[str, dict[str, int]] = {}


class StatsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``stats -o json`` prints."""

    schema: Literal["muslin.tunnel-stats/v1"] = "muslin.tunnel-stats/v1"
    tunnels: tuple[TunnelStats, ...]


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    lazy={"stats": ("muslin.cli.tunnel:stats", "What the tunnels have carried and dropped, and why, by peer.")},
)
def tunnel() -> None:
    """The user-space tunnels that agents and labs run (the backend udp)."""


@click.command()
@click.option("--netns", default="", metavar="NAME", help="Of this network namespace, such as muslin-lab-node1.")
@output_option
def stats(netns: str, output: str) -> int:
    """Print what the tunnels have carried and dropped, and why; the one in C tells it by peer, too.

    \b
    muslin tunnel stats
    muslin tunnel stats --netns muslin-lab-node1
    """
    from muslin.kernel import programs

    found = programs.find(programs.TUNNEL_MARK, [netns])
    if not found:
        place = f"the network namespace {netns}" if netns else "this network namespace"
        raise UsageError(f"no tunnel runs in {place}", "say which with --netns; `ip netns` lists those of labs")
    document = StatsDocument(tunnels=tuple(_ask(program) for program in found))
    emit(document, output, lambda: "\n\n".join(_draw(each) for each in document.tunnels))
    return EXIT_OK


def _ask(program: Any) -> TunnelStats:
    from muslin.agent.tunnel_counters import PEERS_LINE, SUMS_LINE, parse_counters, parse_peers
    from muslin.kernel import programs

    told = dict(word.lstrip("-").split("=", 1) for word in program.arguments if "=" in word)
    counters = _hear(program, signal.SIGUSR1, SUMS_LINE)
    peers = ""
    if programs.catches(program, signal.SIGUSR2):  # it would end the Python one
        peers = _hear(program, signal.SIGUSR2, PEERS_LINE)
    return TunnelStats(
        pid=program.pid,
        program=" ".join(program.words[: len(program.words) - len(program.arguments)]),
        device=told.get("device", ""),
        listen=told.get("listen", ""),
        counters=parse_counters(counters),
        peers=parse_peers(peers),
    )


def _hear(program: Any, number: signal.Signals, start: str) -> str:
    """The line that answers a signal; MuslinError when there is none to be had."""
    from muslin.kernel import programs

    log, attempt = f"/proc/{program.pid}/fd/2", f"cannot ask the tunnel with process number {program.pid}"
    try:
        is_file, offset_bytes = stat.S_ISREG(os.stat(log).st_mode), os.stat(log).st_size
        if not is_file:
            raise MuslinError(f"{attempt}: it does not write to a file", f"kill -{number.name[3:]} has it speak there")
        programs.send_signal(program, number)
    except OSError as error:
        raise MuslinError(f"{attempt}: {error.strerror}") from error
    line = programs.wait_for_line(log, (start,), lambda: program.is_alive, ANSWER_TIMEOUT_S, offset_bytes)
    if line is None:
        raise MuslinError(f"{attempt}: it did not answer within {ANSWER_TIMEOUT_S:g} s")
    return line


def _draw(found: TunnelStats) -> str:
    head = f"process {found.pid} between {found.device} and {found.listen} ({found.program})"
    rows: list[tuple[str, ...]] = [("all", name, f"{count:,}") for name, count in found.counters.items() if count]
    for peer, counters in found.peers.items():
        rows += [(peer, name, f"{count:,}") for name, count in counters.items()]
    return f"{head}\n{draw_table(('peer', 'what', 'count'), rows)}"
