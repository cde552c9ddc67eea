"""``muslin status``: what it prints, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from muslin.agent import api as api_module
from muslin.agent.diagnosis import explain, explain_faults
from muslin.agent_client import NoAgentError
from muslin.cli import status as verb
from muslin.cli.main import cli, run
from muslin.cli.status import PROBED_PEERS
from muslin.cli.status_view import draw, duration
from muslin.wire.agent_api import (
    AgentStatus,
    FailedOperation,
    KernelStatus,
    LeaseStatus,
    ProbeResult,
    StoreStatus,
    TunnelStatus,
    UnderlayStatus,
)
from tests.unit.agent.node import NOW, FakeNode, make_network, make_peer, make_status
from tests.unit.cli.agent_at import agent_at


def reached(address: str, rtt_ms: float = 0.21) -> ProbeResult:
    return ProbeResult(address=address, outcome="reached", rtt_ms=rtt_ms)


def silent(address: str) -> ProbeResult:
    return ProbeResult(address=address, outcome="silent")


def text_of(found: AgentStatus, everything: bool = False) -> str:
    explained = explain(found)
    return draw(explained, *explain_faults(explained), everything)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was probed, in place of probing."""
    probed: list[object] = []

    async def probe(status: AgentStatus, names: Sequence[str] | None = None) -> AgentStatus:
        probed.append(names)
        peers = (msgspec.structs.replace(peer, underlay=reached(peer.addresses[0])) for peer in status.peers)
        return msgspec.structs.replace(status, peers=tuple(peers))

    monkeypatch.setattr(api_module, "probe_peers", probe)
    return probed


def invoke(path: str, node: FakeNode, *words: str) -> tuple[int, str]:
    with agent_at(path, node):
        done = CliRunner().invoke(cli, ["status", "--socket", path, *words], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value, done.output


# ---- the exit code -----------------------------------------------------------------------------------------

CODES: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"ready": False}, 1),
    ({"healthy": False}, 1),
    ({"problems": ("something is wrong",)}, 1),
    ({"peers": (make_peer(2, state="refused"),)}, 1),
    ({"peers": (make_peer(2, state="failed"),)}, 1),
    ({"peers": (make_peer(2, sentence="it does not answer"),)}, 1),
    ({"kernel": KernelStatus(failed=(FailedOperation(key=("link", "x"), command="ip", reason="no", since=NOW),))}, 1),
    ({"peers": (make_peer(2, note="worth knowing"),)}, 4),
    ({"store": StoreStatus(kind="etcd", trouble="no answer"), "problems": ("no answer",)}, 4),
    ({"unreadable": ("10.5.9.0-24",)}, 4),
    ({"network": make_network(warning="the configuration is garbage")}, 4),
    ({"peers": (make_peer(2, note="worth knowing"),), "ready": False}, 1),
]


@pytest.mark.parametrize(("values", "code"), CODES, ids=range(len(CODES)))
def test_the_exit_code_tells_the_gravest(path: str, values: dict[str, Any], code: int) -> None:
    assert invoke(path, FakeNode(make_status(**values)), "--no-probe")[0] == code


