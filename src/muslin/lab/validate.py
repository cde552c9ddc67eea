"""What is wrong with a topology, before anything is made of it.

Theory of operation: each check is a generator that walks the resolved topology and yields a ``Problem`` for
every fault it meets; ``validate`` strings them together, so that a person sees all faults at once. A problem
says where (``$.nodes[1].links[0].segment``, the path that a topology file turns into a line) and, in a
sentence that stands alone, what, on which object, and what would mend it. Checks are pure and forgiving: an
address that one check cannot read is that check's problem, the others pass over it.

A fault that a person may want to study is no problem: links that are down, loss, a container MTU that does
not fit, several nodes without a backend, a router that lacks a route. Overlaps are found by sorting, since a
lab may have hundreds of subnets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from muslin.errors import UsageError
from muslin.lab.address_faults import (
    Network,
    Problem,
    address_fault,
    inside,
    network_or_none,
    prefix_fault,
    shown,
)
from muslin.lab.agent_faults import check_agents
from muslin.lab.overlaps import check_overlaps, host_conflicts
from muslin.lab.reachability import check_reachability, check_underlay_families
from muslin.lab.topology import (
    GATEWAY_NUMBER,
    RESERVED_INTERFACES,
    SUBNET_LENGTH,
    TUNNEL_NUMBER,
    Container,
    Host,
    Node,
    Segment,
    Topology,
    full_name_of,
    nth_address_or_none,
    port_name,
    resolve,
)
from muslin.model.address import Family, family_of, overlaps
from muslin.model.kernel import IFNAME_MAX

__all__ = ["Problem", "check", "host_conflicts", "port_name", "validate"]

NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NAME_MAX = 40  # leaves room for "container.node" and a lab's name within NAME_MAX of a file, 255
MTU_MIN: dict[Family, int] = {4: 576, 6: 1280}  # RFC 791 (every host takes 576) and RFC 8200 section 5
MTU_MAX = 65535  # ETH_MAX_MTU, linux/if_ether.h
UNUSABLE = ("127.0.0.0/8", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8")
TUNNEL_LENGTH: dict[Family, int] = {4: 25, 6: 121}  # the longest prefix that has a number 100


def validate(topology: Topology) -> tuple[Problem, ...]:
    """Every problem of a topology, in the order in which a person would mend them; empty when it is sound."""
    topology = resolve(topology)
    checks = (
        _check_names,
        _check_numbers,
        _check_networks,
        _check_segments,
        _check_links,
        _check_interface_names,
        _check_ports,
        _check_routes,
        _check_subnets,
        check_overlaps,
        _check_containers,
        _check_duplicate_addresses,
        check_reachability,
        check_underlay_families,
        check_agents,
    )
    return tuple(problem for each in checks for problem in each(topology))


def check(topology: Topology) -> None:
    """UsageError that lists every problem, if there is one."""
    problems = validate(topology)
    if len(problems) == 1:
        raise UsageError(problems[0].message)
    if problems:
        listed = "".join(f"\n  - {problem.message}" for problem in problems)
        raise UsageError(f"the topology has {len(problems)} problems:{listed}")


# Names and numbers


def _check_names(topology: Topology) -> Iterator[Problem]:
    """Segments, routers and nodes share one name space, since each becomes a namespace."""
    if not topology.nodes:
        yield Problem("$.nodes", "there is no node: a topology needs at least one under nodes")
    kinds: dict[str, tuple[Segment | Host, ...]] = {
        "segment": topology.segments,
        "router": topology.routers,
        "node": topology.nodes,
    }
    named = [
        (f"$.{kind}s[{index}].name", f"{kind} {shown(item.name)}", item.name)
        for kind, items in kinds.items()
        for index, item in enumerate(items)
    ]
    yield from _check_name_space(named)
    for place, node in enumerate(topology.nodes):
        path = f"$.nodes[{place}].containers"
        containers = [
            (
                f"{path}[{index}].name",
                f"container {shown(container.name)} of {shown(node.name)}",
                container.name,
            )
            for index, container in enumerate(node.containers)
        ]
        yield from _check_name_space(containers)


def _check_name_space(named: list[tuple[str, str, str]]) -> Iterator[Problem]:
    holders: dict[str, str] = {}
    for path, owner, name in named:
        if not NAME.fullmatch(name):
            rule = "use lower case letters, digits and inner hyphens"
            yield Problem(path, f"{owner} has a name that cannot be used: {rule}")
        elif len(name) > NAME_MAX:
            yield Problem(path, f"{owner} has a name of {len(name)} characters, of at most {NAME_MAX}")
        if name in holders:
            yield Problem(path, f"{owner} has the same name as {holders[name]}: names must be unique")
        holders.setdefault(name, owner)


def _check_numbers(topology: Topology) -> Iterator[Problem]:
    """MTUs and loss."""
    yield from _check_mtu("$.mtu", "the underlay", topology.mtu, topology.families)
    for path, host in _hosts(topology):
        for index, link in enumerate(host.links):
            owner = f"link {index} of {shown(host.name)}"
            yield from _check_loss(f"{path}.links[{index}].loss_percent", owner, link.loss_percent)
    for path, node, container in _containers(topology):
        owner = _container_label(node, container)
        yield from _check_loss(f"{path}.loss_percent", owner, container.loss_percent)
        if container.mtu is not None:
            yield from _check_mtu(f"{path}.mtu", owner, container.mtu, topology.families)


def _check_mtu(path: str, owner: str, mtu: int, families: tuple[Family, ...]) -> Iterator[Problem]:
    least = MTU_MIN[6] if 6 in families else MTU_MIN[4]
    if not least <= mtu <= MTU_MAX:
        reason = ", the least that IPv6 works with" if 6 in families else ""
        yield Problem(path, f"the MTU of {owner} is {shown(mtu)}: choose {least}{reason} to {MTU_MAX}")


def _check_loss(path: str, owner: str, percent: float) -> Iterator[Problem]:
    if not 0 <= percent <= 100:
        yield Problem(path, f"the loss on {owner} is {shown(percent)} percent: choose 0 to 100")


# The underlay


def _check_segments(topology: Topology) -> Iterator[Problem]:
    for index, segment in enumerate(topology.segments):
        path = f"$.segments[{index}].prefixes"
        yield from _check_prefixes(path, f"segment {shown(segment.name)}", segment.prefixes)
        if not segment.prefixes:
            yield Problem(path, f"segment {shown(segment.name)} has no prefix left by default: name its prefixes")


def _check_links(topology: Topology) -> Iterator[Problem]:
    """Every attachment: a segment that exists, and addresses in it."""
    prefixes_of = {segment.name: segment.prefixes for segment in topology.segments}
    for path, host in _hosts(topology):
        if not host.links:
            known = ", ".join(prefixes_of)
            yield Problem(f"{path}.links", f"{shown(host.name)} has no links: name its segments, of {known}")
        for index, link in enumerate(host.links):
            here, owner = f"{path}.links[{index}]", f"{shown(host.name)}"
            if link.segment not in prefixes_of:
                yield Problem(f"{here}.segment", f"{owner} is linked to {_unknown(link.segment, prefixes_of)}")
                continue
            prefixes = prefixes_of[link.segment]
            place = f"segment {link.segment} ({', '.join(prefixes)})"
            if not link.addresses and any(map(network_or_none, prefixes)):
                yield Problem(
                    f"{here}.addresses",
                    f"{owner} has no address left in {place}: name its addresses or widen the segment",
                )
            for number, address in enumerate(link.addresses):
                fault = address_fault(address, prefixes, place)
                if fault:
                    yield Problem(f"{here}.addresses[{number}]", f"{owner} has the address {fault}")


def _unknown(name: str, known: Iterable[str]) -> str:
    import difflib  # needed for an error message alone

    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known) or 'none'}"
    return f"the segment {shown(name)}, which does not exist: {hint}"


def _check_interface_names(topology: Topology) -> Iterator[Problem]:
    for path, host in _hosts(topology):
        seen: set[str] = set()
        for index, link in enumerate(host.links):
            here, owner = f"{path}.links[{index}].name", f"interface {shown(link.name)} of {shown(host.name)}"
            if not INTERFACE_NAME.fullmatch(link.name):
                yield Problem(here, f"{owner} has a name that Linux does not take: use letters, digits, . _ and -")
            elif len(link.name) > IFNAME_MAX:
                size = f"{len(link.name)} bytes, of at most {IFNAME_MAX}"
                yield Problem(here, f"{owner} has a name of {size}")
            elif link.name in RESERVED_INTERFACES or link.name.startswith("veth"):
                yield Problem(here, f"{owner} has a name that the lab uses itself: choose another, such as eth{index}")
            if link.name in seen:
                yield Problem(here, f"{owner} exists twice: interface names must be unique on a node")
            seen.add(link.name)


def _check_ports(topology: Topology) -> Iterator[Problem]:
    """Hashed port names of one segment that happen to be the same; equal names are told already."""
    holders: dict[tuple[str, str], str] = {}
    for path, host in _hosts(topology):
        for index, link in enumerate(host.links):
            key = (link.segment, port_name(host, index))
            other = holders.setdefault(key, host.name)
            if other != host.name:
                clash = f"{shown(host.name)} and {shown(other)} shorten to the same bridge port {key[1]}"
                yield Problem(f"{path}.name", f"{clash} on {shown(link.segment)}: rename one of them")


def _check_routes(topology: Topology) -> Iterator[Problem]:
    prefixes_of = {segment.name: segment.prefixes for segment in topology.segments}
    for place, router in enumerate(topology.routers):
        connected = tuple(prefix for link in router.links for prefix in prefixes_of.get(link.segment, ()))
        for index, route in enumerate(router.routes):
            path, owner = f"$.routers[{place}].routes[{index}]", f"router {shown(router.name)}"
            fault = prefix_fault(route.destination)
            if fault:
                yield Problem(f"{path}.destination", f"{owner} has a route to {fault}")
            fault = address_fault(route.via, connected, f"a segment of the router ({', '.join(connected)})")
            if fault:
                yield Problem(f"{path}.via", f"{owner} has a route via {fault}")
            elif family_of(route.via) != family_of(route.destination):
                yield Problem(f"{path}.via", f"{owner} has a route to {route.destination} via the other family")


# The container network


def _check_networks(topology: Topology) -> Iterator[Problem]:
    yield from _check_prefixes("$.networks", "the container network", topology.networks)
    yield from _check_one_a_family("$.networks", "the topology", "container network", topology.networks)


def _check_prefixes(path: str, owner: str, prefixes: Iterable[str]) -> Iterator[Problem]:
    for index, prefix in enumerate(prefixes):
        fault = prefix_fault(prefix)
        unusable = next((each for each in UNUSABLE if not fault and overlaps(each, prefix)), "")
        if fault:
            yield Problem(f"{path}[{index}]", f"{owner} has the prefix {fault}")
        elif unusable:
            yield Problem(f"{path}[{index}]", f"{owner} has the prefix {prefix}, but {unusable} is special to Linux")


def _check_one_a_family(path: str, owner: str, what: str, prefixes: Iterable[str]) -> Iterator[Problem]:
    seen: set[Family] = set()
    for index, prefix in enumerate(prefixes):
        family = family_of(prefix)
        if family in seen:
            yield Problem(f"{path}[{index}]", f"{owner} has a second IPv{family} {what}, {shown(prefix)}: keep one")
        seen.add(family)


def _check_subnets(topology: Topology) -> Iterator[Problem]:
    """A subnet for each family of the network, inside of it and large enough."""
    for place, node in enumerate(topology.nodes):
        path = f"$.nodes[{place}].subnets"
        yield from _check_one_a_family(path, f"node {shown(node.name)}", "subnet", node.subnets)
        for family in topology.families:
            if topology.subnet_of(node, family) is None and network_or_none(topology.network(family) or ""):
                yield Problem(path, _missing_subnet(topology, node, family, place + 1))
        for index, subnet in enumerate(node.subnets):
            fault = prefix_fault(subnet) or _subnet_fault(topology, node, subnet)
            if fault:
                yield Problem(f"{path}[{index}]", f"node {shown(node.name)} has the subnet {fault}")


def _missing_subnet(topology: Topology, node: Node, family: Family, position: int) -> str:
    network, length = topology.network(family), SUBNET_LENGTH[family]
    if node.subnets and len(topology.families) > 1:
        return f"node {shown(node.name)} has no IPv{family} subnet, but the network is {network} too: name one"
    room = f"{network} holds no /{length} number {position}"
    return f"node {shown(node.name)} has no subnet: {room}; give a larger network, or name subnets"


def _subnet_fault(topology: Topology, node: Node, subnet: str) -> str:
    network = network_or_none(subnet)
    if network is None:
        return ""
    outer = network_or_none(topology.network(family_of(subnet)) or "")
    if outer is None or not inside(network, outer):
        return f"{subnet}, which is outside of the network ({', '.join(topology.networks)})"
    length = TUNNEL_LENGTH[family_of(subnet)]
    if topology.backend == "udp" and network.prefixlen > length:
        return f"{subnet}, too small for the tunnel address, number {TUNNEL_NUMBER}: choose /{length} or larger"
    needed, room = _needed(topology, node, subnet), _usable(network)
    if needed > room:
        return f"{subnet}, too small: it has {room} usable addresses, and {needed} are needed for {_uses(node)}"
    return ""


def _needed(topology: Topology, node: Node, subnet: str) -> int:
    """How many addresses of its subnet a node uses; number 100 is never given to a container by default."""
    tunnel = nth_address_or_none(subnet, TUNNEL_NUMBER)
    asked_for = any(tunnel in container.addresses for container in node.containers)
    kept = tunnel is not None and (topology.backend == "udp" or not asked_for)
    return len(node.containers) + (node.attach == "bridge") + kept


def _usable(network: Network) -> int:
    if network.num_addresses <= 2:
        return network.num_addresses
    return network.num_addresses - (2 if network.version == 4 else 1)


def _uses(node: Node) -> str:
    gateway = "the gateway and " if node.attach == "bridge" else ""
    return f"{gateway}{len(node.containers)} containers (number {TUNNEL_NUMBER} is kept for a tunnel)"


def _check_containers(topology: Topology) -> Iterator[Problem]:
    """Addresses of containers: in a subnet of their node, and not the gateway's or the tunnel's."""
    for place, node in enumerate(topology.nodes):
        held = _held_addresses(topology, node)
        where = f"a subnet of {shown(node.name)} ({', '.join(node.subnets)})"
        for position, container in enumerate(node.containers):
            path, owner = (
                f"$.nodes[{place}].containers[{position}].addresses",
                _container_label(node, container),
            )
            for index, address in enumerate(container.addresses):
                holder = held.get(address)
                fault = f"{address}, which is {holder}" if holder else address_fault(address, node.subnets, where)
                if fault:
                    yield Problem(f"{path}[{index}]", f"{owner} has the address {fault}")


def _held_addresses(topology: Topology, node: Node) -> dict[str, str]:
    """Addresses of the node's subnets that are not for containers, and whose they are."""
    held: dict[str, str] = {}
    for family in topology.families:
        gateway, tunnel = topology.gateway_of(node, family), topology.tunnel_address_of(node, family)
        if gateway:
            held[gateway] = f"number {GATEWAY_NUMBER} of the subnet, the gateway's"
        if tunnel and topology.backend == "udp":
            held[tunnel] = f"number {TUNNEL_NUMBER} of the subnet, the tunnel's"
    return held


