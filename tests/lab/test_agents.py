"""Labs whose nodes run agents: the same network, made by what a machine would run.

node1 ---------- lan0 ---------- node2        store.sqlite, or etcd1, etcd2, etcd3 on lan0
  br0 (made by the agent)          br0
   |- con1  '- con2                 |- con1  '- con2
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.support import (
    PATIENCE_S,
    SOURCE,
    Muslin,
    addresses_of,
    is_alive,
    links_of,
    netns_names,
    netns_of,
    processes_of,
    routes_of,
    sentences,
    ttls_of,
    wait_until,
)

pytestmark = pytest.mark.lab

CELLS = {"4": 48, "dual": 96}
BACKENDS = ("host-gw", "vxlan", "udp")


def needs_etcd() -> None:
    if shutil.which("etcd") is None:
        pytest.skip("needs etcd (Debian and Ubuntu: etcd-server)")


def view_of(muslin: Muslin, name: str, code: int = 0) -> dict[str, Any]:
    """The places of a lab by name, from ``inspect``."""
    return {place["name"]: place for place in muslin.json("inspect", "--name", name, code=code)["places"]}


def agents_of(muslin: Muslin, name: str) -> dict[str, int]:
    """Node to the process of its agent."""
    found = view_of(muslin, name)
    return {place: told["agent"]["pid"] for place, told in found.items() if told["agent"]}


def status_of(muslin: Muslin, name: str, node: str) -> Any:
    """What an agent says of itself, asked as a person on that node would."""
    program = (sys.executable, "-m", "muslin", "status", "--no-probe", "-o", "json")
    return json.loads(muslin.inside(name, node, *program).stdout)


def check_is_proved(muslin: Muslin, name: str, cells: int) -> Any:
    report = muslin.json("check", "--name", name, code=None)
    assert sentences(report) == []
    assert report["ok"] is True
    assert len(report["cells"]) == cells
    return report


# ---- each backend, in each family, on each store, in labs that are changed while they live -------------------


@pytest.mark.parametrize(("store", "family"), [("sqlite", "4"), ("sqlite", "dual"), ("etcd", "4"), ("etcd", "dual")])
def test_agents_make_every_backends_network_and_follow_each_change_of_it(
    muslin: Muslin, store: str, family: str
) -> None:
    if store == "etcd":
        needs_etcd()
    options = ["--agents", "--store", store, "--family", family]
    name = muslin.up(*options, "--backend", BACKENDS[0])
    agents = agents_of(muslin, name)
    assert set(agents) == {"node1", "node2"}

    for backend in BACKENDS:
        if backend != BACKENDS[0]:
            done = muslin.json("up", "--name", name, *options, "--backend", backend)
            assert done["programs"] == []
        check_is_proved(muslin, name, CELLS[family])
        assert agents_of(muslin, name) == agents, "no agent was started anew"
        check_device(name, backend)
        assert status_of(muslin, name, "node1")["network"]["backend"] == backend

    again = muslin.json("up", "--name", name, *options, "--backend", BACKENDS[-1])
    assert (again["fresh"], again["commands"], again["programs"]) == (False, [], [])
    members = {place: told["etcd"] for place, told in view_of(muslin, name).items() if told["etcd"]}
    assert set(members) == ({"etcd1", "etcd2", "etcd3"} if store == "etcd" else set())
    assert all(member["healthy"] for member in members.values())


def check_device(name: str, backend: str) -> None:
    """The backend's device is there. That of the one before may linger for a while, so that nobody is lost."""
    assert {"vxlan": "vxlan1", "udp": "muslin-udp"}.get(backend, "eth0") in links_of(name, "node1")
    assert addresses_of(name, "node1")["br0"] >= {"172.16.0.1/24"}
    gateway = "172.16.1.0/24 via 10.0.0.20 dev eth0"
    assert (gateway in routes_of(name, "node1")) is (backend == "host-gw")


