"""What a real container gets, from what its runtime asks and what the node has: pure.

Theory of operation: a ``Reservation`` is all that is kept of a container; ``attachment_of`` makes of it what
``plan.attach`` wants to know, the same for an ADD, a CHECK and a look. Names and MACs follow from the container's id
and the interface's name, so that they need not be remembered to be found, and a container that comes back has them
again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from muslin.agent.reservations import Reservation
from muslin.errors import MuslinError
from muslin.kernel.base import Scope
from muslin.lease.addresses import GATEWAY
from muslin.model.address import DEFAULT_PREFIX, address_part, contains, nth_address, stable_mac
from muslin.model.kernel import AnyObject, Key, Link, Loopback, NftElement, NftTable, Sysctl, link_key
from muslin.model.ops import Create, OpResult, Report
from muslin.model.state import Owned, Snapshot
from muslin.plan import attach, sources
from muslin.wire.cni import Mode, NetworkConf
from muslin.wire.cni_call import Call
from muslin.wire.cni_error import CniError, ErrorCode
from muslin.wire.cni_result import Interface, Ip, Result, Route
from muslin.wire.nftables import JOINT, is_mac

OWN = ""
ALIAS = "muslin-cni:"
"""How the alias of a container's cable begins."""
REMEDY = "muslin status tells whether the agent is well; its log tells more"
ALIAS_MAX = 255  # IFALIASZ less its NUL, linux/if_link.h
FAMILIES: tuple[sources.Family, ...] = ("bridge", "inet")


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an attachment needs to know of the node at that moment."""

    trouble: str = ""
    """Why there can be no new container now; empty when there can."""
    degraded: str = ""
    """Why those that there are may not be reached."""
    subnets: tuple[str, ...] = ()
    """Of the node's lease, as the kernel has been made to agree with it."""
    networks: tuple[str, ...] = ()
    """Of the whole cluster."""
    mtu: int = 0
    bridge: str = ""
    masquerade: bool = False

    @property
    def gateways(self) -> tuple[str, ...]:
        """The address of each subnet that no container has."""
        return tuple(nth_address(subnet, GATEWAY) for subnet in self.subnets)

    @property
    def mode(self) -> Mode:
        """How this node connects containers."""
        return "bridge" if self.bridge else "routed"

    @property
    def filter_family(self) -> sources.Family:
        """The packet filter's family that sees what containers send."""
        return "bridge" if self.bridge else "inet"


class Netns(msgspec.Struct, frozen=True, kw_only=True):
    """The container's namespace as it was handed over: an open descriptor."""

    fd: int
    inode: int

    @property
    def name(self) -> str:
        """As the kernel room names it."""
        return f"/proc/self/fd/{self.fd}"


# ---- before anything is done -----------------------------------------------------------------------------------


def refuse_what_cannot_be(conf: NetworkConf, facts: NodeFacts) -> None:
    """CniError when this node cannot connect a container in the way that the configuration says."""
    if facts.trouble:
        raise CniError(ErrorCode.TRY_AGAIN, f"the node is {facts.trouble}", "muslin status tells more")
    if conf.bridge and conf.bridge != facts.bridge:
        has = f"the bridge {facts.bridge!r}" if facts.bridge else "none"
        raise CniError(
            ErrorCode.BAD_CONFIG,
            f"bridge is {conf.bridge!r}, and the agent has {has}",
            f"leave the key out, or start the agent with --bridge {conf.bridge}",
        )
    if conf.mode == "bridge" and not facts.bridge:
        raise CniError(
            ErrorCode.BAD_CONFIG,
            "mode is 'bridge', and the agent has no bridge",
            "start the agent with --bridge NAME, or set mode to 'routed'",
        )
    if conf.mode == "routed" and facts.bridge:
        raise CniError(
            ErrorCode.BAD_CONFIG,
            f"mode is 'routed', and the agent has the bridge {facts.bridge!r}: containers of the one kind would not "
            "reach those of the other",
            "set mode to 'bridge', or start the agent without --bridge",
        )
    if conf.ip_masq and not facts.masquerade:
        raise CniError(
            ErrorCode.UNSUPPORTED_FIELD,
            "ipMasq is true, and translating what leaves the network is the agent's, which does not",
            "start the agent with --ip-masq, and leave the key out",
        )
    if conf.mtu and conf.mtu > facts.mtu:
        raise CniError(
            ErrorCode.BAD_CONFIG,
            f"mtu is {conf.mtu}, and the network carries packets of {facts.mtu} bytes",
            "leave the key out: the agent knows the MTU",
        )