# Across the lab


def _check_duplicate_addresses(topology: Topology) -> Iterator[Problem]:
    holders: dict[str, str] = {}
    for path, owner, address in _all_addresses(topology):
        if address in holders:
            yield Problem(path, f"{owner} has the address {shown(address)}, which {holders[address]} has already")
        holders.setdefault(address, owner)


def _all_addresses(topology: Topology) -> Iterator[tuple[str, str, str]]:
    for path, host in _hosts(topology):
        for place, link in enumerate(host.links):
            for index, address in enumerate(link.addresses):
                owner = f"{shown(host.name)} ({shown(link.name)})"
                yield f"{path}.links[{place}].addresses[{index}]", owner, address
    for path, node, container in _containers(topology):
        for index, address in enumerate(container.addresses):
            yield f"{path}.addresses[{index}]", _container_label(node, container), address


# Shared


def _hosts(topology: Topology) -> Iterator[tuple[str, Host]]:
    for index, router in enumerate(topology.routers):
        yield f"$.routers[{index}]", router
    for index, node in enumerate(topology.nodes):
        yield f"$.nodes[{index}]", node


def _containers(topology: Topology) -> Iterator[tuple[str, Node, Container]]:
    for place, node in enumerate(topology.nodes):
        for index, container in enumerate(node.containers):
            yield f"$.nodes[{place}].containers[{index}]", node, container


def _container_label(node: Node, container: Container) -> str:
    return f"container {shown(full_name_of(node, container))}"
