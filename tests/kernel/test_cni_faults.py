"""The plugin and the agent are killed at random points of hundreds of ADDs and DELs, and nothing is left of them.

Several runtimes work at once, each with containers of its own, as a runtime does: an ADD that failed, or whose plugin
was killed, is followed by a DEL until one succeeds. See tests/kernel/containers.py for the nodes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.containers import DUAL, NEEDS, Answer, Cluster, Node, running, wait_for_same
from tests.lab.support import wait_until

pytestmark = [*NEEDS, pytest.mark.slow]

CYCLES, RUNTIMES, AGENT_KILLS = 500, 4, 6
SEED = int(os.environ.get("MUSLIN_TEST_SEED", "20260104"))
MOMENTS_S = (0.0, 0.008)
"""Within a plugin's life, which is some 2 ms and the time that the agent takes."""


@pytest.fixture(params=["cni0", ""], ids=["bridge", "routed"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    with running(Cluster(tmp_path, DUAL, request.param)) as cluster:
        cluster.nodes[0].add("first")
        cluster.nodes[0].remove("first")
        yield cluster.nodes[0]


class Runtimes:
    """All runtimes of a node, and what they know together."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cycles = self.added = self.killed = 0
        self.holders: dict[str, str] = {}
        self._lock = threading.Lock()

    def work(self, number: int) -> None:
        chance = random.Random(f"{SEED}-{number}")
        for turn in range(CYCLES // RUNTIMES):
            self._cycle(f"r{number}-{turn % 3}", chance)
            with self._lock:
                self.cycles += 1

    def _cycle(self, name: str, chance: random.Random) -> None:
        self.node.make_netns(name)
        added = self._call("ADD", name, chance, killed=chance.random() < 0.4)
        if added is not None and added.status == 0:
            self._hold(name, added.addresses)
        elif added is not None:
            assert added.code == 11, added
        loses_netns = chance.random() < 0.3
        if loses_netns:
            self.node.remove_netns(name)
        self._let_go(name)
        kills = chance.randrange(3)
        for attempt in range(5):
            gone = self._call("DEL", name, chance, killed=attempt < kills, netns="" if loses_netns else None)
            if gone is not None:
                assert (gone.status, gone.stdout) == (0, ""), gone
                return
        raise AssertionError("no DEL came to its end")

    def _call(
        self, command: str, name: str, chance: random.Random, killed: bool, netns: str | None = None
    ) -> Answer | None:
        """What a plugin answered, None when it was killed before it had."""
        process = self.node.begin(self.node.variables(command, name, netns), json.dumps(self.node.conf()))
        if killed:
            try:
                process.wait(chance.uniform(*MOMENTS_S))
            except subprocess.TimeoutExpired:
                process.kill()
        out, err = process.communicate(timeout=60)
        if process.returncode < 0:
            with self._lock:
                self.killed += 1
            return None
        return Answer(status=process.returncode, stdout=out.decode(), stderr=err.decode())

    def _hold(self, name: str, addresses: list[str]) -> None:
        with self._lock:
            self.added += 1
            for address in addresses:
                assert address not in self.holders, f"{name} and {self.holders[address]} have {address}"
                self.holders[address] = name

    def _let_go(self, name: str) -> None:
        with self._lock:
            self.holders = {address: holder for address, holder in self.holders.items() if holder != name}


def test_kill_9_of_plugins_and_agent_at_random_points_leaks_nothing(node: Node) -> None:
    before = node.traces()
    runtimes, chance = Runtimes(node), random.Random(SEED)
    moments = sorted(chance.sample(range(10, CYCLES - 20), AGENT_KILLS))
    with ThreadPoolExecutor(RUNTIMES) as pool:
        work = [pool.submit(runtimes.work, number) for number in range(RUNTIMES)]
        for moment in moments:
            wait_until(
                lambda moment=moment: runtimes.cycles >= moment or any(one.done() for one in work),  # type: ignore[misc]
                "so much is done",
                60,
            )
            node.kill()
            node.start()
        for one in work:
            one.result(timeout=120)
    assert runtimes.cycles == CYCLES
    assert runtimes.added > CYCLES // 10, "most of what is not killed works"
    assert runtimes.killed > CYCLES // 10, "many are killed"
    spool = node.directory / "run" / "cni-spool"
    wait_until(lambda: not spool.exists() or not list(spool.glob("*.del")), "what was kept is done")
    wait_until(lambda: node.containers() == [], "no container is known any more")
    audit(node, before)


def audit(node: Node, before: dict[str, Any]) -> None:
    """Nothing is left: links, addresses, elements, files, descriptors, and nothing in the containers that there are."""
    keep = {"files"}
    names = [path.removeprefix(node.prefix) for path in os.listdir("/run/netns") if path.startswith(node.prefix)]
    for name in names:
        assert node.links_in(name) == set(), name
    wait_for_same(lambda: without(node.traces(), keep), without(before, keep))
    files = [path.name for path in (node.directory / "run").rglob("*")]
    unfinished = [name for name in files if name.endswith(".tmp")]
    assert sorted(set(files) - set(unfinished) - {"cni-spool"}) == ["agent.sock", "cni.sock"]
    node.remove_netns(*names)
    for name in ("new", "newer"):
        node.add(name)
    node.remove("new", "newer")


def without(traces: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in traces.items() if key not in keys}
