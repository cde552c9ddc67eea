"""Many machines and one store, with answers that get lost, snapshots that come late, and days that pass.

After the storm, some rounds without faults: then every node holds a lease that the store has, no two share an address,
and what was reserved is reserved still.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.lease.machine import step
from muslin.lease.values import (
    Action,
    AdvertisementChanged,
    ConfigChanged,
    Created,
    CreateFailed,
    CreateLease,
    CreateTaken,
    Deleted,
    DeleteFailed,
    DeleteLease,
    Due,
    Input,
    Machine,
    Refresh,
    Renewed,
    RenewFailed,
    RenewLease,
    RenewLost,
    SnapshotSeen,
    Wait,
)
from muslin.model.address import overlaps
from muslin.model.config import NetworkConfig
from muslin.model.lease import ClusterSnapshot
from tests.unit.lease.examples import CONFIG, DUAL, NOW, OTHER, RULES, Lost, Taken, ToyStore, lease, says

NODES = 6
RESERVED = lease("10.5.200.0/24", of=says("192.0.2.101", "02:00:00:00:01:01"), expires_at=None, revision=1)
FOREIGN = lease("10.5.201.0/24", of=says("192.0.2.250", "02:00:00:00:01:fa"), expires_at=None, revision=1)


class Node:
    """A machine and what an agent would do for it; ``fault`` says whether a call goes wrong, and how."""

    def __init__(self, number: int, store: ToyStore, config: NetworkConfig, dice: random.Random) -> None:
        self.number, self.store, self.dice = number, store, dice
        self.words = says(f"192.0.2.{100 + number}", f"02:00:00:00:01:{number:02x}")
        self.machine = Machine(advertisement=self.words)
        self.fault: Callable[[], str] = lambda: ""
        self.due_at: float | None = None
        self.feed(ConfigChanged(config))

    def restart(self, config: NetworkConfig) -> None:
        """kill -9: all is forgotten but subnet.env."""
        previous = self.machine.lease.subnets if self.machine.lease else ()
        self.machine, self.due_at = Machine(advertisement=self.words, previous=previous), None
        self.feed(ConfigChanged(config))

    def feed(self, event: Input) -> None:
        self.machine, actions = step(self.machine, event, self.store.now, self.dice)
        for action in actions:
            if (answer := self._do(action)) is not None:
                self.feed(answer)

    def _do(self, action: Action) -> Input | None:
        match action:
            case Wait(until):
                self.due_at = until
            case Refresh():
                return None if self.fault() else SnapshotSeen(self.store.snapshot())
            case CreateLease() | RenewLease() | DeleteLease():
                return self._ask(action)
        return None

    def _ask(self, action: CreateLease | RenewLease | DeleteLease) -> Input:
        fault = self.fault()
        answer: Input
        if fault == "never arrived":
            return self._unknown(action)
        try:
            match action:
                case CreateLease():
                    answer = Created(self.store.create(action))
                case RenewLease():
                    answer = Renewed(self.store.renew(action))
                case DeleteLease():
                    self.store.delete(action)
                    answer = Deleted()
        except Taken:
            answer = CreateTaken()
        except Lost:
            answer = RenewLost() if isinstance(action, RenewLease) else DeleteFailed("changed")
        return self._unknown(action) if fault else answer

    @staticmethod
    def _unknown(action: CreateLease | RenewLease | DeleteLease) -> Input:
        match action:
            case CreateLease():
                return CreateFailed("timeout")
            case RenewLease():
                return RenewFailed("timeout")
            case DeleteLease():
                return DeleteFailed("timeout")

    def wake(self) -> None:
        if self.due_at is not None and self.due_at <= self.store.now:
            self.feed(Due())


def calm(nodes: list[Node], store: ToyStore) -> None:
    for node in nodes:
        node.fault = lambda: ""
    for _ in range(12):
        store.now += RULES.retry_s
        for node in nodes:
            node.wake()
        for node in nodes:
            node.feed(SnapshotSeen(store.snapshot()))


def check(nodes: list[Node], store: ToyStore, config: NetworkConfig) -> None:
    kept = store.snapshot()
    held = [node.machine.lease for node in nodes]
    for node, mine in zip(nodes, held, strict=True):
        assert node.machine.state == "holding", node.machine.sentence
        assert mine is not None
        assert config.accepts(mine.subnets)
        assert mine in kept.leases or store.leases[mine.name].revision == mine.revision
        assert mine.advertisement == node.words
    subnets = [subnet for mine in held if mine for subnet in mine.subnets]
    for index, subnet in enumerate(subnets):
        assert not any(overlaps(subnet, other) for other in (*subnets[:index], *FOREIGN.subnets))
    assert store.leases[FOREIGN.name] == FOREIGN
    assert store.leases[RESERVED.name].expires_at is None


STORMS = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, 9)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(STORMS, st.integers(0, 1 << 32), st.sampled_from([CONFIG, DUAL]))
def test_after_any_storm_all_is_well(storm: list[tuple[int, int]], seed: int, config: NetworkConfig) -> None:
    dice = random.Random(seed)
    store = ToyStore(RESERVED, FOREIGN)
    nodes = [Node(number, store, config, dice) for number in range(NODES)]
    old: ClusterSnapshot = store.snapshot()
    for node in nodes:
        node.fault = lambda: dice.choice(["", "", "", "never arrived", "answer lost"])
        node.feed(SnapshotSeen(old))
    for number, what in storm:
        node = nodes[number]
        if what < 3:
            node.feed(SnapshotSeen(store.snapshot()))
        elif what == 3:
            node.feed(SnapshotSeen(old))
        elif what == 4:
            old = store.snapshot()
        elif what == 5:
            store.now += RULES.retry_s
        elif what == 6:
            store.now += RULES.ttl_s * 0.9
        elif what == 7:
            node.restart(config)
        elif what == 8:
            node.words = says(node.words.addresses[0], f"02:00:00:00:02:{dice.randrange(256):02x}")
            node.feed(AdvertisementChanged(node.words))
        node.wake()
    # Whoever lost to another node that was there first is at its end, as it should be; its operator restarts it.
    calm(nodes, store)
    for node in nodes:
        if node.machine.state == "lost":
            node.restart(config)
    calm(nodes, store)
    check(nodes, store, config)


def test_all_nodes_move_to_another_network() -> None:
    store = ToyStore(FOREIGN)
    nodes = [Node(number, store, CONFIG, random.Random(number)) for number in range(NODES)]
    calm(nodes, store)
    for node in nodes:
        node.feed(ConfigChanged(OTHER))
    calm(nodes, store)
    assert all(OTHER.accepts(node.machine.lease.subnets) for node in nodes if node.machine.lease)
    assert len(store.leases) == NODES + 1, "the old leases are given back"


def test_a_month_without_trouble_renews_every_lease() -> None:
    store = ToyStore(FOREIGN)
    nodes = [Node(number, store, CONFIG, random.Random(number)) for number in range(NODES)]
    calm(nodes, store)
    first = [node.machine.lease.subnets if node.machine.lease else () for node in nodes]
    for _ in range(30 * 24):
        store.now += 3600.0
        for node in nodes:
            node.wake()
    assert store.now > NOW + 29 * RULES.ttl_s
    assert [node.machine.lease.subnets if node.machine.lease else () for node in nodes] == first
    assert len(store.snapshot().leases) == NODES + 1


def test_an_agent_with_the_address_of_another_gives_up_and_the_other_goes_on() -> None:
    store = ToyStore(FOREIGN)
    holder = Node(1, store, CONFIG, random.Random(1))
    calm([holder], store)
    store.now += RULES.ttl_s / 3
    twin = Node(1, store, CONFIG, random.Random(2))
    twin.words = says(holder.words.addresses[0], "02:00:00:00:03:03")
    twin.restart(CONFIG)
    twin.feed(SnapshotSeen(store.snapshot()))
    assert twin.machine.state == "holding"
    for node in (holder, twin, holder, twin):
        node.feed(SnapshotSeen(store.snapshot()))
    assert (holder.machine.state, twin.machine.state) == ("holding", "lost")
    assert holder.machine.warning
    assert holder.machine.lease is not None
    assert store.leases[holder.machine.lease.name].advertisement == holder.words
