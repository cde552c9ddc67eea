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
    answers: list[Answer] = []
    for start in range(0, len(ops), ELEMENTS_PER_BATCH):
        requests = [_encode(op) for op in ops[start : start + ELEMENTS_PER_BATCH]]
        answers += _apply_batch(session.netfilter, requests)
    return answers


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
