"""The contract of a tunnel: one suite for the Python text and the C core, the latter also without any offload.

What crosses, and what does not. How tunnels start, end and take new peers is in test_tunnel_life.py. To add a tunnel,
add its command to TUNNELS of tunnel_bench.py; whatever passes here can take the other's place. The nodes that it runs
on are drawn there.
"""

from __future__ import annotations

import contextlib
import random
import socket

import pytest

from tests.contract.tunnel_bench import (
    MARKS,
    NESTED,
    OWNERS_OF_NESTED,
    PACKET_HOST,
    PACKET_OUTGOING,
    PATH_MTU_OPTIONS,
    PMTUDISC_DO,
    PORT,
    TUNNELS,
    Join,
    arguments,
    flooding,
    garbage,
    outer_udp,
    same_books,
    segments_on_the_wire,
    transfer,
    wait_for,
)
from tests.contract.tunnel_packets import inner_packet, with_udp_checksum

pytestmark = MARKS


@pytest.mark.parametrize("version", [4, 6])
def test_both_families_cross_either_underlay(join: Join, command: list[str], version: int) -> None:
    a, b = join(2, tun_mtu=1472 if version == 4 else 1452)
    there = a.start(command + arguments(a, b, version=version))
    back = b.start(command + arguments(b, a, version=version))
    assert not [line for line in there.said if "warning" in line]
    for inner in (4, 6):
        a.wait_for_ping(b.inner(inner))
        b.wait_for_ping(a.inner(inner))
    wait_for(lambda: same_books(there, back, least=4), "the same packets and bytes at both ends")


@pytest.mark.parametrize("inner", [4, 6])
def test_a_packet_crosses_byte_for_byte(join: Join, command: list[str], inner: int) -> None:
    """The TTL in particular: the kernels on both sides count the hops, the tunnel is none."""
    a, b = join(2)
    a.start(command + arguments(a, b))
    b.start(command + arguments(b, a))
    before, after = a.capture("tun0"), b.capture("tun0")
    receiver, sender = b.udp(b.inner(inner), 7000), a.udp(a.inner(inner))
    level, option = (socket.IPPROTO_IP, socket.IP_TTL) if inner == 4 else (41, socket.IPV6_UNICAST_HOPS)
    sender.setsockopt(level, option, 7)
    sender.sendto(b"seven hops", (b.inner(inner), 7000))
    assert receiver.recv(100) == b"seven hops"
    sent = before.wait_for(lambda packet: b"seven hops" in packet, PACKET_OUTGOING, "the packet that enters")
    got = after.wait_for(lambda packet: b"seven hops" in packet, PACKET_HOST, "the packet that leaves")
    assert got == with_udp_checksum(sent)
    assert got[8 if inner == 4 else 7] == 7


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize(("version", "carried"), [(4, 1472), (6, 1452)])
def test_too_big_tells_the_sender(join: Join, command: list[str], inner: int, version: int, carried: int) -> None:
    """A TUN device with an MTU of 1500 promises more than the underlay carries."""
    a, b = join(2, tun_mtu=1500)
    wire = a.capture("eth0")
    tunnel = a.start(command + arguments(a, b, version=version))
    b.start(command + arguments(b, a, version=version))
    assert any("warning" in line and str(carried) in line for line in tunnel.said), tunnel.said

    receiver, sender = b.udp(b.inner(inner), 7000), a.udp(a.inner(inner))
    level, discover, mtu = PATH_MTU_OPTIONS[inner]
    headers = 28 if inner == 4 else 48
    sender.setsockopt(level, discover, PMTUDISC_DO)
    sender.connect((b.inner(inner), 7000))
    sender.send(bytes(1500 - headers))
    wait_for(lambda: sender.getsockopt(level, mtu) == carried, f"a path MTU of {carried}")
    with contextlib.suppress(OSError):  # the error that the ICMP message left on the socket
        sender.send(b"")
        assert receiver.recv(10) == b""
    sender.send(bytes(carried - headers))
    while (got := len(receiver.recv(2000))) == 0:
        pass
    assert got == carried - headers
    assert tunnel.counters()["too_big"] == 1

    a.ip("link set eth0 mtu 1400")  # the path changes under way
    carried -= 100
    sender.send(bytes(carried + 1 - headers))
    wait_for(lambda: sender.getsockopt(level, mtu) == carried, f"a path MTU of {carried}")
    assert tunnel.counters()["too_big"] == 2

    assert outer_udp(wire)
    assert a.fragments_made() == b.fragments_made() == 0


