"""ADD, CHECK and DEL through libcni itself: its validation, its cache, whole conflists."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

import pytest

from tests.containers import audit
from tests.containers.direct import GO_SOURCES, Attachment, LibcniClient, add_netns, build_client, find_go
from tests.containers.hosts import LAN_ADDRESS, Host, Underlay
from tests.containers.images import PEER_URL_PATH
from tests.containers.plugins import CONFLIST, chosen
from tests.containers.podman import fetch, seen_as
from tests.lab.support import wait_until

CACHE = "/var/lib/cni/results"
FIRST_PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]


@pytest.fixture(scope="module")
def client(underlay: Underlay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibcniClient]:
    """Give libcni on a host of its own."""
    if find_go() is None or not (GO_SOURCES / "src/github.com/containernetworking/cni/libcni").exists():
        pytest.skip("needs golang-go and golang-github-appc-cni-dev; ./run test installs what is missing")
    host = underlay.new_host(chosen())
    host.boot()
    host.start_agent()
    one = LibcniClient(build_client(tmp_path_factory.mktemp("client")), host)
    # portmap's fixed chains are made by the first port, and stay.
    first = Attachment("first", add_netns(host, "first"))
    one("add", first, portMappings=FIRST_PORTS).succeeded()
    one("del", first, portMappings=FIRST_PORTS).succeeded()
    host.run("ip", "netns", "delete", "first")
    yield one
    host.remove()


@pytest.fixture
def place(client: LibcniClient) -> Iterator[Attachment]:
    """Give a container's namespace; after the test it is gone, and so is all that was done for it."""
    host = client.host
    before = audit.of_host(host)
    one = Attachment("box", add_netns(host, "box"))
    yield one
    client("del", one).succeeded()
    host.try_run("ip", "netns", "delete", "box")
    assert not audit.difference(before, audit.of_host(host))


def address_in(host: Host, netns: str = "box", ifname: str = "eth0") -> str:
    """The IPv4 address of a container's interface; empty without one."""
    told = json.loads(host.run("ip", "-n", netns, "-json", "-4", "address", "show") or "[]")
    return next((one["addr_info"][0]["local"] for one in told if one.get("ifname") == ifname), "")


def test_an_attachment_is_made_checked_and_taken_away(client: LibcniClient, place: Attachment) -> None:
    result = client("add", place).succeeded().document
    assert result["cniVersion"] == "1.0.0"
    (ip,) = result["ips"]
    interface = result["interfaces"][ip["interface"]]
    assert (interface["name"], interface["sandbox"]) == ("eth0", place.netns)
    assert ip["address"] == f"{address_in(client.host)}/{ipaddress.ip_interface(ip['address']).network.prefixlen}"
    client.host.run("ip", "netns", "exec", "box", "ping", "-c1", "-W2", ip["gateway"])
    assert client("check", place).succeeded().stdout == ""
    client("del", place).succeeded()
    assert address_in(client.host) == ""


def test_libcni_keeps_the_result_until_the_end(client: LibcniClient, place: Attachment) -> None:
    result = client("add", place).succeeded().document
    (cached,) = (one for one in client.host.path(CACHE).iterdir() if place.container in one.name)
    assert json.loads(cached.read_text())["result"] == result
    client("del", place).succeeded()
    assert not cached.exists()


@pytest.mark.parametrize(
    "damage", ["link delete eth0", "address flush dev eth0", "route delete default"], ids=lambda text: text.split()[0]
)
def test_a_check_fails_once_somebody_took_something_away(client: LibcniClient, place: Attachment, damage: str) -> None:
    client("add", place).succeeded()
    client.host.run("ip", "-n", "box", *damage.split())
    failed = client("check", place)
    assert failed.code == 1
    assert failed.stderr.strip()


def test_a_check_of_what_was_never_attached_fails(client: LibcniClient, place: Attachment) -> None:
    assert client("check", place).code == 1


def test_a_second_add_is_refused_and_changes_nothing(client: LibcniClient, place: Attachment) -> None:
    client("add", place).succeeded()
    before = address_in(client.host)
    assert client("add", place).code == 1
    assert address_in(client.host) == before
    client.host.run("ip", "netns", "exec", "box", "ping", "-c1", "-W2", client.host.address)