def test_no_agent_is_exit_code_3_and_says_how_to_start_one(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--socket", path]) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"muslin: no agent answers at {path}")
    assert "`muslin agent`" in told


# ---- probing and waiting -----------------------------------------------------------------------------------


def test_a_few_peers_are_probed_without_being_told_to_and_many_are_not(path: str, asked: list[object]) -> None:
    few = FakeNode(make_status(peers=tuple(make_peer(number) for number in range(PROBED_PEERS))))
    many = FakeNode(make_status(peers=tuple(make_peer(number) for number in range(PROBED_PEERS + 1))))
    assert "0.21 ms" in invoke(path, few)[1]
    assert len(asked) == 1
    invoke(path, many)
    invoke(path, few, "--no-probe")
    assert len(asked) == 1
    invoke(path, many, "--probe")
    assert len(asked) == 2


def test_waiting_ends_when_the_node_is_ready(path: str, asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(make_status(ready=False))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        node.now = make_status(ready=len(pauses) >= 3)

    monkeypatch.setattr("muslin.cli.status.time.sleep", pause)
    assert invoke(path, node, "--wait")[0] == 0
    assert len(pauses) == 3


def test_waiting_in_vain_shows_the_status_and_fails(path: str, asked: list[object]) -> None:
    code, output = invoke(path, FakeNode(make_status(ready=False)), "--wait", "--wait-duration", "0.01")
    assert code == 1
    assert "the node is not ready after 0.01 s" in output
    assert "node1  not ready" in output


def test_waiting_for_an_agent_that_never_comes(path: str) -> None:
    with pytest.raises(NoAgentError):
        verb.look(path, False, 0.01)


# ---- forms -------------------------------------------------------------------------------------------------


def test_json_is_the_agent_s_document(path: str) -> None:
    node = FakeNode()
    code, output = invoke(path, node, "--no-probe", "-o", "json")
    assert code == 0
    assert json.loads(output)["schema"] == "muslin.agent-status/v1"
    assert msgspec.json.decode(output, type=AgentStatus) == node.now
    assert "schema: muslin.agent-status/v1" in invoke(path, node, "--no-probe", "-o", "yaml")[1]


WELL = """\
node1  ready, 2 of 2 peers programmed
  agent      version 0.1.0, process 4711, up 3 h 12 min
  lease      10.5.1.0/24, holding, 22 h 46 min left
  network    10.5.0.0/16 by vxlan, MTU of containers 1450, UDP port 8472
  underlay   eth0, 10.0.0.1, MTU 1500
  store      etcd, revision 57
  kernel     24 objects, looked at 120 times, last 4 s ago in 12 ms

PEER      SUBNET       STATE       UNDERLAY  OVERLAY     CHANGED
10.0.0.2  10.5.2.0/24  programmed  0.21 ms   0.34 ms     3 min ago
10.0.0.3  10.5.3.0/24  programmed  0.21 ms   small only  3 min ago

Wrong:
  * small packets reach 10.5.3.0, those of full size, 1450 bytes, do not: something on the way carries less
    than 1500 bytes, so long transfers hang; set MTU in the Backend of the network configuration to what the
    path carries, or lower the MTU of eth0 on every node"""


def test_the_whole_picture() -> None:
    fine = make_peer(
        2,
        underlay=reached("10.0.0.2"),
        overlay=reached("10.5.2.0", 0.34),
        overlay_full=reached("10.5.2.0"),
    )
    hole = make_peer(3, underlay=reached("10.0.0.3"), overlay=reached("10.5.3.0"), overlay_full=silent("10.5.3.0"))
    assert text_of(make_status(peers=(fine, hole))) == WELL


def test_a_node_that_has_only_begun() -> None:
    told = text_of(
        make_status(
            ready=False,
            peers=(),
            lease=LeaseStatus(state="seeking", sentence="every subnet is taken"),
            network=None,
            underlay=None,
            kernel=KernelStatus(),
            store=StoreStatus(kind="sqlite", trouble="no such file", from_disk=True),
        )
    )
    for line in (
        "node1  not ready\n",
        "lease      none yet, seeking: every subnet is taken\n",
        "network    no configuration yet\n",
        "underlay   no interface yet\n",
        "store      sqlite, revision 0, away (what was known last is followed)\n",
        "kernel     0 objects, looked at 0 times\n",
        "No other node has a lease yet.",
    ):
        assert line in told


def test_what_is_there_only_sometimes() -> None:
    failed = FailedOperation(key=("link", "x"), command="ip link add x", reason="No such device", since=NOW - 40)
    told = text_of(
        make_status(
            healthy=False,
            lease=LeaseStatus(state="holding", subnets=("10.5.1.0/24", "fd05:1::/64"), reservation=True),
            underlay=UnderlayStatus(link="eth0", mtu=1500, addresses=("10.0.0.1",), public_addresses=("1.2.3.4",)),
            kernel=KernelStatus(objects=24, passes=1, repaired=3, failed=(failed,), strangers_dropped=7),
            tunnel=TunnelStatus(
                pid=88,
                device="muslin-udp",
                listen="10.0.0.1:8285",
                peers=1,
                counters={"packets_to_peers": 9, "no_peer": 1, "bad_source": 5},
                peer_counters={"10.0.0.2:8285": {"bad_source": 2}, "10.0.0.3:8285": {"bad_source": 3}},
            ),
        )
    )
    for line in (
        "node1  not healthy, 2 of 2 peers programmed\n",
        "10.5.1.0/24, fd05:1::/64, holding, without end\n",
        "known to others as 1.2.3.4\n",
        "looked at 1 time, 3 repairs, 1 refused\n",
        "process 88 between muslin-udp and 10.0.0.1:8285, 1 peer\n"
        "  dropped    5 packets with a source that is not the sender's, 3 of them of 10.0.0.3:8285\n"
        "  dropped    1 packet to where no peer is\n",
        "7 packets from addresses without a lease dropped\n",
        "the kernel refuses a change, tried again for 40 s now: ip link add x: No such device",
    ):
        assert line in told


def test_a_lease_that_is_over_says_since_when() -> None:
    lease = LeaseStatus(state="renewing", subnets=("10.5.1.0/24",), expires_at=NOW - 130)
    assert "10.5.1.0/24, renewing, over since 2 min\n" in text_of(make_status(lease=lease))


def test_a_second_address_has_a_row_of_its_own() -> None:
    peer = make_peer(2, addresses=("10.0.0.2", "fd00::2"), subnets=("10.5.2.0/24", "fd05:2::/64"))
    told = text_of(make_status(peers=(peer,)))
    assert "\n10.0.0.2  10.5.2.0/24  programmed  -         -        3 min ago\nfd00::2   fd05:2::/64" in told


def test_of_many_peers_those_that_are_fine_are_counted() -> None:
    peers = (*(make_peer(number) for number in range(200)), make_peer(200, state="failed"))
    told = text_of(make_status(peers=peers))
    assert "10.0.0.200" in told
    assert "10.0.0.100" not in told
    assert "200 peers programmed and fine, as far as known; --all lists them" in told
    assert "10.0.0.100" in text_of(make_status(peers=peers), everything=True)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    peers = (make_peer(2, underlay=reached("10.0.0.2"), overlay=silent("10.5.2.0")), make_peer(3, state="refused"))
    assert max(map(len, text_of(make_status(peers=peers)).splitlines())) <= width


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muslin.cli.status_view.use_color", lambda: True)
    peers = (make_peer(2), make_peer(3, state="failed"))
    lines = text_of(make_status(peers=peers)).splitlines()
    assert any(line.startswith("\x1b[31m10.0.0.3") for line in lines)
    assert any(line.startswith("10.0.0.2") for line in lines), "what is fine is plain"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (12.4, "12 s"), (60, "1 min"), (200, "3 min"), (3600, "1 h"), (11_520, "3 h 12 min"),
     (86_400, "1 d"), (90_000, "1 d 1 h"), (10_000_000, "115 d 17 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_imports_little() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from muslin.cli.main import run; run(['status', '--socket', '/nowhere']); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "muslin" in loaded
    assert loaded.isdisjoint({"asyncio", "h11", "prometheus_client", "rich", "yaml"})
