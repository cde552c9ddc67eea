"""The talk's story: what each step is about, in the few sentences that a teacher would say."""

from __future__ import annotations

import msgspec


class Chapter(msgspec.Struct, frozen=True, kw_only=True):
    """One step: a title, a picture, what is new, and what to look at while it is up."""

    step: int
    title: str
    picture: str
    idea: str
    look: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(what it shows, in which place, the command)."""


STORY: tuple[Chapter, ...] = (
    Chapter(
        step=1,
        title="a single network namespace",
        picture="""\
 node1 10.0.0.10
   veth1 ======== veth2 172.16.0.1/32
                  con
""",
        idea=(
            "A container, for the network, is a namespace: it starts without interfaces, routes or rules. A veth is a\n"
            "cable with one end in it. The node gets a route to the one address at the other end; the container's\n"
            "default route names its own address as gateway, so it asks for every address right on the cable.\n"
            "Nobody listens in there, and still it answers a ping: that is the kernel."
        ),
        look=(
            (
                "who answers in there? no process: the kernel",
                "node1",
                ("ping", "-c", "1", "-W", "1", "172.16.0.1"),
            ),
            ("the container's whole routing table", "con.node1", ("ip", "route")),
            ("the node's address was asked for on the cable itself: ARP", "con.node1", ("ip", "-4", "neigh")),
        ),
    ),
    Chapter(
        step=2,
        title="a single node with a bridge",
        picture="""\
 node1 10.0.0.10
   br0 172.16.0.1/24
    |- veth10 ==== veth11 172.16.0.2/24  con1
    '- veth20 ==== veth21 172.16.0.3/24  con2
""",
        idea=(
            "A bridge is a switch: frames between con1 and con2 cross it unrouted, so the TTL stays 64. It has an\n"
            "address too, which makes it the containers' gateway and gives the node a way in."
        ),
        look=(
            ("which MAC is behind which port", "node1", ("bridge", "fdb", "show", "br", "br0", "dynamic")),
            ("con1 to con2: TTL 64, not routed", "con1.node1", ("ping", "-c", "1", "-W", "1", "172.16.0.3")),
        ),
    ),
    Chapter(
        step=3,
        title="several nodes, and routes between them",
        picture="""\
 node1 10.0.0.10 ------------ lan0 ------------ node2 10.0.0.20
   br0 172.16.0.1/24                              br0 172.16.1.1/24
    |- con1 .2   '- con2 .3                        |- con1 .2   '- con2 .3
""",
        idea=(
            "Each node has a subnet of its own, and two things are new: a route to the other node's subnet, and\n"
            "forwarding. The other node is the next hop, which works only while both share a layer-2 network.\n"
            "flannel calls this host-gw."
        ),
        look=(
            ("the route that is new", "node1", ("ip", "route")),
            (
                "con1 to con1 on the other node: TTL 62, two routers",
                "con1.node1",
                ("ping", "-c", "1", "-W", "1", "172.16.1.2"),
            ),
        ),
    ),
    Chapter(
        step=4,
        title="an overlay: TUN and UDP",
        picture="""\
 node1 10.0.0.10                                node2 10.0.0.20
   tun0 172.16.0.100/16 == UDP 9000, 28 bytes == tun0 172.16.1.100/16
   br0  172.16.0.1/24                             br0  172.16.1.1/24
    |- con1 .2   '- con2 .3                        |- con1 .2   '- con2 .3
""",
        idea=(
            "No route to the other subnet any more. tun0 holds the whole /16; the own /24 on br0 is longer, so it\n"
            "wins for what is local, and everything else falls into the tunnel: a program that sends each packet as\n"
            "the payload of a UDP datagram. What lies between the nodes needs to know nothing of containers.\n"
            "flannel calls this udp; its vxlan does the same inside of the kernel."
        ),
        look=(
            ("two routes for 172.16: the longer prefix wins", "node1", ("ip", "route")),
            (
                "still TTL 62: the inner packet does not see the tunnel",
                "con1.node1",
                ("ping", "-c", "1", "-W", "1", "172.16.1.2"),
            ),
        ),
    ),
)
