"""Do: the only function that changes the kernel.

Theory of operation: operations come in order, and go to the kernel in waves: those of one namespace packed into few
sends, each with its own answer, and in their order; the order among namespaces counts for nothing but the making of
links, which is a wave of its own, as is what takes a call or a program. An operation that stands on one that failed is
skipped and says so; all others go on. Nothing raises for a single operation: the results are the report.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import msgspec

from muslin.errors import MuslinError
from muslin.kernel import netns as netns_door
from muslin.kernel import nft, nft_sets, tun
from muslin.kernel.base import Witness
from muslin.kernel.netlink import Answer
from muslin.kernel.sessions import Session, Sessions
from muslin.model.kernel import (
    Address,
    AnyObject,
    FdbEntry,
    Key,
    Link,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Delete, Op, OpResult, Replace, SetLink
from muslin.wire import rtnetlink
from muslin.wire.netlink import NLM_F_ECHO
from muslin.wire.rtnetlink import LinkRecord, Request, VxlanInfo


def apply(
    sessions: Sessions, ops: Sequence[Op], witness: Witness | None = None, *, one_by_one: bool = False
) -> list[OpResult]:
    """Execute the operations; one result each, in the same order."""
    results: dict[int, OpResult] = {}
    missing: dict[Key, str] = {}
    if not (witness or one_by_one):
        results = _create_filled_tables(sessions, ops)
    for _, wave in groupby(enumerate(ops), key=lambda item: _wave_of(item[1])):
        batches: dict[str | int, list[tuple[int, Op]]] = {}
        for index, op in wave:
            if index in results:
                continue
            if reason := _missing_reason(op, missing):
                results[index] = OpResult(op=op, outcome="skipped", reason=reason)
                missing |= dict.fromkeys(_keys_of(op), reason)
            else:
                batches.setdefault(index if one_by_one else op.object.netns, []).append((index, op))
        for batch in batches.values():
            for _, op in batch if witness else ():
                witness(op)  # type: ignore[misc]
            for (index, op), answer in zip(batch, _apply_batch(sessions, batch), strict=True):
                results[index] = _result(op, answer, missing)
    settle(sessions, (op.key for op in ops if isinstance(op, SetLink) and op.attribute == "up" and op.object.up))
    return [results[index] for index in range(len(ops))]


def _create_filled_tables(sessions: Sessions, ops: Sequence[Op]) -> dict[int, OpResult]:
    """Make new packet filter tables together with the elements of their sets; the results of those that worked.

    A rule that looks into a set must not find it empty first. And one script with 10,000 elements takes a third of the
    time of as many messages. A table that is refused so is left to be made empty, and its elements one by one.
    """
    results: dict[int, OpResult] = {}
    elements: dict[Key, list[int]] = {}
    for index, op in enumerate(ops):
        if isinstance(op, Create) and isinstance(op.object, NftElement):
            elements.setdefault(op.object.requires[0], []).append(index)
    for index, op in enumerate(ops):
        if not (isinstance(op, Create) and isinstance(table := op.object, NftTable) and op.key in elements):
            continue
        members: dict[str, list[str]] = {}
        for number in elements[op.key]:
            if isinstance(element := ops[number].object, NftElement) and element.set in table.address_sets:
                members.setdefault(element.set, []).append(element.address)
        with contextlib.suppress(OSError, MuslinError):
            sessions.get(table.netns)
            nft.create_table(table.with_elements(members))
            made = [index, *(number for number in elements[op.key] if ops[number].object.set in members)]  # type: ignore[union-attr]
            results |= {number: OpResult(op=ops[number], outcome="done") for number in made}
    return results


def settle(sessions: Sessions, links: Iterable[Key]) -> None:
    """Have the kernel act at once on carriers that came up, so that the network is there when we say so.

    It notes a carrier change at once and acts on it (a bridge port starts to forward, a route is no longer dead) in
    a worker that runs once a second (net/core/link_watch.c). Asking for a single link makes it act first
    (rtnl_getlink, net/core/rtnetlink.c, since Linux 6.4); older kernels just answer.
    """
    raised: dict[str, list[str]] = {}
    for _, netns, name in links:
        raised.setdefault(str(netns), []).append(str(name))
    for netns, names in raised.items():
        with contextlib.suppress(OSError):  # an operation on it failed, and its own result says so
            sessions.get(netns).netlink.request([rtnetlink.link_get(name) for name in names])


def _wave_of(op: Op) -> tuple[type, type, bool] | None:
    """What has to go apart from all others; None for what goes in one wave, whatever it is.

    A route by a next hop of others would be taken, and lead to them: whether the next hop is ours has to be known.
    """
    if isinstance(op.object, Netns | Nexthop | NftElement | NftTable | Sysctl) or _is_about_links(op):
        return type(op), type(op.object), _needs_call(op)
    return None


def _is_about_links(op: Op) -> bool:
    """Whether links come or go, in one namespace and perhaps in another."""
    return isinstance(op.object, Link) and not isinstance(op, SetLink)


def _needs_call(op: Op) -> bool:
    """Whether the operation is a system call or a program rather than a netlink message."""
    if isinstance(op, Create) and isinstance(op.object, Link):
        return isinstance(op.object.options, Tun)
    return isinstance(op.object, Sysctl | NftTable)


def _keys_of(op: Op) -> tuple[Key, ...]:
    return op.made_keys if isinstance(op, Create) else (op.key,)


def _missing_reason(op: Op, missing: dict[Key, str]) -> str:
    if isinstance(op, Delete):
        return ""
    needed = (*op.object.requires, *((op.key,) if isinstance(op, SetLink) else ()))
    return next((f"needs {' '.join(map(str, key))}, which failed" for key in needed if key in missing), "")


def _result(op: Op, answer: Answer, missing: dict[Key, str]) -> OpResult:
    if answer.errno == 0:
        return OpResult(op=op, outcome="done", previous=answer.previous)
    if isinstance(op, Delete) and answer.errno in (
        errno.ENOENT,
        errno.ESRCH,
        errno.ENODEV,
        errno.EADDRNOTAVAIL,
    ):
        return OpResult(op=op, outcome="done", reason="was gone already")
    if reason := _missing_reason(op, missing):  # what it stands on failed in the same wave
        missing |= dict.fromkeys(_keys_of(op), reason)
        return OpResult(op=op, outcome="skipped", reason=reason)
    if isinstance(op, Create):
        missing |= dict.fromkeys(_keys_of(op), answer.text or os.strerror(answer.errno))
    return OpResult.failed(op, answer.errno, answer.text)


def _apply_batch(sessions: Sessions, batch: list[tuple[int, Op]]) -> list[Answer]:
    """The answers to operations of one kind in one namespace."""
    first = batch[0][1]
    netns = first.object.netns
    ops = [op for _, op in batch]
    if isinstance(first.object, Netns):
        return [_answer(lambda op=op: _apply_netns(sessions, op)) for op in ops]  # type: ignore[misc]
    try:
        session = sessions.get(netns)
    except OSError as error:
        return [Answer(error.errno or errno.ENOENT, "no such network namespace")] * len(ops)
    if isinstance(first.object, NftElement):
        return nft_sets.apply_elements(session, ops)
    if _needs_call(first):
        return [_answer(lambda op=op: _apply_by_call(session, op)) for op in ops]  # type: ignore[misc]
    if session.removes_quickly and isinstance(first, Delete) and isinstance(first.object, Link):
        answers = _remove_links(session, [op.object.name for op in ops if isinstance(op.object, Link)])
    else:
        answers = _apply_by_netlink(session, ops)
    if isinstance(first, Create) and isinstance(first.object, Link):
        for op, answer in zip(ops, answers, strict=True):
            if isinstance(op, Create):
                sessions.learn(op.made_keys, _link_in(answer))
    elif isinstance(first, Delete) and isinstance(first.object, Link):
        sessions.forget_links()  # a veth goes with an end in another namespace
    return answers


def _answer(call: Callable[[], str | None]) -> Answer:
    try:
        return Answer(0, previous=call())
    except OSError as error:
        text = f"{error.strerror or error}" if error.errno else str(error)
        return Answer(error.errno or errno.EIO, text)
    except MuslinError as error:
        return Answer(errno.EOPNOTSUPP, str(error))


def _apply_netns(sessions: Sessions, op: Op) -> None:
    if isinstance(op, Delete):
        sessions.forget(op.object.netns)
        netns_door.delete(op.object.netns)
    else:
        netns_door.create(op.object.netns)


def _apply_by_call(session: Session, op: Op) -> str | None:
    """Do one operation; the value that a setting had before."""
    match op.object:
        case Sysctl(name=name, value=value):
            previous = session.sysctl.read(name)
            session.sysctl.write(name, value)
            return previous
        case NftTable() if isinstance(op, Delete):
            nft.delete_table(op.object)
        case NftTable() if isinstance(op, Create):
            nft.create_table(op.object)
        case NftTable():
            before = op.before if isinstance(op, Replace) else None
            nft.replace_table(session, op.object, before if isinstance(before, NftTable) else None)
        case Link(name=name):
            tun.create(session.netns, name)
            session.forget_links()
    return None


def _apply_by_netlink(session: Session, ops: list[Op]) -> list[Answer]:
    """Encode what can be encoded, send it packed, and put the answers in place."""
    answers: dict[int, Answer] = {}
    package = _Package(session)
    for index, op in enumerate(ops):
        try:
            if not package.add(index, op):
                # It names a link that an operation ahead of it in the package makes.
                answers |= package.send()
                package.add(index, op, last_try=True)
        except OSError as error:
            answers[index] = Answer(error.errno or errno.EINVAL, str(error.filename or ""))
        except ValueError as error:  # a name too long, a MAC that is none: what the kernel would say EINVAL to
            answers[index] = Answer(errno.EINVAL, str(error))
    answers |= package.send()
    return [answers[index] for index in range(len(ops))]


def _link_in(answer: Answer) -> LinkRecord | None:
    """The link that the kernel says to have made; older than Linux 6.2 it says nothing."""
    record = rtnetlink.parse_record(answer.echo) if answer.echo else None
    return record if isinstance(record, LinkRecord) and answer.errno == 0 else None


def _remove_links(session: Session, names: list[str]) -> list[Answer]:
    ifindexes: dict[str, int] = {}
    for name in names:
        with contextlib.suppress(OSError):  # it is gone already
            ifindexes[name] = session.ifindex(name)
    answers = dict(zip(ifindexes, session.remover.remove(list(ifindexes.values())), strict=True)) if ifindexes else {}
    return [answers.get(name, Answer(errno.ENODEV)) for name in names]


class _Package:
    """Messages on their way into one namespace, with the files that they refer to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._requests: dict[int, Request] = {}
        self._open_fds: list[int] = []
        self._holds_links = False

    def add(self, index: int, op: Op, last_try: bool = False) -> bool:
        """Put an operation in; False when it names a link that may come to be once the package is sent."""
        try:
            request = _encode(self._session, op, self._open_fds)
            if isinstance(op, Create) and isinstance(op.object, Link):
                request = msgspec.structs.replace(request, flags=request.flags | NLM_F_ECHO)
            self._requests[index] = request
        except OSError as error:
            if error.errno != errno.ENODEV or last_try or not self._holds_links:
                raise
            return False
        self._holds_links |= _is_about_links(op)
        return True

    def send(self) -> dict[int, Answer]:
        """Send everything and start anew; the answers by index."""
        try:
            answers = self._session.netlink.request(list(self._requests.values()))
        finally:
            for fd in self._open_fds:
                os.close(fd)
        found = dict(zip(self._requests, answers, strict=True))
        if self._holds_links:
            self._session.forget_links()
        self._requests, self._open_fds, self._holds_links = {}, [], False
        return found


