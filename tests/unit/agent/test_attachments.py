"""Containers of one node on a kernel in memory: what each call makes of it, whatever is refused, whoever died."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.agent.attachment_plan import NodeFacts, host_link, node_mac
from muslin.errors import MuslinError
from muslin.model.kernel import Address, Link, NftElement, Route, Veth, link_key
from muslin.model.ops import Delete, Op
from muslin.plan import sources
from muslin.wire.cni_error import CniError
from tests.unit.agent.containers import FACTS, IPV4_ONLY, ROUTED, Node, code_of, no_fault

SHORT = msgspec.structs.replace(IPV4_ONLY, subnets=("10.5.1.0/29",))
"""A subnet with five addresses for containers."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.reservations.close()


# ---- ADD -------------------------------------------------------------------------------------------------


def test_a_container_has_its_addresses_the_way_out_and_the_right_to_send(node: Node) -> None:
    result = node.add("one")
    assert node.addresses("one") == {"10.5.1.2/24", "fd00:10:5:1::2/64"}
    assert node.routes("one") == {("0.0.0.0/0", "10.5.1.1"), ("::/0", "fd00:10:5:1::1")}
    (cable,) = node.cables()
    assert (cable.name, cable.master, cable.alias, cable.up) == (
        host_link("one", "eth0", checked=True),
        "cni0",
        "muslin-cni:one/eth0",
        True,
    )
    mac = result.interfaces[-1].mac
    allowed = {(obj.set, obj.address) for obj in node.on_node() if isinstance(obj, NftElement)}
    assert allowed == {
        ("cables", f"{cable.name} . {mac}"),
        ("sources4", f"{cable.name} . 10.5.1.2"),
        ("sources6", f"{cable.name} . fd00:10:5:1::2"),
    }


def test_the_result_tells_of_bridge_cable_and_interface_and_whose_the_addresses_are(node: Node) -> None:
    result = node.add("one", dns={"nameservers": ["10.0.0.53"], "search": ["pods.example"]})
    (reservation,) = node.attachments.all()
    assert [(one.name, one.mac, one.sandbox) for one in result.interfaces] == [
        ("cni0", "", ""),
        (reservation.host_link, node_mac(reservation), ""),
        ("eth0", reservation.mac, node.path("one")),
    ]
    assert [(ip.address, ip.gateway, ip.interface) for ip in result.ips] == [
        ("10.5.1.2/24", "10.5.1.1", 2),
        ("fd00:10:5:1::2/64", "fd00:10:5:1::1", 2),
    ]
    assert [(route.dst, route.gw) for route in result.routes] == [
        ("0.0.0.0/0", "10.5.1.1"),
        ("::/0", "fd00:10:5:1::1"),
    ]
    assert result.dns.nameservers == ("10.0.0.53",)
    assert reservation.complete


def test_without_a_bridge_each_has_a_route_and_both_ends_know_each_other(node: Node) -> None:
    node.become(ROUTED)
    result = node.add("one")
    assert [one.name for one in result.interfaces][1:] == ["eth0"]
    assert [ip.interface for ip in result.ips] == [1, 1]
    assert node.addresses("one") == {"10.5.1.2/32", "fd00:10:5:1::2/128"}
    (cable,) = node.cables()
    assert cable.master == ""
    routes = {(obj.destination, obj.link) for obj in node.on_node() if isinstance(obj, Route)}
    assert routes == {("10.5.1.2/32", cable.name), ("fd00:10:5:1::2/128", cable.name)}
    gateways = {obj.address for obj in node.on_node() if isinstance(obj, Address)}
    assert gateways == {"10.5.1.1/32", "fd00:10:5:1::1/128"}
    node.delete("one")
    assert node.on_node() == set()


def test_a_container_without_a_default_route_has_ways_to_the_network_alone(node: Node) -> None:
    result = node.add("one", defaultRoute=False)
    assert node.routes("one") == {("10.5.0.0/16", "10.5.1.1"), ("fd00:10:5::/48", "fd00:10:5:1::1")}
    assert [route.dst for route in result.routes] == ["10.5.0.0/16", "fd00:10:5::/48"]


