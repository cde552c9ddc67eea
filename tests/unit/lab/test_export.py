"""An exported script is sound shell, holds the commands of the plan, and the program of its tunnel."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from muslin.lab.agent_plan import agents, members
from muslin.lab.export import command_lines, shell_script
from muslin.lab.plan import netns_of, plan
from muslin.lab.presets import preset
from muslin.lab.processes import tunnel_program
from muslin.lab.topology import Agents
from muslin.lab.topology_file import load_topology
from muslin.model.ops import describe_all
from muslin.plan.diff import creations

EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS: list[tuple[Any, dict[str, Any]]] = [
    (1, {}), (2, {"families": (4, 6)}), (3, {}), (4, {"underlay": "routed"}), (4, {"backend": "vxlan"}),
]  # fmt: skip


def sound(script: str) -> None:
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("step", "options"), STEPS)
def test_the_script_of_a_step_is_sound_and_complete(step: Any, options: dict[str, Any]) -> None:
    lab_plan = plan("x", preset(step, **options))

    script = shell_script("x", lab_plan)

    lines = [line.strip() for line in script.splitlines()]
    expected = describe_all(creations(lab_plan.state))
    assert [line for line in lines if line in set(expected)] == expected
    assert lines.count("muslin-x-node1") == 1, "down knows the names"
    sound(script)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_script_of_an_example_is_sound(path: Path) -> None:
    script = shell_script("x", plan("x", load_topology(str(path), path.read_bytes())))

    sound(script)


def test_the_tunnels_program_goes_along_word_for_word_where_there_is_a_tunnel() -> None:
    program = Path(tunnel_program()).read_text()

    with_tunnel = shell_script("x", plan("x", preset(4)))
    without = shell_script("x", plan("x", preset(3)))

    assert f"<<'PYTHON'\n{program}PYTHON\n" in with_tunnel
    assert "PYTHON" not in program
    assert with_tunnel.count("    start_tunnel muslin-x-node") == 2
    assert "python3 -c" not in without
    assert "start_tunnel" not in without


def test_commands_come_under_headings_each_once_in_a_row() -> None:
    lab_plan = plan("x", preset(4))

    lines = list(command_lines(creations(lab_plan.state), lab_plan.tunnels))

    headings = [line for line in lines if line.startswith("# ")]
    assert headings[0] == "# network namespaces"
    assert headings[-1] == "# tunnels: TUN on one side, UDP on the other"
    assert all(one != other for one, other in itertools.pairwise(headings))
    assert lines[-1].startswith("ip netns exec muslin-x-node2 muslin-tunnel --device=tun0 ")
    assert list(command_lines([])) == []


@pytest.mark.parametrize("store", ["sqlite", "etcd"])
def test_the_script_of_a_lab_with_agents_starts_them_and_plugs_containers_in_afterwards(store: Any) -> None:
    topology = preset(4, agents=Agents(store=store))
    lab_plan, place = plan("x", topology), partial(netns_of, "x")
    script = shell_script("x", lab_plan, agents("/run/y", topology, place), members("/run/y", topology, place))

    lines = [line.strip() for line in script.splitlines()]
    (start,) = [index for index, line in enumerate(lines) if " muslin-x-node2 muslin agent " in line]
    assert lines[start].endswith("</dev/null >/dev/null 2>&1 &")
    awaited = lines.index("await_bridge muslin-x-node2 br0")
    plugged = [index for index, line in enumerate(lines) if "node2" in line and line.endswith(" master br0")]
    assert plugged
    assert start < awaited < min(index for index in plugged if "muslin-x-node2 " in lines[index])
    assert sum(" etcd --name=" in line for line in lines) == (3 if store == "etcd" else 0)
    assert "rm -rf -- /run/y" in lines
    assert "print_program" not in script
    sound(script)
