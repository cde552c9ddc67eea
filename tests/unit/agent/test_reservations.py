"""Who has which address: written before it is believed, the same after a restart, and never lost to a ``kill -9``."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.agent.reservation_file import Change
from muslin.agent.reservations import Reservation, Reservations
from muslin.errors import MuslinError
from muslin.lease.addresses import AddressOutside, AddressTaken, PoolExhausted
from tests.unit.agent.reservation_examples import SUBNETS, known, reservation

KEY = ("web1", "eth0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "containers.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Reservations]:
    journal = Reservations.open(path, SUBNETS)
    yield journal
    journal.close()


def reopened(journal: Reservations, path: Path, subnets: tuple[str, ...] = SUBNETS) -> Reservations:
    """What another agent finds, after this one was killed: it never closed its file."""
    other = Reservations.open(path, subnets)
    other.close()
    return other


# ---- adding, completing, removing ------------------------------------------------------------------------


def test_a_reservation_has_an_address_of_each_family_and_their_gateways(journal: Reservations) -> None:
    asked = reservation(
        mac="02:00:00:00:00:01",
        host_link="mus0123456789ab",
        mode="routed",
        mtu=1450,
        hairpin=True,
        default_route=False,
        spoof_check=False,
        netns_path="/run/netns/x",
        netns_inode=4026532000,
        boot_id="b",
        at=1.8e9,
    )
    made = journal.add(asked)
    assert made == msgspec.structs.replace(
        asked, addresses=("10.5.3.2/29", "fd00:5:0:3::2/64"), gateways=("10.5.3.1", "fd00:5:0:3::1")
    )
    assert (journal.get(*KEY), journal.all()) == (made, [made])
    assert journal.by_address("10.5.3.2") == journal.by_address("fd00:5:0:3::2/64") == made
    assert journal.by_address("10.5.3.3") is None
    assert journal.get("web1", "eth1") is None
    assert str(made) == "web1/eth0"


def test_everything_is_the_same_after_a_restart(journal: Reservations, path: Path) -> None:
    for name in "abcd":
        journal.add(reservation(name, at=ord(name)))
    journal.complete(("b", "eth0"))
    journal.add(reservation("s"), wanted=["10.5.3.6", "fd00:5:0:3::ffff"])
    for name in "ca":
        journal.remove((name, "eth0"))
    assert known(reopened(journal, path)) == known(journal)
    assert [pool.freed() for pool in journal.pools] == [["10.5.3.4", "10.5.3.2"], []]
    assert journal.pools[1].choose() == "fd00:5:0:3::6/64", "an address of a large subnet rests, too"


def test_a_complete_one_is_told_from_one_that_was_cut_short(journal: Reservations, path: Path) -> None:
    journal.add(reservation())
    assert not reopened(journal, path).all()[0].complete
    made = journal.complete(KEY)
    assert made.complete
    assert reopened(journal, path).all() == [made] == journal.all()
    with pytest.raises(KeyError):
        journal.complete(("other", "eth0"))


def test_a_removal_may_be_repeated_and_releases_by_key_alone(journal: Reservations, path: Path) -> None:
    """containerd DELs two or three times, and a late DEL must not free a living pod's address."""
    first = journal.add(reservation())
    assert journal.remove(KEY) == first
    assert journal.remove(KEY) is None
    second = journal.add(reservation("web2"), wanted=["10.5.3.2"])
    assert journal.remove(KEY) is None
    assert journal.by_address("10.5.3.2") == second
    assert reopened(journal, path).all() == [second]


def test_a_network_reload_gets_the_old_address_back(journal: Reservations) -> None:
    """``podman network reload`` is a DEL and an ADD that wants what was there, in CNI_ARGS."""
    before = journal.add(reservation())
    journal.remove(KEY)
    journal.add(reservation("web2"))
    assert journal.add(reservation(), wanted=["10.5.3.2"]).addresses[0] == before.addresses[0]


def test_another_thread_than_the_opener_may_use_it(journal: Reservations) -> None:
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(journal.add, reservation()).result() == journal.get(*KEY)


def test_two_interfaces_of_one_container_are_two_reservations(journal: Reservations) -> None:
    one, two = journal.add(reservation()), journal.add(reservation(ifname="eth1"))
    assert one.addresses != two.addresses
    journal.remove(KEY)
    assert journal.all() == [two]


