"""The status of an agent as text: a head, a row for each peer, and what is wrong in sentences.

Theory of operation: everything is made of the agent's document and its own clock (``now``), so the text of a document
is always the same. Colour is laid over whole rows after they are aligned.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import click

from muslin.agent.tunnel_counters import DROPS, drops_of, peers_that_lose
from muslin.cli.output import counted, draw_table, terminal_width, use_color
from muslin.wire.agent_api import AgentStatus, PeerState, PeerStatus, ProbeResult, TunnelStatus

LISTED_PEERS = 64
"""More of them, and those that are fine are only counted."""
TEXT_WIDTH = 110
COLUMNS = ("PEER", "SUBNET", "STATE", "UNDERLAY", "OVERLAY", "CHANGED")
COLORS: dict[PeerState, str | None] = {
    "programmed": None,
    "pending": "magenta",  # yellow is unreadable on white
    "failed": "red",
    "refused": "red",
}


def draw(found: AgentStatus, wrong: Sequence[str], warnings: Sequence[str], everything: bool = False) -> str:
    """The whole of it for people."""
    parts = ["\n".join([_title(found), *_head(found)])]
    parts.append(_draw_peers(found, everything) if found.peers else "No other node has a lease yet.")
    parts += [_draw_list("Wrong", wrong, "red")] if wrong else []
    parts += [_draw_list("Worth knowing", warnings, "magenta")] if warnings else []
    return "\n\n".join(parts)


def duration(seconds: float) -> str:
    """``12 s``, ``3 min``, ``3 h 12 min``, ``5 d 3 h``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((index for index, (value, _) in enumerate(parts) if value), 3)
    shown = parts[first : first + (2 if first < 2 else 1)]
    return " ".join(f"{value} {unit}" for value, unit in shown if value or unit == "s")


def _styled(text: str, **style: Any) -> str:
    return click.style(text, **style) if use_color() else text


# ---- the head ----------------------------------------------------------------------------------------------


def _title(found: AgentStatus) -> str:
    word, color = ("ready", "green") if found.ready else ("not ready", "magenta")
    if not found.healthy:
        word, color = "not healthy", "red"
    peers = f", {found.programmed} of {counted(len(found.peers), 'peer')} programmed" if found.peers else ""
    return f"{_styled(found.name, bold=True)}  {_styled(word, fg=color, bold=True)}{peers}"


def _head(found: AgentStatus) -> list[str]:
    """A line for each part of the node."""
    rows = [
        ("agent", f"version {found.version}, process {found.pid}, up {duration(found.now - found.started_at)}"),
        ("lease", _lease(found)),
        ("network", _network(found)),
        ("underlay", _underlay(found)),
        ("store", _store(found)),
        ("kernel", _kernel(found)),
    ]
    if (tunnel := found.tunnel) is not None:
        text = f"process {tunnel.pid} between {tunnel.device} and {tunnel.listen}, {counted(tunnel.peers, 'peer')}"
        rows += [("tunnel", text), *_drops(tunnel)]
    if (containers := found.containers) is not None and containers.connected:
        how = f"by the bridge {containers.bridge}" if containers.bridge else "by a route each"
        left = "".join(f", {counted(count, 'address')} of {net} left" for net, count in containers.free.items())
        rows.append(("containers", f"{containers.connected} connected {how}{left}"))
    if dropped := found.kernel.strangers_dropped:
        rows.append(("strangers", f"{counted(dropped, 'packet')} from addresses without a lease dropped"))
    return [f"  {name:<10} {text}" for name, text in rows]


def _drops(tunnel: TunnelStatus) -> list[tuple[str, str]]:
    """A row for each reason that the tunnel dropped packets for, the most frequent first, with the worst peer."""
    rows = []
    for reason, count in drops_of(tunnel.counters).items():
        losing = peers_that_lose(tunnel.peer_counters, reason)
        worst = f", {tunnel.peer_counters[losing[0]][reason]} of them of {losing[0]}" if losing else ""
        rows.append(("dropped", f"{counted(count, 'packet')} {DROPS[reason]}{worst}"))
    return rows


