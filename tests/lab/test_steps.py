"""The talk's four steps: what stands, by name and number, and that it meets R1, R2 and R3."""

from __future__ import annotations

import pytest

from tests.lab.support import (
    Muslin,
    addresses_of,
    broken,
    links_of,
    netns_names,
    processes_of,
    routes_of,
    sentences,
    sysctl,
    totals,
    ttls_of,
)

pytestmark = pytest.mark.lab

FAMILIES = ("4", "6", "dual")
SMALL: list[tuple[int, str, str, str | None]] = [(step, "l2", family, None) for step in (1, 2) for family in FAMILIES]
SMALL += [(step, "routed", "dual", None) for step in (1, 2)]
LARGE: list[tuple[int, str, str, str | None]] = [
    (step, underlay, family, backend)
    for step, backend in ((3, "host-gw"), (4, "udp"), (4, "vxlan"))
    for underlay in ("l2", "routed")
    for family in FAMILIES
    if (backend, underlay) != ("host-gw", "routed")
]
# The other step's backend on each step: only the name of the step differs, so one family tells.
CROSSED: list[tuple[int, str, str, str | None]] = [
    (3, "l2", "4", "udp"),
    (3, "l2", "4", "vxlan"),
    (4, "l2", "4", "host-gw"),
]

CELLS = {1: 4, 2: 12, 3: 48, 4: 48}
SHAPE = {1: (1, 1, 1), 2: (1, 2, 2), 3: (2, 4, 2), 4: (2, 4, 2)}
"""Nodes, containers, addresses of a node (in one family)."""


def options(underlay: str, family: str, backend: str | None) -> list[str]:
    chosen = ["--underlay", underlay, "--family", family]
    return chosen + (["--backend", backend] if backend else [])


def expected_totals(step: int, families: int) -> dict[str, tuple[int, int]]:
    nodes, containers, addresses = SHAPE[step]
    r1 = containers * containers * families
    r2 = containers * nodes * (addresses + 1) * families
    between = nodes * nodes * addresses * families
    return {"R1": (r1, r1), "R2": (r2, r2), "R3": (r1 + r2, r1 + r2), "underlay": (between, between)}


def expected_ttl(source: str, destination: str, address: str, routed: bool, overlay: bool) -> int:
    """64 on one node; each node on the way of a container's packet to another node takes one."""
    if source.rpartition(".")[2] == destination.rpartition(".")[2]:
        return 64
    inner = address.startswith(("172.16.", "fd00:172:16:"))
    routers = int(routed and not (inner and overlay))
    return 64 - ("." in source) - ("." in destination) - routers


@pytest.mark.parametrize(("step", "underlay", "family", "backend"), SMALL + LARGE + CROSSED)
def test_a_step_comes_up_and_proves_all_three_requirements(
    muslin: Muslin, step: int, underlay: str, family: str, backend: str | None
) -> None:
    name = muslin.up("--step", step, *options(underlay, family, backend))

    report = muslin.json("check", "--name", name)

    families = 2 if family == "dual" else 1
    assert report["ok"] is True
    assert len(report["cells"]) == CELLS[step] * families
    assert totals(report) == expected_totals(step, families)
    for cell in report["cells"]:
        pair = cell["result"]["pair"]
        source, destination, address = pair["source"]["name"], pair["destination"]["name"], pair["address"]
        seen = {exchange["ttl"] for exchange in cell["result"]["exchanges"] if "ttl" in exchange}
        overlay = backend in ("udp", "vxlan")
        assert seen == {expected_ttl(source, destination, address, underlay == "routed", overlay)}, pair
        assert {exchange["outcome"] for exchange in cell["result"]["exchanges"]} == {"answered"}
        assert {"icmp", "tcp", "udp"} <= {exchange["protocol"] for exchange in cell["result"]["exchanges"]}
        for exchange in cell["result"]["exchanges"]:
            assert exchange["sent"] == exchange["seen"], pair
            assert exchange["sent"] in cell["result"]["own"], pair


def test_the_talks_ttls_are_64_63_and_62(muslin: Muslin) -> None:
    name = muslin.up("--step", 3)

    for step in (3, 4):
        muslin.up("--step", step, name=name)
        ttls = ttls_of(muslin.json("check", "--name", name))
        assert ttls["con1.node1", "172.16.0.3"] == {64}
        assert ttls["con1.node1", "172.16.0.1"] == {64}
        assert ttls["con1.node1", "172.16.1.2"] == {62}
        assert ttls["node1", "172.16.1.2"] == {63}
        assert ttls["con1.node1", "10.0.0.20"] == {63}


@pytest.mark.parametrize("family", FAMILIES)
def test_routes_cannot_cross_a_router_that_does_not_know_them(muslin: Muslin, family: str) -> None:
    name = muslin.new_name()
    done = muslin.lab("up", "--name", name, "--step", 3, "--underlay", "routed", "--family", family, code=4)
    assert done.stderr.count("warning: host-gw cannot reach") == 2
    assert "an overlay (step 4, or the vxlan backend) can" in done.stderr

    report = muslin.json("check", "--name", name, "--timeout", "0.4", code=1)

    assert report["ok"] is False
    assert {"R1", "R2"} <= broken(report)
    passed, of = totals(report)["R1"]
    # Containers of one node still reach each other; no pair of two nodes does.
    assert passed * 2 == of
    assert any(sentence.startswith("R1 broken: con1.node1 -> ") for sentence in sentences(report))
    shown = muslin.lab("check", "--name", name, "--timeout", "0.4", "--test", "con1.node1 -> ", code=1).stdout
    assert "FAILED" in shown
    assert "R1 and R2 broken" in shown