def wanted(call: Call, conf: NetworkConf, netns: Netns, facts: NodeFacts, boot_id: str, now: float) -> Reservation:
    """The reservation to be made, without addresses."""
    return Reservation(
        container_id=call.container_id,
        ifname=call.ifname,
        network=conf.name,
        gateways=facts.gateways,
        mac=conf.mac or stable_mac("container", call.container_id, call.ifname),
        host_link=host_link(call.container_id, call.ifname, checked=conf.spoof_check),
        mode=conf.mode,
        mtu=conf.mtu or facts.mtu,
        hairpin=conf.hairpin,
        default_route=conf.default_route,
        spoof_check=conf.spoof_check,
        netns_path=call.netns,
        netns_inode=netns.inode,
        boot_id=boot_id,
        at=now,
        complete=False,
    )


def host_link(container_id: str, ifname: str, *, checked: bool) -> str:
    """The name of the node's end of a container's cable, 15 bytes."""
    digest = hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()
    return (sources.CHECKED if checked else sources.UNCHECKED) + digest[:12]


# ---- what is planned -------------------------------------------------------------------------------------------


def attachment_of(one: Reservation, facts: NodeFacts, netns: str = "container") -> attach.Attachment:
    """What ``plan.attach`` is asked for; where ``netns`` is not known, what lies in it is not to be used."""
    is_port = one.mode == "bridge"
    return attach.Attachment(
        node_netns=OWN,
        netns=netns,
        node_link=one.host_link,
        link=one.ifname,
        mode=one.mode,
        addresses=one.addresses,
        gateways=one.gateways,
        bridge=facts.bridge if is_port else None,
        mtu=one.mtu,
        has_netns=True,
        mac=one.mac,
        node_mac=node_mac(one),
        alias=f"{ALIAS}{one.container_id}/{one.ifname}"[:ALIAS_MAX],
        hairpin=one.hairpin if is_port else None,
        ways_out=None if one.default_route else facts.networks,
        checks_sources=one.spoof_check,
    )


def node_mac(one: Reservation) -> str:
    """The MAC of the node's end of the cable."""
    return stable_mac("node", one.container_id, one.ifname)


def node_keys(one: Reservation) -> frozenset[Key]:
    """What has to go from the node with a container: all else goes with its cable."""
    objects = attach.plan_node_side(attachment_of(one, NodeFacts()))
    return frozenset(obj.key for obj in objects if isinstance(obj, Link | NftElement))


def is_left_to_others(obj: AnyObject, attachment: attach.Attachment) -> bool:
    """Whether a CHECK is to pass over it: settings of the container, and its loopback, are not what we vouch for."""
    return obj.netns == attachment.netns and (
        isinstance(obj, Sysctl) or (isinstance(obj, Link) and isinstance(obj.options, Loopback))
    )


def with_mtu(obj: AnyObject, mtu: int | None) -> AnyObject:
    """A link with this MTU instead, where there is one; everything else as it is."""
    return msgspec.structs.replace(obj, mtu=mtu) if mtu and isinstance(obj, Link) else obj


# ---- what is said ----------------------------------------------------------------------------------------------


