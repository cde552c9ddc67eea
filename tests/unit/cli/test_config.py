"""``muslin config show``: every setting, where it came from, and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from muslin.cli import settings_options
from muslin.cli.main import run
from muslin.settings import FLANNEL_PREFIX, SETTINGS


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings_options, "DEFAULT_FILE", str(tmp_path / "agent.yaml"))
    for name in [name for name in os.environ if name.startswith((FLANNEL_PREFIX, "MUSLIN_AGENT_"))]:
        monkeypatch.delenv(name)


def show_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert run(["config", "show", "-o", "json", *words]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "muslin.config/v1"
    return {row.pop("name"): row for row in document["settings"]}


def test_every_setting_is_there_with_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("iface: [eth0, eth1]\n")
    monkeypatch.setenv("FLANNELD_IP_MASQ", "true")
    rows = show_json(capsys, "--resync", "5")
    assert list(rows) == [setting.name for setting in SETTINGS]
    assert rows["resync"] == {"value": 5, "origin": "flag", "where": "--resync"}
    assert rows["ip-masq"] == {"value": True, "origin": "environment", "where": "FLANNELD_IP_MASQ"}
    assert rows["iface"] == {"value": ["eth0", "eth1"], "origin": "file", "where": str(path)}
    assert rows["store"] == {"value": "sqlite", "origin": "default", "where": ""}


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "correct horse")
    assert run(["config", "show", "-o", output]) == 0
    told = capsys.readouterr()
    assert "horse" not in told.out + told.err
    assert "***" in told.out


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--no-ip-masq", "--iface", "eth0", "--iface", "eth1"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    table = {name: rest.split("  ")[0] for name, rest in (line for line in lines if len(line) == 2)}
    assert table["ip-masq"] == "false"
    assert table["iface"] == "eth0, eth1"
    assert table["etcd-password"] == "default", "an empty one is not shown as if there were one"


def test_yaml_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["schema"] == "muslin.config/v1"


def test_flannels_variables_without_a_meaning_are_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_KUBE_SUBNET_MGR", "true")
    assert run(["config", "show", "-o", "json"]) == 4
    told = capsys.readouterr()
    assert json.loads(told.out)["ignored"] == ["FLANNELD_KUBE_SUBNET_MGR"]
    assert "warning: FLANNELD_KUBE_SUBNET_MGR" in told.err


def test_a_wrong_setting_is_a_sentence_and_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("lease-tll: 5\n")
    assert run(["config", "show"]) == 2
    assert capsys.readouterr().err == (
        f"muslin: {tmp_path / 'agent.yaml'} has an unknown setting 'lease-tll'\n  did you mean 'lease-ttl'?\n"
    )
