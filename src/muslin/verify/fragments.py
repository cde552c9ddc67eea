"""Whether a node fragments: the counters of its namespace, before and after.

Theory of operation: a full-size packet with "don't fragment" that enters a tunnel may still leave the node in
fragments, when the tunnel's own packets are longer than the underlay's MTU and do not forbid it. The inner
parties notice nothing but slowness. The kernel counts each fragment that it makes (RFC 4293
ipIfStatsOutFragCreates), per namespace, in /proc/net/snmp and snmp6.
"""

from __future__ import annotations

from muslin.verify.station import Station


def parse_snmp(text: str) -> int:
    """``FragCreates`` of /proc/net/snmp (a line of names, a line of values per protocol); 0 without it."""
    lines = [line.split() for line in text.splitlines() if line.startswith("Ip: ")]
    if len(lines) < 2 or "FragCreates" not in lines[0]:
        return 0
    return int(lines[1][lines[0].index("FragCreates")])


def parse_snmp6(text: str) -> int:
    """``Ip6FragCreates`` of /proc/net/snmp6: a name and a value per line; 0 without it."""
    for line in text.splitlines():
        if line.startswith("Ip6FragCreates"):
            return int(line.split()[1])
    return 0


def fragments_made(station: Station) -> int:
    """How many fragments the namespace has made so far, of both families."""
    return parse_snmp(station.read("snmp")) + parse_snmp6(station.read("snmp6"))
