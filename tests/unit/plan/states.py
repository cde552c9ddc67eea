"""Random desired states for the tests of the diff, and a kernel with things in it that are not ours.

Three places: namespaces n1 and n2, which a state may or may not make, and the own one, which is always there and
which others use too:

    own:  eth0 (foreign, up, 192.0.2.1/24, a route, a rule, a table)    n1, n2: all ours
          br0 x y, v0 and v1 of veths, vx0 ........ ours, everywhere
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from muslin.kernel.base import Scope
from muslin.kernel.fake import FakeKernel
from muslin.model.address import family_of
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Key,
    Link,
    LinkOptions,
    Neighbour,
    Netns,
    Nexthop,
    NftTable,
    OtherKind,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from muslin.model.ops import Create, Op, SetLink
from muslin.model.state import DesiredState, Snapshot

ADDRESSES = ("172.16.0.1/24", "172.16.1.1/16", "fd16::1/64", "fd17::1/48")
DESTINATIONS = ("172.20.0.0/16", "0.0.0.0/0", "fd20::/64", "::/0")
GATEWAYS = {4: ("10.0.0.2", "10.0.0.3"), 6: ("fd10::2", "fd10::3")}
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
MAKES: tuple[LinkOptions, ...] = (Bridge(), Tun())
ETH0 = Link(netns="", name="eth0", options=OtherKind(kind="dummy"), mtu=1500, up=True)
FOREIGN: tuple[AnyObject, ...] = (
    ETH0,
    Address(netns="", link="eth0", address="192.0.2.1/24"),
    Route(netns="", destination="198.51.100.0/24", link="eth0"),
    Neighbour(netns="", link="eth0", address="192.0.2.9", mac=MACS[0]),
    Rule(netns="", family=4, priority=9, table=9, protocol=3),
    NftTable(netns="", family="ip", name="theirs", text="chain c {\n}"),
)
EVERYTHING = Scope(
    netns=("", "n1", "n2"),
    nft=frozenset(
        (netns, family, name) for netns in ("", "n1", "n2") for family, name in (("ip", "theirs"), ("inet", "ours"))
    ),
    neighbours=True,
    fdb=True,
    nexthops=True,
    rules=True,
)


def foreign_kernel(objects: Sequence[AnyObject] = FOREIGN) -> FakeKernel:
    """A kernel with these things of others in it."""
    kernel = FakeKernel()
    ops: list[Op] = [Create(obj) for obj in objects]
    ops += [SetLink(obj, "up") for obj in objects if isinstance(obj, Link)]
    order = sorted(ops, key=lambda op: 25 if isinstance(op, SetLink) else op.object.rank)
    assert all(result.outcome == "done" for result in kernel.apply(order))
    return kernel


def look(kernel: FakeKernel) -> Snapshot:
    """All that the kernel holds, less settings."""
    return kernel.observe(EVERYTHING)


def subsets(values: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=2)


@st.composite
def links_of(draw: st.DrawFn, place: str) -> list[Link]:
    """Links of one place that need no other place. Everything is said of each, so nothing depends on the past."""

    def one(name: str, options: LinkOptions) -> Link:
        master = draw(st.sampled_from(("", "br0"))) if has_bridge and name != "br0" else ""
        return _with_attributes(draw, Link(netns=place, name=name, options=options, mac=None), master)

    has_bridge = draw(st.booleans())
    found = [one("br0", Bridge())] if has_bridge else []
    found += [one(name, draw(st.sampled_from(MAKES))) for name in ("x", "y") if draw(st.booleans())]
    if draw(st.booleans()):
        underlay = draw(st.sampled_from([None, *(link.name for link in found if link.name in ("x", "y"))]))
        vxlan = Vxlan(vni=draw(st.integers(1, 2)), local="10.0.0.1", underlay=underlay)
        found.append(one("vx0", vxlan))
    return found


def _with_attributes(draw: st.DrawFn, link: Link, master: str) -> Link:
    return Link(
        netns=link.netns,
        name=link.name,
        options=link.options,
        mtu=draw(st.sampled_from((1400, 1500))),
        alias=draw(st.sampled_from(("", "ours"))),
        master=master,
        up=draw(st.booleans()),
    )


@st.composite
def veths(draw: st.DrawFn, places: Sequence[str]) -> list[Link]:
    """At most one veth, its two ends anywhere."""
    if draw(st.booleans()):
        return []
    here, there = draw(st.sampled_from(places)), draw(st.sampled_from(places))
    near = Link(netns=here, name="v0", options=Veth(peer_netns=there, peer="v1"))
    far = Link(netns=there, name="v1", options=Veth(peer_netns=here, peer="v0"))
    ends = [near, far] if draw(st.booleans()) else [far, near]
    return [_with_attributes(draw, end, "") for end in ends]


@st.composite
def objects_on(draw: st.DrawFn, link: Link) -> list[AnyObject]:
    """What stands on a link."""
    place, name = link.netns, link.name
    found: list[AnyObject] = []
    if draw(st.booleans()):
        found.append(Sysctl(netns=place, name=f"net/ipv4/conf/{name}/rp_filter", value=draw(st.sampled_from("012"))))
    for address in draw(subsets(ADDRESSES)):
        found.append(Address(netns=place, link=name, address=address))
    for address in draw(subsets(("10.0.0.7", "fd10::7"))):
        mac = draw(st.sampled_from(MACS))
        found.append(Neighbour(netns=place, link=name, address=address, mac=mac))
    if isinstance(link.options, Vxlan):
        for far_mac in draw(subsets(MACS)):
            far = draw(st.sampled_from(GATEWAYS[4]))
            found.append(FdbEntry(netns=place, link=name, mac=far_mac, destination=far))
    if link.up:
        found += draw(ways_over(link))
    return found


@st.composite
def ways_over(draw: st.DrawFn, link: Link) -> list[AnyObject]:
    """Next hop objects and routes over a link that is up."""
    place, name = link.netns, link.name
    found: list[AnyObject] = []
    for position in draw(st.sampled_from(((), (1,), (1, 2)))):
        number = position + 10 * sum(name.encode()) % 1000
        via = draw(st.sampled_from((*GATEWAYS[4], None)))
        found.append(Nexthop(netns=place, id=number, link=name, via=via, onlink=via is not None))
        if draw(st.booleans()):
            found.append(Route(netns=place, destination=f"10.{number % 200}.0.0/16", nexthop_id=number))
    for destination in draw(subsets(DESTINATIONS)):
        via = draw(st.sampled_from((*GATEWAYS[family_of(destination)], None)))
        metric = draw(st.sampled_from((None, 5)))
        onlink = True if via else None
        found.append(Route(netns=place, destination=destination, link=name, via=via, metric=metric, onlink=onlink))
    return found


@st.composite
def states(draw: st.DrawFn) -> DesiredState:
    """A desired state that a kernel with ``FOREIGN`` in it can fulfil."""
    made = draw(st.sampled_from(((), ("n1",), ("n1", "n2"))))
    places = ("", *made)
    objects: list[AnyObject] = [Netns(netns=name) for name in made]
    links = [link for place in places for link in draw(links_of(place))] + draw(veths(places))
    objects += links
    for link in links:
        objects += draw(objects_on(link))
    for place in places:
        if draw(st.booleans()):
            objects.append(Sysctl(netns=place, name="net/ipv4/ip_forward", value=draw(st.sampled_from("01"))))
        if draw(st.booleans()):
            text = draw(st.sampled_from(("chain one {\n}", "chain two {\n}")))
            objects.append(NftTable(netns=place, family="inet", name="ours", text=text))
        if draw(st.booleans()):
            objects.append(Rule(netns=place, family=6, priority=draw(st.integers(1, 2)), table=7))
    return DesiredState(tuple(objects))


def settings_of(kernel: FakeKernel, *wanted: DesiredState) -> dict[Key, str]:
    """The present values of all settings of the own namespace that these states speak of, less those of links."""
    found = {
        ("", obj.name) for state in wanted for obj in state if isinstance(obj, Sysctl) and not (obj.netns or obj.link)
    }
    seen = kernel.observe(Scope(netns=("",), sysctls=frozenset(found)))
    return {key: obj.value for key, obj in seen.objects.items() if isinstance(obj, Sysctl)}
