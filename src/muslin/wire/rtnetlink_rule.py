"""rtnetlink: policy rules (struct fib_rule_hdr, as `ip rule` uses it): which table is asked, and when.

Rules that look up a table are made; those that answer themselves (blackhole, unreachable, prohibit, goto) are
only read. Deleting removes the first rule that agrees with all that is given. Not handled: tos, user ids,
ports, suppressors when encoding.
"""

import struct

import msgspec

from muslin.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    encode_attribute,
    encode_u8,
    encode_u32,
    pack,
    parse_attributes,
    read_text,
    read_u8,
    read_u32,
    unpack,
)
from muslin.wire.rtnetlink_values import (
    FULL_LENGTH,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWRULE,
    Request,
    encode_name,
    pack_prefix,
    unpack_prefix,
)

# linux/fib_rules.h
FIB_RULE_INVERT = 0x02
FRA_DST = 1
FRA_FWMARK = 10
FRA_FWMASK = 16
FRA_IIFNAME = 3
FRA_OIFNAME = 17
FRA_PRIORITY = 6
FRA_PROTOCOL = 21
FRA_SRC = 2
FRA_SUPPRESS_PREFIXLEN = 14
FRA_TABLE = 15
FR_ACT_TO_TBL = 1

RULE_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_*

# struct fib_rule_hdr: family, destination bits, source bits, tos, table, two reserved, action, flags
_HEADER = struct.Struct("=BBBBBxxBI")
_WHAT = "fib_rule_hdr (family, bits, source bits, tos, table, action, flags)"
_NO_SUPPRESSION = 0xFFFFFFFF  # what the kernel reports for "none"


class RuleRecord(msgspec.Struct, frozen=True, gc=False):
    """A policy rule as the kernel reports it."""

    family: int
    priority: int = 0  # the lowest is asked first
    table: int = 0  # 0 for actions other than "lookup"
    source: str | None = None  # None = any
    destination: str | None = None  # None = any
    iif: str = ""  # name of the device the packet came by; "" = any
    oif: str = ""  # name of the device the socket is bound to; "" = any
    fwmark: int = 0
    fwmask: int = 0  # 0 = the mark does not matter
    protocol: int = 0  # RTPROT_*: who put it there
    action: str = "lookup"
    inverted: bool = False  # it holds for packets that do not match
    suppress_prefix_length: int | None = None  # routes of at most so many bits do not count; None = all count


def rule_add(
    family: int,
    priority: int,
    table: int,
    *,
    source: str | None = None,
    destination: str | None = None,
    iif: str | None = None,
    oif: str | None = None,
    fwmark: int | None = None,
    fwmask: int | None = None,
    protocol: int | None = None,
) -> Request:
    """Add a rule: packets that match look up `table`.

    `source` and `destination` are prefixes of `family`. A mark without `fwmask` is compared in all 32 bits.
    Without `protocol` the kernel notes none. An identical rule is the error EEXIST.
    """
    payload = _encode(
        family,
        priority,
        table,
        source=source,
        destination=destination,
        iif=iif,
        oif=oif,
        fwmark=fwmark,
        fwmask=fwmask,
        protocol=protocol,
    )
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, payload)


def rule_delete(
    family: int,
    priority: int,
    table: int = 0,
    *,
    source: str | None = None,
    destination: str | None = None,
    iif: str | None = None,
    oif: str | None = None,
    fwmark: int | None = None,
    fwmask: int | None = None,
    protocol: int | None = None,
) -> Request:
    """Remove the first rule of that priority that agrees with all that is given; table 0 means any."""
    payload = _encode(
        family,
        priority,
        table,
        source=source,
        destination=destination,
        iif=iif,
        oif=oif,
        fwmark=fwmark,
        fwmask=fwmask,
        protocol=protocol,
    )
    return Request(RTM_DELRULE, 0, payload)


def rule_dump(family: int = 0) -> Request:
    """Ask for all rules of a family, or (0) of all."""
    return Request(RTM_GETRULE, NLM_F_DUMP, pack(_HEADER, _WHAT, family, 0, 0, 0, 0, 0, 0))


def parse_rule(payload: bytes) -> RuleRecord | None:
    """Return the rule of an RTM_NEWRULE or RTM_DELRULE; None for a family that is not IP."""
    family, destination_bits, source_bits, _, table, action, flags = unpack(_HEADER, "fib_rule_hdr", payload)
    if family not in FULL_LENGTH:
        return None
    attributes = parse_attributes(payload, _HEADER.size)
    source, destination = attributes.get(FRA_SRC), attributes.get(FRA_DST)
    suppressed = read_u32(attributes, FRA_SUPPRESS_PREFIXLEN, _NO_SUPPRESSION)
    return RuleRecord(
        family=family,
        priority=read_u32(attributes, FRA_PRIORITY),
        table=read_u32(attributes, FRA_TABLE, table),
        source=None if source is None else unpack_prefix(source, source_bits, family),
        destination=None if destination is None else unpack_prefix(destination, destination_bits, family),
        iif=read_text(attributes, FRA_IIFNAME),
        oif=read_text(attributes, FRA_OIFNAME),
        fwmark=read_u32(attributes, FRA_FWMARK),
        fwmask=read_u32(attributes, FRA_FWMASK),
        protocol=read_u8(attributes, FRA_PROTOCOL),
        action=RULE_ACTIONS.get(action, str(action)),
        inverted=bool(flags & FIB_RULE_INVERT),
        suppress_prefix_length=None if suppressed == _NO_SUPPRESSION else suppressed,
    )


def _encode(
    family: int,
    priority: int,
    table: int,
    *,
    source: str | None,
    destination: str | None,
    iif: str | None,
    oif: str | None,
    fwmark: int | None,
    fwmask: int | None,
    protocol: int | None,
) -> bytes:
    """Return header and attributes of a rule, in iproute2's order."""
    source_bits, source_attribute = _encode_prefix(FRA_SRC, source, family)
    destination_bits, destination_attribute = _encode_prefix(FRA_DST, destination, family)
    short, action = table if table <= 0xFF else 0, FR_ACT_TO_TBL if table else 0
    payload = pack(_HEADER, _WHAT, family, destination_bits, source_bits, 0, short, action, 0)
    payload += source_attribute + destination_attribute
    if iif is not None:
        payload += encode_name(FRA_IIFNAME, iif)
    if oif is not None:
        payload += encode_name(FRA_OIFNAME, oif)
    if fwmark is not None:
        payload += encode_u32(FRA_FWMARK, fwmark)
    if fwmask is not None:
        payload += encode_u32(FRA_FWMASK, fwmask)
    if short != table:
        payload += encode_u32(FRA_TABLE, table)
    payload += encode_u32(FRA_PRIORITY, priority)
    return payload if protocol is None else payload + encode_u8(FRA_PROTOCOL, protocol)


def _encode_prefix(kind: int, prefix: str | None, family: int) -> tuple[int, bytes]:
    """Return (bits, attribute) of a prefix that must be of `family`; the prefix of everything is left out."""
    if prefix is None:
        return 0, b""
    found, data, bits = pack_prefix(prefix)
    if found != family:
        raise ValueError(f"{prefix!r}: a prefix of family {family} expected, like the rule's")
    return bits, encode_attribute(kind, data) if bits else b""
