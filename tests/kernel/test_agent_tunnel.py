"""The agent's tunnel on the real kernel: it outlives its agent, is adopted, takes new peers, and goes without a trace.

a: eth0 10.0.0.10/24 ═══ eth0 10.0.0.20/24 :b      ═══ a veth
   muslin-udp 172.16.0.0/16    muslin-udp 172.16.1.0/16
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.agent.tunnel import TunnelKeeper
from muslin.errors import MuslinError
from muslin.kernel import netns as netns_door
from muslin.kernel import programs
from muslin.kernel.programs import TUNNEL_MARK, Program
from muslin.model.kernel import Address, Link, Netns, Tun, Veth
from muslin.model.network import Tunnel
from tests.contract.kernels import NEEDS_ROOT, World
from tests.contract.tunnel_bench import CORE, NumberedFlow, missing, wait_for

MISSING = missing()
pytestmark = [pytest.mark.kernel, NEEDS_ROOT, pytest.mark.skipif(bool(MISSING), reason=f"tunnel: {MISSING}")]

DEVICE = "muslin-udp"
PEERS = {"a": (("172.16.1.0/24", "10.0.0.20:8285"),), "b": (("172.16.0.0/24", "10.0.0.10:8285"),)}
# An agent as far as the tunnel goes: it converges once, says so and stays until it is killed.
AGENT = """
import sys
from pathlib import Path
from muslin.agent.tunnel import TunnelKeeper
from muslin.model.network import Tunnel
directory, netns, device, listen, *peers = sys.argv[1:]
pairs = tuple(tuple(peer.split("=")) for peer in peers)
TunnelKeeper(Path(directory), netns).converge(Tunnel(netns=netns, device=device, listen=listen, peers=pairs))
print("converged", flush=True)
sys.stdin.read()
"""


class Pair:
    """The two nodes of the drawing, without tunnels yet."""

    def __init__(self, world: World, path: Path) -> None:
        self.netns = {name: world.netns(name) for name in ("a", "b")}
        self.path = path
        a, b = self.netns["a"], self.netns["b"]
        links = [
            Link(netns=a, name="eth0", options=Veth(peer_netns=b, peer="eth0"), up=True),
            Link(netns=b, name="eth0", options=Veth(peer_netns=a, peer="eth0"), up=True),
            *(Link(netns=netns, name=DEVICE, options=Tun(), mtu=1472, up=True) for netns in (a, b)),
        ]
        addresses = {(a, "eth0"): "10.0.0.10/24", (b, "eth0"): "10.0.0.20/24"}
        addresses |= {(a, DEVICE): "172.16.0.0/16", (b, DEVICE): "172.16.1.0/16"}
        world.build(
            [
                *(Netns(netns=netns) for netns in (a, b)),
                *links,
                *(Address(netns=netns, link=link, address=text) for (netns, link), text in addresses.items()),
            ]
        )

    def keeper(self, name: str) -> TunnelKeeper:
        return TunnelKeeper(self.path / name, self.netns[name])

    def wanted(self, name: str, port: int = 8285, more: tuple[tuple[str, str], ...] = ()) -> Tunnel:
        listen = f"10.0.0.{'10' if name == 'a' else '20'}:{port}"
        return Tunnel(netns=self.netns[name], device=DEVICE, listen=listen, peers=PEERS[name] + more)

    def running(self, name: str) -> list[Program]:
        return programs.find(TUNNEL_MARK, [self.netns[name]])

    def udp(self, name: str, address: str, port: int = 0) -> socket.socket:
        made = netns_door.call_in(self.netns[name], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind((address, port))
        made.settimeout(10.0)
        return made

    @contextlib.contextmanager
    def flow(self) -> Iterator[NumberedFlow]:
        """Datagrams from a to b while the body runs."""
        with self.udp("a", "172.16.0.0") as sender, self.udp("b", "172.16.1.0", 7000) as receiver:
            sender.connect(("172.16.1.0", 7000))
            with NumberedFlow(sender, receiver).running() as flow:
                yield flow


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    world = World("linux")
    try:
        made = Pair(world, tmp_path)
        yield made
        assert [program for name in made.netns for program in made.running(name)] == [], "the keepers ended all"
    finally:
        pids = netns_door.processes_in(
            {inode for name in ("a", "b") if (inode := netns_door.inode_of(world.netns(name)))}
        )
        programs.end_processes(pids, grace_s=0)
        world.close()


def carries(pair: Pair) -> bool:
    with pair.udp("a", "172.16.0.0") as sender, pair.udp("b", "172.16.1.0") as receiver:
        receiver.settimeout(0.2)
        sender.sendto(b"hello", receiver.getsockname())
        with contextlib.suppress(TimeoutError):
            return receiver.recv(10) == b"hello"
    return False


def test_a_life(pair: Pair) -> None:
    """Started by an agent that is killed, adopted by the next one, told of peers, moved to another port, ended."""
    far = pair.keeper("b")
    far.converge(pair.wanted("b"))
    wanted = pair.wanted("a")
    peers = ["=".join(peer) for peer in wanted.peers]
    words = [str(pair.path / "a"), wanted.netns, DEVICE, wanted.listen, *peers]
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"converged\n"
        (first,) = pair.running("a")
        with pair.flow() as flow:
            flow.wait_for_more(100)
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            flow.wait_for_more(100)
            keeper = pair.keeper("a")
            keeper.converge(wanted)
            for turn in range(5):
                flow.wait_for_more(100)
                keeper.converge(pair.wanted("a", more=((f"172.16.{turn + 2}.0/24", f"10.0.0.{turn + 30}:8285"),)))
        assert flow.lost == set()
    assert pair.running("a") == [first]
    status = keeper.status()
    assert status is not None
    assert (status.pid, status.listen, status.peers) == (first.pid, "10.0.0.10:8285", 2)
    assert status.counters["packets_to_peers"] >= flow.sent
    by_peer = {"10.0.0.20:8285": status.counters["packets_to_peers"]} if CORE else {}
    assert {peer: counts["packets_to_peers"] for peer, counts in status.peer_counters.items()} == by_peer

    keeper.converge(pair.wanted("a", port=8286))
    (second,) = pair.running("a")
    assert second.pid != first.pid
    assert not carries(pair), "b does not know the new port yet"
    far.converge(
        Tunnel(
            netns=pair.netns["b"],
            device=DEVICE,
            listen="10.0.0.20:8285",
            peers=(("172.16.0.0/24", "10.0.0.10:8286"),),
        )
    )
    assert carries(pair)

    for each in (keeper, far):
        each.converge(None)
    assert [list(path.iterdir()) for path in pair.path.iterdir()] == [[], []]


def test_one_that_was_killed_is_started_again(pair: Pair) -> None:
    keepers = {name: pair.keeper(name) for name in ("a", "b")}
    for name, keeper in keepers.items():
        keeper.converge(pair.wanted(name), now=100.0)
    assert carries(pair)
    (victim,) = pair.running("a")
    programs.send_signal(victim, signal.SIGKILL)
    wait_for(lambda: not victim.is_alive, "its end")
    assert "does not run" in keepers["a"].check(200.0)
    assert keepers["b"].check(200.0) == ""

    keepers["a"].converge(pair.wanted("a"), now=200.0)

    assert carries(pair)
    for keeper in keepers.values():
        keeper.converge(None)


def test_it_says_why_it_cannot_start(pair: Pair) -> None:
    keeper = pair.keeper("a")
    taken = Tunnel(netns=pair.netns["a"], device="eth0", listen="10.0.0.10:8285", peers=())
    with pytest.raises(MuslinError, match="cannot attach to the TUN device eth0: Invalid argument"):
        keeper.converge(taken)
    elsewhere = Tunnel(netns=pair.netns["a"], device=DEVICE, listen="10.0.0.77:8285", peers=())
    with pytest.raises(MuslinError, match=r"cannot listen on 10\.0\.0\.77:8285"):
        keeper.converge(elsewhere)

    keeper.converge(pair.wanted("a"))  # other words, so at once

    assert keeper.check() == ""
    keeper.converge(None)


@pytest.mark.skipif(not CORE, reason="the tunnel core is not built; ./run test builds it, given gcc")
def test_a_new_program_succeeds_the_old_one_amid_a_flow(pair: Pair) -> None:
    old, new = pair.path / "old-core", pair.path / "new-core"
    for path in (old, new):
        shutil.copy(CORE, path)
    keepers = {name: TunnelKeeper(pair.path / name, pair.netns[name], program=(str(old),)) for name in ("a", "b")}
    for name, keeper in keepers.items():
        keeper.converge(pair.wanted(name))
    before = {name: pair.running(name)[0].pid for name in keepers}

    with pair.flow() as flow:
        for name in keepers:
            flow.wait_for_more(500)
            keepers[name] = TunnelKeeper(pair.path / name, pair.netns[name], program=(str(new),))
            keepers[name].converge(pair.wanted(name))
        flow.wait_for_more(500)

    assert flow.lost == set()
    for name, keeper in keepers.items():
        (running,) = pair.running(name)
        assert (running.pid != before[name], running.words[0]) == (True, str(new))
        keeper.converge(pair.wanted(name))
        assert pair.running(name)[0].pid == running.pid, "it is as it should be"
        keeper.converge(None)


def test_one_of_another_directory_that_holds_the_device_makes_way(pair: Pair) -> None:
    TunnelKeeper(pair.path / "old", pair.netns["a"]).converge(pair.wanted("a"))
    (old,) = pair.running("a")

    keeper = pair.keeper("a")
    keeper.converge(pair.wanted("a"))

    (new,) = pair.running("a")
    assert new.pid != old.pid
    keeper.converge(None)
