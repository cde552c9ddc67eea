"""What cannot be right in a call of the CNI plugin: its code, a message naming key and value, and nothing half-made.

The codes are those of the specification (SPEC.md 1.1.0, "Error"), and from 100 on the agent's. See
tests/kernel/containers.py for the nodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.containers import DUAL, NEEDS, Cluster, Node, audited, running

pytestmark = NEEDS


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(Cluster(tmp_path_factory.mktemp("cni"), DUAL)) as cluster:
        cluster.nodes[0].add("first")
        cluster.nodes[0].remove("first")
        yield cluster.nodes[0]


@pytest.fixture
def node(one_node: Node) -> Iterator[Node]:
    with audited(one_node):
        yield one_node


def refused(node: Node, code: int, words: list[str], netns: str | None = None, **more: Any) -> None:
    """An ADD that must be refused so, must leave nothing, and after which the DEL is fine and a right ADD works."""
    node.make_netns("one")
    before, inside = node.traces(), node.links_in("one")
    answer = node.call("ADD", "one", netns, **more)
    assert answer.code == code, answer
    for word in words:
        assert word in answer.msg, answer
    assert answer.document.get("details") or "expected" in answer.msg, "what would mend it"
    assert "Traceback" not in answer.stdout + answer.stderr
    assert (node.traces(), node.links_in("one")) == (before, inside)
    node.delete("one")
    node.call("ADD", "one").works()


def test_unknown_keys_are_passed_over(node: Node) -> None:
    more: dict[str, Any] = {
        "isGateway": True,
        "vlan": 7,
        "capabilities": {"x": True},
        "cni.dev/thing": 1,
        "args": {"cni": {"x": 1}},
    }
    node.add("one", **more, env={"CNI_ARGS": "IgnoreUnknown=1;X=Y"})


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "x"])
def test_versions_that_we_do_not_speak(node: Node, version: str) -> None:
    refused(node, 1, ["cniVersion", version], cniVersion=version)


def test_no_version_at_all(node: Node) -> None:
    refused(node, 1, ["cniVersion is missing"], cniVersion=None)
    refused(node, 1, ["cniVersion is missing"], cniVersion="")


@pytest.mark.parametrize(("command", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")])
def test_a_command_that_the_version_does_not_have(node: Node, command: str, version: str) -> None:
    answer = node.call(command, "one", cniVersion=version)
    assert answer.code == 1
    assert version in answer.msg


BAD_VALUES: list[tuple[dict[str, Any], int, str, str]] = [
    ({"name": 7}, 7, "name", "7"),
    ({"name": "a b"}, 7, "name", "a b"),
    ({"name": None}, 7, "name", "missing"),
    ({"mode": "macvlan"}, 7, "mode", "macvlan"),
    ({"mode": 1}, 7, "mode", "1"),
    ({"mtu": "1500"}, 7, "mtu", "1500"),
    ({"mtu": 67}, 7, "mtu", "67"),
    ({"mtu": 1501}, 7, "mtu", "1501"),
    ({"mtu": True}, 7, "mtu", "true"),
    ({"hairpinMode": "yes"}, 7, "hairpinMode", "yes"),
    ({"defaultRoute": 0}, 7, "defaultRoute", "0"),
    ({"spoofCheck": []}, 7, "spoofCheck", "[]"),
    ({"bridge": "br9"}, 7, "bridge", "br9"),
    ({"ipMasq": True}, 2, "ipMasq", "true"),
    ({"ipam": {"type": "host-local"}}, 2, "ipam", "host-local"),
    ({"dns": {"nameservers": "10.0.0.1"}}, 7, "dns.nameservers", "10.0.0.1"),
    ({"runtimeConfig": 7}, 7, "runtimeConfig", "7"),
    ({"runtimeConfig": {"ips": ["10.5.0.300"]}}, 7, "ips", "10.5.0.300"),
    ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, 7, "mac", "01:00:5e:00:00:01"),
    ({"runtimeConfig": {"ips": ["203.0.113.7"]}}, 7, "203.0.113.7", "10.5."),
    ({"prevResult": []}, 7, "prevResult", "[]"),
    ({"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "x"}]}}, 7, "prevResult.ips[0].address", "x"),
]


@pytest.mark.parametrize(("keys", "code", "key", "value"), BAD_VALUES, ids=[str(case[0]) for case in BAD_VALUES])
def test_a_value_that_cannot_be_is_named_with_its_key(
    node: Node, keys: dict[str, Any], code: int, key: str, value: str
) -> None:
    refused(node, code, [key, value], **keys)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "\x00", '{"cniVersion": "1.1.0"} more', "[" * 10**5])
def test_what_is_no_configuration(node: Node, text: str) -> None:
    refused(node, 6, [], stdin=text)


def test_a_configuration_that_is_too_long(node: Node) -> None:
    refused(node, 7, ["1048576 bytes"], stdin=json.dumps(node.conf(x="y" * (1 << 20))))


BAD_VARIABLES = {
    "no id": {"CNI_CONTAINERID": ""},
    "an id of other letters": {"CNI_CONTAINERID": "../../etc"},
    "no name": {"CNI_IFNAME": ""},
    "a long name": {"CNI_IFNAME": "sixteen-letters-"},
    "a name with a slash": {"CNI_IFNAME": "a/b"},
    "a name that is none": {"CNI_IFNAME": ".."},
    "a pattern": {"CNI_IFNAME": "eth%d"},
    "a name of all": {"CNI_IFNAME": "all"},
    "arguments": {"CNI_ARGS": "x"},
    "an address": {"CNI_ARGS": "IP=10.5.1"},
    "a mac": {"CNI_ARGS": "MAC=zz"},
    "a command": {"CNI_COMMAND": "ATTACH"},
}


@pytest.mark.parametrize("kind", BAD_VARIABLES)
def test_variables_that_are_missing_or_wrong(node: Node, kind: str) -> None:
    ((name, value),) = BAD_VARIABLES[kind].items()
    refused(node, 4, [name, value], env=BAD_VARIABLES[kind])


def test_all_bad_variables_are_named_at_once(node: Node) -> None:
    bad = {"CNI_CONTAINERID": "a b", "CNI_IFNAME": "", "CNI_NETNS": ""}
    refused(node, 4, list(bad), env=bad)


# ---- namespaces ------------------------------------------------------------------------------------------


def test_a_namespace_that_is_not_one(node: Node, tmp_path: Path) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.touch()
    os.mkfifo(fifo)
    for path in (tmp_path / "nowhere", file, fifo, tmp_path, Path("/proc/self/ns/uts"), Path("/dev/null")):
        refused(node, 8, ["CNI_NETNS", str(path)], env={"CNI_NETNS": str(path)})
        node.delete("one")
        node.delete("one", env={"CNI_NETNS": str(path)})


def test_the_namespace_of_the_node_itself(node: Node) -> None:
    """A path below /proc may have come to mean the host, when its process id was given out again."""
    for path in ("/proc/self/ns/net", f"/run/netns/{node.netns}"):
        refused(node, 8, ["CNI_NETNS", path], env={"CNI_NETNS": path})
        node.delete("one")
        assert node.call("DEL", "one", env={"CNI_NETNS": path}).code == 8


# ---- what is taken ---------------------------------------------------------------------------------------


def test_an_interface_name_that_is_in_use(node: Node) -> None:
    """Somebody else's: it stays as it is."""
    netns = node.make_netns("one")
    node.run("ip link add eth0 type bridge", netns)
    before = node.traces()
    answer = node.call("ADD", "one")
    assert answer.code == 101
    assert "CNI_IFNAME is 'eth0'" in answer.msg
    assert node.path("one") in answer.msg
    assert node.traces() == before
    assert "bridge" in node.run("ip -d link show eth0", netns)
    node.delete("one")
    assert node.links_in("one") == {"eth0"}


