"""The network that the contract and the kernel tests build, both families everywhere:

node ── br0 172.16.0.1/24 ── v1 ═══ eth0 172.16.0.2/24 ── con      ═══ a veth
            fd16::1/64                   fd16::2/64
node ── up0 (a bridge without ports) 10.0.0.1/24, fd10::1/64: the way out
"""

from __future__ import annotations

from muslin.model.address import Family
from muslin.model.kernel import (
    Address,
    AnyObject,
    Bridge,
    FdbEntry,
    Link,
    Loopback,
    Neighbour,
    Netns,
    Nexthop,
    NftTable,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
)
from tests.contract.kernels import World

MAC1, MAC2, MAC3 = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))
FAMILIES: tuple[Family, ...] = (4, 6)
REMOTE = {4: "172.20.0.0/16", 6: "fd20::/64"}
GATEWAY = {4: "10.0.0.2", 6: "fd10::2"}
OTHER_GATEWAY = {4: "10.0.0.3", 6: "fd10::3"}
BEYOND = {4: "10.9.0.2", 6: "fd19::2"}
CHAIN = "chain forward {\ntype filter hook forward priority filter; policy accept;\ncounter accept\n}"


class Net:
    """The network of the drawing, with names of this test alone."""

    def __init__(self, world: World) -> None:
        self.node, self.con = world.netns("node"), world.netns("con")
        self.bridge = Link(netns=self.node, name="br0", options=Bridge(), up=True)
        self.uplink = Link(netns=self.node, name="up0", options=Bridge(), up=True)
        near, far = Veth(peer_netns=self.con, peer="eth0"), Veth(peer_netns=self.node, peer="v1")
        self.near = Link(
            netns=self.node, name="v1", options=near, mtu=1400, mac=MAC1, alias="cable", master="br0", up=True
        )
        self.far = Link(netns=self.con, name="eth0", options=far, mtu=1400, mac=MAC2, alias="con", up=True)
        self.vxlan = Link(
            netns=self.node,
            name="vx0",
            options=Vxlan(vni=7, local="10.0.0.1", underlay="up0"),
            mtu=1450,
            mac=MAC3,
            up=True,
        )
        self.tun = Link(netns=self.node, name="tun0", options=Tun(), mtu=1472, up=True)
        self.addresses = [
            *self.address(self.node, "br0", "172.16.0.1/24", "fd16::1/64"),
            *self.address(self.node, "up0", "10.0.0.1/24", "fd10::1/64"),
            *self.address(self.con, "eth0", "172.16.0.2/24", "fd16::2/64"),
        ]
        self.settings = [
            Sysctl(netns=self.node, name="net/ipv4/ip_forward", value="1"),
            Sysctl(netns=self.node, name="net/ipv6/conf/all/forwarding", value="1"),
            Sysctl(netns=self.node, name="net/ipv4/conf/v1/rp_filter", value="2"),
        ]
        self.routes = [
            Route(netns=self.con, destination="0.0.0.0/0", via="172.16.0.1", link="eth0"),
            Route(netns=self.con, destination="::/0", via="fd16::1", link="eth0"),
        ]

    @staticmethod
    def address(netns: str, link: str, *texts: str) -> list[Address]:
        return [Address(netns=netns, link=link, address=text) for text in texts]

    @property
    def base(self) -> list[AnyObject]:
        """Everything in the drawing."""
        return [
            Netns(netns=self.node),
            Netns(netns=self.con),
            Link(netns=self.con, name="lo", options=Loopback(), up=True),
            self.bridge,
            self.uplink,
            self.near,
            self.far,
            *self.settings,
            *self.addresses,
            *self.routes,
        ]

    @property
    def rich(self) -> list[AnyObject]:
        """And one of every other kind, in both families where it has one."""
        more: list[AnyObject] = [self.vxlan, self.tun]
        for family in FAMILIES:
            more += [
                self.route(family, destination=REMOTE[family]),
                Nexthop(netns=self.node, id=family, link="up0", via=GATEWAY[family]),
                self.route(family, destination={4: "172.21.0.0/16", 6: "fd21::/64"}[family], nexthop_id=family),
                Route(netns=self.node, destination={4: "172.22.0.0/16", 6: "fd22::/64"}[family], kind="blackhole"),
                Rule(netns=self.node, family=family, priority=100, table=100),
                Rule(netns=self.node, family=family, priority=100, table=101, source=REMOTE[family], iif="br0"),
                Neighbour(netns=self.node, link="vx0", address=BEYOND[family], mac=MAC1),
            ]
        # A vxlan device speaks to other hosts in the family of its own address only.
        more.append(FdbEntry(netns=self.node, link="vx0", mac=MAC1, destination=GATEWAY[4]))
        more.append(NftTable(netns=self.node, family="inet", name="ours", text=CHAIN))
        return [*self.base, *more]

    def route(self, family: Family, destination: str | None = None, nexthop_id: int | None = None) -> Route:
        """A route of the node by the way out."""
        where = destination or REMOTE[family]
        if nexthop_id:
            return Route(netns=self.node, destination=where, nexthop_id=nexthop_id)
        return Route(netns=self.node, destination=where, via=GATEWAY[family], link="up0")
