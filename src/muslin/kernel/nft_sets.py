"""The door to the elements of nftables sets: many at once, or one without reading the others.

Theory of operation: elements go to the kernel as a batch, which it takes as a whole or not at all. When it refuses
some, it names them; the batch then goes again without those, so that one bad element costs nobody else anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from muslin.kernel.netlink import Answer, NetlinkSocket
from muslin.model.kernel import NftElement
from muslin.model.ops import Delete, Op
from muslin.wire import nftables
from muslin.wire.rtnetlink import Request

NETLINK_NETFILTER = 12  # uapi/linux/netlink.h
ELEMENTS_PER_BATCH = 1000


def read_elements(netns: str, family: str, table: str, name: str) -> list[NftElement]:
    """All addresses in a set; none when there is no such set."""
    conversation = NetlinkSocket(netns, NETLINK_NETFILTER)
    try:
        messages = conversation.dump(nftables.element_dump(family, table, name))
    except FileNotFoundError:
        return []
    finally:
        conversation.close()
    return [
        NftElement(netns=netns, family=family, table=table, set=name, address=address)  # type: ignore[arg-type]
        for message in messages
        for address in nftables.parse_elements(message)
    ]


def apply_elements(netns: str, ops: Sequence[Op]) -> list[Answer]:
    """Add or delete the elements of these operations; one answer each, in order."""
    conversation = NetlinkSocket(netns, NETLINK_NETFILTER)
    try:
        answers: list[Answer] = []
        for start in range(0, len(ops), ELEMENTS_PER_BATCH):
            answers += _apply_batch(conversation, [_encode(op) for op in ops[start : start + ELEMENTS_PER_BATCH]])
        return answers
    finally:
        conversation.close()


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
