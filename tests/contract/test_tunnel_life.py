"""The contract of a tunnel, second part: how it starts, ends, lives through trouble and takes new peers."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

import pytest

from tests.contract.tunnel_bench import (
    CORE,
    MARKS,
    PACKET_HOST,
    PORT,
    Join,
    Node,
    arguments,
    assert_idle,
    numbered_flow,
    wait_for,
    write_peers,
)
from tests.contract.tunnel_packets import inner_packet

pytestmark = MARKS


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


@pytest.mark.skipif(not CORE, reason="the tunnel core is not built; ./run test builds it, given gcc")
def test_no_datagram_is_lost_when_a_successor_takes_over(join: Join) -> None:
    """Of the core only: it has an upgrade without an interruption."""
    a, b = join(2)
    a.start([CORE, *arguments(a, b)])
    running = b.start([CORE, *arguments(b, a)])
    with numbered_flow(a, b) as flow:
        for _ in range(5):
            flow.wait_for_more(1000)
            successor = b.start([CORE, f"--take-over={running.process.pid}", *arguments(b, a)])
            assert running.wait_for_end() == 0
            running = successor
    assert flow.lost == set()
    stranger = b.start([CORE, f"--take-over={b.holder.pid}", *arguments(b, a)], ready=False)
    assert stranger.wait_for_end() == 1
    assert stranger.said == [f"cannot take tun0 over from process {b.holder.pid}: Bad file descriptor"]


@pytest.mark.skipif(not CORE, reason="the tunnel core is not built; ./run test builds it, given gcc")
def test_it_keeps_no_rights(join: Join) -> None:
    """Of the core only: capabilities, ways to gain some, and system calls that it has no use for."""
    a, b = join(2)
    tunnel = a.start([CORE, *arguments(a, b)])
    for task in Path(f"/proc/{tunnel.process.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def landlock_version() -> int:
    """What the running kernel knows of Landlock, 0 if nothing (landlock_create_ruleset(2), not wrapped by libc)."""
    return max(0, int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)))


@pytest.mark.skipif(not CORE, reason="the tunnel core is not built; ./run test builds it, given gcc")
@pytest.mark.skipif(not landlock_version(), reason="kernel lacks Landlock")
@pytest.mark.parametrize("is_link", [False, True])
def test_it_reads_no_file_but_those_beside_its_peers(join: Join, tmp_path: Path, is_link: bool) -> None:
    """Of the core only. What the file of peers leads to may change; to where, was settled when it started."""
    a, b = join(2)
    inside, outside, linked = (tmp_path / name for name in ("inside", "outside", "linked"))
    for directory in (inside, outside, linked):
        directory.mkdir()
        write_peers(directory / "peers.1", b, others=1)
    file = inside / "peers"
    if is_link:
        write_peers(linked / "peers", b)
        file.symlink_to(linked / "peers")
    else:
        write_peers(file, b)
    tunnel = a.start([CORE, *arguments(a), f"--peers={file}"])

    def turn_to(target: Path) -> str:
        file.unlink()
        file.symlink_to(target)
        return tunnel.hang_up()

    assert turn_to(outside / "peers.1") == f"not reloaded: cannot read the peers from {file}: Permission denied"
    assert turn_to(Path("/etc/hostname")).endswith(": Permission denied")
    assert turn_to(inside / "peers.1") == "reloaded 2 peers"
    assert (turn_to(linked / "peers.1") == "reloaded 2 peers") is is_link
    file.unlink()
    write_peers(file, b, others=2)
    assert tunnel.hang_up() == "reloaded 3 peers"


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


def test_nothing_remains() -> None:
    """The namespaces have no names and end with their holder."""
    node = Node(0)
    pid = node.holder.pid
    node.closing.close()
    assert not Path(f"/proc/{pid}").exists()
