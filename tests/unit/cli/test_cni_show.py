"""``muslin cni show``: the agent's containers as a table and as data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from muslin.cli.cni_show import show
from muslin.cli.main import run as run_muslin
from muslin.wire.agent_api import Container
from tests.unit.agent.node import FakeNode
from tests.unit.cli.agent_at import agent_at

ID = "f1c13204799144dac53094ab5481982fcb166f65a77d14b7381a224e88c565a0"


def container(**more: object) -> Container:
    values = {
        "container_id": ID,
        "interface": "eth0",
        "network": "muslin",
        "addresses": ("10.5.3.2/24", "fd00:5:3::2/64"),
        "mac": "02:00:00:00:00:07",
        "mode": "bridge",
        "cable": "mus73f229acc71a",
        "netns": "/run/netns/c1",
        "since": time.time() - 61,
    }
    return Container(**(values | more))  # type: ignore[arg-type]


def run(tmp_path: Path, *words: str, containers: tuple[Container, ...] = ()) -> str:
    node, path = FakeNode(), str(tmp_path / "agent.sock")
    node.containers = containers
    with agent_at(path, node):
        result = CliRunner().invoke(show, ["--socket", path, *words], standalone_mode=False)
    assert result.exception is None, result.output
    return result.output


def test_a_row_tells_who_has_which_address_and_where_the_cable_ends(tmp_path: Path) -> None:
    lines = run(tmp_path, containers=(container(),)).splitlines()
    assert lines[0].split() == ["CONTAINER", "INTERFACE", "NETWORK", "ADDRESS", "MAC", "CABLE", "SINCE"]
    words = lines[1].split()
    assert words[:4] == [ID[:12], "eth0", "muslin", "10.5.3.2/24"]
    assert {"fd00:5:3::2/64", "02:00:00:00:00:07", "mus73f229acc71a"} <= set(words)
    assert lines[1].endswith("1 min ago")


def test_ids_can_be_had_whole_and_an_adopted_container_has_no_network(tmp_path: Path) -> None:
    output = run(tmp_path, "--full", containers=(container(network=""),))
    assert output.splitlines()[1].split()[:3] == [ID, "eth0", "-"]


def test_it_is_data_as_well(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, "-o", "json", containers=(container(),)))
    assert document["schema"] == "muslin.agent-containers/v1"
    assert document["containers"][0]["container_id"] == ID


def test_none_is_said(tmp_path: Path) -> None:
    assert run(tmp_path) == "no container is connected\n"


def test_without_an_agent_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_muslin(["cni", "show", "--socket", str(tmp_path / "none.sock")])
    assert status == 3
    assert "no agent answers at" in capsys.readouterr().err
