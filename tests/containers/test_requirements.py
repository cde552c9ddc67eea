"""The three requirements between real containers: who reaches whom, and which address is seen.

Theory of operation: first `muslin check` itself: its sockets are opened in the containers' own namespaces, and each
pair exchanges ICMP, TCP and UDP, in which the far end says what it saw. Then from inside: programs of the containers
ask web servers in the containers and on the hosts, which answer with the address that they saw.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator

import msgspec

from muslin.verify.matrix import Endpoint, all_pairs
from muslin.verify.probe import run_checks
from muslin.verify.report import render_verdict
from muslin.verify.verdict import make_report
from tests.containers.containerd import Containerd, Pod
from tests.containers.hosts import Host
from tests.containers.images import BUSYBOX
from tests.containers.podman import Podman, all_seen_as, fetch, fetch_each
from tests.lab.support import wait_until

EACH = 2
"""Containers on each host."""
PORT = 8088


class Place(msgspec.Struct, frozen=True):
    """A container that runs, whatever runtime started it."""

    name: str
    host: Host
    address: str
    netns: str
    runtime: Podman | Containerd
    pod: Pod | None = None

    def ask(self, addresses: list[str], port: int = 80) -> list[str]:
        """What web servers say that this container's address is."""
        words = fetch_each(addresses, port)
        if isinstance(self.runtime, Podman):
            return all_seen_as(self.runtime.exec(self.name, *words))
        assert self.pod is not None
        return all_seen_as(self.runtime.exec(self.pod, *words))


def start_places(podmen: tuple[Podman, ...], kubelets: tuple[Containerd, ...]) -> list[Place]:
    """Containers on all hosts."""
    found = []
    for podman in podmen:
        for name in (f"web{number}" for number in range(EACH)):
            address = podman.start(name)
            found.append(Place(name, podman.host, address, podman.netns(name), podman))
    for kubelet in kubelets:
        for pod in kubelet.run_pods(*(f"web{number}" for number in range(EACH))):
            found.append(Place(pod.name, kubelet.host, pod.address, kubelet.netns(pod), kubelet, pod))
    return found


def endpoints(places: list[Place]) -> list[Endpoint]:
    """The containers and their hosts, as `muslin check` names them."""
    found = [
        Endpoint(
            name=f"{place.name}.{place.host.name}",
            role="container",
            node=place.host.name,
            netns=place.netns,
            addresses=(place.address,),
        )
        for place in places
    ]
    for host in {place.host.name: place.host for place in places}.values():
        gateway = host.subnet()["FLANNEL_SUBNET"].partition("/")[0]
        addresses = (host.address, gateway)
        found.append(Endpoint(name=host.name, role="node", node=host.name, netns=host.netns(), addresses=addresses))
    return found


def routers_between(source: Endpoint, destination: Endpoint, address: str) -> int | None:
    """By the overlay: each node that a container's packet crosses is a router, and the segment has none."""
    if source.node == destination.node:
        return 0
    if ipaddress.ip_address(address) in ipaddress.ip_network("10.244.0.0/16"):
        return (source.role == "container") + (destination.role == "container")
    return 1 if source.role == "container" else 0


def test_the_three_requirements_hold(podmen: tuple[Podman, ...], kubelets: tuple[Containerd, ...]) -> None:
    pairs = all_pairs(endpoints(start_places(podmen, kubelets)), routers_between)
    report = make_report(run_checks(pairs), 0.0)
    hosts = len(podmen) + len(kubelets)
    containers = hosts * EACH
    assert sum(pair.requirement == "R1" for pair in pairs) == containers**2
    assert sum(pair.requirement == "R2" for pair in pairs) == 3 * containers * hosts
    assert report.ok, render_verdict(report)


def test_programs_in_containers_are_seen_with_their_own_addresses(
    podmen: tuple[Podman, ...], kubelets: tuple[Containerd, ...]
) -> None:
    places = start_places(podmen, kubelets)
    addresses = [place.address for place in places]
    for source in places:
        assert source.ask(addresses) == [source.address] * len(places), f"{source.name} of {source.host.name}"


def test_hosts_and_containers_see_each_others_own_addresses(
    podmen: tuple[Podman, ...], kubelets: tuple[Containerd, ...]
) -> None:
    places = start_places(podmen, kubelets)
    hosts = [*(one.host for one in podmen), *(one.host for one in kubelets)]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(web_server(host))
        for place in places:
            assert place.ask([host.address for host in hosts], PORT) == [place.address] * len(hosts), place
    for host in hosts:
        own = set(host.run("hostname", "--all-ip-addresses").split())
        seen = all_seen_as(host.ask(*fetch_each([place.address for place in places])))
        assert len(seen) == len(places)
        assert set(seen) <= own


@contextlib.contextmanager
def web_server(host: Host) -> Iterator[None]:
    """A web server on a host which says whom it sees."""
    process = host.start(BUSYBOX, "httpd", "-f", "-p", str(PORT), "-h", host.underlay.web_directory, log="httpd")
    try:
        asked = ("env", "PATH=/opt/busybox", *fetch("127.0.0.1", port=PORT))
        wait_until(lambda: host.try_run(*asked).returncode == 0, "the server serves")
        yield
    finally:
        host.end(process)