def test_an_address_that_somebody_has(node: Node) -> None:
    taken = node.add("holder").addresses
    for address in taken:
        refused(node, 100, [address.partition("/")[0], "holder/eth0"], runtimeConfig={"ips": [address]})
        node.delete("one")
    args = {"CNI_ARGS": f"IP={taken[0].partition('/')[0]}"}
    refused(node, 100, [taken[0].partition("/")[0]], env=args)


@pytest.mark.parametrize("host", ["0", "1", "255"])
def test_addresses_of_the_subnet_that_no_container_may_have(node: Node, host: str) -> None:
    wanted = node.subnets[0].replace("0/24", host)
    refused(node, 7, [wanted], runtimeConfig={"ips": [wanted]})


def test_a_mac_that_is_the_nodes(node: Node) -> None:
    node.add("one", runtimeConfig={"mac": "02:00:00:00:00:01"})
    node.delete("one")


def test_a_list_whose_network_was_given_another_name(node: Node) -> None:
    """The container is found by its id all the same, and a GC of the new name leaves those of the old one alone."""
    added = node.add("one", name="before").document
    assert node.call("ADD", "one", name="after").code == 101
    assert node.call("CHECK", "one", name="after", prevResult=added).status == 0
    node.call("GC", "x", name="after").works()
    assert [one["network"] for one in node.containers()] == ["before"]
    node.delete("one", name="after")
    assert node.containers() == []


def test_ours_twice_in_a_list(node: Node) -> None:
    first = node.add("one").document
    before = node.traces()
    answer = node.call("ADD", "one", prevResult=first)
    assert answer.code == 7
    assert "'pods'" in answer.msg
    assert node.traces() == before


def test_an_unknown_container(node: Node) -> None:
    node.make_netns("one")
    answer = node.call("CHECK", "one", prevResult={"cniVersion": "1.1.0"})
    assert answer.code == 3
    assert "one" in answer.msg
    node.add("one")
    assert node.call("CHECK", "one").code == 7, "a CHECK needs the result"