# ---- exactly what lab.md, section 1, says ------------------------------------------------------------------


def test_step_1_is_one_container_on_a_cable_with_itself_as_gateway(muslin: Muslin) -> None:
    name = muslin.up("--step", 1)

    assert netns_names(name) == {"lan0", "node1", "con.node1"}
    assert set(links_of(name, "node1")) == {"lo", "eth0", "veth1"}
    assert set(links_of(name, "con.node1")) == {"lo", "veth2"}
    assert addresses_of(name, "node1") == {"eth0": {"10.0.0.10/24"}, "veth1": set()}
    assert addresses_of(name, "con.node1") == {"veth2": {"172.16.0.1/32"}}
    assert routes_of(name, "node1") == {"10.0.0.0/24 dev eth0", "172.16.0.1 dev veth1"}
    assert routes_of(name, "con.node1") == {"default via 172.16.0.1 dev veth2"}
    for place in ("node1", "con.node1"):
        assert all("UP" in link["flags"] for link in links_of(name, place).values())
    assert sysctl(name, "node1", "net.ipv4.ip_forward") == "0"


def test_step_2_is_a_bridge_with_two_containers(muslin: Muslin) -> None:
    name = muslin.up("--step", 2)

    assert netns_names(name) == {"lan0", "node1", "con1.node1", "con2.node1"}
    links = links_of(name, "node1")
    assert set(links) == {"lo", "eth0", "br0", "veth10", "veth20"}
    assert links["br0"]["linkinfo"]["info_kind"] == "bridge"
    assert {link for link, told in links.items() if told.get("master") == "br0"} == {"veth10", "veth20"}
    assert addresses_of(name, "node1") == {
        "eth0": {"10.0.0.10/24"}, "br0": {"172.16.0.1/24"}, "veth10": set(), "veth20": set(),
    }  # fmt: skip
    assert routes_of(name, "node1") == {"10.0.0.0/24 dev eth0", "172.16.0.0/24 dev br0"}
    for place, link, address in (("con1", "veth11", "172.16.0.2/24"), ("con2", "veth21", "172.16.0.3/24")):
        assert addresses_of(name, f"{place}.node1") == {link: {address}}
        assert routes_of(name, f"{place}.node1") == {f"default via 172.16.0.1 dev {link}", f"172.16.0.0/24 dev {link}"}
    assert sysctl(name, "node1", "net.ipv4.ip_forward") == "0"


def check_two_nodes(name: str, extra_links: set[str]) -> None:
    assert netns_names(name) == {
        "lan0", "node1", "con1.node1", "con2.node1", "node2", "con1.node2", "con2.node2",
    }  # fmt: skip
    for number, node in enumerate(("node1", "node2")):
        assert set(links_of(name, node)) == {"lo", "eth0", "br0", "veth10", "veth20"} | extra_links
        addresses = addresses_of(name, node)
        assert addresses["eth0"] == {f"10.0.0.{10 * (number + 1)}/24"}
        assert addresses["br0"] == {f"172.16.{number}.1/24"}
        assert addresses_of(name, f"con1.{node}") == {"veth11": {f"172.16.{number}.2/24"}}
        assert addresses_of(name, f"con2.{node}") == {"veth21": {f"172.16.{number}.3/24"}}
        assert f"default via 172.16.{number}.1 dev veth11" in routes_of(name, f"con1.{node}")
        assert sysctl(name, node, "net.ipv4.ip_forward") == "1"


def test_step_3_is_one_route_and_forwarding_on_each_node(muslin: Muslin) -> None:
    name = muslin.up("--step", 3)

    check_two_nodes(name, set())
    local = {"10.0.0.0/24 dev eth0"}
    assert routes_of(name, "node1") == local | {"172.16.0.0/24 dev br0", "172.16.1.0/24 via 10.0.0.20 dev eth0"}
    assert routes_of(name, "node2") == local | {"172.16.1.0/24 dev br0", "172.16.0.0/24 via 10.0.0.10 dev eth0"}


def test_step_4_is_a_tun_device_for_the_whole_network_and_no_route_to_a_subnet(muslin: Muslin) -> None:
    name = muslin.up("--step", 4)

    check_two_nodes(name, {"tun0"})
    for number, node in enumerate(("node1", "node2")):
        tun = links_of(name, node)["tun0"]
        assert tun["linkinfo"]["info_kind"] == "tun"
        assert tun["linkinfo"]["info_data"]["pi"] is False
        assert tun["mtu"] == 1472
        assert "LOWER_UP" in tun["flags"]
        assert addresses_of(name, node)["tun0"] == {f"172.16.{number}.100/16"}
        assert routes_of(name, node) == {
            "10.0.0.0/24 dev eth0", f"172.16.{number}.0/24 dev br0", "172.16.0.0/16 dev tun0",
        }  # fmt: skip
        for scope in ("all", "eth0", "br0", "tun0"):
            assert sysctl(name, node, f"net.ipv4.conf.{scope}.rp_filter") == "0"
        assert len(processes_of(name, node)) == 1


def test_a_large_lab_stands_is_checked_by_sample_and_goes(muslin: Muslin) -> None:
    name = muslin.up("--step", 4, "--nodes", 20, "--containers", 10)
    assert len(netns_names(name)) == 1 + 20 * 11

    report = muslin.json("check", "--name", name, "--sample", 200)
    gone = muslin.json("down", name)

    assert len(report["cells"]) == 200
    assert report["ok"] is True
    assert len(gone["labs"][0]["removed"]) == 221
    assert gone["labs"][0]["ended"] == 20
    assert netns_names(name) == set()
