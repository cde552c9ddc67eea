"""From what a message says to what a plan is made of: records carry interface numbers, objects carry names.

Theory of operation: ``kernel.observe`` and ``kernel.watch`` see the same messages, one as the answer to a question and
one as news, and turn them into objects by the same functions. ``names`` are the names of the interfaces by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    LinkOptions,
    Loopback,
    Neighbour,
    Nexthop,
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import (
    AddressRecord,
    FdbRecord,
    LinkRecord,
    NeighbourRecord,
    NetconfRecord,
    NexthopRecord,
    RouteRecord,
    RuleRecord,
)

NUD_PERMANENT = 0x80  # uapi/linux/neighbour.h
UNKNOWN_END = ("", "")
"""Namespace and name of the far end of a cable, where they are not known."""


def is_learned(record: object) -> bool:
    """Whether it is an entry that the kernel learned, or failed to learn, itself: not one that somebody made."""
    return isinstance(record, NeighbourRecord | FdbRecord) and not (record.state & NUD_PERMANENT and record.mac)


def object_of(netns: str, record: object, names: Mapping[int, str]) -> AnyObject | None:
    """The object, of any kind but links; None for what no object of ours can be."""
    match record:
        case AddressRecord():
            return Address(netns=netns, link=names.get(record.ifindex, ""), address=record.address)
        case RouteRecord():
            return _route(netns, record, names)
        case NexthopRecord():
            return Nexthop(
                netns=netns,
                id=record.id,
                link=names.get(record.ifindex or 0, ""),
                via=record.via,
                onlink=record.onlink,
                protocol=record.protocol,
            )
        case RuleRecord():
            return _rule(netns, record)
        case NeighbourRecord():
            link = names.get(record.ifindex, "")
            return Neighbour(netns=netns, link=link, address=record.address, mac=record.mac)
        case FdbRecord() if record.destination:
            link = names.get(record.ifindex, "")
            return FdbEntry(netns=netns, link=link, mac=record.mac, destination=record.destination)
    return None


def _route(netns: str, record: RouteRecord, names: Mapping[int, str]) -> Route:
    return Route(
        netns=netns,
        destination=record.destination,
        link=names.get(record.ifindex) if record.ifindex else None,
        via=record.via,
        nexthop_id=record.nexthop_id or None,
        source=record.source,
        metric=record.metric,
        table=record.table,
        protocol=record.protocol,
        scope=record.scope,
        kind=record.kind,  # type: ignore[arg-type]
        onlink=record.onlink,
        mtu=record.mtu,
    )


def _rule(netns: str, record: RuleRecord) -> Rule | None:
    """The rule; None for one of others that says more than ours can, and so is none of them."""
    whole_mark = record.fwmask in (0, 0xFFFFFFFF)
    if record.action != "lookup" or record.inverted or record.oif or not whole_mark:
        return None
    return Rule(
        netns=netns,
        family=6 if record.family == rtnetlink.AF_INET6 else 4,
        priority=record.priority,
        table=record.table,
        source=record.source,
        destination=record.destination,
        iif=record.iif or None,
        fwmark=record.fwmark or None,
        protocol=record.protocol,
    )


def link_of(netns: str, record: LinkRecord, names: Mapping[int, str], far_end: tuple[str, str] = UNKNOWN_END) -> Link:
    """The link; ``far_end`` is that of a veth."""
    return Link(
        netns=netns,
        name=record.name,
        options=_options(record, names, far_end),
        mtu=record.mtu,
        mac=record.mac or "",
        alias=record.alias or "",
        master=names.get(record.master_ifindex or 0, ""),
        hairpin=record.hairpin,
        up=record.up,
    )


def _options(record: LinkRecord, names: Mapping[int, str], far_end: tuple[str, str]) -> LinkOptions:
    match record.kind:
        case "loopback":
            return Loopback()
        case "bridge":
            return Bridge()
        case "tun" if record.tun_type != "tap":
            return Tun()
        case "veth":
            return Veth(peer_netns=far_end[0], peer=far_end[1])
        case "vxlan" if record.vxlan is not None:
            return Vxlan(
                vni=record.vxlan.vni,
                local=record.vxlan.local or "",
                port=record.vxlan.port,
                underlay=names.get(record.vxlan.device_ifindex or 0),
                learning=record.vxlan.learning,
                gbp=record.vxlan.gbp,
            )
    return OtherKind(kind=record.kind)


def settings_of(netns: str, record: NetconfRecord, names: Mapping[int, str]) -> Iterator[Sysctl]:
    """The settings that it tells of, under each of their names; none of an interface without a name."""
    all_of_them = {rtnetlink.NETCONFA_IFINDEX_ALL: "all", rtnetlink.NETCONFA_IFINDEX_DEFAULT: "default"}
    place = all_of_them.get(record.ifindex) or names.get(record.ifindex)
    family = "ipv6" if record.family == rtnetlink.AF_INET6 else "ipv4"
    if not place:
        return
    for setting, value in (("forwarding", record.forwarding), ("rp_filter", record.rp_filter)):
        if value is None:
            continue
        yield Sysctl(netns=netns, name=f"net/{family}/conf/{place}/{setting}", value=str(value))
        if (family, place, setting) == ("ipv4", "all", "forwarding"):
            yield Sysctl(netns=netns, name="net/ipv4/ip_forward", value=str(value))
