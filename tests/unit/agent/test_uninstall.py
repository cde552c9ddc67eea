"""What an agent has left, and its removal, on a kernel in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.agent.files import StateDirectory
from muslin.agent.uninstall import Removal
from muslin.errors import MuslinError
from muslin.kernel.base import Scope
from muslin.model.kernel import PROTOCOL_MUSLIN, Bridge, Link, Route, Sysctl, link_key
from muslin.model.lease import Advertisement
from muslin.model.ops import Delete
from muslin.store.memory import MemoryData
from muslin.wire.cni_socket import SpoolFile
from muslin.wire.flannel_lease import encode_value
from tests.unit.agent.hosts import Host
from tests.unit.agent.simulated import config, simulated, until, without_thread

FORWARDING = Sysctl(netns="", name="net/ipv4/ip_forward", value="1")
THEIRS = (
    Route(netns="", destination="10.77.0.0/24", link="eth0", protocol=4),
    Link(netns="", name="cni0", options=Bridge(), mtu=1500, mac="", alias="", master="", up=True),
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host on which others have something, too."""
    found = Host(1, tmp_path, MemoryData())
    for obj in THEIRS:
        found.put(obj)
    yield found
    found.watch.close()


async def had_an_agent(host: Host, network_config: bytes) -> None:
    """Let an agent come to its end after it has done its work."""
    says = Advertisement(addresses=("10.0.0.77",), backend="vxlan", data={"VNI": 1, "VtepMAC": "02:00:00:00:00:77"})
    host.store.data.put("10.5.200.0-24", encode_value(says), None)
    node = without_thread(host.node(network_config))
    task = asyncio.create_task(node.run())
    await until(lambda: node.programmed)
    node.end()
    await task


def forwarding(host: Host) -> str:
    seen = host.kernel.observe(Scope(netns=("",), sysctls=frozenset({("", FORWARDING.name)})))
    setting = seen.objects[FORWARDING.key]
    assert isinstance(setting, Sysctl)
    return setting.value


def removal(host: Host, run_directory: Path | None = None) -> Removal:
    return Removal(host.kernel, host.tunnels, StateDirectory(host.directory), run_directory or host.directory / "run")


@simulated
@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "udp"])
async def test_it_finds_all_of_it_removes_it_and_then_there_is_nothing(host: Host, backend: str) -> None:
    before = dict(host.kernel.objects)
    await had_an_agent(host, config(backend))
    after = dict(host.kernel.objects)
    assert after != before
    assert forwarding(host) == "1"
    found = removal(host).find()
    assert found
    assert host.kernel.objects == after, "finding changes nothing"
    assert {path.name for path in map(Path, found.files)} == {"owned.json", "node.json", "snapshot.json", "subnet.env"}
    assert found.lease is not None
    assert found.lease.name in host.store.data.entries
    removal(host).remove()
    assert host.kernel.objects == before
    assert forwarding(host) == "0", "settings go back"
    assert host.tunnels.running is None
    assert not host.directory.exists()
    again = removal(host)
    assert not again.find()
    again.remove()
    assert host.kernel.objects == before


@simulated
async def test_without_any_record_it_goes_by_the_marks(host: Host) -> None:
    before = dict(host.kernel.objects)
    await had_an_agent(host, config())
    for path in StateDirectory(host.directory).files():
        path.unlink()
    assert removal(host).find().ops
    removal(host).remove()
    assert host.kernel.objects == before


@simulated
async def test_what_the_kernel_keeps_is_named_and_the_record_stays_for_the_next_try(host: Host) -> None:
    before = dict(host.kernel.objects)
    await had_an_agent(host, config())
    host.kernel.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) and isinstance(op.object, Link) else 0
    with pytest.raises(MuslinError, match="not everything could be removed") as caught:
        removal(host).remove()
    assert "ip link delete vxlan1: failed" in str(caught.value)
    assert (host.directory / "owned.json").exists()
    host.kernel.refuse = lambda _: 0
    removal(host).remove()
    assert host.kernel.objects == before


@simulated
async def test_a_subnet_file_that_somebody_else_has_written_since_stays(host: Host) -> None:
    await had_an_agent(host, config())
    file = host.directory / "subnet.env"
    file.write_text("FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    assert str(file) not in removal(host).find().files
    removal(host).remove()
    assert [path.name for path in host.directory.iterdir()] == ["subnet.env"]


@simulated
async def test_files_of_a_run_that_was_killed_go_and_those_of_others_stay(host: Host, tmp_path: Path) -> None:
    await had_an_agent(host, config())
    run = tmp_path / "run"
    (run / "cni-spool").mkdir(parents=True)
    kept = SpoolFile(at_ns=1, pid=2).name
    ours = [run / "cni.sock", run / "cni-spool" / kept, run / "cni-spool" / kept.replace("del", "tmp")]
    ours += [run / "agent.sock", run / "tunnel.log", run / "tunnel.peers", run / "tunnel.peers.new"]
    ours += [host.directory / "node.json.new", host.directory / "owned.json.broken", host.directory / "subnet.env.new"]
    for path in (*ours, run / "other"):
        path.write_text("")
    assert {str(path) for path in ours} <= set(removal(host, run).find().files)
    removal(host, run).remove()
    assert [path.name for path in run.iterdir()] == ["other"]
    assert not host.directory.exists()


def test_on_a_host_that_never_had_an_agent_there_is_nothing(host: Host, tmp_path: Path) -> None:
    before = dict(host.kernel.objects)
    host.directory = tmp_path / "never"
    assert not removal(host).find()
    removal(host).remove()
    assert host.kernel.objects == before


def test_a_stray_with_our_mark_is_enough_to_be_found(host: Host) -> None:
    stray = Route(netns="", destination="10.5.9.0/24", link="eth0", protocol=PROTOCOL_MUSLIN)
    host.put(stray)
    assert [op.key for op in removal(host).find().ops] == [stray.key]
    removal(host).remove()
    assert stray.key not in host.kernel.objects
    assert link_key("", "eth0") in host.kernel.objects
