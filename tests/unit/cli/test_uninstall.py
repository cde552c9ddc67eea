"""``muslin uninstall``: a host as it was before its agent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from muslin.agent.files import hold_namespace
from muslin.agent_client import post_stop
from muslin.cli import uninstall
from muslin.cli.cni_files import Target, write_files
from muslin.cli.cni_network import NetworkOptions, build_network, encode_network
from muslin.cli.cni_program import MARK
from muslin.cli.main import run
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_USAGE
from muslin.model.lease import ClusterSnapshot
from muslin.store.sqlite import SqliteStore
from tests.unit.cli.fake_host import FakeHost, host

__all__ = ["host"]


def had_an_agent(host: FakeHost) -> None:
    host.agent(once_ready=lambda _: post_stop(host.socket, release=False))


def leases(host: FakeHost) -> list[str]:
    async def read() -> ClusterSnapshot:
        store = SqliteStore(host.store)
        try:
            return await store.snapshot()
        finally:
            await store.close()

    return [lease.name for lease in asyncio.run(read()).leases]


def test_it_removes_everything_gives_the_lease_back_and_then_finds_nothing(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(host.kernel.objects)
    had_an_agent(host)
    (name,) = leases(host)
    capsys.readouterr()
    assert run(["uninstall"]) == EXIT_OK
    told = capsys.readouterr()
    assert f"rm {host.subnet_file}" in told.out
    assert f"gave the lease {name} back" in told.err
    assert host.kernel.objects == before
    assert leases(host) == []
    assert not host.state.exists()
    assert not host.subnet_file.exists()
    assert run(["uninstall"]) == EXIT_OK
    assert "nothing of Muslin's" in capsys.readouterr().err


def test_a_lease_that_is_to_be_kept_stays_and_all_else_goes(host: FakeHost) -> None:
    before = dict(host.kernel.objects)
    codes: list[int] = []
    host.agent(once_ready=lambda _: codes.append(run(["uninstall", "--stop", "--keep-lease"])))
    assert codes == [EXIT_OK]
    assert host.kernel.objects == before
    assert not host.state.exists()
    assert len(leases(host)) == 1


def test_a_dry_run_says_the_same_and_changes_nothing(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    had_an_agent(host)
    before, names = dict(host.kernel.objects), leases(host)
    capsys.readouterr()
    assert run(["uninstall", "--dry-run", "-o", "json"]) == EXIT_OK
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["dry_run"], document["lease"]) == ("muslin.uninstall/v1", True, names[0])
    assert document["commands"]
    assert str(host.state / "node.json") in document["files"]
    assert (host.kernel.objects, leases(host)) == (before, names)
    assert host.subnet_file.exists()


def test_an_agent_that_runs_is_refused_and_ended_with_stop(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(host.kernel.objects)
    codes: list[int] = []

    def twice(_: object) -> None:
        codes.append(run(["uninstall"]))
        codes.append(run(["uninstall", "--stop"]))

    assert host.agent(once_ready=twice) == EXIT_OK
    assert codes == [EXIT_USAGE, EXIT_OK]
    assert "muslin uninstall --stop" in capsys.readouterr().err
    assert host.kernel.objects == before
    assert leases(host) == []
    assert not host.state.exists()


def test_an_agent_with_another_socket_is_refused(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    had_an_agent(host)
    before = dict(host.kernel.objects)
    monkeypatch.setattr(uninstall, "LET_GO_S", 0.1)
    with hold_namespace():
        assert run(["uninstall"]) == EXIT_USAGE
        told = capsys.readouterr().err
        assert "another agent runs in this network namespace" in told
        assert "--run-dir" in told
        assert host.kernel.objects == before
        assert run(["uninstall", "--dry-run"]) == EXIT_OK
    assert run(["uninstall"]) == EXIT_OK


def test_what_stays_is_told_and_so_does_the_lease(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(host.kernel.objects)
    had_an_agent(host)
    names = leases(host)
    host.kernel.refuse = lambda _: 16  # EBUSY
    assert run(["uninstall"]) == EXIT_CHECK_FAILED
    assert "not everything could be removed" in capsys.readouterr().err
    assert leases(host) == names
    host.kernel.refuse = lambda _: 0
    assert run(["uninstall"]) == EXIT_OK
    assert (host.kernel.objects, leases(host)) == (before, [])


def test_a_store_that_is_away_holds_up_nothing(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(host.kernel.objects)
    had_an_agent(host)
    (name,) = leases(host)
    host.store.unlink()
    host.store.mkdir()
    assert run(["uninstall"]) == EXIT_OK
    assert f"warning: the lease {name} stays in the store until it ends" in capsys.readouterr().err
    assert host.kernel.objects == before


def test_on_a_host_without_an_agent_nothing_is_made(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["uninstall"]) == EXIT_OK
    assert "nothing of Muslin's" in capsys.readouterr().err
    assert not host.state.exists()
    assert not host.run.exists()


def test_the_plugin_for_runtimes_goes_if_it_is_of_this_state_directory(
    host: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bins, confs = tmp_path / "bin", tmp_path / "net.d"
    target = Target(path=bins / "muslin-cni", content=MARK, kind="plugin")
    network = encode_network(build_network(NetworkOptions(name="muslin", socket="/run/cni.sock")))
    others = Target(path=confs / "10-muslin.conflist", content=network, kind="network")
    write_files([target], host.state)
    write_files([others], tmp_path / "other-state")
    assert run(["uninstall", "--dry-run"]) == EXIT_OK
    assert f"rm {bins / 'muslin-cni'}" in capsys.readouterr().out
    assert target.path.exists()
    assert run(["uninstall"]) == EXIT_OK
    assert (bins.exists(), host.state.exists(), others.path.exists()) == (False, False, True)
    capsys.readouterr()
    assert run(["uninstall"]) == EXIT_OK
    assert "nothing of Muslin's" in capsys.readouterr().err
