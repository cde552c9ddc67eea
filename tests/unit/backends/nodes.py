"""Two nodes for the tests of the backends, each with a container subnet of both families.

172.16.0.0/24 ── node1 10.0.0.10 ──── 10.0.0.20 node2 ── 172.16.1.0/24
fd16:0::/64            fd10::10       fd10::20           fd16:1::/64
"""

from __future__ import annotations

from collections.abc import Iterable

from muslin.model.address import Family, family_of
from muslin.model.kernel import AnyObject, Link
from muslin.model.network import LocalNode, Peer

MAC1, MAC2 = "02:00:00:00:00:01", "02:00:00:00:00:02"


def only(values: tuple[str, ...], families: tuple[Family, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if family_of(value) in families)


def local_node(underlay: tuple[Family, ...], inner: tuple[Family, ...]) -> LocalNode:
    return LocalNode(
        name="node1",
        netns="n1",
        underlay_link="eth0",
        underlay_mtu=1500,
        addresses=only(("10.0.0.10", "fd10::10"), underlay),
        subnets=only(("172.16.0.0/24", "fd16::/64"), inner),
        networks=only(("172.16.0.0/16", "fd16::/48"), inner),
        bridge="br0",
        vtep_mac=MAC1,
    )


def peer_node(underlay: tuple[Family, ...], inner: tuple[Family, ...], link: str | None = "eth0") -> Peer:
    return Peer(
        name="node2",
        addresses=only(("10.0.0.20", "fd10::20"), underlay),
        subnets=only(("172.16.1.0/24", "fd16:0:0:1::/64"), inner),
        link=link,
        vtep_mac=MAC2,
    )


def described(objects: Iterable[AnyObject]) -> list[str]:
    """The commands, less the `ip -n n1` that all of them begin with, and each link's attributes."""
    lines = []
    for obj in objects:
        up = " up" if isinstance(obj, Link) and obj.up else ""
        lines.append(obj.describe().replace(" -n n1", "").replace("ip netns exec n1 ", "") + up)
    return lines
