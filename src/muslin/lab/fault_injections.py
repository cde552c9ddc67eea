"""The commands that break a lab, one function a fault: from a topology and a dice to an ``Injection``.

Theory of operation: a function picks its place by the dice it is given, so the same seed breaks the same thing, and
returns commands as a person would type them in that place. Whatever it adds that is not the lab's own (a table, an
address, a route) it names for undoing; what it takes away or changes, converging brings back. Both families are broken
where the lab has both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from muslin.backends.udp import AGENT_DEVICE, AGENT_PORT
from muslin.backends.udp import DEVICE as TUN_DEVICE
from muslin.backends.vxlan import DEVICE as VXLAN_DEVICE
from muslin.lab.faults import Command, Injection
from muslin.lab.plan import NODE_BRIDGE
from muslin.lab.topology import Container, Node, Topology, full_name_of
from muslin.model.address import family_of, prefix_length
from muslin.model.kernel import VXLAN_PORT
from muslin.model.network import TUNNEL_PORT

FIREWALL = "inet firewall"


def _commands(place: str, words: Sequence[str]) -> tuple[Command, ...]:
    return tuple(Command(place, one) for one in words)


def _node(topology: Topology, dice: random.Random) -> Node:
    return dice.choice(topology.nodes)


def _pair(topology: Topology, dice: random.Random) -> tuple[Node, Node]:
    """Two different nodes."""
    one, other = dice.sample(topology.nodes, 2)
    return one, other


def _container(topology: Topology, dice: random.Random) -> tuple[Node, Container, int]:
    """A container with its node and its number there, from 1."""
    node = dice.choice([node for node in topology.nodes if node.containers])
    number = dice.randrange(len(node.containers))
    return node, node.containers[number], number + 1


def _cable(node: Node, number: int) -> tuple[str, str]:
    """The names of a container's cable: the end on the node, and its own (``lab.plan``)."""
    direct = node.attach == "direct"
    return (
        (f"veth{2 * number - 1}", f"veth{2 * number}") if direct else (f"veth{10 * number}", f"veth{10 * number + 1}")
    )


def _table(place: str, chain: str, *rules: str, policy: str = "accept", kind: str = "filter") -> Injection:
    """A packet filter table with one chain of the hook's name."""
    priority = {"filter": "0", "nat": "100"}[kind]
    head = f"add table {FIREWALL}; add chain {FIREWALL} {chain} "
    head += f"{{ type {kind} hook {chain} priority {priority}; policy {policy}; }}"
    lines = "; ".join([head, *(f"add rule {FIREWALL} {chain} {rule}" for rule in rules)])
    return Injection(
        commands=(Command(place, f"nft '{lines}'"),), undo=(Command(place, f"nft delete table {FIREWALL}"),)
    )


def _underlay(node: Node) -> str:
    return node.links[0].name


def _tunnel_device(topology: Topology) -> str:
    """The device that packets to other nodes leave by; empty where that is the underlay's link."""
    udp = AGENT_DEVICE if topology.agents else TUN_DEVICE
    return {"udp": udp, "vxlan": VXLAN_DEVICE}.get(topology.backend, "")


def no_forwarding(topology: Topology, dice: random.Random) -> Injection:
    """A node stops being a router."""
    names = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
    words = [f"sysctl -qw {names[family]}=0" for family in topology.families]
    return Injection(commands=_commands(_node(topology, dice).name, words))


def no_return_route(topology: Topology, dice: random.Random) -> Injection:
    """One node forgets the way to another one's containers."""
    node, other = _pair(topology, dice)
    return Injection(commands=_commands(node.name, [f"ip route del {subnet}" for subnet in other.subnets]))


def no_default_route(topology: Topology, dice: random.Random) -> Injection:
    """A container has no way out of its subnet."""
    node, container, _ = _container(topology, dice)
    words = [f"ip -{family} route del default" for family in topology.families]
    return Injection(commands=_commands(full_name_of(node, container), words))


def link_down(topology: Topology, dice: random.Random) -> Injection:
    """The node's end of a container's cable is down."""
    node, _, number = _container(topology, dice)
    return Injection(commands=_commands(node.name, [f"ip link set {_cable(node, number)[0]} down"]))


