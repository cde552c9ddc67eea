"""One container on a node: its namespace, its cable, its address and its way out.

Theory of operation: a container is a network namespace, and its cable a veth: one end on the node, the other end in
the container. There are three ways to connect the two.

- ``bridge`` plugs the node's end into the node's bridge (the talk's step 2), which is the gateway.
- ``direct`` has no bridge (its step 1): the container has a single address, the node a route to just that address, and
  the container's default route names the container itself as gateway, which makes the kernel ask for every address
  directly on the cable. IPv6 refuses an own address as gateway (ip6_route_check_nh, net/ipv6/route.c), and a node
  answers there only for addresses of that very link (ndisc_recv_ns, net/ipv6/ndisc.c); so the node's end of the cable
  gets ``fe80::1`` and is the gateway.
- ``routed`` has none either, for containers by the thousand (a bridge takes 1,024 ports): the node's end of each cable
  has the gateway's address, alone, and each end a permanent neighbour entry for the other, so that nobody ever asks.

A lab makes the namespace; a container runtime has made one, and then just what is inside is planned (``has_netns``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.model.address import (
    DEFAULT_PREFIX,
    Family,
    address_part,
    family_of,
    host_prefix,
)
from muslin.model.kernel import (
    Address,
    AnyObject,
    Link,
    Loopback,
    Neighbour,
    Netns,
    Route,
    Sysctl,
    Veth,
)
from muslin.model.network import of_family
from muslin.plan import sources
from muslin.plan.node import no_duplicate_detection

DIRECT_GATEWAY = "fe80::1/64"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a container when it is attached."""

    node_netns: str
    netns: str
    node_link: str
    """The name of the cable's end on the node."""
    link: str
    """The name of the cable's end in the container."""
    mode: Literal["bridge", "direct", "routed"]
    addresses: tuple[str, ...]
    """With length, ``172.16.0.2/24``; at most one a family."""
    gateways: tuple[str, ...] = ()
    bridge: str | None = None
    mtu: int | None = None
    up: bool = True
    has_netns: bool = False
    """Whether the container's namespace is there already, somebody else's."""
    mac: str | None = None
    """That of the container's end; ``node_mac`` that of the node's. Neighbour entries and checks need to know them."""
    node_mac: str | None = None
    alias: str | None = None
    """Of the node's end."""
    hairpin: bool | None = None
    ways_out: tuple[str, ...] | None = None
    """The networks to be reached by the gateway; None: everything."""
    checks_sources: bool = False
    """Whether it may send from its own MAC and addresses alone (``plan.sources``)."""

    @property
    def filter_family(self) -> sources.Family:
        """The packet filter's family that sees what it sends."""
        return "bridge" if self.mode == "bridge" else "inet"


def plan(attachment: Attachment) -> tuple[AnyObject, ...]:
    """The objects of one container, on both sides of its cable."""
    return (
        *_namespace(attachment),
        *_cable(attachment),
        Link(netns=attachment.netns, name="lo", options=Loopback(), up=True),
        *_gateway(attachment),
        *(
            Address(netns=attachment.netns, link=attachment.link, address=_on_link(attachment, address))
            for address in attachment.addresses
        ),
        *_neighbours(attachment),
        *_routes(attachment),
        *_sources(attachment),
    )


def plan_node_side(attachment: Attachment) -> tuple[AnyObject, ...]:
    """Of these the objects on the node, which can be kept without entering the container."""
    return tuple(obj for obj in plan(attachment) if obj.netns == attachment.node_netns)


def _namespace(attachment: Attachment) -> Iterator[AnyObject]:
    families = tuple(family_of(address) for address in attachment.addresses)
    if not attachment.has_netns:
        yield Netns(netns=attachment.netns)
    elif 6 in families:  # a runtime may have turned it off for interfaces to come
        yield Sysctl(netns=attachment.netns, name="net/ipv6/conf/default/disable_ipv6", value="0")
    yield from no_duplicate_detection(attachment.netns, families)


def _cable(attachment: Attachment) -> Iterator[Link]:
    yield Link(
        netns=attachment.node_netns,
        name=attachment.node_link,
        options=Veth(peer_netns=attachment.netns, peer=attachment.link),
        mtu=attachment.mtu,
        mac=attachment.node_mac,
        alias=attachment.alias,
        master=attachment.bridge if attachment.mode == "bridge" else "",
        hairpin=attachment.hairpin,
        up=True,
    )
    yield Link(
        netns=attachment.netns,
        name=attachment.link,
        options=Veth(peer_netns=attachment.node_netns, peer=attachment.node_link),
        mtu=attachment.mtu,
        mac=attachment.mac,
        up=attachment.up,
    )


def _gateway(attachment: Attachment) -> Iterator[Address]:
    """The gateway's addresses on the node's end of the cable."""
    place = {"netns": attachment.node_netns, "link": attachment.node_link}
    if attachment.mode == "direct" and of_family(attachment.addresses, 6):
        yield Address(**place, address=DIRECT_GATEWAY)
    if attachment.mode == "routed":
        yield from (Address(**place, address=host_prefix(gateway)) for gateway in attachment.gateways)


def _on_link(attachment: Attachment, address: str) -> str:
    return address if attachment.mode == "bridge" else host_prefix(address_part(address))


def _neighbours(attachment: Attachment) -> Iterator[Neighbour]:
    """What the two ends of a cable without a bridge know of each other."""
    if attachment.mode == "routed" and attachment.mac and attachment.node_mac:
        node = {"netns": attachment.node_netns, "link": attachment.node_link, "mac": attachment.mac}
        inside = {"netns": attachment.netns, "link": attachment.link, "mac": attachment.node_mac}
        yield from (Neighbour(**node, address=address_part(address)) for address in attachment.addresses)
        yield from (Neighbour(**inside, address=gateway) for gateway in attachment.gateways)


def _routes(attachment: Attachment) -> Iterator[Route]:
    for address in attachment.addresses:
        own, family = address_part(address), family_of(address)
        gateway = of_family(attachment.gateways, family)
        if attachment.mode != "bridge":
            yield Route(netns=attachment.node_netns, destination=host_prefix(own), link=attachment.node_link)
        if attachment.mode == "direct":
            gateway = own if family == 4 else address_part(DIRECT_GATEWAY)
        if not (attachment.up and gateway):
            continue
        if attachment.mode == "routed":
            yield Route(netns=attachment.netns, destination=host_prefix(gateway), link=attachment.link)
        for way in _ways_out(attachment, family):
            yield Route(netns=attachment.netns, destination=way, via=gateway, link=attachment.link)


def _ways_out(attachment: Attachment, family: Family) -> list[str]:
    if attachment.ways_out is None:
        return [DEFAULT_PREFIX[family]]
    return [network for network in attachment.ways_out if family_of(network) == family]


def _sources(attachment: Attachment) -> Iterator[AnyObject]:
    if attachment.checks_sources and attachment.mac:
        cable = attachment.node_link
        netns, family, mac = attachment.node_netns, attachment.filter_family, attachment.mac
        yield from sources.elements(netns, family, cable, mac, attachment.addresses)
