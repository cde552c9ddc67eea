"""The right answers to the course's questions, found on the lab that is up.

Theory of operation: an answer is never written down with its question: it is read from the living lab, by walking the
packet that the question is about (``explain``). So a course in which somebody changed something still tells the truth.
"""

from __future__ import annotations

from collections.abc import Callable

from muslin.explain.both import Question, explain
from muslin.explain.frames import Network
from muslin.explain.path import Explanation
from muslin.lab.course import Kind
from muslin.model.address import parse_address

Finder = Callable[[Network], str]


def _walk(network: Network, source: str, destination: str) -> Explanation:
    return explain(network, Question(netns=source, destination=destination))


def _ttl(source: str, destination: str) -> Finder:
    return lambda network: str(_walk(network, source, destination).request.ttl)


def _source(source: str, destination: str) -> Finder:
    return lambda network: _walk(network, source, destination).request.source


def _seen(source: str, destination: str) -> Finder:
    return lambda network: _walk(network, source, destination).request.arrived_as


def _type(source: str, destination: str) -> Finder:
    def find(network: Network) -> str:
        route = _walk(network, source, destination).request.hops[0].route
        return route.type if route else "none"

    return find


def _link(source: str, destination: str) -> Finder:
    return lambda network: _walk(network, source, destination).request.hops[0].left


def _prefix(source: str, destination: str) -> Finder:
    def find(network: Network) -> str:
        route = _walk(network, source, destination).request.hops[0].route
        return route.text.split()[0] if route else "none"

    return find


def _next_hop(source: str, destination: str) -> Finder:
    return lambda network: _walk(network, source, destination).request.hops[0].next_hop


def _answered(source: str, destination: str) -> Finder:
    return lambda network: "yes" if _walk(network, source, destination).ok else "no"


def _mtu(place: str, link: str) -> Finder:
    def find(network: Network) -> str:
        record = network[place].link(link)
        return str(record.mtu) if record else "none"

    return find


FINDERS: dict[str, Finder] = {
    "node_pings_container": _answered("node1", "172.16.0.1"),
    "node_source_to_container": _source("node1", "172.16.0.1"),
    "container_asks_for": _next_hop("con.node1", "10.0.0.10"),
    "container_route_type": _type("con.node1", "10.0.0.10"),
    "route_to_neighbour": _prefix("con1.node1", "172.16.0.3"),
    "route_to_node": _prefix("con1.node1", "10.0.0.10"),
    "ttl_con1_to_con2": _ttl("con1.node1", "172.16.0.3"),
    "ttl_con1_to_node": _ttl("con1.node1", "10.0.0.10"),
    "ttl_con1_to_remote": _ttl("con1.node1", "172.16.1.2"),
    "node_route_type": _type("node1", "172.16.1.2"),
    "source_seen": _seen("con1.node1", "172.16.1.2"),
    "link_to_own_container": _link("node1", "172.16.0.2"),
    "link_to_remote_container": _link("node1", "172.16.1.2"),
    "tunnel_mtu": _mtu("node1", "tun0"),
    "node_source_to_remote": _source("node1", "172.16.1.2"),
}


def is_answer(given: str, kind: Kind) -> bool:
    """Whether this is an answer at all: what is not would be a slip of the fingers, and is asked again."""
    if kind == "address":
        try:
            parse_address(given)
        except ValueError:
            return False
        return True
    if kind == "yes or no":
        return bool(given) and any(word.startswith(given.lower()) for word in ("yes", "no"))
    return given.isdigit() if kind == "number" else bool(given)


def is_right(given: str, right: str) -> bool:
    """Whether an answer is the right one, as people write: ``Y`` for yes, ``connected`` for directly connected."""
    words = " ".join(given.lower().split()).rstrip(".")
    return (
        words == right.lower()
        or (len(words) >= 1 and right in ("yes", "no") and right.startswith(words))
        or (words == "connected" and right == "directly connected")
    )
