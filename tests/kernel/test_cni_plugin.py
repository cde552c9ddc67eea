"""The real plugin and a real agent: whole documents of each version, chains, roll-back, what can be seen of it.

See tests/kernel/containers.py for the nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muslin.agent.attachment_plan import host_link
from tests.kernel.containers import (
    DUAL,
    IPV4,
    IPV6,
    NEEDS,
    NEEDS_OTHERS,
    OTHERS,
    Answer,
    Cluster,
    Node,
    audited,
    running,
)

pytestmark = NEEDS

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bridge": ("cni0", DUAL),
    "bridge-ipv4": ("cni0", IPV4),
    "bridge-ipv6": ("cni0", IPV6),
    "routed": ("", DUAL),
    "routed-ipv4": ("", IPV4),
    "routed-ipv6": ("", IPV6),
}


@pytest.fixture(scope="module", params=SETTINGS)
def any_node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node of each kind."""
    bridge, network = SETTINGS[request.param]
    with running(Cluster(tmp_path_factory.mktemp("cni"), network, bridge)) as cluster:
        first_container_makes_the_filter(cluster.nodes[0])
        yield cluster.nodes[0]


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(Cluster(tmp_path_factory.mktemp("cni"), DUAL)) as cluster:
        first_container_makes_the_filter(cluster.nodes[0])
        yield cluster.nodes[0]


@pytest.fixture
def each(any_node: Node) -> Iterator[Node]:
    with audited(any_node):
        yield any_node


@pytest.fixture
def node(one_node: Node) -> Iterator[Node]:
    with audited(one_node):
        yield one_node


def first_container_makes_the_filter(node: Node) -> None:
    node.add("first")
    node.remove("first")


def gateway_of(subnet: str) -> str:
    return re.sub(r"0/24$|/64$", "1", subnet)


# ---- documents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_whole_document_of_each_version(each: Node, version: str) -> None:
    answer = each.add("one", cniVersion=version, dns={"nameservers": ["10.0.0.53"], "domain": "pods.example"})
    families = [4 if "." in subnet else 6 for subnet in each.subnets]
    (seen,) = json.loads(each.run("ip -j address show dev eth0", each.prefix + "one"))
    (near,) = json.loads(each.run(f"ip -j link show {host_link('one', 'eth0', checked=True)}"))
    mtu: dict[str, Any] = {"mtu": 1500} if version == "1.1.0" else {}
    number = 2 if each.bridge else 1
    gateways = {
        family: re.sub(r"0/24$|/64$", "1", subnet) for family, subnet in zip(families, each.subnets, strict=True)
    }
    addresses = {
        4 if one["family"] == "inet" else 6: one["local"] for one in seen["addr_info"] if one["scope"] == "global"
    }
    lengths = {4: 24, 6: 64}
    expected = {
        "cniVersion": version,
        "interfaces": [
            *([{"name": "cni0"}] if each.bridge else []),
            {"name": near["ifname"], "mac": near["address"], **mtu},
            {"name": "eth0", "mac": seen["address"], "sandbox": each.path("one"), **mtu},
        ],
        "ips": [
            {
                "address": f"{addresses[family]}/{lengths[family]}",
                "gateway": gateways[family],
                "interface": number,
                **({"version": str(family)} if version < "1.0.0" else {}),
            }
            for family in families
        ],
        "routes": [{"dst": "0.0.0.0/0" if family == 4 else "::/0", "gw": gateways[family]} for family in families],
        "dns": {"nameservers": ["10.0.0.53"], "domain": "pods.example"},
    }
    assert answer.document == expected
    assert answer.stderr == ""


def test_a_whole_life_on_each_kind_of_node(each: Node) -> None:
    added = each.add("one")
    for subnet in each.subnets:
        assert each.pings("one", gateway_of(subnet))
    assert each.call("CHECK", "one", prevResult=added.document) == Answer(status=0, stdout="")
    assert each.call("STATUS", "one") == Answer(status=0, stdout="")
    two = each.add("two")
    for address in two.addresses:
        assert each.pings("one", address.partition("/")[0])
    again = each.call("ADD", "one")
    assert again.code == 101
    each.remove("one", "two")


