"""Namespaces written down by hand, as the kernel would tell of them.

con1 172.16.0.2 --veth-- br0 node1 --eth0-- lan (br0) --eth0-- node2 br0 --veth-- con2 172.16.1.2
               172.16.0.1    10.0.0.10                10.0.0.20    172.16.1.1
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from muslin.model.address import network_of, prefix_length
from muslin.wire.rtnetlink import (
    AF_INET,
    AF_INET6,
    AddressRecord,
    LinkRecord,
    RouteRecord,
    RuleRecord,
)
from muslin.wire.sight import Sight

SCOPE_LINK, SCOPE_HOST = 253, 254
RULES = tuple(
    RuleRecord(family=family, priority=priority, table=table)
    for family in (AF_INET, AF_INET6)
    for priority, table in ((0, 255), (32766, 254))
)


class Namespace:
    """Grows into a Sight."""

    def __init__(self, name: str, forwarding: bool = False, rules: Sequence[RuleRecord] = RULES) -> None:
        self.name = name
        self.rules = tuple(rules)
        self.forwarding = forwarding
        self.links: list[LinkRecord] = []
        self.addresses: list[AddressRecord] = []
        self.routes: list[RouteRecord] = []
        self.more: dict[str, Any] = {}
        self.sysctls: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self.link("lo", kind="loopback")

    def link(self, name: str, address: str = "", **what: Any) -> LinkRecord:
        number = next(self._numbers)
        mac = f"02:00:00:{sum(map(ord, self.name)) % 256:02x}:{len(self.name):02x}:{number:02x}"
        record = LinkRecord(number, name, **{"up": True, "lower_up": True, "mtu": 1500, "mac": mac, **what})
        self.links.append(record)
        self.sysctls[f"net/ipv4/conf/{name}/forwarding"] = str(int(self.forwarding))
        if address:
            self.address(name, address)
        return record

    def number(self, link: str) -> int:
        return next(one.ifindex for one in self.links if one.name == link)

    def address(self, link: str, address: str) -> None:
        bare, number = address.partition("/")[0], self.number(link)
        family = AF_INET6 if ":" in address else AF_INET
        self.addresses.append(AddressRecord(number, address, family))
        host = f"{bare}/{128 if family == AF_INET6 else 32}"
        self.routes.append(RouteRecord(host, family, 255, 2, SCOPE_HOST, "local", number, source=bare))
        if prefix_length(address) < 32:
            self.routes.append(
                RouteRecord(network_of(address), family, 254, 2, SCOPE_LINK, ifindex=number, source=bare)
            )

    def route(self, destination: str, link: str = "", via: str | None = None, **what: Any) -> None:
        family = AF_INET6 if ":" in destination else AF_INET
        number = self.number(link) if link else 0
        scope = 0 if via else SCOPE_LINK
        self.routes.append(
            RouteRecord(destination, family, **{"protocol": 3, "scope": scope, "ifindex": number, "via": via, **what})
        )

    def sight(self) -> Sight:
        return Sight(
            netns=self.name,
            links=tuple(self.links),
            addresses=tuple(self.addresses),
            routes=tuple(self.routes),
            rules=self.rules,
            sysctls={"net/ipv6/conf/all/forwarding": str(int(self.forwarding)), **self.sysctls},
            **self.more,
        )


class Network:
    """Namespaces and cables between them; ``sights`` is what explain reads."""

    def __init__(self) -> None:
        self.places: dict[str, Namespace] = {}

    def add(self, name: str, forwarding: bool = False) -> Namespace:
        self.places[name] = Namespace(name, forwarding)
        return self.places[name]

    def cable(self, near: str, near_link: str, far: str, far_link: str) -> None:
        """Join two links that exist; each namespace knows the other by the number of its place in the list."""
        import msgspec

        names = list(self.places)
        for one, link, other, peer in ((near, near_link, far, far_link), (far, far_link, near, near_link)):
            place = self.places[one]
            for index, record in enumerate(place.links):
                if record.name == link:
                    place.links[index] = msgspec.structs.replace(
                        record,
                        kind="veth",
                        peer_ifindex=self.places[other].number(peer),
                        link_netnsid=names.index(other) if one != other else None,
                    )
            place.more.setdefault("netns_ids", {})[names.index(other)] = other

    @property
    def sights(self) -> dict[str, Sight]:
        return {name: place.sight() for name, place in self.places.items()}


def two_nodes() -> Network:
    """Step 3 of the talk: two nodes, a route each, forwarding on."""
    network = Network()
    network.add("lan").link("br0", kind="bridge")
    for number in (1, 2):
        node, con = network.add(f"node{number}", forwarding=True), network.add(f"con{number}")
        own, other = f"172.16.{number - 1}", f"172.16.{2 - number}"
        node.link("eth0", f"10.0.0.{number}0/24")
        bridge = node.link("br0", f"{own}.1/24", kind="bridge")
        node.link("veth10", master_ifindex=bridge.ifindex)
        node.route(f"{other}.0/24", "eth0", f"10.0.0.{3 - number}0")
        con.link("veth11", f"{own}.2/24")
        con.route("0.0.0.0/0", "veth11", f"{own}.1")
        lan = network.places["lan"]
        lan.link(f"node{number}", master_ifindex=lan.number("br0"))
        network.cable(f"node{number}", "eth0", "lan", f"node{number}")
        network.cable(f"con{number}", "veth11", f"node{number}", "veth10")
    return network


def nft_chain(
    hook: str, *rules: list[dict[str, Any]], policy: str = "accept", **more: Any
) -> tuple[dict[str, Any], ...]:
    """A base chain and its rules as ``nft -j`` lists them."""
    place = {"family": "inet", "table": "t", **{key: more.pop(key) for key in ("family",) if key in more}}
    chain = {**place, "name": hook, "hook": hook, "prio": 0, "policy": policy, "type": "filter", **more}
    listed = [{**place, "chain": hook, "handle": 10 + index, "expr": rule} for index, rule in enumerate(rules)]
    return ({"chain": chain}, *({"rule": rule} for rule in listed))


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}
