"""Settings: where each value comes from, in which order, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from muslin.errors import UsageError
from muslin.model.secret import Secret
from muslin.settings import BY_NAME, SETTINGS, Value, resolve


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default() -> None:
    flags, environment, file = {"store": "memory"}, {"MUSLIN_AGENT_STORE": "etcd"}, {"store": "sqlite"}
    assert resolve(flags, environment, file)["store"] == Value("memory", "flag")
    assert resolve({}, environment, file)["store"] == Value("etcd", "environment")
    assert resolve({}, {}, file)["store"] == Value("sqlite", "file")
    assert resolve({}, {})["store"] == Value("sqlite", "default")


def test_flannels_names_work_where_flannel_has_the_setting_and_ours_come_first() -> None:
    environment = {"FLANNELD_ETCD_PREFIX": "/theirs", "FLANNELD_STORE": "memory"}
    resolved = resolve({}, environment)
    assert resolved["etcd-prefix"] == Value("/theirs", "environment")
    assert resolved["store"].origin == "default"
    both = {**environment, "MUSLIN_AGENT_ETCD_PREFIX": "/ours"}
    assert resolve({}, both)["etcd-prefix"].value == "/ours"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("iface", "eth0, eth1", ("eth0", "eth1")),
        ("iface", ["eth0"], ("eth0",)),
        ("ip-masq", "yes", True),
        ("ip-masq", "0", False),
        ("healthz-port", "8285", 8285),
    ],
)
def test_texts_become_values_of_the_settings_kind(name: str, given: object, value: object) -> None:
    assert resolve({name: given}, {})[name].value == value


@pytest.mark.parametrize(
    ("name", "given"), [("store", "redis"), ("ip-masq", "perhaps"), ("healthz-port", "http"), ("log-level", "loud")]
)
def test_a_wrong_value_is_named_with_where_it_came_from(name: str, given: str) -> None:
    (variable, *_) = BY_NAME[name].environment
    with pytest.raises(UsageError, match=f"{variable} is '{given}'"):
        resolve({}, {variable: given})


def test_an_unknown_key_of_the_file_is_an_error() -> None:
    with pytest.raises(UsageError, match="unknown setting 'etcd-prefx'"):
        resolve({}, {}, {"etcd-prefx": "/x"})


def test_a_secret_is_shown_nowhere() -> None:
    password = resolve({}, {"FLANNELD_ETCD_PASSWORD": "hunter2"})["etcd-password"].value
    shown = f"{password} {password!r} {password!s} {[password]} {Value(password, 'flag')}"
    assert isinstance(password, Secret)
    assert "hunter2" not in shown
    assert password.reveal() == "hunter2"


def test_every_setting_has_one_name_and_a_sentence() -> None:
    assert len(BY_NAME) == len(SETTINGS)
    assert all(setting.help.endswith((".", ")")) for setting in SETTINGS)
