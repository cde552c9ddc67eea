"""What container runtimes do that breaks naive plugins, one test each, with the real plugin and a real agent.

Each behaviour was seen of containerd or podman, or is told of in an issue of theirs. See tests/kernel/containers.py for
the nodes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from muslin.agent.attachment_plan import host_link
from muslin.kernel.removal import THREADS
from tests.kernel.containers import DUAL, NEEDS, Answer, Cluster, Node, node, one_node, running
from tests.lab.support import wait_until

__all__ = ["node", "one_node"]
pytestmark = NEEDS


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Node]:
    """A node that a test may do anything to."""
    with running(Cluster(tmp_path, DUAL)) as cluster:
        yield cluster.nodes[0]


# ---- DEL -------------------------------------------------------------------------------------------------


def test_repeated_dels_the_later_ones_without_namespace_and_result(node: Node) -> None:
    """containerd: each sandbox two or three times."""
    added = node.add("one").document
    node.delete("one", prevResult=added)
    node.remove_netns("one")
    for _ in range(2):
        node.delete("one", netns="")


def test_a_late_del_with_a_stale_result_frees_no_living_address(node: Node) -> None:
    """cilium#10065: what is released is the id's and the interface's, never what the result names."""
    old = node.add("old").document
    node.delete("old")
    wanted = [ip["address"] for ip in old["ips"]]
    new = node.add("new", runtimeConfig={"ips": wanted}).document
    assert [ip["address"] for ip in new["ips"]] == wanted
    node.delete("old", prevResult=old)
    node.delete("old", netns="", prevResult=old)
    assert node.call("CHECK", "new", prevResult=new) == Answer(status=0, stdout="")
    third = node.add("third")
    assert not set(third.addresses).intersection(wanted)
    node.remove("old", "new", "third")


def test_a_failed_add_and_the_del_that_follows_at_once(node: Node) -> None:
    node.make_netns("one")
    assert node.call("ADD", "one", mtu=100000).code == 7
    assert node.call("ADD", "one", mtu=9000).code == 7
    node.delete("one")
    node.remove("one")


def test_a_del_for_an_id_that_was_never_added(node: Node) -> None:
    node.delete("never", netns="")
    node.delete("never")
    node.delete("never", netns="", prevResult={"cniVersion": "1.1.0", "interfaces": "garbage", "ips": [7]})


@pytest.mark.parametrize("garbage", [{"prevResult": "x"}, {"mtu": "x"}, {"mode": 7}, {"runtimeConfig": []}, {"dns": 7}])
def test_a_del_whose_configuration_has_rotted(node: Node, garbage: dict[str, object]) -> None:
    """flannel#2437: a DEL that fails keeps a pod for ever."""
    node.add("one")
    node.delete("one", **garbage)
    assert node.links_in("one") == set()


def test_a_dead_namespace_leaks_nothing_with_or_without_masquerading(fresh: Node) -> None:
    """The reference plugin leaks a chain for each in that case."""
    fresh.kill(signal.SIGTERM)
    fresh.start("--ip-masq")
    fresh.add("zero", ipMasq=True)
    fresh.remove("zero")
    before = fresh.run("nft list ruleset"), fresh.run("iptables -t nat -S")
    fresh.add("one", ipMasq=True)
    fresh.remove_netns("one")
    fresh.delete("one", netns="")
    assert (rules(fresh.run("nft list ruleset")), fresh.run("iptables -t nat -S")) == (rules(before[0]), before[1])


def rules(text: str) -> list[str]:
    """A rule set without its counters."""
    return [line.split("counter")[0] for line in text.splitlines()]


# ---- plugins that are killed -----------------------------------------------------------------------------


def test_a_plugin_killed_in_the_middle_of_an_add_then_a_del(node: Node) -> None:
    """The runtime's deadline: SIGKILL reaches the plugin alone, and the DEL has no result."""
    node.make_netns("one")
    for _ in range(10):
        process = node.begin(node.variables("ADD", "one"), json.dumps(node.conf()))
        process.kill()
        process.communicate()
        node.delete("one")
        assert node.links_in("one") == set()
        assert node.containers() == []


def test_a_plugin_killed_in_the_middle_of_an_add_and_no_del_ever(node: Node) -> None:
    """containerd#5438."""
    node.make_netns("one")
    node.run(f"kill -STOP {node.pid}")
    try:
        process = node.begin(node.variables("ADD", "one"), json.dumps(node.conf()))
        wait_until(lambda: Path(f"/proc/{process.pid}/wchan").read_text().startswith("poll"), "it waits for the agent")
        process.kill()
        process.communicate()
    finally:
        node.run(f"kill -CONT {node.pid}")
    wait_until(lambda: "nobody took the answer" in node.log or "came to nothing" in node.log, "the agent has noticed")
    wait_until(lambda: not node.containers() and node.links_in("one") == set(), "the ADD is taken back")


