"""The talk's four networks, and the same made larger.

Theory of operation: a step is the shape of a node (one container on a veth, or a bridge) and what carries
packets between nodes. Everything else about it are the defaults of ``resolve``, which are the talk's own
addresses:

    step 1  node1 10.0.0.10 --veth-- con 172.16.0.1/32
    step 2  node1 10.0.0.10, br0 172.16.0.1/24 -- con1 172.16.0.2, con2 172.16.0.3
    step 3  two of them, 10.0.0.10 and .20, 172.16.0.0/24 and 172.16.1.0/24, each with a route to the other
    step 4  the same with a TUN device, 172.16.N.100/16, over UDP instead of routes

``underlay="routed"`` puts node N on lanN (10.0.N.0/24, the node is number 10) behind router1 (number 1),
which knows no container subnet: the reason why overlays exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from muslin.errors import UsageError
from muslin.lab.topology import (
    DEFAULT_NETWORK,
    SCHEMA,
    SEGMENT_LENGTH,
    UNDERLAY_POOL,
    Agents,
    Attachment,
    Backend,
    Container,
    Node,
    Router,
    Segment,
    Step,
    Topology,
    TunnelKind,
    nth_address_or_none,
    nth_subnet,
    resolve,
)
from muslin.lab.validate import check
from muslin.model.address import FAMILIES, Family, family_of, parse_prefix

Underlay = Literal["l2", "routed"]
Prefixes = str | Sequence[str] | None
"""One prefix, or several, at most one a family; a family without one has its default."""

STEPS: tuple[Step, ...] = (1, 2, 3, 4)
MAX_NODES = 256  # subnets of length 24 in 172.16.0.0/16
MAX_CONTAINERS = 250  # addresses of a /24 less network, broadcast, gateway and tunnel, rounded down
STEP_NODES: dict[Step, int] = {1: 1, 2: 1, 3: 2, 4: 2}
STEP_CONTAINERS: dict[Step, int] = {1: 1, 2: 2, 3: 2, 4: 2}
STEP_BACKEND: dict[Step, Backend] = {1: "none", 2: "none", 3: "host-gw", 4: "udp"}
ROUTED_NODE_NUMBER = 10


def preset(
    step: Step,
    *,
    nodes: int | None = None,
    containers: int | None = None,
    underlay: Underlay = "l2",
    families: Sequence[Family] = (4,),
    backend: Backend | None = None,
    tunnel: TunnelKind = "c",
    agents: Agents | None = None,
    mtu: int = 1500,
    networks: Prefixes = None,
    underlay_prefix: Prefixes = None,
) -> Topology:
    """The topology of a step, resolved and checked; UsageError when the request makes no sense.

    ``nodes`` and ``containers`` (on each node) scale it. Container subnets are cut from ``networks``.
    ``underlay_prefix`` is the segment itself with the l2 underlay, and where segments are cut from with the
    routed one.
    """
    _check_shape(step, nodes, containers, underlay, backend)
    if agents is not None:
        _check_agents(step, backend)
    chosen = _families(families)
    count = STEP_NODES[step] if nodes is None else nodes
    members = STEP_CONTAINERS[step] if containers is None else containers
    topology = Topology(
        schema=SCHEMA,
        step=step,
        backend=backend or STEP_BACKEND[step],
        tunnel=tunnel,
        agents=agents,
        networks=tuple((DEFAULT_NETWORK | _chosen(networks, chosen, "network"))[family] for family in chosen),
        mtu=mtu,
        nodes=tuple(_node(step, position, members) for position in range(1, count + 1)),
    )
    given = _chosen(underlay_prefix, chosen, "underlay network")
    topology = _routed(topology, chosen, given) if underlay == "routed" else _flat(topology, chosen, given)
    resolved = resolve(topology)
    check(resolved)
    return resolved


def _node(step: Step, position: int, containers: int) -> Node:
    if step == 1:
        return Node(name="node1", attach="direct", containers=(Container(name="con"),))
    return Node(name=f"node{position}", containers=(Container(),) * containers)


def _flat(topology: Topology, families: tuple[Family, ...], given: dict[Family, str]) -> Topology:
    """All nodes on one segment; its prefixes are those given and, for the other families, the default."""
    if not given:
        return topology
    default = {family_of(prefix): prefix for prefix in resolve(topology).segments[0].prefixes}
    prefixes = tuple((default | given)[family] for family in families)
    return msgspec.structs.replace(topology, segments=(Segment(name="lan0", prefixes=prefixes),))


def _routed(topology: Topology, families: tuple[Family, ...], given: dict[Family, str]) -> Topology:
    """Node N alone on lanN, one router on all of them."""
    pools = [given.get(family, UNDERLAY_POOL[family]) for family in families]
    segments, nodes = [], []
    for position, node in enumerate(topology.nodes, start=1):
        segment = Segment(name=f"lan{position}", prefixes=tuple(_cut(pool, position) for pool in pools))
        numbers = [nth_address_or_none(prefix, ROUTED_NODE_NUMBER) for prefix in segment.prefixes]
        link = Attachment(segment=segment.name, addresses=tuple(filter(None, numbers)))
        segments.append(segment)
        nodes.append(msgspec.structs.replace(node, links=(link,)))
    router = Router(name="router1", links=tuple(Attachment(segment=segment.name) for segment in segments))
    return msgspec.structs.replace(topology, segments=tuple(segments), nodes=tuple(nodes), routers=(router,))


def _cut(pool: str, position: int) -> str:
    """The segment of node ``position`` out of a pool: 10.0.N.0/24 of 10.0.0.0/8."""
    length = SEGMENT_LENGTH[family_of(pool)]
    prefix = nth_subnet(pool, length, position)
    if prefix is None:
        raise UsageError(
            f"the underlay network {pool} has no /{length} number {position}, for node {position}",
            "give a larger one with --underlay-network, such as 10.0.0.0/8",
        )
    return prefix


def _check_shape(step: Step, nodes: int | None, containers: int | None, underlay: str, backend: str | None) -> None:
    """UsageError for a step that does not exist, or that cannot be made this large."""
    if step not in STEPS:
        raise UsageError(f"there is no step {step}", "the steps are 1, 2, 3 and 4")
    _check_range("nodes", nodes, MAX_NODES)
    _check_range("containers on each node", containers, MAX_CONTAINERS)
    if underlay not in get_args(Underlay):
        raise UsageError(f"there is no underlay {underlay!r}", "choose l2 or routed")
    if backend is not None and backend not in get_args(Backend):
        raise UsageError(f"there is no backend {backend!r}", f"choose one of {', '.join(get_args(Backend))}")
    if step == 1 and (containers or 1) > 1:
        raise UsageError(
            f"step 1 is a single container on a veth, not {containers} of them",
            "use step 2, which has a bridge for several containers on one node",
        )
    if STEP_NODES[step] > 1:
        return
    if (nodes or 1) > 1:
        raise UsageError(
            f"step {step} is a single node, not {nodes} of them",
            "use step 3 (routes) or step 4 (overlay) for several nodes",
        )
    if backend not in (None, "none"):
        raise UsageError(
            f"step {step} is a single node and has no use for the backend {backend}",
            "use step 3 (routes) or step 4 (overlay), which join several nodes",
        )


def _check_agents(step: Step, backend: str | None) -> None:
    """UsageError where an agent would have nothing to do."""
    if STEP_NODES[step] == 1:
        raise UsageError(
            f"step {step} is a single node, and agents are there to join several",
            "use step 3 (routes) or step 4 (overlay) with agents",
        )
    if backend == "none":
        raise UsageError(
            "the backend none carries nothing between nodes, and so leaves agents nothing to do",
            "choose host-gw, udp or vxlan, or leave out --agents",
        )


def _check_range(what: str, count: int | None, most: int) -> None:
    if count is not None and not 1 <= count <= most:
        raise UsageError(f"a lab cannot have {count} {what}", f"choose 1 to {most}")


def _families(families: Sequence[Family]) -> tuple[Family, ...]:
    chosen = tuple(family for family in FAMILIES if family in families)
    if not chosen or len(chosen) != len(set(families)):
        raise UsageError(f"a lab cannot have the families {list(families)}", "choose 4, 6 or both")
    return chosen


def _chosen(prefixes: Prefixes, families: tuple[Family, ...], what: str) -> dict[Family, str]:
    """The prefixes that were given, by family; UsageError when one has no place in this lab."""
    texts = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes or ())
    chosen: dict[Family, str] = {}
    for text in texts:
        family = family_of(text)
        _check_prefix(text, what)
        if family not in families:
            raise UsageError(
                f"the {what} {text} is IPv{family}, but the lab is IPv{families[0]} only",
                f"choose family {family} as well, or another {what}",
            )
        if family in chosen:
            raise UsageError(
                f"there are two IPv{family} {what}s, {chosen[family]} and {text}", "give at most one a family"
            )
        chosen[family] = text
    return chosen


def _check_prefix(text: str, what: str) -> None:
    try:
        parse_prefix(text if "/" in text else "")
    except ValueError:
        raise UsageError(f"the {what} {text!r} is no prefix", "write it like 10.0.0.0/16, host bits zero") from None
