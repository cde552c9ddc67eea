"""The objects of a Linux network as frozen values.

Theory of operation: each class is one kind of thing that the kernel holds inside a network namespace (a link, an
address, a route, ...). A value names its namespace, so that a whole lab of namespaces is one flat set of values.
Every object has

- ``key``: what the kernel itself tells such objects apart by. Two objects with one key cannot coexist;
- ``requires``: keys of the objects that must exist first;
- ``satisfied_by``: whether an observed object is what this one asks for. A field that is None asks for nothing;
- ``describe``: the command that a person would type to add it (``ip``, ``bridge``, ``sysctl``, ``nft``).

The empty namespace name is the namespace that Muslin itself runs in (an agent's host). Names of namespaces are
those of ip-netns(8).
"""

from __future__ import annotations

from muslin.model.link import (
    IFNAME_MAX,
    LINK_ATTRIBUTES,
    VXLAN_PORT,
    Address,
    Bridge,
    Link,
    LinkAttribute,
    LinkOptions,
    Loopback,
    Netns,
    OtherKind,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.objects import (
    KernelObject,
    Key,
    inside,
    ip_command,
    link_key,
    netns_key,
)
from muslin.model.routing import (
    IPV6_DEFAULT_METRIC,
    PROTOCOL_BOOT,
    PROTOCOL_KERNEL,
    PROTOCOL_MUSLIN,
    TABLE_LOCAL,
    TABLE_MAIN,
    FdbEntry,
    Neighbour,
    Nexthop,
    Route,
    RouteKind,
    Rule,
)
from muslin.model.setting import (
    NftElement,
    NftTable,
    Sysctl,
)

AnyObject = Netns | Link | Address | Nexthop | Route | Rule | Neighbour | FdbEntry | Sysctl | NftTable | NftElement
"""The closed set of kinds, as msgspec needs it for decoding."""

__all__ = [
    "IFNAME_MAX",
    "IPV6_DEFAULT_METRIC",
    "LINK_ATTRIBUTES",
    "PROTOCOL_BOOT",
    "PROTOCOL_KERNEL",
    "PROTOCOL_MUSLIN",
    "TABLE_LOCAL",
    "TABLE_MAIN",
    "VXLAN_PORT",
    "Address",
    "AnyObject",
    "Bridge",
    "FdbEntry",
    "KernelObject",
    "Key",
    "Link",
    "LinkAttribute",
    "LinkOptions",
    "Loopback",
    "Neighbour",
    "Netns",
    "Nexthop",
    "NftElement",
    "NftTable",
    "OtherKind",
    "Route",
    "RouteKind",
    "Rule",
    "Sysctl",
    "Tun",
    "Veth",
    "Vxlan",
    "inside",
    "ip_command",
    "link_key",
    "netns_key",
]