def test_an_overlay_of_agents_crosses_routers_and_etcd_is_reached_behind_them(muslin: Muslin) -> None:
    needs_etcd()
    name = muslin.up("--agents", "--store", "etcd", "--underlay", "routed", "--backend", "vxlan")

    report = check_is_proved(muslin, name, 48)
    assert ttls_of(report)["con1.node1", "172.16.1.2"] == {62}
    assert "router1" in netns_names(name)


def test_host_gw_of_agents_warns_of_a_router_and_waits_for_nothing(muslin: Muslin) -> None:
    name = muslin.new_name()
    told = muslin.lab("up", "--name", name, "--agents", "--step", 3, "--underlay", "routed", code=4).stderr

    assert "warning: host-gw cannot reach node2 from node1: they share no layer-2 network" in told
    states = [peer["state"] for peer in json.loads(refused_status(muslin, name))["peers"]]
    assert states == ["refused"]


def refused_status(muslin: Muslin, name: str) -> str:
    program = (sys.executable, "-m", "muslin", "status", "--no-probe", "-o", "json")
    return muslin.inside(name, "node1", *program, code=None).stdout


# ---- nodes that come and go ---------------------------------------------------------------------------------


@contextlib.contextmanager
def pinging(name: str, source: str, address: str) -> Iterator[subprocess.Popen[str]]:
    """A flow of echo requests, 20 a second, until the end of the block."""
    command = ["ip", "netns", "exec", netns_of(name, source), "ping", "-n", "-i", "0.05", address]
    flow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield flow
    finally:
        flow.send_signal(signal.SIGINT)
        flow.wait(PATIENCE_S)
        for stream in (flow.stdout, flow.stderr):
            assert stream is not None
            if not stream.closed and flow.returncode is None:
                stream.close()


