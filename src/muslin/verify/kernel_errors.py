"""Why a socket failed and who said so: errno and the socket error queue.

Theory of operation: with IP_RECVERR the kernel queues every ICMP error for a socket together with the address
of the router or host that sent it (ip(7), ``struct sock_extended_err``, linux/errqueue.h). ``drain`` empties
that queue. Errors of the own kernel (no route, blocked by a firewall rule in the output path) come as plain
errno.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from muslin.model.address import Family
from muslin.verify.payload import address_text
from muslin.verify.station import IP_RECVERR, IPV6_RECVERR
from muslin.verify.verdict import ErrorSeen
from muslin.wire.icmp import icmp_text, is_port_unreachable

_EXTENDED_ERR = struct.Struct("=IBBBBII")
_ORIGIN_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_ADDRESS_AT: dict[Family, tuple[int, int]] = {4: (4, 8), 6: (8, 24)}  # in sockaddr_in, sockaddr_in6
_QUEUES = ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR))

# net/core/neighbour.c: one table for all namespaces of the machine, full at gc_thresh3 (1024 by default) entries.
_MEANINGS = {
    errno.ENOBUFS: "No buffer space available (the neighbour table that all namespaces share is full:"
    " raise net.ipv4.neigh.default.gc_thresh3 of the host, or check fewer pairs)"
}

TRANSIENT = frozenset({errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EMSGSIZE})
"""Errors that pass: a full queue or neighbour table, or a packet to be made smaller."""


def drain(one: socket.socket, family: Family) -> list[tuple[int, ErrorSeen | None]]:
    """Empty the error queue: (errno, the ICMP error or None when the own kernel made it), oldest first."""
    found: list[tuple[int, ErrorSeen | None]] = []
    while True:
        try:
            _, ancillary, _, _ = one.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return found
        found.extend(_parse(data, family) for level, kind, data in ancillary if (level, kind) in _QUEUES)


def _parse(data: bytes, family: Family) -> tuple[int, ErrorSeen | None]:
    number, origin, icmp_type, code, _, _, _ = _EXTENDED_ERR.unpack_from(data)
    if origin not in _ORIGIN_ICMP:
        return number, None
    first, last = _ADDRESS_AT[family]
    offender = address_text(data[_EXTENDED_ERR.size :][first:last])
    return number, icmp_error(family, icmp_type, code, offender)


def icmp_error(family: Family, icmp_type: int, code: int, offender: str) -> ErrorSeen:
    """An ICMP error as a value."""
    return ErrorSeen(
        text=icmp_text(family, icmp_type, code),
        offender=offender,
        icmp=(icmp_type, code),
        refused=is_port_unreachable(family, icmp_type, code),
    )


def own_error(number: int) -> ErrorSeen:
    """What the source's own kernel said, as errno."""
    return ErrorSeen(text=_MEANINGS.get(number) or os.strerror(number))


def reset_error(address: str) -> ErrorSeen:
    """A TCP reset, which speaks in the name of the address asked."""
    return ErrorSeen(text="TCP reset", offender=address, refused=True)
