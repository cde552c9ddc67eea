"""Endpoints and results by which the tests of this room speak.

con1 172.16.0.2, con2 172.16.0.3 ── 172.16.0.1 node1 10.0.0.10 ── 10.0.0.20 node2 172.16.1.1 ── con1, con2
"""

from __future__ import annotations

from typing import Any

import msgspec

from muslin.verify.matrix import Endpoint, Pair
from muslin.verify.verdict import PROTOCOLS, CellResult, Exchange


def node(number: int) -> Endpoint:
    return Endpoint(
        name=f"node{number}",
        role="node",
        node=f"node{number}",
        netns=f"lab-node{number}",
        addresses=(f"10.0.0.{number}0", f"172.16.{number - 1}.1"),
    )


def container(number: int, of_node: int) -> Endpoint:
    return Endpoint(
        name=f"con{number}.node{of_node}",
        role="container",
        node=f"node{of_node}",
        netns=f"lab-con{number}.node{of_node}",
        addresses=(f"172.16.{of_node - 1}.{number + 1}",),
    )


def two_nodes() -> tuple[Endpoint, ...]:
    return tuple(party for n in (1, 2) for party in (node(n), container(1, n), container(2, n)))


CROSSING = Pair(source=container(1, 1), destination=container(1, 2), address="172.16.1.2", expected_hops=2)
FROM_NODE = Pair(source=node(1), destination=container(1, 2), address="172.16.1.2", expected_hops=1)
UNDERLAY = Pair(source=node(1), destination=node(2), address="10.0.0.20", expected_hops=0)


def good(pair: Pair = CROSSING) -> CellResult:
    """What a healthy network shows for ``pair``."""
    sent = pair.source.addresses[0]
    ttl = 64 - (pair.expected_hops or 0)
    exchanges = tuple(
        Exchange(
            protocol=protocol,
            outcome="answered",
            arrived=True,
            sent=sent,
            seen=sent,
            arrived_at=pair.address,
            answered_from=pair.address,
            ttl=None if protocol == "tcp" else ttl,
            rtt_s=0.0004,
        )
        for protocol in PROTOCOLS
    )
    return CellResult(pair=pair, own=pair.source.addresses, exchanges=exchanges, path_mtu=1500)


def changed(result: CellResult, protocol: str = "", **fields: Any) -> CellResult:
    """``result`` with fields changed in the exchange of ``protocol``, in all of them when none is named."""
    exchanges = tuple(
        msgspec.structs.replace(exchange, **fields) if protocol in ("", exchange.protocol) else exchange
        for exchange in result.exchanges
    )
    return msgspec.structs.replace(result, exchanges=exchanges)


def lost(result: CellResult, protocol: str = "", arrived: bool = False) -> CellResult:
    """``result`` without an answer, and without a request seen unless it ``arrived``."""
    nothing = dict.fromkeys(("answered_from", "rtt_s"), None)
    unseen = {} if arrived else dict.fromkeys(("seen", "arrived_at", "ttl"), None)
    return changed(result, protocol, outcome="lost", arrived=arrived, **nothing, **unseen)
