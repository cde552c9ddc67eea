"""Which interface and addresses of this host the other nodes reach it by: a pure choice over what was observed.

Theory of operation: as flannel chooses, in this order: an interface named by ``iface`` (name or address), one whose
name or address matches ``iface_regex``, the one that the route to ``iface_can_reach`` leaves by, the one with the
default route. Of each family the best address is taken: global before link-local, permanent before temporary. The
choice is made anew on each pass, so a renumbered interface is followed without a restart. ``public_ip`` replaces the
address that is told to others (NAT), not the one that is bound.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

import msgspec

from muslin.errors import UsageError
from muslin.model.address import (
    DEFAULT_PREFIX,
    FAMILIES,
    Family,
    address_part,
    contains,
    family_of,
    prefix_length,
)
from muslin.model.config import span_of
from muslin.model.kernel import TABLE_MAIN, Address, Link, Loopback, Route
from muslin.model.state import Snapshot


class UnderlayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asked for."""

    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str | None = None
    public_addresses: tuple[str, ...] = ()


class Underlay(msgspec.Struct, frozen=True, kw_only=True):
    """The choice. ``interfaces`` are its addresses with lengths, best first, at most one a family."""

    link: str
    mtu: int
    interfaces: tuple[str, ...]
    public_addresses: tuple[str, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that are bound, without length."""
        return tuple(address_part(interface) for interface in self.interfaces)

    def shares_network_with(self, address: str) -> bool:
        """Whether an address lies on the layer-2 network of this interface."""
        family, (number, _) = family_of(address), span_of(address)
        spans = (span_of(interface) for interface in self.interfaces if family_of(interface) == family)
        return any(first <= number <= last for first, last in spans)


def choose_underlay(observed: Snapshot, options: UnderlayOptions) -> Underlay:
    """The interface to use; UsageError, naming what there is, when nothing fits."""
    host = _Host(observed)
    name = next(_candidates(host, options), None)
    if name is None:
        raise UsageError(
            f"no interface of this host fits: {_asked(options)}; there are {host.described()}",
            "name one with --iface NAME",
        )
    link = host.links[name]
    interfaces = tuple(best for family in FAMILIES if (best := host.best_address(name, family)))
    if not interfaces:
        raise UsageError(f"interface {name} has no address that other nodes could reach", "give it one, or --iface")
    own = tuple(address_part(interface) for interface in interfaces)
    given = {family_of(address): address for address in options.public_addresses}
    public = tuple(given.get(family_of(address), address) for address in own)
    return Underlay(link=name, mtu=link.mtu or 1500, interfaces=interfaces, public_addresses=public)


def _asked(options: UnderlayOptions) -> str:
    asked = [f"--iface {name}" for name in options.iface]
    asked += [f"--iface-regex {pattern}" for pattern in options.iface_regex]
    asked += [f"--iface-can-reach {options.iface_can_reach}"] if options.iface_can_reach else []
    return ", ".join(asked) or "the one with the default route"


def _candidates(host: _Host, options: UnderlayOptions) -> Iterator[str]:
    for wanted in options.iface:
        yield from host.by_name_or_address(wanted)
    for pattern in options.iface_regex:
        yield from host.matching(pattern)
    if options.iface_can_reach:
        yield from host.towards(options.iface_can_reach)
    if not (options.iface or options.iface_regex or options.iface_can_reach):
        for family in FAMILIES:
            yield from host.towards(address_part(DEFAULT_PREFIX[family]), default_only=True)


class _Host:
    """Links, addresses and routes of the own namespace."""

    def __init__(self, observed: Snapshot) -> None:
        objects = observed.objects.values()
        self.links = {obj.name: obj for obj in objects if isinstance(obj, Link)}
        self._addresses = [obj for obj in objects if isinstance(obj, Address)]
        self._routes = [
            obj
            for obj in objects
            if isinstance(obj, Route) and obj.table == TABLE_MAIN and obj.kind == "unicast" and obj.link
        ]

    def described(self) -> str:
        """The links with their addresses, for a message."""
        shown = []
        for name, link in self.links.items():
            if not isinstance(link.options, Loopback):
                addresses = [obj.address for obj in self._addresses if obj.link == name]
                shown.append(f"{name} ({', '.join(addresses) or 'no address'})")
        return ", ".join(shown) or "none"

    def best_address(self, link: str, family: Family) -> str | None:
        """The address, with length, that others should use, in the kernel's order; never a link-local one."""
        found = (obj.address for obj in self._addresses if obj.link == link and family_of(obj.address) == family)
        # A link-local address means nothing without the name of a link, which a lease cannot carry.
        return next((address for address in found if not ipaddress.ip_interface(address).is_link_local), None)

    def by_name_or_address(self, wanted: str) -> Iterator[str]:
        """The link called so, or the one with this address."""
        if wanted in self.links:
            yield wanted
        yield from (obj.link for obj in self._addresses if address_part(obj.address) == wanted)

    def matching(self, pattern: str) -> Iterator[str]:
        """Links with a matching address first, then links with a matching name, as flannel has it."""
        expression = re.compile(pattern)
        yield from (obj.link for obj in self._addresses if expression.search(address_part(obj.address)))
        yield from (name for name in self.links if expression.search(name))

    def towards(self, address: str, default_only: bool = False) -> Iterator[str]:
        """The link of the best route to an address: longest prefix, then lowest metric."""
        fitting = [
            route
            for route in self._routes
            if contains(route.destination, address) and (not default_only or prefix_length(route.destination) == 0)
        ]
        fitting.sort(key=lambda route: (-prefix_length(route.destination), route.effective_metric))
        yield from (route.link for route in fitting if route.link)
