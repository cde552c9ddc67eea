"""How packets get from node to node: one encapsulation a file, all pure, named by an explicit table.

Theory of operation: a backend is

- ``parse_options(options) -> Options``: the options of the network configuration, checked. ``Options()`` is what a lab
  uses, ``parse_options({})`` what an agent uses when nothing is said; the two differ where the talk and flannel do;
- ``advertise(options, local) -> (data, data_v6)``: what the node's lease tells the peers, by family of the underlay;
- ``plan(local, peers, options=Options(), *, use_nexthops=False) -> BackendPlan``: the kernel objects, and a refusal
  with the reason for each peer that cannot be served; one such peer never keeps another from being served;
- ``mtu(options, local)``: the bytes of a container's largest packet (FLANNEL_MTU);
- ``overhead_bytes(family)``: the bytes that it puts around each packet on an underlay of that family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from muslin.backends import alloc, host_gw, udp, vxlan
from muslin.model.address import Family
from muslin.model.network import BackendPlan, LocalNode

Options = alloc.Options | host_gw.Options | udp.Options | vxlan.Options


class Backend(NamedTuple):
    """The functions of one backend. Where they take options, they take those that its own parse_options returns."""

    plan: Callable[..., BackendPlan]
    overhead_bytes: Callable[[Family], int]
    parse_options: Callable[[Mapping[str, Any]], Options]
    advertise: Callable[[Any, LocalNode], tuple[dict[str, Any], dict[str, Any]]]
    mtu: Callable[[Any, LocalNode], int]


BACKENDS: dict[str, Backend] = {
    module.NAME: Backend(module.plan, module.overhead_bytes, module.parse_options, module.advertise, module.mtu)
    for module in (alloc, host_gw, udp, vxlan)
}