@pytest.mark.parametrize("inner", [4, 6])
def test_tcp_finds_the_path_mtu(join: Join, command: list[str], inner: int) -> None:
    a, b = join(2, tun_mtu=1500)
    segments_on_the_wire(a, b)
    wire = a.capture("eth0")
    a.start(command + arguments(a, b))
    b.start(command + arguments(b, a))
    sent = random.Random(1).randbytes(500_000)
    assert transfer(a, b, inner, sent) == sent
    assert max(map(len, outer_udp(wire))) == 1500
    assert a.fragments_made() == b.fragments_made() == 0


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("other", TUNNELS.values(), ids=TUNNELS)
def test_twins_understand_each_other(
    join: Join, command: list[str], other: list[str], inner: int, version: int
) -> None:
    """Bulk, so that super-packets come and go where there are any: on a veth that passes them, then on a wire."""
    a, b = join(2, tun_mtu=1400)
    there = a.start(command + arguments(a, b, version=version))
    back = b.start(other + arguments(b, a, version=version))
    dice = random.Random(2)
    for one, two in ((a, b), (b, a)):
        sent = dice.randbytes(1_500_000)
        assert transfer(one, two, inner, sent) == sent
        segments_on_the_wire(a, b)
    wait_for(lambda: same_books(there, back, least=1000), "the same packets and bytes at both ends")


def test_a_peer_that_is_not_there_yet(join: Join, command: list[str]) -> None:
    """Where the talk's socat dies: `read: Connection refused`."""
    a, b = join(2)
    wire = a.capture("eth0")
    tunnel = a.start(command + arguments(a, b))

    def refused() -> bool:
        assert not a.pings(b.inner4)
        return any(seen[0] == 0x45 and seen[9] == 1 and seen[20:22] == b"\3\3" for _, seen in wire.all())

    wait_for(refused, "port unreachable")
    wait_for(lambda: refused() and tunnel.counters()["packets_to_peers"] >= 2, "that it goes on sending")
    b.start(command + arguments(b, a))
    a.wait_for_ping(b.inner4)


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("stranger", [("10.0.0.20", 9001), ("10.0.0.99", 9000)], ids=["port", "address"])
def test_strangers_are_not_heard(join: Join, command: list[str], stranger: tuple[str, int], inner: int) -> None:
    a, b = join(2)
    b.ip("addr add 10.0.0.99/24 dev eth0")
    tunnel, device = a.start(command + arguments(a, b)), a.capture("tun0")
    forged = inner_packet(b.inner(inner), a.inner(inner), b"stranger")
    honest = inner_packet(b.inner(inner), a.inner(inner), b"honest")
    source = b.udp(*stranger)
    for _ in range(5):
        source.sendto(forged, (a.outer4, PORT))
    b.udp(b.outer4, PORT).sendto(honest, (a.outer4, PORT))
    assert device.wait_for(lambda packet: b"honest" in packet, PACKET_HOST, "the honest packet") == honest
    tunnel.wait_for_counter("unknown_peer", 5)
    tunnel.wait_for_counter("packets_from_peers", 1)
    counters = tunnel.counters()
    assert (counters["unknown_peer"], counters["packets_from_peers"]) == (5, 1)
    assert not [packet for _, packet in device.all() if packet == forged]


