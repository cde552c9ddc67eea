"""Look: what the kernel holds, as the same values that a plan is made of.

Theory of operation: each namespace is dumped by its own socket, and ``kernel.records`` makes objects of the answers.
The far end of a veth lies in another namespace: the record names its number
and, as an id that only the near namespace knows, its namespace. Ends are matched by their numbers both ways, and by
asking for that id where the numbers alone leave a doubt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from muslin.kernel import netns as netns_door
from muslin.kernel import nft, nft_sets
from muslin.kernel.base import Scope
from muslin.kernel.records import UNKNOWN_END, is_learned, link_of, object_of
from muslin.kernel.sessions import Session, Sessions
from muslin.model.kernel import AnyObject, Link, Netns, Sysctl
from muslin.model.state import Snapshot
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord, NsidRecord, Request


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
        links[netns] = session.links_called(scope.links[netns]) if netns in scope.links else session.links()
        objects += _observe_tables(session, scope, {link.ifindex: link.name for link in links[netns]})
    peers = _PeerFinder(sessions, links)
    for netns, records in links.items():
        objects += _link_objects(sessions.get(netns), records, peers)
    objects += _observe_sysctls(sessions, scope, set(links))
    for netns, family, table in scope.nft:
        if netns in links and (found := nft.read_table(sessions.get(netns), family, table)):
            objects.append(found)
    for netns, family, table, name in scope.nft_sets:
        if netns in links:
            objects += nft_sets.read_elements(sessions.get(netns), family, table, name)
    for element in scope.nft_elements:
        if element.netns in links and nft_sets.read_element(sessions.get(element.netns), element):
            objects.append(element)
    return Snapshot.of(objects)


def _dump(session: Session, request: Request) -> Iterator[object]:
    for message in session.netlink.dump(request):
        record = rtnetlink.parse_record(message)
        if record is not None:
            yield record


def _observe_tables(session: Session, scope: Scope, names: dict[int, str]) -> Iterator[AnyObject]:
    netns = session.netns
    requests = []
    for ifindex in () if scope.links_only else names if netns in scope.links else (0,):
        requests += [rtnetlink.address_dump(ifindex=ifindex), rtnetlink.route_dump(ifindex=ifindex)]
    requests += [rtnetlink.nexthop_dump()] if scope.nexthops else []
    requests += [rtnetlink.rule_dump(0)] if scope.rules else []
    for ifindex in _entry_ifindexes(netns, scope, names):
        requests += [rtnetlink.neighbour_dump(0, ifindex)] if scope.neighbours else []
        requests += [rtnetlink.fdb_dump(ifindex)] if scope.fdb else []
    for request in requests:
        for record in _dump(session, request):
            if not is_learned(record) and (obj := object_of(netns, record, names)) is not None:
                yield obj


def _entry_ifindexes(netns: str, scope: Scope, names: dict[int, str]) -> list[int]:
    """The links to ask for entries of; 0 stands for all."""
    if scope.entry_links is None:
        return [0]
    return [ifindex for ifindex, name in names.items() if (netns, name) in scope.entry_links]


def _link_objects(session: Session, records: list[LinkRecord], peers: _PeerFinder) -> Iterator[Link]:
    names = {record.ifindex: record.name for record in records}
    names |= {number: session.name_of(number) for number in _others_named(records) - names.keys()}
    for record in records:
        far_end = peers.find(session.netns, record) if record.kind == "veth" else UNKNOWN_END
        yield link_of(session.netns, record, names, far_end)


def _others_named(records: list[LinkRecord]) -> set[int]:
    """The numbers of the links that these stand on or belong to."""
    below = {record.vxlan.device_ifindex for record in records if record.vxlan}
    return ({record.master_ifindex for record in records} | below) - {0}


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
