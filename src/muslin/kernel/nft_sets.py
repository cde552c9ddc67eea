"""The door to the elements of nftables sets: many at once, or one without reading the others.

Theory of operation: elements go to the kernel as a batch, which it takes as a whole or not at all. When it refuses
some, it names them; the batch then goes again without those, so that one bad element costs nobody else anything.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from muslin.kernel.netlink import Answer, NetlinkSocket
from muslin.kernel.sessions import Session
from muslin.model.kernel import NftElement
from muslin.model.ops import Delete, Op
from muslin.wire import nftables
from muslin.wire.rtnetlink import Request

ELEMENTS_PER_BATCH = 1000
# No such table; and a kernel without nftables: no such protocol, no such subsystem (nfnetlink_rcv_msg), or family.
NO_TABLE_ERRNOS = (errno.ENOENT, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP)


def has_table(session: Session, family: str, table: str) -> bool:
    """Whether there is a table of this name, whatever is in it."""
    try:
        session.netfilter.ask(nftables.table_get(family, table))
    except OSError as error:
        if error.errno not in NO_TABLE_ERRNOS:
            raise
        return False
    return True


def read_element(session: Session, element: NftElement) -> bool:
    """Whether a set has this element; it has not where there is no such set."""
    try:
        session.netfilter.ask(nftables.element_get(element.family, element.table, element.set, element.address))
    except OSError as error:
        if error.errno not in NO_TABLE_ERRNOS:
            raise
        return False
    return True


def read_elements(session: Session, family: str, table: str, name: str) -> list[NftElement]:
    """All addresses in a set; none when there is no such set."""
    try:
        messages = session.netfilter.dump(nftables.element_dump(family, table, name))
    except OSError as error:
        if error.errno not in NO_TABLE_ERRNOS:
            raise
        return []
    return [
        NftElement(netns=session.netns, family=family, table=table, set=name, address=address)  # type: ignore[arg-type]
        for message in messages
        for address in nftables.parse_elements(message)
    ]


def apply_elements(session: Session, ops: Sequence[Op]) -> list[Answer]:
    """Add or delete the elements of these operations; one answer each, in order."""
    answers: dict[int, Answer] = {}
    requests: dict[int, Request] = {}
    for place, op in enumerate(ops):
        try:
            requests[place] = _encode(op)
        except ValueError as error:  # not an address: what the kernel would say EINVAL to
            answers[place] = Answer(errno.EINVAL, str(error))
    places = list(requests)
    for start in range(0, len(places), ELEMENTS_PER_BATCH):
        batch = places[start : start + ELEMENTS_PER_BATCH]
        answers |= zip(batch, _apply_batch(session.netfilter, [requests[place] for place in batch]), strict=True)
    return [answers[place] for place in range(len(ops))]


def _encode(op: Op) -> Request:
    element = op.object
    assert isinstance(element, NftElement)
    encode = nftables.element_delete if isinstance(op, Delete) else nftables.element_add
    return encode(element.family, element.table, element.set, element.address)


def _apply_batch(conversation: NetlinkSocket, requests: list[Request]) -> list[Answer]:
    refused: dict[int, Answer] = {}
    while len(refused) < len(requests):
        left = [index for index in range(len(requests)) if index not in refused]
        failures = conversation.batch(
            nftables.batch_edge(nftables.BATCH_BEGIN),
            [requests[index] for index in left],
            nftables.batch_edge(nftables.BATCH_END),
        )
        if not failures:
            break
        refused |= {left[place]: answer for place, answer in failures.items()}
    return [refused.get(index, Answer(0)) for index in range(len(requests))]