@pytest.mark.parametrize(
    ("source", "heard"),
    [
        ("172.16.1.100", True),
        ("172.16.1.255", True),
        ("10.0.0.20", True),  # the peer itself: a node answers a container from its own address
        ("10.0.0.30", False),
        ("172.16.2.5", False),  # another peer's
        ("172.16.0.5", False),  # our own
        ("8.8.8.8", False),
        ("0.0.0.0", False),
        ("fd00:172:16:1::5", True),
        ("fd00:172:16:2::5", False),
        ("::", False),
        ("fe80::1", False),
    ],
)
def test_a_peer_speaks_for_its_own_subnet(join: Join, command: list[str], source: str, heard: bool) -> None:
    a, b, c = join(3)
    tunnel, device = a.start(command + arguments(a, b, c)), a.capture("tun0")
    packet = inner_packet(source, a.inner6 if ":" in source else a.inner4, b"who?")
    b.udp(b.outer4, PORT).sendto(packet, (a.outer4, PORT))
    tunnel.wait_for_counter("packets_from_peers" if heard else "bad_source", 1)
    assert (packet in [seen for _, seen in device.all()]) is heard


@pytest.mark.parametrize("inner", [4, 6])
def test_a_datagram_is_exactly_one_whole_packet(join: Join, command: list[str], inner: int) -> None:
    a, b = join(2)
    tunnel, device, peer = a.start(command + arguments(a, b)), a.capture("tun0"), b.udp(b.outer4, PORT)
    whole = inner_packet(b.inner(inner), a.inner(inner), b"whole")
    wrong = [b"", whole[:1], whole[:-1], whole + b"\0", b"\x55" + whole[1:], b"\x44" + whole[1:]]
    for packet in [*wrong, whole]:
        peer.sendto(packet, (a.outer4, PORT))
    device.wait_for(lambda packet: packet == whole, PACKET_HOST, "the whole packet")
    tunnel.wait_for_counter("packets_from_peers", 1)
    counters = tunnel.counters()
    assert (counters["malformed"], counters["packets_from_peers"]) == (len(wrong), 1)


def test_a_peer_on_an_ipv6_underlay_speaks_for_itself(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b, version=6))
    peer = b.udp(b.outer6, PORT)
    peer.sendto(inner_packet("fd00::20", a.inner6, b""), (a.outer6, PORT))
    peer.sendto(inner_packet("fd00::30", a.inner6, b""), (a.outer6, PORT))
    tunnel.wait_for_counter("bad_source", 1)
    assert tunnel.counters()["packets_from_peers"] == 1


def test_the_longest_prefix_wins(join: Join, command: list[str]) -> None:
    """Both ways: where a packet goes to, and whose sources are believed."""
    a, b, c = join(3)
    peers = [f"--peer={prefix}={node.endpoint()}" for prefix, node in zip(NESTED, (c, b) * 4, strict=True)]
    tunnel = a.start([*command, *arguments(a), *peers])
    at = {node: node.udp(node.outer4, PORT) for node in (b, c)}
    owners = {address: (b, c)[owner] for address, owner in OWNERS_OF_NESTED.items()}
    senders = {4: a.udp(a.inner4), 6: a.udp(a.inner6)}
    for _ in range(2):
        for address, owner in owners.items():
            senders[6 if ":" in address else 4].sendto(address.encode(), (address, 7000))
            packet, source = at[owner].recvfrom(2000)
            assert packet.endswith(address.encode())
            assert source == (a.outer4, PORT), "datagrams leave from where the peer will answer to"
    for count, (address, owner) in enumerate(owners.items(), start=1):
        packet = inner_packet(address, a.inner6 if ":" in address else a.inner4, b"")
        at[b if owner is c else c].sendto(packet, (a.outer4, PORT))
        tunnel.wait_for_counter("bad_source", count)
        at[owner].sendto(packet, (a.outer4, PORT))
        tunnel.wait_for_counter("packets_from_peers", count)
    assert tunnel.counters()["bad_source"] == len(owners)


