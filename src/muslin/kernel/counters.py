"""The door to a namespace's counters: what its kernel has dropped, and for which reason.

Theory of operation: files below /proc/net belong to the namespace of the thread that opens them, for good (as sockets
do), and say the numbers of the moment when they are read again from the start. A link's own counters come by netlink
(struct rtnl_link_stats64), those of losses alone, by ``LINK/NAME``.
"""

from __future__ import annotations

import os

from muslin.kernel import netns as netns_door
from muslin.kernel.sessions import Session
from muslin.wire.counters import parse_paired, parse_single

PAIRED = ("snmp", "netstat")
SINGLE = "snmp6"


class Counters:
    """The counters of one namespace, open until ``close``. OSError where it is gone."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files: dict[str, int] = netns_door.call_in(session.netns, _open_all)

    def read(self) -> dict[str, int]:
        """All of them, now."""
        found: dict[str, int] = {}
        for name, fd in self._files.items():
            text = os.pread(fd, 1 << 16, 0).decode()
            found |= parse_single(text) if name == SINGLE else parse_paired(text)
        for link in self._session.links():
            if lost := link.statistics:
                found[f"{link.name}/rx_dropped"] = lost.rx_dropped
                found[f"{link.name}/tx_dropped"] = lost.tx_dropped
                found[f"{link.name}/rx_otherhost_dropped"] = lost.rx_otherhost_dropped
        return found

    def close(self) -> None:
        """Give the files back."""
        for fd in self._files.values():
            os.close(fd)
        self._files = {}


def _open_all() -> dict[str, int]:
    opened = {}
    for name in (*PAIRED, SINGLE):
        try:
            opened[name] = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return opened
