"""What one step adds to another, node by node."""

from __future__ import annotations

from typing import Any

import pytest

from muslin.lab.compare import NodeChange, compare
from muslin.lab.presets import preset


def changes(earlier: Any, later: Any, **options: Any) -> dict[str, NodeChange]:
    return {change.name: change for change in compare("x", preset(earlier), preset(later, **options))}


def typed(change: NodeChange) -> list[str]:
    return [line for line in change.commands if not line.startswith("#")]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_step_adds_nothing_to_itself(step: int) -> None:
    assert changes(step, step) == {}


def test_step_3_adds_two_commands_on_the_node_that_was_there_and_a_whole_node() -> None:
    found = changes(2, 3)

    assert typed(found["node1"]) == [
        "ip netns exec muslin-x-node1 sysctl -q -w net.ipv4.ip_forward=1",
        "ip -n muslin-x-node1 route add 172.16.1.0/24 via 10.0.0.20 dev eth0",
    ]
    assert (found["node1"].whole, found["node1"].removed) == (False, ())
    assert found["node2"].whole
    assert "ip netns add muslin-x-con1.node2" in found["node2"].commands
    assert not found["lan0"].whole


def test_step_4_takes_the_routes_away_and_starts_a_tunnel() -> None:
    found = changes(3, 4)

    assert set(found) == {"node1", "node2"}
    assert found["node1"].removed == ("ip -n muslin-x-node1 route add 172.16.1.0/24 via 10.0.0.20 dev eth0",)
    assert "ip -n muslin-x-node1 tuntap add dev tun0 mode tun" in found["node1"].commands
    assert "muslin-tunnel --device=tun0" in found["node1"].commands[-1]


def test_a_setting_with_a_new_value_is_not_told_as_removed() -> None:
    back = changes(3, 2)["node1"]

    assert typed(back) == ["ip netns exec muslin-x-node1 sysctl -q -w net.ipv4.ip_forward=0"]
    assert back.removed == ("ip -n muslin-x-node1 route add 172.16.1.0/24 via 10.0.0.20 dev eth0",)