# ---- what is asked for -----------------------------------------------------------------------------------


def test_capitalised_keys_of_the_runtime_configuration(node: Node) -> None:
    """containerd 1.6 writes them as Go has them."""
    dns = {"Servers": ["10.0.0.53"], "Searches": ["pods.example"], "Options": ["ndots:5"]}
    wanted = node.subnets[0].replace("0/24", "77/24")
    answer = node.add("one", runtimeConfig={"DNS": dns, "IPs": [wanted], "Mac": "02:00:00:00:00:77"})
    assert answer.document["dns"] == {
        "nameservers": ["10.0.0.53"],
        "search": ["pods.example"],
        "options": ["ndots:5"],
    }
    assert answer.addresses[0] == wanted
    assert answer.document["interfaces"][-1]["mac"] == "02:00:00:00:00:77"


def test_a_static_address_and_mac_in_the_arguments(node: Node) -> None:
    """podman knows no other place, whatever the capabilities are."""
    wanted = node.subnets[0].replace("0/24", "88")
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=web1;MAC=02:00:00:00:00:88;IP={wanted}"
    answer = node.add("one", env={"CNI_ARGS": args}, cniVersion="0.4.0", runtimeConfig={"aliases": {"podnet": ["web"]}})
    assert answer.addresses[0] == f"{wanted}/24"
    assert answer.document["interfaces"][-1]["mac"] == "02:00:00:00:00:88"
    (link,) = json.loads(node.run("ip -j link show eth0", node.prefix + "one"))
    assert link["address"] == "02:00:00:00:00:88"


def test_a_network_reload_is_a_del_and_an_add_with_what_was_there(node: Node) -> None:
    """podman network reload, in a running container: another interface number, the same address and MAC."""
    first = node.add("one").document
    mac, address = first["interfaces"][-1]["mac"], first["ips"][0]["address"].partition("/")[0]
    for _ in range(3):
        node.delete("one")
        again = node.add("one", env={"CNI_ARGS": f"IgnoreUnknown=1;MAC={mac};IP={address}"}).document
        assert again["ips"][0]["address"] == first["ips"][0]["address"]
        assert again["interfaces"][-1] == first["interfaces"][-1]


def test_a_restart_is_a_del_and_an_add_with_another_namespace(node: Node) -> None:
    node.add("one")
    node.delete("one")
    node.remove_netns("one")
    node.call("VERSION", env={"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy"}, stdin="{}").works()
    node.add("one", "another")


# ---- reboots ---------------------------------------------------------------------------------------------


def reboot(node: Node) -> None:
    """What a reboot leaves: files. The kernel's things, namespaces and what is below /run are gone."""
    node.kill()
    for link in json.loads(node.run("ip -j link")):
        if link["ifname"] not in ("lo", "eth0"):
            node.run(f"ip link delete {link['ifname']}", code=None)
    node.run("nft flush ruleset")
    shutil.rmtree(node.directory / "run")


def test_after_a_reboot_a_del_comes_late_and_without_a_namespace(fresh: Node) -> None:
    """containerd: only once the pod is stopped."""
    added = fresh.add("one").document
    fresh.remove_netns("one")
    reboot(fresh)
    fresh.start()
    assert [one["container_id"] for one in fresh.containers()] == ["one"]
    fresh.delete("one", netns="", prevResult=added)
    assert fresh.containers() == []


def test_after_a_reboot_the_same_id_is_added_in_another_namespace_without_a_del(fresh: Node) -> None:
    """podman start: host-local says `duplicate allocation is not allowed`, and the first start fails."""
    first = fresh.add("one")
    fresh.remove_netns("one")
    reboot(fresh)
    fresh.start()
    again = fresh.add("one", "after")
    assert again.addresses == first.addresses
    assert fresh.call("CHECK", "one", "after", prevResult=again.document) == Answer(status=0, stdout="")


def test_the_same_id_is_added_in_another_namespace_while_the_old_one_lingers(node: Node) -> None:
    first = node.add("one")
    again = node.add("one", "after")
    assert again.addresses == first.addresses
    assert node.links_in("one") == set()
    assert node.links_in("after") == {"eth0"}


