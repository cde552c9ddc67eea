"""What keeps a topology from being run by agents, before anything is made of it.

Theory of operation: as in ``muslin.lab.validate``, of which this is the part about agents. What the network's
configuration must be like is flannel's business: it is written as an agent would read it, and read.
"""

from __future__ import annotations

from collections.abc import Iterator

from muslin.lab.address_faults import Problem, network_or_none, shown
from muslin.lab.agent_plan import ETCD_MEMBERS, ETCD_NUMBER, etcd_family, etcd_members, network_config
from muslin.lab.topology import Host, Segment, Topology, full_name_of
from muslin.model.address import family_of, prefix_length
from muslin.wire.flannel_config import encode_network_config, parse_network_config

LEASE_TTL_MIN_S = 10  # an agent that is busy for a moment keeps its subnet
LEASE_TTL_MAX_S = 365 * 86400
PATH = "$.agents"


def check_agents(topology: Topology) -> Iterator[Problem]:
    """Everything about agents; nothing where a topology has none."""
    if topology.agents is None:
        return
    if topology.backend == "none":
        yield Problem(PATH, "agents have nothing to do with the backend none: choose host-gw, udp or vxlan")
    if not LEASE_TTL_MIN_S <= topology.agents.lease_ttl_s <= LEASE_TTL_MAX_S:
        ttl = f"the lease TTL is {shown(topology.agents.lease_ttl_s)} seconds"
        yield Problem(f"{PATH}.lease_ttl_s", f"{ttl}: choose {LEASE_TTL_MIN_S} to {LEASE_TTL_MAX_S}")
    for place, node in enumerate(topology.nodes):
        if node.attach == "direct":
            what = f"node {shown(node.name)} attaches its containers directly, and an agent makes a bridge for them"
            yield Problem(f"$.nodes[{place}].attach", f"{what}: attach them with bridge")
    yield from _check_network(topology)
    yield from _check_members(topology)


def _check_network(topology: Topology) -> Iterator[Problem]:
    """All subnets of a family have one length, and flannel's configuration can say them."""
    if not all(network_or_none(text) for text in (*topology.networks, *_subnets(topology))):
        return  # told elsewhere
    for family in topology.families:
        lengths = {prefix_length(subnet) for subnet in _subnets(topology) if family_of(subnet) == family}
        if len(lengths) > 1:
            told = ", ".join(f"/{length}" for length in sorted(lengths))
            yield Problem("$.nodes", f"agents lease subnets of one length, but here are {told}: choose one of them")
            return
    if topology.backend == "none" or not topology.nodes:
        return
    try:
        parse_network_config(encode_network_config(network_config(topology)))
    except ValueError as error:
        yield Problem("$.networks", f"agents cannot share out this network: {str(error).splitlines()[0]}")


def _subnets(topology: Topology) -> tuple[str, ...]:
    return tuple(subnet for node in topology.nodes for subnet in node.subnets)


def _check_members(topology: Topology) -> Iterator[Problem]:
    """The members of etcd find their names and addresses free, and are reached by all nodes."""
    members = etcd_members(topology)
    if not members:
        return
    path = f"{PATH}.store"
    names = {member.name for member in members}
    hosts: tuple[Host, ...] = (*topology.routers, *topology.nodes)
    for taken in (*(segment.name for segment in topology.segments), *(host.name for host in hosts)):
        if taken in names:
            yield Problem(path, f"{taken} is the name of a member of etcd: choose another one for yours")
    if not all(member.links[0].addresses for member in members):
        if all(map(network_or_none, topology.segments[0].prefixes)):
            yield Problem(path, _no_room(topology.segments[0]))
        return
    holders = {address: full_name_of(*pair) for pair in topology.containers for address in pair[1].addresses}
    holders |= {address: host.name for host in hosts for link in host.links for address in link.addresses}
    for member in members:
        for address in member.links[0].addresses:
            if address in holders:
                yield Problem(path, f"{holders[address]} has the address {address}, which is that of {member.name}")
    if all(node.links and node.links[0].addresses for node in topology.nodes) and etcd_family(topology) is None:
        yield Problem(path, "the nodes have no address family in common, in which all of them could ask etcd")


def _no_room(segment: Segment) -> str:
    last = ETCD_NUMBER + ETCD_MEMBERS - 1
    what = f"segment {shown(segment.name)} ({', '.join(segment.prefixes)}) has no numbers {ETCD_NUMBER} to {last}"
    return f"{what} for the members of etcd: widen it, or use the sqlite store"


def unchangeable(old: Topology, new: Topology) -> str:
    """What of a lab that is up, in words to follow "the lab is up", agents or their store would not survive.

    Empty when the new topology can take the old one's place.
    """
    if old.agents is None or new.agents is None:
        return "" if old.agents is new.agents else f"{'without' if old.agents is None else 'with'} agents"
    if old.agents.store != new.agents.store:
        return f"with the store {old.agents.store}"
    if old.networks != new.networks:
        return f"with the container network {' and '.join(old.networks)}"
    before = {node.name: node.subnets for node in old.nodes}
    for node in new.nodes:
        if before.get(node.name, node.subnets) != node.subnets:
            return f"with {node.name} holding {' and '.join(before[node.name])}"
    return "" if etcd_members(old) == etcd_members(new) else "with the members of etcd on another segment"
