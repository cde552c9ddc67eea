"""Both tunnel programs in a lab of step 4, one after the other, and what they tell.

con1.node1 172.16.0.2 ─ br0 ─ tun0 :node1: 10.0.0.10 ═══ 10.0.0.20 :node2: tun0 ─ br0 ─ con1.node2 172.16.1.2
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muslin.tunnel.programs import core_path
from tests.lab.support import Muslin, netns_of

NEEDS_CORE = pytest.mark.skipif(not core_path(), reason="the tunnel core is not built; ./run test builds it, given gcc")


def stats(muslin: Muslin, name: str) -> Any:
    document = json.loads(muslin.run("tunnel", "stats", "--netns", netns_of(name, "node1"), "-o", "json").stdout)
    (tunnel,) = document["tunnels"]
    return tunnel


@NEEDS_CORE
@pytest.mark.parametrize("agents", [(), ("--agents",)], ids=["lab", "agents"])
def test_either_program_carries_a_lab(muslin: Muslin, agents: tuple[str, ...]) -> None:
    shape = ("--step", "4", "--backend", "udp", "--allow-overlap", *agents)
    name = muslin.up(*shape)
    muslin.lab("check", "--name", name)
    first = stats(muslin, name)
    assert Path(first["program"]).name == "muslin-tunnel-core"
    assert first["counters"]["packets_to_peers"] > 0
    assert [peer.partition(":")[0] for peer in first["peers"]] == ["10.0.0.20"]
    assert sum(peer["packets_to_peers"] for peer in first["peers"].values()) >= first["counters"]["packets_to_peers"]

    muslin.up(*shape, "--tunnel", "python", name=name)
    muslin.lab("check", "--name", name)
    second = stats(muslin, name)
    assert second["program"].endswith("reference.py")
    assert (second["peers"], second["pid"] != first["pid"]) == ({}, True)
    assert second["counters"]["packets_to_peers"] > 0


def test_where_no_tunnel_runs(muslin: Muslin) -> None:
    name = muslin.up("--step", "3", "--allow-overlap")
    done = muslin.run("tunnel", "stats", "--netns", netns_of(name, "node1"), code=2)
    assert "no tunnel runs in the network namespace" in done.stderr