def test_version_is_answered_without_an_agent(node: Node, tmp_path: Path) -> None:
    dummies = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy", "CNI_CONTAINERID": ""}
    for version in ("0.3.1", "1.1.0"):
        answer = node.call("VERSION", env=dummies, stdin=json.dumps({"cniVersion": version})).works()
        assert answer.document == {"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


# ---- what a configuration may say ------------------------------------------------------------------------


def test_mtu_and_ways_out(each: Node) -> None:
    each.add("one", mtu=1300, defaultRoute=False)
    routes = each.run("ip route", each.prefix + "one") + each.run("ip -6 route", each.prefix + "one")
    assert "default" not in routes
    for subnet in each.subnets:
        assert ("10.5.0.0/16 via" if "." in subnet else "fd00:10:5::/48 via") in routes
    (link,) = json.loads(each.run("ip -j link show eth0", each.prefix + "one"))
    assert link["mtu"] == 1300
    larger = each.call("ADD", "one", mtu=9000, env={"CNI_IFNAME": "net1"})
    assert larger.code == 7
    assert "mtu is 9000" in larger.msg


def test_a_container_that_had_ipv6_turned_off_has_it(each: Node) -> None:
    netns = each.make_netns("one")
    for scope in ("all", "default"):
        each.run(f"sysctl -q -w net.ipv6.conf.{scope}.disable_ipv6=1", netns)
    answer = each.add("one")
    seen = each.run("ip -o address show dev eth0", netns)
    assert all(address.partition("/")[0] in seen for address in answer.addresses)


def test_an_interface_of_a_strange_name(node: Node) -> None:
    for name in ("a", "fifteen-letters", "e\u00e9"):
        node.add("one", env={"CNI_IFNAME": name})
        assert name in node.links_in("one")
        node.delete("one", env={"CNI_IFNAME": name})
    assert node.links_in("one") == set()


# ---- chains ----------------------------------------------------------------------------------------------


def chain(node: Node, command: str, name: str, plugins: list[tuple[Path | None, dict[str, Any]]]) -> dict[str, Any]:
    """What libcni does with a list of plugins, None being ours; the last result."""
    result: dict[str, Any] = {}
    if command == "ADD":
        node.make_netns(name)
    for plugin, keys in plugins if command == "ADD" else plugins[::-1]:
        conf = (
            {**node.conf(cniVersion="1.0.0"), **keys}
            if plugin is None
            else {"cniVersion": "1.0.0", "name": "pods", **keys}
        )
        conf |= {"prevResult": result} if result else {}
        path = {} if plugin is None else {"plugin": plugin}
        answer = node.call(command, name, stdin=json.dumps(conf), **path).works()  # type: ignore[arg-type]
        result = json.loads(answer.stdout) if answer.stdout.strip() else result
    return result


@NEEDS_OTHERS
def test_portmap_and_bandwidth_and_tuning_behind_ours(node: Node) -> None:
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    limits = {"bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6, "egressRate": 10**6, "egressBurst": 10**6}}
    plugins: list[tuple[Path | None, dict[str, Any]]] = [
        (None, {}),
        (OTHERS / "tuning", {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
        (OTHERS / "bandwidth", {"type": "bandwidth", "runtimeConfig": limits}),
        (OTHERS / "portmap", {"type": "portmap", "snat": True, "runtimeConfig": ports}),
    ]
    result = chain(node, "ADD", "one", plugins)
    assert [one["name"] for one in result["interfaces"]][:3] == ["cni0", host_link("one", "eth0", checked=True), "eth0"]
    assert node.run("sysctl -n net.core.somaxconn", node.prefix + "one").strip() == "500"
    assert "tbf" in node.run(f"tc qdisc show dev {host_link('one', 'eth0', checked=True)}")
    assert "8080" in node.run("iptables-save -t nat")
    assert node.call("CHECK", "one", prevResult=result) == Answer(status=0, stdout="")
    assert node.pings("one", gateway_of(node.subnets[0]))
    chain(node, "DEL", "one", plugins)
    assert "8080" not in node.run("iptables-save -t nat")
    for family in ("iptables", "ip6tables"):
        node.run(f"{family} -t nat -F")
        node.run(f"{family} -t nat -X")


@NEEDS_OTHERS
def test_tuning_may_change_mac_and_mtu_behind_ours_and_a_check_agrees(node: Node) -> None:
    """As its result says so: the interface is as the chain has left it."""
    change = {"type": "tuning", "mtu": 1400}
    plugins: list[tuple[Path | None, dict[str, Any]]] = [(None, {}), (OTHERS / "tuning", change)]
    result = chain(node, "ADD", "one", plugins)
    result["cniVersion"] = "1.1.0"
    for one in result["interfaces"]:
        if one["name"] == "eth0":
            one["mtu"] = 1400
    (link,) = json.loads(node.run("ip -j link show eth0", node.prefix + "one"))
    assert link["mtu"] == 1400
    assert node.call("CHECK", "one", prevResult=result) == Answer(status=0, stdout="")
    chain(node, "DEL", "one", plugins)


@NEEDS_OTHERS
def test_another_plugin_before_ours_gives_a_second_interface(node: Node) -> None:
    ipam = {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": str(node.directory / "ipam")}
    ptp = json.dumps({"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": ipam})
    other = {"plugin": OTHERS / "ptp", "env": {"CNI_IFNAME": "net0"}, "stdin": ptp}
    node.make_netns("one")
    first = node.call("ADD", "one", **other).works().document  # type: ignore[arg-type]
    second = node.call("ADD", "one", cniVersion="1.0.0", prevResult=first).works().document
    assert second["interfaces"][: len(first["interfaces"])] == first["interfaces"]
    assert second["ips"][0] == first["ips"][0]
    assert second["interfaces"][second["ips"][1]["interface"]]["name"] == "eth0"
    assert node.links_in("one") == {"net0", "eth0"}
    node.delete("one")
    assert node.links_in("one") == {"net0"}
    node.call("DEL", "one", **other).works()  # type: ignore[arg-type]


def test_ours_twice_in_one_list(node: Node) -> None:
    first = node.add("one")
    second = node.call("ADD", "one", prevResult=first.document)
    assert second.code == 7
    assert "stands twice in the list" in second.msg
    assert node.links_in("one") == {"eth0"}


# ---- what can be seen ------------------------------------------------------------------------------------


def test_status_metrics_and_the_list_of_containers(each: Node) -> None:
    each.add("one")
    each.add("two", spoofCheck=False)
    status = each.status.containers
    assert status is not None
    assert (status.connected, status.bridge, status.troubles) == (2, each.bridge, ())
    assert "2 connected" in each.muslin("status")
    metrics = each.ask("/v1/metrics")
    assert "\nmuslin_containers 2.0\n" in metrics
    assert re.search(
        r'muslin_addresses_free{subnet="10\.5\.\d+\.0/24"} 251\.0|muslin_addresses_free{subnet="fd00', metrics
    )
    shown = each.containers()
    assert [(one["container_id"], one["interface"], one["network"]) for one in shown] == [
        ("one", "eth0", "pods"),
        ("two", "eth0", "pods"),
    ]
    assert [one["cable"] for one in shown] == [
        host_link("one", "eth0", checked=True),
        host_link("two", "eth0", checked=False),
    ]
