"""A namespace seen whole: what iproute2, sysctl and nft put there, read back.

near: br0 with a port, an address, a neighbour, a rule, a next hop, an nft table --- veth --- far
"""

from __future__ import annotations

import subprocess
import time

import pytest

from muslin.kernel.sight import Sights, parse_tunnel
from tests.assumptions.room import NEEDS_ROOT, Room, inside, ip, open_room

pytestmark = NEEDS_ROOT


@pytest.fixture
def names() -> object:
    with open_room() as room:
        yield room


def test_everything_that_decides_is_in_it(names: Room) -> None:
    near, far = names.netns("near"), names.netns("far")
    ip(near, f"link add v0 type veth peer name v1 netns {far}")
    ip(near, "link add br0 type bridge")
    for words in ("link set v0 master br0 up", "link set br0 up", "addr add 10.1.0.1/24 dev br0"):
        ip(near, words)
    ip(far, "link set v1 up")
    ip(near, "neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev br0")
    ip(near, "rule add not from 10.9.0.0/16 priority 77 lookup 100")
    ip(near, "nexthop add id 5 via 10.1.0.9 dev br0")
    ip(near, "route add 10.5.0.0/16 nhid 5")
    inside(
        near, "nft", "add table ip t; add chain ip t c { type filter hook forward priority 0; }; add rule ip t c drop"
    )
    with Sights((near, far)) as sights:
        sight = sights[near]
        assert {link.name for link in sight.links} == {"lo", "v0", "br0"}
        assert sight.netns_ids
        assert set(sight.netns_ids.values()) == {far}
        assert any(one.address == "10.1.0.9" for one in sight.neighbours)
        assert any(rule.inverted and rule.priority == 77 for rule in sight.rules)
        assert [one.id for one in sight.nexthops] == [5]
        assert any(route.nexthop_id == 5 for route in sight.routes)
        assert any(one.mac == sight.link("v0").mac for one in sight.fdb)  # type: ignore[union-attr]
        assert sight.sysctl("net/ipv4/conf/br0/forwarding") == 0
        assert [one["rule"]["expr"] for one in sight.nft if "rule" in one] == [[{"drop": None}]]
        assert not sights[far].nft
        assert sights[near] is sight, "all questions of one run are about one moment"
        with pytest.raises(KeyError):
            sights["muslin-nowhere"]


def test_what_was_learned_of_one_destination_is_read(names: Room) -> None:
    near, far = names.netns("near"), names.netns("far")
    ip(near, f"link add v0 type veth peer name v1 netns {far}")
    for place, link, address in ((near, "v0", "10.1.0.1/24"), (far, "v1", "10.1.0.2/24")):
        ip(place, f"addr add {address} dev {link}")
        ip(place, f"link set {link} up")
    ip(far, "link add v2 mtu 1000 type veth peer name v3")
    for words in ("link set v2 up", "link set v3 up", "addr add 10.2.0.1/24 dev v2"):
        ip(far, words)
    inside(far, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    ip(near, "route add 10.2.0.0/24 via 10.1.0.2")
    ip(near, "link set lo up")
    deadline = time.monotonic() + 10
    while "mtu 1000" not in ip(near, "route get 10.2.0.9").stdout:  # until the router has said that it is too big
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.CalledProcessError):
            inside(near, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1200", "10.2.0.9")
    with Sights((near, far)) as sights:
        assert [(one.destination, one.mtu) for one in sights[near].learned_mtus] == [("10.2.0.9/32", 1000)]


def test_a_tunnel_is_told_by_its_command_line(tmp_path: object) -> None:
    file = f"{tmp_path}/peers"
    with open(file, "w") as peers:
        peers.write("# a comment\n172.16.2.0/24 10.0.0.30:9000\n")
    words = ("--device=tun0", "--listen=10.0.0.10:9000", "--peer=172.16.1.0/24=10.0.0.20:9000", f"--peers={file}")
    program = parse_tunnel(7, words)
    assert (program.device, program.listen) == ("tun0", "10.0.0.10:9000")
    assert program.peers == (("172.16.1.0/24", "10.0.0.20:9000"), ("172.16.2.0/24", "10.0.0.30:9000"))


def test_the_links_of_an_ingress_chain_are_in_it(names: Room) -> None:
    near = names.netns("near")
    ip(near, "link add d0 type bridge")
    inside(near, "nft", "add table netdev t; add chain netdev t c { type filter hook ingress device d0 priority 0; }")
    with Sights((near,)) as sights:
        assert [one["chain"]["dev"] for one in sights[near].nft if "chain" in one] == [["d0"]]
        assert list(sights[near].unseen) == []


def test_more_namespaces_than_one_package_holds_are_told_apart(names: Room) -> None:
    near, far = names.netns("near"), names.netns("far")
    ip(near, f"link add v0 type veth peer name v1 netns {far}")
    many = [f"none{number}" for number in range(300)]
    with Sights((near, *many, far)) as sights:
        number = sights[near].link("v0").link_netnsid  # type: ignore[union-attr]
        assert sights[near].netns_ids[number] == far  # type: ignore[index]