def test_mtu_hairpin_and_unchecked_sources_are_as_the_configuration_says(node: Node) -> None:
    node.add("one", mtu=1400, hairpinMode=True, spoofCheck=False)
    (cable,) = node.cables()
    assert (cable.mtu, cable.hairpin, cable.name[:3]) == (1400, True, sources.UNCHECKED)
    assert not [obj for obj in node.on_node() if isinstance(obj, NftElement)]
    (end,) = [obj for obj in node.inside("one") if isinstance(obj, Link)]
    assert end.mtu == 1400
    node.add("two")
    assert {link.mtu for link in node.cables()} == {1400, 1450}


@pytest.mark.parametrize(
    "keys",
    [
        {"runtimeConfig": {"ips": ["10.5.1.77/24"], "mac": "02:00:00:00:00:77"}},
        {"args": {"cni": {"ips": ["10.5.1.77"], "mac": "02:00:00:00:00:77"}}},
        {"args_": {"IgnoreUnknown": "1", "K8S_POD_NAME": "web", "IP": "10.5.1.77", "MAC": "02:00:00:00:00:77"}},
    ],
)
def test_a_wanted_address_and_mac_are_given_wherever_they_are_asked_for(node: Node, keys: dict[str, Any]) -> None:
    result = node.add("one", **keys)
    assert "10.5.1.77/24" in node.addresses("one")
    assert result.interfaces[-1].mac == "02:00:00:00:00:77"


def test_an_interface_of_others_before_us_is_passed_on_and_ours_comes_behind_it(node: Node) -> None:
    before = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net0", "sandbox": node.path("one")}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
    }
    result = node.add("one", prevResult=before)
    assert [one.name for one in result.interfaces] == ["net0", "cni0", host_link("one", "eth0", checked=True), "eth0"]
    assert [ip.interface for ip in result.ips] == [0, 3, 3]


def test_two_interfaces_of_one_container_are_two_attachments(node: Node) -> None:
    node.add("one")
    node.add("one", ifname="net1", defaultRoute=False)
    assert len(node.cables()) == 2
    node.delete("one", ifname="net1")
    assert [link.name for link in node.cables()] == [host_link("one", "eth0", checked=True)]


# ---- ADD that cannot be ----------------------------------------------------------------------------------


def everything_that_an_add_does(tmp_path: Path, facts: NodeFacts) -> list[Op]:
    tmp_path.mkdir()
    node = Node(tmp_path).become(facts)
    done: list[Op] = []

    def note(op: Op) -> int:
        done.append(op)
        return 0

    node.netns("one")
    node.refuse = note
    node.add("one")
    node.reservations.close()
    return done


@pytest.mark.parametrize("facts", [FACTS, ROUTED], ids=["bridge", "routed"])
def test_whatever_the_kernel_refuses_nothing_is_left_and_the_next_try_works(tmp_path: Path, facts: NodeFacts) -> None:
    steps = everything_that_an_add_does(tmp_path / "first", facts)
    assert len(steps) > 10
    for number, step in enumerate(steps):
        directory = tmp_path / str(number)
        directory.mkdir()
        node = Node(directory).become(facts)
        node.netns("one")
        before = node.objects()
        node.refuse = lambda op, step=step: errno.EPERM if op == step else 0  # type: ignore[misc]
        with pytest.raises(CniError) as failure:
            node.add("one")
        assert failure.value.code == 102, step
        assert "Operation not permitted" in failure.value.msg
        node.refuse = no_fault
        assert node.objects() == before, step
        assert node.attachments.all() == []
        assert node.attachments.free[facts.subnets[0]] == 253
        node.add("one")
        node.reservations.close()


def test_a_repeated_add_is_refused_and_nothing_changes(node: Node) -> None:
    node.add("one")
    before = node.objects(), node.attachments.all()
    node.now += 1
    code, words = code_of(lambda: node.add("one"))
    assert code == 101
    assert "CNI_IFNAME is 'eth0'" in words
    assert node.path("one") in words
    assert (node.objects(), node.attachments.all()) == before


def test_an_interface_of_somebody_else_in_the_container_stays(node: Node) -> None:
    netns = node.netns("one").name
    for obj in (
        Link(netns="", name="theirs", options=Veth(peer_netns=netns, peer="eth0"), up=True),
        Link(netns=netns, name="eth0", options=Veth(peer_netns="", peer="theirs"), up=True),
        Address(netns=netns, link="eth0", address="192.0.2.7/24"),
    ):
        node.put(obj)
    before = node.objects()
    code, _ = code_of(lambda: node.add("one"))
    assert code == 101
    assert node.objects() == before
    assert node.attachments.all() == []


