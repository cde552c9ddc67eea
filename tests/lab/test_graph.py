"""``lab graph`` of real labs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tests.lab.support import Muslin


def test_a_lab_is_drawn_as_it_is(muslin: Muslin) -> None:
    name = muslin.up("--step", "4", "--underlay", "routed")
    text = muslin.lab("graph", "--name", name).stdout
    assert "└─ tun0 172.16.0.100/16  ⇢ node2 (udp)" in text
    assert "(see above)" in text, "the router is on both segments"
    muslin.inside(name, "node1", "ip", "link", "set", "veth10", "down")
    assert "veth10 DOWN ╌╌ veth11 con1.node1" in muslin.lab("graph", "--name", name).stdout
    ET.fromstring(muslin.lab("graph", "--as", "svg", "--name", name).stdout)
    assert muslin.lab("graph", "--as", "mermaid", "--name", name).stdout.startswith("flowchart TB\n")
    found = muslin.json("graph", "--name", name)
    assert found["schema"] == "muslin.graph/v1"
    assert {box["role"] for box in found["boxes"]} == {"segment", "router", "node", "container"}
