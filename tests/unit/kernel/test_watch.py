"""Hints from sockets that play the kernel: what no real one sends on demand. The rest is in tests/kernel."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel import watch as door
from muslin.kernel.netlink import NETLINK_NETFILTER, OwnPorts
from muslin.kernel.watch import Hint, Watch
from muslin.model.kernel import Address, Key, Link, NftTable
from muslin.wire import netlink as wire
from muslin.wire import nftables, rtnetlink
from muslin.wire.netlink import Message
from muslin.wire.rtnetlink import Request

OURS, THEIRS = 7, 8
BROKEN = b"\x05\0\0\0"
EVERYTHING = Hint("", None)


def message(request: Request, port: int = THEIRS) -> bytes:
    framed = wire.encode_message(request.kind, 0, 0, request.payload)
    return framed[:12] + struct.pack("=I", port) + framed[16:]


def address(text: str, port: int = THEIRS, ifindex: int = 1) -> bytes:
    return message(rtnetlink.address_add(ifindex, text), port)


def link(name: str, ifindex: int = 1, mtu: int = 1500) -> Request:
    payload = struct.pack("=BxHiII", 0, 1, ifindex, 0, 0) + wire.encode_attribute(3, name.encode() + b"\0")
    return Request(rtnetlink.RTM_NEWLINK, 0, payload + wire.encode_u32(4, mtu))


class Lines:
    """The kernel's ends of the watch's sockets, and the links that it names when it is asked."""

    def __init__(self) -> None:
        self.links: list[Request] = [link("eth0")]
        self.asked = 0
        self.far: dict[int, socket.socket] = {}
        self.losses = 0

    def open(self, _netns: str, protocol: int) -> Near:
        near, self.far[protocol] = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return Near(near, self)

    def say(self, *datagrams: bytes, protocol: int = socket.NETLINK_ROUTE) -> None:
        for datagram in datagrams:
            self.far[protocol].send(datagram)

    def converse(self, _netns: str) -> Conversation:
        self.asked += 1
        return Conversation(self.links)


class Near:
    """A watch's socket that may have lost something: it says so once, ahead of what else waits."""

    def __init__(self, opened: socket.socket, lines: Lines) -> None:
        self._opened, self._lines = opened, lines
        self.fileno, self.close, self.setblocking = opened.fileno, opened.close, opened.setblocking

    def setsockopt(self, *_: object) -> None:
        pass

    def recv_into(self, buffer: bytearray) -> int:
        if self._lines.losses:
            self._lines.losses -= 1
            raise OSError(errno.ENOBUFS, "no buffer space available")
        return self._opened.recv_into(buffer)


class Conversation:
    """The socket that asks for links."""

    def __init__(self, links: Sequence[Request]) -> None:
        self._links = links

    def dump(self, _: Request) -> list[Message]:
        return [Message(request.kind, 0, 0, 0, request.payload) for request in self._links]

    def close(self) -> None:
        pass


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    made = Lines()
    monkeypatch.setattr(door, "open_socket", made.open)
    monkeypatch.setattr(door, "NetlinkSocket", made.converse)
    yield made
    for far in made.far.values():
        far.close()


@pytest.fixture
def ports() -> OwnPorts:
    return OwnPorts()


@pytest.fixture
def watch(lines: Lines, ports: OwnPorts) -> Iterator[Watch]:
    made = Watch(("",), ports)
    yield made
    made.close()


Own = Callable[[int], set[int]]


@pytest.fixture
def own(ports: OwnPorts) -> Own:
    return lambda protocol: ports.of(netns_door.inode_of("") or 0, protocol)


def keys(hints: list[Hint]) -> list[Key]:
    return [hint.object.key for hint in hints if hint.object is not None]


def test_an_event_is_told_with_the_name_of_its_link(watch: Watch, lines: Lines) -> None:
    lines.say(address("10.0.0.1/24"))
    assert watch.read() == [Hint("", Address(netns="", link="eth0", address="10.0.0.1/24"))]
    assert watch.read() == []