# ---- files and addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "empty", "noise", "rows", "gone"])
def test_a_journal_that_a_crash_has_torn(fresh: Node, damage: str) -> None:
    """host-local never frees the address of a file of no length."""
    fresh.add("one")
    fresh.add("two")
    fresh.kill()
    path = fresh.directory / "state" / "containers.db"
    hurt(path, damage)
    fresh.start()
    fresh.add("three")
    fresh.delete("one", "two", "three")
    assert fresh.containers() == []
    wait_until(lambda: not fresh.traces()["links"], "strays are gone", 40)
    for name in ("one", "two", "three"):
        assert fresh.links_in(name) == set()
        fresh.add(name)


def hurt(path: Path, damage: str) -> None:
    if damage == "rows":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE reservation SET value = '{' WHERE container_id = 'one'")
            connection.commit()
        return
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    data = path.read_bytes()
    match damage:
        case "torn":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(bytes(range(256)) * 64)
        case "gone":
            path.unlink()


def test_an_exhausted_pool_leaves_nothing_and_a_later_try_works(tmp_path: Path) -> None:
    """plugins#29: the bridge plugin leaves the cable, and the next try finds the name in use."""
    network = {"Network": "10.5.0.0/16", "SubnetLen": 29}
    with running(Cluster(tmp_path, network)) as cluster:
        node = cluster.nodes[0]
        for number in range(5):
            node.add(f"c{number}")
        node.make_netns("more")
        before = node.traces()
        refused = node.call("ADD", "more")
        assert refused.code == 11
        assert "5 of 5" in refused.msg
        assert node.call("STATUS", "more").code == 50
        assert node.links_in("more") == set()
        assert node.traces() == before
        node.remove("c2")
        node.call("ADD", "more").works()


def test_addresses_rotate(node: Node) -> None:
    seen = set()
    for _ in range(5):
        seen.add(node.add("one").addresses[0])
        node.delete("one")
    assert len(seen) == 5


# ---- GC, many at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_a_gc_removes_orphans_that_no_runtime_ever_deletes(node: Node, key: str) -> None:
    for name in ("one", "two", "three"):
        node.add(name)
    node.remove_netns("two")
    living: dict[str, Any] = {key: [{"containerID": "one", "ifname": "eth0"}]}
    node.call("GC", "x", **living).works()
    assert [one["container_id"] for one in node.containers()] == ["one"]
    assert node.links_in("three") == set()
    assert node.call("GC", "x", cniVersion="1.0.0").code == 1
    node.call("GC", "x").works()
    assert node.containers() == []


@pytest.mark.parametrize("several", [20])
def test_many_pods_at_once(node: Node, several: int) -> None:
    names = [f"c{number}" for number in range(several)]
    for name in names:
        node.make_netns(name)
    with ThreadPoolExecutor(several) as pool:
        answers = list(pool.map(lambda name: node.call("ADD", name).works(), names))
        addresses = [address for answer in answers for address in answer.addresses]
        assert len(set(addresses)) == 2 * several
        checks = pool.map(lambda name, answer: node.call("CHECK", name, prevResult=answer.document), names, answers)
        assert set(checks) == {Answer(status=0, stdout="")}
        list(pool.map(node.delete, names))
    assert node.containers() == []


def test_the_first_containers_of_a_node_at_once_make_its_filter_once(tmp_path: Path) -> None:
    with running(Cluster(tmp_path, DUAL)) as cluster:
        node = cluster.nodes[0]
        names = [f"c{number}" for number in range(8)]
        for name in names:
            node.make_netns(name)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: node.call("ADD", name).works(), names))
        cable = host_link("c0", "eth0", checked=True)
        assert any(cable in line for line in node.traces()["elements"])


# ---- what an agent must not hold ---------------------------------------------------------------------------


def test_a_namespace_that_dies_without_a_del_is_not_kept_alive(node: Node) -> None:
    """An open socket in it would: then the cable stays, and the address with it."""
    added = node.add("one")
    node.call("CHECK", "one", prevResult=added.document).works()
    node.remove_netns("one")
    cable = host_link("one", "eth0", checked=True)
    wait_until(lambda: cable not in node.traces()["links"], "the kernel has taken the cable down")
    node.delete("one", netns="")


def test_hundreds_of_lives_leave_no_descriptor(node: Node) -> None:
    def live(number: int) -> None:
        node.add("one", f"n{number}")
        node.delete("one")
        node.remove_netns(f"n{number}")

    for number in range(20):
        live(number)
    before = len(node.fds())
    for number in range(100):
        live(number)
    assert len(node.fds()) <= before + THREADS, "those who remove links come one by one"
