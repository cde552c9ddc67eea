"""The pure parts of the reference tunnel: arguments, longest-prefix match, inner headers, ICMP errors.

No root, no sockets on a network. What needs a kernel is in tests/contract/test_tunnel.py, which is also the
suite of the C core.
"""

from __future__ import annotations

import ast
import ipaddress
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.tunnel import reference
from muslin.tunnel.reference import Endpoint, PeerSource, PeerTable, Prefix

NODE_A = ("10.0.0.10", 9000)
PEER_B = ("10.0.0.20", 9000)
PEER_C = ("10.0.0.30", 9000)
SOURCE = Path(reference.__file__)


def packed(address: str) -> bytes:
    """Return the bytes of an IPv4 or IPv6 address."""
    return ipaddress.ip_address(address).packed


def ipv4(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    """Build an IPv4 packet without options; `fragment` is the flags-and-offset field."""
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    header += packed(source) + packed(destination)
    return header[:10] + struct.pack("!H", reference.checksum(header)) + header[12:] + payload


def ipv6(source: str, destination: str, next_header: int, payload: bytes) -> bytes:
    """Build an IPv6 packet without extension headers."""
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64) + packed(source) + packed(destination) + payload


def table(*peers: str) -> PeerTable:
    """Return the table of peers written as on the command line."""
    return filled(reference.parse_peer(peer) for peer in peers)


def filled(entries: Iterable[tuple[Prefix, Endpoint]]) -> PeerTable:
    """Return the table of these entries."""
    made = PeerTable(NODE_A)
    for prefix, peer in entries:
        made.add(prefix, peer)
    return made


