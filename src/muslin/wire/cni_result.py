"""What an ADD answers, CNI's result: from a document of any version that we speak to a value, and back.

Theory of operation: there is one ``Result`` for all versions; what differs between them is a matter of reading and
writing. 0.3.1 and 0.4.0 say ``"version": "4"`` beside each address; ``mtu`` of an interface and all of a route beyond
destination and gateway exist since 1.1.0, and are not said to a runtime that speaks less. A plugin further down the
chain may have put other things into its result: they are kept as they are, in ``rest`` of each value, and written
again. So a result that was passed to us leaves us whole (SPEC.md, "ADD": "must output it, with any modifications").

Addresses keep their spelling. Documents: containernetworking/cni SPEC.md, "ADD Success", of spec-v0.3.1, v0.4.0,
v1.0.0, v1.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from muslin.model.address import family_of
from muslin.wire.cni_error import NEWEST, VERSIONS
from muslin.wire.cni_fields import Fields

IP_VERSION_UNTIL = "1.0.0"
"""The first version without ``ips[].version``."""
DETAILS_SINCE = "1.1.0"
"""``interfaces[].mtu`` and a route's mtu, advmss, priority, table, scope."""


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that an ADD made. ``sandbox`` is CNI_NETNS as it was given, and empty on the host."""

    name: str
    mac: str = ""
    mtu: int | None = None
    """Bytes."""
    sandbox: str = ""
    rest: dict[str, Any] = {}
    """What else a document said here, kept as it was."""


class Ip(msgspec.Struct, frozen=True, kw_only=True):
    """An address with its length, its gateway (may be empty), and the index of its interface."""

    address: str
    gateway: str = ""
    interface: int | None = None
    rest: dict[str, Any] = {}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route in the container: a prefix, the next hop (may be empty), and since 1.1.0 what rtnetlink(7) knows more."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    rest: dict[str, Any] = {}


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime should write into resolv.conf(5)."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rest: dict[str, Any] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What an ADD made, or all of a chain's ADDs together."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()
    rest: dict[str, Any] = {}


ROUTE_DETAILS = ("mtu", "advmss", "priority", "table", "scope")
RESULT_KEYS = frozenset({"cniversion", "interfaces", "ips", "routes", "dns"})
INTERFACE_KEYS = frozenset({"name", "mac", "sandbox"})
IP_KEYS = frozenset({"address", "gateway", "interface", "version"})
ROUTE_KEYS = frozenset({"dst", "gw"})
DNS_KEYS = frozenset({"nameservers", "domain", "search", "options"})


# ---- reading ---------------------------------------------------------------------------------------------


def parse_result(document: Mapping[str, Any], version: str = NEWEST, place: str = "") -> Result:
    """The result in a decoded document; CniError 7 names what is of the wrong type.

    ``version`` counts where the document names none that we speak; ``place`` is where it stands in a larger one.
    """
    fields = Fields(document, place)
    named = fields.text("cniVersion")
    detailed = (named if named in VERSIONS else version) >= DETAILS_SINCE
    return Result(
        interfaces=tuple(_interface(item, detailed) for item in fields.items("interfaces")),
        ips=tuple(_ip(item) for item in fields.items("ips")),
        routes=tuple(_route(item, detailed) for item in fields.items("routes")),
        dns=parse_dns(fields.inner("dns")),
        rest=fields.others(RESULT_KEYS),
    )


def _interface(fields: Fields, detailed: bool) -> Interface:
    # A key that the document's version does not have is one of those that are only passed on.
    return Interface(
        name=fields.text("name"),
        mac=fields.text("mac"),
        mtu=fields.number("mtu") if detailed else None,
        sandbox=fields.text("sandbox"),
        rest=fields.others(INTERFACE_KEYS | {"mtu"} if detailed else INTERFACE_KEYS),
    )


def _ip(fields: Fields) -> Ip:
    return Ip(
        address=fields.interface_address("address"),
        gateway=fields.address("gateway"),
        interface=fields.number("interface"),
        rest=fields.others(IP_KEYS),
    )


def _route(fields: Fields, detailed: bool) -> Route:
    known = ROUTE_KEYS.union(ROUTE_DETAILS) if detailed else ROUTE_KEYS
    return Route(
        dst=fields.interface_address("dst"),
        gw=fields.address("gw"),
        rest=fields.others(known),
        **{key: fields.number(key) for key in ROUTE_DETAILS if detailed},
    )


def parse_dns(fields: Fields) -> Dns:
    """The dictionary ``dns`` of a result or a configuration."""
    return Dns(
        nameservers=fields.texts("nameservers"),
        domain=fields.text("domain"),
        search=fields.texts("search"),
        options=fields.texts("options"),
        rest=fields.others(DNS_KEYS),
    )


# ---- writing ---------------------------------------------------------------------------------------------


def encode_result(result: Result, version: str) -> bytes:
    """The result as the document of ``version``, one of ``VERSIONS``."""
    document = {
        **result.rest,
        "cniVersion": version,
        "interfaces": [_encode_interface(interface, version) for interface in result.interfaces],
        "ips": [_encode_ip(ip, version) for ip in result.ips],
    }
    if result.routes:
        document["routes"] = [_encode_route(route, version) for route in result.routes]
    if dns := {**result.dns.rest, **_said(result.dns, ("nameservers", "domain", "search", "options"))}:
        document["dns"] = dns
    return msgspec.json.encode(document)


def _encode_interface(interface: Interface, version: str) -> dict[str, Any]:
    document = {**interface.rest, "name": interface.name, **_said(interface, ("mac", "sandbox"))}
    if version >= DETAILS_SINCE and interface.mtu is not None:
        document["mtu"] = interface.mtu
    return document


def _encode_ip(ip: Ip, version: str) -> dict[str, Any]:
    document = {**ip.rest, "address": ip.address, **_said(ip, ("gateway",))}
    if ip.interface is not None:
        document["interface"] = ip.interface
    if version < IP_VERSION_UNTIL:
        document["version"] = str(family_of(ip.address))
    return document


def _encode_route(route: Route, version: str) -> dict[str, Any]:
    document = {**route.rest, "dst": route.dst, **_said(route, ("gw",))}
    if version >= DETAILS_SINCE:
        details = {key: getattr(route, key) for key in ROUTE_DETAILS}
        document |= {key: value for key, value in details.items() if value is not None}
    return document


def _said(value: msgspec.Struct, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that are not empty."""
    return {key: said for key in keys if (said := getattr(value, key))}


# ---- a chain ---------------------------------------------------------------------------------------------


def merge(prev: Result | None, ours: Result) -> Result:
    """The result of the plugins before us with ours appended; indexes of interfaces move with them."""
    if prev is None:
        return ours
    shift = len(prev.interfaces)
    moved = (
        ip if ip.interface is None else msgspec.structs.replace(ip, interface=ip.interface + shift) for ip in ours.ips
    )
    return Result(
        interfaces=prev.interfaces + ours.interfaces,
        ips=(*prev.ips, *moved),
        routes=prev.routes + ours.routes,
        dns=_merge_dns(prev.dns, ours.dns),
        rest={**ours.rest, **prev.rest},
    )


def _merge_dns(prev: Dns, ours: Dns) -> Dns:
    """Both lists, what comes first in the chain first, nothing twice."""
    return Dns(
        nameservers=tuple(dict.fromkeys(prev.nameservers + ours.nameservers)),
        domain=prev.domain or ours.domain,
        search=tuple(dict.fromkeys(prev.search + ours.search)),
        options=tuple(dict.fromkeys(prev.options + ours.options)),
        rest={**ours.rest, **prev.rest},
    )
