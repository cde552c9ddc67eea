"""The contract of a tunnel: one suite for the Python text and the C core, the latter also without any offload.

To add a tunnel, add its command to TUNNELS; whatever passes here can take the other's place. The nodes that
it runs on are drawn at the head of tunnel_bench.py.
"""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muslin.tunnel.programs import REFERENCE, core_path
from tests.contract.tunnel_bench import (
    NESTED,
    OWNERS_OF_NESTED,
    PACKET_HOST,
    PACKET_OUTGOING,
    PATH_MTU_OPTIONS,
    PMTUDISC_DO,
    PORT,
    Node,
    arguments,
    assert_idle,
    flooding,
    garbage,
    inner_packet,
    missing,
    numbered_flow,
    outer_udp,
    same_books,
    segments_on_the_wire,
    transfer,
    wait_for,
    wire_up,
    with_udp_checksum,
    write_peers,
)

CORE = core_path() or ""
TUNNELS = {
    "python": [sys.executable, "-I", REFERENCE],
    "c": [CORE],
    "c-plain": [CORE, "--plain"],  # as on a kernel that offloads nothing
}

MISSING = missing()
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.contract,
    pytest.mark.skipif(bool(MISSING), reason=f"tunnel contract: {MISSING}"),
]

Join = Callable[..., list[Node]]


@pytest.fixture
def join() -> Iterator[Join]:
    """Give a function that wires `count` nodes; they end with the test."""
    with contextlib.ExitStack() as closing:
        yield functools.partial(wire_up, closing)


@pytest.fixture(params=list(TUNNELS.values()), ids=list(TUNNELS))
def command(request: pytest.FixtureRequest) -> list[str]:
    """Give the command of the tunnel under test, without arguments."""
    if not request.param[0]:
        pytest.skip("the tunnel core is not built; ./run test builds it, given gcc")
    return list(request.param)


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


def test_no_datagram_is_lost_when_peers_are_read_again(join: Join, command: list[str], tmp_path: Path) -> None:
    a, b = join(2)
    running = []
    for node, peer, file in ((a, b, tmp_path / "a"), (b, a, tmp_path / "b")):
        write_peers(file, peer)
        running.append((peer, file, node.start([*command, *arguments(node), f"--peers={file}"])))
    with numbered_flow(a, b) as flow:
        for turn in range(20):
            flow.wait_for_more(500)
            for peer, file, tunnel in running:
                write_peers(file, peer, others=turn * 100)
                assert tunnel.hang_up() == f"reloaded {turn * 100 + 1} peers"
    assert (flow.lost, flow.sent >= 10_000) == (set(), True)


def test_a_good_file_is_followed_and_a_bad_one_is_not(join: Join, command: list[str], tmp_path: Path) -> None:
    """Both ways, whatever was looked up before; peers of the command line stay."""
    a, b, c = join(3)
    file = tmp_path / "peers"
    write_peers(file, b)
    tunnel = a.start([*command, *arguments(a), f"--peers={file}", f"--peer=172.17.0.0/16={b.endpoint()}"])
    sender, at = a.udp(a.inner4), {node: node.udp(node.outer4, PORT) for node in (b, c)}
    a.ip("route add 172.17.0.0/16 dev tun0")

    def goes_to(address: str, node: Node) -> None:
        sender.sendto(address.encode(), (address, 7000))
        assert at[node].recv(2000).endswith(address.encode())

    goes_to(b.inner4, b)
    file.write_text(f"{b.inner4}/32 {c.endpoint()}\n# c only\n172.16.1.0/24 {b.endpoint()} nonsense\n")
    assert tunnel.hang_up().startswith(f"not reloaded: line 3 of {file}: ")
    goes_to(b.inner4, b)
    file.unlink()
    assert "No such file" in tunnel.hang_up()
    goes_to(b.inner4, b)
    file.write_text(f"{b.inner4}/32 {c.endpoint()}\n")
    assert tunnel.hang_up() == "reloaded 2 peers"
    goes_to(b.inner4, c)
    goes_to("172.17.0.1", b)
    for node, counter in ((b, "bad_source"), (c, "packets_from_peers")):
        at[node].sendto(inner_packet(b.inner4, a.inner4, b""), (a.outer4, PORT))
        tunnel.wait_for_counter(counter, 1)


