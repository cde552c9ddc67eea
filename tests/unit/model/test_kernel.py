"""Kernel objects: their commands as a person types them, their keys, what they stand on, their JSON.

The commands are golden text: tests/kernel/test_engine.py runs what is printed here through iproute2 itself.
"""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from muslin.model.kernel import (
    PROTOCOL_KERNEL,
    PROTOCOL_MUSLIN,
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    KernelObject,
    Key,
    Link,
    LinkAttribute,
    LinkOptions,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    NftElement,
    NftTable,
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)

MAC = "02:00:00:00:00:07"
VXLAN6 = Vxlan(vni=7, local="fd10::1", port=4789, underlay="eth0", learning=True, gbp=True)


def link(name: str, options: LinkOptions, netns: str = "n1", mtu: int | None = None, mac: str | None = None) -> Link:
    return Link(netns=netns, name=name, options=options, mtu=mtu, mac=mac)


COMMANDS: list[tuple[AnyObject, str]] = [
    (Netns(netns="n1"), "ip netns add n1"),
    (Netns(netns="odd name"), "ip netns add 'odd name'"),
    (link("br0", Bridge()), "ip -n n1 link add br0 type bridge"),
    (link("br0", Bridge(), netns=""), "ip link add br0 type bridge"),
    (link("br0", Bridge(), netns="odd name"), "ip -n 'odd name' link add br0 type bridge"),
    (link("a", Veth(peer_netns="n2", peer="b")), "ip -n n1 link add a type veth peer name b netns n2"),
    (link("a", Veth(peer_netns="n2", peer="b"), netns=""), "ip link add a type veth peer name b netns n2"),
    (link("a", Veth(peer_netns="", peer="b"), netns=""), "ip link add a type veth peer name b"),
    (
        link("a", Veth(peer_netns="n2", peer="b"), mtu=1400, mac=MAC),
        f"ip -n n1 link add a address {MAC} mtu 1400 type veth peer name b netns n2",
    ),
    (link("tun0", Tun(), mtu=1472), "ip -n n1 tuntap add dev tun0 mode tun"),
    (
        link("vxlan1", Vxlan(vni=1, local="10.0.0.1")),
        "ip -n n1 link add vxlan1 type vxlan id 1 local 10.0.0.1 dstport 8472 nolearning",
    ),
    (
        link("vx.6", VXLAN6, mtu=1430, mac=MAC),
        f"ip -n n1 link add vx.6 address {MAC} mtu 1430 type vxlan id 7 local fd10::1 dev eth0 dstport 4789 gbp",
    ),
    (link("d0", OtherKind(kind="dummy")), "ip -n n1 link add d0 type dummy"),
    (Address(netns="n1", link="br0", address="172.16.0.1/24"), "ip -n n1 addr add 172.16.0.1/24 dev br0"),
    (Address(netns="", link="br0", address="fd16::1/64"), "ip addr add fd16::1/64 dev br0 nodad"),
    (
        Nexthop(netns="n1", id=5, link="eth0", via="10.0.0.2", onlink=True),
        "ip -n n1 nexthop add id 5 via 10.0.0.2 dev eth0 onlink proto 77",
    ),
    (Nexthop(netns="", id=6, link="eth0", via="fd10::2"), "ip nexthop add id 6 via fd10::2 dev eth0 proto 77"),
    (
        Route(netns="n1", destination="172.16.1.0/24", via="10.0.0.2", link="eth0"),
        "ip -n n1 route add 172.16.1.0/24 via 10.0.0.2 dev eth0",
    ),
    (Route(netns="n1", destination="0.0.0.0/0", via="10.0.0.1"), "ip -n n1 route add default via 10.0.0.1"),
    (
        Route(netns="n1", destination="::/0", via="fd10::1", link="eth0"),
        "ip -n n1 -6 route add default via fd10::1 dev eth0",
    ),
    (Route(netns="n1", destination="::/0", link="veth2"), "ip -n n1 -6 route add default dev veth2"),
    (Route(netns="", destination="fd16:1::/64", via="fd10::2"), "ip route add fd16:1::/64 via fd10::2"),
    (Route(netns="n1", destination="172.16.1.0/24", nexthop_id=5), "ip -n n1 route add 172.16.1.0/24 nhid 5"),
    (
        Route(netns="n1", destination="10.9.0.0/16", kind="blackhole", protocol=PROTOCOL_MUSLIN, table=100),
        "ip -n n1 route add blackhole 10.9.0.0/16 table 100 proto 77",
    ),
    (
        Route(
            netns="n1",
            destination="172.16.1.0/24",
            via="172.16.1.0",
            link="vxlan1",
            onlink=True,
            source="172.16.0.0",
            metric=50,
            mtu=1450,
        ),
        "ip -n n1 route add 172.16.1.0/24 via 172.16.1.0 dev vxlan1 onlink src 172.16.0.0 metric 50 mtu 1450",
    ),
    (Rule(netns="n1", family=4, priority=100, table=100), "ip -n n1 -4 rule add priority 100 lookup 100 protocol 77"),
    (
        Rule(
            netns="", family=6, priority=7, table=9, source="fd16::/64", destination="fd17::/64", iif="eth0", fwmark=3
        ),
        "ip -6 rule add priority 7 from fd16::/64 to fd17::/64 iif eth0 fwmark 3 lookup 9 protocol 77",
    ),
    (
        Neighbour(netns="n1", link="vxlan1", address="172.16.1.0", mac=MAC),
        f"ip -n n1 neigh add 172.16.1.0 lladdr {MAC} dev vxlan1 nud permanent",
    ),
    (
        Neighbour(netns="", link="vxlan1", address="fd16:1::", mac=MAC),
        f"ip neigh add fd16:1:: lladdr {MAC} dev vxlan1 nud permanent",
    ),
    (
        FdbEntry(netns="n1", link="vxlan1", mac=MAC, destination="10.0.0.2"),
        f"bridge -n n1 fdb add {MAC} dev vxlan1 dst 10.0.0.2 self permanent",
    ),
    (
        FdbEntry(netns="", link="vxlan1", mac=MAC, destination="fd10::2"),
        f"bridge fdb add {MAC} dev vxlan1 dst fd10::2 self permanent",
    ),
    (
        Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1"),
        "ip netns exec n1 sysctl -q -w net.ipv4.ip_forward=1",
    ),
    (Sysctl(netns="", name="net/ipv6/conf/all/forwarding", value="1"), "sysctl -q -w net.ipv6.conf.all.forwarding=1"),
    (
        # sysctl(8): a name with slashes keeps its dots, which is the only way to say an interface with a dot
        Sysctl(netns="n1", name="net/ipv4/conf/eth0.5/rp_filter", value="0"),
        "ip netns exec n1 sysctl -q -w net/ipv4/conf/eth0.5/rp_filter=0",
    ),
    (
        Sysctl(netns="", name="net/ipv4/ping_group_range", value="0 100"),
        "sysctl -q -w 'net.ipv4.ping_group_range=0 100'",
    ),
    (
        NftTable(netns="n1", family="inet", name="t", text="chain c {\n}"),
        "ip netns exec n1 nft -f - <<'END'\ntable inet t\ndelete table inet t\ntable inet t {\nchain c {\n}\n}\nEND",
    ),
    (
        NftElement(netns="n1", family="inet", table="t", set="peers", address="fd10::2"),
        "ip netns exec n1 nft add element inet t peers '{ fd10::2 }'",
    ),
    (
        NftTable(netns="", family="ip6", name="t", text=""),
        "nft -f - <<'END'\ntable ip6 t\ndelete table ip6 t\ntable ip6 t {\n\n}\nEND",
    ),
]


