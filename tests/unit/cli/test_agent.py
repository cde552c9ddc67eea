"""``muslin agent``: from settings to a running loop, and mistakes without a traceback."""

from __future__ import annotations

import builtins
import io
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from muslin.agent.files import StateDirectory, hold_namespace
from muslin.agent_client import post_stop
from muslin.cli.agent import host_options, node_name, node_options, read_network_config, require_privilege
from muslin.cli.main import run
from muslin.cli.settings_options import resolve_settings
from muslin.errors import EXIT_OK, EXIT_USAGE, UnsupportedError, UsageError
from muslin.wire.agent_api import AgentStatus
from muslin.wire.subnet_env import parse_subnet_env
from tests.unit.cli.fake_host import FakeHost, host

__all__ = ["host"]


def given(**settings: Any) -> dict[str, Any]:
    return {name: value.value for name, value in resolve_settings(settings).items()}


# ---- a whole run ----------------------------------------------------------------------------------------------


def test_it_leases_a_subnet_says_so_and_leaves_all_of_it_at_sigterm(host: FakeHost) -> None:
    seen: list[AgentStatus] = []

    def end(status: AgentStatus) -> None:
        seen.append(status)
        os.kill(os.getpid(), signal.SIGTERM)

    assert host.agent("--node-name", "alpha", once_ready=end) == EXIT_OK
    (status,) = seen
    assert (status.name, status.store.kind, status.problems) == ("alpha", "sqlite", ())
    assert parse_subnet_env(host.subnet_file.read_bytes()).subnets == status.lease.subnets
    assert not os.path.exists(host.socket)
    os.close(StateDirectory(host.state).lock())
    before = dict(host.kernel.objects)
    again: list[AgentStatus] = []

    def end_again(status: AgentStatus) -> None:
        again.append(status)
        post_stop(host.socket, release=False)

    assert host.agent(once_ready=end_again) == EXIT_OK
    assert again[0].lease.subnets == status.lease.subnets
    assert host.kernel.objects == before


def test_broken_files_of_an_earlier_run_are_said_and_set_aside(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.state.mkdir()
    for name in ("owned.json", "node.json"):
        (host.state / name).write_bytes(b"{")
    host.agent(once_ready=lambda _: post_stop(host.socket, release=False))
    assert caplog.text.count("cannot be understood, and is set aside") == 2
    assert (host.state / "node.json.broken").exists()


def test_variables_of_flannel_that_mean_nothing_here_are_said(
    host: FakeHost, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_KUBE_API_URL", "http://10.0.0.1")
    with caplog.at_level(logging.WARNING):
        host.agent(once_ready=lambda _: post_stop(host.socket, release=False))
    assert "FLANNELD_KUBE_API_URL is set" in caplog.text


def test_a_second_agent_is_told_that_there_is_one(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    lock = StateDirectory(host.state).lock()
    assert run(["agent"]) == EXIT_USAGE
    assert "another agent uses the state directory" in capsys.readouterr().err
    os.close(lock)
    with hold_namespace():
        assert run(["agent"]) == EXIT_USAGE
    assert "another agent runs in this network namespace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--iface-regex", "eth["), "--iface-regex eth[ is no regular expression"),
        (("--network-config", "{"), "--network-config is wrong"),
        (("--network-config", "@/nowhere"), "the file cannot be read: No such file"),
        (("--network-config", '{"Network": "10.5.0.0/16", "Backend": {"Type": "warp"}}'), "warp"),
        (("--lease-ttl", "1"), "lease-ttl"),
        (("--vtep-mac", "no mac"), "vtep-mac"),
        (("--run-dir", "/dev/null/run"), "cannot be made: Not a directory"),
        (("--state-dir", "/dev/null/state"), "cannot be used: Not a directory"),
        (("--store", "etcd", "--etcd-endpoints", "nonsense://x"), "etcd-endpoints"),
    ],
)
def test_mistakes_are_sentences(
    host: FakeHost, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    before = dict(host.kernel.objects)
    assert run(["agent", *words]) == EXIT_USAGE
    told = capsys.readouterr().err
    assert expected in told
    assert "Traceback" not in told
    assert host.kernel.objects == before


def test_no_secret_is_in_what_an_agent_says_or_keeps(
    host: FakeHost, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[str] = []

    def end(status: AgentStatus) -> None:
        seen.append(str(status))
        post_stop(host.socket, release=False)

    with caplog.at_level(logging.DEBUG):
        host.agent("--etcd-username", "muslin", "--etcd-password", "hunter2", once_ready=end)
    kept = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert "hunter2" not in "".join([*seen, caplog.text, *capsys.readouterr(), *kept])


# ---- settings -------------------------------------------------------------------------------------------------


def test_settings_become_the_options_of_host_and_loop(host: FakeHost) -> None:
    of = given(
        node_name="alpha",
        iface=("eth1", "10.0.0.7"),
        iface_can_reach="192.0.2.1",
        public_ip="198.51.100.7",
        public_ipv6="2001:db8::7",
        bridge="cni0",
        ip_masq="true",
        iptables_forward_rules="false",
        lease_ttl=600,
        lease_renew_margin=60,
        resync=7,
    )
    options, loop = host_options(of), node_options(of)
    assert options.underlay.iface == ("eth1", "10.0.0.7")
    assert options.underlay.iface_can_reach == "192.0.2.1"
    assert options.underlay.public_addresses == ("198.51.100.7", "2001:db8::7")
    assert (options.name, options.bridge, options.masquerade, options.forward) == ("alpha", "cni0", True, False)
    assert (loop.name, loop.masquerade, loop.resync_s) == ("alpha", True, 7.0)
    assert (loop.rules.ttl_s, loop.rules.renew_margin_s) == (600.0, 60.0)
    assert loop.subnet_file == host.subnet_file


def test_what_is_not_said_comes_from_the_machine_or_is_left_open(host: FakeHost) -> None:
    of = given()
    assert node_name(of) == os.uname().nodename
    assert host_options(of).underlay.iface_can_reach is None
    assert host_options(of).underlay.public_addresses == ()
    assert node_options(of).rules.ttl_s > node_options(of).rules.renew_margin_s > 0


def test_flannel_s_margin_is_in_minutes_and_ours_in_seconds(host: FakeHost) -> None:
    assert node_options(given(subnet_lease_renew_margin=30)).rules.renew_margin_s == 1800
    assert node_options(given(subnet_lease_renew_margin=30, lease_renew_margin=90)).rules.renew_margin_s == 90


def test_a_network_configuration_comes_as_text_or_from_a_file(tmp_path: Path) -> None:
    text = '{"Network": "10.5.0.0/16"}'
    (tmp_path / "net.json").write_text(text)
    assert read_network_config("") == b""
    assert read_network_config(text) == read_network_config(f"@{tmp_path}/net.json") == text.encode()
    with pytest.raises(UsageError, match="is wrong"):
        read_network_config('{"Network": "10.5.0.0/33"}')


@pytest.mark.parametrize(("mask", "may"), [("000001ffffffffff", True), ("0000000000001000", True), ("0", False)])
def test_it_wants_one_capability(monkeypatch: pytest.MonkeyPatch, mask: str, may: bool) -> None:
    monkeypatch.setattr(builtins, "open", lambda *_: io.StringIO(f"Name:\tx\nCapEff:\t{mask}\n"))
    if may:
        require_privilege()
    else:
        with pytest.raises(UnsupportedError, match="CAP_NET_ADMIN") as caught:
            require_privilege()
        assert "muslin lab up --agents" in caught.value.hint