def test_one_container_has_two_interfaces(client: LibcniClient, place: Attachment) -> None:
    second = Attachment(place.container, place.netns, "eth1")
    client("add", place).succeeded()
    conflist = json.loads(client.host.path(CONFLIST).read_text())
    without_route = client.host.path("/etc/cni/second.conflist")
    _without_default_route(conflist)
    without_route.write_text(json.dumps(conflist))
    client("add", second, "/etc/cni/second.conflist").succeeded()
    addresses = {address_in(client.host, ifname=name) for name in ("eth0", "eth1")}
    assert len(addresses - {""}) == 2
    client("del", second, "/etc/cni/second.conflist").succeeded()
    assert address_in(client.host) in addresses
    assert address_in(client.host, ifname="eth1") == ""
    without_route.unlink()


def _without_default_route(conflist: dict[str, list[dict[str, object]]]) -> None:
    first = conflist["plugins"][0]
    if "ipam" in first:
        ipam = first["ipam"]
        assert isinstance(ipam, dict)
        del ipam["routes"]
    else:
        first["defaultRoute"] = False


def test_an_end_may_come_twice_and_after_the_namespace(client: LibcniClient, place: Attachment) -> None:
    client("add", place).succeeded()
    client.host.run("ip", "netns", "delete", "box")
    client("del", place).succeeded()
    client("del", place).succeeded()
    client("del", Attachment(place.container)).succeeded()


def test_address_and_mac_may_come_as_arguments(client: LibcniClient, place: Attachment) -> None:
    network = ipaddress.ip_interface(client.host.subnet()["FLANNEL_SUBNET"]).network
    wanted, mac = str(network[77]), "02:00:00:00:77:02"
    args = f"IgnoreUnknown=1;K8S_POD_NAME=box;IP={wanted}" + (f";MAC={mac}" if chosen().is_ours else "")
    client("add", place, args=args).succeeded()
    assert address_in(client.host) == wanted
    if chosen().is_ours:
        assert mac in client.host.run("ip", "-n", "box", "link", "show", "eth0")


def test_addresses_may_come_as_a_capability(client: LibcniClient, place: Attachment) -> None:
    conflist = json.loads(client.host.path(CONFLIST).read_text())
    conflist["plugins"][0]["capabilities"] = {"ips": True, "mac": True}
    path = client.host.path("/etc/cni/capable.conflist")
    path.write_text(json.dumps(conflist))
    subnet = ipaddress.ip_interface(client.host.subnet()["FLANNEL_SUBNET"]).network
    wanted, mac = [f"{subnet[78]}/{subnet.prefixlen}"], "02:00:00:00:77:03"
    client("add", place, "/etc/cni/capable.conflist", ips=wanted, mac=mac).succeeded()
    assert address_in(client.host) == str(subnet[78])
    assert mac in client.host.run("ip", "-n", "box", "link", "show", "eth0")
    client("del", place, "/etc/cni/capable.conflist").succeeded()
    path.unlink()


def test_a_port_may_come_as_a_capability(client: LibcniClient, place: Attachment, underlay: Underlay) -> None:
    ports = [{"hostPort": 8083, "containerPort": 80, "protocol": "tcp"}]
    client("add", place, portMappings=ports).succeeded()
    served = ("busybox", "httpd", "-f", "-p", "80", "-h", underlay.web_directory)
    process = client.host.start("ip", "netns", "exec", "box", *served, log="box")
    try:
        asked = ("env", "PATH=/opt/busybox", *fetch(address_in(client.host)))
        wait_until(lambda: client.host.try_run(*asked).returncode == 0, "the server serves")
        assert seen_as(underlay.fetch(f"http://{client.host.address}:8083{PEER_URL_PATH}")) == LAN_ADDRESS
    finally:
        client.host.end(process)
    client("del", place, portMappings=ports).succeeded()  # a runtime says again what the ports were


def test_a_result_goes_through_plugins_behind_ours(client: LibcniClient, place: Attachment) -> None:
    conflist = json.loads(client.host.path(CONFLIST).read_text())
    conflist["plugins"].append({"type": "tuning", "mtu": 1400})
    path = client.host.path("/etc/cni/tuned.conflist")
    path.write_text(json.dumps(conflist))
    client("add", place, "/etc/cni/tuned.conflist").succeeded()
    assert "mtu 1400" in client.host.run("ip", "-n", "box", "link", "show", "eth0")
    client("del", place, "/etc/cni/tuned.conflist").succeeded()
    path.unlink()
