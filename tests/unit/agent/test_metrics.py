"""The metrics, as Prometheus reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from muslin.agent import metrics
from muslin.agent.metrics import PASS_BUCKETS_S, Counters, PassTimes, read_devices, render
from muslin.wire.agent_api import AgentStatus, LeaseStatus, StoreStatus, TunnelStatus
from tests.unit.agent.node import NOW, make_peer, make_status

DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop ...
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
vxlan1:2000 20 3 4 0 0 0 0 5000 50 6 7 0 0 0 0
  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
"""


@pytest.fixture(autouse=True)
def _devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "dev"
    file.write_text(DEV)
    monkeypatch.setattr(metrics, "DEVICE_FIGURES", str(file))


def scrape(status: AgentStatus, counters: Counters | None = None) -> dict[str, float]:
    """Every sample by name and labels, as ``name{label=value}``."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(render(status, counters or Counters()).decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_every_name_is_ours_and_every_family_says_what_it_is() -> None:
    text = render(make_status(tunnel=TunnelStatus(pid=1, device="d", listen="l", peers=1)), Counters()).decode()
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("muslin_")
        assert family.documentation.endswith(".")


def test_node_lease_and_peers() -> None:
    peers = (make_peer(2), make_peer(3), make_peer(4, state="refused"))
    found = scrape(make_status(peers=peers, unreadable=("x",), ready=False))
    assert found["muslin_agent_info{backend=vxlan,node=node1,store=etcd,version=0.1.0}"] == 1
    assert found["muslin_ready"] == 0
    assert found["muslin_healthy"] == 1
    assert found["muslin_lease_held"] == 1
    assert found["muslin_lease_expiry_timestamp_seconds"] == NOW + 82_000
    assert found["muslin_peers{state=programmed}"] == 2
    assert found["muslin_peers{state=refused}"] == 1
    assert found["muslin_peers{state=pending}"] == 0
    assert found["muslin_leases_unreadable"] == 1
    assert found["muslin_store_revision"] == 57
    assert found["muslin_store_up"] == 1
    assert found["muslin_process_resident_memory_bytes"] > 1e6


def test_what_there_is_not_is_left_out() -> None:
    found = scrape(make_status(lease=LeaseStatus(state="idle"), network=None, underlay=None, peers=()))
    assert found["muslin_lease_held"] == 0
    assert "muslin_lease_expiry_timestamp_seconds" not in found
    assert not any("tunnel" in name for name in found)


def test_a_store_that_is_away() -> None:
    found = scrape(make_status(store=StoreStatus(kind="etcd", revision=5, trouble="no answer", from_disk=True)))
    assert (found["muslin_store_up"], found["muslin_store_from_disk"]) == (0, 1)


def test_counters_of_the_loop() -> None:
    counters = Counters()
    counters.applied, counters.failed, counters.repaired, counters.store_errors = 10, 2, 3, 4
    for duration_s in (0.0005, 0.004, 0.004, 99.0):
        counters.passes.observe(duration_s)
    found = scrape(make_status(), counters)
    assert found["muslin_operations_total{result=applied}"] == 10
    assert found["muslin_operations_total{result=failed}"] == 2
    assert found["muslin_repairs_total"] == 3
    assert found["muslin_store_errors_total"] == 4
    assert found["muslin_pass_duration_seconds_bucket{le=0.001}"] == 1
    assert found["muslin_pass_duration_seconds_bucket{le=0.005}"] == 3
    assert found["muslin_pass_duration_seconds_bucket{le=10.0}"] == 3
    assert found["muslin_pass_duration_seconds_bucket{le=+Inf}"] == 4
    assert found["muslin_pass_duration_seconds_count"] == 4
    assert found["muslin_pass_duration_seconds_sum"] == pytest.approx(99.0085)
    assert found["muslin_last_pass_duration_seconds"] == 0.012
    assert found["muslin_last_pass_timestamp_seconds"] == NOW - 4
    assert found["muslin_strangers_dropped_packets_total"] == 0


def test_a_time_on_the_bound_of_a_bucket_is_in_it() -> None:
    times = PassTimes()
    times.observe(PASS_BUCKETS_S[2])
    assert [count for _, count in times.buckets()][:4] == [0, 0, 1, 1]


def test_own_devices_and_no_others() -> None:
    counters = Counters()
    counters.devices = ("vxlan1", "eth0", "not-there")
    found = scrape(make_status(), counters)
    assert found["muslin_device_receive_bytes_total{device=vxlan1}"] == 2000
    assert found["muslin_device_receive_drops_total{device=vxlan1}"] == 4
    assert found["muslin_device_transmit_bytes_total{device=vxlan1}"] == 5000
    assert found["muslin_device_transmit_packets_total{device=eth0}"] == 10
    assert found["muslin_device_transmit_drops_total{device=eth0}"] == 12
    assert not any("device=lo" in name or "not-there" in name for name in found)


def test_the_kernel_s_own_figures_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DEVICE_FIGURES", "/proc/self/net/dev")
    assert [len(figures) for figures in read_devices(("lo",)).values()] == [16]


def test_the_tunnel_counts_by_what_became_of_a_packet() -> None:
    counts = {"packets_to_peers": 5, "bytes_to_peers": 600, "no_peer": 2, "bad_source": 1}
    found = scrape(make_status(tunnel=TunnelStatus(pid=1, device="d", listen="l", peers=3, counters=counts)))
    assert found["muslin_tunnel_peers"] == 3
    assert found["muslin_tunnel_bytes_total{way=to_peers}"] == 600
    assert found["muslin_tunnel_packets_total{fate=to_peers}"] == 5
    assert found["muslin_tunnel_packets_total{fate=no_peer}"] == 2
    assert found["muslin_tunnel_packets_total{fate=bad_source}"] == 1


def test_the_tunnel_counts_by_peer() -> None:
    peers = {"10.0.0.2:8285": {"packets_to_peers": 5, "bytes_to_peers": 600, "tun_failed": 2}}
    tunnel = TunnelStatus(pid=1, device="d", listen="l", peers=3, peer_counters=peers)
    found = scrape(make_status(tunnel=tunnel))
    assert {name: value for name, value in found.items() if "tunnel_peer_" in name} == {
        "muslin_tunnel_peer_bytes_total{peer=10.0.0.2:8285,way=to_peers}": 600,
        "muslin_tunnel_peer_packets_total{fate=to_peers,peer=10.0.0.2:8285}": 5,
        "muslin_tunnel_peer_packets_total{fate=tun_failed,peer=10.0.0.2:8285}": 2,
    }


def test_who_is_not_scraped_does_not_pay_for_the_library() -> None:
    program = "import sys, muslin.agent.api; sys.exit(any(name.startswith('prometheus') for name in sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )
