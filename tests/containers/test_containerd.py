"""Pods of containerd, by ctr(8) and by CRI, on two hosts."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable

import pytest
from grpclib.exceptions import GRPCError

from tests.containers.containerd import Containerd
from tests.containers.hosts import Host, all_settled
from tests.containers.plugins import ours_only
from tests.containers.podman import all_seen_as, fetch, fetch_each, seen_as
from tests.lab.support import wait_until

MANY = 20


def make_containerd(host: Host) -> Containerd:
    one = Containerd(host)
    one.start()
    one.load()
    return one


def test_ctr_runs_a_container_in_the_network(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    web = there.run_pod("web")
    subnet = ipaddress.ip_interface(here.host.subnet()["FLANNEL_SUBNET"]).network
    seen = seen_as(here.ctr_run("once", *fetch(web.address), options=["--rm"]))
    assert ipaddress.ip_address(seen) in subnet


def test_a_pod_runs_executes_stops_and_goes(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    web, asker = here.run_pod("web"), there.run_pod("asker")
    assert web.address in here.exec(web, "ip", "-4", "address", "show", "dev", "eth0")
    assert seen_as(there.exec(asker, *fetch(web.address))) == asker.address
    here.stop(web)
    told = there.call("ExecSync", container_id=asker.container, cmd=fetch(web.address, patience_s=1), timeout=30)
    assert told.exit_code != 0
    here.remove(web)
    assert not here.call("ListPodSandbox").items


def test_pods_see_each_other_both_ways(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    one, other = here.run_pod("one"), there.run_pod("other")
    assert seen_as(here.exec(one, *fetch(other.address))) == one.address
    assert seen_as(there.exec(other, *fetch(one.address))) == other.address


def test_many_pods_start_and_end_at_once(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    asker = there.run_pod("asker")
    pods = here.run_pods(*(f"web{number}" for number in range(MANY)))
    assert len({pod.address for pod in pods}) == MANY
    told = there.exec(asker, *fetch_each(pod.address for pod in pods))
    assert all_seen_as(told) == [asker.address] * MANY
    here.remove(*pods)


def test_a_pod_stopped_again_and_again_disturbs_no_other(kubelets: tuple[Containerd, ...]) -> None:
    """containerd asks for DEL each time, later without netns and prevResult (kubernetes#44100, cilium#10065)."""
    here, there = kubelets
    asker, first = there.run_pod("asker"), here.run_pod("first")
    here.stop(first)
    others = here.run_pods(*(f"other{number}" for number in range(3)))
    for _ in range(3):
        here.stop(first)
    told = there.exec(asker, *fetch_each(pod.address for pod in others))
    assert all_seen_as(told) == [asker.address] * len(others)
    late = here.run_pod("late")
    assert late.address not in {pod.address for pod in others}


def test_a_pods_port_is_reached_from_the_other_host_and_its_pods(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    here.run_pod("web", port_mappings=[{"container_port": 80, "host_port": 8082}])
    asker = there.run_pod("asker")
    words = fetch(here.host.address, port=8082)
    assert seen_as(there.host.ask(*words)) == there.host.address
    assert seen_as(there.exec(asker, *words)) == asker.address


def test_a_pod_resolves_names_as_its_configuration_says(kubelets: tuple[Containerd, ...]) -> None:
    here = kubelets[0]
    asked = {"servers": ["192.0.2.77"], "searches": ["own.example"], "options": ["ndots:3"]}
    told = here.exec(here.run_pod("one", dns_config=asked), "cat", "/etc/resolv.conf")
    for line in ("nameserver 192.0.2.77", "search own.example", "options ndots:3"):
        assert line in told


def test_pods_outlive_containerd_and_can_be_removed_afterwards(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    web, asker = here.run_pod("web"), there.run_pod("asker")
    here.end()
    assert there.exec(asker, *fetch(web.address, "/")) == "muslin\n"
    here.start()
    here.remove(web)


def test_after_a_power_cut_old_pods_are_removed_and_new_ones_run(new_host: Callable[[], Host]) -> None:
    """The reservation outlived the pod's namespace; DEL comes without one when the old pod is removed (cri#948)."""
    host = new_host()
    here = make_containerd(host)
    old = here.run_pods("old1", "old2")
    host.cut_power()
    host.boot()
    host.start_agent()
    wait_until(lambda: all_settled(host.underlay.living), "routes lead to the host again")
    here.start()
    new = here.run_pod("new")
    assert new.address not in {pod.address for pod in old}
    here.remove(*old)
    assert here.exec(new, *fetch(new.address, "/")) == "muslin\n"
    here.remove(new)
    held = [one for one in host.path("/var/lib/cni").rglob("*") if one.name.startswith("10.244.")]
    assert not held


@ours_only
def test_without_an_agent_no_pod_starts_and_every_pod_stops(new_host: Callable[[], Host]) -> None:
    host = new_host()
    here = make_containerd(host)
    old = here.run_pod("old")
    host.end_agent()
    with pytest.raises(GRPCError, match="muslin-cni"):
        here.call("RunPodSandbox", config=here.config("new"))
    here.remove(old)
    assert list(host.path("/run/muslin-agent/cni-spool").iterdir())
    host.start_agent()
    wait_until(lambda: not list(host.path("/run/muslin-agent/cni-spool").iterdir()), "the agent works its spool off")
    assert not [line for line in host.run("ip", "-o", "link").splitlines() if ": mus" in line]
    new = here.run_pod("new")
    assert here.exec(new, *fetch(new.address, "/")) == "muslin\n"


@ours_only
def test_a_pod_answers_while_its_agent_is_away(kubelets: tuple[Containerd, ...]) -> None:
    here, there = kubelets
    web, asker = here.run_pod("web"), there.run_pod("asker")
    here.host.end_agent()
    try:
        assert seen_as(there.exec(asker, *fetch(web.address))) == asker.address
    finally:
        here.host.start_agent()
    assert seen_as(there.exec(asker, *fetch(web.address))) == asker.address


def test_containerd_understands_the_plugins_result(kubelets: tuple[Containerd, ...]) -> None:
    """containerd keeps the plugin's result, of the version that the conflist names."""
    here = kubelets[0]
    pod = here.run_pod("web")
    told = here.call("PodSandboxStatus", pod_sandbox_id=pod.sandbox, verbose=True)
    interfaces = json.loads(told.info["info"])["cniResult"]["Interfaces"]
    (address,) = interfaces["eth0"]["IPConfigs"]
    assert address["IP"] == pod.address
    gateway = ipaddress.ip_interface(here.host.subnet()["FLANNEL_SUBNET"]).ip
    assert address["Gateway"] == str(gateway)