@pytest.mark.parametrize("inner", [4, 6])
def test_no_peer_for_the_destination(join: Join, command: list[str], inner: int) -> None:
    """The sender is told, so that a connection fails at once and not after minutes."""
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    before = tunnel.counters()
    sender = a.open_socket(socket.AF_INET if inner == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    with pytest.raises(OSError, match="No route to host"):
        sender.connect(("172.16.200.1" if inner == 4 else "fd00:172:16:200::1", 7000))
    after = tunnel.counters()
    assert after["no_peer"] > before["no_peer"]
    assert after["packets_to_peers"] == before["packets_to_peers"]


@pytest.mark.parametrize(("group", "host"), [("224.0.0.251", "172.16.200.1"), ("ff02::fb", "fd00:172:16:200::1")])
def test_a_group_without_a_peer_is_not_counted(join: Join, command: list[str], group: str, host: str) -> None:
    """A kernel speaks to groups by itself (multicast listener reports), which is no sign of anything wrong."""
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    a.ip(f"route add {group} dev tun0 table local")
    sender, device = a.udp(a.inner(6 if ":" in group else 4)), a.capture("tun0")
    for address in (group, host):
        sender.sendto(b"who is there?", (address, 7000))
    device.wait_for(lambda packet: socket.inet_pton(sender.family, group) in packet, PACKET_OUTGOING, "to the group")
    tunnel.wait_for_counter("no_peer", 1)
    assert tunnel.counters()["no_peer"] == 1


def test_three_nodes_all_pairs(join: Join, command: list[str]) -> None:
    nodes = join(3)
    for node in nodes:
        node.start(command + arguments(node, *(peer for peer in nodes if peer is not node)))
    for one in nodes:
        for other in nodes:
            for inner in (4, 6):
                one.wait_for_ping(other.inner(inner))


@pytest.mark.parametrize("seed", range(3))
def test_garbage_is_counted_and_does_no_harm(join: Join, command: list[str], seed: int) -> None:
    """Nothing is lost in the books: each datagram is in exactly one counter."""
    a, b = join(2)
    tunnel, dice = a.start(command + arguments(a, b)), random.Random(seed)
    peer, stranger = b.udp(b.outer4, PORT), b.udp(b.outer4, PORT + 1)
    fates = ("packets_from_peers", "bad_source", "malformed", "tun_failed", "unknown_peer")

    def booked() -> int:
        return sum(tunnel.counters()[fate] for fate in fates)

    sent = 0
    for _ in range(10):  # in bursts that fit into the smallest receive buffer, so that the kernel drops none
        for _ in range(100):
            dice.choice([peer, peer, peer, stranger]).sendto(garbage(dice, a, b), (a.outer4, PORT))
            sent += 1
        wait_for(lambda: booked() >= sent, f"{sent} datagrams in the books")  # noqa: B023
    for size in (9_000, 65_507):
        peer.sendto(dice.randbytes(size), (a.outer4, PORT))
    wait_for(lambda: booked() >= sent + 2, "the huge ones in the books")
    assert booked() == sent + 2
    counters = tunnel.counters()
    assert all(counters[fate] for fate in fates if fate != "tun_failed"), counters
    peer.close()
    b.start(command + arguments(b, a))
    b.wait_for_ping(a.inner4)


def test_a_flood_does_not_starve_the_other_direction(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel, peer, inside = a.start(command + arguments(a, b)), b.udp(b.outer4, PORT), a.udp(a.inner4, 7000)
    inwards, outwards = inner_packet(b.inner4, a.inner4, b"in"), (b.inner4, 7000)
    with flooding(lambda: inside.sendto(bytes(100), outwards)):
        tunnel.wait_for_counter("packets_to_peers", 2000)
        peer.sendto(inwards, (a.outer4, PORT))
        tunnel.wait_for_counter("packets_from_peers", 1)
    with flooding(lambda: peer.sendto(inwards, (a.outer4, PORT))):
        before = tunnel.counters()
        tunnel.wait_for_counter("packets_from_peers", before["packets_from_peers"] + 2000)
        inside.sendto(b"out", outwards)
        tunnel.wait_for_counter("packets_to_peers", before["packets_to_peers"] + 1)
