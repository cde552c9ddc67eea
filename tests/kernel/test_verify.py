"""The checks against networks that are right, and against networks that are wrong in one known way.

The network of most tests, each box a namespace; every subnet in IPv4 and IPv6:

    con1 172.16.0.2 ── 172.16.0.1 node1 10.0.0.10 ──── 10.0.0.20 node2 172.16.1.1 ── 172.16.1.2 con2
         fd16:1::2     fd16:1::1        fd10::10       fd10::20        fd16:2::1     fd16:2::2
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess
from collections.abc import Iterator

import pytest

from muslin.errors import MuslinError
from muslin.verify.matrix import Endpoint, Pair, Role, all_pairs
from muslin.verify.probe import run_checks
from muslin.verify.report import render_verdict
from muslin.verify.verdict import CheckReport, Fault, make_report

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace"),
]

TIMEOUT_S = 0.3  # packets between namespaces take microseconds
FORWARD = "filter hook forward priority 0"  # an nft base chain
_serial = itertools.count()


class Net:
    """Namespaces with names of their own; ``run`` executes an ip(8) batch or an nft(8) script inside."""

    def __init__(self) -> None:
        self.prefix = f"mzverify{os.getpid()}n{next(_serial)}-"
        self.made: list[str] = []

    def name(self, short: str) -> str:
        return self.prefix + short

    def add(self, *shorts: str) -> None:
        for short in shorts:
            subprocess.run(["ip", "netns", "add", self.name(short)], check=True)
            self.made.append(short)
            self.ip(short, "link set lo up")
            for scope in ("all", "default"):
                self.sysctl(short, f"net.ipv6.conf.{scope}.accept_dad", "0")

    def ip(self, short: str, batch: str) -> None:
        words = ["ip", "-n", self.name(short), "-batch", "-"]
        subprocess.run(words, input=batch.strip() + "\n", text=True, check=True)

    def rule(self, short: str, table: str, chain: str, rule: str) -> None:
        script = f"table {table} wall {{\nchain one {{\ntype {chain};\n{rule}\n}}\n}}\n"
        words = ["ip", "netns", "exec", self.name(short), "nft", "-f", "-"]
        subprocess.run(words, input=script, text=True, check=True)

    def sysctl(self, short: str, key: str, value: str) -> None:
        path = "/proc/sys/" + key.replace(".", "/")
        words = ["ip", "netns", "exec", self.name(short), "sh", "-c", f"echo {value} > {path}"]
        subprocess.run(words, check=True)

    def cable(self, one: str, one_link: str, other: str, other_link: str, mtu: int = 1500) -> None:
        place = f"netns {self.name(other)}"
        self.ip(one, f"link add {one_link} mtu {mtu} type veth peer name {other_link} mtu {mtu} {place}")
        self.ip(one, f"link set {one_link} up")
        self.ip(other, f"link set {other_link} up")

    def endpoint(self, short: str, node: str, *addresses: str) -> Endpoint:
        role: Role = "node" if short == node else "container"
        name = short if short == node else f"{short}.{node}"
        return Endpoint(name=name, role=role, node=node, netns=self.name(short), addresses=addresses)

    def remove(self) -> None:
        for short in self.made:
            subprocess.run(["ip", "netns", "delete", self.name(short)], check=False)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    try:
        yield made
    finally:
        made.remove()


def build_two_nodes(net: Net) -> None:
    net.add("con1", "node1", "node2", "con2")
    net.cable("node1", "eth0", "node2", "eth0")
    for number, node in enumerate(("node1", "node2")):
        con = f"con{number + 1}"
        net.cable(con, "eth0", node, "cable")
        net.ip(con, f"addr add 172.16.{number}.2/24 dev eth0\naddr add fd16:{number + 1}::2/64 dev eth0 nodad")
        net.ip(node, f"addr add 172.16.{number}.1/24 dev cable\naddr add fd16:{number + 1}::1/64 dev cable nodad")
        net.ip(con, f"route add default via 172.16.{number}.1\nroute add default via fd16:{number + 1}::1")
        net.ip(node, f"addr add 10.0.0.{number + 1}0/24 dev eth0\naddr add fd10::{number + 1}0/64 dev eth0 nodad")
        net.sysctl(node, "net.ipv4.ip_forward", "1")
        net.sysctl(node, "net.ipv6.conf.all.forwarding", "1")
    for number, node in enumerate(("node1", "node2")):
        other = 1 - number
        net.ip(node, f"route add 172.16.{other}.0/24 via 10.0.0.{other + 1}0")
        net.ip(node, f"route add fd16:{other + 1}::/64 via fd10::{other + 1}0")


def two_nodes(net: Net, family: int) -> list[Endpoint]:
    found = []
    for number, node in enumerate(("node1", "node2")):
        con = f"con{number + 1}"
        if family == 4:
            found.append(net.endpoint(con, node, f"172.16.{number}.2"))
            found.append(net.endpoint(node, node, f"10.0.0.{number + 1}0", f"172.16.{number}.1"))
        else:
            found.append(net.endpoint(con, node, f"fd16:{number + 1}::2"))
            found.append(net.endpoint(node, node, f"fd10::{number + 1}0", f"fd16:{number + 1}::1"))
    return found


def routed_hops(source: Endpoint, destination: Endpoint, address: str) -> int | None:
    """Each end that is a container has its node as a router in front, when the packet leaves the node."""
    if source.node == destination.node:
        return 0
    return (source.role, destination.role).count("container")


def check(pairs: tuple[Pair, ...]) -> CheckReport:
    return make_report(run_checks(pairs, timeout_s=TIMEOUT_S), 0.0)


def faults_of(report: CheckReport, source: str, address: str) -> tuple[Fault, ...]:
    cells = [
        cell for cell in report.cells if (cell.result.pair.source.name, cell.result.pair.address) == (source, address)
    ]
    assert len(cells) == 1
    return cells[0].faults


def faults(report: CheckReport) -> tuple[Fault, ...]:
    """The faults of the first cell, which a failing test prints."""
    assert report.cells[0].faults, report.cells[0].result.exchanges
    assert len(report.cells[0].faults) == 1, render_verdict(report)
    return report.cells[0].faults


def pair_of(endpoints: list[Endpoint], source: str, address: str, hops: int | None = None) -> tuple[Pair, ...]:
    pairs = all_pairs(endpoints, lambda *_: hops)
    return tuple(p for p in pairs if (p.source.name, p.address) == (source, address))


@pytest.mark.parametrize("family", [4, 6])
def test_routed_nodes_pass_all_three_requirements(net: Net, family: int) -> None:
    build_two_nodes(net)
    report = check(all_pairs(two_nodes(net, family), routed_hops))
    assert report.ok, render_verdict(report)
    assert {name: (total.passed, total.of) for name, total in report.totals.items()} == {
        "R1": (4, 4),
        "R2": (12, 12),
        "R3": (16, 16),
        "underlay": (8, 8),
    }
    crossing = [cell.result for cell in report.cells if cell.result.pair.crosses_nodes]
    assert {result.path_mtu for result in crossing} == {1500}
    for cell in report.cells:
        for exchange in cell.result.exchanges:
            assert exchange.sent == exchange.seen
            assert exchange.sent in cell.result.own


def test_two_containers_on_a_bridge_pass(net: Net) -> None:
    net.add("node1", "con1", "con2")
    net.ip("node1", "link add br0 type bridge\naddr add 172.16.0.1/24 dev br0\nlink set br0 up")
    net.ip("node1", "addr add 10.0.0.10/24 dev br0")
    for number in (1, 2):
        net.cable(f"con{number}", "eth0", "node1", f"port{number}")
        net.ip("node1", f"link set port{number} master br0")
        net.ip(f"con{number}", f"addr add 172.16.0.{number + 1}/24 dev eth0\nroute add default via 172.16.0.1")
    parties = [net.endpoint(f"con{number}", "node1", f"172.16.0.{number + 1}") for number in (1, 2)]
    parties.append(net.endpoint("node1", "node1", "10.0.0.10", "172.16.0.1"))
    report = check(all_pairs(parties, lambda *_: 0))
    assert report.ok, render_verdict(report)
    assert len(report.cells) == 12


@pytest.mark.parametrize(
    ("family", "table", "seen"), [(4, "ip", "10.0.0.10"), (6, "ip6", "fd10::10")], ids=["ipv4", "ipv6"]
)
def test_masquerade_breaks_r3_and_says_as_whom(net: Net, family: int, table: str, seen: str) -> None:
    build_two_nodes(net)
    net.rule("node1", table, "nat hook postrouting priority 100", 'oifname "eth0" masquerade')
    report = check(all_pairs(two_nodes(net, family), routed_hops))
    sent, address = ("172.16.0.2", "172.16.1.2") if family == 4 else ("fd16:1::2", "fd16:2::2")
    (fault,) = faults_of(report, "con1.node1", address)
    assert (fault.kind, fault.breaks) == ("nat", ("R1", "R3"))
    assert fault.sentence == (
        f"R1 and R3 broken: con1.node1 -> {address} (con2.node2): "
        f"NATed: sent as {sent}, seen as {seen} (icmp, tcp, udp, full-size udp)"
    )
    assert not report.ok
    assert report.totals["R3"].broken > 0
    assert faults_of(report, "con2.node2", sent) == ()


def test_destination_nat_is_seen_by_the_address_of_arrival(net: Net) -> None:
    build_two_nodes(net)
    net.rule("node1", "ip", "nat hook prerouting priority -100", "ip daddr 172.16.1.1 dnat to 10.0.0.20")
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.1"))
    (fault,) = faults(report)
    assert "NATed: sent to 172.16.1.1, arrived at 10.0.0.20" in fault.sentence
    assert "R3" in fault.breaks


def test_router_that_does_not_forward_loses_the_request(net: Net) -> None:
    build_two_nodes(net)
    net.sysctl("node1", "net.ipv4.ip_forward", "0")
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.2"))
    (fault,) = faults(report)
    assert (fault.kind, fault.breaks, fault.protocols) == ("lost", ("R1",), ("icmp", "tcp", "udp"))
    assert "the request never arrived" in fault.cause
    assert report.totals["R3"].unproven == 1


@pytest.mark.parametrize("family", [4, 6])
def test_missing_way_back_loses_the_answer_of_every_protocol(net: Net, family: int) -> None:
    build_two_nodes(net)
    blackhole = "172.16.0.0/24" if family == 4 else "fd16:1::/64"
    net.ip("node2", f"route replace blackhole {blackhole}")
    address = "172.16.1.2" if family == 4 else "fd16:2::2"
    report = check(pair_of(two_nodes(net, family), "con1.node1", address))
    (fault,) = faults(report)
    assert (fault.kind, fault.protocols) == ("lost", ("icmp", "tcp", "udp"))
    assert "the request arrived, the answer was lost" in fault.cause


@pytest.mark.parametrize("family", [4, 6])
def test_unreachable_route_names_the_router(net: Net, family: int) -> None:
    build_two_nodes(net)
    prefix, address, router, code = (
        ("172.16.1.0/24", "172.16.1.2", "172.16.0.1", "host unreachable (ICMP type 3 code 1)")
        if family == 4
        else ("fd16:2::/64", "fd16:2::2", "fd16:1::1", "no route to destination (ICMP type 1 code 0)")
    )
    net.ip("node1", f"route replace unreachable {prefix}")
    report = check(pair_of(two_nodes(net, family), "con1.node1", address))
    (fault,) = faults(report)
    assert (fault.kind, fault.protocols) == ("unreachable", ("icmp", "tcp", "udp"))
    assert f"unreachable from {router}: {code}" in fault.sentence


def test_no_route_at_the_source_is_its_own_kernels_word(net: Net) -> None:
    build_two_nodes(net)
    net.ip("con1", "route del default via 172.16.0.1")
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.2"))
    (fault,) = faults(report)
    assert fault.kind == "unreachable"
    assert "Network is unreachable, says the source's own kernel (icmp, tcp, udp)" in fault.sentence


@pytest.mark.parametrize("family", [4, 6])
def test_another_number_of_routers_is_a_wrong_ttl(net: Net, family: int) -> None:
    build_two_nodes(net)
    address = "172.16.1.2" if family == 4 else "fd16:2::2"
    report = check(pair_of(two_nodes(net, family), "con1.node1", address, hops=3))
    (fault,) = faults(report)
    assert fault.sentence.endswith("wrong TTL 62, expected 61 (icmp, udp)")


@pytest.mark.parametrize(
    ("reject", "kind", "said"),
    [
        ("tcp", "refused", "TCP reset (tcp)"),
        ("icmp", "refused", "refused by 10.0.0.20: port unreachable"),
        ("admin", "unreachable", "unreachable from 10.0.0.20: communication administratively prohibited"),
    ],
)
def test_rejected_tcp_says_who_refused(net: Net, reject: str, kind: str, said: str) -> None:
    build_two_nodes(net)
    words = {"tcp": "tcp reset", "icmp": "icmp port-unreachable", "admin": "icmp admin-prohibited"}[reject]
    net.rule("node2", "ip", FORWARD, f"ip daddr 172.16.1.2 meta l4proto tcp reject with {words}")
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.2"))
    (fault,) = faults(report)
    assert (fault.kind, fault.protocols) == (kind, ("tcp",))
    assert said in fault.sentence
    assert report.totals["R3"].passed == 1


def test_dropped_udp_loses_udp_alone(net: Net) -> None:
    build_two_nodes(net)
    net.rule("node2", "ip", FORWARD, "ip daddr 172.16.1.2 meta l4proto udp drop")
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.2"))
    (fault,) = faults(report)
    assert (fault.kind, fault.breaks, fault.protocols) == ("lost", ("R1",), ("udp",))


@pytest.mark.parametrize("family", [4, 6])
def test_smaller_mtu_on_the_way_is_discovered(net: Net, family: int) -> None:
    build_two_nodes(net)
    net.ip("node1", "link set eth0 mtu 1400")
    net.ip("node2", "link set eth0 mtu 1400")
    address = "172.16.1.2" if family == 4 else "fd16:2::2"
    report = check(pair_of(two_nodes(net, family), "con1.node1", address))
    assert report.ok, render_verdict(report)
    assert report.cells[0].result.path_mtu == 1400


def test_black_hole_for_full_size_packets_is_lost(net: Net) -> None:
    build_two_nodes(net)
    net.rule("node1", "ip", FORWARD, 'oifname "eth0" meta length > 1400 drop')
    report = check(pair_of(two_nodes(net, 4), "con1.node1", "172.16.1.2"))
    (fault,) = faults(report)
    assert (fault.kind, fault.protocols) == ("lost", ("full-size udp",))
    assert "1500 bytes, and no ICMP message tells of a smaller MTU" in fault.cause


@pytest.mark.parametrize("family", [4, 6])
def test_tunnel_that_fragments_outside_is_found(net: Net, family: int) -> None:
    """A VXLAN whose own MTU is as large as the underlay's: each full packet leaves in two fragments."""
    build_two_nodes(net)
    for number, node in enumerate(("node1", "node2")):
        other = 1 - number
        net.ip(
            node,
            f"link add vx type vxlan id 1 local 10.0.0.{number + 1}0 remote 10.0.0.{other + 1}0 dstport 8472"
            "\n"
            f"link set vx mtu 1500 up\naddr add 192.168.9.{number + 1}/24 dev vx\n"
            f"addr add fd99::{number + 1}/64 dev vx nodad\n"
            f"route replace 172.16.{other}.0/24 via 192.168.9.{other + 1}\n"
            f"route del fd16:{other + 1}::/64\nroute add fd16:{other + 1}::/64 via fd99::{other + 1}",
        )
    through, around = ("172.16.1.2", "10.0.0.20") if family == 4 else ("fd16:2::2", "fd10::20")
    endpoints = two_nodes(net, family)
    report = check(pair_of(endpoints, "con1.node1", through) + pair_of(endpoints, "node1", around))
    (fault,) = faults(report)
    assert fault.kind == "fragmented"
    assert fault.sentence.endswith("fragmented outside: a packet of 1500 bytes left node1 in 2 fragments")
    assert report.cells[1].ok, "the underlay itself does not fragment"


