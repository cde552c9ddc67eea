"""Settings as options: what is given, in which spelling; the file; the store that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from muslin.cli import settings_options
from muslin.cli.settings_options import (
    STORE_SETTINGS,
    open_store,
    resolve_settings,
    store_options,
    unsupported_environment,
)
from muslin.errors import UnsupportedError, UsageError
from muslin.settings import SETTINGS, Value
from muslin.store.etcd import EtcdStore
from muslin.store.memory import MemoryStore
from muslin.store.sqlite import SqliteStore
from tests.contract.asynchronous import asynchronous

Resolve = Callable[..., dict[str, Value]]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings_options, "DEFAULT_FILE", str(tmp_path / "agent.yaml"))


Options = Callable[[Callable[..., None]], Callable[..., None]]


def invoke(*words: str, options: Options = settings_options.settings_options, **environment: str) -> Any:
    """The settings that a verb gets, as ``muslin`` would call it: with click's own prefix for variables."""
    found: dict[str, Value] = {}

    @click.command()
    @options
    def verb(**given: Any) -> None:
        found.update(resolve_settings(given))

    group = click.Group("muslin", {"agent": verb})
    done = CliRunner().invoke(group, ["agent", *words], env=environment, auto_envvar_prefix="MUSLIN")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return found or done


# ---- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--ip-masq"], True),
        (["--ip-masq=true"], True),
        (["--ip-masq", "--iface", "eth0"], True),
        (["--ip-masq=false"], False),
        (["--no-ip-masq"], False),
    ],
    ids=["bare", "=true", "before another", "=false", "no"],
)
def test_true_and_false_in_every_spelling(words: list[str], value: bool) -> None:
    assert invoke(*words, FLANNELD_IP_MASQ=str(not value))["ip-masq"] == Value(value, "flag", "--ip-masq")


def test_yes_and_no_at_once_is_refused() -> None:
    with pytest.raises(UsageError, match="--ip-masq and --no-ip-masq"):
        invoke("--ip-masq", "--no-ip-masq")


def test_lists_are_repeated_or_have_commas() -> None:
    values = invoke("--iface", "eth0,eth1", "--iface", "eth2", "--etcd-endpoints", "http://a,http://b")
    assert values["iface"].value == ("eth0", "eth1", "eth2")
    assert values["etcd-endpoints"].value == ("http://a", "http://b")


def test_a_variable_is_no_flag_though_clicks_prefix_makes_the_same_name() -> None:
    values = invoke(MUSLIN_AGENT_STORE="memory", MUSLIN_AGENT_IFACE="eth0 eth1", MUSLIN_AGENT_IP_MASQ="1")
    assert values["store"] == Value("memory", "environment", "MUSLIN_AGENT_STORE")
    assert values["iface"].value == ("eth0 eth1",)
    assert values["ip-masq"].origin == "environment"


def test_an_empty_flag_is_given_nevertheless() -> None:
    assert invoke("--etcd-username", "", FLANNELD_ETCD_USERNAME="root")["etcd-username"].value == ""


def test_the_help_has_every_setting_its_variables_and_its_default_but_no_secret() -> None:
    told = " ".join(invoke("--help").output.split())
    for setting in SETTINGS:
        assert f" {setting.flag} " in told
        assert ", ".join(setting.environment) in told
    assert "FLANNELD_SUBNET_FILE; default: /run/flannel/subnet.env]" in told
    assert "FLANNELD_ETCD_PASSWORD]" in told
    assert "FLANNELD_IP_MASQ; default: false]" in told


def test_a_verb_of_the_store_has_the_options_of_the_store_alone() -> None:
    told = invoke("--help", options=store_options).output
    assert "--etcd-prefix" in told
    assert "--iface" not in told
    assert {"store", "store-path", "etcd-endpoints", "etcd-password"} <= set(STORE_SETTINGS)
    assert invoke(options=store_options, MUSLIN_AGENT_RESYNC="7")["resync"].value == 7


@pytest.mark.parametrize("words", [["--store", "redis"], ["--healthz-port", "http"], ["--etcd-prefx", "/x"]])
def test_click_refuses_what_it_can(words: list[str]) -> None:
    done = invoke(*words)
    assert done.exit_code == 2
    assert words[0] in done.output