def result_of(one: Reservation, facts: NodeFacts, call: Call, conf: NetworkConf) -> Result:
    """What the ADD answers (SPEC.md, "ADD Success")."""
    bridge = [Interface(name=facts.bridge)] if one.mode == "bridge" else []
    interfaces = (
        *bridge,
        Interface(name=one.host_link, mac=node_mac(one), mtu=one.mtu),
        Interface(name=one.ifname, mac=one.mac, mtu=one.mtu, sandbox=call.netns),
    )
    gateways = {":" in gateway: gateway for gateway in one.gateways}
    ips = tuple(
        Ip(address=address, gateway=gateways.get(":" in address, ""), interface=len(interfaces) - 1)
        for address in one.addresses
    )
    ways = DEFAULT_PREFIX.values() if one.default_route else facts.networks
    routes = tuple(
        Route(dst=way, gw=gateways[":" in way])
        for way in ways
        if any((":" in way) == (":" in a) for a in one.addresses)
    )
    return Result(interfaces=interfaces, ips=ips, routes=routes, dns=conf.dns)


def named(call: Call) -> str:
    """The interface of a container, for a sentence."""
    return f"the interface {call.ifname} of container {call.container_id}"


def is_inside(interface: Interface, call: Call) -> bool:
    """Whether an interface of a result is the one that this call is about."""
    return interface.name == call.ifname and bool(interface.sandbox)


def in_use(call: Call) -> CniError:
    """An interface of the name that is asked for is there."""
    return CniError(
        ErrorCode.INTERFACE_IN_USE,
        f"CNI_IFNAME is {call.ifname!r}, and an interface of this name is in {call.netns} already",
        "remove the container's network first, or ask for another name",
    )


def refusal(report: Report, call: Call) -> CniError:
    """Why an ADD did not work, by what the kernel refused first."""
    first = next(iter(report.failed), report.skipped[0] if report.skipped else None)
    assert first is not None, "a report that is not well has something that failed"
    if isinstance(first.op, Create) and isinstance(first.op.object, Link) and first.errno == errno.EEXIST:
        return in_use(call)
    return CniError(ErrorCode.KERNEL_REFUSED, f"{named(call)} cannot be connected: {first.describe()}", _remedy(first))


def _remedy(result: OpResult) -> str:
    match result.op.object:
        case NftElement():
            return "install nftables, or set spoofCheck to false"
        case Link() if result.errno in (errno.EXFULL, errno.ENOSPC):
            return "a bridge has 1,024 ports: set mode to 'routed', and start the agent without --bridge"
    if result.errno == errno.EEXIST:
        return "another plugin has set up the same: set defaultRoute to false, or take it out of the list"
    return REMEDY


def not_kept(error: MuslinError | OSError) -> CniError:
    """What the disk or the system refused, where it is not about an object of the network."""
    if isinstance(error, MuslinError):
        return CniError(ErrorCode.IO_FAILURE, error.what, error.hint or REMEDY)
    return CniError(ErrorCode.IO_FAILURE, f"the kernel could not be asked: {error}", REMEDY)


# ---- looks -----------------------------------------------------------------------------------------------------


def wide_scope(links: Sequence[str], facts: NodeFacts) -> Scope:
    """What a look at all containers has to see: the node's links, and of these cables what lies on them."""
    sets = (sources.CABLES, *sources.SOURCES.values())
    return Scope(
        netns=(OWN,),
        links_only=bool(facts.bridge),
        nft=frozenset((OWN, family, sources.TABLE) for family in FAMILIES),
        nft_sets=frozenset((OWN, family, sources.TABLE, name) for family in FAMILIES for name in sets),
        neighbours=not facts.bridge,
        entry_links=frozenset((OWN, name) for name in links),
    )


def ours_in(seen: Snapshot) -> Owned:
    """All that was seen of containers: their cables, and what they may send."""
    links = (obj for obj in seen.only(Link) if (obj.alias or "").startswith(ALIAS))
    return Owned(keys=filters_in(seen).keys | {obj.key for obj in links})