def _encode(session: Session, op: Op, open_fds: list[int]) -> Request:
    obj = op.object
    match op:
        case SetLink():
            return _encode_set_link(session, op)
        case Delete():
            return _encode_delete(session, obj)
        case Create() | Replace() if isinstance(obj, Link):
            return _encode_link(session, obj, open_fds)
        case Create() | Replace():
            return _encode_add(session, obj, replace=isinstance(op, Replace), exclusive=_is_exclusive(op))


def _is_exclusive(op: Op) -> bool:
    """Whether an entry of others is known to hold the key, so that the kernel shall refuse.

    Otherwise what the kernel learned or failed to learn itself (a FAILED neighbour) gives way: it holds the key, too,
    but is not observed.
    """
    return isinstance(op, Create) and op.against is not None


def _is_group(mac: str) -> bool:
    """Whether entries of this MAC, zero or multicast, can have many destinations, and so cannot be replaced."""
    return mac == "00:00:00:00:00:00" or bool(int(mac[:2], 16) & 1)


def _encode_link(session: Session, link: Link, open_fds: list[int]) -> Request:
    match link.options:
        case Veth(peer_netns=peer_netns, peer=peer):
            # The peer's namespace must always be named: an absent one would mean that of the message's sender.
            fd = netns_door.open_netns(peer_netns)
            open_fds.append(fd)
            return rtnetlink.link_create(
                link.name, "veth", mtu=link.mtu, mac=link.mac, peer_name=peer, peer_netns_fd=fd
            )
        case Vxlan() as options:
            info = VxlanInfo(
                vni=options.vni,
                local=options.local,
                port=options.port,
                device_ifindex=session.ifindex(options.underlay) if options.underlay else 0,
                learning=options.learning,
                gbp=options.gbp,
            )
            return rtnetlink.link_create(link.name, "vxlan", mtu=link.mtu, mac=link.mac, vxlan=info)
    return rtnetlink.link_create(link.name, type(link.options).__name__.lower(), mtu=link.mtu, mac=link.mac)