def _lease(found: AgentStatus) -> str:
    lease = found.lease
    if not lease.subnets:
        return f"none yet, {lease.state}" + (f": {lease.sentence}" if lease.sentence else "")
    text = f"{', '.join(lease.subnets)}, {lease.state}"
    if lease.reservation or lease.expires_at is None:
        return f"{text}, without end"
    left_s = lease.expires_at - found.now
    return f"{text}, {duration(left_s)} left" if left_s > 0 else f"{text}, over since {duration(-left_s)}"


def _network(found: AgentStatus) -> str:
    network = found.network
    if network is None:
        return "no configuration yet"
    port = f", UDP port {network.port}" if network.port else ""
    return f"{', '.join(network.networks)} by {network.backend}, MTU of containers {network.mtu}{port}"


def _underlay(found: AgentStatus) -> str:
    underlay = found.underlay
    if underlay is None:
        return "no interface yet"
    text = f"{underlay.link}, {', '.join(underlay.addresses)}, MTU {underlay.mtu}"
    if underlay.public_addresses != underlay.addresses:
        text += f", known to others as {', '.join(underlay.public_addresses)}"
    return text


def _store(found: AgentStatus) -> str:
    store = found.store
    text = f"{store.kind}, revision {store.revision}"
    if store.trouble:
        text += ", away" + (" (what was known last is followed)" if store.from_disk else "")
    return text


def _kernel(found: AgentStatus) -> str:
    kernel = found.kernel
    text = f"{counted(kernel.objects, 'object')}, looked at {counted(kernel.passes, 'time')}"
    if kernel.last_pass_at is not None:
        text += f", last {duration(found.now - kernel.last_pass_at)} ago"
    if kernel.last_pass_s is not None:
        text += f" in {kernel.last_pass_s * 1000:.0f} ms"
    repaired = f", {counted(kernel.repaired, 'repair')}" if kernel.repaired else ""
    return text + repaired + (f", {len(kernel.failed)} refused" if kernel.failed else "")


# ---- peers and sentences -----------------------------------------------------------------------------------


def _draw_peers(found: AgentStatus, everything: bool) -> str:
    few = everything or len(found.peers) <= LISTED_PEERS
    shown = [peer for peer in found.peers if few or peer.state != "programmed" or peer.sentence or peer.note]
    rows: list[tuple[str, ...]] = []
    colors: list[str | None] = []
    for peer in shown:
        lines = _rows(peer, found.now)
        rows += lines
        colors += ["red" if peer.sentence else COLORS[peer.state]] * len(lines)
    parts = []
    if rows:
        head, *lines_drawn = draw_table(COLUMNS, rows).splitlines()
        parts += [head, *(_styled(line, fg=color) for line, color in zip(lines_drawn, colors, strict=True))]
    if hidden := len(found.peers) - len(shown):
        parts.append(f"{counted(hidden, 'peer')} programmed and fine, as far as known; --all lists them")
    return "\n".join(parts)


def _rows(peer: PeerStatus, now: float) -> list[tuple[str, ...]]:
    """A row, and one more for a second address or subnet."""
    changed = f"{duration(now - peer.changed_at)} ago"
    first = (peer.state, _answer(peer.underlay), _answer(peer.overlay, peer.overlay_full), changed)
    pairs = list(zip_longest(peer.addresses, peer.subnets, fillvalue="")) or [(peer.name, "")]
    return [(*pair, *(first if index == 0 else ("", "", "", ""))) for index, pair in enumerate(pairs)]


def _answer(small: ProbeResult | None, full: ProbeResult | None = None) -> str:
    if small is None:
        return "-"
    if small.outcome == "reached" and full is not None and full.outcome not in ("reached", "skipped"):
        return "small only"
    return f"{small.rtt_ms:.2f} ms" if small.rtt_ms is not None else small.outcome


def _draw_list(title: str, sentences: Sequence[str], color: str) -> str:
    width = min(terminal_width(), TEXT_WIDTH)
    lines = [
        textwrap.fill(sentence, width, initial_indent="  * ", subsequent_indent="    ", break_long_words=False)
        for sentence in sentences
    ]
    return "\n".join([_styled(f"{title}:", fg=color, bold=True), *lines])
