"""What nftables says of a packet that it is told to trace: which rule, in which chain, with which verdict.

Theory of operation: a rule ``meta nftrace set 1`` marks a packet within its namespace; from then on the kernel reports
each rule and policy that decides about it (NFT_MSG_TRACE, net/netfilter/nf_tables_trace.c). ``table_text`` is a table
of our own that marks a probe, its answers, ICMP errors that quote it, and the tunnel's packets that carry it: inside of
those, its identifier stands at fixed places. It comes ahead of all other tables, and only looks. It belongs to the
socket that made it (``flags owner``), so that the kernel removes it with that.

Constants are from uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from muslin.wire.netlink import Message, parse_attributes, read_text
from muslin.wire.nftables import FAMILY_NAMES, SUBSYSTEM
from muslin.wire.packet import Probe

TRACE = SUBSYSTEM << 8 | 17  # NFT_MSG_TRACE
PRIORITY = -450  # ahead of fragments being put together (NF_IP_PRI_CONNTRACK_DEFRAG, -400)
# enum nft_trace_attributes, enum nft_verdict_attributes, enum nft_trace_types
TRACE_TABLE, TRACE_CHAIN, TRACE_HANDLE, TRACE_TYPE, TRACE_VERDICT, TRACE_FAMILY, TRACE_POLICY = 1, 2, 3, 4, 5, 15, 16
VERDICT_CODE = 1
TYPE_POLICY = 1
TYPE_RULE = 3
NF_DROP = 0  # uapi/linux/netfilter.h
IP_BYTES = (20, 40)
UDP_BYTES = 8
VXLAN_AND_ETHERNET_BYTES = 8 + 14
_HEADER_BYTES = 4  # struct nfgenmsg


class Decision(msgspec.Struct, frozen=True):
    """A rule or policy that ended a packet: ``handle`` is the rule's, None for a policy."""

    family: str
    table: str
    chain: str
    handle: int | None


def table_text(name: str, probe: Probe, devices: Sequence[str] = ()) -> str:
    """The table in one line of commands, which is one transaction.

    ``devices`` are the links at whose ingress others have chains.
    """
    hooks = {"prerouting": "", "output": ""}
    if devices:
        hooks["ingress"] = f" devices = {{ {', '.join(devices)} }}"
    lines = [f"add table inet {name} {{ flags owner; }}"]
    for hook, where in hooks.items():
        place = f"inet {name} {hook}"
        lines.append(f"add chain {place} {{ type filter hook {hook}{where} priority {PRIORITY}; policy accept; }}")
        lines += [f"add rule {place} {match} meta nftrace set 1" for match in _matches(probe)]
    return "; ".join(lines)


def _matches(probe: Probe) -> Iterator[str]:
    """What the probe and its kin look like, as matches."""
    number = probe.identity
    if probe.protocol == "icmp":
        yield f"icmp id {number}"
        yield f"icmpv6 id {number}"
        places: tuple[int, ...] = (4,)  # where the identifier stands in an ICMP header
    else:
        yield f"{probe.protocol} sport {number}"
        yield f"{probe.protocol} dport {number}"
        places = (0, 2)
    for start in (UDP_BYTES, UDP_BYTES + VXLAN_AND_ETHERNET_BYTES):
        # An ICMP header is as long as one of UDP: what an error quotes begins where a tunnel's inner packet does.
        carriers = "{ icmp, ipv6-icmp, udp }" if start == UDP_BYTES else "udp"
        for header in IP_BYTES:
            for place in places:
                yield f"meta l4proto {carriers} @th,{8 * (start + header + place)},16 {number}"


def parse_decision(message: Message) -> Decision | None:
    """The end of a packet by rule or policy; None for everything else that is said."""
    if message.kind != TRACE:
        return None
    found = parse_attributes(message.payload, _HEADER_BYTES)
    kind = _u32(found.get(TRACE_TYPE))
    verdict = parse_attributes(found.get(TRACE_VERDICT, b""))
    dropped = {TYPE_RULE: _u32(verdict.get(VERDICT_CODE)), TYPE_POLICY: _u32(found.get(TRACE_POLICY))}
    if dropped.get(kind or 0) != NF_DROP:
        return None
    handle = found.get(TRACE_HANDLE)
    return Decision(
        family=FAMILY_NAMES.get(message.payload[0], ""),
        table=read_text(found, TRACE_TABLE) or "",
        chain=read_text(found, TRACE_CHAIN) or "",
        handle=struct.unpack("!Q", handle)[0] if handle and kind == TYPE_RULE else None,
    )


def _u32(data: bytes | None) -> int | None:
    return int.from_bytes(data, "big") if data else None