def lost_of(flow: subprocess.Popen[str]) -> tuple[int, int]:
    """(sent, lost) of a flow that has ended."""
    told, _ = flow.communicate(timeout=5)
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", told)
    assert counts, told
    return int(counts[1]), int(counts[1]) - int(counts[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_joins_and_leaves_while_the_others_talk(muslin: Muslin, backend: str) -> None:
    options = ["--agents", "--backend", backend, "--containers", 1]
    name = muslin.up(*options)
    agents = agents_of(muslin, name)

    with pinging(name, "con1.node1", "172.16.1.2") as flow:
        muslin.up(*options, "--nodes", 3, name=name)
        joined = agents_of(muslin, name)
        muslin.json("check", "--name", name, "--test", "node3")
        muslin.up(*options, "--nodes", 2, name=name)
    sent, lost = lost_of(flow)

    assert sent > 10
    # The last request may still be under way when ping is told to end.
    assert lost <= 1
    assert {node: joined[node] for node in agents} == agents == agents_of(muslin, name)
    assert not is_alive(joined["node3"])
    wait_until(lambda: len(status_of(muslin, name, "node1")["peers"]) == 1, "node3 is forgotten", 5)
    assert not (muslin.runtime / name / "node3").exists()
    assert netns_names(name) == {"lan0", "node1", "con1.node1", "node2", "con1.node2"}
    check_is_proved(muslin, name, 6 * 4)


def test_the_lease_of_a_node_whose_agent_was_killed_goes_with_the_node(muslin: Muslin) -> None:
    options = ["--agents", "--backend", "vxlan", "--containers", 1]
    name = muslin.up(*options, "--nodes", 3)
    os.kill(agents_of(muslin, name)["node3"], signal.SIGKILL)

    muslin.up(*options, "--nodes", 2, name=name)

    wait_until(lambda: len(status_of(muslin, name, "node1")["peers"]) == 1, "node3 is forgotten", 5)
    check_is_proved(muslin, name, 24)


# ---- agents that die, and what one may ask of a living lab ---------------------------------------------------


@pytest.fixture(scope="module")
def lab(shared: Muslin) -> str:
    """A lab that the tests below leave as they found it."""
    return shared.up("--agents", "--containers", 1)


def test_a_killed_agent_is_started_again_and_nobody_noticed(shared: Muslin, lab: str) -> None:
    before = agents_of(shared, lab)
    with pinging(lab, "con1.node1", "172.16.1.2") as flow:
        os.kill(before["node1"], signal.SIGKILL)
        wait_until(lambda: not is_alive(before["node1"]), "the agent has ended")
        drift = shared.json("inspect", "--name", lab, code=4)["drift"]
        dry = shared.json("up", "--name", lab, "--agents", "--containers", 1, "--dry-run")
        done = shared.json("up", "--name", lab, "--agents", "--containers", 1)

    assert drift == [f"start the agent in {netns_of(lab, 'node1')}"]
    assert dry["programs"] == done["programs"] == ["node1"]
    assert f"ip netns exec {netns_of(lab, 'node1')} muslin agent --store sqlite " in dry["commands"][-1]
    after = agents_of(shared, lab)
    assert after["node1"] != before["node1"]
    assert after["node2"] == before["node2"]
    assert lost_of(flow)[1] <= 1
    check_is_proved(shared, lab, 24)


def test_what_an_agent_has_made_is_no_drift_and_it_mends_that_itself(shared: Muslin, lab: str) -> None:
    shared.inside(lab, "node1", "ip", "link", "set", "muslin-udp", "down")

    assert shared.json("inspect", "--name", lab)["drift"] == []
    wait_until(lambda: "UP" in links_of(lab, "node1")["muslin-udp"]["flags"], "the agent has mended it")


def test_a_container_that_was_unplugged_is_the_labs_to_mend(shared: Muslin, lab: str) -> None:
    shared.inside(lab, "node1", "ip", "link", "set", "veth10", "nomaster")

    (remedy,) = shared.json("inspect", "--name", lab, code=4)["drift"]
    done = shared.json("up", "--name", lab, "--agents", "--containers", 1)

    assert remedy == f"ip -n {netns_of(lab, 'node1')} link set veth10 master br0"
    assert (done["commands"], done["programs"]) == ([remedy], [])


def test_agents_that_were_told_something_else_are_replaced(shared: Muslin, lab: str) -> None:
    before = agents_of(shared, lab)
    for ttl in (["--lease-ttl", 3600], []):
        done = shared.json("up", "--name", lab, "--agents", "--containers", 1, *ttl)
        assert done["programs"] == ["node1", "node2"]
    assert not set(before.values()) & set(agents_of(shared, lab).values())
    check_is_proved(shared, lab, 24)


def test_ls_inspect_and_a_shell_on_a_node_show_the_agents(shared: Muslin, lab: str) -> None:
    (row,) = shared.json("ls", "--name", lab)["labs"]
    table = shared.lab("ls", "--name", lab).stdout
    place = view_of(shared, lab)["node2"]
    drawn = shared.lab("inspect", "node2", "--name", lab).stdout

    assert (row["store"], row["agents"], row["ready"]) == ("sqlite", 2, 2)
    assert "2/2 by sqlite" in table
    agent = place["agent"]
    assert (agent["ready"], agent["subnets"], agent["peers"], agent["programmed"]) == (
        True, ["172.16.1.0/24"], 1, 1
    )  # fmt: skip
    assert agent["pid"] in processes_of(lab, "node2")
    assert place["tunnel_pid"] in processes_of(lab, "node2")
    words = r"agent: process \d+, ready, leases 172\.16\.1\.0/24 for 23h59m more, 1 of 1 peer programmed"
    assert re.search(words, drawn)
    assert status_of(shared, lab, "node2")["name"] == "node2"
    leases = shared.inside(lab, "node2", sys.executable, "-m", "muslin", "network", "show").stdout
    assert {"172.16.0.0-24", "172.16.1.0-24"} <= set(leases.split())
    assert shared.inside(lab, "con1.node2", "sh", "-c", "echo ${MUSLIN_AGENT_RUN_DIR-none}").stdout == "none\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--step", 4], "is up with agents, which cannot change while it is"),
        (["--agents", "--store", "etcd"], "is up with the store sqlite"),
        (["--agents", "--network", "10.77.0.0/16"], "is up with the container network 172.16.0.0/16"),
    ],
)
def test_what_agents_have_made_changes_hands_only_after_a_down(
    shared: Muslin, lab: str, options: list[object], words: str
) -> None:
    for dry in ([], ["--dry-run"]):
        told = shared.lab("up", "--name", lab, *options, *dry, code=2).stderr
        assert words in told
        assert f"muslin lab down {lab}" in told
    assert view_of(shared, lab)["node1"]["agent"]["ready"] is True


