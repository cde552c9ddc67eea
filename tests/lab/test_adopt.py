"""``lab adopt``: Muslin's own labs are recognised as their steps, and so is what somebody typed, with what it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.assumptions.room import Room, inside, ip, open_room
from tests.lab.support import Muslin, netns_names, netns_of


@pytest.fixture
def by_hand() -> Iterator[Room]:
    with open_room() as room:
        yield room


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (("--step", "1"), 1),
        (("--step", "2"), 2),
        (("--step", "3"), 3),
        (("--step", "4"), 4),
        (("--step", "4", "--backend", "vxlan"), 4),
    ],
)
def test_each_step_is_recognised_and_lacks_nothing(muslin: Muslin, options: tuple[str, ...], step: int) -> None:
    name = muslin.up(*options)
    places = [netns_of(name, place) for place in sorted(netns_names(name))]
    nodes = muslin.json("adopt", *places)["nodes"]
    assert {node["place"].rpartition("-")[2]: node["step"] for node in nodes} == {
        f"node{number}": step for number in range(1, 3 if step > 2 else 2)
    }
    assert [node["missing"] for node in nodes] == [[]] * len(nodes)


def test_what_was_typed_by_hand_and_what_it_lacks(muslin: Muslin, by_hand: Room) -> None:
    node, con1, con2 = by_hand.netns("node"), by_hand.netns("con1"), by_hand.netns("con2")
    for number, con in ((1, con1), (2, con2)):
        ip(node, f"link add veth{number}0 type veth peer name veth{number}1 netns {con}")
        ip(node, f"link set veth{number}0 up")
        ip(con, f"addr add 172.16.0.{number + 1}/24 dev veth{number}1")
    ip(node, "link add br0 type bridge")
    ip(con1, "link set veth11 up")
    ip(con1, "link set lo up")
    for words in ("link set veth10 master br0", "addr add 172.16.0.1/24 dev br0"):
        ip(node, words)
    found = muslin.json("adopt", node, con1, con2, code=4)["nodes"][0]
    assert (found["step"], found["bridge"]) == (2, "br0")
    lacks = {(lack["place"], lack["command"]) for lack in found["missing"]}
    assert {
        (node, "ip link set br0 up"),
        (node, "ip link set veth20 master br0"),
        (con1, "ip route add default via 172.16.0.1"),
        (con2, "ip link set veth21 up"),
        (con2, "ip link set lo up"),
    } <= lacks
    for _ in range(3):  # what hangs on something else shows when that is there
        for lack in muslin.json("adopt", node, con1, con2, code=None)["nodes"][0]["missing"]:
            if lack["command"]:
                inside(lack["place"], "sh", "-c", f"{lack['command']} 2>/dev/null || true")
    text = muslin.lab("adopt", node, con1, con2).stdout
    assert "step 2, a node with a bridge; 2 containers" in text
    assert "✓ nothing is missing" in text


def test_a_stranger_is_refused_and_nothing_is_found_in_nothing(muslin: Muslin, by_hand: Room) -> None:
    assert "there is no network namespace" in muslin.lab("adopt", "no-such", code=2).stderr
    assert "begin with muslin lab up --step 1" in muslin.lab("adopt", by_hand.netns("empty")).stderr
