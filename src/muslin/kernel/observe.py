"""Look: what the kernel holds, as the same values that a plan is made of.

Theory of operation: each namespace is dumped by its own socket; records carry interface numbers, objects carry
names, and here one becomes the other. The far end of a veth lies in another namespace: the record names its number
and, as an id that only the near namespace knows, its namespace. Ends are matched by their numbers both ways, and by
asking for that id where the numbers alone leave a doubt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from muslin.kernel import netns as netns_door
from muslin.kernel import nft, nft_sets
from muslin.kernel.base import Scope
from muslin.kernel.sessions import Session, Sessions
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    LinkOptions,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.state import Snapshot
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import (
    AddressRecord,
    FdbRecord,
    LinkRecord,
    NeighbourRecord,
    NexthopRecord,
    NsidRecord,
    Request,
    RouteRecord,
    RuleRecord,
)

NUD_PERMANENT = 0x80  # uapi/linux/neighbour.h


def observe(sessions: Sessions, scope: Scope) -> Snapshot:
    """All objects of the scope. A namespace that does not exist is left out; anything unreadable is an OSError."""
    links: dict[str, list[LinkRecord]] = {}
    objects: list[AnyObject] = []
    for netns in scope.netns:
        try:
            session = sessions.get(netns)
        except FileNotFoundError:
            continue
        if netns:
            objects.append(Netns(netns=netns))
        links[netns] = session.links()
        objects += _observe_tables(session, scope, {link.ifindex: link.name for link in links[netns]})
    peers = _PeerFinder(sessions, links)
    for netns, records in links.items():
        objects += _link_objects(netns, records, peers)
    objects += _observe_sysctls(sessions, scope, set(links))
    for netns, family, table in scope.nft:
        if netns in links and (found := nft.read_table(sessions.get(netns), family, table)):
            objects.append(found)
    for netns, family, table, name in scope.nft_sets:
        if netns in links:
            objects += nft_sets.read_elements(sessions.get(netns), family, table, name)
    return Snapshot.of(objects)


def _dump(session: Session, request: Request) -> Iterator[object]:
    for message in session.netlink.dump(request):
        record = rtnetlink.parse_record(message)
        if record is not None:
            yield record


def _observe_tables(session: Session, scope: Scope, names: dict[int, str]) -> Iterator[AnyObject]:
    netns = session.netns
    requests = [rtnetlink.address_dump(), rtnetlink.route_dump(0)]
    requests += [rtnetlink.nexthop_dump()] if scope.nexthops else []
    requests += [rtnetlink.rule_dump(0)] if scope.rules else []
    for ifindex in _entry_ifindexes(netns, scope, names):
        requests += [rtnetlink.neighbour_dump(0, ifindex)] if scope.neighbours else []
        requests += [rtnetlink.fdb_dump(ifindex)] if scope.fdb else []
    for request in requests:
        for record in _dump(session, request):
            if (obj := _object_of(netns, record, names)) is not None:
                yield obj


def _entry_ifindexes(netns: str, scope: Scope, names: dict[int, str]) -> list[int]:
    """The links to ask for entries of; 0 stands for all."""
    if scope.entry_links is None:
        return [0]
    return [ifindex for ifindex, name in names.items() if (netns, name) in scope.entry_links]


def _object_of(netns: str, record: object, names: dict[int, str]) -> AnyObject | None:
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
        case NeighbourRecord() if record.state & NUD_PERMANENT and record.mac:
            link = names.get(record.ifindex, "")
            return Neighbour(netns=netns, link=link, address=record.address, mac=record.mac)
        case FdbRecord() if record.state & NUD_PERMANENT and record.destination:
            link = names.get(record.ifindex, "")
            return FdbEntry(netns=netns, link=link, mac=record.mac, destination=record.destination)
    return None


def _route(netns: str, record: RouteRecord, names: dict[int, str]) -> Route:
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


def _link_objects(netns: str, records: list[LinkRecord], peers: _PeerFinder) -> Iterator[Link]:
    names = {record.ifindex: record.name for record in records}
    for record in records:
        yield Link(
            netns=netns,
            name=record.name,
            options=_options(netns, record, names, peers),
            mtu=record.mtu,
            mac=record.mac or "",
            alias=record.alias or "",
            master=names.get(record.master_ifindex or 0, ""),
            up=record.up,
        )


def _options(netns: str, record: LinkRecord, names: dict[int, str], peers: _PeerFinder) -> LinkOptions:
    match record.kind:
        case "loopback":
            return Loopback()
        case "bridge":
            return Bridge()
        case "tun" if record.tun_type != "tap":
            return Tun()
        case "veth":
            peer_netns, peer = peers.find(netns, record)
            return Veth(peer_netns=peer_netns, peer=peer)
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


class _PeerFinder:
    """Finds the other end of each veth among the namespaces that were looked at."""

    def __init__(self, sessions: Sessions, links: dict[str, list[LinkRecord]]) -> None:
        self._sessions = sessions
        self._netnsids: dict[tuple[str, str], int] = {}
        self._by_numbers: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for netns, records in links.items():
            for record in records:
                if record.kind == "veth" and record.peer_ifindex:
                    place = (record.ifindex, record.peer_ifindex)
                    self._by_numbers.setdefault(place, []).append((netns, record.name))

    def find(self, netns: str, record: LinkRecord) -> tuple[str, str]:
        """(namespace, name) of the other end, both empty when it lies in a namespace that was not looked at."""
        candidates = self._by_numbers.get((record.peer_ifindex or 0, record.ifindex), [])
        if record.link_netnsid is None:
            candidates = [candidate for candidate in candidates if candidate[0] == netns]
        else:
            candidates = [
                candidate for candidate in candidates if self._netnsid(netns, candidate[0]) == record.link_netnsid
            ]
        return candidates[0] if candidates else ("", "")

    def _netnsid(self, netns: str, other: str) -> int:
        """The id that ``netns`` knows ``other`` by, -1 for none (RTM_GETNSID)."""
        if (netns, other) not in self._netnsids:
            self._netnsids[netns, other] = self._ask(netns, other)
        return self._netnsids[netns, other]

    def _ask(self, netns: str, other: str) -> int:
        fd = netns_door.open_netns(other)
        try:
            messages = self._sessions.get(netns).netlink.ask(rtnetlink.nsid_get(fd))
        finally:
            os.close(fd)
        records = [rtnetlink.parse_record(message) for message in messages]
        return next((record.nsid for record in records if isinstance(record, NsidRecord)), -1)


def _observe_sysctls(sessions: Sessions, scope: Scope, present: set[str]) -> Iterator[Sysctl]:
    for netns, name in scope.sysctls:
        if netns not in present:
            continue
        try:
            yield Sysctl(netns=netns, name=name, value=sessions.get(netns).sysctl.read(name))
        except FileNotFoundError:  # its link is not there (yet), or the kernel lacks the feature
            continue