# ---- what does not come up, and what goes ---------------------------------------------------------------------


def test_an_agent_that_cannot_start_is_quoted_and_all_is_taken_back(muslin: Muslin) -> None:
    name = muslin.new_name()
    (muslin.runtime / name / "node2" / "agent.sock" / "in-the-way").mkdir(parents=True)

    told = muslin.lab("up", "--name", name, "--agents", code=1).stderr

    assert "the agent of node2 has ended; its last words:" in told
    assert "agent.sock" in told
    assert netns_names(name) == set()
    assert not muslin.runtime.exists()


def test_a_missing_etcd_is_named_before_anything_is_made(muslin: Muslin, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()

    told = muslin.lab(
        "up", "--name", muslin.new_name(), "--agents", "--store", "etcd", code=3, env={"PATH": str(tmp_path / "bin")}
    ).stderr

    assert "apt-get install etcd-server" in told
    assert not muslin.runtime.exists()


def test_members_of_etcd_may_die_and_come_back(muslin: Muslin) -> None:
    needs_etcd()
    options = ["--agents", "--store", "etcd", "--backend", "host-gw", "--containers", 1]
    name = muslin.up(*options)
    (member,) = processes_of(name, "etcd2")
    os.kill(member, signal.SIGKILL)
    wait_until(lambda: not is_alive(member), "the member has ended")

    assert f"start etcd in {netns_of(name, 'etcd2')}" in muslin.json("inspect", "--name", name, code=4)["drift"]
    joined = muslin.json("up", "--name", name, *options, "--nodes", 3)

    assert joined["programs"] == ["etcd2", "node3"]
    check_is_proved(muslin, name, 54)
    gone = muslin.json("down", name)["labs"][0]
    assert gone["ended"] >= 3 + 3, "an agent may just be running a program of its own"
    assert not (muslin.runtime / name).exists()


def test_down_leaves_what_a_link_out_of_the_lab_leads_to(muslin: Muslin, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    name = muslin.up("--agents", "--step", 3, "--containers", 1)
    (muslin.runtime / name / "node1" / "way-out").symlink_to(outside)

    muslin.lab("down", name)

    assert (outside / "file").exists()


def test_an_exported_script_starts_the_agents_too(muslin: Muslin, tmp_path: Path) -> None:
    name = muslin.new_name()
    program = tmp_path / "bin" / "muslin"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(SOURCE)} exec {sys.executable} -m muslin "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "lab.sh"
    script.write_text(muslin.lab("export", "--name", name, "--agents", "--backend", "vxlan").stdout)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = ["ip", "netns", "exec", netns_of(name, "con1.node1"), "ping", "-c", "1", "-W", "1", "172.16.1.2"]
    try:
        subprocess.run(["sh", script, "up"], check=True, capture_output=True, timeout=60, cwd="/", env=environment)
        wait_until(
            lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, "the way is there"
        )
    finally:
        subprocess.run(["sh", script, "down"], check=True, capture_output=True, timeout=60, cwd="/")
    assert netns_names(name) == set()
    assert not Path(f"/run/muslin-script-{name}").exists()
