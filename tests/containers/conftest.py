"""What the tests of containers share: hosts with runtimes, and the proof that nothing is left of them.

Theory of operation: hosts live as long as the session, since a runtime takes a second to start; after each test its
containers are removed and the host must look as it did before. What hurts a host (a power cut, an agent that is away)
gets a host of its own from ``new_host``. Each host's plugin is the one that MUSLIN_TEST_CNI names (plugins.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import IN_CI, list_other_runs
from tests.containers import audit
from tests.containers.containerd import Containerd
from tests.containers.hosts import Host, Underlay, all_settled
from tests.containers.images import BUSYBOX
from tests.containers.plugins import DEBIAN_DIRECTORY, chosen
from tests.containers.podman import Podman
from tests.lab.support import has_one_user, wait_until

NEEDED = {
    "podman": "podman",
    "runc": "runc",
    "containerd": "containerd",
    "ctr": "containerd",
    BUSYBOX: "busybox-static",
    str(DEBIAN_DIRECTORY / "portmap"): "containernetworking-plugins",
    "etcd": "etcd-server",
    "nft": "nftables",
    "nsenter": "util-linux",
}
"""Program to Debian's package."""


@pytest.fixture(scope="session", autouse=True)
def _runtimes_are_needed() -> None:
    if os.geteuid() != 0 or has_one_user():
        pytest.skip("container runtimes need root of the machine: run these tests as root")
    missing = sorted({package for tool, package in NEEDED.items() if shutil.which(tool) is None})
    if missing:
        pytest.skip(f"needs {' '.join(missing)}; ./run test installs what is missing, or: apt-get install ...")
    if not chosen().binary.exists():
        pytest.skip(f"needs {chosen().binary}, which ./run test compiles where there is a C compiler")


@pytest.fixture(scope="session")
def underlay(tmp_path_factory: pytest.TempPathFactory, _runtimes_are_needed: None) -> Iterator[Underlay]:
    """Give the segment of all hosts; after them, the machine is as it was."""
    before = audit.of_machine()
    with Underlay(tmp_path_factory.mktemp("containers")) as one:
        try:
            yield one
        finally:
            for host in one.hosts:
                host.remove()
    directories = [host.directory for host in one.hosts]

    def is_clean() -> bool:
        return not audit.processes_of(directories)

    wait_until(is_clean, f"no process is left: {audit.processes_of(directories)}")
    audit.remove_cgroups()
    told = audit.difference(before, audit.of_machine())
    if told and (IN_CI or not list_other_runs(os.environ["MUSLIN_TEST_RUN"])):
        pytest.fail(f"the machine is not as it was:\n{told}", pytrace=False)


@pytest.fixture
def new_host(underlay: Underlay) -> Iterator[Callable[[], Host]]:
    """Give a function that raises a host for one test, with an agent."""
    with contextlib.ExitStack() as stack:

        def make() -> Host:
            host = underlay.new_host(chosen())
            stack.callback(host.remove)
            host.boot()
            host.start_agent()
            return host

        yield make


@pytest.fixture(scope="session")
def podman_hosts(underlay: Underlay) -> tuple[Podman, ...]:
    """Give two hosts with podman."""
    made = tuple(Podman(host) for host in _raise_hosts(underlay))
    for one in made:
        one.load()
        # portmap's fixed chains are made by the first port, and stay.
        one.start("first", options=("--publish=8080:80",))
        one.remove_all()
    return made


@pytest.fixture(scope="session")
def containerd_hosts(underlay: Underlay) -> tuple[Containerd, ...]:
    """Give two hosts with containerd."""
    made = tuple(Containerd(host) for host in _raise_hosts(underlay))
    for one in made:
        one.start()
        one.load()
        ports = [{"container_port": 80, "host_port": 8080}]
        one.remove(one.run_pod("first", port_mappings=ports))
    return made


def _raise_hosts(underlay: Underlay) -> list[Host]:
    made = [underlay.new_host(chosen()) for _ in range(2)]
    for host in made:
        host.boot()
        host.start_agent()
    wait_until(lambda: all_settled(underlay.living), "all hosts have routes to each other")
    return made


@pytest.fixture
def podmen(podman_hosts: tuple[Podman, ...]) -> Iterator[tuple[Podman, ...]]:
    """Give two hosts with podman; after the test its containers are removed, and the hosts are as they were."""
    before = [audit.of_host(one.host) for one in podman_hosts]
    yield podman_hosts
    for one in podman_hosts:
        one.remove_all()
    _assert_unchanged([one.host for one in podman_hosts], before)


@pytest.fixture
def kubelets(containerd_hosts: tuple[Containerd, ...]) -> Iterator[tuple[Containerd, ...]]:
    """Give two hosts with containerd; after the test its pods are removed, and the hosts are as they were."""
    before = [audit.of_host(one.host) for one in containerd_hosts]
    yield containerd_hosts
    for one in containerd_hosts:
        one.remove_all()
    _assert_unchanged([one.host for one in containerd_hosts], before)


def _assert_unchanged(hosts: list[Host], before: list[audit.Picture]) -> None:
    for host, was in zip(hosts, before, strict=True):
        try:
            wait_until(lambda host=host, was=was: audit.of_host(host) == was, "the host is as it was", 5)  # type: ignore[misc]
        except AssertionError:
            told = audit.difference(was, audit.of_host(host))
            pytest.fail(f"{host.name} is not as it was before the test:\n{told}", pytrace=False)
