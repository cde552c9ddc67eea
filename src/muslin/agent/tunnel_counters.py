"""What a tunnel has counted: understood, made small enough to show, and looked through for what is newly dropped.

Theory of operation: a tunnel tells sums by reason, and the one in C the same by peer (``muslin tunnel stats``). There
may be 10,000 peers, and a status or a scrape is no place for all of them: shown are those that lose packets, then the
busiest, ``SHOWN_PEERS`` at most, so that the number of metrics has a bound. A reason for which packets are dropped is
told once as an event, and again only after it was away for a while: a flood of bad packets is not to be a flood of
events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from muslin.wire.agent_api import TunnelStatus

Peers = dict[str, dict[str, int]]
"""Counters of peers that there was traffic with, by endpoint; of those that are not 0, by reason."""

SUMS_LINE = '{"schema": "muslin.tunnel/v1"'
PEERS_LINE = '{"schema": "muslin.tunnel-peers/v1"'
"""How the lines begin that answer SIGUSR1 and SIGUSR2."""

DROPS = {
    "no_peer": "to where no peer is",
    "too_big": "too big for the path to the peer",
    "send_failed": "not taken by the underlay",
    "unknown_peer": "from addresses of no peer",
    "bad_source": "with a source that is not the sender's",
    "malformed": "malformed",
    "tun_failed": "not taken by the TUN device",
    "congested": "congested and unable to say so",
}
"""Why a packet was not carried, as it is counted, and in words that follow "packets"."""

SHOWN_PEERS = 100
NAMED_PEERS = 3
QUIET_S = 600.0
"""How long nothing must have been dropped for a reason before that is news again."""


class PeersLine(msgspec.Struct, frozen=True):
    """A tunnel's answer to SIGUSR2."""

    peers: Peers


def parse_counters(line: str) -> dict[str, int]:
    """The numbers of a line of JSON; none where it is something else."""
    try:
        document = msgspec.json.decode(line, type=dict[str, object])
    except msgspec.MsgspecError:
        return {}
    return {name: value for name, value in document.items() if type(value) is int}


def parse_peers(line: str) -> Peers:
    """The counters by peer of a line of JSON; none where it is something else."""
    try:
        return msgspec.json.decode(line, type=PeersLine).peers
    except msgspec.MsgspecError:
        return {}


def drops_of(counters: Mapping[str, int]) -> dict[str, int]:
    """What was not carried, by reason, the most frequent first."""
    found = [(name, counters[name]) for name in DROPS if counters.get(name)]
    return dict(sorted(found, key=lambda pair: -pair[1]))


def worth_showing(peers: Peers, most: int = SHOWN_PEERS) -> Peers:
    """The peers that lose most, then those that carry most; at most so many."""

    def rank(endpoint: str) -> tuple[int, int, str]:
        counters = peers[endpoint]
        carried = counters.get("packets_to_peers", 0) + counters.get("packets_from_peers", 0)
        return -sum(drops_of(counters).values()), -carried, endpoint

    return {endpoint: peers[endpoint] for endpoint in sorted(peers, key=rank)[:most]}


def peers_that_lose(peers: Peers, reason: str) -> list[str]:
    """Endpoints of which packets were dropped for this reason, the worst first."""
    return sorted((each for each in peers if peers[each].get(reason)), key=lambda each: -peers[each][reason])


class DropWatch:
    """Finds reasons for drops that are news. Times are seconds of any clock that only grows."""

    def __init__(self) -> None:
        self._pid = 0
        self._counts: dict[str, int] = {}
        self._grew_at: dict[str, float] = {}

    def notice(self, tunnel: TunnelStatus | None, now: float) -> list[str]:
        """A sentence for each reason that packets are dropped for now and were not lately."""
        if tunnel is None or not tunnel.counters:
            return []
        if tunnel.pid != self._pid:  # another process counts from 0 again
            self._pid, self._counts = tunnel.pid, {}
        return list(self._news(tunnel, now))

    def _news(self, tunnel: TunnelStatus, now: float) -> Iterator[str]:
        for reason, count in drops_of(tunnel.counters).items():
            if count <= self._counts.get(reason, 0):
                continue
            is_news = now - self._grew_at.get(reason, -QUIET_S) >= QUIET_S
            self._counts[reason], self._grew_at[reason] = count, now
            if is_news:
                what = f"packets {DROPS[reason]}: {count} so far{_whose(tunnel, reason)}"
                yield f"the tunnel of {tunnel.device} drops {what}"


def _whose(tunnel: TunnelStatus, reason: str) -> str:
    losing = peers_that_lose(tunnel.peer_counters, reason)
    more = f" and {len(losing) - NAMED_PEERS} more" if len(losing) > NAMED_PEERS else ""
    return f" ({', '.join(losing[:NAMED_PEERS])}{more})" if losing else ""