# ---- the same container again ----------------------------------------------------------------------------


def test_a_container_that_is_added_again_keeps_its_addresses(journal: Reservations, path: Path) -> None:
    """A host reboot with podman: no DEL, and an ADD of the same id in a new namespace."""
    before = journal.add(reservation(netns_inode=1, boot_id="first"))
    journal.add(reservation("web2"))
    journal.complete(KEY)
    again = journal.add(reservation(netns_inode=2, boot_id="second"))
    assert again.addresses == before.addresses
    assert (again.boot_id, again.complete) == ("second", False)
    assert journal.add(reservation(netns_inode=2, boot_id="second"), wanted=["10.5.3.2"]) == again
    assert reopened(journal, path).get(*KEY) == again


def test_it_gets_another_address_where_it_wants_one(journal: Reservations, path: Path) -> None:
    journal.add(reservation())
    again = journal.add(reservation(), wanted=["10.5.3.5"])
    assert again.addresses == ("10.5.3.5/29", "fd00:5:0:3::2/64")
    assert (journal.by_address("10.5.3.2"), journal.pools[0].freed()) == (None, ["10.5.3.2"])
    assert known(reopened(journal, path)) == known(journal)


# ---- what cannot be had ----------------------------------------------------------------------------------


def test_a_taken_address_names_its_holder(journal: Reservations) -> None:
    journal.add(reservation())
    with pytest.raises(AddressTaken, match=r"10\.5\.3\.2 is taken by web1/eth0"):
        journal.add(reservation("web2"), wanted=["10.5.3.2"])
    with pytest.raises(AddressTaken, match="by web1/eth0"):
        journal.add(reservation("web2"), wanted=["10.5.3.2/29", "fd00:5:0:3::9"])
    assert [pool.taken for pool in journal.pools] == [1, 1]


def test_whatever_cannot_be_had_changes_nothing(journal: Reservations, path: Path) -> None:
    for name in "abcde":
        journal.add(reservation(name))
    before = known(journal)
    for wanted, error in (
        ([], PoolExhausted),
        (["10.5.3.3"], AddressTaken),
        (["10.5.3.7"], AddressOutside),
        (["10.9.0.1"], AddressOutside),
    ):
        with pytest.raises(error):
            journal.add(reservation(), wanted=wanted)
    assert known(journal) == before == known(reopened(journal, path))


def test_without_a_lease_nothing_is_handed_out(path: Path) -> None:
    journal = Reservations.open(path)
    with pytest.raises(MuslinError, match="no subnet"):
        journal.add(reservation())
    journal.set_subnets(SUBNETS)
    assert journal.add(reservation()).addresses[0] == "10.5.3.2/29"
    journal.close()


# ---- another lease ---------------------------------------------------------------------------------------


def test_when_the_lease_changes_old_reservations_stay_until_they_go(journal: Reservations, path: Path) -> None:
    old = journal.add(reservation())
    journal.add(reservation("gone"))
    journal.remove(("gone", "eth0"))
    journal.set_subnets(["10.5.9.0/29"])
    new = journal.add(reservation("web2"))
    assert (journal.get(*KEY), journal.by_address("10.5.3.2")) == (old, old)
    assert new.addresses == ("10.5.9.2/29",)
    again = reopened(journal, path, ("10.5.9.0/29",))
    assert known(again) == known(journal)
    assert journal.remove(KEY) == old
    assert [pool.freed() for pool in journal.pools] == [[]], "an address of another subnet waits in no queue"
    assert known(reopened(journal, path, ("10.5.9.0/29",))) == known(journal)


def test_a_container_that_is_added_again_after_the_lease_changed_moves(journal: Reservations, path: Path) -> None:
    journal.add(reservation())
    journal.set_subnets(["10.5.9.0/29", SUBNETS[1]])
    again = journal.add(reservation(boot_id="second"))
    assert again.addresses == ("10.5.9.2/29", "fd00:5:0:3::2/64")
    assert journal.by_address("10.5.3.2") is None
    assert reopened(journal, path).all() == [again]


def test_a_subnet_that_comes_back_finds_its_addresses_taken(journal: Reservations) -> None:
    journal.add(reservation())
    journal.set_subnets([])
    journal.set_subnets(SUBNETS)
    assert journal.pools[0].taken == 1
    assert journal.add(reservation("web2")).addresses == ("10.5.3.3/29", "fd00:5:0:3::3/64")


