"""The kernel's counters of a namespace, as /proc/net shows them: texts to numbers by name.

Theory of operation: ``snmp`` and ``netstat`` have two lines a protocol, names and values; ``snmp6`` a name and a value
a line. Names here are those of nstat(8), so that whoever wants to see for himself finds them there: ``IpFragFails``,
``TcpExtIPReversePathFilter``, ``Ip6InNoRoutes``. What each counts: RFC 4293, and net/ipv4/proc.c, net/ipv6/proc.c.
"""

from __future__ import annotations

from collections.abc import Iterable


def parse_paired(text: str) -> dict[str, int]:
    """/proc/net/snmp or netstat; lines that do not pair are left out."""
    found: dict[str, int] = {}
    lines = [line.split() for line in text.splitlines() if line]
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names[0] == values[0] and len(names) == len(values):
            protocol = names[0].rstrip(":")
            found |= _numbers((f"{protocol}{name}", value) for name, value in zip(names[1:], values[1:], strict=True))
    return found


def parse_single(text: str) -> dict[str, int]:
    """/proc/net/snmp6."""
    words = (line.split() for line in text.splitlines())
    return _numbers((line[0], line[1]) for line in words if len(line) == 2)


def _numbers(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    return {name: int(value) for name, value in pairs if value.lstrip("-").isdigit()}