def test_no_peer_for_the_destination(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    before = tunnel.counters()
    a.udp(a.inner4).sendto(b"nowhere", ("172.16.200.1", 7000))
    tunnel.wait_for_counter("no_peer", before["no_peer"] + 1)
    assert tunnel.counters()["packets_to_peers"] == before["packets_to_peers"]


def test_three_nodes_all_pairs(join: Join, command: list[str]) -> None:
    nodes = join(3)
    for node in nodes:
        node.start(command + arguments(node, *(peer for peer in nodes if peer is not node)))
    for one in nodes:
        for other in nodes:
            for inner in (4, 6):
                one.wait_for_ping(other.inner(inner))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_told(join: Join, command: list[str], number: signal.Signals) -> None:
    a, b = join(2)
    tunnel, device = a.start(command + arguments(a, b)), a.capture("tun0")
    packet = inner_packet(b.inner4, a.inner4, b"one")
    b.udp(b.outer4, PORT).sendto(packet, (a.outer4, PORT))
    device.wait_for(lambda seen: seen == packet, PACKET_HOST, "one packet")
    tunnel.wait_for_counter("packets_from_peers", 1)
    tunnel.process.send_signal(number)
    assert tunnel.wait_for_end() == 0
    assert "packets_from_peers 1" in tunnel.said[-1]


def test_a_deleted_device_ends_it(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    a.ip("link del tun0")
    assert tunnel.wait_for_end() == 1
    assert any("tun0 is gone" in line for line in tunnel.said), tunnel.said


def test_an_absent_device_is_made_for_the_time_being(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start([*command, *arguments(a, b), "--device", "tun7"])
    assert a.run("ip", "link", "show", "tun7").returncode == 0
    tunnel.process.terminate()
    assert tunnel.wait_for_end() == 0
    assert a.run("ip", "link", "show", "tun7", check=False).returncode != 0


@pytest.mark.parametrize(
    ("changed", "status", "named"),
    [
        (["--device", "tap0"], 1, "tap0"),  # exists, but carries frames
        (["--device", "lo"], 1, "lo"),
        (["--listen", "10.0.0.77:9000"], 1, "10.0.0.77:9000"),  # not an address of this node
        (["--listen", "10.0.0.10:9999"], 1, "10.0.0.10:9999"),  # taken
        (["--listen", "10.0.0.10"], 2, "10.0.0.10"),
        (["--peer", "172.16.9.1/24=10.0.0.20:9000"], 2, "172.16.9.1/24"),
        (["--peer", "172.16.1.0/24=10.0.0.30:9000"], 2, "172.16.1.0/24"),  # claimed already
        (["--peer", "172.16.9.0/24=[fd00::20]:9000"], 2, "[fd00::20]:9000"),
        (["--peers", "/no/such/file"], 2, "/no/such/file"),
        (["--device", "much-too-long-a-name"], 2, "much-too-long-a-name"),
        (["--color", "red"], 2, "--color"),
    ],
)
def test_cannot_start(join: Join, command: list[str], changed: list[str], status: int, named: str) -> None:
    """Status 2 for words that can never work, 1 for a node that does not fit them now; one sentence each."""
    a, b = join(2)
    a.ip("tuntap add dev tap0 mode tap")
    a.udp(a.outer4, 9999)
    tunnel = a.start([*command, *arguments(a, b), *changed], ready=False)
    assert tunnel.wait_for_end() == status
    assert len(tunnel.said) == 1
    assert named in tunnel.said[0]


def test_a_second_tunnel_on_the_same_device_is_refused(join: Join, command: list[str]) -> None:
    a, b = join(2)
    first = a.start(command + arguments(a, b))
    second = a.start([*command, *arguments(a, b), "--listen", "10.0.0.10:9001"], ready=False)
    assert second.wait_for_end() == 1
    assert "tun0" in second.said[0]
    third = a.start([*command, *arguments(a, b), "--device", "tun1"], ready=False)
    assert third.wait_for_end() == 1
    assert "10.0.0.10:9000" in third.said[0]
    assert first.process.poll() is None


def test_the_device_goes_down_and_up(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    back = b.start(command + arguments(b, a))
    a.wait_for_ping(b.inner4)
    a.ip("link set tun0 down")
    assert not b.pings(a.inner4)
    tunnel.wait_for_counter("tun_failed", 1)
    assert_idle(tunnel)
    a.ip("link set tun0 up")
    a.wait_for_ping(b.inner4)
    assert back.process.poll() is None


def test_the_underlay_goes_down_and_up(join: Join, command: list[str]) -> None:
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    b.start(command + arguments(b, a))
    a.wait_for_ping(b.inner4)
    a.ip("link set eth0 down")
    assert not a.pings(b.inner4)
    tunnel.wait_for_counter("send_failed", 1)
    assert_idle(tunnel)
    a.ip("link set eth0 up")
    a.wait_for_ping(b.inner4)


def test_a_firewall_and_a_missing_neighbour(join: Join, command: list[str]) -> None:
    """EPERM at once; EHOSTUNREACH later, when nobody answers for the peer's address."""
    a, b = join(2)
    tunnel = a.start(command + arguments(a, b))
    b.start(command + arguments(b, a))
    a.run(
        "nft",
        "-f",
        "-",
        text="table inet t { chain c { type filter hook output priority 0; oif eth0 drop; }; }",
    )
    assert not a.pings(b.inner4)
    tunnel.wait_for_counter("send_failed", 1)
    a.run("nft", "delete table inet t")
    a.wait_for_ping(b.inner4)
    b.ip(f"addr del {b.outer4}/24 dev eth0")
    a.ip("neigh flush all")
    assert not a.pings(b.inner4)
    wait_for(lambda: "FAILED" in a.run("ip", "neigh").stdout, "a failed neighbour")
    assert_idle(tunnel)
    b.ip(f"addr add {b.outer4}/24 dev eth0")
    a.wait_for_ping(b.inner4)


def test_killed_and_started_again(join: Join, command: list[str]) -> None:
    """The device is persistent: addresses and routes on it survive the process."""
    a, b = join(2)
    b.start(command + arguments(b, a))
    for _ in range(3):
        tunnel = a.start(command + arguments(a, b))
        a.wait_for_ping(b.inner4)
        tunnel.kill()
    a.start(command + arguments(a, b))
    b.wait_for_ping(a.inner4)


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


def test_nothing_remains() -> None:
    """The namespaces have no names and end with their holder."""
    node = Node(0)
    pid = node.holder.pid
    node.closing.close()
    assert not Path(f"/proc/{pid}").exists()
