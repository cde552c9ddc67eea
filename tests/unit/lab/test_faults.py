"""The catalogue and its dice; that faults break and mend is proved in tests/lab/test_break.py."""

from __future__ import annotations

import random
from typing import Any

import pytest

from muslin.errors import UsageError
from muslin.lab.fault_catalogue import FAULTS
from muslin.lab.faults import Broken, choose
from muslin.lab.presets import preset
from muslin.lab.topology import Agents, Topology

LABS: dict[str, Topology] = {
    "1": preset(1),
    "2": preset(2, families=(4, 6)),
    "3": preset(3, families=(4, 6)),
    "4": preset(4, families=(6,)),
    "vxlan": preset(4, backend="vxlan", underlay="routed"),
}
PAIRS = [(lab, fault.name) for lab, topology in LABS.items() for fault in FAULTS if fault.fits(topology)]


def test_every_fault_fits_somewhere_and_every_lab_has_some() -> None:
    assert {name for _, name in PAIRS} == {fault.name for fault in FAULTS}
    assert {lab for lab, _ in PAIRS} == set(LABS)


@pytest.mark.parametrize(("lab", "name"), PAIRS)
def test_a_fault_is_about_places_of_the_lab_whatever_the_dice_say(lab: str, name: str) -> None:
    topology = LABS[lab]
    fault = next(one for one in FAULTS if one.name == name)
    places = {node.name for node in topology.nodes}
    places |= {f"{container.name}.{node.name}" for node, container in topology.containers}
    for seed in range(20):
        made = fault.inject(topology, random.Random(seed))
        assert made == fault.inject(topology, random.Random(seed))
        assert made.commands or made.ends_tunnel_in in places
        assert {command.place for command in (*made.commands, *made.undo)} <= places


def test_the_dice_choose_among_those_that_fit() -> None:
    chosen = {choose(FAULTS, LABS["1"], None, seed).name for seed in range(50)}
    assert chosen == {"link-down", "loopback-down"}


@pytest.mark.parametrize(
    ("topology", "name", "words"),
    [
        (LABS["1"], "nope", "there is no fault 'nope'"),
        (LABS["1"], "tunnel-gone", "makes no sense in this lab"),
    ],
)
def test_what_cannot_be_broken_is_refused(topology: Topology, name: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose(FAULTS, topology, name, 1)


@pytest.mark.parametrize(
    ("backend", "agents", "device", "port"),
    [("udp", None, "tun0", 9000), ("udp", Agents(), "muslin-udp", 8285), ("vxlan", Agents(), "vxlan1", 8472)],
)
def test_faults_of_a_tunnel_name_the_device_and_port_that_it_has_there(
    backend: Any, agents: Agents | None, device: str, port: int
) -> None:
    topology = preset(4, backend=backend, agents=agents)
    for name, words in (("masquerade", f"oifname {device} "), ("tunnel-port-blocked", f"udp dport {port} drop")):
        fault = next(one for one in FAULTS if one.name == name)
        assert words in fault.inject(topology, random.Random(1)).commands[0].words


def test_hints_and_giving_up_cost_points() -> None:
    assert [Broken(fault="x", seed=1, hints_given=given).score for given in range(4)] == [100, 80, 60, 40]
    assert Broken(fault="x", seed=1, given_up=True).score == 0


def test_every_text_is_there_and_no_hint_twice() -> None:
    hints = [hint for fault in FAULTS for hint in fault.hints]
    assert len(set(hints)) == len(hints)
    assert all(fault.symptom and fault.lesson and fault.causes for fault in FAULTS)
