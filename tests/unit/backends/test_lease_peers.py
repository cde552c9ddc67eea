"""Peers as leases tell of them: one that cannot be served is refused with the reason, and the others are served."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muslin.backends import BACKENDS
from muslin.model.kernel import FdbEntry, Neighbour, Route
from muslin.model.network import BackendPlan, Peer
from tests.unit.backends.test_options import DUAL, LOCAL, PEER, parse

GOOD = Peer(
    name="good",
    addresses=("192.0.2.9",),
    subnets=("10.5.9.0/24",),
    link="eth0",
    backend="vxlan",
    data={"VNI": 1, "VtepMAC": "02:00:00:00:00:09"},
)


def plan(*peers: Peer, backend: str = "vxlan", local: Any = LOCAL) -> BackendPlan:
    return BACKENDS[backend].plan(local, peers, parse(backend))


def changed(**fields: Any) -> Peer:
    return msgspec.structs.replace(PEER, addresses=("192.0.2.2",), subnets=("10.5.2.0/24",), **fields)


MAC = "expected the MAC of one interface"


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (changed(backend="host-gw"), "it uses the host-gw backend and this node vxlan; both need the same one"),
        (changed(backend=""), "it uses a backend that it does not name (flannel's udp) and this node vxlan"),
        (changed(data={}), f"its lease has 'None' for VtepMAC in BackendData; {MAC}"),
        (changed(data={"VtepMAC": "x"}), f"its lease has 'x' for VtepMAC in BackendData; {MAC}"),
        (changed(data={"VtepMAC": ["x"]}), "for VtepMAC in BackendData"),
        (changed(data={"VtepMAC": "01:00:5e:00:00:01"}), MAC),
        (changed(data={"VtepMAC": "00:00:00:00:00:00"}), MAC),
        (changed(data={"VtepMAC": "02:00:00:00:00:01"}), "its VTEP MAC 02:00:00:00:00:01 is also that of here"),
        (changed(data={"VtepMAC": "02:00:00:00:00:09"}), "its VTEP MAC 02:00:00:00:00:09 is also that of good"),
        (
            changed(data={"VNI": 2, "VtepMAC": "02:00:00:00:00:04"}),
            "it is in the network with VNI 2, and this node in the",
        ),
        (changed(data={"VNI": "2"}), "its lease has '2' for VNI in BackendData; expected a whole number"),
        (msgspec.structs.replace(PEER, addresses=("2001:db8::2",)), "it has no IPv4 address on the underlay"),
        (msgspec.structs.replace(PEER, addresses=("192.0.2.1",)), "its lease has this node's own underlay address"),
        (msgspec.structs.replace(PEER, addresses=("rubbish",)), "its lease holds no usable address: 'rubbish' is not"),
        (
            msgspec.structs.replace(PEER, subnets=("10.5.2.0/99",)),
            "its lease holds no usable address: '10.5.2.0/99' has",
        ),
        (
            msgspec.structs.replace(PEER, subnets=("10.5.1.0/25",)),
            "its subnet 10.5.1.0/25 overlaps with this node's own",
        ),
        (msgspec.structs.replace(PEER, subnets=("10.0.0.0/8",)), "its subnet 10.0.0.0/8 overlaps with this node's own"),
        (msgspec.structs.replace(PEER, subnets=("192.0.2.0/24",)), "covers an address of the underlay"),
        (msgspec.structs.replace(PEER, subnets=("2001:db8::/64",)), "covers an address of the underlay"),
    ],
)
def test_vxlan_refuses_with_the_reason_and_serves_the_others(peer: Peer, reason: str) -> None:
    both = plan(GOOD, peer)
    (refusal,) = both.refusals
    assert refusal.peer == "there"
    assert reason in refusal.reason
    assert refusal.reason.startswith(("there cannot be reached from here: ", "vxlan cannot reach there from here: "))
    assert both.state == plan(GOOD).state


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (
            changed(backend="udp", data={"Port": 0}),
            "its lease has '0' for Port; expected a whole number from 1 to 65535",
        ),
        (changed(backend="udp", data={"Port": "x"}), "its lease has 'x' for Port"),
        (changed(backend="vxlan"), "it uses the vxlan backend and this node udp"),
        (
            msgspec.structs.replace(PEER, backend="udp", addresses=("2001:db8::2",)),
            "udp cannot reach there from here: it has no IPv4 address on the underlay, over which this node's",
        ),
    ],
)
def test_udp_refuses_with_the_reason(peer: Peer, reason: str) -> None:
    made = plan(peer, backend="udp")
    (refusal,) = made.refusals
    assert reason in refusal.reason
    assert made.tunnel is not None
    assert made.tunnel.peers == ()


def test_host_gw_refuses_with_the_reason() -> None:
    far = changed(backend="host-gw", name="far", link=None)
    mute = msgspec.structs.replace(PEER, backend="host-gw", name="mute", addresses=("192.0.2.2",))
    made = plan(far, mute, changed(name="other"), backend="host-gw")
    assert [(refusal.peer, refusal.reason.partition(": ")[0]) for refusal in made.refusals] == [
        ("other", "other cannot be reached from here"),
        ("far", "host-gw cannot reach far from here"),
        ("mute", "host-gw cannot reach fd00:5:0:2::/64 of mute from here"),
    ]
    assert [obj.describe() for obj in made.state] == ["ip route add 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 77"]


@pytest.mark.parametrize("mac", ["02-00-00-00-00-04", "02:00:00:00:00:04", "02:00:00:00:00:04".upper()])
def test_a_mac_is_read_in_any_spelling(mac: str) -> None:
    made = plan(changed(data={"VtepMAC": mac}))
    assert {obj.mac for obj in made.state if isinstance(obj, FdbEntry | Neighbour)} == {"02:00:00:00:00:04"}


def test_a_vni_that_flannel_cut_is_recognised() -> None:
    peer = changed(data={"VNI": 70000 & 0xFFFF, "VtepMAC": "02:00:00:00:00:04"})
    assert BACKENDS["vxlan"].plan(LOCAL, [peer], parse("vxlan", VNI=70000)).refusals == ()


def test_a_changed_peer_leaves_nothing_behind() -> None:
    """Defect (c) and section 1.9: a new MAC leaves the old FDB entry, a new address is not seen."""
    before, after = plan(PEER), plan(changed(data={"VNI": 1, "VtepMAC": "02:00:00:00:00:0a"}))
    stale = set(before.state.by_key) - set(after.state.by_key)
    assert ("fdb", "", "vxlan1", "02:00:00:00:00:04") in stale
    assert {obj.mac for obj in after.state if isinstance(obj, FdbEntry | Neighbour)} == {"02:00:00:00:00:0a"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
DATA = st.dictionaries(st.sampled_from(["VNI", "VtepMAC", "Port", "x"]), JSON, max_size=3)
ADDRESSES = st.lists(st.sampled_from(["192.0.2.2", "2001:db8::2", "192.0.2.1", "x", ""]), max_size=2).map(tuple)
SUBNETS = st.lists(
    st.sampled_from(["10.5.2.0/24", "fd00:5:0:2::/64", "0.0.0.0/0", "::/0", "10.5.1.0/24", "x", "10.5.2.0/x"]),
    max_size=2,
).map(tuple)
POISONED = st.builds(
    Peer,
    name=st.just("there"),
    addresses=ADDRESSES,
    subnets=SUBNETS,
    link=st.sampled_from([None, "eth0"]),
    backend=st.sampled_from(["", "vxlan", "udp", "host-gw", "alloc", "wireguard"]),
    data=DATA,
    data_v6=DATA,
)


@given(POISONED, st.sampled_from(sorted(BACKENDS)), st.sampled_from([LOCAL, DUAL]), st.booleans(), st.booleans())
def test_no_lease_can_stop_a_plan(peer: Peer, backend: str, local: Any, direct: bool, use_nexthops: bool) -> None:
    good = msgspec.structs.replace(GOOD, backend=backend)
    options = parse(backend, DirectRouting=direct)
    made = BACKENDS[backend].plan(local, [good, peer], options, use_nexthops=use_nexthops)
    alone = BACKENDS[backend].plan(local, [good], options, use_nexthops=use_nexthops)
    assert made.state.objects[: len(alone.state.objects)] == alone.state.objects
    assert all(refusal.peer == "there" for refusal in made.refusals)
    own = BACKENDS[backend].plan_own(local, options).state
    routed = {obj.destination for obj in made.state if isinstance(obj, Route) and obj not in own.objects}
    assert routed <= {"10.5.9.0/24", "10.5.2.0/24", "fd00:5:0:2::/64"}
