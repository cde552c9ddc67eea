"""What the stores share: pauses grow within bounds, trouble is told once, the table is right."""

import configparser
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.errors import UnsupportedError
from muslin.store import STORES, load_store
from muslin.store.base import END_UNKNOWN, Backoff, Entry, LeaseMap, TroubleTeller

ROOT = Path(__file__).parents[3]
VALUE = b'{"PublicIP":"192.0.2.1"}'


def test_pauses_grow_from_100_ms_to_5_s_with_jitter() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s() for _ in range(12)]
    for number, pause_s in enumerate(pauses):
        longest_s = min(0.1 * 2**number, 5.0)
        assert longest_s / 2 <= pause_s <= longest_s
    backoff.reset()
    assert backoff.pause_s() <= 0.1


def test_trouble_is_told_when_it_changes() -> None:
    teller, told = TroubleTeller(), list[str | None]()
    teller.tell("before anybody listens")
    teller.on_trouble = told.append
    for trouble in ("before anybody listens", "a", "a", "b", None, None):
        teller.tell(trouble)
    assert told == ["a", "b", None]


def test_a_snapshot_is_in_the_order_of_names() -> None:
    leases = LeaseMap(Entry(name, VALUE, None, 1) for name in ("10.5.9.0-24", "bad", "10.5.10.0-24"))
    snapshot = leases.snapshot(3, None)
    assert [lease.name for lease in snapshot.leases] == ["10.5.10.0-24", "10.5.9.0-24"]
    assert snapshot.unreadable == ("bad",)


@given(st.lists(st.tuples(st.sampled_from(["put", "remove", "retain"]), st.integers(0, 9))))
def test_a_lease_map_is_a_sorted_dict(steps: list[tuple[str, int]]) -> None:
    leases, twin = LeaseMap(), dict[str, int]()
    for revision, (step, number) in enumerate(steps, 1):
        name = f"10.5.{number}.0-24"
        if step == "put":
            leases.put(Entry(name, VALUE, None, revision))
            twin[name] = revision
        elif step == "remove":
            leases.remove(name)
            twin.pop(name, None)
        else:
            leases.retain({name})
            twin = {kept: at for kept, at in twin.items() if kept == name}
        snapshot = leases.snapshot(revision, None)
        assert [(lease.name, lease.revision) for lease in snapshot.leases] == sorted(twin.items())
        assert len(leases) == len(twin)


def test_an_unknown_end_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(END_UNKNOWN)) == END_UNKNOWN


@pytest.mark.parametrize("name", STORES)
def test_every_store_of_the_table_is_there(name: str) -> None:
    store = load_store(name)
    assert callable(store.watch)
    contracts = configparser.ConfigParser(interpolation=None)
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    assert contracts["importlinter:contract:stores"]["modules"].split() == ["muslin.store.*"]


def test_an_unknown_store_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_store("papyrus")


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORES, "etcd", "no_such_package:Store")
    with pytest.raises(UnsupportedError, match="no_such_package") as refusal:
        load_store("etcd")
    assert "muslin[etcd]" in refusal.value.hint


@pytest.mark.parametrize(
    ("name", "strangers"), [("sqlite", {"grpclib", "google", "h2"}), ("memory", {"grpclib", "sqlite3"})]
)
def test_a_store_imports_only_what_it_needs(name: str, strangers: set[str]) -> None:
    program = f"import sys; from muslin.store import load_store; load_store({name!r}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    ).stdout.split()
    assert not strangers & set(loaded)
