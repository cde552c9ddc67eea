"""What a container runtime asks of a CNI plugin, second part: the network's configuration on standard input.

Theory of operation: the configuration is what the administrator wrote, with what the runtime adds for this call: what
the container wants, what the plugins before us made, what is alive. Whatever is wrong is a ``CniError`` with the code
that the specification has for it, and nothing else is ever raised, whatever the bytes are.

How strict a reading is depends on the command. ADD, CHECK and STATUS read everything, and what cannot be right is an
error before anything was done. DEL and GC undo, and a runtime that is refused them keeps a dead container for ever:
they read the version, the network's name and what they act on, and pass over the rest. A GC's list of what is alive
is read strictly again, because what is left out of it is removed.

Rules: containernetworking/cni SPEC.md 1.1.0, CONVENTIONS.md, and pkg/skel where these say nothing. Keys count without
regard to case (``cni_fields``); keys that mean nothing to us are passed over.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from muslin.model.address import HOST_BITS, family_of, parse_address
from muslin.wire.cni_call import WORD, Call, Command
from muslin.wire.cni_error import NEWEST, VERSIONS, CniError, ErrorCode
from muslin.wire.cni_fields import Fields, decode_object
from muslin.wire.cni_result import Dns, Result, parse_dns, parse_result

Mode = Literal["bridge", "routed"]
MODES: tuple[Mode, ...] = get_args(Mode)
MIN_VERSION: dict[str, str] = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The first version of the specification that has the command, where that is not the first that we speak."""
MTU_MIN, MTU_MAX = 68, 65535
"""Bytes: of IPv4 (RFC 791 section 3.2), and of a veth (ETH_MAX_MTU, linux/if_ether.h)."""

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(?:\1[0-9a-fA-F]{2}){4}")


class NetworkConf(msgspec.Struct, frozen=True, kw_only=True):
    """The network's configuration, with what the runtime adds for this call."""

    cni_version: str
    name: str
    type: str = ""
    mode: Mode = "bridge"
    mtu: int | None = None
    """Bytes; None leaves it to the agent."""
    hairpin: bool = False
    default_route: bool = True
    spoof_check: bool = True
    bridge: str = ""
    """Empty, or the bridge that the administrator believes the node to have."""
    ip_masq: bool = False
    dns: Dns = Dns()
    addresses: tuple[str, ...] = ()
    """Wanted, canonical, without length, at most one a family."""
    mac: str = ""
    """Wanted, in lower case with colons."""
    prev_result: Result | None = None
    valid_attachments: tuple[tuple[str, str], ...] | None = None
    """GC: container id and interface name of all that is alive; None when the runtime gave no list."""


# ---- the configuration -----------------------------------------------------------------------------------


def parse_conf(stdin: bytes, call: Call) -> NetworkConf:
    """The configuration for any command but VERSION, which needs none.

    CniError 1: a version that we or the command do not know; 2: a field that we cannot do; 4: CNI_ARGS; 6: no JSON;
    7: a value that cannot be right, named with its key.
    """
    fields = Fields(decode_object(stdin, "the network configuration"))
    version = _version(fields, call.command)
    name, kind = _name(fields), fields.text("type")
    if call.command == "DEL":
        return NetworkConf(cni_version=version, name=name, type=kind, prev_result=_prev_result_if_any(fields, version))
    if call.command == "GC":
        return NetworkConf(cni_version=version, name=name, type=kind, valid_attachments=_valid_attachments(fields))
    _refuse_ipam(fields)
    runtime, args = fields.inner("runtimeConfig"), _cni_args(fields)
    return NetworkConf(
        cni_version=version,
        name=name,
        type=kind,
        mode=_mode(fields),
        mtu=_mtu(fields),
        hairpin=fields.flag("hairpinMode", False),
        default_route=fields.flag("defaultRoute", True),
        spoof_check=fields.flag("spoofCheck", True),
        bridge=fields.text("bridge"),
        ip_masq=fields.flag("ipMasq", False),
        dns=_dns(fields.inner("dns"), runtime.inner("dns")),
        addresses=_wanted_addresses(runtime, args, call),
        mac=_wanted_mac(runtime, args, call),
        prev_result=_prev_result(fields, version, call.command),
    )


def answer_version(stdin: bytes) -> str:
    """The version to answer a faulty call in: its own when we speak it, else the newest. Raises nothing."""
    try:
        version = Fields(decode_object(stdin, "")).text("cniVersion")
    except CniError:
        return NEWEST
    return version if version in VERSIONS else NEWEST


def _version(fields: Fields, command: Command) -> str:
    spoken = f"this plugin speaks {', '.join(VERSIONS)}; set cniVersion to one of them"
    try:
        version = fields.text("cniVersion") or "0.1.0"  # SPEC.md, "Version considerations"
    except CniError as error:
        raise CniError(ErrorCode.UNDECODABLE, error.msg, spoken) from None
    if version not in VERSIONS:
        said = f"{version[:60]!r}" if fields.text("cniVersion") else "missing, which means 0.1.0"
        raise CniError(ErrorCode.INCOMPATIBLE_VERSION, f"incompatible CNI versions: cniVersion is {said}", spoken)
    least = MIN_VERSION.get(command, VERSIONS[0])
    if version < least:
        raise CniError(
            ErrorCode.INCOMPATIBLE_VERSION,
            f"incompatible CNI versions: {command} exists since {least}, and cniVersion is {version}",
            f"set cniVersion to {least} or later",
        )
    return version