def filters_in(seen: Snapshot, family: sources.Family | None = None) -> Owned:
    """What was seen of the tables of what containers may send, all of it or that of one family."""
    tables = (obj for obj in seen.only(NftTable) if obj.name == sources.TABLE and family in (None, obj.family))
    elements = (obj for obj in seen.only(NftElement) if obj.table == sources.TABLE and family in (None, obj.family))
    return Owned(keys=frozenset(obj.key for obj in (*tables, *elements)))


def unrecorded(seen: Snapshot, known: set[str], facts: NodeFacts, boot_id: str, now: float) -> Iterator[Reservation]:
    """What is connected under our alias without a reservation, as far as it can be told; ``known`` are cables.

    Where its namespace is cannot be: a container that is checked (CHECK) and removed does not need it.
    """
    allowed: dict[str, list[str]] = {}
    for element in seen.only(NftElement):
        cable, _, value = element.address.partition(JOINT)
        if element.table == sources.TABLE:
            allowed.setdefault(cable, []).append(value)
    for link in seen.only(Link):
        alias = link.alias or ""
        container_id, _, ifname = alias.removeprefix(ALIAS).rpartition("/")
        if link.name in known or not alias.startswith(ALIAS) or not container_id or link.name not in allowed:
            continue
        macs = [value for value in allowed[link.name] if is_mac(value)]
        yield Reservation(
            container_id=container_id,
            ifname=ifname,
            network="",
            addresses=tuple(value for value in allowed[link.name] if not is_mac(value)),
            gateways=facts.gateways,
            mac=macs[0] if macs else "",
            host_link=link.name,
            mode=facts.mode,
            mtu=link.mtu,
            hairpin=bool(link.hairpin),
            boot_id=boot_id,
            at=now,
            complete=True,
        )


def other_mode_sentence(others: Sequence[Reservation], facts: NodeFacts) -> Iterator[str]:
    """That containers are connected in a way that is not the node's any more: they are left as they are."""
    if others:
        first, more = others[0], f" and {len(others) - 1} more" if len(others) > 1 else ""
        yield (
            f"the container {first.container_id[:12]}{more} is connected in the mode {first.mode!r}, and the node's is "
            f"{facts.mode!r} now: those of the one kind do not reach the others; start it again"
        )


def unknown_sentence(seen: Snapshot, known: set[str]) -> Iterator[str]:
    """That cables say whose they are, and nothing is known of them: they go with their containers."""
    lost = [link for link in seen.only(Link) if (link.alias or "").startswith(ALIAS) and link.name not in known]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield (
            f"nothing is recorded of the cable {lost[0].name} ({lost[0].alias}){more}: its address may be given out "
            "again; start that container again"
        )


def outside_sentence(known: Iterable[Reservation], facts: NodeFacts) -> Iterator[str]:
    """That containers have addresses of a subnet which is the node's no more."""
    lost = [one for one in known if not all(_is_within(address, facts.subnets) for address in one.addresses)]
    if lost and facts.subnets:
        first, more = lost[0], f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield (
            f"the container {first.container_id[:12]}{more} has {first.addresses[0]}, of a subnet that this node "
            "has lost: nobody reaches it; start it again"
        )


def _is_within(address: str, subnets: tuple[str, ...]) -> bool:
    return any((":" in subnet) == (":" in address) and contains(subnet, address_part(address)) for subnet in subnets)


def cable_key(one: Reservation) -> Key:
    """The key of the node's end of the cable."""
    return link_key(OWN, one.host_link)


def is_netns_of(one: Reservation) -> bool:
    """Whether the namespace that a container was connected in is there still; of an adopted one nobody knows."""
    return bool(one.netns_inode) and inode_at(one.netns_path) == one.netns_inode


def inode_at(path: str) -> int:
    """The number of the namespace at a path, 0 when there is none."""
    try:
        return os.stat(path).st_ino
    except (OSError, ValueError):
        return 0
