"""The lease rules, each as a short story: what the store shows, what the machine asks and says."""

from __future__ import annotations

import random
from typing import TypeVar

import msgspec
import pytest

from muslin.lease.machine import Step, step
from muslin.lease.values import (
    Action,
    AdvertisementChanged,
    Announce,
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
    Rules,
    SnapshotSeen,
    Stop,
    Wait,
)
from muslin.model.config import NetworkConfig
from muslin.model.lease import Lease
from tests.unit.lease.examples import CONFIG, DUAL, NOW, OTHER, RULES, SMALL, THERE, lease, machine, says, snapshot

Kind = TypeVar("Kind")
DAY = RULES.ttl_s
HOUR = 3600.0


def run(start: Machine, *events: Input, now: float = NOW, seed: int = 1) -> Step:
    """The machine after all events, and the actions of the last one."""
    done = Step(start, ())
    dice = random.Random(seed)
    for event in events:
        done = step(done.machine, event, now, dice)
    return done


def only(actions: tuple[Action, ...], kind: type[Kind]) -> Kind:
    (found,) = (action for action in actions if isinstance(action, kind))
    return found


def holder(held: Lease | None = None, rules: Rules = RULES, config: NetworkConfig = CONFIG) -> Machine:
    """A machine that holds a lease that it made itself, and has seen it in a snapshot."""
    held = held or lease("10.5.7.0/24", revision=5)
    fresh = Machine(advertisement=says(), previous=held.subnets, rules=rules)
    made = run(fresh, ConfigChanged(config), SnapshotSeen(snapshot(revision=4)), Created(held))
    done = run(made.machine, SnapshotSeen(snapshot(held, revision=5)))
    assert (done.machine.state, done.machine.confirmed) == ("holding", True)
    return msgspec.structs.replace(done.machine, previous=())


def taken_over(held: Lease) -> Machine:
    """A machine that has just taken this lease over."""
    begun = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(held)))
    assert isinstance(begun.machine.request, RenewLease)
    return run(begun.machine, Renewed(msgspec.structs.replace(begun.machine.request.lease, revision=11))).machine


# ---- the first lease ----


def test_nothing_is_asked_before_store_and_configuration_are_known() -> None:
    assert run(machine(), SnapshotSeen(snapshot())).machine.state == "idle"
    assert run(machine(), ConfigChanged(CONFIG)).machine.state == "idle"
    for events in (
        (SnapshotSeen(snapshot()), ConfigChanged(CONFIG)),
        (ConfigChanged(CONFIG), SnapshotSeen(snapshot())),
    ):
        done = run(machine(), *events)
        assert done.machine.state == "claiming"
        assert CONFIG.accepts(only(done.actions, CreateLease).lease.subnets)


def test_the_previous_subnet_is_asked_for_if_it_is_free_and_fits() -> None:
    previous = machine(previous=("10.5.7.0/24",))
    done = run(previous, ConfigChanged(CONFIG), SnapshotSeen(snapshot()))
    assert only(done.actions, CreateLease) == CreateLease(
        Lease(subnets=("10.5.7.0/24",), advertisement=says()), ttl_s=DAY
    )
    other = lease("10.5.7.0/24", of=says(THERE))
    done = run(previous, ConfigChanged(CONFIG), SnapshotSeen(snapshot(other)))
    assert only(done.actions, CreateLease).lease.subnets != ("10.5.7.0/24",)
    done = run(previous, ConfigChanged(OTHER), SnapshotSeen(snapshot()))
    assert OTHER.accepts(only(done.actions, CreateLease).lease.subnets)


def test_a_created_lease_is_announced_and_renewed_in_time() -> None:
    asked = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()))
    made = lease(*only(asked.actions, CreateLease).lease.subnets, revision=11)
    done = run(asked.machine, Created(made))
    assert only(done.actions, Announce).lease == made
    until = only(done.actions, Wait).until
    assert until is not None
    assert NOW + 0.9 * (DAY - HOUR) <= until <= NOW + DAY - HOUR


def test_nodes_that_start_together_do_not_renew_together() -> None:
    times = sorted(
        run(
            run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot())).machine,
            Created(lease("10.5.7.0/24")),
            seed=n,
        ).machine.wake_at
        or 0.0
        for n in range(100)
    )
    assert times[-1] - times[0] > HOUR


