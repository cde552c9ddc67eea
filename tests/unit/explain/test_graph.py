"""What was seen, as boxes and lines, and its three drawings."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import msgspec

from muslin.explain.graph import Graph, Role, graph_of
from muslin.explain.graph_draw import draw_mermaid, draw_svg, draw_text
from tests.unit.explain.networks import Network, two_nodes
from tests.unit.explain.test_carry import udp, vxlan

ROLES: dict[str, Role] = {"lan": "segment", "con1": "container", "con2": "container"}

TREE = """\
lan (layer 2)
├─ node1  eth0 10.0.0.10/24
│  └─ br0 172.16.0.1/24
│     └─ veth10 ━━ veth11 con1 172.16.0.2/24
└─ node2  eth0 10.0.0.20/24
   └─ br0 172.16.1.1/24
      └─ veth10 ━━ veth11 con2 172.16.1.2/24"""


def made(network: Network) -> Graph:
    return graph_of(network.sights, ROLES)


def test_a_tree_of_segments_hosts_and_containers() -> None:
    assert draw_text(made(two_nodes())) == TREE


def test_each_cable_is_there_once_and_says_whether_it_is_up() -> None:
    network = two_nodes()
    links = network.places["con1"].links
    links[-1] = msgspec.structs.replace(links[-1], up=False)
    graph = made(network)
    assert len(graph.cables) == 4
    assert [cable.near for cable in graph.cables if not cable.up] == ["node1"]
    assert "veth10 ╌╌ veth11 con1" in draw_text(graph)
    assert 'class="down"' in draw_svg(graph)
    assert " -.-|" in draw_mermaid(graph)


def test_an_unplugged_cable_hangs_beside_the_bridge() -> None:
    network = two_nodes()
    links = network.places["node1"].links
    links[-1] = msgspec.structs.replace(links[-1], master_ifindex=0)
    assert "│  ├─ br0 172.16.0.1/24\n│  └─ veth10 ━━ veth11 con1" in draw_text(made(network))


def test_tunnels_of_both_kinds_are_known_by_their_outer_addresses() -> None:
    for network, kind, link in ((udp(), "udp", "tun0"), (vxlan(), "vxlan", "vxlan1")):
        graph = made(network)
        assert {(one.near, one.far, one.kind, one.link) for one in graph.tunnels} == {
            ("node1", "node2", kind, link), ("node2", "node1", kind, link),
        }  # fmt: skip
        assert f"⇢ node2 ({kind})" in draw_text(graph)
        assert draw_mermaid(graph).count("<-.->") == 1


def test_the_picture_is_well_formed_whatever_names_there_are() -> None:
    graph = made(two_nodes())
    odd = msgspec.structs.replace(graph.boxes[0], name='<b>&"x')
    renamed = msgspec.structs.replace(graph, boxes=(odd, *graph.boxes[1:]), cables=())
    root = ET.fromstring(draw_svg(renamed))
    texts = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert '<b>&"x' in texts
    assert "#lt;b>&#quot;x" in draw_mermaid(renamed)


def test_a_host_on_no_segment_is_drawn_too() -> None:
    network = Network()
    network.add("node1").link("br0", "172.16.0.1/24", kind="bridge")
    assert draw_text(graph_of(network.sights, {})) == "node1\n  └─ br0 172.16.0.1/24"
    ET.fromstring(draw_svg(graph_of(network.sights, {})))