# ---- the file --------------------------------------------------------------------------------------------


def test_the_usual_file_is_used_if_it_is_there(tmp_path: Path) -> None:
    assert invoke()["resync"].origin == "default"
    path = tmp_path / "agent.yaml"
    path.write_text("resync: 5\niface: [eth0, eth1]\nip-masq: true\n")
    values = invoke()
    assert values["resync"] == Value(5, "file", str(path))
    assert values["iface"].value == ("eth0", "eth1")
    assert values["ip-masq"].value is True


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"resync": 6}'), ("a.yaml", '{"resync": 6}'), ("a", "resync: 6")]
)
def test_a_file_is_yaml_or_json(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert invoke("--config", str(path))["resync"].value == 6
    assert invoke(MUSLIN_AGENT_CONFIG=str(path))["resync"].value == 6


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("# nothing yet\n")
    assert invoke()["resync"].origin == "default"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a\n", "is not a mapping of settings"),
        ("a: [\n", "is not a mapping of settings"),
        ("1: 2\n", "is not a mapping of settings|unknown setting"),
        ("resink: 5\n", "unknown setting 'resink'"),
        ("resync: often\n", "agent.yaml: resync is 'often', expected a whole number"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "agent.yaml").write_text(text)
    with pytest.raises(UsageError, match=fault) as refusal:
        invoke()
    assert str(tmp_path / "agent.yaml") in refusal.value.what


def test_a_named_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.yaml cannot be read: No such file"):
        invoke("--config", str(tmp_path / "missing.yaml"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        invoke("--config", str(tmp_path))


# ---- variables of flannel's ------------------------------------------------------------------------------


def test_flannels_variables_that_mean_nothing_are_named() -> None:
    environment = {
        "FLANNELD_KUBE_SUBNET_MGR": "true",
        "FLANNELD_IP_BLACKHOLE_ROUTE": "true",
        "FLANNELD_IP_MASQ": "true",
        "FLANNELD_V": "",
        "MUSLIN_AGENT_STORE": "memory",
        "PATH": "/bin",
    }
    assert unsupported_environment(environment) == ("FLANNELD_IP_BLACKHOLE_ROUTE", "FLANNELD_KUBE_SUBNET_MGR")


# ---- the store -------------------------------------------------------------------------------------------


@asynchronous
async def test_a_store_file_gets_a_directory_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "store.sqlite"
    store = open_store(resolve_settings({"store_path": str(path)}))
    assert isinstance(store, SqliteStore)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (await store.snapshot()).leases == ()
    await store.close()


@asynchronous
async def test_each_store_is_made_of_its_settings() -> None:
    assert isinstance(open_store(resolve_settings({"store": "memory"})), MemoryStore)
    given = {
        "store": "etcd",
        "etcd_endpoints": ("https://a,https://b:4001",),
        "etcd_prefix": "/net",
        "etcd_username": "root",
        "etcd_password": "correct horse",
        "etcd_cafile": "/ca",
        "etcd_certfile": "/cert",
        "etcd_keyfile": "/key",
    }
    store = open_store(resolve_settings(given))
    assert isinstance(store, EtcdStore)
    options = store._options
    assert options.endpoints == ("https://a", "https://b:4001")
    assert (options.prefix, options.username, options.password.reveal()) == ("/net", "root", "correct horse")
    assert (options.ca_file, options.cert_file, options.key_file) == ("/ca", "/cert", "/key")
    await store.close()


@pytest.mark.parametrize("endpoint", ["ftp://etcd", "unix:///run/etcd"])
def test_what_is_no_endpoint_is_named(endpoint: str) -> None:
    with pytest.raises(UsageError, match=f"etcd-endpoints: etcd endpoint '{endpoint}'"):
        open_store(resolve_settings({"store": "etcd", "etcd_endpoints": (endpoint,)}))


def test_a_store_whose_packages_lack_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muslin.store.STORES", {"etcd": "no_such_package:Store"})
    with pytest.raises(UnsupportedError, match="no_such_package"):
        open_store(resolve_settings({"store": "etcd"}))