def loopback_down(topology: Topology, dice: random.Random) -> Injection:
    """A container without lo."""
    node, container, _ = _container(topology, dice)
    return Injection(commands=_commands(full_name_of(node, container), ["ip link set lo down"]))


def unplugged(topology: Topology, dice: random.Random) -> Injection:
    """A cable that is no port of the bridge."""
    node, _, number = _container(topology, dice)
    return Injection(commands=_commands(node.name, [f"ip link set {_cable(node, number)[0]} nomaster"]))


def wrong_mask(topology: Topology, dice: random.Random) -> Injection:
    """A container that takes the whole network for its own link."""
    node, container, number = _container(topology, dice)
    link = _cable(node, number)[1]
    words, undo = [], []
    for address in container.addresses:
        subnet = topology.subnet_of(node, family_of(address))
        network = topology.network(family_of(address))
        if subnet and network:
            wrong, right = f"{address}/{prefix_length(network)}", f"{address}/{prefix_length(subnet)}"
            no_dad = " nodad" if family_of(address) == 6 else ""
            # The new one first: with its last address the kernel would take a link's routes too.
            words += [f"ip addr add {wrong} dev {link}{no_dad}", f"ip addr del {right} dev {link}"]
            undo += [f"ip addr add {right} dev {link}{no_dad}; ip addr del {wrong} dev {link}"]
    place = full_name_of(node, container)
    if family_of(container.addresses[-1]) == 6:
        # IPv6 has one such address a link; the second command takes the first's place (net/ipv6/addrconf.c).
        words = [word for word in words if ":" not in word]
    return Injection(commands=_commands(place, words), undo=_commands(place, undo))


def duplicate_address(topology: Topology, dice: random.Random) -> Injection:
    """A container also has its neighbour's address."""
    node = dice.choice([node for node in topology.nodes if len(node.containers) > 1])
    victim, thief = dice.sample(range(len(node.containers)), 2)
    link, place = _cable(node, thief + 1)[1], full_name_of(node, node.containers[thief])
    lengths = {family_of(subnet): prefix_length(subnet) for subnet in node.subnets}
    stolen = [f"{one}/{lengths[family_of(one)]}" for one in node.containers[victim].addresses]
    add = [f"ip addr add {one} dev {link}{' nodad' if ':' in one else ''}" for one in stolen]
    return Injection(
        commands=_commands(place, add), undo=_commands(place, [f"ip addr del {one} dev {link}" for one in stolen])
    )


def forward_policy(topology: Topology, dice: random.Random) -> Injection:
    """A firewall whose forward chain drops what it does not know, as Docker sets it."""
    return _table(_node(topology, dice).name, "forward", policy="drop")


def strict_reverse_path(topology: Topology, dice: random.Random) -> Injection:
    """The reverse path filter as many distributions switch it on."""
    return Injection(commands=_commands(_node(topology, dice).name, ["sysctl -qw net.ipv4.conf.all.rp_filter=1"]))


def black_hole(topology: Topology, dice: random.Random) -> Injection:
    """A firewall that blocks ICMP errors beside a tunnel with a smaller MTU."""
    rules = ("icmp type destination-unreachable drop", "icmpv6 type packet-too-big drop")
    made = _table(_node(topology, dice).name, "output", *rules)
    # What containers have learned before would spare them the fall for ten minutes (net.ipv4.route.mtu_expires).
    forget = [
        Command(full_name_of(node, container), "ip route flush cache; ip -6 route flush cache")
        for node, container in topology.containers
    ]
    return msgspec.structs.replace(made, commands=(*made.commands, *forget))


def tunnel_gone(topology: Topology, dice: random.Random) -> Injection:
    """The tunnel program of a node has ended."""
    return Injection(commands=(), ends_tunnel_in=_node(topology, dice).name)


def masquerade(topology: Topology, dice: random.Random) -> Injection:
    """A node that hides what it forwards to other nodes behind its own address."""
    node = _node(topology, dice)
    out = _tunnel_device(topology) or _underlay(node)
    return _table(node.name, "postrouting", f"oifname {out} masquerade", kind="nat")