def test_both_families_at_once(net: Net) -> None:
    build_two_nodes(net)
    four, six = two_nodes(net, 4), two_nodes(net, 6)
    both = [
        net.endpoint(one.name.partition(".")[0], one.node, *one.addresses, *other.addresses)
        for one, other in zip(four, six, strict=True)
    ]
    report = check(all_pairs(both, routed_hops))
    assert report.ok, render_verdict(report)
    assert len(report.cells) == 48


def test_a_missing_namespace_is_named(net: Net) -> None:
    party = net.endpoint("nowhere", "node1", "172.16.0.2")
    with pytest.raises(MuslinError, match=r"cannot enter network namespace mzverify.*nowhere"):
        check(all_pairs([party], lambda *_: None))


def test_progress_counts_up_and_descriptors_come_back(net: Net) -> None:
    build_two_nodes(net)
    pairs = all_pairs(two_nodes(net, 4), routed_hops)
    before = (os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_NOFILE))
    told: list[tuple[int, int]] = []
    run_checks(pairs, timeout_s=TIMEOUT_S, progress=lambda done, total: told.append((done, total)))
    assert told == [(number + 1, len(pairs)) for number in range(len(pairs))]
    assert (os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_NOFILE)) == before


def test_few_descriptors_only_make_it_slower(net: Net) -> None:
    build_two_nodes(net)
    pairs = all_pairs(two_nodes(net, 4), routed_hops)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert check(pairs).ok


@pytest.mark.parametrize("family", [4, 6])
def test_a_large_run_gives_its_neighbours_back(net: Net, monkeypatch: pytest.MonkeyPatch, family: int) -> None:
    build_two_nodes(net)
    address, mac = ("172.16.0.99", "02:00:00:00:00:99") if family == 4 else ("fd16:1::99", "02:00:00:00:00:99")
    net.ip("node1", f"neigh add {address} lladdr {mac} dev cable nud permanent")
    pairs = all_pairs(two_nodes(net, family), routed_hops)

    def neighbours(short: str) -> list[str]:
        words = ["ip", f"-{family}", "-n", net.name(short), "neigh"]
        lines = subprocess.run(words, check=True, text=True, capture_output=True).stdout.splitlines()
        return [line.split()[0] for line in lines if not line.startswith("fe80")]

    assert check(pairs).ok
    assert len(neighbours("node1")) > 1, "a small run leaves them, as any traffic does"
    monkeypatch.setattr("muslin.verify.probe.FORGET_PAIRS", len(pairs) // 3)
    report = check(pairs)
    assert report.ok, render_verdict(report)
    assert neighbours("node1") == [address], "only what somebody else put there stays"
    assert neighbours("con1") == []