@pytest.mark.parametrize(("obj", "command"), COMMANDS, ids=[command.splitlines()[0] for _, command in COMMANDS])
def test_describe_is_the_command_that_a_person_types(obj: AnyObject, command: str) -> None:
    assert obj.describe() == command


REMOVALS: list[tuple[AnyObject, str]] = [
    (Netns(netns="n1"), "ip netns delete n1"),
    (link("br0", Bridge()), "ip -n n1 link delete br0"),
    (link("br0", Bridge(), netns=""), "ip link delete br0"),
    (Address(netns="n1", link="br0", address="fd16::1/64"), "ip -n n1 addr del fd16::1/64 dev br0"),
    (Nexthop(netns="n1", id=5, link="eth0"), "ip -n n1 nexthop del id 5"),
    (
        Route(netns="n1", destination="::/0", via="fd10::1", link="eth0"),
        "ip -n n1 -6 route del default via fd10::1 dev eth0",
    ),
    (
        Rule(netns="n1", family=6, priority=7, table=9, source="fd16::/64"),
        "ip -n n1 -6 rule del priority 7 from fd16::/64 lookup 9 protocol 77",
    ),
    (Neighbour(netns="n1", link="vxlan1", address="fd16:1::", mac=MAC), "ip -n n1 neigh del fd16:1:: dev vxlan1"),
    (
        FdbEntry(netns="n1", link="vxlan1", mac=MAC, destination="10.0.0.2"),
        f"bridge -n n1 fdb del {MAC} dev vxlan1 dst 10.0.0.2 self permanent",
    ),
    (NftTable(netns="n1", family="inet", name="t", text=""), "ip netns exec n1 nft delete table inet t"),
    (
        NftElement(netns="", family="ip", table="t", set="peers", address="10.0.0.2"),
        "nft delete element ip t peers '{ 10.0.0.2 }'",
    ),
]