def tunnel_port_blocked(topology: Topology, dice: random.Random) -> Injection:
    """A firewall that does not know the tunnel's port."""
    udp_port = AGENT_PORT if topology.agents else TUNNEL_PORT
    port = {"udp": udp_port, "vxlan": VXLAN_PORT}[topology.backend]
    return _table(_node(topology, dice).name, "input", f"udp dport {port} drop")


def stale_route(topology: Topology, dice: random.Random) -> Injection:
    """A longer route to the other subnet, left by something older, to a node that is no more."""
    node, other = _pair(topology, dice)
    link = _underlay(node)
    words, undo = [], []
    for subnet in other.subnets:
        address, _, length = subnet.partition("/")
        prefix = f"{address}/{int(length) + 1}"
        via = topology.underlay_address_of(node, family_of(subnet))
        if via is None:
            continue
        gone = f"{via.rpartition('.')[0]}.99" if family_of(via) == 4 else f"{via.rpartition(':')[0]}:99"
        words.append(f"ip route add {prefix} via {gone} dev {link}")
        undo.append(f"ip route del {prefix} via {gone} dev {link}")
    return Injection(commands=_commands(node.name, words), undo=_commands(node.name, undo))


def checksum_offload(topology: Topology, dice: random.Random) -> Injection:
    """Checksums that are wrong on the wire, as of a network card that computes them wrongly for tunnelled packets.

    A veth computes none, so that a rule writes them. Where the kernel has left the field to the link, what stands in
    it is what the sum begins with, and the sum is wrong as well; a tunnel program gets packets whose sum is made up.
    """
    node = _node(topology, dice)
    rules = [f"oifname {_tunnel_device(topology)} {protocol} checksum set 0xbad" for protocol in ("tcp", "udp")]
    made = _table(node.name, "postrouting", *rules)
    if topology.backend == "udp":
        return made
    link = _underlay(node)
    return Injection(
        commands=(*_commands(node.name, [f"ethtool -K {link} tx off"]), *made.commands),
        undo=(*made.undo, Command(node.name, f"ethtool -K {link} tx on")),
    )


def link_flap(topology: Topology, dice: random.Random) -> Injection:
    """A link that went down and came back, and with it the routes that went."""
    node = _node(topology, dice)
    link = VXLAN_DEVICE if topology.backend == "vxlan" else _underlay(node)
    return Injection(commands=_commands(node.name, [f"ip link set {link} down", f"ip link set {link} up"]))


def tunnel_mac(topology: Topology, dice: random.Random) -> Injection:
    """A tunnel device that was made anew, with another MAC than the one that its peers know."""
    words = f"ip link set {VXLAN_DEVICE} address 02:00:5e:00:53:{dice.randrange(256):02x}"
    return Injection(commands=_commands(_node(topology, dice).name, [words]))


def wrong_outer_address(topology: Topology, dice: random.Random) -> Injection:
    """A peer whose public address was written down wrong."""
    node, other = _pair(topology, dice)
    right = next(address for link in other.links for address in link.addresses)
    wrong = f"{right.rpartition('.')[0]}.99" if family_of(right) == 4 else f"{right.rpartition(':')[0]}:99"
    # Whoever runs the network, lab or agent, chose the MAC; the entry itself tells it.
    mac = f'$(bridge fdb show dev {VXLAN_DEVICE} | sed -n "s/ .*dst {right} .*//p")'
    words = f"bridge fdb replace {mac} dev {VXLAN_DEVICE} dst {wrong} self permanent"
    return Injection(commands=_commands(node.name, [words]))


def bridged_frames_filtered(topology: Topology, dice: random.Random) -> Injection:
    """br_netfilter shows the IP packet filter what the bridge only switches, and a rule there drops it."""
    node = dice.choice([node for node in topology.nodes if len(node.containers) > 1])
    settings = [f"sysctl -qw net.bridge.bridge-nf-call-{one}tables=1" for one in ("ip", "ip6")]
    made = _table(node.name, "forward", f"iifname {NODE_BRIDGE} oifname {NODE_BRIDGE} drop")
    return Injection(commands=(*_commands(node.name, settings), *made.commands), undo=made.undo)
