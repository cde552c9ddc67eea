"""A course through the four steps: read, predict, look, and only then be told.

Theory of operation: plain data. A lesson belongs to a step of the talk and to a lab that is raised for it. It teaches
one idea in a few sentences, then asks: each question has a right answer that ``lab.lesson_answers`` finds on the living
lab, a command that shows it, and words on why it is so. Exercises are different: something is to be done in the lab,
and the check (``verify``) says whether it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from muslin.lab.topology import Step

Kind = Literal["number", "address", "word", "yes or no"]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Something to predict. ``find`` names the function that finds the answer on the living lab."""

    ask: str
    kind: Kind
    find: str
    look: tuple[str, tuple[str, ...]]
    """(place, command) that shows it."""
    because: str


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """One idea. ``step`` is the lab that it stands on."""

    name: str
    step: Step
    title: str
    text: str
    questions: tuple[Question, ...]
    exercise: str = ""
    """What to do in the lab, in words; ``fault`` is broken for it first."""
    fault: str = ""


COURSE: tuple[Lesson, ...] = (
    Lesson(
        name="namespace",
        step=1,
        title="A container is a namespace",
        text=(
            "For the network, a container is a namespace: a private set of interfaces, addresses, routes and rules.\n"
            "This lab has a node with 10.0.0.10 and a container with 172.16.0.1, joined by a veth, a cable with one\n"
            "end in each. Nothing runs inside of the container."
        ),
        questions=(
            Question(
                ask="No process runs in the container. If the node pings 172.16.0.1, is it answered?",
                kind="yes or no",
                find="node_pings_container",
                look=("node1", ("ping", "-c", "1", "-W", "1", "172.16.0.1")),
                because="The kernel of the namespace answers. A ping says nothing about programs.",
            ),
            Question(
                ask="The node sends that ping. Which source address does it put on it?",
                kind="address",
                find="node_source_to_container",
                look=("node1", ("ip", "route", "get", "172.16.0.1")),
                because="The kernel chose the address of another link: veth1 itself has none.",
            ),
        ),
    ),
    Lesson(
        name="gateway",
        step=1,
        title="A gateway that is oneself",
        text=(
            "The container has one address, a /32, so nobody is its neighbour by prefix. Its only route is\n"
            "'default via 172.16.0.1', and 172.16.0.1 is the container itself. A gateway that is an own address means\n"
            "'on this link': the kernel asks for every address right on the cable."
        ),
        questions=(
            Question(
                ask="The container pings 10.0.0.10. Whose MAC does it ask for by ARP: which address?",
                kind="address",
                find="container_asks_for",
                look=("con.node1", ("ip", "neigh")),
                because="Not for the gateway: for the destination itself, since the gateway is an own address.",
            ),
            Question(
                ask="Of the types local, directly connected, static, dynamic and default: which one sends it there?",
                kind="word",
                find="container_route_type",
                look=("con.node1", ("ip", "route")),
                because="It contains everything, so it is what remains when nothing longer matches.",
            ),
        ),
    ),
    Lesson(
        name="bridge",
        step=2,
        title="A switch between containers",
        text=(
            "Now the node has a bridge, br0, and two containers are plugged into it. A bridge switches frames by\n"
            "MAC; it does not look at IP. br0 has an address too, 172.16.0.1: that is the node's own port on the\n"
            "switch, and the containers' gateway. TTL is how many more routers a packet may meet; Linux begins\n"
            "with 64."
        ),
        questions=(
            Question(
                ask="con1 pings con2. With which TTL does the packet arrive?",
                kind="number",
                find="ttl_con1_to_con2",
                look=("con1.node1", ("ping", "-c", "1", "-W", "1", "172.16.0.3")),
                because="A switch is no router, so nobody took one away.",
            ),
            Question(
                ask="con1 pings the node's other address, 10.0.0.10. With which TTL does that arrive?",
                kind="number",
                find="ttl_con1_to_node",
                look=("con1.node1", ("ping", "-c", "1", "-W", "1", "10.0.0.10")),
                because="It is delivered, not forwarded: to the node, each of its addresses is 'this is me' (local).",
            ),
        ),
        exercise="con1 or con2 is cut off. Find out why, mend it, and say done.",
        fault="unplugged",
    ),
    Lesson(
        name="routes",
        step=3,
        title="Two nodes, and a route each",
        text=(
            "There are two nodes on one layer-2 network, each with a container subnet of its own. Two things make\n"
            "them one network: each node has a route to the other's subnet, 'via' the other node, and each forwards\n"
            "what is not for itself. flannel calls this host-gw."
        ),
        questions=(
            Question(
                ask="con1 on node1 pings con1 on node2. With which TTL does it arrive?",
                kind="number",
                find="ttl_con1_to_remote",
                look=("con1.node1", ("ping", "-c", "1", "-W", "1", "172.16.1.2")),
                because="Two routers are on the way, the two nodes, and each takes one away.",
            ),
            Question(
                ask="Which type of route does node1 take for 172.16.1.2?",
                kind="word",
                find="node_route_type",
                look=("node1", ("ip", "route")),
                because="It has a gateway and was written by hand (by the lab).",
            ),
            Question(
                ask="Which source address does con1 on node2 see?",
                kind="address",
                find="source_seen",
                look=("con1.node1", ("ip", "-4", "-br", "addr")),
                because="The container's own: no NAT, which is what R1 and R3 demand.",
            ),
        ),
        exercise="Requests still arrive between the nodes' containers, but something is missing on the way back.\n"
        "Find it (muslin lab diagnose may help), mend it, and say done.",
        fault="no-return-route",
    ),
    Lesson(
        name="longest-prefix",
        step=4,
        title="The longest prefix wins",
        text=(
            "The overlay needs no route to the other subnet. tun0 has an address with the length of the whole\n"
            "network, 172.16.0.100/16, so all of 172.16.0.0/16 is directly connected to it; and 172.16.0.0/24 is\n"
            "directly connected to br0. Both contain 172.16.0.2."
        ),
        questions=(
            Question(
                ask="By which link does node1 send a packet for 172.16.0.2?",
                kind="word",
                find="link_to_own_container",
                look=("node1", ("ip", "route", "get", "172.16.0.2")),
                because="Both routes contain it, and /24 is longer than /16. Types do not matter to the kernel.",
            ),
            Question(
                ask="And one for 172.16.1.2?",
                kind="word",
                find="link_to_remote_container",
                look=("node1", ("ip", "route", "get", "172.16.1.2")),
                because="172.16.0.0/24 does not contain it; the /16 does.",
            ),
        ),
    ),
    Lesson(
        name="overlay",
        step=4,
        title="A packet inside of a packet",
        text=(
            "A program holds tun0. What the kernel routes into it, the program sends to the other node as the\n"
            "payload of a UDP datagram, and the program there puts it out of its tun0. Outside is an IP header of\n"
            "20 bytes and a UDP header of 8."
        ),
        questions=(
            Question(
                ask="con1 on node1 pings con1 on node2 through the tunnel. With which TTL does it arrive?",
                kind="number",
                find="ttl_con1_to_remote",
                look=("con1.node1", ("ping", "-c", "1", "-W", "1", "172.16.1.2")),
                because="As without a tunnel: the tunnel's own hops count in the outer packet's TTL.",
            ),
            Question(
                ask="The underlay carries 1500 bytes. What is the longest packet, in bytes, that fits into the tunnel?",
                kind="number",
                find="tunnel_mtu",
                look=("node1", ("ip", "link", "show", "tun0")),
                because="1500 - 20 - 8. The talk's socat adds 4 bytes more, so there it is 1468.",
            ),
            Question(
                ask="node1 itself pings 172.16.1.2. Which source address does the container see?",
                kind="address",
                find="node_source_to_remote",
                look=("node1", ("ip", "route", "get", "172.16.1.2")),
                because="The packet leaves by tun0, so it gets that link's address. That is no NAT.",
            ),
        ),
        exercise="Containers reach far containers, but not far nodes. Find the setting, mend it, and say done.",
        fault="strict-reverse-path",
    ),
)