def test_a_lost_race_is_tried_again_among_the_others() -> None:
    """flannel's defect (a): the loser exits."""
    begun = run(machine(), ConfigChanged(NetworkConfig(pools=(SMALL,), backend="vxlan")), SnapshotSeen(snapshot()))
    asked = {only(begun.actions, CreateLease).lease.subnets}
    for _ in range(2):
        begun = run(begun.machine, CreateTaken())
        asked.add(only(begun.actions, CreateLease).lease.subnets)
    assert asked == {("10.5.0.2/31",), ("10.5.0.4/31",), ("10.5.0.6/31",)}
    done = run(begun.machine, CreateTaken())
    assert done.machine.state == "seeking"
    assert "no subnet is free" in done.machine.warning
    assert done.machine.wake_at is not None
    # A subnet that is given back ends the wait.
    others = [lease(subnet, of=says(THERE)) for subnet in ("10.5.0.2/31", "10.5.0.6/31")]
    done = run(done.machine, SnapshotSeen(snapshot(*others, revision=30)))
    assert only(done.actions, CreateLease).lease.subnets == ("10.5.0.4/31",)


def test_after_many_lost_races_the_store_is_read_anew() -> None:
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()), *[CreateTaken()] * 10)
    assert done.machine.state == "seeking"
    assert Refresh() in done.actions


def test_a_store_that_does_not_answer_is_asked_ever_less_often() -> None:
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()))
    pauses = []
    for _ in range(10):
        done = run(done.machine, CreateFailed("no leader"))
        assert "no leader" in done.machine.warning
        pauses.append((done.machine.wake_at or 0.0) - NOW)
        done = run(done.machine, Due())
    assert pauses[0] <= 1.0
    assert max(pauses) <= RULES.retry_s
    assert pauses[-1] >= RULES.retry_s / 2


# ---- one's own old lease ----


def test_the_own_lease_is_found_by_address_and_taken_over() -> None:
    old = lease("10.5.9.0/24", of=says(mac="02:00:00:00:00:aa", backend="udp"), revision=8)
    done = run(machine(previous=("10.5.7.0/24",)), ConfigChanged(CONFIG), SnapshotSeen(snapshot(old)))
    assert done.machine.state == "claiming"
    assert only(done.actions, RenewLease).lease == lease("10.5.9.0/24", of=says(), revision=8)
    done = run(done.machine, Renewed(lease("10.5.9.0/24", revision=11)))
    assert done.machine.state == "holding"
    assert done.machine.warning == ""


def test_the_own_lease_of_another_network_is_given_back() -> None:
    old = lease("10.6.9.0/24", revision=8)
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(old)))
    assert (done.machine.state, done.machine.request) == ("moving", DeleteLease(old))
    assert "10.6.9.0-24" in done.machine.sentence
    done = run(done.machine, Deleted())
    assert CONFIG.accepts(only(done.actions, CreateLease).lease.subnets)


def test_what_cannot_be_given_back_is_looked_at_again() -> None:
    old = lease("10.6.9.0/24", revision=8)
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(old)), DeleteFailed("no leader"))
    assert done.machine.state == "seeking"
    newer = msgspec.structs.replace(old, revision=12)
    done = run(done.machine, SnapshotSeen(snapshot(newer, revision=12)))
    assert only(done.actions, DeleteLease).lease == newer


def test_a_takeover_that_was_overtaken_looks_again() -> None:
    done = run(
        machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(lease("10.5.9.0/24", of=says(mac="02:00:00:00:00:aa"))))
    )
    done = run(done.machine, RenewLost())
    assert done.machine.state == "seeking"
    assert Refresh() in done.actions


def test_a_second_family_keeps_the_subnet_of_the_first() -> None:
    old = lease("10.5.9.0/24", revision=8)
    done = run(machine(), ConfigChanged(DUAL), SnapshotSeen(snapshot(old)), Deleted())
    assert only(done.actions, CreateLease).lease.subnets == ("10.5.9.0/24", "fd00:5:0:9::/64")


# ---- reservations ----


def test_a_reservation_for_this_node_is_held_without_end() -> None:
    """flannel's defect (b): the next start makes it a lease of 24 hours."""
    reserved = lease("10.5.9.0/24", expires_at=None, of=says(mac="02:00:00:00:00:aa"), revision=8)
    ordinary = lease("10.5.1.0/24", revision=9)
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(ordinary, reserved)))
    assert only(done.actions, RenewLease).lease.subnets == reserved.subnets
    written = lease("10.5.9.0/24", expires_at=None, revision=11)
    done = run(done.machine, Renewed(written))
    assert (done.machine.state, done.machine.lease, done.machine.wake_at) == ("holding", written, None)


