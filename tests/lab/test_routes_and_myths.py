"""``lab routes`` and ``lab myths`` on real labs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from tests.lab.support import Muslin, netns_of, new_name


def test_routes_have_types_and_the_order_of_the_kernel(muslin: Muslin) -> None:
    name = muslin.up("--step", "4", "--family", "dual")
    muslin.inside(name, "node1", "ip", "route", "add", "172.16.9.0/24", "via", "10.0.0.20")
    text = muslin.lab("routes", "node1", "--name", name).stdout
    assert "static              172.16.9.0/24 via 10.0.0.20 dev eth0" in text
    assert "≠ the talk would take 172.16.0.0/16 dev tun0 (directly connected)" in text
    places = muslin.json("routes", "--name", name)["places"]
    assert {(one["place"], one["family"]) for one in places} >= {("node1", 4), ("node1", 6), ("con1.node2", 4)}
    con1 = next(one for one in places if (one["place"], one["family"]) == ("con1.node1", 4))
    assert [row["type"] for row in con1["routes"]] == ["local", "directly connected", "default"]
    assert "has no 'nowhere'" in muslin.lab("routes", "nowhere", "--name", name, code=2).stderr


def test_a_live_node_lists_its_own_routes(muslin: Muslin) -> None:
    name = muslin.up("--step", "3")
    command = ["ip", "netns", "exec", netns_of(name, "node1"), sys.executable, "-m", "muslin", "routes", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=muslin.environment(), cwd="/")
    found = json.loads(done.stdout)
    assert found["schema"] == "muslin.routes/v1"
    assert any(row["text"] == "172.16.1.0/24 via 10.0.0.20 dev eth0" for row in found["places"][0]["routes"])
    assert "no network namespace" in muslin.run("routes", "no-such", code=2).stderr


def test_each_myth_is_measured_and_its_lab_gone(muslin: Muslin) -> None:
    name = new_name()
    found = muslin.json("myths", "--name", name)["myths"]
    assert [one["name"] for one in found] == ["order", "rp-filter", "mtu", "socat"]
    has_socat = shutil.which("socat") is not None
    assert [one["holds"] for one in found] == [True, True, has_socat or None, has_socat or None]
    assert name not in muslin.lab("ls", "-q").stdout
    assert "there is no myth 'nope'" in muslin.lab("myths", "nope", code=2).stderr
    taken = muslin.up("--step", "2")
    assert "is there already" in muslin.lab("myths", "order", "--name", taken, code=2).stderr
