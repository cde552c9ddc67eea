"""What a lab writes into its agents' store: the network, and that nodes are no more."""

from __future__ import annotations

import asyncio
import platform
import shutil
from pathlib import Path

import pytest

from muslin.errors import MuslinError, UnsupportedError
from muslin.lab import datastore
from muslin.lab.agents import Crew
from muslin.lab.datastore import check_available, write_network
from muslin.lab.presets import preset
from muslin.lab.topology import Agents
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.store.base import StoreUnavailable
from muslin.store.sqlite import SqliteStore
from muslin.wire.flannel_config import parse_network_config


def crew(directory: Path, backend: str = "udp", nodes: int = 2) -> Crew:
    return Crew.of("x", str(directory), preset(4, backend=backend, nodes=nodes, agents=Agents()))  # type: ignore[arg-type]


def write(wanted: Crew) -> bool:
    return write_network(wanted.directory, wanted.topology, wanted.agents, wanted.members)


def held(directory: Path, *new: Lease) -> ClusterSnapshot:
    """What the store holds, after these leases have come."""

    async def ask() -> ClusterSnapshot:
        store = SqliteStore(directory / "store.sqlite")
        for lease in new:
            await store.create(lease, 60.0)
        snapshot = await store.snapshot()
        await store.close()
        return snapshot

    return asyncio.run(ask())


def lease(number: int) -> Lease:
    says = Advertisement(addresses=(f"10.0.0.{number}0",), backend="udp")
    return Lease(subnets=(f"172.16.{number - 1}.0/24",), advertisement=says)


def test_the_store_is_told_of_the_network_once(tmp_path: Path) -> None:
    assert write(crew(tmp_path)) is True
    assert write(crew(tmp_path)) is False
    assert write(crew(tmp_path, "vxlan")) is True

    config = held(tmp_path).config
    assert config is not None
    assert parse_network_config(config).backend == "vxlan"


def test_the_lease_of_a_node_that_is_no_more_goes_and_the_others_stay(tmp_path: Path) -> None:
    write(crew(tmp_path, nodes=3))
    held(tmp_path, lease(1), lease(3))

    assert write(crew(tmp_path, nodes=2)) is False

    assert [each.subnets for each in held(tmp_path).leases] == [("172.16.0.0/24",)]


def test_a_configuration_that_somebody_has_spoilt_is_written_anew(tmp_path: Path) -> None:
    write(crew(tmp_path))

    async def spoil() -> None:
        store = SqliteStore(tmp_path / "store.sqlite")
        await store.write_config(b"{")
        await store.close()

    asyncio.run(spoil())
    assert write(crew(tmp_path)) is True


def test_a_store_that_is_away_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr(SqliteStore, "snapshot", away)
    with pytest.raises(MuslinError, match="the store of the lab's agents does not answer: nobody is there"):
        write(crew(tmp_path))


def test_a_missing_etcd_is_named_with_the_package_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    check_available(preset(4))
    check_available(preset(4, agents=Agents()))
    with pytest.raises(UnsupportedError, match="need the program etcd") as failure:
        check_available(preset(4, agents=Agents(store="etcd")))
    assert "apt-get install etcd-server" in failure.value.hint


@pytest.mark.parametrize(("machine", "named"), [("x86_64", None), ("aarch64", "arm64"), ("riscv64", "riscv64")])
def test_other_processors_are_named_in_gos_way(
    monkeypatch: pytest.MonkeyPatch, machine: str, named: str | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)

    environment = datastore.etcd_environment()
    assert environment.get("ETCD_UNSUPPORTED_ARCH") == named
    assert "PATH" in environment
