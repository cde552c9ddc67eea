"""How packets get from node to node: one encapsulation a file, all pure, named by an explicit table.

Theory of operation: a backend is

- ``parse_options(options) -> Options``: the options of the network configuration, checked. ``Options()`` is what a lab
  uses, ``parse_options({})`` what an agent uses when nothing is said; the two differ where the talk and flannel do;
- ``advertise(options, local) -> (data, data_v6)``: what the node's lease tells the peers, by family of the underlay;
- ``plan_own(local, options=Options()) -> BackendPlan``: what the node has however many peers there are;
- ``plan_peers(local, peers, options=Options(), *, use_nexthops=False) -> BackendPlan``: the kernel objects for these
  peers, and a refusal with the reason for each that cannot be served, which keeps no other from being served. What is
  planned for a peer depends on another one only where both want the same key (a MAC, a number): so an agent plans a
  changed lease alone (``agent.planner``). ``Backend.plan`` makes one of the two;
- ``mtu(options, local)``: the bytes of a container's largest packet (FLANNEL_MTU);
- ``overhead_bytes(family)``: the bytes that it puts around each packet on an underlay of that family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from muslin.backends import alloc, host_gw, udp, vxlan
from muslin.model.address import Family
from muslin.model.network import BackendPlan, LocalNode, Peer

Options = alloc.Options | host_gw.Options | udp.Options | vxlan.Options


class Backend(NamedTuple):
    """The functions of one backend. Where they take options, they take those that its own parse_options returns."""

    plan_own: Callable[..., BackendPlan]
    plan_peers: Callable[..., BackendPlan]
    overhead_bytes: Callable[[Family], int]
    parse_options: Callable[[Mapping[str, Any]], Options]
    advertise: Callable[[Any, LocalNode], tuple[dict[str, Any], dict[str, Any]]]
    mtu: Callable[[Any, LocalNode], int]

    def plan(self, local: LocalNode, peers: Sequence[Peer], *options: Any, use_nexthops: bool = False) -> BackendPlan:
        """All that the backend wants on a node with these peers."""
        return self.plan_own(local, *options).with_peers(
            self.plan_peers(local, peers, *options, use_nexthops=use_nexthops)
        )


BACKENDS: dict[str, Backend] = {
    module.NAME: Backend(
        module.plan_own,
        module.plan_peers,
        module.overhead_bytes,
        module.parse_options,
        module.advertise,
        module.mtu,
    )
    for module in (alloc, host_gw, udp, vxlan)
}