def _name(fields: Fields) -> str:
    name = fields.text("name")
    if not WORD.fullmatch(name):
        raise fields.fault("name", "the network's name: letters, digits, '_', '.', '-' after a first letter or digit")
    return name


def _refuse_ipam(fields: Fields) -> None:
    if fields.raw("ipam") not in (None, {}):
        expected = "none, since the agent hands out the addresses of the node's own subnet"
        raise fields.fault("ipam", expected, ErrorCode.UNSUPPORTED_FIELD)


def _mode(fields: Fields) -> Mode:
    mode = fields.text("mode") or "bridge"
    for known in MODES:
        if mode == known:
            return known
    raise fields.fault("mode", " or ".join(MODES))


def _mtu(fields: Fields) -> int | None:
    mtu = fields.number("mtu") or None  # 0 is Go's way to say nothing
    if mtu is not None and not MTU_MIN <= mtu <= MTU_MAX:
        raise fields.fault("mtu", f"a number of bytes from {MTU_MIN} to {MTU_MAX}")
    return mtu


def _dns(fields: Fields, runtime: Fields) -> Dns:
    """The configuration's, each part replaced by what the runtime says (CONVENTIONS.md, ``dns``)."""
    dns = parse_dns(fields)
    return Dns(
        nameservers=runtime.texts("servers") or dns.nameservers,
        domain=dns.domain,
        search=runtime.texts("searches") or dns.search,
        options=runtime.texts("options") or dns.options,
    )


# ---- what a container wants ------------------------------------------------------------------------------


def _cni_args(fields: Fields) -> Fields:
    """``args.cni`` (CONVENTIONS.md). All else in ``args`` is to be passed over, also where no object is."""
    args = fields.raw("args")
    cni = Fields(args).raw("cni") if isinstance(args, dict) else None
    return Fields(cni if isinstance(cni, dict) else {}, "args.cni.")


def _wanted_addresses(runtime: Fields, args: Fields, call: Call) -> tuple[str, ...]:
    """The first of the three places that wants any (CONVENTIONS.md, ``ips``); podman knows the last alone."""
    for fields in (runtime, args):
        if texts := fields.texts("ips"):
            return _addresses(texts, fields.fault("ips", _EXPECTED_ADDRESSES))
    texts = tuple(text for text in call.args.get("IP", "").split(",") if text)
    fault = CniError(
        ErrorCode.BAD_ENVIRONMENT, f"CNI_ARGS holds IP={','.join(texts)[:60]}; expected {_EXPECTED_ADDRESSES}"
    )
    return _addresses(texts, fault)


_EXPECTED_ADDRESSES = "addresses, at most one of each family"


def _addresses(texts: tuple[str, ...], fault: CniError) -> tuple[str, ...]:
    try:
        addresses = tuple(_address(text) for text in texts)
    except ValueError:
        raise fault from None
    if len({family_of(address) for address in addresses}) < len(addresses):
        raise fault
    return addresses


def _address(text: str) -> str:
    """An address without its length, which is the subnet's whatever a runtime says; ValueError."""
    address, slash, length = text.partition("/")
    canonical = parse_address(address)
    if "%" in address or (slash and not (length.isdecimal() and int(length) <= HOST_BITS[family_of(address)])):
        raise ValueError(text)
    return canonical


def _wanted_mac(runtime: Fields, args: Fields, call: Call) -> str:
    """As for addresses."""
    expected = "the MAC address of one interface, such as 02:00:00:00:00:01"
    for fields in (runtime, args):
        if text := fields.text("mac"):
            return _mac(text, fields.fault("mac", expected))
    text = call.args.get("MAC", "")
    return _mac(text, CniError(ErrorCode.BAD_ENVIRONMENT, f"CNI_ARGS holds MAC={text[:60]}; expected {expected}"))


def _mac(text: str, fault: CniError) -> str:
    if not text:
        return ""
    mac = text.lower().replace("-", ":")
    # is_valid_ether_addr (linux/etherdevice.h): not of a group, not all zeros.
    if not _MAC.fullmatch(text) or int(mac[:2], 16) & 1 or not mac.strip("0:"):
        raise fault
    return mac


# ---- what was before, and what is alive ------------------------------------------------------------------


def _prev_result(fields: Fields, version: str, command: Command) -> Result | None:
    document = fields.raw("prevResult")
    if document is None and command == "CHECK":
        raise fields.fault("prevResult", "the result of the ADD, as CHECK compares with it")
    if document is None:
        return None
    if not isinstance(document, dict):
        raise fields.fault("prevResult", "an object")
    return parse_result(document, version, "prevResult.")


def _prev_result_if_any(fields: Fields, version: str) -> Result | None:
    """For DEL: a runtime's cache may hold half of it, or what another version wrote."""
    try:
        return _prev_result(fields, version, "DEL")
    except CniError:
        return None


def _valid_attachments(fields: Fields) -> tuple[tuple[str, str], ...] | None:
    """SPEC.md, "GC". The second key is a slip that libcni keeps for older plugins (containernetworking/cni#1101)."""
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        if fields.raw(key) is not None:
            return tuple(_attachment(item) for item in fields.items(key))
    return None


def _attachment(fields: Fields) -> tuple[str, str]:
    for key in ("containerID", "ifname"):
        if not fields.text(key):
            raise fields.fault(key, "the key of a living attachment: what is not listed is removed")
    return fields.text("containerID"), fields.text("ifname")
