"""Tables and the elements of their sets on the real kernel, with nft as the oracle.

one namespace, one table `inet muslin`:   set nodes4, nodes6   chains forward, outbound, strangers
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.converge import MemoryJournal, converge, plan_ops
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.nft_sets import read_elements
from muslin.kernel.sessions import Session
from muslin.model.kernel import Netns, NftElement
from muslin.model.ops import Create, Delete, Replace
from muslin.model.state import DesiredState
from muslin.plan.traffic import TrafficOptions, node_elements, plan

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace"),
]

OPTIONS = TrafficOptions(
    networks=("172.16.0.0/16", "fd00:172:16::/48"), forward=True, masquerade=True, tunnel_ports=(8472,)
)
DEADLINE_S = 60.0
ADDRESSES = [f"10.1.{number >> 8}.{number & 255}" for number in range(1, 2501)] + ["fd00::20"]


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"muslin-nft-{os.getpid()}"
    yield name
    if name in netns_door.names():
        netns_door.delete(name)


@pytest.fixture
def kernel() -> Iterator[LinuxKernel]:
    with LinuxKernel() as opened:
        yield opened


def desired(netns: str, addresses: list[str]) -> DesiredState:
    return DesiredState((Netns(netns=netns), *plan(netns, OPTIONS, addresses)))


def elements_by_nft(netns: str, name: str) -> set[str]:
    words = ["ip", "netns", "exec", netns, "nft", "-j", "list", "set", "inet", "muslin", name]
    listed = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return set(next(item["set"] for item in listed["nftables"] if "set" in item).get("elem", []))


def test_a_table_with_thousands_of_nodes_is_built_once_and_read_back_whole(netns: str, kernel: LinuxKernel) -> None:
    journal = MemoryJournal()
    wanted = desired(netns, ADDRESSES)
    assert converge(kernel, wanted, journal).ok
    assert elements_by_nft(netns, "nodes4") == set(ADDRESSES[:-1])
    assert elements_by_nft(netns, "nodes6") == {"fd00::20"}
    assert plan_ops(kernel, wanted, journal.owned)[1] == ()


def test_one_node_comes_and_one_goes_without_touching_the_others(netns: str, kernel: LinuxKernel) -> None:
    journal = MemoryJournal()
    converge(kernel, desired(netns, ADDRESSES[:100]), journal)
    report = converge(kernel, desired(netns, ADDRESSES[1:101]), journal)
    assert [type(result.op) for result in report.done] == [Create, Delete]
    assert elements_by_nft(netns, "nodes4") == set(ADDRESSES[1:101])


def test_elements_come_back_with_a_table_that_somebody_changed(netns: str, kernel: LinuxKernel) -> None:
    journal = MemoryJournal()
    wanted = desired(netns, ADDRESSES[:10])
    converge(kernel, wanted, journal)
    rule = ["nft", "add", "rule", "inet", "muslin", "forward", "drop"]
    subprocess.run(["ip", "netns", "exec", netns, *rule], check=True)
    assert converge(kernel, wanted, journal).ok
    assert plan_ops(kernel, wanted, journal.owned)[1] == ()
    assert elements_by_nft(netns, "nodes4") == set(ADDRESSES[:10])


def test_a_set_is_never_found_empty_while_its_table_is_replaced(netns: str, kernel: LinuxKernel) -> None:
    """Reader and writer at once: whatever the reader finds is all of it, as a rule that looks into the set would."""
    journal = MemoryJournal()
    addresses = ADDRESSES[:10]  # all in one answer: the table may be replaced between two
    wanted = [
        DesiredState((Netns(netns=netns), *plan(netns, msgspec.structs.replace(OPTIONS, forward=forward), addresses)))
        for forward in (True, False)
    ]
    converge(kernel, wanted[0], journal)
    sizes: list[int] = []
    done = threading.Event()

    def look() -> None:
        session = Session(netns, 0)
        try:
            while not done.is_set():
                # The answer after the last one may come of the new table already, and say some of them again.
                found = {element.address for element in read_elements(session, "inet", "muslin", "nodes4")}
                sizes.append(len(found))
        finally:
            session.close()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        replaced = 0
        while (replaced < 20 or len(sizes) < 100) and time.monotonic() < deadline:
            replaced += 1
            report = converge(kernel, wanted[replaced % 2], journal)
            assert [type(result.op) for result in report.done] == [Replace]
    finally:
        done.set()
        reader.join()
    assert replaced >= 20
    assert len(sizes) >= 100, "the test should have looked often"
    assert set(sizes) == {len(addresses)}


def test_a_bad_element_costs_nobody_else_anything(netns: str, kernel: LinuxKernel) -> None:
    converge(kernel, desired(netns, []))
    good = list(node_elements(netns, ADDRESSES[:3]))
    bad = NftElement(netns=netns, family="inet", table="muslin", set="nodes4", address="fd00::1")  # too long for it
    results = kernel.apply([Create(good[0]), Create(bad), Create(good[1]), Create(good[2])])
    assert [result.outcome for result in results] == ["done", "failed", "done", "done"]
    assert results[1].errno == errno.EINVAL
    assert elements_by_nft(netns, "nodes4") == set(ADDRESSES[:3])


def test_a_new_table_never_has_empty_sets(kernel: LinuxKernel, netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    netns_door.create(netns)
    monkeypatch.setattr("muslin.kernel.nft_sets.apply_elements", lambda *_: pytest.fail("they came after the table"))
    assert converge(kernel, desired(netns, ADDRESSES)).ok
    assert elements_by_nft(netns, "nodes4") == set(ADDRESSES[:-1])
    assert elements_by_nft(netns, "nodes6") == {"fd00::20"}


def test_elements_that_a_new_table_cannot_have_cost_neither_table_nor_other_elements(
    kernel: LinuxKernel, netns: str
) -> None:
    netns_door.create(netns)
    good = desired(netns, ["10.0.0.1"])
    bad = NftElement(netns=netns, family="inet", table="muslin", set="nodes4", address="no address")
    report = converge(kernel, DesiredState((*good.objects, bad)))
    assert [result.op.object for result in report.failed] == [bad]
    assert elements_by_nft(netns, "nodes4") == {"10.0.0.1"}
