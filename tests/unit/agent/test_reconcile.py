"""The order in which a host goes from one way to another, on a fake kernel with a toy tunnel."""

from __future__ import annotations

from pathlib import Path

import msgspec

from muslin.agent.files import StateDirectory
from muslin.agent.reconcile import HostOptions, Reconciler, Wish
from muslin.agent.underlay import UnderlayOptions
from muslin.model.kernel import Route
from muslin.model.lease import Advertisement, Lease
from muslin.model.network import Tunnel
from muslin.store.memory import MemoryData
from muslin.wire.flannel_config import parse_network_config
from tests.unit.agent.hosts import Host, ToyTunnels, config

PEER = "10.5.2.0/24"


def lease(backend: str) -> Lease:
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"} if backend == "vxlan" else {"Port": 8285}
    return Lease(subnets=(PEER,), advertisement=Advertisement(addresses=("10.0.0.2",), backend=backend, data=data))


class SlowTunnels(ToyTunnels):
    """Notes, whenever it is told of peers, whether there was a route of its own to the peer."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.told: list[tuple[bool, bool]] = []

    def converge(self, tunnel: Tunnel | None) -> None:
        super().converge(tunnel)
        routes = [obj for obj in self.host.kernel.objects.values() if isinstance(obj, Route)]
        knows = tunnel is not None and any(prefix == PEER for prefix, _ in tunnel.peers)
        self.told.append((knows, any(route.destination == PEER for route in routes)))


def test_a_tunnel_knows_a_peer_before_the_other_way_to_it_goes(tmp_path: Path) -> None:
    host = Host(1, tmp_path, MemoryData())
    tunnels = SlowTunnels(host)
    options = HostOptions(name="host1", underlay=UnderlayOptions(iface=("eth0",)))
    directory = StateDirectory(tmp_path)
    reconciler = Reconciler(host.kernel, directory.journal(), tunnels, options)
    old, new = (parse_network_config(config(backend)) for backend in ("vxlan", "udp"))
    wish = Wish(config=old, subnets=("10.5.1.0/24",), leases=(lease("vxlan"),), vtep_mac="02:00:00:00:00:01")
    assert not reconciler.look(wish).failures
    tunnels.told.clear()

    # This host is the last to follow: the peer says already that it is to be reached by the tunnel.
    changed = msgspec.structs.replace(wish, config=new, previous=old, leases=(lease("udp"),))
    assert not reconciler.look(changed).failures

    assert tunnels.told == [(True, True), (True, False)]
