"""What is shown of a tunnel's counters, and which drops are news."""

from __future__ import annotations

import pytest

from muslin.agent.tunnel_counters import QUIET_S, SHOWN_PEERS, DropWatch, parse_counters, parse_peers, worth_showing
from muslin.wire.agent_api import TunnelStatus


@pytest.mark.parametrize(
    ("line", "counters"),
    [
        ('{"schema": "muslin.tunnel/v1", "no_peer": 3, "x": true, "y": 1.5}', {"no_peer": 3}),
        ("", {}),
        ("{", {}),
        ("[1]", {}),
    ],
)
def test_counters_are_the_whole_numbers(line: str, counters: dict[str, int]) -> None:
    assert parse_counters(line) == counters


def test_counters_by_peer_are_understood_or_none() -> None:
    line = '{"schema": "muslin.tunnel-peers/v1", "peers": {"10.0.0.2:8285": {"too_big": 3}}}'
    assert parse_peers(line) == {"10.0.0.2:8285": {"too_big": 3}}
    assert [parse_peers(other) for other in ("", "{", '{"peers": 1}', '{"peers": {"a": {"b": "c"}}}')] == [{}] * 4


def test_those_that_lose_packets_are_shown_before_the_busiest() -> None:
    peers = {f"10.0.{n >> 8}.{n & 255}:1": {"packets_to_peers": n, "packets_from_peers": n} for n in range(1, 1000)}
    peers["10.9.9.9:1"] = {"bad_source": 1}
    peers["10.9.9.8:1"] = {"too_big": 2, "packets_to_peers": 1}
    shown = worth_showing(peers)
    assert len(shown) == SHOWN_PEERS
    assert [*shown][:4] == ["10.9.9.8:1", "10.9.9.9:1", "10.0.3.231:1", "10.0.3.230:1"]
    assert shown["10.9.9.9:1"] == {"bad_source": 1}


def tunnel(pid: int = 7, peers: dict[str, dict[str, int]] | None = None, **counters: int) -> TunnelStatus:
    counted = {"packets_to_peers": 5, "calls_read": 9, **counters}
    return TunnelStatus(pid=pid, device="tun0", listen="l", peers=1, counters=counted, peer_counters=peers or {})


def test_a_kind_of_drop_is_told_once_until_it_was_away_for_a_while() -> None:
    watch, now = DropWatch(), 0.0
    assert watch.notice(None, now) == watch.notice(tunnel(), now) == []
    (first,) = watch.notice(tunnel(no_peer=3), now)
    assert first == "the tunnel of tun0 drops packets to where no peer is: 3 so far"
    for turn in range(100):
        now += QUIET_S - 1
        assert watch.notice(tunnel(no_peer=4 + turn), now) == []
    assert watch.notice(tunnel(no_peer=103), now + QUIET_S) == [], "it did not grow"
    assert watch.notice(tunnel(no_peer=104), now + QUIET_S) == [first.replace("3", "104")]


def test_another_process_counts_from_the_beginning() -> None:
    watch = DropWatch()
    assert len(watch.notice(tunnel(no_peer=3, malformed=1), 0.0)) == 2
    assert watch.notice(tunnel(pid=8, no_peer=1), QUIET_S)
    assert watch.notice(tunnel(pid=9, no_peer=1), QUIET_S + 1) == [], "the same trouble as a second ago"


def test_the_peers_that_it_is_about_are_named_the_worst_first() -> None:
    peers = {f"10.0.0.{n}:1": {"bad_source": n} for n in range(1, 6)} | {"10.0.0.9:1": {"too_big": 1}}
    (said,) = DropWatch().notice(tunnel(peers=peers, bad_source=15), 0.0)
    assert said.endswith("not the sender's: 15 so far (10.0.0.5:1, 10.0.0.4:1, 10.0.0.3:1 and 2 more)")