@pytest.mark.parametrize(("obj", "command"), REMOVALS, ids=[command for _, command in REMOVALS])
def test_describe_delete_is_the_command_that_removes(obj: AnyObject, command: str) -> None:
    assert obj.describe_delete() == command


REPLACEMENTS: list[tuple[AnyObject, str]] = [
    (Nexthop(netns="n1", id=5, link="eth0"), "ip -n n1 nexthop replace id 5 dev eth0 proto 77"),
    (Route(netns="n1", destination="fd16::/64", via="fd10::1"), "ip -n n1 route replace fd16::/64 via fd10::1"),
    (
        Neighbour(netns="n1", link="vxlan1", address="172.16.1.0", mac=MAC),
        f"ip -n n1 neigh replace 172.16.1.0 lladdr {MAC} dev vxlan1 nud permanent",
    ),
    (
        FdbEntry(netns="n1", link="vxlan1", mac=MAC, destination="fd10::2"),
        f"bridge -n n1 fdb replace {MAC} dev vxlan1 dst fd10::2 self permanent",
    ),
    (Sysctl(netns="", name="net/ipv4/ip_forward", value="0"), "sysctl -q -w net.ipv4.ip_forward=0"),
]


@pytest.mark.parametrize(("obj", "command"), REPLACEMENTS, ids=[command for _, command in REPLACEMENTS])
def test_describe_replace_is_the_command_that_overwrites(obj: AnyObject, command: str) -> None:
    assert obj.describe_replace() == command


def test_a_route_by_a_nexthop_object_is_spelled_without_the_way_that_the_kernel_filled_in() -> None:
    observed = Route(netns="n1", destination="172.16.1.0/24", nexthop_id=5, link="eth0", via="10.0.0.2")
    assert observed.describe_delete() == "ip -n n1 route del 172.16.1.0/24 nhid 5"


SETTINGS: list[tuple[LinkAttribute, Link, str]] = [
    ("mtu", Link(netns="n1", name="a", options=Bridge(), mtu=1400), "mtu 1400"),
    ("mac", Link(netns="n1", name="a", options=Bridge(), mac=MAC), f"address {MAC}"),
    ("alias", Link(netns="n1", name="a", options=Bridge(), alias="it's ours"), """alias 'it'"'"'s ours'"""),
    ("master", Link(netns="n1", name="a", options=Bridge(), master="br0"), "master br0"),
    ("master", Link(netns="n1", name="a", options=Bridge(), master=""), "nomaster"),
    ("up", Link(netns="n1", name="a", options=Bridge(), up=True), "up"),
    ("up", Link(netns="n1", name="a", options=Bridge(), up=False), "down"),
]


@pytest.mark.parametrize(("attribute", "obj", "words"), SETTINGS, ids=[words for _, _, words in SETTINGS])
def test_one_attribute_is_one_ip_link_set(attribute: LinkAttribute, obj: Link, words: str) -> None:
    assert obj.describe_set(attribute) == f"ip -n n1 link set a {words}"


