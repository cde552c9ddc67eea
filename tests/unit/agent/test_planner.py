"""A plan that follows the leases step by step is the plan of a fresh start with the last of them."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from muslin.agent.node_plan import NodeInputs
from muslin.agent.planner import Change, Planner
from muslin.agent.underlay import Underlay
from muslin.model.kernel import AnyObject, FdbEntry, Key, Nexthop, NftElement, Route
from muslin.model.lease import Advertisement, Lease
from muslin.wire.flannel_config import parse_network_config

CONFIG = {"Network": "172.16.0.0/16", "EnableIPv6": True, "IPv6Network": "fd16::/48", "Backend": {"Type": "vxlan"}}


def inputs(backend: str = "vxlan") -> NodeInputs:
    return NodeInputs(
        name="host",
        config=parse_network_config(json.dumps(CONFIG | {"Backend": {"Type": backend}}).encode()),
        underlay=Underlay(link="eth0", mtu=1500, interfaces=("10.0.0.10/16",), public_addresses=("10.0.0.10",)),
        subnets=("172.16.0.0/24", "fd16::/64"),
        vtep_mac="02:00:00:00:00:10",
    )


def lease(number: int, address: int | None = None, mac: int | None = None, subnet6: int | None = None) -> Lease:
    address, mac, subnet6 = address or number, mac or number, subnet6 or number
    return Lease(
        subnets=(f"172.16.{number}.0/24", f"fd16:0:0:{subnet6:x}::/64"),
        advertisement=Advertisement(
            addresses=(f"10.0.1.{address}",), backend="vxlan", data={"VNI": 1, "VtepMAC": f"02:00:00:00:01:{mac:02x}"}
        ),
    )


def apply(planner: Planner, held: dict[Key, AnyObject], change: Change) -> None:
    """What a kernel would do with a change: it must have had what is said to have been there."""
    for obj in change.before:
        assert held.pop(obj.key) == obj
    for obj in change.after:
        assert obj.key not in held
        held[obj.key] = obj
    assert held == planner.wanted


def test_one_more_lease_changes_its_own_objects_only() -> None:
    planner = Planner(inputs())
    first = planner.update([lease(1), lease(2)])
    assert first.leases == ("172.16.1.0-24&fd16:0:0:1::-64", "172.16.2.0-24&fd16:0:0:2::-64")
    change = planner.update([lease(1), lease(2), lease(3)])
    assert change.before == ()
    assert {type(obj) for obj in change.after} >= {Route, Nexthop, FdbEntry, NftElement}
    marks = ("172.16.3.0", "10.0.1.3", "fd16:0:0:3", "02:00:00:00:01:03", "fe80::ff:fe00:103")
    assert all(any(mark in str(obj) for mark in marks) for obj in change.after)


def test_nothing_new_is_no_change() -> None:
    planner = Planner(inputs())
    planner.update([lease(1)])
    assert planner.update([lease(1)]) == Change()


def test_a_moved_peer_replaces_its_entry_and_its_membership() -> None:
    planner = Planner(inputs())
    held = dict(planner.wanted)
    apply(planner, held, planner.update([lease(1), lease(2)]))
    change = planner.update([lease(1, address=9), lease(2)])
    assert {type(obj) for obj in change.before} == {FdbEntry, NftElement}


def test_two_leases_with_one_address_share_its_membership_until_the_last_is_gone() -> None:
    planner = Planner(inputs())
    planner.update([lease(1), lease(2, address=1)])
    assert planner.update([lease(2, address=1)]).before
    assert any(isinstance(obj, NftElement) and obj.address == "10.0.1.1" for obj in planner.wanted.values())
    planner.update([])
    assert planner.wanted == {obj.key: obj for obj in planner.own.objects}


def test_a_mac_that_two_claim_belongs_to_the_first_and_passes_on_when_that_leaves() -> None:
    planner = Planner(inputs())
    planner.update([lease(2, mac=1), lease(1)])
    assert [refusal.peer for refusal in planner.refusals] == ["172.16.2.0-24&fd16:0:0:2::-64"]
    planner.update([lease(2, mac=1)])
    assert list(planner.refusals) == []


NODES = st.builds(
    lease,
    st.integers(1, 6),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 1, 2]),
)


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.integers(1, 6), NODES, max_size=6), min_size=1, max_size=5))
def test_step_by_step_is_as_good_as_at_once(steps: list[dict[int, Lease]]) -> None:
    planner = Planner(inputs())
    held = dict(planner.wanted)
    for step in steps:
        leases = sorted({lease.name: lease for lease in step.values()}.values(), key=lambda one: one.name)
        apply(planner, held, planner.update(leases))
        fresh = Planner(inputs())
        fresh.update(leases)
        assert planner.wanted == fresh.wanted
        assert sorted(map(str, planner.refusals)) == sorted(map(str, fresh.refusals))
