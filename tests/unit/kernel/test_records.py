"""What a message says as what a plan is made of; the kernel ring reads everything back from a real kernel."""

from __future__ import annotations

import pytest

from muslin.kernel.records import NUD_PERMANENT, is_learned, link_of, object_of, settings_of
from muslin.model.kernel import FdbEntry, Neighbour, OtherKind, Route, Rule, Tun, Veth, Vxlan
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import (
    NETCONFA_IFINDEX_ALL,
    NETCONFA_IFINDEX_DEFAULT,
    FdbRecord,
    LinkRecord,
    NeighbourRecord,
    NetconfRecord,
    RouteRecord,
    RuleRecord,
    VxlanInfo,
)

MAC = "02:00:00:00:00:01"
NAMES = {1: "lo", 2: "eth0", 3: "vx.0"}
STALE = 0x04  # uapi/linux/neighbour.h NUD_STALE


@pytest.mark.parametrize(
    ("record", "learned"),
    [
        (NeighbourRecord(2, "10.0.0.2", MAC, NUD_PERMANENT, 0, rtnetlink.AF_INET), False),
        (NeighbourRecord(2, "10.0.0.2", MAC, STALE, 0, rtnetlink.AF_INET), True),
        (NeighbourRecord(2, "10.0.0.2", "", NUD_PERMANENT, 0, rtnetlink.AF_INET), True),
        (FdbRecord(3, MAC, "10.0.0.2", state=NUD_PERMANENT), False),
        (FdbRecord(3, MAC, "10.0.0.2", state=STALE), True),
        (RouteRecord("10.0.0.0/8", rtnetlink.AF_INET), False),
    ],
)
def test_an_entry_is_somebodys_if_it_is_permanent(record: object, learned: bool) -> None:
    assert is_learned(record) == learned


def test_entries_have_the_names_of_their_links() -> None:
    neighbour = object_of("n", NeighbourRecord(2, "10.0.0.2", MAC, STALE, 0, rtnetlink.AF_INET), NAMES)
    assert neighbour == Neighbour(netns="n", link="eth0", address="10.0.0.2", mac=MAC)
    entry = object_of("n", FdbRecord(3, MAC, "10.0.0.2"), NAMES)
    assert entry == FdbEntry(netns="n", link="vx.0", mac=MAC, destination="10.0.0.2")
    assert object_of("n", FdbRecord(3, MAC), NAMES) is None, "one that a bridge learned"
    assert object_of("n", object(), NAMES) is None


def test_a_route_without_a_link_has_none_and_one_over_an_unknown_link_neither() -> None:
    for ifindex, link in ((2, "eth0"), (0, None), (9, None)):
        route = object_of("n", RouteRecord("10.0.0.0/8", rtnetlink.AF_INET, ifindex=ifindex), NAMES)
        assert isinstance(route, Route)
        assert route.link == link


@pytest.mark.parametrize("more", [{"action": "blackhole"}, {"inverted": True}, {"oif": "eth0"}, {"fwmask": 0xFF}])
def test_a_rule_that_says_more_than_ours_can_is_none_of_them(more: dict[str, object]) -> None:
    plain = {"family": rtnetlink.AF_INET, "priority": 5, "table": 9, "action": "lookup"}
    assert isinstance(object_of("n", RuleRecord(**plain), NAMES), Rule)  # type: ignore[arg-type]
    assert object_of("n", RuleRecord(**(plain | more)), NAMES) is None  # type: ignore[arg-type]


def test_links_by_kind() -> None:
    info = VxlanInfo(vni=7, local="10.0.0.1", device_ifindex=2, learning=False)
    options = Vxlan(vni=7, local="10.0.0.1", underlay="eth0")
    assert link_of("n", LinkRecord(3, "vx.0", "vxlan", vxlan=info), NAMES).options == options
    assert link_of("n", LinkRecord(4, "t", "tun", tun_type="tun"), NAMES).options == Tun()
    assert link_of("n", LinkRecord(4, "t", "tun", tun_type="tap"), NAMES).options == OtherKind(kind="tun")
    assert link_of("n", LinkRecord(4, "v", "veth"), NAMES).options == Veth(peer_netns="", peer="")
    assert link_of("n", LinkRecord(4, "v", "veth"), NAMES, ("m", "e")).options == Veth(peer_netns="m", peer="e")
    assert link_of("n", LinkRecord(4, "v", "veth", master_ifindex=2), NAMES).master == "eth0"


def settings(record: NetconfRecord) -> dict[str, str]:
    return {setting.name: setting.value for setting in settings_of("n", record, NAMES)}


def test_settings_have_all_of_their_names() -> None:
    v4, v6 = rtnetlink.AF_INET, rtnetlink.AF_INET6
    assert settings(NetconfRecord(v4, NETCONFA_IFINDEX_ALL, forwarding=1)) == {
        "net/ipv4/conf/all/forwarding": "1",
        "net/ipv4/ip_forward": "1",
    }
    assert settings(NetconfRecord(v6, NETCONFA_IFINDEX_ALL, forwarding=0)) == {"net/ipv6/conf/all/forwarding": "0"}
    assert settings(NetconfRecord(v4, NETCONFA_IFINDEX_DEFAULT, rp_filter=2)) == {
        "net/ipv4/conf/default/rp_filter": "2"
    }
    assert settings(NetconfRecord(v4, 3, forwarding=1, rp_filter=0)) == {
        "net/ipv4/conf/vx.0/forwarding": "1",
        "net/ipv4/conf/vx.0/rp_filter": "0",
    }
    assert settings(NetconfRecord(v4, 9, forwarding=1)) == {}
    assert settings(NetconfRecord(v4, 3)) == {}