def _encode_set_link(session: Session, op: SetLink) -> Request:
    link, ifindex = op.object, session.ifindex(op.object.name)
    match op.attribute:
        case "master":
            return rtnetlink.link_set(ifindex, master_ifindex=session.ifindex(link.master) if link.master else 0)
        case "mtu":
            return rtnetlink.link_set(ifindex, mtu=link.mtu)
        case "mac":
            return rtnetlink.link_set(ifindex, mac=link.mac)
        case "alias":
            return rtnetlink.link_set(ifindex, alias=link.alias)
        case "hairpin":
            return rtnetlink.link_set(ifindex, hairpin=link.hairpin)
        case "up":
            return rtnetlink.link_set(ifindex, up=link.up)


def _encode_add(session: Session, obj: AnyObject, replace: bool, exclusive: bool) -> Request:
    match obj:
        case Address():
            return rtnetlink.address_add(session.ifindex(obj.link), obj.address, no_dad=True, replace=replace)
        case Nexthop():
            return rtnetlink.nexthop_add(
                obj.id,
                ifindex=session.ifindex(obj.link),
                via=obj.via,
                onlink=obj.onlink,
                protocol=obj.protocol,
                replace=replace,
            )
        case Route():
            return _encode_route(session, obj, replace)
        case Rule():
            return _encode_rule(rtnetlink.rule_add, obj)
        case Neighbour():
            return rtnetlink.neighbour_add(session.ifindex(obj.link), obj.address, obj.mac, replace=not exclusive)
        case FdbEntry():
            replace = replace or not (exclusive or _is_group(obj.mac))
            ifindex = session.ifindex(obj.link)
            return rtnetlink.fdb_add(ifindex, obj.mac, obj.destination, replace=replace, exclusive=exclusive)
    raise TypeError(f"no way to add {type(obj).__name__} by netlink")


