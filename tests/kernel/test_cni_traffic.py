"""What containers of real agents can send: across two nodes, from addresses that are not theirs, to themselves.

See tests/kernel/containers.py for the nodes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.tunnel_packets import inner_packet
from tests.kernel.containers import DUAL, NEEDS, Cluster, Node, node, one_node, running

__all__ = ["node", "one_node"]
pytestmark = NEEDS

ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0800, 0x0806, 0x86DD  # linux/if_ether.h
BROADCAST = "ff:ff:ff:ff:ff:ff"
STRANGER_MAC = "02:00:00:00:00:99"
PACKET_OUTGOING = 4  # linux/if_packet.h
PATIENCE_S = 20.0
MARK = b"MARKMARK"
"""In a payload; each frame has one of its own in its place."""
_serial = itertools.count(1000)


class Container:
    """One container with a raw socket on its interface."""

    def __init__(self, node: Node, name: str, **keys: Any) -> None:
        self.node, self.answer = node, node.add(name, **keys).document
        self.mac = str(self.answer["interfaces"][-1]["mac"])
        self.ip4, self.ip6 = (str(ip["address"]).partition("/")[0] for ip in self.answer["ips"])
        gateway = self.answer["ips"][0]["gateway"]
        assert node.pings(name, gateway)
        words = node.run(f"ip neighbour show {gateway}", node.prefix + name).split()
        self.gateway_mac = words[words.index("lladdr") + 1]
        self.socket = node.socket_in(name, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.bind(("eth0", ETH_P_ALL))
        self.socket.settimeout(PATIENCE_S)

    def close(self) -> None:
        self.socket.close()

    def way_to(self, other: Container) -> str:
        """The MAC that a packet to another container of the node has to go to."""
        return other.mac if self.node.bridge else self.gateway_mac

    def send(self, payload: bytes, kind: int, to: str, source: str = "") -> None:
        self.socket.send(mac_bytes(to) + mac_bytes(source or self.mac) + struct.pack("!H", kind) + payload)

    def hear(self, last: bytes) -> list[bytes]:
        """All frames that came, up to one that holds these bytes."""
        heard = [b""]
        while last not in heard[-1]:
            heard += self._receive()
        return heard

    def hear_all(self) -> list[bytes]:
        """All frames that have come so far."""
        self.socket.setblocking(False)
        heard: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard += self._receive()
        return heard

    def _receive(self) -> list[bytes]:
        frame, (_, _, kind, *_) = self.socket.recvfrom(1 << 16)
        return [] if kind == PACKET_OUTGOING else [frame]


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def arp(sender_mac: str, sender: str, target: str) -> bytes:
    """A request (RFC 826)."""
    addresses = mac_bytes(sender_mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 1) + addresses


@pytest.fixture
def pair(node: Node) -> Iterator[tuple[Container, Container]]:
    one, two = Container(node, "one"), Container(node, "two")
    yield one, two
    for container in (one, two):
        container.close()


def arrives(one: Container, two: Container, kind: int, payload: bytes, source_mac: str = "") -> bool:
    """Whether this frame comes to ``two``, ahead of one that is allowed to."""
    mark, last = (f"{next(_serial):08d}".encode() for _ in range(2))
    to = BROADCAST if kind == ETH_P_ARP else one.way_to(two)
    one.send(payload.replace(MARK, mark), kind, to, source_mac)
    one.send(inner_packet(one.ip4, two.ip4, last), ETH_P_IP, one.way_to(two))
    return any(mark in frame for frame in two.hear(last))


def free_address(address: str) -> str:
    """One of the same subnet that nobody has."""
    return address.rpartition(".")[0] + ".200" if "." in address else address.rpartition(":")[0] + ":200"


# ---- what may be sent ------------------------------------------------------------------------------------


def test_own_addresses_pass_and_others_do_not(pair: tuple[Container, Container]) -> None:
    one, two = pair
    for kind, source, destination in ((ETH_P_IP, one.ip4, two.ip4), (ETH_P_IPV6, one.ip6, two.ip6)):
        assert arrives(one, two, kind, inner_packet(source, destination, MARK))
        for stranger in (free_address(source), destination):
            assert not arrives(one, two, kind, inner_packet(stranger, destination, MARK))
        assert not arrives(one, two, kind, inner_packet(source, destination, MARK), STRANGER_MAC)


@pytest.mark.parametrize("one_node", ["cni0"], indirect=True)
def test_the_addresses_of_others_are_not_claimed_by_arp(pair: tuple[Container, Container]) -> None:
    one, two = pair
    assert arrives(one, two, ETH_P_ARP, arp(one.mac, one.ip4, two.ip4) + MARK)
    assert arrives(one, two, ETH_P_ARP, arp(one.mac, "0.0.0.0", one.ip4) + MARK)
    assert not arrives(one, two, ETH_P_ARP, arp(one.mac, two.ip4, two.ip4) + MARK)
    assert not arrives(one, two, ETH_P_ARP, arp(STRANGER_MAC, one.ip4, two.ip4) + MARK)
    assert not arrives(one, two, ETH_P_ARP, arp(one.mac, one.answer["ips"][0]["gateway"], two.ip4) + MARK)


def test_nobody_is_taken_in_by_a_claim_to_the_gateway(pair: tuple[Container, Container]) -> None:
    one, two = pair
    gateway = one.answer["ips"][0]["gateway"]
    one.send(arp(one.mac, gateway, two.ip4), ETH_P_ARP, BROADCAST)
    assert one.node.pings("two", gateway)
    words = one.node.run(f"ip neighbour show {gateway}", one.node.prefix + "two").split()
    assert words[words.index("lladdr") + 1] == two.gateway_mac


def test_whoever_is_trusted_may_send_what_he_likes(node: Node) -> None:
    node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0")
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(contextlib.closing(Container(node, "one", spoofCheck=False)))
        two = stack.enter_context(contextlib.closing(Container(node, "two")))
        node.run(f"sysctl -q -w net.ipv4.conf.{one.answer['interfaces'][-2]['name']}.rp_filter=0")
        for kind, source, destination in ((ETH_P_IP, one.ip4, two.ip4), (ETH_P_IPV6, one.ip6, two.ip6)):
            assert arrives(one, two, kind, inner_packet(free_address(source), destination, MARK))
            assert arrives(one, two, kind, inner_packet(source, destination, MARK), STRANGER_MAC)


def test_what_is_dropped_is_counted(pair: tuple[Container, Container]) -> None:
    one, two = pair
    arrives(one, two, ETH_P_IP, inner_packet(free_address(one.ip4), two.ip4, MARK))
    family = "bridge" if one.node.bridge else "inet"
    listed = one.node.run(f"nft list table {family} muslin_cni").splitlines()
    (line,) = [each for each in listed if "iifname . ip saddr != @sources4" in each]
    assert int(line.split("packets ")[1].split()[0]) > 0


@pytest.mark.parametrize("one_node", ["cni0"], indirect=True)
def test_a_container_reaches_itself_by_way_of_its_port_where_that_is_wished(node: Node) -> None:
    """As with a service whose only end is the client itself: the bridge gives back what came from the port."""
    for name, wished in (("one", True), ("two", False)):
        with contextlib.closing(Container(node, name, hairpinMode=wished)) as one:
            one.send(inner_packet(one.ip4, one.ip4, b"to myself"), ETH_P_IP, one.mac)
            node.add("other")
            assert node.pings(name, one.answer["ips"][0]["gateway"])
            assert len([frame for frame in one.hear_all() if b"to myself" in frame]) == int(wished)
            node.remove("other")


# ---- two nodes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["host-gw", "vxlan"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cni"), DUAL, "cni0", request.param, nodes=2)
    with running(made):
        yield made


@pytest.mark.parametrize("options", [{}, {"defaultRoute": False}])
def test_containers_of_two_nodes_reach_each_other_and_the_nodes_by_their_own_addresses(
    cluster: Cluster, options: dict[str, Any]
) -> None:
    """R1 to R3: containers, nodes, and each sees the other under the address that it has itself."""
    answers = [node.add("one", **options).document for node in cluster.nodes]
    mtus = {answer["interfaces"][-1]["mtu"] for answer in answers}
    assert mtus == {1500 if cluster.nodes[0].network["Backend"]["Type"] == "host-gw" else mtus.copy().pop()}
    for near, other, far in zip(cluster.nodes, cluster.nodes[::-1], answers[::-1], strict=True):
        for ip in far["ips"]:
            address = ip["address"].partition("/")[0]
            assert near.pings("one", address)
            header = 28 if "." in address else 48
            assert near.pings("one", address, "-Mdo", f"-s{mtus.copy().pop() - header}"), "the whole MTU passes"
            assert source_seen(near, other, address) in own_addresses(near)
            if options.get("defaultRoute", True):  # the node speaks by its own address, which is beyond the network
                assert near.run(f"ping -n -c1 -W5 {address}"), "from the node"
        for subnet in other.subnets:
            gateway = subnet.replace("0/24", "1").replace("/64", "1")
            assert near.pings("one", gateway), "to the other node"
    for near in cluster.nodes:
        near.remove("one")


def own_addresses(node: Node) -> set[str]:
    (link,) = json.loads(node.run("ip -j address show dev eth0", node.prefix + "one"))
    return {one["local"] for one in link["addr_info"]}


def source_seen(node: Node, other: Node, address: str) -> str:
    """By which address the far container sees ours."""
    family = socket.AF_INET if "." in address else socket.AF_INET6
    with (
        other.socket_in("one", family, socket.SOCK_DGRAM) as far,
        node.socket_in("one", family, socket.SOCK_DGRAM) as near,
    ):
        far.settimeout(PATIENCE_S)
        far.bind((address, 9000))
        near.sendto(b"hello", (address, 9000))
        return str(far.recvfrom(10)[1][0])
