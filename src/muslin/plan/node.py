"""One node: its bridge with the containers' gateway addresses, and whether it forwards.

Theory of operation: the node's own namespace and underlay come from elsewhere (a lab makes them, a host has them).
A namespace may inherit settings from the host it was made on (net.core.devconf_inherit_init_net), so the ones that
the network depends on are always stated.
"""

from __future__ import annotations

from collections.abc import Iterator

from muslin.model.address import Family
from muslin.model.kernel import Address, AnyObject, Bridge, Link, Sysctl

FORWARDING_SETTING: dict[Family, str] = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def bridge(
    netns: str, name: str, addresses: tuple[str, ...], mtu: int | None = None, mac: str | None = None
) -> Iterator[AnyObject]:
    """A bridge that is also the containers' gateway: ``addresses`` with length."""
    yield Link(netns=netns, name=name, options=Bridge(), mtu=mtu, mac=mac, up=True)
    for address in addresses:
        yield Address(netns=netns, link=name, address=address)


def forwarding(netns: str, families: tuple[Family, ...], enabled: bool) -> Iterator[Sysctl]:
    """Whether packets that are not for the node itself are passed on."""
    for family in families:
        yield Sysctl(netns=netns, name=FORWARDING_SETTING[family], value=str(int(enabled)))


def no_duplicate_detection(netns: str, families: tuple[Family, ...]) -> Iterator[Sysctl]:
    """IPv6 link-local addresses that serve at once, instead of after a second of asking who else has them (RFC 4862).

    Until then a node cannot ask for its neighbours. On a cable with two ends, nobody else can have them.
    """
    if 6 in families:
        for scope in ("all", "default"):
            yield Sysctl(netns=netns, name=f"net/ipv6/conf/{scope}/accept_dad", value="0")


def no_reverse_path_filter(netns: str) -> Iterator[Sysctl]:
    """Packets are taken from whatever link they come by (the kernel's own default, Documentation ip-sysctl.rst)."""
    for scope in ("all", "default"):
        yield Sysctl(netns=netns, name=f"net/ipv4/conf/{scope}/rp_filter", value="0")
