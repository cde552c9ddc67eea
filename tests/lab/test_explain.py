"""``lab explain`` and ``explain`` on real labs: what is told is what happens.

con1.node1 --- br0 node1 --- lan0 --- node2 br0 --- con1.node2      (and routed, vxlan, udp, both families)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.lab.support import Muslin, netns_of

LABS = [
    ("--step", "1", "--family", "dual"),
    ("--step", "2", "--family", "dual"),
    ("--step", "3", "--family", "dual"),
    ("--step", "4", "--family", "dual"),
    ("--step", "4", "--backend", "vxlan", "--family", "dual"),
    ("--step", "4", "--family", "6"),
    ("--step", "4", "--underlay", "routed", "--family", "dual"),
    ("--step", "4", "--backend", "vxlan", "--underlay", "routed"),
]


def predicted(muslin: Muslin, name: str, code: int | None = 0) -> dict[tuple[str, str], tuple[Any, ...]]:
    """(source, address) to: answered, arrived, TTL and source as the destination sees it."""
    pairs = muslin.json("explain", "--all", "--name", name, code=code)["pairs"]
    return {(pair["source"], pair["address"]): _prediction(pair["explanation"]) for pair in pairs}


def _prediction(explanation: Any) -> tuple[Any, ...]:
    request, reply = explanation["request"], explanation["reply"]
    arrives = request["outcome"] == "arrives"
    last = request["hops"][-1]
    return (
        arrives and reply["outcome"] == "arrives",
        arrives,
        last.get("ttl_in", last.get("ttl_out")) if arrives else None,
        request.get("arrived_as") or None,
    )


def observed(muslin: Muslin, name: str, code: int | None = 0) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The same, from a check by ICMP."""
    report = muslin.json("check", "--protocol", "icmp", "--name", name, code=code)
    found = {}
    for cell in report["cells"]:
        result = cell["result"]
        echo = next(one for one in result["exchanges"] if one["protocol"] == "icmp")
        answered = echo["outcome"] == "answered"
        key = result["pair"]["source"]["name"], result["pair"]["address"]
        found[key] = (answered, echo.get("arrived", False), echo.get("ttl"), echo.get("seen"))
    return found


@pytest.mark.parametrize("lab", LABS, ids=" ".join)
def test_for_every_pair_the_prediction_is_what_is_observed(muslin: Muslin, lab: tuple[str, ...]) -> None:
    name = muslin.up(*lab)
    assert predicted(muslin, name) == observed(muslin, name)


def test_a_lab_that_cannot_work_is_predicted_too(muslin: Muslin) -> None:
    name = muslin.up("--step", "3", "--underlay", "routed", code=4)
    assert predicted(muslin, name, code=1) == observed(muslin, name, code=1)


def test_nodes_with_agents_are_explained_like_others(muslin: Muslin) -> None:
    name = muslin.up("--step", "4", "--agents", "--backend", "vxlan")
    assert predicted(muslin, name) == observed(muslin, name)
    text = muslin.lab("explain", "con1.node1", "con1.node2", "--name", name).stdout
    assert "= DYNAMIC" in text
    assert "proto muslin" in text


def test_what_the_wire_shows_is_told_below_the_hop_that_wraps_it(muslin: Muslin) -> None:
    name = muslin.up("--step", "4")
    told = muslin.lab("explain", "con1.node1", "con1.node2", "--wide", "--name", name).stdout
    assert "172.16.0.0/16 dev tun0 = DIRECTLY CONNECTED (beats nothing: 172.16.0.0/24 br0 does not contain it)" in told
    assert "into UDP 10.0.0.10 > 10.0.0.20 port 9000, +28 bytes" in told
    assert "arrives with TTL 62" in told
    big = muslin.lab("explain", "con1.node1", "con1.node2", "--size", "1500", "--name", name, code=1).stdout
    assert "1500 bytes are more than tun0's MTU of 1472 in node1" in big
    late = muslin.lab("explain", "con1.node1", "con1.node2", "--ttl", "2", "--name", name, code=1).stdout
    assert "ttl exceeded" in late
    lost = muslin.lab("explain", "node1", "172.16.1.2", "--why-not", "172.16.0.0/24", "--name", name).stdout
    assert "172.16.0.0/24 dev br0 does not contain 172.16.1.2" in lost


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("con1.node1", "nobody"), "has no 'nobody'"),
        (("10.9.9.9", "con1.node1"), "has the address 10.9.9.9"),
        (("con1.node1",), "from where to where?"),
        (("con1.node1", "fd00::1", "--family", "6"), "no way to fd00::1"),
        (("con1.node1", "con1.node2", "--family", "6"), "has no IPv6 address"),
        (("con1.node1", "con1.node2", "--port", "80"), "ICMP has no ports"),
    ],
)
def test_a_wrong_question_is_answered_with_what_to_ask(shared: Muslin, words: tuple[str, ...], told: str) -> None:
    if not shared.names:
        shared.up("--step", "3")
    done = shared.lab("explain", *words, "--name", shared.names[0], code=None)
    assert done.returncode in (1, 2)
    assert told in done.stderr + done.stdout


def test_a_live_node_explains_itself_as_far_as_it_goes(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    command = [sys.executable, "-m", "muslin", "explain", "host", "172.16.1.2"]
    inside = ["ip", "netns", "exec", netns_of(name, "node1"), *command]
    done = subprocess.run(inside, capture_output=True, text=True, check=False, env=muslin.environment(), cwd="/")
    assert "Traceback" not in done.stderr
    assert "172.16.1.0/24 via 10.0.0.20 dev eth0 = STATIC" in done.stdout
    # All namespaces of the machine have names here, so that the way does not end at the cable.
    assert "arrives with TTL 63" in done.stdout
    assert muslin.run("explain", "host", "no-such-namespace", code=2).stderr.startswith("muslin: there is no network")


def test_it_is_told_quickly(muslin: Muslin) -> None:
    name = muslin.up("--step", "4", "--nodes", "20", "--containers", "2")
    muslin.lab("explain", "con1.node1", "con2.node20", "--name", name)
    begun = time.monotonic()
    muslin.lab("explain", "con1.node1", "con2.node20", "--name", name)
    assert time.monotonic() - begun < 0.3 * _slowness()


def _slowness() -> float:
    """How much busier the machine is than one that is idle."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1) + 1)