def _encode_delete(session: Session, obj: AnyObject) -> Request:
    match obj:
        case Link():
            return rtnetlink.link_delete(session.ifindex(obj.name))
        case Address():
            return rtnetlink.address_delete(session.ifindex(obj.link), obj.address)
        case Nexthop():
            return rtnetlink.nexthop_delete(obj.id)
        case Route(nexthop_id=int(hop)):  # the way of the next hop, filled in by the kernel, must not be named too
            return rtnetlink.route_delete(obj.destination, nexthop_id=hop, metric=obj.metric, table=obj.table)
        case Route():
            return rtnetlink.route_delete(
                obj.destination,
                ifindex=session.ifindex(obj.link) if obj.link else None,
                via=obj.via,
                nexthop_id=obj.nexthop_id,
                metric=obj.metric,
                table=obj.table,
                protocol=obj.protocol,
            )
        case Rule():
            return _encode_rule(rtnetlink.rule_delete, obj)
        case Neighbour():
            return rtnetlink.neighbour_delete(session.ifindex(obj.link), obj.address)
        case FdbEntry():
            return rtnetlink.fdb_delete(session.ifindex(obj.link), obj.mac, obj.destination)
    raise TypeError(f"no way to delete {type(obj).__name__} by netlink")


def _encode_route(session: Session, route: Route, replace: bool) -> Request:
    return rtnetlink.route_add(
        route.destination,
        ifindex=session.ifindex(route.link) if route.link else None,
        via=route.via,
        nexthop_id=route.nexthop_id,
        metric=route.metric,
        table=route.table,
        protocol=route.protocol,
        scope=route.scope,
        source=route.source,
        onlink=bool(route.onlink),
        mtu=route.mtu,
        kind=route.kind,
        replace=replace,
    )


def _encode_rule(encode: Callable[..., Request], rule: Rule) -> Request:
    return encode(
        rtnetlink.AF_INET6 if rule.family == 6 else rtnetlink.AF_INET,
        rule.priority,
        rule.table,
        source=rule.source,
        destination=rule.destination,
        iif=rule.iif,
        fwmark=rule.fwmark,
        protocol=rule.protocol,
    )