def test_our_own_doing_is_left_out_from_the_moment_that_a_socket_is_ours(watch: Watch, lines: Lines, own: Own) -> None:
    lines.say(address("10.0.0.1/24", OURS))
    assert len(watch.read()) == 1
    own(socket.NETLINK_ROUTE).add(OURS)
    lines.say(address("10.0.0.2/24", OURS), address("10.0.0.3/24"))
    assert [key[3] for key in keys(watch.read())] == ["10.0.0.3/24"]
    own(socket.NETLINK_ROUTE).discard(OURS)
    lines.say(address("10.0.0.2/24", OURS))
    assert len(watch.read()) == 1


def test_a_number_is_ours_in_its_own_protocol_only(watch: Watch, lines: Lines, own: Own) -> None:
    own(NETLINK_NETFILTER).add(OURS)
    lines.say(address("10.0.0.1/24", OURS))
    assert len(watch.read()) == 1


@pytest.mark.parametrize("datagram", [BROKEN, b"\0", address("10.0.0.1/24")[:20], address("10.0.0.1/24") + BROKEN])
def test_what_cannot_be_understood_asks_to_look_at_everything(
    watch: Watch, lines: Lines, own: Own, datagram: bytes
) -> None:
    own(socket.NETLINK_ROUTE).add(OURS)
    # After one of ours, whose sender must not be taken for that of what is too short to have any.
    lines.say(address("10.0.0.9/24", OURS), datagram, address("10.0.0.2/24"))
    hints = watch.read()
    assert EVERYTHING in hints
    assert keys(hints)[-1:] == [("address", "", "eth0", "10.0.0.2/24")], "and it goes on"


def test_the_same_news_is_told_once(watch: Watch, lines: Lines) -> None:
    element = message(nftables.element_add("inet", "t", "s", "10.0.0.1"))
    other = message(nftables.element_add("inet", "u", "s", "10.0.0.1"))
    lines.say(*[element] * 5, other, element, protocol=NETLINK_NETFILTER)
    tables = [NftTable(netns="", family="inet", name=name, text="") for name in "tu"]
    assert watch.read() == [Hint("", table) for table in tables]


def test_a_flood_is_heard_in_pieces(watch: Watch, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "DATAGRAMS_AT_ONCE", 3)
    lines.say(*(address(f"10.0.0.{number}/24") for number in range(7)))
    for count in (3, 3, 1):
        assert select.select([watch.fileno()], [], [], 0)[0], "whoever waits for it is called again"
        assert len(watch.read()) == count
    assert not select.select([watch.fileno()], [], [], 0)[0]


def test_a_loss_asks_to_look_at_everything_and_links_are_learned_anew_when_all_was_heard(
    watch: Watch, lines: Lines
) -> None:
    before = lines.asked
    lines.losses = 1
    lines.links = [link("eth0", mtu=1300), link("new", ifindex=2)]
    lines.say(message(link("eth0", mtu=1400)))  # it waited already when the later ones were lost
    hints = watch.read()
    assert hints[0] == EVERYTHING
    assert keys(hints) == [("link", "", "eth0")]
    assert lines.asked == before + 1
    lines.say(message(link("eth0", mtu=1300)), address("10.0.0.1/24", ifindex=2))
    assert keys(watch.read()) == [("address", "", "new", "10.0.0.1/24")]
    lines.say(message(link("eth0", mtu=1400)))
    assert keys(watch.read()) == [("link", "", "eth0")], "what is news again is told"


def test_a_link_is_told_when_it_differs_and_under_both_names_when_it_is_renamed(watch: Watch, lines: Lines) -> None:
    lines.say(message(link("eth0")), message(link("eth0", mtu=1400)), message(link("lan0", mtu=1400)))
    told = [(hint.object.name, hint.object.mtu, hint.removed) for hint in watch.read() if isinstance(hint.object, Link)]
    assert told == [("eth0", 1400, False), ("eth0", 1400, True), ("lan0", 1400, False)]
