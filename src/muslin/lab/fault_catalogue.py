"""The catalogue of faults: what one sees, three hints from vague to plain, and what there is to learn.

Theory of operation: plain data. The first hint says where to look, the second which tool shows it, the third what it
shows. The numbers in the lessons are flannel's issues, where people met the same.
"""

from __future__ import annotations

from collections.abc import Callable

from muslin.lab import fault_injections as make
from muslin.lab.faults import Fault
from muslin.lab.topology import Topology


def _any(_topology: Topology) -> bool:
    return True


def _bridged(topology: Topology) -> bool:
    return any(node.attach == "bridge" and node.containers for node in topology.nodes)


def _crowded(topology: Topology) -> bool:
    return any(node.attach == "bridge" and len(node.containers) > 1 for node in topology.nodes)


def _joined(topology: Topology) -> bool:
    return len(topology.nodes) > 1 and topology.backend != "none"


def _by(*backends: str) -> Callable[[Topology], bool]:
    """Whether nodes are joined by one of these backends."""
    return lambda topology: _joined(topology) and topology.backend in backends


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="no-forwarding",
        symptom="Containers of one node reach nobody on other nodes; the nodes themselves talk to each other.",
        hints=(
            "Who has to pass a packet on that is not its own?",
            "Ask each node: sysctl net.ipv4.ip_forward",
            "One node answers 0: it takes what is for itself and drops the rest without a word.",
        ),
        lesson="A machine is no router until it is told so. Whatever it gets for others it drops silently: no ICMP"
        " error, no log. Container runtimes switch ip_forward on, and a hardening script likes to switch it off again.",
        causes=("forwarding-off",),
        fits=_joined,
        inject=make.no_forwarding,
    ),
    Fault(
        name="no-return-route",
        symptom="Requests between two nodes' containers arrive, and no answer comes.",
        hints=(
            "A ping is two packets. Which of them is lost?",
            "Compare `muslin lab routes` of the nodes: each needs a route to every other subnet.",
            "One node has no route to another node's containers, so their requests arrive and its answers do not.",
        ),
        lesson="Routing is decided for each packet alone; a way there is no way back. `lab check` says 'the request"
        " arrived, the answer was lost', and the place to look is the receiver's node.",
        causes=("no-route",),
        fits=_by("host-gw"),
        inject=make.no_return_route,
    ),
    Fault(
        name="no-default-route",
        symptom="One container reaches its neighbours on the bridge, and nobody else.",
        hints=(
            "Which addresses does it reach, and what do they have in common?",
            "Look at that container's table: ip route",
            "It knows its own subnet, and has no default route.",
        ),
        lesson="Without a route the own kernel refuses before anything is sent: 'Network is unreachable' is said by the"
        " sender itself.",
        causes=("no-route",),
        fits=_bridged,
        inject=make.no_default_route,
    ),
    Fault(
        name="link-down",
        symptom="One container is cut off altogether.",
        hints=(
            "Begin at the bottom: is there a cable, and is it up at both ends?",
            "On its node: ip link, bridge link",
            "The container's end has no carrier, because the end on the node is down.",
        ),
        lesson="A veth is one cable with two ends, each with a switch of its own. NO-CARRIER at one end means: look at"
        " the other one.",
        causes=("link-down",),
        fits=_any,
        inject=make.link_down,
    ),
    Fault(
        name="loopback-down",
        symptom="One container reaches everybody but itself.",
        hints=(
            "Which way does a packet to an own address go?",
            "In the container: ip link show lo",
            "lo is down, and packets to own addresses pass through it.",
        ),
        lesson="Also a packet to the address of eth0 goes by lo when it is one's own. A new namespace has lo, and it is"
        " down.",
        causes=("link-down",),
        fits=_any,
        inject=make.loopback_down,
    ),
    Fault(
        name="unplugged",
        symptom="One container is cut off, though its link is up at both ends.",
        hints=(
            "Both ends are up. Where does the node's end lead?",
            "On its node: bridge link, or ip link show master br0",
            "The node's end of the cable is no port of br0.",
        ),
        lesson="A veth end on the node is just another interface until it is enslaved to the bridge. ARP requests go"
        " out and nobody hears them: the neighbour entry stays INCOMPLETE.",
        causes=("unplugged", "no-neighbour"),
        fits=_bridged,
        inject=make.unplugged,
    ),
    Fault(
        name="wrong-mask",
        symptom="One container reaches its own node, and no container on other nodes.",
        hints=(
            "Whom does it ask for the MAC of a far container?",
            "In the container: ip addr, ip neigh after a ping",
            "Its address has the length of the whole network, so it takes everybody to be on its own link.",
        ),
        lesson="The prefix length says who is a neighbour. Too short, and the container asks by ARP for addresses that"
        " are behind a router, instead of sending to its gateway.",
        causes=("no-neighbour",),
        fits=lambda topology: _joined(topology) and topology.families[0] == 4 and _bridged(topology),
        inject=make.wrong_mask,
    ),
    Fault(
        name="duplicate-address",
        symptom="One container's address is answered by somebody else now and then.",
        hints=(
            "Who answers? Compare MACs, not addresses.",
            "On the node: ip neigh, and ip addr in each container",
            "Two containers of one node have the same address; whoever answers ARP first gets the packets.",
        ),
        lesson="IPv4 has no owner of an address but who answers first. It comes from two address managers in one"
        " subnet, or from a lease that was given out twice (flannel #1549).",
        causes=("not-here", "martian"),
        fits=_crowded,
        inject=make.duplicate_address,
    ),
    Fault(
        name="forward-policy",
        symptom="Nothing passes through one node, though it forwards and its routes are right.",
        hints=(
            "The routes are right and ip_forward is 1. Who else is asked?",
            "On the nodes: nft list ruleset",
            "One node's forward chain has the policy drop and lets nothing through.",
        ),
        lesson="Docker sets the policy of FORWARD to drop (since 1.13), and whoever else forwards on that machine has"
        " to accept its own traffic explicitly, as flannel and Muslin's agent do.",
        causes=("filter",),
        fits=_joined,
        inject=make.forward_policy,
    ),
    Fault(
        name="strict-reverse-path",
        symptom="Containers reach far containers, and not far nodes.",
        hints=(
            "Which way would the answer take?",
            "nstat -az TcpExtIPReversePathFilter on each node, while you ping",
            "One node filters strictly, and the packet comes in by another link than the answer would leave by.",
        ),
        lesson="In the overlay of step 4, a packet to a node comes by the underlay and its answer would go by the"
        " tunnel. Strict filtering (1) calls that forged; loose (2) asks only whether there is any way back.",
        causes=("reverse-path",),
        fits=lambda topology: _by("udp", "vxlan")(topology) and 4 in topology.families,
        inject=make.strict_reverse_path,
    ),
    Fault(
        name="black-hole",
        symptom="Pings work and small requests too; whatever is large hangs.",
        hints=(
            "Try sizes: ping -M do -s 1472 and smaller",
            "Large packets do not fit the tunnel. Somebody has to say so to the sender. Does anybody?",
            "A firewall on one node drops the ICMP message 'fragmentation needed'.",
        ),
        lesson="Path MTU discovery (RFC 1191) works by an ICMP error. Who blocks all ICMP makes a black hole: the"
        " handshake of TCP is small and succeeds, the first full segment vanishes.",
        causes=("black-hole",),
        fits=_by("udp", "vxlan"),
        inject=make.black_hole,
    ),
    Fault(
        name="tunnel-gone",
        symptom="Nothing passes between one node's containers and the others'; the nodes reach each other.",
        hints=(
            "The underlay works. What carries packets between containers?",
            "On each node: ip link show tun0",
            "One node's tun0 has no carrier: no program holds it.",
        ),
        lesson="A TUN device is a cable into a program. Without the program it has no carrier, and what is routed into"
        " it is gone; the other side's datagrams meet a closed port.",
        causes=("no-tunnel", "nobody-listens"),
        fits=_by("udp"),
        inject=make.tunnel_gone,
    ),
    Fault(
        name="masquerade",
        symptom="Everything is answered, and the check is red all the same.",
        hints=(
            "What does R3 say, and what does the receiver see?",
            "muslin lab check --wide: SENT and SEEN differ",
            "One node translates what it forwards: nft list ruleset",
        ),
        lesson="Masquerading towards the internet is fine; towards other nodes it hides who asked. Policies, logs and"
        " anything that answers by itself then meet the node instead of the container (flannel #864, #964).",
        causes=("nat",),
        fits=_joined,
        inject=make.masquerade,
    ),
    Fault(
        name="tunnel-port-blocked",
        symptom="Nodes reach each other; containers of one node hear nothing from the others.",
        hints=(
            "What do containers' packets look like on the underlay?",
            "Capture on eth0 of both nodes: the outer packets leave, and arrive",
            "A firewall on one node drops the tunnel's UDP port.",
        ),
        lesson="The classic of overlays (flannel #871, #2388): a firewall, a security group or the virtualisation takes"
        " UDP 8472. Ping between the nodes proves nothing about it.",
        causes=("filter",),
        fits=_by("udp", "vxlan"),
        inject=make.tunnel_port_blocked,
    ),
    Fault(
        name="checksum-offload",
        symptom="Pings between two nodes' containers work; connections and UDP do not.",
        hints=(
            "ICMP passes on the same way. What do TCP and UDP have that the others on the way never look at?",
            "On the receiver: nstat -az | grep -i csum. On the wire: tcpdump -vv shows 'incorrect'",
            "Packets leave one node's tunnel with wrong checksums, and whoever they are for drops them.",
        ),
        lesson="Only the receiver looks at a TCP or UDP checksum, and drops in silence what does not fit: a retry every"
        " second or two, up to the famous 63 seconds. Broken offload of network cards for tunnelled packets does that"
        " (flannel #2152, k8s #88986): there, ethtool -K flannel.1 tx-checksum-ip-generic off helps. A veth has none"
        " that could break; here a rule of the packet filter writes the wrong sum, and the receiver sees the same.",
        causes=("bad-checksum",),
        fits=_by("udp", "vxlan"),
        inject=make.checksum_offload,
    ),
    Fault(
        name="stale-route",
        symptom="Half of one node's containers cannot be reached from one other node.",
        hints=(
            "What do the lost addresses have in common?",
            "muslin lab routes on the node that cannot reach them: which prefix is the longest?",
            "A longer route, left by something older, leads to a node that is no more.",
        ),
        lesson="Leftovers win when they are longer: a /25 beats the right /24. The same happens when a backend is"
        " changed and the old routes stay: traffic goes on unencrypted (flannel #2554, rke2 #9338).",
        causes=("no-neighbour",),
        fits=lambda topology: _joined(topology) and len(topology.segments) == 1,
        inject=make.stale_route,
    ),
    Fault(
        name="link-flap",
        symptom="It worked until somebody replugged a cable on one node.",
        hints=(
            "The cable is up again. What else hung on it?",
            "ip route on that node, compared with the others",
            "When a link goes down the kernel removes the routes by it, and nobody puts them back.",
        ),
        lesson="Routes with a gateway go with their link and do not come back. So an agent must look again and not"
        " trust what it wrote once (flannel #869, #1348, #2247).",
        causes=("no-route",),
        fits=_by("host-gw", "vxlan"),
        inject=make.link_flap,
    ),
    Fault(
        name="tunnel-mac",
        symptom="Packets to one node's containers arrive at the node and go no further.",
        hints=(
            "The outer packet arrives. To whom is the inner frame addressed?",
            "ip -d link show type vxlan on that node; bridge fdb and ip neigh on the others",
            "The tunnel device has another MAC than the one that its peers write on the frames.",
        ),
        lesson="A vxlan device takes frames for its own MAC alone. When it is made anew its MAC changes, and peers that"
        " are not told keep the old one (flannel #1155, #1788).",
        causes=("wrong-mac",),
        fits=_by("vxlan"),
        inject=make.tunnel_mac,
    ),
    Fault(
        name="wrong-outer-address",
        symptom="One node does not reach another one's containers, whatever it tries.",
        hints=(
            "Where does the tunnel send the outer packet?",
            "bridge fdb show dev vxlan1 on the node that cannot get through",
            "The entry for the other tunnel end has an underlay address that nobody has.",
        ),
        lesson="An overlay is as right as the map from tunnel ends to underlay addresses: a node that published the"
        " address of the wrong interface is unreachable for all (flannel #712, #1052).",
        causes=("no-neighbour", "no-route"),
        fits=_by("vxlan"),
        inject=make.wrong_outer_address,
    ),
    Fault(
        name="bridged-frames-filtered",
        symptom="Containers of one node do not reach each other, while everybody else does.",
        hints=(
            "Between these two nobody routes. Can a packet filter still be asked?",
            "sysctl net.bridge.bridge-nf-call-iptables, nft list ruleset",
            "Frames that the bridge only switches pass the forward chain too, and a rule there drops them.",
        ),
        lesson="br_netfilter shows switched frames to the IP packet filter. Kubernetes wants that on; then every rule"
        " for routed traffic meets neighbours on a bridge as well (flannel #728, k8s #70202).",
        causes=("filter",),
        fits=_crowded,
        inject=make.bridged_frames_filtered,
    ),
)
