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
            "For the network, a container is a namespace: a private set of network links, addresses, routes and rules."
            " This lab has a node, a machine with the address 10.0.0.10, and a container with 172.16.0.1. They are"
            " joined by a veth: a cable with one end in each. Nothing runs inside of the container.\n\n"
            "A ping asks another address for an answer; whoever has that address should give it."
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
            "Where a packet goes is looked up in a table. Each line of it, a route, says: addresses that begin like"
            " this leave by that link, perhaps via a gateway, which is whoever knows the rest of the way. A route is"
            " local ('this address is me'), directly connected (no gateway: the receiver is on the link itself),"
            " static (a gateway, written by a person), dynamic (written by a program), or default (it fits every"
            " address, and is taken when nothing else fits).\n\n"
            "On the link itself, machines find each other by MAC, the address of a network card. The question 'who"
            " has this address?' is ARP, and 'ip neigh' lists the answers.\n\n"
            "This container's only route is 'default via 172.16.0.1', and 172.16.0.1 is the container itself. A"
            " gateway that is oneself means 'on this link': the kernel asks for every address right on the cable."
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
            "Now the node has a bridge, br0, and two containers are plugged into it. A bridge is a switch: it passes"
            " frames on by their MAC, and does not look at IP. br0 has an address too, 172.16.0.1: that is the node's"
            " own port on the switch, and the containers' gateway.\n\n"
            "Every packet has a TTL: how many more routers it may meet. Linux begins with 64, each router takes one"
            " away, and at 0 the packet is thrown away. A ping shows the TTL with which the answer came back; here the"
            " way back is as long as the way there."
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
        name="table",
        step=2,
        title="How a table of routes is read",
        text=(
            "172.16.0.0/24 is a prefix: all addresses whose first 24 bits are those of 172.16.0.0. An address has 32"
            " bits, eight in each number, so these are the addresses that begin with 172.16.0. The longer the"
            " prefix, the fewer addresses it contains, and the more exactly it says what it means: /32 is a single"
            " address, and /0, the default, is all of them.\n\n"
            "con1 has two routes: one that is directly connected, 172.16.0.0/24 dev veth11, which came with its"
            " address; and 'default via 172.16.0.1'."
        ),
        questions=(
            Question(
                ask="con1 sends a packet to 172.16.0.3. Which route does it take: 172.16.0.0/24 or default?",
                kind="word",
                find="route_to_neighbour",
                look=("con1.node1", ("ip", "route", "get", "172.16.0.3", "fibmatch")),
                because="Both contain it, and the longer prefix wins. No gateway: con2 is on the link itself.",
            ),
            Question(
                ask="And one to 10.0.0.10?",
                kind="word",
                find="route_to_node",
                look=("con1.node1", ("ip", "route", "get", "10.0.0.10", "fibmatch")),
                because="172.16.0.0/24 does not contain it, so the default is all that remains: off to the gateway.",
            ),
        ),
    ),
    Lesson(
        name="routes",
        step=3,
        title="Two nodes, and a route each",
        text=(
            "There are two nodes on one switch, lan0, each with a subnet of its own for its containers:"
            " 172.16.0.0/24 and 172.16.1.0/24. Two things make them one network: each node has a route to the other's"
            " subnet, 'via' the other node, and each forwards what is not for itself, which makes it a router."
            " flannel, a widespread network for containers, calls this host-gw."
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
                because="The container's own. Nobody on the way changes it (no NAT), and Kubernetes wants it so.",
            ),
        ),
        exercise="Requests still arrive between the nodes' containers, but something is missing on the way back."
        " Find it, mend it, and say done.",
        fault="no-return-route",
    ),
    Lesson(
        name="longest-prefix",
        step=4,
        title="The longest prefix wins",
        text=(
            "Routes by way of each other only work for nodes on one switch. An overlay works anywhere: the nodes send"
            " each other's packets inside of their own. For the kernel, the way into it is one more link, tun0.\n\n"
            "It needs no route to the other subnet. tun0 has the address 172.16.0.100/16, with the length of the whole"
            " network, so that all of 172.16.0.0/16 is directly connected to it; and 172.16.0.0/24 is directly"
            " connected to br0. Both contain 172.16.0.2."
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
            "A program holds tun0. What the kernel routes into it, the program sends to the other node as the content"
            " of a packet of its own (UDP), and the program there puts it out of its tun0. Around the inner packet"
            " are an IP header of 20 bytes and a UDP header of 8. The network below, between the nodes, is called the"
            " underlay."
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
                because="1500 - 20 - 8. A tunnel by the program socat adds 4 bytes more, so there it is 1468.",
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
