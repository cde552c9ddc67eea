"""What a real container gets by name, what its result says, and in which words an ADD is refused."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.agent.attachment_plan import (
    ALIAS,
    NodeFacts,
    attachment_of,
    filters_in,
    host_link,
    inode_at,
    is_left_to_others,
    node_keys,
    node_mac,
    not_kept,
    ours_in,
    outside_sentence,
    refusal,
    result_of,
    wanted,
    wide_scope,
)
from muslin.agent.attachment_plan import Netns as OpenNetns
from muslin.agent.reservations import Reservation
from muslin.errors import MuslinError
from muslin.model.kernel import Address, AnyObject, Bridge, Link, NftElement, NftTable, Sysctl, Veth
from muslin.model.ops import Create, Op, OpResult, Report
from muslin.model.state import Snapshot
from muslin.plan import attach, sources
from muslin.wire.cni import parse_conf
from muslin.wire.cni_call import parse_call
from tests.unit.agent.containers import FACTS, ROUTED, conf_bytes

CALL = parse_call(
    {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "one",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/one",
        "CNI_PATH": "/opt/cni/bin",
    }
)
NETNS = OpenNetns(fd=7, inode=4026532000)


def reservation(facts: NodeFacts = FACTS, **keys: Any) -> Reservation:
    made = wanted(CALL, parse_conf(conf_bytes(facts, **keys), CALL), NETNS, facts, "boot", 12.0)
    return msgspec.structs.replace(made, addresses=("10.5.1.2/24", "fd00:10:5:1::2/64"))


def test_a_reservation_says_all_that_a_container_is_made_of() -> None:
    made = reservation(mtu=1400, hairpinMode=True, defaultRoute=False, spoofCheck=False, name="others")
    assert (made.key, made.network, made.mtu, made.netns_path, made.netns_inode, made.boot_id, made.at) == (
        ("one", "eth0"),
        "others",
        1400,
        "/run/netns/one",
        4026532000,
        "boot",
        12.0,
    )
    assert (made.hairpin, made.default_route, made.spoof_check, made.complete) == (True, False, False, False)
    assert made.gateways == ("10.5.1.1", "fd00:10:5:1::1")
    assert reservation().mtu == FACTS.mtu


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=15))
def test_names_and_macs_are_the_same_each_time_and_the_kernel_takes_them(container: str, ifname: str) -> None:
    one = msgspec.structs.replace(reservation(), container_id=container, ifname=ifname)
    for checked in (True, False):
        name = host_link(container, ifname, checked=checked)
        assert len(name) == 15
        assert name.isalnum()
        assert name == host_link(container, ifname, checked=checked)
        assert name.startswith(sources.CHECKED) == checked
    assert int(node_mac(one)[:2], 16) & 3 == 2, "locally administered, of one interface"
    assert len(attachment_of(one, FACTS).alias or "") <= 255


def test_no_two_interfaces_have_a_name_or_a_mac_in_common() -> None:
    pairs = [("a", "b"), ("a", "bb"), ("aa", "b"), ("a/b", "b"), ("ab", "")]
    assert len({host_link(*pair, checked=True) for pair in pairs}) == len(pairs)
    macs = {node_mac(msgspec.structs.replace(reservation(), container_id=a, ifname=b)) for a, b in pairs}
    assert len(macs) == len(pairs)
    assert reservation().mac != node_mac(reservation())


@pytest.mark.parametrize("facts", [FACTS, ROUTED], ids=["bridge", "routed"])
def test_what_has_to_go_with_a_container_is_its_cable_and_what_it_may_send(facts: NodeFacts) -> None:
    one = reservation(facts)
    family = "bridge" if facts.bridge else "inet"
    assert node_keys(one) == {
        ("link", "", one.host_link),
        *(
            ("nft-element", "", family, "muslin_cni", name, f"{one.host_link} . {value}")
            for name, value in (("cables", one.mac), ("sources4", "10.5.1.2"), ("sources6", "fd00:10:5:1::2"))
        ),
    }
    assert node_keys(reservation(facts, spoofCheck=False)) == {("link", "", "mut" + one.host_link[3:])}


def test_a_check_passes_over_settings_and_loopback_of_the_container_alone() -> None:
    attachment = attachment_of(reservation(), FACTS, "inside")
    left = [obj for obj in attach.plan(attachment) if is_left_to_others(obj, attachment)]
    assert {(type(obj), obj.netns) for obj in left} == {(Sysctl, "inside"), (Link, "inside")}
    assert [obj.name for obj in left if isinstance(obj, Link)] == ["lo"]


def test_a_result_of_one_family_speaks_of_that_alone() -> None:
    for address, others in (("10.5.1.2/24", ":"), ("fd00:10:5:1::2/64", ".")):
        one = msgspec.structs.replace(reservation(), addresses=(address,))
        result = result_of(one, FACTS, CALL, parse_conf(conf_bytes(), CALL))
        assert [ip.address for ip in result.ips] == [address]
        assert len(result.routes) == 1
        assert others not in result.routes[0].dst + result.routes[0].gw


# ---- refusals --------------------------------------------------------------------------------------------

CABLE = Link(netns="", name="mus000000000000", options=Veth(peer_netns="/proc/self/fd/7", peer="eth0"))
ELEMENT = NftElement(netns="", family="bridge", table="muslin_cni", set="cables", address="mus . 02:00:00:00:00:01")


@pytest.mark.parametrize(
    ("op", "number", "code", "details"),
    [
        (Create(CABLE), errno.EEXIST, 101, "ask for another name"),
        (Create(CABLE), errno.EXFULL, 102, "1,024 ports"),
        (Create(ELEMENT), errno.ENOENT, 102, "install nftables"),
        (Create(Address(netns="x", link="eth0", address="10.5.1.2/24")), errno.EEXIST, 102, "another plugin"),
        (Create(Address(netns="x", link="eth0", address="10.5.1.2/24")), errno.EPERM, 102, "muslin status"),
    ],
)
def test_a_refusal_of_the_kernel_has_a_remedy(op: Op, number: int, code: int, details: str) -> None:
    error = refusal(Report((OpResult.failed(op, number, ""),)), CALL)
    assert error.code == code
    assert details in error.details
    assert "eth0" in error.msg


def test_the_disk_is_named_with_its_own_remedy() -> None:
    error = not_kept(MuslinError("containers.db cannot be written: full", "free some space"))
    assert (error.code, error.msg, error.details) == (5, "containers.db cannot be written: full", "free some space")
    assert not_kept(OSError(errno.ENOBUFS, "No buffer space available")).code == 5


# ---- looks -----------------------------------------------------------------------------------------------


def test_what_is_of_containers_is_known_by_alias_and_table() -> None:
    table = sources.table("", "bridge")
    ours: list[AnyObject] = [
        Link(netns="", name="mus1", options=Bridge(), alias=f"{ALIAS}dead/eth0"),
        Link(netns="", name="mus2", options=Bridge(), alias=f"{ALIAS}living/eth0"),
        table,
        ELEMENT,
    ]
    theirs: list[AnyObject] = [
        Link(netns="", name="mus3", options=Bridge(), alias=""),
        Link(netns="", name="mus4", options=Bridge()),
        Link(netns="", name="muslin0", options=Bridge(), alias="muslin: node"),
        NftTable(netns="", family="inet", name="filter", text=""),
        msgspec.structs.replace(ELEMENT, table="filter"),
    ]
    seen = Snapshot.of([*ours, *theirs])
    assert ours_in(seen).keys == {obj.key for obj in ours}
    assert filters_in(seen).keys == {table.key, ELEMENT.key}
    assert filters_in(seen, "inet").keys == frozenset()


def test_neighbours_are_looked_at_where_there_are_any_to_keep() -> None:
    assert not wide_scope(["mus1"], FACTS).neighbours
    scope = wide_scope(["mus1"], ROUTED)
    assert scope.neighbours
    assert scope.entry_links == frozenset({("", "mus1")})


@pytest.mark.parametrize(
    ("subnets", "count", "words"),
    [
        (FACTS.subnets, 3, []),
        ((), 3, []),
        (("10.5.9.0/24", FACTS.subnets[1]), 1, ["the container one has 10.5.1.2/24"]),
        (("10.5.9.0/24",), 3, ["the container one and 2 more has 10.5.1.2/24"]),
    ],
)
def test_containers_of_a_lost_subnet_are_counted(subnets: tuple[str, ...], count: int, words: list[str]) -> None:
    facts = msgspec.structs.replace(FACTS, subnets=subnets)
    said = list(outside_sentence([reservation()] * count, facts))
    assert [sentence[: len(start)] for sentence, start in zip(said, words, strict=True)] == words


def test_what_is_no_path_has_no_namespace() -> None:
    for path in ("", "/nowhere/at/all", "/proc/self/\0"):
        assert inode_at(path) == 0
    assert inode_at("/proc/self/ns/net") > 0