def test_a_longer_subnet_in_the_old_one_knows_what_is_taken(journal: Reservations) -> None:
    journal.add(reservation())
    journal.set_subnets(["10.5.3.0/28"])
    assert journal.add(reservation("web2")).addresses == ("10.5.3.3/28",)
    assert journal.add(reservation(boot_id="second")).addresses == ("10.5.3.2/28",)


def test_the_same_lease_again_changes_nothing(journal: Reservations) -> None:
    pools = journal.pools
    journal.set_subnets(list(SUBNETS))
    assert journal.pools is pools


def test_a_lease_counts_also_where_the_disk_refuses(
    journal: Reservations, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Change) -> None:
        raise MuslinError("containers.db cannot be written: disk full")

    monkeypatch.setattr(journal._file, "write", refuse)
    journal.set_subnets(["10.5.9.0/29"])
    assert [pool.subnet for pool in journal.pools] == ["10.5.9.0/29"]
    assert "disk full" in caplog.text


def test_what_the_disk_refuses_is_not_believed(journal: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.add(reservation())
    before = known(journal)

    def refuse(_: Change) -> None:
        raise MuslinError("containers.db cannot be written: disk full")

    monkeypatch.setattr(journal._file, "write", refuse)
    changes: list[Callable[[], object]] = [
        lambda: journal.add(reservation("web2")),
        lambda: journal.add(reservation(), wanted=["10.5.3.5"]),
        lambda: journal.complete(KEY),
        lambda: journal.remove(KEY),
    ]
    for change in changes:
        with pytest.raises(MuslinError, match="disk full"):
            change()
        assert known(journal) == before


# ---- rows that make no sense -----------------------------------------------------------------------------


def value_of(made: Reservation) -> str:
    return msgspec.json.encode(made).decode()


GOOD = reservation("bad", addresses=("10.5.3.5/29",), gateways=("10.5.3.1",))


@pytest.mark.parametrize(
    "value",
    [
        *("", "{", "[]", "null", "[" * 100_000, '{"container_id": "bad"}'),
        value_of(reservation("other", addresses=("10.5.3.5/29",))),
        value_of(reservation("bad", ifname="eth1", addresses=("10.5.3.5/29",))),
        value_of(msgspec.structs.replace(GOOD, addresses=())),
        value_of(msgspec.structs.replace(GOOD, addresses=("10.5.3.5",))),
        value_of(msgspec.structs.replace(GOOD, addresses=("10.5.3.5/33",))),
        value_of(msgspec.structs.replace(GOOD, addresses=("x/29",))),
        value_of(msgspec.structs.replace(GOOD, addresses=("10.5.3.5/29", "10.5.3.6/29"))),
        value_of(msgspec.structs.replace(GOOD, addresses=("10.5.3.2/29",))),  # web1's
        value_of(msgspec.structs.replace(GOOD, gateways=("10.5.3.1/29",))),
        value_of(GOOD).replace('"bridge"', '"macvlan"'),
        value_of(GOOD).replace('"at":0.0', '"at":"then"'),
    ],
    ids=lambda value: value[:40] or "empty",
)
def test_a_row_that_makes_no_sense_is_dropped_and_said(
    journal: Reservations, path: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    made = journal.add(reservation(at=-1.0))
    journal._file.write(Change(put=(("bad", "eth0", value),)))
    again = reopened(journal, path)
    assert again.all() == [made]
    assert "bad/eth0" in caplog.text
    assert "dropped" in caplog.text
    caplog.clear()
    assert reopened(journal, path).all() == [made]
    assert not caplog.text, "it is dropped for good"


def test_a_good_row_is_not(journal: Reservations, path: Path) -> None:
    journal._file.write(Change(put=(("bad", "eth0", value_of(GOOD)),)))
    assert reopened(journal, path).all() == [GOOD]


def test_queues_and_cursors_that_make_no_sense_are_passed_over(journal: Reservations, path: Path) -> None:
    journal.add(reservation())
    journal._file.write(
        Change(
            freed=("x", "", "10.9.0.1", "10.5.3.2", "10.5.3.4"), cursors={SUBNETS[0]: -3, "x": 1, SUBNETS[1]: 10**50}
        )
    )
    again = reopened(journal, path)
    assert [pool.freed() for pool in again.pools] == [["10.5.3.4"], []]
    assert again.pools[0].choose() == "10.5.3.3/29"
    assert again.pools[1].choose() == "fd00:5:0:3::3/64"


# ---- any history, and a death in the midst of it ---------------------------------------------------------

STEPS = 400


def history(seed: int) -> Iterator[Callable[[Reservations], object]]:
    """What runtimes might ask of a node, by chance but always the same for one seed."""
    dice = random.Random(seed)

    def attempt(act: Callable[[Reservations], object]) -> Callable[[Reservations], object]:
        def step(journal: Reservations) -> object:
            try:
                return act(journal)
            except (ValueError, KeyError, MuslinError) as error:
                return type(error)

        return step

    for at in range(STEPS):
        key = (dice.choice("abcdefgh"), "eth0")
        wanted = [f"10.5.3.{dice.randrange(9)}"] if dice.random() < 0.3 else []
        asked = reservation(key[0], at=float(at), boot_id=str(dice.randrange(2)))
        subnets = dice.choice((SUBNETS, ("10.5.3.0/28",), SUBNETS[1:]))
        yield attempt(
            dice.choices(
                (
                    lambda journal, asked=asked, wanted=wanted: journal.add(asked, wanted),
                    lambda journal, key=key: journal.complete(key),
                    lambda journal, key=key: journal.remove(key),
                    lambda journal, subnets=subnets: journal.set_subnets(subnets),
                ),
                weights=(10, 4, 6, 1),
            )[0]
        )


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_after_any_history_a_restart_knows_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("history") / "containers.db"
    journal = Reservations.open(path, SUBNETS)
    for number, step in enumerate(history(seed)):
        step(journal)
        if number % 50 == 0:
            subnets = tuple(pool.subnet for pool in journal.pools)
            assert known(reopened(journal, path, subnets)) == known(journal)
        held = [address for made in journal.all() for address in made.addresses]
        assert len(held) == len(set(held)), "no address is held twice"
    journal.close()


def live_until_killed(path: Path, seed: int, acknowledge: int) -> None:
    journal = Reservations.open(path, SUBNETS)
    for step in history(seed):
        step(journal)
        os.write(acknowledge, b".")
    signal.pause()


def test_a_writer_that_is_killed_leaves_all_that_it_answered_and_no_half_of_the_next(tmp_path: Path) -> None:
    dice = random.Random(7)
    for seed in range(12):
        path, heard, said = tmp_path / f"{seed}.db", *os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                live_until_killed(path, seed, said)
            finally:
                os._exit(1)
        os.close(said)
        answered, enough = 0, dice.randrange(1, STEPS)
        while answered < enough:
            answered += len(os.read(heard, 1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(heard, 4096):
            answered += len(more)
        os.close(heard)
        twin = Reservations.open(tmp_path / f"{seed}.twin", SUBNETS)
        steps = history(seed)
        for _ in range(answered):
            next(steps)(twin)
        possible = [(tuple(pool.subnet for pool in twin.pools), known(twin))]
        for step in steps:
            step(twin)
            possible.append((tuple(pool.subnet for pool in twin.pools), known(twin)))
            break
        twin.close()
        assert any(known(reopened(twin, path, subnets)) == state for subnets, state in possible)
        assert not list(tmp_path.glob("*.broken*"))


def test_sixteen_thousand_containers_cost_one_row_each(tmp_path: Path) -> None:
    """Counted in pages that a change writes to the log, as a clock on a busy machine says nothing."""
    journal = Reservations.open(tmp_path / "containers.db", ("10.5.0.0/16", "fd00:5:0:3::/64"))
    connection = journal._file._connection
    assert connection is not None

    def written() -> int:
        """Rows that the journal changed since it was opened."""
        return connection.total_changes

    def cost(number: int) -> tuple[int, int]:
        before = written()
        journal.add(reservation(f"{number:064x}"))
        between = written()
        journal.remove((f"{number:064x}", "eth0"))
        return between - before, written() - between

    few = cost(0)
    connection.execute("PRAGMA synchronous = OFF")
    for number in range(1, 16_001):
        journal.add(reservation(f"{number:064x}"))
    expected = (3, 4)  # a row and two cursors; a row less, one in the queue, and the cursors that went past it
    assert cost(20_000) == few == expected
    assert len(journal.all()) == journal.pools[0].taken == journal.pools[1].taken == 16_000
    assert len({made.addresses for made in journal.all()}) == 16_000
    journal.close()