class TestArguments:
    """The command line is a contract with the lab, the agent and the C core."""

    def test_everything(self) -> None:
        device, peers, source = reference.parse_arguments(
            [
                "--device",
                "tun0",
                "--listen",
                "10.0.0.10:9000",
                "--peer",
                "172.16.1.0/24=10.0.0.20:9000",
                "--peer",
                "fd00:172:16:1::/64=10.0.0.20:9000",
                "--peer",
                "172.16.2.0/24=10.0.0.30:9000",
            ]
        )
        assert (device, source.listen, source.path) == ("tun0", NODE_A, None)
        assert set(peers.underlay_address) == {PEER_B, PEER_C}
        assert peers.owner(packed("172.16.1.7")) == PEER_B
        assert peers.owner(packed("fd00:172:16:1::7")) == PEER_B
        assert peers.owner(packed("172.16.2.7")) == PEER_C
        assert peers.owner(packed("172.16.3.7")) is None

    def test_no_peer_yet(self) -> None:
        _, peers, _ = reference.parse_arguments(["--device", "tun0", "--listen", "10.0.0.10:9000"])
        assert peers.owner(packed("172.16.1.7")) is None

    def test_a_file_adds_to_the_command_line(self, tmp_path: Path) -> None:
        path = tmp_path / "peers"
        path.write_text("172.16.2.0/24 10.0.0.30:9000\n")
        words = ["--device=tun0", "--listen=10.0.0.10:9000", "--peer=172.16.1.0/24=10.0.0.20:9000", f"--peers={path}"]
        _, peers, source = reference.parse_arguments(words)
        assert source.path == str(path)
        assert (peers.owner(packed("172.16.1.7")), peers.owner(packed("172.16.2.7"))) == (PEER_B, PEER_C)

    @pytest.mark.parametrize(
        ("text", "endpoint"),
        [
            ("10.0.0.20:9000", ("10.0.0.20", 9000)),
            ("[fd00::1]:9000", ("fd00::1", 9000)),
            # recvfrom() spells addresses its own way, and endpoints are compared as text.
            ("[FD00:0:0::0001]:65535", ("fd00::1", 65535)),
        ],
    )
    def test_endpoint(self, text: str, endpoint: Endpoint) -> None:
        assert reference.parse_endpoint(text) == endpoint
        assert reference.parse_endpoint(reference.show(endpoint)) == endpoint

    @pytest.mark.parametrize(
        ("option", "value", "expected"),
        [
            ("--device", "", "expected 1 to 15"),
            ("--device", "a-name-far-too-long", "expected 1 to 15"),
            ("--device", "tun%d", "expected 1 to 15"),
            ("--device", "../tun0", "expected 1 to 15"),
            ("--listen", "10.0.0.10", "expected ADDRESS:PORT"),
            ("--listen", "10.0.0.10:0", "expected ADDRESS:PORT"),
            ("--listen", "10.0.0.10:65536", "expected ADDRESS:PORT"),
            ("--listen", "10.0.0.10:\u0663", "expected ADDRESS:PORT"),
            ("--listen", "10.0.0.256:9000", "expected ADDRESS:PORT"),
            ("--listen", "10.0.10:9000", "expected ADDRESS:PORT"),
            ("--listen", "fd00::1:9000", "expected ADDRESS:PORT"),
            ("--listen", "[10.0.0.10]:9000", "expected ADDRESS:PORT"),
            ("--listen", "[fe80::1%eth0]:9000", "expected ADDRESS:PORT"),
            ("--listen", "localhost:9000", "expected ADDRESS:PORT"),
            ("--listen", "[fd00::10]:9000", "expected both IPv4 or both IPv6"),
            ("--peer", "172.16.2.0/24", "expected PREFIX=ADDRESS:PORT"),
            ("--peer", "172.16.2.0=10.0.0.30:9000", "expected PREFIX=ADDRESS:PORT"),
            ("--peer", "172.16.2.0/24=10.0.0.30", "expected ADDRESS:PORT"),
            ("--peer", "172.16.2.1/24=10.0.0.30:9000", "the prefix without host bits"),
            ("--peer", "172.16.2.0/33=10.0.0.30:9000", "the prefix without host bits"),
            ("--peer", "172.16.1.0/24=10.0.0.30:9000", "expected each prefix once"),
            ("--peer", "172.16.2.0/24=[fd00::30]:9000", "expected both IPv4 or both IPv6"),
            ("--peers", "/no/such/file", "No such file"),
            ("--peers", "/", "Is a directory"),
        ],
    )
    def test_bad_values_are_named(
        self, capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
    ) -> None:
        good = {"--device": "tun0", "--listen": "10.0.0.10:9000"}
        arguments = ["--peer", "172.16.1.0/24=10.0.0.20:9000"]
        for name, text in (good | {option: value} if option in good else good).items():
            arguments += [name, text]
        arguments += [option, value] if option not in good else []
        with pytest.raises(SystemExit) as ended:
            reference.parse_arguments(arguments)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert expected in said
        assert value.rpartition("=")[2] in said
        assert said.count("\n") == 1, "one sentence"

    def test_no_abbreviations(self) -> None:
        """The C core need not know what argparse would have guessed."""
        with pytest.raises(SystemExit) as ended:
            reference.parse_arguments(["--dev", "tun0", "--listen", "10.0.0.10:9000"])
        assert ended.value.code == 2

    def test_the_same_prefix_twice_for_one_peer(self) -> None:
        assert table(*["172.16.1.0/24=10.0.0.20:9000"] * 2).owner(packed("172.16.1.1")) == PEER_B


