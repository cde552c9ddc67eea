"""Which interface other nodes reach this host by.

lo   eth0 192.0.2.10/24 (default route, metric 100)   eth1 10.0.0.10/16, fd00:10::10/64   docker0 172.17.0.1/16
"""

from __future__ import annotations

import pytest

from muslin.agent.underlay import UnderlayOptions, choose_underlay
from muslin.errors import UsageError
from muslin.model.kernel import Address, Bridge, Link, Loopback, OtherKind, Route
from muslin.model.state import Snapshot

HOST = Snapshot.of(
    [
        Link(netns="", name="lo", options=Loopback(), mtu=65536),
        Link(netns="", name="eth0", options=OtherKind(kind=""), mtu=1500),
        Link(netns="", name="eth1", options=OtherKind(kind=""), mtu=9000),
        Link(netns="", name="docker0", options=Bridge(), mtu=1500),
        Address(netns="", link="lo", address="127.0.0.1/8"),
        Address(netns="", link="eth0", address="192.0.2.10/24"),
        Address(netns="", link="eth1", address="fe80::1/64"),
        Address(netns="", link="eth1", address="10.0.0.10/16"),
        Address(netns="", link="eth1", address="fd00:10::10/64"),
        Address(netns="", link="docker0", address="172.17.0.1/16"),
        Route(netns="", destination="0.0.0.0/0", via="192.0.2.1", link="eth0", metric=100),
        Route(netns="", destination="0.0.0.0/0", via="10.0.0.1", link="eth1", metric=200),
        Route(netns="", destination="10.0.0.0/16", link="eth1"),
        Route(netns="", destination="192.0.2.0/24", link="eth0"),
    ]
)


def test_without_a_wish_the_default_route_with_the_lowest_metric_decides() -> None:
    found = choose_underlay(HOST, UnderlayOptions())
    assert (found.link, found.mtu, found.addresses) == ("eth0", 1500, ("192.0.2.10",))


@pytest.mark.parametrize("wish", ["eth1", "10.0.0.10", "fd00:10::10"])
def test_an_interface_is_named_by_name_or_address(wish: str) -> None:
    found = choose_underlay(HOST, UnderlayOptions(iface=(wish,)))
    assert (found.link, found.addresses) == ("eth1", ("10.0.0.10", "fd00:10::10"))


def test_the_first_wish_that_fits_wins() -> None:
    assert choose_underlay(HOST, UnderlayOptions(iface=("eth7", "eth1"))).link == "eth1"
    both = UnderlayOptions(iface=("eth7",), iface_regex=(r"^10\.0\.",))
    assert choose_underlay(HOST, both).link == "eth1"


def test_a_pattern_is_tried_on_addresses_before_names() -> None:
    assert choose_underlay(HOST, UnderlayOptions(iface_regex=("17",))).link == "docker0"
    assert choose_underlay(HOST, UnderlayOptions(iface_regex=("^eth",))).link == "eth0"


def test_the_route_to_an_address_decides() -> None:
    assert choose_underlay(HOST, UnderlayOptions(iface_can_reach="10.0.9.9")).link == "eth1"
    assert choose_underlay(HOST, UnderlayOptions(iface_can_reach="198.51.100.1")).link == "eth0"


def test_a_public_address_replaces_what_is_told_to_others_and_nothing_else() -> None:
    found = choose_underlay(HOST, UnderlayOptions(iface=("eth1",), public_addresses=("203.0.113.7",)))
    assert found.addresses == ("10.0.0.10", "fd00:10::10")
    assert found.public_addresses == ("203.0.113.7", "fd00:10::10")


def test_what_shares_the_network_can_be_a_next_hop() -> None:
    found = choose_underlay(HOST, UnderlayOptions(iface=("eth1",)))
    assert found.shares_network_with("10.0.200.1")
    assert found.shares_network_with("fd00:10::99")
    assert not found.shares_network_with("192.0.2.20")


def test_nothing_that_fits_is_an_error_that_names_the_wish_and_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"fits: --iface wlan0; there are eth0 \(192\.0\.2\.10/24\)"):
        choose_underlay(HOST, UnderlayOptions(iface=("wlan0",)))


def test_an_interface_without_a_usable_address_is_an_error() -> None:
    bare = Snapshot.of(
        [
            Link(netns="", name="eth0", options=OtherKind(kind=""), mtu=1500),
            Address(netns="", link="eth0", address="fe80::1/64"),
        ]
    )
    with pytest.raises(UsageError, match="eth0 has no address that other nodes could reach"):
        choose_underlay(bare, UnderlayOptions(iface=("eth0",)))
