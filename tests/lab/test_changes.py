"""A living lab: turned into another, repaired, left alone; several at once."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.lab.support import (
    Muslin,
    finish,
    is_alive,
    links_of,
    netns_names,
    netns_of,
    processes_of,
    read_until,
    routes_of,
    wait_until,
)

pytestmark = pytest.mark.lab

TO_NODE_2 = "172.16.1.0/24 via 10.0.0.20 dev eth0"


def check_is_proved(muslin: Muslin, name: str, cells: int) -> None:
    report = muslin.json("check", "--name", name)
    assert report["ok"] is True
    assert len(report["cells"]) == cells
    muslin.lab("inspect", "--name", name)  # exit code 0: no drift


def test_one_lab_walks_through_all_steps_and_back(muslin: Muslin) -> None:
    name = muslin.new_name()
    walk: list[tuple[list[object], int, Callable[[], bool]]] = [
        (["--step", 1], 4, lambda: netns_names(name) == {"lan0", "node1", "con.node1"}),
        (["--step", 2], 12, lambda: "br0" in links_of(name, "node1") and "con.node1" not in netns_names(name)),
        (["--step", 3], 48, lambda: TO_NODE_2 in routes_of(name, "node1")),
        (["--step", 4], 48, lambda: "tun0" in links_of(name, "node1") and TO_NODE_2 not in routes_of(name, "node1")),
        (["--step", 3], 48, lambda: "tun0" not in links_of(name, "node1") and not processes_of(name, "node1")),
        (["--step", 3, "--backend", "vxlan"], 48, lambda: "vxlan1" in links_of(name, "node1")),
        (["--step", 1], 4, lambda: netns_names(name) == {"lan0", "node1", "con.node1"}),
    ]
    for options, cells, stands in walk:
        muslin.up(*options, name=name)
        assert stands(), options
        check_is_proved(muslin, name, cells)


def test_what_runs_in_a_place_that_goes_ends_with_it(muslin: Muslin) -> None:
    name = muslin.up("--step", 2)
    inside = [
        muslin.start("exec", "--name", name, place, "--", "sh", "-c", "echo in; exec sleep 600")
        for place in ("con1.node1", "node1")
    ]
    for process in inside:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
    gone, stays = inside

    muslin.up("--step", 1, name=name)  # its container is called con

    assert gone.wait(10) == -signal.SIGTERM
    assert stays.poll() is None
    stays.kill()
    for process in inside:
        finish(process, None)


def test_a_second_up_finds_nothing_to_do(muslin: Muslin) -> None:
    for options in (["--step", 4, "--family", "dual"], ["--step", 3, "--backend", "vxlan"]):
        name = muslin.up(*options)
        tunnels = processes_of(name, "node1")

        again = muslin.json("up", "--name", name, *options)

        assert (again["fresh"], again["commands"], again["tunnels"]) == (False, [], 0)
        assert "was up already" in muslin.lab("up", "--name", name, *options).stderr
        assert processes_of(name, "node1") == tunnels


def test_up_repairs_what_inspect_shows_as_drift(muslin: Muslin) -> None:
    name = muslin.up("--step", 4)
    (tunnel,) = processes_of(name, "node1")

    def lose_route() -> None:
        muslin.inside(name, "con1.node1", "ip", "route", "del", "default")

    def take_link_down() -> None:
        muslin.inside(name, "node2", "ip", "link", "set", "br0", "down")

    def forward_no_more() -> None:
        muslin.inside(name, "node1", "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")

    def end_tunnel() -> None:
        os.kill(tunnel, signal.SIGKILL)
        wait_until(lambda: not is_alive(tunnel), "the tunnel has ended")

    damage = [
        (lose_route, f"ip -n {netns_of(name, 'con1.node1')} route add default via 172.16.0.1 dev veth11"),
        (take_link_down, f"ip -n {netns_of(name, 'node2')} link set br0 up"),
        (forward_no_more, f"ip netns exec {netns_of(name, 'node1')} sysctl -q -w net.ipv4.ip_forward=1"),
        (end_tunnel, f"start the tunnel in {netns_of(name, 'node1')}"),
    ]
    for break_it, remedy in damage:
        break_it()
        assert remedy in muslin.json("inspect", "--name", name, code=4)["drift"]
        assert remedy in muslin.lab("inspect", "--name", name, code=4).stderr
        muslin.up("--step", 4, name=name)
        check_is_proved(muslin, name, 48)


def test_two_labs_with_the_same_addresses_do_not_disturb_each_other(muslin: Muslin) -> None:
    first, second = muslin.up("--step", 4), muslin.up("--step", 3)

    check_is_proved(muslin, first, 48)
    check_is_proved(muslin, second, 48)
    muslin.lab("down", first)

    check_is_proved(muslin, second, 48)
    assert netns_names(first) == set()
    rows = muslin.json("ls")["labs"]
    assert [(row["name"], row["condition"], row["step"]) for row in rows] == [(second, "up", 3)]


def test_while_one_up_runs_another_of_the_same_lab_says_so(muslin: Muslin) -> None:
    name = muslin.new_name()
    first = muslin.start("up", "--name", name, "--step", 2, "--pause", stdin=subprocess.PIPE)
    assert first.stderr is not None
    read_until(first.stderr.fileno(), lambda text: "[Enter]" in text, "up asks")

    for verb in (["up", "--name", name, "--step", "2"], ["down", name]):
        refused = muslin.lab(*verb, code=2)
        assert f"lab '{name}' is being changed by another muslin process" in refused.stderr

    finish(first, 0, "\n" * 100)
    check_is_proved(muslin, name, 12)


def test_of_two_ups_at_the_same_moment_one_wins(muslin: Muslin) -> None:
    name = muslin.new_name()
    both = [muslin.start("up", "--name", name, "--step", 4, "--nodes", 6, "--containers", 6) for _ in range(2)]

    done = sorted((finish(process, None) for process in both), key=lambda one: one.returncode)

    assert [one.returncode for one in done] == [0, 2]
    assert "is being changed by another muslin process" in done[1].stderr
    assert muslin.json("inspect", "--name", name)["drift"] == []