def test_a_reservation_that_says_it_all_already_is_not_even_written() -> None:
    reserved = lease("10.5.9.0/24", expires_at=None, revision=8)
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(reserved)))
    assert (done.machine.state, done.machine.lease) == ("holding", reserved)
    assert not any(isinstance(action, RenewLease) for action in done.actions)


def test_a_reservation_of_another_network_is_left_alone() -> None:
    reserved = lease("10.6.9.0/24", expires_at=None, revision=8)
    done = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(reserved)))
    assert CONFIG.accepts(only(done.actions, CreateLease).lease.subnets)
    assert "the reservation 10.6.9.0-24 for this node stays unused" in done.machine.warning


def test_a_reservation_survives_uninstalling_and_a_change_of_network() -> None:
    reserved = run(
        machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot(lease("10.5.9.0/24", expires_at=None, revision=8)))
    ).machine
    done = run(reserved, Stop(release=True))
    assert (done.machine.state, done.machine.lease) == ("released", None)
    assert "reservation" in done.machine.sentence
    done = run(reserved, ConfigChanged(OTHER))
    assert OTHER.accepts(only(done.actions, CreateLease).lease.subnets)


@pytest.mark.parametrize(("before", "after", "wakes"), [(NOW + DAY, None, None), (None, NOW + DAY, NOW)])
def test_a_lease_becomes_a_reservation_and_back(before: float | None, after: float | None, wakes: float | None) -> None:
    held = holder(lease("10.5.7.0/24", expires_at=before, revision=5))
    seen = lease("10.5.7.0/24", expires_at=after, revision=6)
    done = run(held, SnapshotSeen(snapshot(seen, revision=6)))
    assert (done.machine.state, done.machine.lease, done.machine.wake_at) == ("holding", seen, wakes)


# ---- renewing ----


def test_a_renewal_compares_the_revision_that_is_known() -> None:
    done = run(holder(), Due())
    assert only(done.actions, RenewLease) == RenewLease(lease("10.5.7.0/24", revision=5), DAY)
    renewed = lease("10.5.7.0/24", revision=5, expires_at=NOW + 2 * DAY)
    done = run(done.machine, Renewed(renewed), now=NOW + DAY)
    assert (done.machine.state, done.machine.lease) == ("holding", renewed)


def test_a_renewal_that_fails_is_tried_again_and_the_lease_outlives_its_end() -> None:
    done = run(run(holder(), Due()).machine, RenewFailed("no leader"))
    assert done.machine.state == "holding"
    assert done.machine.warning.startswith("cannot renew the lease 10.5.7.0-24: no leader; it ends in 86400 s")
    assert NOW + RULES.retry_s / 2 <= (done.machine.wake_at or 0.0) <= NOW + RULES.retry_s
    late = NOW + 2 * DAY
    done = run(run(done.machine, Due(), now=late).machine, RenewFailed("no leader"), now=late)
    assert done.machine.lease is not None
    assert "its time is over" in done.machine.warning


def test_what_the_node_says_is_written_at_once() -> None:
    words = says(mac="02:00:00:00:00:08")
    done = run(holder(), AdvertisementChanged(words))
    assert only(done.actions, RenewLease).lease.advertisement == words
    # A second change while the first is being written is written next.
    words = says(mac="02:00:00:00:00:09")
    done = run(
        done.machine, AdvertisementChanged(words), Renewed(lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:08")))
    )
    assert only(done.actions, RenewLease).lease.advertisement == words


def test_a_renumbered_interface_keeps_the_lease() -> None:
    done = run(holder(), AdvertisementChanged(says("192.0.2.77")))
    assert only(done.actions, RenewLease).lease.subnets == ("10.5.7.0/24",)
    seen = lease("10.5.7.0/24", of=says("192.0.2.77"), revision=6)
    done = run(done.machine, SnapshotSeen(snapshot(seen, revision=6)), Renewed(seen))
    assert (done.machine.state, done.machine.lease) == ("holding", seen)


def test_an_answer_that_got_lost_is_no_stranger() -> None:
    done = run(run(holder(), AdvertisementChanged(says(mac="02:00:00:00:00:08"))).machine, RenewFailed("timeout"))
    seen = lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:08"), revision=6, expires_at=253402300799.0)
    done = run(done.machine, SnapshotSeen(snapshot(seen, revision=6)))
    assert done.machine.state == "holding"
    assert done.machine.lease == msgspec.structs.replace(seen, expires_at=NOW + DAY), "only a renewal tells the end"


def test_a_snapshot_from_before_the_last_write_says_nothing() -> None:
    fresh = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()), Created(lease("10.5.7.0/24", revision=15)))
    assert run(fresh.machine, SnapshotSeen(snapshot(revision=14))) == (fresh.machine, ())