def test_the_plugin_twice_in_one_list_is_said_so_and_the_first_stays(node: Node) -> None:
    result = node.add("one")
    before = node.objects()
    inside = result.interfaces[-1]
    chain = {"cniVersion": "1.1.0", "interfaces": [{"name": inside.name, "sandbox": inside.sandbox}]}
    code, words = code_of(lambda: node.add("one", prevResult=chain))
    assert code == 7
    assert "stands twice in the list of network 'pods'" in words
    assert node.objects() == before


def test_an_exhausted_subnet_is_said_with_numbers_and_nothing_is_left(node: Node) -> None:
    node.become(SHORT)
    for number in range(5):
        node.add(f"c{number}")
    node.netns("more")
    before = node.objects(), node.attachments.all()
    code, words = code_of(lambda: node.add("more"))
    assert code == 11
    assert "5 of 5" in words
    assert "10.5.1.0/29" in words
    assert (node.objects(), node.attachments.all()) == before
    assert code_of(lambda: node.attachments.status(node.facts))[0] == 50
    node.delete("c3")
    node.attachments.status(node.facts)
    assert node.add("more").ips[0].address == "10.5.1.5/29"


def test_an_exhausted_family_takes_nothing_of_the_other(node: Node) -> None:
    node.become(msgspec.structs.replace(FACTS, subnets=("10.5.1.0/29", "fd00:10:5:1::/64")))
    for number in range(5):
        node.add(f"c{number}")
    free = node.attachments.free
    assert code_of(lambda: node.add("more"))[0] == 11
    assert node.attachments.free == free


@pytest.mark.parametrize(
    ("wanted", "code", "word"),
    [
        ("10.5.1.2", 100, "one/eth0"),
        ("10.5.2.7", 7, "10.5.1.2 to 10.5.1.254"),
        ("10.5.1.0", 7, "10.5.1.2 to"),
        ("10.5.1.1", 7, "10.5.1.2 to"),
        ("10.5.1.255", 7, "10.5.1.2 to"),
        ("fd00:10:5:2::7", 7, "fd00:10:5:1::2 to"),
    ],
)
def test_an_address_that_cannot_be_had(node: Node, wanted: str, code: int, word: str) -> None:
    node.add("one")
    node.netns("two")
    before = node.objects(), node.attachments.free
    found, words = code_of(lambda: node.add("two", runtimeConfig={"ips": [wanted]}))
    assert found == code
    assert wanted in words
    assert word in words
    assert (node.objects(), node.attachments.free) == before


@pytest.mark.parametrize(
    ("facts", "keys", "code", "words"),
    [
        (msgspec.structs.replace(FACTS, trouble="not ready: starting"), {}, 11, "the node is not ready: starting"),
        (FACTS, {"bridge": "br7"}, 7, "bridge is 'br7', and the agent has the bridge 'cni0'"),
        (ROUTED, {"bridge": "br7"}, 7, "bridge is 'br7', and the agent has none"),
        (ROUTED, {"mode": "bridge"}, 7, "mode is 'bridge'"),
        (FACTS, {"mode": "routed"}, 7, "mode is 'routed'"),
        (FACTS, {"ipMasq": True}, 2, "ipMasq is true"),
        (FACTS, {"mtu": 1451}, 7, "mtu is 1451"),
    ],
)
def test_what_this_node_cannot_do(node: Node, facts: NodeFacts, keys: dict[str, Any], code: int, words: str) -> None:
    node.become(facts)
    node.netns("one")
    before = node.objects()
    found = code_of(lambda: node.add("one", **keys))
    assert found[0] == code
    assert words in found[1]
    assert node.objects() == before


def test_a_translating_node_takes_the_key_that_asks_for_it(node: Node) -> None:
    node.become(msgspec.structs.replace(FACTS, masquerade=True))
    node.add("one", ipMasq=True)


