"""See a namespace whole, and many of them only as far as somebody follows a packet through them.

Theory of operation: ``read_sight`` dumps every table of one namespace: some 1 ms. ``Sights`` is a mapping from name to
sight that reads a namespace when it is first asked for: a packet crosses few of the namespaces of a large lab. What was
read stays, so that all questions of one run are about one moment. On a large layer-2 network many are looked at just to
see whether they hold an address; so settings, the packet filter and the numbers of other namespaces are read at first
use. nft is started only where the kernel has a table at all. A namespace knows the others by numbers of its own
(RTM_GETNSID); all names that the mapping holds are asked for, as a veth's far end is told by such a number.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from muslin.kernel import netns as netns_door
from muslin.kernel import nft, programs
from muslin.kernel.netlink import MESSAGES_PER_SEND
from muslin.kernel.nft_sets import NO_TABLE_ERRNOS
from muslin.kernel.sessions import Session, Sessions
from muslin.wire import nftables, rtnetlink
from muslin.wire.rtnetlink import (
    AddressRecord,
    FdbRecord,
    NeighbourRecord,
    NexthopRecord,
    NsidRecord,
    Request,
    RouteRecord,
    RuleRecord,
)
from muslin.wire.sight import Sight, TunnelProgram

Record = TypeVar("Record")


class _Later(Sequence[dict[str, Any]]):
    """A row of objects that is read when somebody first looks into it."""

    def __init__(self, read: Callable[[], Sequence[dict[str, Any]]]) -> None:
        self._read = read
        self._items: Sequence[dict[str, Any]] | None = None

    @property
    def items(self) -> Sequence[dict[str, Any]]:
        """The row, read by now."""
        if self._items is None:
            self._items = self._read()
        return self._items

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


class _Settings(Mapping[str, str]):
    """The settings of a namespace, each read when it is first asked for; KeyError for one that is not there."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._read: dict[str, str] = {}

    def __getitem__(self, path: str) -> str:
        if path not in self._read:
            try:
                self._read[path] = self._session.sysctl.read(path)
            except FileNotFoundError:  # the kernel lacks the feature, or the link went
                raise KeyError(path) from None
        return self._read[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


class _Ids(Mapping[int, str]):
    """Other namespaces by the number that this one knows them by, asked for when the first is wanted."""

    def __init__(self, session: Session, others: Sequence[str]) -> None:
        self._session = session
        self._others = others
        self._found: dict[int, str] | None = None

    @property
    def found(self) -> dict[int, str]:
        """All of them, asked by now."""
        if self._found is None:
            self._found = _netns_ids(self._session, self._others)
        return self._found

    def __getitem__(self, number: int) -> str:
        return self.found[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


class Sights(Mapping[str, Sight]):
    """The sights of these namespaces, each read when it is first asked for; KeyError for one that is not there."""

    def __init__(self, names: Sequence[str], sessions: Sessions | None = None) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._sessions = sessions or Sessions()
        self._read: dict[str, Sight] = {}
        self._programs: dict[str, list[TunnelProgram]] | None = None

    def __getitem__(self, netns: str) -> Sight:
        if netns not in self._names:
            raise KeyError(netns)
        if netns not in self._read:
            try:
                session = self._sessions.get(netns)
            except FileNotFoundError:
                raise KeyError(netns) from None
            self._read[netns] = read_sight(session, self._names, lambda: self._tunnels_in(netns))
        return self._read[netns]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _tunnels_in(self, netns: str) -> list[TunnelProgram]:
        if self._programs is None:
            self._programs = find_tunnels(self._names)
        return self._programs.get(netns, [])

    def close(self) -> None:
        """Close all doors."""
        self._sessions.close()

    def __enter__(self) -> Sights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_sight(session: Session, others: Sequence[str], tunnels: Callable[[], list[TunnelProgram]]) -> Sight:
    """One namespace. OSError when any of its tables could not be read whole. ``tunnels`` is asked only beside a TUN."""
    links = tuple(session.links())
    has_tun = any(link.kind == "tun" for link in links)
    unseen: list[str] = []
    return Sight(
        netns=session.netns,
        links=links,
        addresses=_dump(session, rtnetlink.address_dump(), AddressRecord),
        routes=_dump(session, rtnetlink.route_dump(), RouteRecord),
        learned_mtus=_dump(session, rtnetlink.route_dump(cached=True), RouteRecord),
        rules=_dump(session, rtnetlink.rule_dump(), RuleRecord),
        nexthops=_nexthops(session),
        neighbours=_dump(session, rtnetlink.neighbour_dump(), NeighbourRecord),
        fdb=_dump(session, rtnetlink.fdb_dump(), FdbRecord),
        sysctls=_Settings(session),
        nft=_Later(lambda: _ruleset(session, unseen)),
        netns_ids=_Ids(session, others),
        tunnels=tuple(tunnels()) if has_tun else (),
        unseen=unseen,
    )


def _dump(session: Session, request: Request, kind: type[Record]) -> tuple[Record, ...]:
    records = (rtnetlink.parse_record(message) for message in session.netlink.dump(request))
    return tuple(record for record in records if isinstance(record, kind))


def _nexthops(session: Session) -> tuple[NexthopRecord, ...]:
    try:
        return _dump(session, rtnetlink.nexthop_dump(), NexthopRecord)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # before Linux 5.3
            raise
        return ()


def _ruleset(session: Session, unseen: list[str]) -> tuple[dict[str, Any], ...]:
    """The packet filter; none, and noted in ``unseen``, for one who may not see it (nfnetlink wants CAP_NET_ADMIN)."""
    try:
        if not session.netfilter.dump(nftables.table_dump()):
            return ()
    except PermissionError:
        unseen.append("the packet filter (nft)")
        return ()
    except OSError as error:
        if error.errno not in NO_TABLE_ERRNOS:
            raise
        return ()
    result = nft.run_nft(session.netns, ["-j", "list", "ruleset"])
    if result.returncode != 0:
        words = " ".join(result.stderr.split())
        raise OSError(errno.EIO, f"nft could not list the packet filter: {words}", session.netns)
    return tuple(_with_devices(session.netns, one) for one in msgspec.json.decode(result.stdout)["nftables"])


def _with_devices(netns: str, listed: dict[str, Any]) -> dict[str, Any]:
    """An ingress chain with its links as ``dev``: nft 1.0.6 leaves them out of its JSON, and has them in its text."""
    chain = listed.get("chain", {})
    if chain.get("hook") != "ingress" or "dev" in chain:
        return listed
    text = nft.list_text(netns, ["chain", chain["family"], chain["table"], chain["name"]])
    return {"chain": {**chain, "dev": nft.devices_of(text)}}


def _netns_ids(session: Session, others: Sequence[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for start in range(0, len(others), MESSAGES_PER_SEND):
        found |= _netns_ids_of(session, others[start : start + MESSAGES_PER_SEND])
    return found


def _netns_ids_of(session: Session, others: Sequence[str]) -> dict[int, str]:
    opened: dict[str, int] = {}
    try:
        for name in others:
            with contextlib.suppress(OSError):  # it went, or is not ours to see
                opened[name] = netns_door.open_netns(name)
        answers = session.netlink.ask_each([rtnetlink.nsid_get(fd) for fd in opened.values()]) if opened else []
    finally:
        for fd in opened.values():
            os.close(fd)
    records = [rtnetlink.parse_record(message) if message else None for message in answers]
    return {
        record.nsid: name
        for name, record in zip(opened, records, strict=True)
        if isinstance(record, NsidRecord) and record.nsid >= 0
    }


def find_tunnels(names: Sequence[str]) -> dict[str, list[TunnelProgram]]:
    """The tunnel programs that live in these namespaces."""
    found: dict[str, list[TunnelProgram]] = {}
    for program in programs.find(programs.TUNNEL_MARK, names):
        found.setdefault(program.netns, []).append(parse_tunnel(program.pid, program.arguments))
    return found


def parse_tunnel(pid: int, arguments: Sequence[str]) -> TunnelProgram:
    """What a tunnel was told by its command line, and by the file that this names."""
    words = [argument.partition("=")[::2] for argument in arguments]
    options = dict(words)
    peers = [value.partition("=")[::2] for name, value in words if name == "--peer"]
    if "--peers" in options:
        peers += _peers_of_file(options["--peers"])
    return TunnelProgram(
        pid=pid,
        device=options.get("--device", ""),
        listen=options.get("--listen", ""),
        peers=tuple((prefix, endpoint) for prefix, endpoint in peers),
    )


def _peers_of_file(path: str) -> list[tuple[str, str]]:
    try:
        with open(path) as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError:  # the file went: what the program had read of it nobody else knows
        return []
    return [(line[0], line[1]) for line in lines if len(line) == 2]