def test_the_margin_must_be_less_than_the_lease() -> None:
    with pytest.raises(ValueError, match="the renewal margin is 100 s; expected more than 0 and less than"):
        Rules(ttl_s=100.0, renew_margin_s=100.0)


# ---- losing ----


def test_a_lease_that_ended_while_the_store_was_away_is_asked_for_again() -> None:
    done = run(holder(), SnapshotSeen(snapshot(revision=20)))
    assert done.machine.state == "reclaiming"
    assert done.machine.lease is not None, "it stays in force: nobody else has it"
    assert only(done.actions, CreateLease).lease.subnets == ("10.5.7.0/24",)
    done = run(done.machine, Created(lease("10.5.7.0/24", revision=21)))
    assert (done.machine.state, done.machine.warning) == ("holding", "")


@pytest.mark.parametrize("theirs", ["10.5.7.0/24", "10.5.7.128/25"])
def test_a_lease_that_another_node_has_is_lost(theirs: str) -> None:
    done = run(holder(), SnapshotSeen(snapshot(lease(theirs, of=says(THERE), revision=12), revision=20)))
    assert (done.machine.state, done.machine.lease, done.machine.wake_at) == ("lost", None, None)
    told = only(done.actions, Announce)
    assert told.lease is None
    assert told.sentence.startswith("lost the lease 10.5.7.0-24: it ")
    assert told.sentence.endswith("is now held by the node at 192.0.2.2")
    # The end: neither time nor news wakes it, but another address or network does.
    assert run(done.machine, Due(), SnapshotSeen(snapshot(revision=30))).machine.state == "lost"
    assert run(done.machine, AdvertisementChanged(says(mac="02:00:00:00:00:08"))).machine.state == "lost"
    assert run(done.machine, ConfigChanged(msgspec.structs.replace(CONFIG, backend="udp"))).machine.state == "lost"
    assert run(done.machine, AdvertisementChanged(says("192.0.2.77"))).machine.state == "claiming"
    assert run(done.machine, ConfigChanged(OTHER)).machine.state == "claiming"


def test_a_race_for_the_old_subnet_is_settled_by_what_the_store_shows() -> None:
    done = run(run(holder(), SnapshotSeen(snapshot(revision=20))).machine, CreateTaken())
    assert done.machine.state == "holding"
    assert Refresh() in done.actions
    theirs = lease("10.5.7.0/24", of=says(THERE), revision=21)
    assert run(done.machine, SnapshotSeen(snapshot(theirs, revision=21))).machine.state == "lost"
    ours = lease("10.5.7.0/24", revision=21)
    assert run(done.machine, SnapshotSeen(snapshot(ours, revision=21))).machine.lease == ours


def test_a_renewal_that_somebody_forestalled_goes_and_sees() -> None:
    done = run(run(holder(), Due()).machine, RenewLost())
    assert done.machine.state == "holding"
    assert Refresh() in done.actions
    assert run(done.machine, SnapshotSeen(snapshot(revision=20))).machine.state == "reclaiming"
    # What the watch has shown meanwhile need not be asked for again.
    renewing = run(
        holder(), Due(), SnapshotSeen(snapshot(lease("10.5.7.0/24", of=says(THERE), revision=12), revision=20))
    )
    assert renewing.machine.state == "renewing"
    assert run(renewing.machine, RenewLost()).machine.state == "lost"


def test_a_reclaim_without_answer_goes_on() -> None:
    done = run(run(holder(), SnapshotSeen(snapshot(revision=20))).machine, CreateFailed("timeout"))
    assert done.machine.state == "holding"
    ours = lease("10.5.7.0/24", revision=21)
    assert run(done.machine, SnapshotSeen(snapshot(ours, revision=21))).machine.lease == ours


# ---- two agents with one address ----


