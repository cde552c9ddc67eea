"""Settings: where each value comes from, in which order, and what is said of a wrong one."""

from __future__ import annotations

import pytest

from muslin.errors import UsageError
from muslin.model.secret import Secret
from muslin.settings import BY_NAME, SETTINGS, Value, renew_margin_s, resolve


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default() -> None:
    flags, environment, file = {"store": "memory"}, {"MUSLIN_AGENT_STORE": "etcd"}, {"store": "sqlite"}
    assert resolve(flags, environment, file)["store"] == Value("memory", "flag", "--store")
    assert resolve({}, environment, file)["store"] == Value("etcd", "environment", "MUSLIN_AGENT_STORE")
    assert resolve({}, {}, file, "a.yaml")["store"] == Value("sqlite", "file", "a.yaml")
    assert resolve({}, {})["store"] == Value("sqlite", "default")


def test_flannels_names_work_where_flannel_has_the_setting_and_ours_come_first() -> None:
    environment = {"FLANNELD_ETCD_PREFIX": "/theirs", "FLANNELD_STORE": "memory"}
    resolved = resolve({}, environment)
    assert resolved["etcd-prefix"] == Value("/theirs", "environment", "FLANNELD_ETCD_PREFIX")
    assert resolved["store"].origin == "default"
    both = {**environment, "MUSLIN_AGENT_ETCD_PREFIX": "/ours"}
    assert resolve({}, both)["etcd-prefix"].value == "/ours"


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert resolve({}, {"FLANNELD_ETCD_PREFIX": "", "MUSLIN_AGENT_RESYNC": ""}) == resolve({}, {})


def test_what_flannel_has_and_means_the_same_is_there() -> None:
    """flannel's main.go, 113-167, without its Kubernetes options and those of its log."""
    flags = """
        etcd-endpoints etcd-prefix etcd-keyfile etcd-certfile etcd-cafile etcd-username etcd-password
        iface iface-regex iface-can-reach public-ip public-ipv6 subnet-file subnet-lease-renew-margin
        ip-masq ip-masq-fully-random-disable iptables-forward-rules healthz-ip healthz-port
    """
    assert {setting.name for setting in SETTINGS if setting.flannel} == set(flags.split())


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("iface", "eth0, eth1", ("eth0", "eth1")),
        ("iface", ["eth0"], ("eth0",)),
        ("iface", ("eth0,eth1", "eth2"), ("eth0", "eth1", "eth2")),
        ("iface", "", ()),
        ("iface-regex", "eth[0-9]{1,2}", ("eth[0-9]{1,2}",)),
        ("etcd-endpoints", "http://a:2379,http://b:2379", ("http://a:2379", "http://b:2379")),
        ("ip-masq", True, True),
        ("subnet-lease-renew-margin", 1439, 1439),
        ("ip-masq", "yes", True),
        ("ip-masq", "0", False),
        ("healthz-port", "8285", 8285),
    ],
)
def test_texts_become_values_of_the_settings_kind(name: str, given: object, value: object) -> None:
    assert resolve({name: given}, {})[name].value == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("store", "redis"),
        ("ip-masq", "perhaps"),
        ("healthz-port", "http"),
        ("log-level", "loud"),
        ("resync", "1.5"),
    ],
)
def test_a_wrong_value_is_named_with_where_it_came_from(name: str, given: str) -> None:
    (variable, *_) = BY_NAME[name].environment
    with pytest.raises(UsageError, match=f"{variable} is '{given}', expected "):
        resolve({}, {variable: given})
    with pytest.raises(UsageError, match=f"--{name} is '{given}', expected "):
        resolve({name: given}, {})
    with pytest.raises(UsageError, match=f"a.yaml: {name} is '{given}', expected "):
        resolve({}, {}, {name: given}, "a.yaml")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("subnet-lease-renew-margin", 0),
        ("subnet-lease-renew-margin", 1440),
        ("healthz-port", -1),
        ("healthz-port", 65536),
        ("resync", 0),
        ("lease-ttl", 1),
        ("lease-renew-margin", -1),
    ],
)
def test_numbers_have_their_limits(name: str, given: int) -> None:
    with pytest.raises(UsageError, match=f"--{name} is {given}, expected a number "):
        resolve({name: given}, {})


@pytest.mark.parametrize(
    ("name", "given"),
    [("store", None), ("etcd-prefix", {"a": 1}), ("public-ip", True), ("iface", [["eth0"]]), ("resync", True)],
)
def test_a_value_of_another_kind_in_the_file_is_named(name: str, given: object) -> None:
    with pytest.raises(UsageError, match=rf"^a.yaml: {name} is .*, expected"):
        resolve({}, {}, {name: given}, "a.yaml")


def test_no_endpoint_is_one_too_few() -> None:
    with pytest.raises(UsageError, match="--etcd-endpoints names no endpoint"):
        resolve({"etcd-endpoints": ","}, {})


def test_the_margin_of_a_lease_is_flannels_minutes_unless_ours_is_given() -> None:
    assert renew_margin_s(resolve({}, {})) == 3600
    assert renew_margin_s(resolve({}, {"FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "5"})) == 300
    assert renew_margin_s(resolve({"lease-ttl": 10, "lease-renew-margin": 4}, {})) == 4


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"lease-ttl": 60}, "subnet-lease-renew-margin is 3600 s, expected less than --lease-ttl, 60 s"),
        ({"lease-ttl": 9, "lease-renew-margin": 9}, "--lease-renew-margin is 9 s, expected less than --lease-ttl, 9 s"),
        ({"lease-renew-margin": 86400}, "--lease-renew-margin is 86400 s, expected less than lease-ttl, 86400 s"),
    ],
)
def test_a_lease_has_to_last_longer_than_its_margin(flags: dict[str, int], fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as refusal:
        resolve(flags, {})
    assert "lease-renew-margin" in refusal.value.hint


def test_an_unknown_key_of_the_file_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"a\.yaml has an unknown setting 'etcd-prefx'") as refusal:
        resolve({}, {}, {"etcd-prefx": "/x"}, "a.yaml")
    assert refusal.value.hint == "did you mean 'etcd-prefix'?"
    with pytest.raises(UsageError, match="'zzz'") as refusal:
        resolve({}, {}, {"zzz": "/x"})
    assert "etcd-prefix" in refusal.value.hint


def test_a_secret_is_shown_nowhere() -> None:
    password = resolve({}, {"FLANNELD_ETCD_PASSWORD": "hunter2"})["etcd-password"].value
    shown = f"{password} {password!r} {password!s} {[password]} {Value(password, 'flag')}"
    assert isinstance(password, Secret)
    assert "hunter2" not in shown
    assert password.reveal() == "hunter2"
    assert {password, Secret("hunter2")} == {password} != {Secret("another")}
    assert (bool(password), bool(Secret(""))) == (True, False)


def test_every_setting_has_one_name_and_a_sentence() -> None:
    assert len(BY_NAME) == len(SETTINGS)
    assert all(setting.help.endswith((".", ")")) for setting in SETTINGS)
