"""Links removed without waiting for the kernel to forget them: gone for everybody, whatever stands in the way.

one namespace with pairs of veths, ends next to each other
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel import removal
from muslin.kernel.netlink import Answer, NetlinkSocket, open_socket
from muslin.kernel.removal import THREADS, LinkRemover
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import LinkRecord

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace"),
]


class Bench:
    def __init__(self, netns: str) -> None:
        self.netns = netns
        self.netlink = NetlinkSocket(netns)
        self.ports: set[int] = set()
        self.remover = LinkRemover(netns, self.ports)

    def make(self, count: int, prefix: str = "v") -> list[int]:
        """Pairs of veths; the numbers of their first ends."""
        fd = netns_door.open_netns(self.netns)
        try:
            names = [f"{prefix}{number}" for number in range(count)]
            requests = [rtnetlink.link_create(name, "veth", peer_name=f"p{name}", peer_netns_fd=fd) for name in names]
            assert {answer.errno for answer in self.netlink.request(requests)} == {0}
        finally:
            os.close(fd)
        links = self.links()
        return [links[name] for name in names]

    def links(self) -> dict[str, int]:
        records = [rtnetlink.parse_record(message) for message in self.netlink.dump(rtnetlink.link_dump())]
        return {one.name: one.ifindex for one in records if isinstance(one, LinkRecord) and one.name != "lo"}

    def close(self) -> None:
        self.remover.close()
        self.netlink.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    name = f"muslin-removal-{os.getpid()}"
    netns_door.create(name)
    made = Bench(name)
    try:
        yield made
    finally:
        made.close()
        netns_door.delete(name)


def test_one_is_gone_with_its_other_end_when_the_call_returns(bench: Bench) -> None:
    for _ in range(20):
        (ifindex,) = bench.make(1)
        assert bench.remover.remove([ifindex]) == [Answer(0)]
        assert bench.links() == {}


@pytest.mark.parametrize("count", [2, 16, 200])
def test_many_go_as_one_and_no_other_with_them(bench: Bench, count: int) -> None:
    numbers = bench.make(count)
    others = bench.make(2, prefix="w")
    assert bench.remover.remove(numbers) == [Answer(0)] * count
    assert set(bench.links()) == {"w0", "w1", "pw0", "pw1"}
    assert bench.remover.remove(others) == [Answer(0)] * 2
    assert bench.links() == {}


def test_both_ends_of_a_cable_at_once(bench: Bench) -> None:
    bench.make(3)
    assert {answer.errno for answer in bench.remover.remove(list(bench.links().values()))} == {0}
    assert bench.links() == {}


def test_one_that_is_gone_already_says_so_and_keeps_nobody_waiting(bench: Bench) -> None:
    numbers = bench.make(3)
    bench.netlink.request([rtnetlink.link_delete(numbers[1])])
    assert [answer.errno for answer in bench.remover.remove([numbers[1]])] == [errno.ENODEV]
    assert [answer.errno for answer in bench.remover.remove(numbers)] == [0, errno.ENODEV, 0]
    assert bench.links() == {}


def test_what_the_kernel_refuses_is_said(bench: Bench) -> None:
    (number,) = bench.make(1)
    loopback = 1
    assert [answer.errno for answer in bench.remover.remove([loopback])] == [errno.EOPNOTSUPP]
    assert bench.remover.remove([number]) == [Answer(0)]


def test_more_at_once_than_there_are_threads(bench: Bench) -> None:
    """Each is answered before the kernel is done with it, so the ninth finds eight under way."""
    numbers = bench.make(3 * THREADS)
    for number in numbers:
        assert bench.remover.remove([number]) == [Answer(0)]
        assert number not in bench.links().values()
    assert bench.links() == {}


def test_several_callers_have_one_remover_each(bench: Bench) -> None:
    numbers = bench.make(9)
    removers = [LinkRemover(bench.netns, set()) for _ in numbers]
    answers: list[list[Answer]] = []
    threads = [
        threading.Thread(target=lambda remover=remover, number=number: answers.append(remover.remove([number])))
        for remover, number in zip(removers, numbers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for remover in removers:
        remover.close()
    assert answers == [[Answer(0)]] * 9
    assert bench.links() == {}


def test_without_any_event_the_kernels_own_answer_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_removed", _hears_nothing)
    numbers = bench.make(5)
    assert bench.remover.remove(numbers[:1]) == [Answer(0)]
    assert bench.remover.remove(numbers[1:]) == [Answer(0)] * 4
    assert bench.links() == {}


def _hears_nothing(events: socket.socket) -> set[int]:
    events.recv(1 << 16)
    return set()


def test_events_that_the_kernel_had_to_drop_cost_no_more_than_the_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receive buffer of the least size: the events of a group do not fit, and the kernel says ENOBUFS."""
    lost: list[int] = []

    def small(netns: str) -> socket.socket:
        made = open_socket(netns)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        return made

    removed = removal._removed

    def count(events: socket.socket) -> set[int]:
        found = removed(events)
        lost.append(len(found))
        return found

    monkeypatch.setattr(removal, "open_socket", small)
    monkeypatch.setattr(removal, "_removed", count)
    numbers = bench.make(60)
    assert bench.remover.remove(numbers) == [Answer(0)] * 60
    assert sum(lost) < 120, "some events were dropped"
    assert bench.links() == {}


def test_its_sockets_are_known_as_ours_and_all_are_closed(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ports: set[int] = set()
    remover = LinkRemover(bench.netns, ports)
    for number in bench.make(10):
        remover.remove([number])
    assert 1 <= len(ports) <= THREADS + 1
    remover.close()
    assert len(os.listdir("/proc/self/fd")) == before