class TestPeersFile:
    """The file that changes while packets fly."""

    def load(self, path: Path, *named: str) -> PeerTable:
        source = PeerSource(NODE_A, [reference.parse_peer(peer) for peer in named], str(path))
        return next(filter(None, source.load()))

    def test_lines_comments_and_blanks(self, tmp_path: Path) -> None:
        path = tmp_path / "peers"
        path.write_text(
            "# all of them\n\n  172.16.1.0/24\t10.0.0.20:9000  # b\r\n"
            "fd00:172:16:2::/64 10.0.0.30:9000\n# \u00e9\n172.16.1.0/24 10.0.0.20:9000",
            encoding="utf-8",
        )
        peers = self.load(path)
        assert peers.owner(packed("172.16.1.7")) == PEER_B
        assert peers.owner(packed("fd00:172:16:2::7")) == PEER_C
        assert len(peers.underlay_address) == 2

    def test_an_empty_file_means_no_peers(self, tmp_path: Path) -> None:
        path = tmp_path / "peers"
        path.touch()
        assert not self.load(path).underlay_address

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("172.16.2.0/24", "expected PREFIX ADDRESS:PORT"),
            ("172.16.2.0/24=10.0.0.30:9000", "expected PREFIX ADDRESS:PORT"),
            ("172.16.2.1/24 10.0.0.30:9000", "without host bits"),
            ("172.16.2.0/24 10.0.0.30", "expected ADDRESS:PORT"),
            ("172.16.2.0/24 10.0.0.30:9000 10.0.0.20:9000", "expected ADDRESS:PORT"),
            ("172.16.2.0/24 [fd00::30]:9000", "expected both IPv4 or both IPv6"),
            ("172.16.1.0/24 10.0.0.30:9000", "expected each prefix once"),
            ("172.16.0.0/24 10.0.0.30:9000", "expected each prefix once"),
            ("\u0661\0\x1b", "expected PREFIX ADDRESS:PORT"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, why: str) -> None:
        path = tmp_path / "peers"
        path.write_text(f"# head\n172.16.1.0/24 10.0.0.20:9000\n{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"line 3 of .*{why}") as raised:
            self.load(path, "172.16.0.0/24=10.0.0.20:9000")
        assert "\x1b" not in str(raised.value)

    def test_packets_have_their_turn_after_each_slice(self, tmp_path: Path) -> None:
        """And a file replaced meanwhile is read as it was when the reading began."""
        path, count = tmp_path / "peers", reference.SLICE_LINES * 3 + 1
        path.write_text("".join(f"10.{n}.0.0/16 10.0.0.20:9000\n" for n in range(count)))
        loading = PeerSource(NODE_A, [], str(path)).load()
        assert next(loading) is None
        other = tmp_path / "other"
        other.write_text("nonsense")
        other.rename(path)
        *pauses, peers = loading
        assert pauses == [None, None]
        assert peers is not None
        assert peers.owner(packed(f"10.{count - 1}.0.1")) == PEER_B

    def test_a_new_peer_is_not_hidden_by_an_earlier_look(self) -> None:
        peers = table("172.16.0.0/16=10.0.0.20:9000")
        assert peers.owner(packed("172.16.2.7")) == PEER_B
        peers.add(*reference.parse_peer("172.16.2.0/24=10.0.0.30:9000"))
        assert peers.owner(packed("172.16.2.7")) == PEER_C


@pytest.mark.parametrize("command", [["-I", str(SOURCE)], ["-m", "muslin.tunnel.reference"]])
def test_runs_as_script_and_as_module(command: list[str]) -> None:
    """-I: alone, as in the script that `lab export --as sh` writes."""
    ran = subprocess.run(
        [sys.executable, *command, "--listen", "x", "--device", "tun0"],
        env=os.environ | {"PYTHONPATH": str(SOURCE.parents[2])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "'x' is no endpoint" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_imports_only_the_standard_library() -> None:
    """`lab export --as sh` embeds the file verbatim in a script that runs alone."""
    for node in ast.walk(ast.parse(SOURCE.read_text("ascii"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names


def prefixes() -> st.SearchStrategy[Prefix]:
    """Networks that nest and collide often: few distinct bits, all lengths, both families."""
    bits = st.integers(0, 7)

    def ipv4_network(first: int, last: int, length: int) -> Prefix:
        return ipaddress.ip_network((first << 29 | last, length), strict=False)

    def ipv6_network(first: int, last: int, length: int) -> Prefix:
        return ipaddress.ip_network((first << 125 | last, length), strict=False)

    return st.one_of(
        st.builds(ipv4_network, bits, bits, st.integers(0, 32)),
        st.builds(ipv6_network, bits, bits, st.integers(0, 128)),
    )


def naive_owner(entries: dict[Prefix, Endpoint], address: bytes) -> Endpoint | None:
    """The twin: look at every prefix, keep the longest."""
    number = ipaddress.ip_address(address)
    matching = [prefix for prefix in entries if prefix.version == number.version and number in prefix]
    return entries[max(matching, key=lambda prefix: prefix.prefixlen)] if matching else None


@given(
    st.dictionaries(prefixes(), st.sampled_from([PEER_B, PEER_C, ("10.0.0.20", 9001)]), max_size=12),
    st.lists(prefixes(), max_size=12),
)
def test_longest_prefix_match(entries: dict[Prefix, Endpoint], others: list[Prefix]) -> None:
    """Ask at the edges of every prefix, where mistakes are; twice, the second time from the cache."""
    peers = filled(entries.items())
    for prefix in [*entries, *others]:
        for address in (prefix.network_address.packed, prefix.broadcast_address.packed):
            assert peers.owner(address) == naive_owner(entries, address)
            assert peers.owner(address) == naive_owner(entries, address)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "REMEMBERED_ADDRESSES", 8)
    peers = table("172.16.0.0/16=10.0.0.20:9000")
    for number in range(100):
        assert peers.owner(bytes([172, 16, 0, number])) == PEER_B
        assert peers.owner(bytes([172, 17, 0, number])) is None
        assert len(peers._remembered) <= 8


class TestInnerAddresses:
    """Exactly one whole packet, or nothing."""

    def test_both_families(self) -> None:
        assert reference.inner_addresses(ipv4("172.16.0.2", "172.16.1.2", 17, b"abc")) == (
            packed("172.16.0.2"),
            packed("172.16.1.2"),
        )
        assert reference.inner_addresses(ipv6("fd00::1", "fd00::2", 17, b"abc")) == (
            packed("fd00::1"),
            packed("fd00::2"),
        )

    @pytest.mark.parametrize("whole", [ipv4("1.2.3.4", "5.6.7.8", 17, b"abc"), ipv6("::1", "::2", 17, b"abc")])
    def test_truncated_or_padded(self, whole: bytes) -> None:
        assert reference.inner_addresses(whole) is not None
        for size in range(len(whole)):
            assert reference.inner_addresses(whole[:size]) is None
        assert reference.inner_addresses(whole + b"\0") is None

    @pytest.mark.parametrize("first_byte", [0x44, 0x4F, 0x05, 0x55, 0x75, 0xF5])
    def test_bad_version_or_header_length(self, first_byte: int) -> None:
        packet = ipv4("1.2.3.4", "5.6.7.8", 17, b"abc")
        assert reference.inner_addresses(bytes([first_byte]) + packet[1:]) is None

    @given(st.binary(max_size=100))
    def test_never_raises(self, data: bytes) -> None:
        addresses = reference.inner_addresses(data)
        assert addresses is None or len(addresses[0]) == len(addresses[1]) in (4, 16)


def test_checksum_of_the_rfc() -> None:
    """The example of RFC 1071 section 3: the sum is ddf2, the checksum its complement."""
    assert reference.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF
    assert reference.checksum(b"\x01") == reference.checksum(b"\x01\x00"), "an odd byte is padded"


@given(st.binary(max_size=64).filter(lambda data: len(data) % 2 == 0))
def test_checksum_verifies_itself(data: bytes) -> None:
    assert reference.checksum(data + struct.pack("!H", reference.checksum(data))) == 0


class TestTooBig:
    """The error that a router would have sent."""

    def test_ipv4(self) -> None:
        refused = ipv4("172.16.0.2", "172.16.1.2", socket.IPPROTO_UDP, bytes(1480), fragment=0x4000)
        answer = reference.icmp_error(refused, 1472)
        assert answer is not None
        assert reference.inner_addresses(answer) == (packed("172.16.1.2"), packed("172.16.0.2"))
        assert len(answer) == 576
        assert reference.checksum(answer[:20]) == 0
        assert reference.checksum(answer[20:]) == 0
        assert answer[9] == socket.IPPROTO_ICMP
        assert struct.unpack("!BB2xHH", answer[20:28]) == (3, 4, 0, 1472)
        assert answer[28:] == refused[:548]

    def test_ipv6(self) -> None:
        refused = ipv6("fd00::1", "fd00::2", socket.IPPROTO_UDP, bytes(1460))
        answer = reference.icmp_error(refused, 1452)
        assert answer is not None
        assert reference.inner_addresses(answer) == (packed("fd00::2"), packed("fd00::1"))
        assert len(answer) == 1280
        assert answer[6] == socket.IPPROTO_ICMPV6
        pseudo_header = answer[8:40] + struct.pack("!II", len(answer) - 40, socket.IPPROTO_ICMPV6)
        assert reference.checksum(pseudo_header + answer[40:]) == 0
        assert struct.unpack("!BB2xI", answer[40:48]) == (2, 0, 1452)
        assert answer[48:] == refused[:1232]

    def test_the_least_mtu_of_each_family(self) -> None:
        """Below it a sender would ignore the message (RFC 791: 68 bytes, RFC 8200 section 5: 1280)."""
        small4 = reference.icmp_error(ipv4("172.16.0.2", "172.16.1.2", 17, bytes(100)), 20)
        small6 = reference.icmp_error(ipv6("fd00::1", "fd00::2", 17, bytes(1300)), 1000)
        assert small4 is not None
        assert small6 is not None
        assert struct.unpack("!H", small4[26:28]) == (68,)
        assert struct.unpack("!I", small6[44:48]) == (1280,)

    @pytest.mark.parametrize(
        "packet",
        [
            ipv4("172.16.0.2", "172.16.1.2", 1, b"\x03\x04" + bytes(30)),  # ICMP unreachable
            ipv4("172.16.0.2", "172.16.1.2", 1, b"\x0b\x00" + bytes(30)),  # ICMP time exceeded
            ipv4("172.16.0.2", "172.16.1.2", 17, bytes(30), fragment=0x2001),  # not the first fragment
            ipv4("0.0.0.0", "172.16.1.2", 17, bytes(30)),
            ipv4("127.0.0.1", "172.16.1.2", 17, bytes(30)),
            ipv4("224.0.0.1", "172.16.1.2", 17, bytes(30)),
            ipv4("172.16.0.2", "239.0.0.1", 17, bytes(30)),
            ipv4("172.16.0.2", "255.255.255.255", 17, bytes(30)),
            ipv6("fd00::1", "fd00::2", 58, b"\x01\x00" + bytes(30)),  # ICMPv6 unreachable
            ipv6("::", "fd00::2", 17, bytes(30)),
            ipv6("ff02::1", "fd00::2", 17, bytes(30)),
            ipv6("fd00::1", "ff02::1", 17, bytes(30)),
        ],
    )
    def test_nobody_to_tell(self, packet: bytes) -> None:
        assert reference.icmp_error(packet, 1400) is None

    @pytest.mark.parametrize(
        "packet",
        [
            ipv4("172.16.0.2", "172.16.1.2", 1, b"\x08\x00" + bytes(30)),  # ICMP echo request: no error
            ipv4("172.16.0.2", "172.16.1.2", 17, bytes(30), fragment=0x2000),  # the first fragment
            ipv6("fd00::1", "fd00::2", 58, b"\x80\x00" + bytes(30)),
        ],
    )
    def test_somebody_to_tell(self, packet: bytes) -> None:
        assert reference.icmp_error(packet, 1400) is not None

    @given(st.binary(min_size=20, max_size=60), st.sampled_from([4, 6]))
    def test_never_raises(self, data: bytes, version: int) -> None:
        """Whatever passes as a packet gets an answer that is one whole packet, or none."""
        fields = bytes([version << 4 | 5, 0]) + struct.pack("!H", len(data)) + data[4:]
        if version == 6:
            fields = bytes([0x60, 0, 0, 0]) + struct.pack("!H", len(data)) + data[:2] + bytes(32) + data
        assert reference.inner_addresses(fields) is not None
        answer = reference.icmp_error(fields, 1400)
        assert answer is None or reference.inner_addresses(answer) is not None
