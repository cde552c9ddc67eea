"""``muslin network``: the store's configuration and leases, seen and changed, with a store in a file."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from muslin.cli import settings_options
from muslin.cli.main import run
from muslin.cli.network_show import describe
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.settings import FLANNEL_PREFIX
from muslin.store.base import END_UNKNOWN
from muslin.store.sqlite import SqliteStore

CONFIG = '{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}'
DUAL = json.dumps({**json.loads(CONFIG), "EnableIPv6": True, "IPv6Network": "fd00:5::/48"})


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The store of a test; nothing of this machine's settings counts."""
    monkeypatch.setattr(settings_options, "DEFAULT_FILE", str(tmp_path / "agent.yaml"))
    for name in [name for name in os.environ if name.startswith((FLANNEL_PREFIX, "MUSLIN_AGENT_"))]:
        monkeypatch.delenv(name)
    path = tmp_path / "lib" / "store.sqlite"
    monkeypatch.setenv("MUSLIN_AGENT_STORE_PATH", str(path))
    return path


class Told:
    """What a verb printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def network(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """``muslin network`` with these words."""

    def call(*words: str) -> Told:
        code = run(["network", *words])
        return Told(code, *capsys.readouterr())

    return call


def in_store(path: Path, work: Callable[[SqliteStore], Awaitable[Any]]) -> Any:
    """Do something to the store as a node would."""

    async def bounded() -> Any:
        store = SqliteStore(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(bounded())


def make_lease(number: int = 1, address: str = "192.0.2.1") -> Lease:
    return Lease(subnets=(f"10.5.{number}.0/24",), advertisement=Advertisement(addresses=(address,), backend="host-gw"))


def plant_garbage(path: Path, name: str) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE store SET revision = revision + 1")
        connection.execute("INSERT INTO lease SELECT ?, ?, NULL, revision FROM store", (name, b"{}"))
    connection.close()


# ---- set -------------------------------------------------------------------------------------------------


def test_a_configuration_is_written_as_it_is_and_its_changes_told(network: Callable[..., Told], path: Path) -> None:
    first = network("set", CONFIG, "-o", "json")
    assert (first.code, first.document["schema"], first.document["written"]) == (0, "muslin.network-set/v1", True)
    assert {"key": "Network", "old": None, "new": "10.5.0.0/16"} in first.document["changes"]
    assert in_store(path, lambda store: store.snapshot()).config == CONFIG.encode()

    again = network("set", CONFIG)
    assert (again.code, again.out) == (0, "")
    assert "nothing to do" in again.err

    changed = network("set", CONFIG.replace("10.5", "10.6"))
    lines = [line.split() for line in changed.out.splitlines()]
    assert ["Network", "10.5.0.0/16", "10.6.0.0/16"] in lines
    assert not [line for line in lines if line[0] == "Backend"]


def test_a_configuration_comes_from_a_file_or_stdin(
    network: Callable[..., Told], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.json").write_text(CONFIG)
    assert network("set", str(tmp_path / "net.json")).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DUAL.encode())))
    assert network("set", "-").code == 0
    assert in_store(path, lambda store: store.snapshot()).config == DUAL.encode()


def test_every_fault_is_told_and_nothing_written(network: Callable[..., Told], path: Path) -> None:
    told = network("set", '{"Network": "10.5.0.0/33", "EnableIPv6": true, "Backend": {}}')
    assert told.code == 2
    for key in ("Network is", "IPv6Network is missing", "Backend.Type"):
        assert f"  {key}" in told.err
    assert not path.exists()


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        ({"Netwrk": "10.6.0.0/16"}, "key Netwrk means nothing"),
        ({"Backend": {"Type": "wireguard"}}, "no backend 'wireguard'"),
        ({"Backend": {"Type": "vxlan", "VNI": "one"}}, "Backend.VNI"),
        ({"Backend": {"Type": "vxlan", "Speed": 1}}, "option Speed means nothing"),
    ],
)
def test_what_will_not_do_what_it_seems_to_say_is_a_warning(
    network: Callable[..., Told], path: Path, config: dict[str, Any], warning: str
) -> None:
    told = network("set", json.dumps(json.loads(CONFIG) | config))
    assert told.code == 4
    assert warning in told.err
    assert in_store(path, lambda store: store.snapshot()).config is not None


def test_leases_that_no_longer_fit_are_named(network: Callable[..., Told], path: Path) -> None:
    network("set", CONFIG)
    in_store(path, lambda store: store.create(make_lease(1), 3600))
    in_store(path, lambda store: store.reserve(make_lease(2, "192.0.2.2")))
    told = network("set", CONFIG.replace("10.5", "10.6"))
    assert told.code == 4
    assert "the lease 10.5.1.0-24 of 192.0.2.1 does not fit the network and is given up" in told.err
    assert "the reservation 10.5.2.0-24 of 192.0.2.2 does not fit the network and stays unused" in told.err


def test_a_file_that_is_not_there_is_named(network: Callable[..., Told], tmp_path: Path) -> None:
    told = network("set", str(tmp_path / "missing.json"))
    assert told.code == 2
    assert "missing.json cannot be read: No such file" in told.err


# ---- show ------------------------------------------------------------------------------------------------


def test_the_network_is_shown_whole(network: Callable[..., Told], path: Path) -> None:
    network("set", CONFIG)
    lease = in_store(path, lambda store: store.create(make_lease(1), 3600))
    in_store(path, lambda store: store.reserve(make_lease(2, "192.0.2.2")))
    plant_garbage(path, "10.5.9.0-24")

    document = network("show", "-o", "json").document
    assert document["schema"] == "muslin.network/v1"
    assert document["config"]["SubnetMin"] == "10.5.1.0"
    assert document["unreadable"] == ["10.5.9.0-24"]
    one, other = document["leases"]
    assert (one["name"], one["addresses"], one["backend"]) == ("10.5.1.0-24", ["192.0.2.1"], "host-gw")
    assert (one["reservation"], one["expires_at"]) == (False, lease.expires_at)
    assert (other["reservation"], other["expires_at"]) == (True, None)

    told = network("show")
    assert told.code == 4
    assert "10.5.9.0-24 holds garbage" in told.err
    ends = {line.split()[0]: line for line in told.out.splitlines() if line.startswith("10.5.")}
    assert "192.0.2.1" in ends["10.5.1.0-24"]
    assert ends["10.5.1.0-24"].endswith("Z")
    assert ends["10.5.2.0-24"].endswith("never: reserved")
    assert ends["10.5.9.0-24"].endswith("unreadable")


def test_an_end_that_nobody_knows_is_not_shown_as_the_year_9999() -> None:
    lease = Lease(subnets=("10.5.1.0/24",), advertisement=make_lease().advertisement, expires_at=END_UNKNOWN)
    (row,) = describe(ClusterSnapshot(revision=1, leases=(lease,)), "etcd").leases
    assert (row.reservation, row.expires_at) == (False, None)


def test_a_network_without_a_good_configuration_says_so(network: Callable[..., Told], path: Path) -> None:
    path.parent.mkdir()
    in_store(path, lambda store: store.snapshot())
    told = network("show")
    assert told.code == 4
    assert "no leases" in told.out
    assert "no configuration yet" in told.err
    in_store(path, lambda store: store.write_config(b"{"))
    told = network("show", "-o", "json")
    assert told.document["config"] is None
    assert "not JSON" in told.err


@pytest.mark.parametrize("verb", [("show",), ("release", "10.5.1.0-24")])
def test_looking_makes_no_store(network: Callable[..., Told], path: Path, verb: tuple[str, ...]) -> None:
    told = network(*verb)
    assert told.code == 2
    assert f"there is no store at {path}" in told.err
    assert not path.parent.exists()


def test_another_processs_memory_cannot_be_asked(network: Callable[..., Told]) -> None:
    told = network("show", "--store", "memory")
    assert told.code == 2
    assert "lives within its agent" in told.err


def test_a_store_that_cannot_be_asked_is_code_1(network: Callable[..., Told], path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    told = network("show")
    assert told.code == 1
    assert "damaged or no SQLite file" in told.err


# ---- reserve and release ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "subnets", "options", "addresses"),
    [
        (CONFIG, "10.5.34.0/24", ["--public-ip", "192.0.2.7"], ("192.0.2.7",)),
        (
            DUAL,
            "10.5.34.0/24,fd00:5:0:34::/64",
            ["--public-ip", "192.0.2.7", "--public-ipv6", "2001:db8::7"],
            ("192.0.2.7", "2001:db8::7"),
        ),
        (DUAL, "10.5.34.0/24,fd00:5:0:34::/64", ["--public-ipv6", "2001:db8::7"], ("2001:db8::7",)),
    ],
    ids=["4", "dual", "6"],
)
def test_a_subnet_is_reserved_and_released(
    network: Callable[..., Told], path: Path, config: str, subnets: str, options: list[str], addresses: tuple[str, ...]
) -> None:
    network("set", config)
    told = network("reserve", subnets, *options, "-o", "json")
    assert (told.code, told.document["schema"]) == (0, "muslin.network-reserve/v1")
    (lease,) = in_store(path, lambda store: store.snapshot()).leases
    assert (lease.subnets, lease.expires_at) == (tuple(subnets.split(",")), None)
    assert (lease.advertisement.addresses, lease.advertisement.backend) == (addresses, "host-gw")

    told = network("release", subnets, "--yes", "-o", "json")
    assert (told.code, told.document["schema"]) == (0, "muslin.network-release/v1")
    assert told.document["lease"]["name"] == lease.name
    assert in_store(path, lambda store: store.snapshot()).leases == ()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["10.5.34.0/24"], "give --public-ip"),
        (["10.5.34.0/24", "--public-ip", "nowhere"], "--public-ip is 'nowhere', expected an IPv4 address"),
        (["10.5.34.0/24", "--public-ip", "2001:db8::7"], "expected an IPv4 address"),
        (["10.5.34.0/24", "--public-ipv6", "192.0.2.7"], "--public-ipv6 is '192.0.2.7', expected an IPv6 address"),
        (["10.5.34.1/24", "--public-ip", "192.0.2.7"], "host bits"),
        (["10.5.34.0", "--public-ip", "192.0.2.7"], "no prefix length"),
        (["10.5.34.0/25", "--public-ip", "192.0.2.7"], "cannot be leased in this network"),
        (["10.5.0.0/24", "--public-ip", "192.0.2.7"], "from 10.5.1.0 to 10.5.255.0"),
        (["10.5.1.0/24", "--public-ip", "192.0.2.7"], "10.5.1.0-24 is leased by 192.0.2.1"),
        (["10.5.2.0/24", "--public-ip", "192.0.2.7"], "10.5.2.0-24 is reserved for 192.0.2.2"),
    ],
)
def test_what_nobody_could_use_is_not_reserved(
    network: Callable[..., Told], path: Path, words: list[str], fault: str
) -> None:
    network("set", CONFIG)
    in_store(path, lambda store: store.create(make_lease(1), 3600))
    in_store(path, lambda store: store.reserve(make_lease(2, "192.0.2.2")))
    told = network("reserve", *words)
    assert told.code == 2
    assert fault in told.err
    assert len(in_store(path, lambda store: store.snapshot()).leases) == 2


def test_a_node_that_has_another_lease_is_a_warning(network: Callable[..., Told], path: Path) -> None:
    network("set", CONFIG)
    in_store(path, lambda store: store.create(make_lease(1), 3600))
    told = network("reserve", "10.5.34.0/24", "--public-ip", "192.0.2.1")
    assert told.code == 4
    assert "the node has 10.5.1.0-24 now" in told.err


def test_a_name_that_holds_garbage_is_taken_and_not_removed(network: Callable[..., Told], path: Path) -> None:
    network("set", CONFIG)
    plant_garbage(path, "10.5.9.0-24")
    assert network("reserve", "10.5.9.0/24", "--public-ip", "192.0.2.7").code == 1
    told = network("release", "10.5.9.0-24", "-y")
    assert told.code == 2
    assert "holds garbage" in told.err


def test_release_asks_and_takes_no_for_an_answer(
    network: Callable[..., Told], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network("set", CONFIG)
    in_store(path, lambda store: store.create(make_lease(1), 3600))
    for answer, code, left in (("n\n", 130, 1), ("", 130, 1), ("y\n", 0, 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answer.encode())))
        told = network("release", "10.5.1.0-24")
        assert (told.code, told.out) == (code, "")
        assert "Remove the lease 10.5.1.0-24 of 192.0.2.1?" in told.err
        assert len(in_store(path, lambda store: store.snapshot()).leases) == left


def test_an_unknown_lease_is_answered_with_those_that_are_there(network: Callable[..., Told], path: Path) -> None:
    network("set", CONFIG)
    assert "there is none" in network("release", "10.5.7.0-24", "-y").err
    in_store(path, lambda store: store.create(make_lease(1), 3600))
    told = network("release", "10.5.7.0-24", "-y")
    assert told.code == 2
    assert "there are: 10.5.1.0-24" in told.err


@pytest.mark.parametrize("verb", ["show", "set", "reserve", "release"])
def test_help_is_short_and_tells_the_store(network: Callable[..., Told], verb: str) -> None:
    told = network(verb, "--help")
    assert told.code == 0
    assert "--etcd-endpoints" in told.out
    assert "--iface" not in told.out
    assert len(told.out.splitlines()) < 60
