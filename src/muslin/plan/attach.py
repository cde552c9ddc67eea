"""One container on a node: its namespace, its cable, its address and its way out.

Theory of operation: a container is a network namespace, and its cable a veth: one end on the node, the other end in
the container. ``bridge`` plugs the node's end into the node's bridge (the talk's step 2). ``direct`` has no bridge
(its step 1): the container has a single address, the node a route to just that address, and the container's default
route names the container itself as gateway, which makes the kernel ask for every address directly on the cable. IPv6
refuses an own address as gateway (ip6_route_check_nh, net/ipv6/route.c), and a node answers there only for addresses
of that very link (ndisc_recv_ns, net/ipv6/ndisc.c); so the node's end of the cable gets ``fe80::1`` and is the gateway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from muslin.model.address import (
    DEFAULT_PREFIX,
    address_part,
    family_of,
    host_prefix,
)
from muslin.model.kernel import Address, AnyObject, Link, Loopback, Netns, Route, Veth
from muslin.model.network import of_family
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
    mode: Literal["bridge", "direct"]
    addresses: tuple[str, ...]
    """With length, ``172.16.0.2/24``; at most one a family."""
    gateways: tuple[str, ...] = ()
    bridge: str | None = None
    mtu: int | None = None
    up: bool = True


def plan(attachment: Attachment) -> tuple[AnyObject, ...]:
    """The objects of one container, on both sides of its cable."""
    return (
        Netns(netns=attachment.netns),
        *no_duplicate_detection(attachment.netns, tuple(family_of(address) for address in attachment.addresses)),
        *_cable(attachment),
        Link(netns=attachment.netns, name="lo", options=Loopback(), up=True),
        *_direct_gateway(attachment),
        *(
            Address(netns=attachment.netns, link=attachment.link, address=_on_link(attachment, address))
            for address in attachment.addresses
        ),
        *_routes(attachment),
    )


def _cable(attachment: Attachment) -> Iterator[Link]:
    yield Link(
        netns=attachment.node_netns,
        name=attachment.node_link,
        options=Veth(peer_netns=attachment.netns, peer=attachment.link),
        mtu=attachment.mtu,
        master=attachment.bridge if attachment.mode == "bridge" else "",
        up=True,
    )
    yield Link(
        netns=attachment.netns,
        name=attachment.link,
        options=Veth(peer_netns=attachment.node_netns, peer=attachment.node_link),
        mtu=attachment.mtu,
        up=attachment.up,
    )


def _direct_gateway(attachment: Attachment) -> Iterator[Address]:
    if attachment.mode == "direct" and of_family(attachment.addresses, 6):
        yield Address(netns=attachment.node_netns, link=attachment.node_link, address=DIRECT_GATEWAY)


def _on_link(attachment: Attachment, address: str) -> str:
    return host_prefix(address_part(address)) if attachment.mode == "direct" else address


def _routes(attachment: Attachment) -> Iterator[Route]:
    for address in attachment.addresses:
        own, family = address_part(address), family_of(address)
        gateway = of_family(attachment.gateways, family)
        if attachment.mode == "direct":
            yield Route(netns=attachment.node_netns, destination=host_prefix(own), link=attachment.node_link)
            gateway = own if family == 4 else address_part(DIRECT_GATEWAY)
        if attachment.up and gateway:
            yield Route(netns=attachment.netns, destination=DEFAULT_PREFIX[family], via=gateway, link=attachment.link)
