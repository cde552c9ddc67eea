"""Containers of podman, from their start to their end, on two hosts."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable

import pytest

from tests.containers.hosts import Host, all_settled
from tests.containers.plugins import DNS, ours_only
from tests.containers.podman import Podman, all_seen_as, fetch, fetch_each, seen_as
from tests.lab.support import wait_until

MANY = 20


def test_a_container_runs_stops_starts_and_goes(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    first = here.start("web")
    assert ipaddress.ip_address(first) in ipaddress.ip_interface(here.host.subnet()["FLANNEL_SUBNET"]).network
    assert f" {first}/" in here.exec("web", "ip", "-4", "address", "show", "dev", "eth0")
    asker = there.start("asker")
    here("stop", "web")
    assert there.attempt("exec", "asker", *fetch(first, patience_s=1)).returncode != 0
    here("start", "web")
    again = here.address("web")
    assert seen_as(there.exec("asker", *fetch(again))) == asker
    here.remove("web")
    assert here.names() == set()


def test_a_restart_leads_into_a_new_namespace_that_is_reached_as_well(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    here.start("web")
    there.start("asker")
    netns = here.netns("web")
    here("restart", "web")
    assert here.netns("web") != netns
    assert there.exec("asker", *fetch(here.address("web"), "/")) == "muslin"


def test_a_reload_of_the_network_keeps_address_and_mac(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    asker = there.start("asker")
    here.start("web")
    before = here.network("web")
    here("network", "reload", "web")
    after = here.network("web")
    assert (after["IPAddress"], after["MacAddress"]) == (before["IPAddress"], before["MacAddress"])
    assert before["MacAddress"] in here.exec("web", "ip", "link", "show", "dev", "eth0")
    assert seen_as(there.exec("asker", *fetch(after["IPAddress"]))) == asker


def test_a_published_port_is_reached_from_the_other_host_and_its_containers(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    here.start("web", options=("--publish=8081:80",))
    asker = there.start("asker")
    words = fetch(here.host.address, port=8081)
    assert seen_as(there.host.ask(*words)) == there.host.address
    assert seen_as(there.exec("asker", *words)) == asker


def test_address_and_mac_can_be_chosen(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    there.start("asker")
    network = ipaddress.ip_interface(here.host.subnet()["FLANNEL_SUBNET"]).network
    wanted, mac = str(network[99]), "02:00:00:00:77:01"
    assert here.start("web", options=(f"--ip={wanted}", f"--mac-address={mac}")) == wanted
    assert mac in here.exec("web", "ip", "link", "show", "dev", "eth0")
    assert there.exec("asker", *fetch(wanted, "/")) == "muslin"


@pytest.mark.parametrize("wanted", ["taken", "outside", "gateway"])
def test_an_address_that_cannot_be_had_is_refused_and_nothing_is_left(podmen: tuple[Podman, ...], wanted: str) -> None:
    here = podmen[0]
    holder = here.start("holder")
    network = ipaddress.ip_interface(here.host.subnet()["FLANNEL_SUBNET"])
    address = {"taken": holder, "outside": "198.51.100.7", "gateway": str(network.ip)}[wanted]
    refused = here.attempt(*here.run_words("web", options=(f"--ip={address}",)))
    assert refused.returncode != 0
    assert address in refused.stderr
    here.remove("web")  # whose network never was; the fixture looks for what is left


def test_name_servers_are_those_of_the_conflist_or_of_the_command(podmen: tuple[Podman, ...]) -> None:
    here = podmen[0]
    here.start("plain")
    told = here.exec("plain", "cat", "/etc/resolv.conf")
    assert f"nameserver {DNS['nameservers'][0]}" in told
    assert DNS["search"][0] in told
    here.start("own", options=("--dns=192.0.2.77", "--dns-search=own.example", "--dns-option=ndots:3"))
    told = here.exec("own", "cat", "/etc/resolv.conf")
    for line in ("nameserver 192.0.2.77", "search own.example", "options ndots:3"):
        assert line in told


def test_many_containers_start_and_end_at_once(podmen: tuple[Podman, ...]) -> None:
    here, there = podmen
    asker = there.start("asker")
    names = [f"web{number}" for number in range(MANY)]
    _all_at_once(here, [here.run_words(name) for name in names])
    addresses = {here.address(name) for name in names}
    assert len(addresses) == MANY
    assert all_seen_as(there.exec("asker", *fetch_each(addresses))) == [asker] * MANY
    _all_at_once(here, [("rm", "--force", "--time=0", name) for name in names])
    assert here.names() == set()


def _all_at_once(here: Podman, commands: list[tuple[str, ...]]) -> None:
    running = [
        subprocess.Popen(
            here.host.enter("podman", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=here.host.environment(),
        )
        for words in commands
    ]
    for process, words in zip(running, commands, strict=True):
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, f"{words}: {told}"


@ours_only
def test_after_a_power_cut_a_container_starts_at_once_with_its_address(new_host: Callable[[], Host]) -> None:
    """At boot podman calls no DEL, so a plugin sees an ADD of an id that it still has (podman#3759)."""
    here, there = Podman(new_host()), Podman(new_host())
    for one in (here, there):
        one.load()
    asker, before = there.start("asker"), here.start("web")
    here.start("other")
    here.host.cut_power()
    here.host.boot()
    here.host.start_agent()
    wait_until(lambda: all_settled(here.host.underlay.living), "routes lead to the host again")
    here("start", "web")
    assert here.address("web") == before
    assert seen_as(there.exec("asker", *fetch(before))) == asker
