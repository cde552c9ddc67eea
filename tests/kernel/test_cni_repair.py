"""What others do to containers of a real agent, and what an agent's own end does to them: nothing that lasts.

See tests/kernel/containers.py for the nodes.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from muslin.agent.attachment_plan import host_link
from tests.kernel.containers import DUAL, NEEDS, Answer, Cluster, Node, node, one_node, running
from tests.lab.support import wait_until

__all__ = ["node", "one_node"]
pytestmark = NEEDS
CABLE = host_link("one", "eth0", checked=True)
HEALED_S = 15.0
"""It takes about a second, on a machine that has nothing else to do."""


@pytest.fixture
def fresh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that a test may do anything to."""
    with running(Cluster(tmp_path, DUAL, request.param if hasattr(request, "param") else "cni0")) as cluster:
        yield cluster.nodes[0]


def connected(node: Node, name: str, added: Answer) -> bool:
    """Whether all is as it was made, and carries."""
    check = node.call("CHECK", name, prevResult=added.document)
    return check == Answer(status=0, stdout="") and node.pings(name, added.document["ips"][0]["gateway"])


DAMAGES = {
    "down": [f"ip link set {CABLE} down"],
    "another mtu": [f"ip link set {CABLE} mtu 1000"],
    "another mac": [f"ip link set {CABLE} address 02:00:00:00:00:55"],
    "no alias": [f"ip link set {CABLE} alias x"],
    "table": ["nft delete table FAMILY muslin_cni"],
    "sets": ["nft flush set FAMILY muslin_cni sources4", "nft flush set FAMILY muslin_cni cables"],
    "rules": ["nft flush chain FAMILY muslin_cni containers"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_others_change_on_the_node_is_put_right(node: Node, damage: str) -> None:
    heal(node, DAMAGES[damage])


@pytest.mark.parametrize("one_node", ["cni0"], indirect=True)
@pytest.mark.parametrize("command", [f"ip link set {CABLE} nomaster", f"bridge link set dev {CABLE} hairpin on"])
def test_a_port_that_was_unplugged_or_changed_is_put_right(node: Node, command: str) -> None:
    heal(node, [command])


@pytest.mark.parametrize("one_node", [""], indirect=True)
@pytest.mark.parametrize("what", ["route", "gateway", "neighbour"])
def test_what_others_remove_of_a_routed_container_is_put_right(node: Node, what: str) -> None:
    subnet = node.subnets[0]
    added = node.add("one")
    address = added.addresses[0].partition("/")[0]
    commands = {
        "route": f"ip route del {address}/32 dev {CABLE}",
        "gateway": f"ip address del {subnet.replace('0/24', '1')}/32 dev {CABLE}",
        "neighbour": f"ip neighbour del {address} dev {CABLE}",
    }
    node.run(commands[what])
    wait_until(lambda: connected(node, "one", added), "it is connected again", HEALED_S)
    node.remove("one")


def heal(node: Node, commands: list[str]) -> None:
    added = node.add("one")
    before = node.run(f"ip -j -d link show {CABLE}"), node.traces()["elements"]
    for command in commands:
        node.run(command.replace("FAMILY", "bridge" if node.bridge else "inet"))

    def is_healed() -> bool:
        now = node.run(f"ip -j -d link show {CABLE}"), node.traces()["elements"]
        return settled(now[0]) == settled(before[0]) and now[1] == before[1] and connected(node, "one", added)

    wait_until(is_healed, "it is put right", HEALED_S)
    assert node.status.containers is not None
    assert node.status.containers.troubles == ()
    node.remove("one")


def settled(text: str) -> dict[str, object]:
    """What is said of a link, but its bridge timers."""
    (link,) = json.loads(text)
    kept = ("ifname", "mtu", "address", "ifalias", "operstate", "master")
    port = link.get("linkinfo", {}).get("info_slave_data", {})
    return {key: link.get(key) for key in kept} | {"hairpin": port.get("hairpin")}


@pytest.mark.parametrize("one_node", ["cni0"], indirect=True)
def test_a_bridge_that_was_deleted_comes_back_with_all_its_ports(node: Node) -> None:
    added = {name: node.add(name) for name in ("one", "two")}
    for _ in range(3):
        node.run("ip link delete cni0")
        wait_until(
            lambda: all(connected(node, name, answer) for name, answer in added.items()), "all are connected", HEALED_S
        )
    assert node.pings("one", added["two"].addresses[0].partition("/")[0])
    node.remove("one", "two")


def test_a_cable_that_was_cut_is_no_more_and_its_container_can_be_added_again(node: Node) -> None:
    added = node.add("one")
    node.run(f"ip link delete {CABLE}")
    assert node.call("CHECK", "one", prevResult=added.document).code == 102
    again = node.call("ADD", "one").works()
    assert again.addresses == added.addresses
    assert connected(node, "one", again)
    node.remove("one")


# ---- the agent's own end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", ["cni0", ""], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_ends_leaves_all_and_the_next_one_knows_all(fresh: Node, number: signal.Signals) -> None:
    added = {name: fresh.add(name) for name in ("one", "two")}
    shown = fresh.containers()
    address = added["two"].addresses[0].partition("/")[0]
    fresh.kill(number)
    assert fresh.pings("one", address), "it carries without an agent"
    for command, code in (("ADD", 11), ("CHECK", 11), ("STATUS", 50), ("GC", 11)):
        assert fresh.call(command, "one", prevResult=added["one"].document).code == code
    fresh.start()
    assert fresh.containers() == shown
    assert all(connected(fresh, name, answer) for name, answer in added.items())
    assert fresh.call("ADD", "one").code == 101
    fresh.delete("one")
    three = fresh.add("three")
    assert three.addresses not in [answer.addresses for answer in added.values()]
    fresh.remove("two", "three")


def test_a_del_without_an_agent_is_kept_and_done_when_it_is_back(fresh: Node) -> None:
    fresh.add("one")
    fresh.add("two")
    before = fresh.containers()
    fresh.kill()
    fresh.delete("one", "unknown")
    spool = fresh.directory / "run" / "cni-spool"
    assert len(list(spool.iterdir())) == 2
    fresh.start()
    wait_until(lambda: not list(spool.iterdir()), "the spool is empty")
    assert fresh.containers() == before[1:]
    assert fresh.links_in("one") == set()


def test_a_container_that_restarts_while_the_agent_does_is_not_taken_down_by_its_old_del(fresh: Node) -> None:
    fresh.add("one")
    fresh.kill()
    fresh.delete("one")
    (kept,) = (fresh.directory / "run" / "cni-spool").iterdir()
    data = kept.read_bytes()
    fresh.start()
    again = fresh.add("one", "one-again")
    kept.write_bytes(data)  # as from a plugin that was slow to notice that there is an agent again
    wait_until(lambda: not kept.exists(), "the spool is empty")
    fresh.call("STATUS", "x").works()
    assert fresh.call("CHECK", "one", "one-again", prevResult=again.document) == Answer(status=0, stdout="")


@pytest.mark.parametrize("fresh", ["cni0", ""], indirect=True)
def test_uninstall_takes_everything_away(fresh: Node) -> None:
    for name in ("one", "two"):
        fresh.add(name)
    fresh.kill(signal.SIGTERM)
    fresh.delete("two")
    planned = fresh.muslin("uninstall", "--dry-run", "--keep-lease")
    assert CABLE in planned
    fresh.muslin("uninstall", "--keep-lease")
    links = {link["ifname"] for link in json.loads(fresh.run("ip -j link"))}
    assert links == {"lo", "eth0"}
    assert "muslin" not in fresh.run("nft list tables")
    assert not list(fresh.directory.rglob("*.sock"))
    assert not list(fresh.directory.rglob("*.del"))
    assert not list(fresh.directory.rglob("containers.db*"))
    assert not (fresh.directory / "run").exists()
    assert fresh.links_in("one") == set()
    assert "nothing" in fresh.muslin("uninstall", "--keep-lease").lower()
    assert fresh.call("DEL", "one") == Answer(status=0, stdout=""), "no agent is installed, so nothing is to be undone"