@pytest.mark.parametrize(
    ("obj", "missing"),
    [(link("lo", Loopback()), "describe_replace"), (Sysctl(netns="", name="net/x", value="1"), "describe_delete")],
)
def test_what_cannot_be_done_has_no_command(obj: KernelObject, missing: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(obj, missing)()


# ---- keys and requirements -------------------------------------------------------------------------------


def test_keys_hold_what_the_kernel_tells_things_apart_by() -> None:
    assert Netns(netns="n1").key == ("netns", "n1")
    assert link("a", Bridge()).key == link("a", Tun(), mtu=9000).key == ("link", "n1", "a")
    route = Route(netns="n1", destination="172.16.1.0/24", via="10.0.0.2", link="eth0")
    assert route.key == Route(netns="n1", destination="172.16.1.0/24", link="eth1").key
    assert route.key != Route(netns="n1", destination="172.16.1.0/24", metric=1).key
    assert route.key != Route(netns="n1", destination="172.16.1.0/24", table=100).key
    entry = FdbEntry(netns="n1", link="v", mac=MAC, destination="10.0.0.2")
    assert entry.key == FdbEntry(netns="n1", link="v", mac=MAC, destination="10.0.0.3").key


def test_a_metric_left_open_is_the_one_that_the_kernel_files_the_route_under() -> None:
    for destination, metric in (("172.16.0.0/24", 0), ("fd16::/64", 1024)):
        wanted = Route(netns="", destination=destination, link="a")
        observed = Route(netns="", destination=destination, link="a", metric=metric, onlink=False, scope=0)
        assert wanted.key == observed.key
        assert wanted.satisfied_by(observed)


def test_the_kernels_own_routes_of_one_destination_are_told_apart_by_link() -> None:
    one, other = (Route(netns="", destination="fe80::/64", link=name, protocol=PROTOCOL_KERNEL) for name in "ab")
    assert one.key != other.key


def test_every_rule_of_one_priority_has_a_key_of_its_own() -> None:
    rules = [
        Rule(netns="", family=4, priority=1, table=1),
        Rule(netns="", family=6, priority=1, table=1),
        Rule(netns="", family=4, priority=1, table=1, source="10.0.0.0/8"),
        Rule(netns="", family=4, priority=1, table=1, destination="10.0.0.0/8"),
        Rule(netns="", family=4, priority=1, table=1, iif="eth0"),
        Rule(netns="", family=4, priority=1, table=1, fwmark=1),
    ]
    assert len({rule.key for rule in rules}) == len(rules)


NETNS_KEY: Key = ("netns", "n1")
LINK_KEY: Key = ("link", "n1", "eth0")


@pytest.mark.parametrize(
    ("obj", "needed"),
    [
        (Netns(netns="n1"), ()),
        (link("a", Bridge()), (NETNS_KEY,)),
        (link("a", Bridge(), netns=""), ()),
        (link("a", Veth(peer_netns="n2", peer="b")), (NETNS_KEY, ("netns", "n2"))),
        (link("v", Vxlan(vni=1, local="10.0.0.1", underlay="eth0")), (NETNS_KEY, LINK_KEY)),
        (Address(netns="n1", link="eth0", address="10.0.0.1/8"), (LINK_KEY,)),
        (Nexthop(netns="n1", id=1, link="eth0"), (LINK_KEY,)),
        (Neighbour(netns="n1", link="eth0", address="::1", mac=MAC), (LINK_KEY,)),
        (FdbEntry(netns="n1", link="eth0", mac=MAC, destination="::1"), (LINK_KEY,)),
        (Route(netns="n1", destination="::/0", link="eth0", nexthop_id=3), (LINK_KEY,)),
        (Route(netns="n1", destination="::/0", nexthop_id=3), (("nexthop", "n1", 3),)),
        (Route(netns="n1", destination="::/0", kind="blackhole"), (NETNS_KEY,)),
        (Rule(netns="", family=4, priority=1, table=1), ()),
        (Sysctl(netns="n1", name="net/ipv4/ip_forward", value="1"), (NETNS_KEY,)),
        (Sysctl(netns="n1", name="net/ipv4/conf/all/rp_filter", value="1"), (NETNS_KEY,)),
        (Sysctl(netns="n1", name="net/ipv4/conf/eth0/rp_filter", value="1"), (LINK_KEY,)),
        (Sysctl(netns="n1", name="net/ipv6/neigh/eth0/gc_stale_time", value="1"), (LINK_KEY,)),
        (Sysctl(netns="n1", name="net/ipv6/neigh/default/gc_thresh1", value="1"), (NETNS_KEY,)),
        (NftTable(netns="n1", family="ip", name="t", text=""), (NETNS_KEY,)),
        (NftElement(netns="n1", family="ip", table="t", set="s", address="::1"), (("nft", "n1", "ip", "t"),)),
    ],
)
def test_requires_names_what_must_exist_first(obj: AnyObject, needed: tuple[Key, ...]) -> None:
    assert obj.requires == needed


# ---- comparison ------------------------------------------------------------------------------------------


def test_a_field_left_open_asks_for_nothing_and_one_given_asks_for_itself() -> None:
    wanted = link("a", Bridge())
    observed = Link(netns="n1", name="a", options=Bridge(), mtu=1500, mac=MAC, alias="x", master="", up=True)
    assert wanted.satisfied_by(observed)
    assert not link("a", Bridge(), mtu=1400).satisfied_by(observed)
    assert not link("a", Tun()).satisfied_by(observed)


@pytest.mark.parametrize(("destination", "via"), [("172.16.1.0/24", "10.0.0.2"), ("fd16::/64", "fd10::2")])
def test_a_route_without_gateway_is_not_satisfied_by_one_with_a_gateway(destination: str, via: str) -> None:
    direct = Route(netns="n1", destination=destination, link="eth0")
    observed = msgspec.structs.replace(direct, via=via)
    assert not direct.satisfied_by(observed)
    assert not observed.satisfied_by(direct)


def test_a_route_by_a_nexthop_object_leaves_the_way_to_that() -> None:
    wanted = Route(netns="n1", destination="172.16.1.0/24", nexthop_id=5)
    assert wanted.satisfied_by(msgspec.structs.replace(wanted, link="eth0", via="10.0.0.2"))
    assert not wanted.satisfied_by(msgspec.structs.replace(wanted, nexthop_id=6))


def test_who_wrote_a_rule_does_not_change_what_it_does() -> None:
    wanted = Rule(netns="n1", family=4, priority=1, table=1)
    assert wanted.satisfied_by(Rule(netns="n1", family=4, priority=1, table=1, iif="", fwmark=0, protocol=3))


def test_a_setting_of_several_numbers_is_compared_number_by_number() -> None:
    wanted = Sysctl(netns="", name="net/ipv4/ping_group_range", value="0 100")
    assert wanted.satisfied_by(Sysctl(netns="", name="net/ipv4/ping_group_range", value="0\t100"))
    assert not wanted.satisfied_by(Sysctl(netns="", name="net/ipv4/ping_group_range", value="1\t0"))


# ---- JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obj", [obj for obj, _ in COMMANDS], ids=[command.splitlines()[0] for _, command in COMMANDS])
def test_every_kind_survives_json(obj: AnyObject) -> None:
    decoded: AnyObject = msgspec.json.decode(msgspec.json.encode(obj), type=AnyObject)
    assert decoded == obj
    assert type(decoded) is type(obj)
    assert decoded.key == obj.key


def test_the_table_above_has_every_kind() -> None:
    kinds = {type(obj) for obj, _ in COMMANDS}
    assert kinds == set(get_args(AnyObject))
    makes = {type(obj.options) for obj, _ in COMMANDS if isinstance(obj, Link)}
    assert makes | {Loopback} == set(get_args(LinkOptions))


def test_unknown_kinds_and_fields_of_the_wrong_type_are_refused() -> None:
    for text in ('{"type":"Cat","netns":""}', '{"type":"Netns","netns":3}', '{"type":"Address","netns":""}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=AnyObject)


def test_elements_live_on_in_sets_that_are_declared_alike() -> None:
    one, two, two6 = (f"set {name} {{\ntype {kind}\n}}" for name, kind in zip("abb", SET_TYPES, strict=True))
    before = NftTable(netns="", family="inet", name="t", text=f"{one}\n{two}\nchain c {{\n}}")
    assert msgspec.structs.replace(before, text=f"{two}\n{one}").sets_kept_from(before) == {"a", "b"}
    assert msgspec.structs.replace(before, text=f"{one}\n{two6}").sets_kept_from(before) == {"a"}
    assert msgspec.structs.replace(before, text="").sets_kept_from(before) == set()


def test_a_script_can_carry_the_elements_of_sets() -> None:
    text = "set ab {\ntype ipv4_addr\n}\nset b {\ntype ipv4_addr\n}"
    table = NftTable(netns="", family="ip", name="t", text=text)
    assert table.with_elements({}) == table
    assert table.with_elements({"b": ["10.0.0.1", "10.0.0.2"], "ab": []}).text == (
        "set ab {\ntype ipv4_addr\n}\nset b {\ntype ipv4_addr\nelements = { 10.0.0.1, 10.0.0.2 }\n}"
    )


SET_TYPES = ("ipv4_addr", "ipv4_addr", "ipv6_addr")


def test_only_sets_of_single_addresses_are_sets_of_elements() -> None:
    blocks = [
        "set nodes4 {\ntype ipv4_addr\n}",
        "set nodes6 {\ntype ipv6_addr\n}",
        "set ranges {\ntype ipv4_addr\nflags interval\n}",
        "set ports {\ntype inet_service\n}",
        "map m {\ntype ipv4_addr : verdict\n}",
        'chain c {\nip saddr @nodes4 counter drop comment "set x {"\n}',
    ]
    table = NftTable(netns="", family="inet", name="t", text="\n".join(blocks))
    assert table.address_sets == {"nodes4": "ipv4_addr", "nodes6": "ipv6_addr"}
    assert msgspec.structs.replace(table, text="").address_sets == {}