def test_the_holder_defends_its_lease_against_an_agent_with_its_address() -> None:
    rewritten = lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:bb"), revision=12)
    done = run(holder(), SnapshotSeen(snapshot(rewritten, revision=12)))
    asked = only(done.actions, RenewLease).lease
    assert (asked.revision, asked.advertisement) == (12, says())
    assert only(done.actions, Announce).warning.startswith("another agent uses this node's public address: it wrote")
    done = run(done.machine, Renewed(lease("10.5.7.0/24", revision=13)))
    assert done.machine.warning, "people have to see it for a while"
    # Again at once: once a retry is enough.
    done = run(done.machine, SnapshotSeen(snapshot(msgspec.structs.replace(rewritten, revision=14), revision=14)))
    assert (done.machine.state, done.machine.wake_at) == ("holding", NOW + RULES.retry_s)
    later = run(done.machine, Due(), now=NOW + RULES.retry_s)
    assert only(later.actions, RenewLease).lease == lease("10.5.7.0/24", revision=14)


def test_the_newcomer_gives_up() -> None:
    newcomer = taken_over(lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:aa"), revision=9))
    written_back = lease("10.5.7.0/24", of=says(mac="02:00:00:00:00:aa"), revision=12)
    done = run(newcomer, SnapshotSeen(snapshot(written_back, revision=12)), now=NOW + 1.0)
    assert done.machine.state == "lost"
    assert "another agent uses this node's public address" in done.machine.sentence
    assert "--public-ip" in done.machine.sentence


# ---- names of two subnets ----


def test_a_subnet_shared_with_an_earlier_lease_is_given_up() -> None:
    mine = lease("10.5.7.0/24", "fd00:5:0:9::/64", revision=11)
    first = lease("10.5.9.0/24", "fd00:5:0:9::/64", of=says(THERE), revision=10)
    later = msgspec.structs.replace(first, revision=12)
    begun = run(machine(), ConfigChanged(DUAL), SnapshotSeen(snapshot(revision=9)), Created(mine)).machine
    done = run(begun, SnapshotSeen(snapshot(mine, first, revision=11)))
    assert (done.machine.state, done.machine.request) == ("moving", DeleteLease(mine))
    assert "10.5.9.0-24&fd00:5:0:9::-64 of the node at 192.0.2.2 was there before" in done.machine.sentence
    asked = only(run(done.machine, Deleted()).actions, CreateLease).lease.subnets
    assert "fd00:5:0:9::/64" not in asked
    assert run(begun, SnapshotSeen(snapshot(mine, later, revision=12))).machine.state == "holding", "the other one goes"


# ---- another network, and stopping ----


def test_another_network_moves_the_holder() -> None:
    done = run(holder(), ConfigChanged(OTHER))
    assert (done.machine.state, done.machine.lease) == ("moving", None)
    assert only(done.actions, Announce).lease is None
    assert OTHER.accepts(only(run(done.machine, Deleted()).actions, CreateLease).lease.subnets)
    assert run(holder(), ConfigChanged(msgspec.structs.replace(CONFIG, backend="udp"))).machine.state == "holding"


def test_another_network_while_an_answer_is_awaited() -> None:
    asked = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()), ConfigChanged(OTHER))
    done = run(asked.machine, Created(lease("10.5.7.0/24", revision=11)))
    assert (done.machine.state, done.machine.lease) == ("moving", None)


def test_a_stop_keeps_the_lease_for_the_next_start() -> None:
    done = run(holder(), Stop())
    assert done.machine.state == "released"
    assert done.machine.lease is not None, "traffic goes on"
    assert not any(isinstance(action, DeleteLease) for action in done.actions)


def test_a_release_gives_the_lease_back_once_it_is_known() -> None:
    done = run(holder(), Stop(release=True))
    assert (done.machine.state, only(done.actions, DeleteLease).lease.subnets) == ("releasing", ("10.5.7.0/24",))
    assert run(done.machine, Deleted()).machine.state == "released"
    failed = run(done.machine, DeleteFailed("no leader")).machine
    assert (failed.state, failed.warning) == ("released", "no leader")
    asked = run(machine(), ConfigChanged(CONFIG), SnapshotSeen(snapshot()), Stop(release=True)).machine
    assert asked.state == "releasing"
    made = lease("10.5.7.0/24", revision=11)
    assert only(run(asked, Created(made)).actions, DeleteLease).lease == made
    assert run(asked, CreateTaken()).machine.state == "released"
    assert run(machine(), Stop(release=True)).machine.sentence == "stopped; there was no lease to give back"