class FullDisk:
    """A journal whose file takes no more writes from some moment on."""

    def __init__(self, node: Node, after: int) -> None:
        self._file, self._left = node.reservations._file, after
        self._write = self._file.write
        self._file.write = self.write  # type: ignore[method-assign]

    def write(self, change: object) -> None:
        if self._left == 0:
            raise MuslinError("containers.db cannot be written: database or disk is full", "free some space")
        self._left -= 1
        self._write(change)  # type: ignore[arg-type]

    def mend(self) -> None:
        self._file.write = self._write  # type: ignore[method-assign]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_leaves_nothing_half_made(node: Node, writes: int) -> None:
    node.add("zero")
    node.netns("one")
    before = node.objects()
    disk = FullDisk(node, writes)
    code, words = code_of(lambda: node.add("one"))
    assert code == 5
    assert "disk is full" in words
    assert node.objects() == before
    disk.mend()
    node.attachments.recover()
    node.attachments.look(node.facts)
    assert [one.container_id for one in node.attachments.all()] == ["zero"]
    node.add("one")


def test_a_kernel_that_cannot_be_looked_at_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look before the first change, and one after an answer that never came."""
    node.attachments.look(node.facts)
    node.netns("one")
    before = node.objects()

    def apply_and_fail(ops: object, witness: object = None, *, one_by_one: bool = False) -> object:
        apply(list(ops)[:5])  # type: ignore[call-overload]
        monkeypatch.undo()
        raise OSError(errno.ENOBUFS, "No buffer space available")

    apply = node.kernel.apply
    monkeypatch.setattr(node.kernel, "apply", apply_and_fail)
    assert code_of(lambda: node.add("one"))[0] == 5
    assert node.objects() == before
    assert node.attachments.all() == []


# ---- DEL, GC ---------------------------------------------------------------------------------------------


def test_a_del_leaves_nothing_and_may_be_repeated(node: Node) -> None:
    node.netns("one")
    before = node.objects()
    node.add("one")
    node.delete("one")
    assert {obj.key for obj in node.objects()} == {obj.key for obj in before}
    assert node.attachments.all() == []
    node.delete("one")
    node.delete("never-seen")


def test_a_del_of_many_takes_them_all_and_no_other(node: Node) -> None:
    for number in range(10):
        node.add(f"c{number}")
    node.delete(*(f"c{number}" for number in range(9)), "unknown")
    assert [link.alias for link in node.cables()] == ["muslin-cni:c9/eth0"]
    assert [one.container_id for one in node.attachments.all()] == ["c9"]


def test_a_late_del_of_one_that_had_the_address_before_takes_nothing_from_who_has_it_now(node: Node) -> None:
    node.add("old")
    node.delete("old")
    node.add("new", runtimeConfig={"ips": ["10.5.1.2"]})
    before = node.objects()
    node.delete("old")
    assert node.objects() == before
    holder = node.reservations.by_address("10.5.1.2")
    assert holder is not None
    assert holder.container_id == "new"


def test_one_that_the_kernel_refuses_to_remove_stays_known_and_the_others_go(node: Node) -> None:
    for name in ("one", "two", "three"):
        node.add(name)
    stuck = link_key("", host_link("two", "eth0", checked=True))
    node.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) and op.key == stuck else 0
    refused = node.attachments.delete([(name, "eth0") for name in ("one", "two", "three")])
    assert list(refused) == [("two", "eth0")]
    assert "Device or resource busy" in refused["two", "eth0"].msg
    assert [one.container_id for one in node.attachments.all()] == ["two"]
    node.refuse = no_fault
    node.delete("two")
    assert node.on_node() == set()


def test_a_gc_removes_what_is_not_named_of_its_own_network_alone(node: Node) -> None:
    for name in ("one", "two", "three"):
        node.add(name)
    node.add("other", name="others")
    call = node.call("GC", "x")
    valid = [{"containerID": "two", "ifname": "eth0"}, {"containerID": "gone", "ifname": "eth0"}]
    node.attachments.collect(node.conf(call, **{"cni.dev/valid-attachments": valid}))
    assert {one.container_id for one in node.attachments.all()} == {"two", "other"}
    assert len(node.cables()) == 2
    node.attachments.collect(node.conf(call))
    assert {one.container_id for one in node.attachments.all()} == {"other"}


def test_a_gc_goes_on_past_a_refusal_and_tells_of_it(node: Node) -> None:
    for name in ("one", "two"):
        node.add(name)
    stuck = link_key("", host_link("one", "eth0", checked=True))
    node.refuse = lambda op: errno.EBUSY if isinstance(op, Delete) and op.key == stuck else 0
    call = node.call("GC", "x")
    code, words = code_of(lambda: node.attachments.collect(node.conf(call)))
    assert code == 102
    assert "Device or resource busy" in words
    assert [one.container_id for one in node.attachments.all()] == ["one"]
