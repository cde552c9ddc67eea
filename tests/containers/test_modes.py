"""Both modes of the plugin and both families of addresses: a host whose containers are on a bridge, one that routes.

Theory of operation: the mode is a host's, so there is one host of each, with two containers; all of them and the hosts
exchange packets in both families. With Debian's plugin both have a bridge.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import msgspec
import pytest

from muslin.verify.matrix import Endpoint, all_pairs
from muslin.verify.probe import run_checks
from muslin.verify.report import render_verdict
from muslin.verify.verdict import make_report
from tests.containers import audit
from tests.containers.direct import Attachment, add_netns, call, conf_of
from tests.containers.hosts import Host, Underlay, all_settled
from tests.containers.plugins import chosen, ours_only
from tests.containers.podman import Podman, all_seen_as, fetch_each
from tests.lab.support import wait_until

MODES = ("bridge", "routed") if chosen().is_ours else ("bridge", "bridge")
"""Of the two hosts."""
NAMES = ("web0", "web1")


class Box(msgspec.Struct, frozen=True):
    """A container that runs."""

    name: str
    podman: Podman
    addresses: tuple[str, ...]

    @property
    def endpoint(self) -> Endpoint:
        """As `muslin check` names it."""
        host = self.podman.host
        return Endpoint(
            name=f"{self.name}.{host.name}",
            role="container",
            node=host.name,
            netns=self.podman.netns(self.name),
            addresses=self.addresses,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, underlay: Underlay) -> Iterator[tuple[Podman, ...]]:
    """Give two hosts with both families, one of each mode."""
    del underlay  # whose end looks at the whole machine, and comes after ours
    with Underlay(tmp_path_factory.mktemp("dual"), dual=True) as segment:
        try:
            made = tuple(Podman(segment.new_host(chosen(), mode)) for mode in MODES)
            for one in made:
                one.host.boot()
                one.host.start_agent()
                one.load()
            wait_until(lambda: all_settled(segment.hosts), "both hosts have routes to each other")
            yield made
        finally:
            for host in segment.hosts:
                host.remove()


@pytest.fixture
def boxes(pair: tuple[Podman, ...]) -> Iterator[list[Box]]:
    """Give two containers on each host; after the test nothing of them is left."""
    before = [audit.of_host(one.host) for one in pair]
    yield [start_box(podman, name) for podman in pair for name in NAMES]
    for podman in pair:
        podman.remove_all()
    for podman, was in zip(pair, before, strict=True):
        assert not audit.difference(was, audit.of_host(podman.host))


def start_box(podman: Podman, name: str) -> Box:
    """Start a web server."""
    podman.start(name)
    told = podman.network(name)
    return Box(name, podman, (told["IPAddress"], told["GlobalIPv6Address"]))


def host_endpoint(host: Host) -> Endpoint:
    """A host, by its addresses to other hosts and to its containers."""
    names = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
    gateways = (str(ipaddress.ip_interface(host.subnet()[name]).ip) for name in names)
    addresses = (host.address, host.address6, *gateways)
    return Endpoint(name=host.name, role="node", node=host.name, netns=host.netns(), addresses=addresses)


def routers_between(source: Endpoint, destination: Endpoint, address: str) -> int | None:
    """A host is a router on the way out of it and into it, and between its containers where there is no bridge."""
    if source.name == destination.name:
        return 0
    if source.node == destination.node:
        both = source.role == destination.role == "container"
        return 1 if both and source.node == "host2" and "routed" in MODES else 0
    networks = (ipaddress.ip_network("10.244.0.0/16"), ipaddress.ip_network("fd00:10:244::/48"))
    inside = any(ipaddress.ip_address(address) in network for network in networks)
    return (source.role == "container") + (inside and destination.role == "container")


def test_containers_of_both_modes_reach_each_other_in_both_families(boxes: list[Box]) -> None:
    hosts = {box.podman.host.name: box.podman.host for box in boxes}
    endpoints = [*(box.endpoint for box in boxes), *map(host_endpoint, hosts.values())]
    pairs = all_pairs(endpoints, routers_between)
    assert sum(pair.requirement == "R1" for pair in pairs) == 2 * len(boxes) ** 2
    report = make_report(run_checks(pairs), 0.0)
    assert report.ok, render_verdict(report)


def test_programs_in_containers_are_seen_with_their_own_address_of_either_family(boxes: list[Box]) -> None:
    addresses = [address for box in boxes for address in box.addresses]
    for box in boxes:
        seen = all_seen_as(box.podman.exec(box.name, *fetch_each(addresses)))
        assert seen == list(box.addresses) * len(boxes), box.name


@pytest.mark.parametrize("number", [0, 1], ids=MODES)
def test_an_attachment_is_checked_and_taken_away(pair: tuple[Podman, ...], number: int) -> None:
    host = pair[number].host
    before = audit.of_host(host)
    box = Attachment("box", add_netns(host, "box"))
    conf = conf_of(host)
    result = call(host, "ADD", conf, box).succeeded().document
    assert [ipaddress.ip_interface(one["address"]).version for one in result["ips"]] == [4, 6]
    call(host, "CHECK", {**conf, "prevResult": result}, box).succeeded()
    for one in result["ips"]:
        host.run("ip", "netns", "exec", "box", "ping", "-c1", "-W2", one["gateway"])
    call(host, "DEL", {**conf, "prevResult": result}, box).succeeded()
    host.run("ip", "netns", "delete", "box")
    assert not audit.difference(before, audit.of_host(host))


@ours_only
def test_the_mode_that_an_agent_is_not_in_is_refused(pair: tuple[Podman, ...]) -> None:
    for one, other in zip(pair, reversed(MODES), strict=True):
        before = audit.of_host(one.host)
        refused = call(one.host, "ADD", conf_of(one.host, mode=other), Attachment("box", add_netns(one.host, "box")))
        assert refused.document["code"] == 7
        assert other in refused.document["msg"]
        one.host.run("ip", "netns", "delete", "box")
        assert audit.of_host(one.host) == before
