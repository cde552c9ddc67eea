"""Is it there? Echo requests to many addresses at once.

Theory of operation: one socket a family asks all addresses and gets all answers; a random word in the body tells ours
from everybody else's. Each address is asked twice, the second time halfway to the timeout, because a first packet may
be lost to a neighbour that had to be found. An ICMP error that quotes our request ends the waiting for it, as
"unreachable" with its words and its sender; so does a send that this host's own kernel refuses. At most ``RATE_PER_S``
packets leave a second.

Requests are never fragmented and pay no regard to a path MTU that was learned (IP_PMTUDISC_PROBE), so what is asked is
the path as it is now.

A raw socket wants CAP_NET_RAW. Without it a ping socket serves (icmp(7), ping_group_range), which sees no errors: then
"unreachable" shows as "silent". Where that is refused too, all is "skipped", with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import struct
from collections.abc import Sequence

import msgspec

from muslin.agent.diagnosis import Target, plan_questions, with_answers
from muslin.model.address import FAMILIES, Family, family_of, packed
from muslin.wire.agent_api import AgentStatus, ProbeOutcome, ProbeResult
from muslin.wire.icmp import (
    ADDRESS_FAMILY,
    ECHO_REPLY,
    ERROR_TYPES,
    FILTER_OPTION,
    ICMP_HEADER_BYTES,
    IP_HEADER_BYTES,
    PROTOCOL_NUMBER,
    IcmpMessage,
    encode_echo,
    encode_filter,
    icmp_text,
    parse_icmp,
    parse_quoted_echo,
    quoted_mtu,
)

TIMEOUT_S = 1.0
TRIES = 2
RATE_PER_S = 500
BURST_S = 0.02  # an event loop sleeps no less than a millisecond; so ten at a time
BUFFER_BYTES = 1 << 20  # asked for; the kernel grants net.core.rmem_max at most
READ_BYTES = 2048  # an answer's start is enough, however long it is

# linux/in.h, linux/in6.h: numbers that Python 3.11 has no name for.
IP_PKTINFO, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 8, 10, 23, 3

_BODY = struct.Struct("!8sIB")  # the run's random word, which target, which try
_SEQUENCE_MASK = 0xFFFF


async def probe_peers(status: AgentStatus, names: Sequence[str] | None = None) -> AgentStatus:
    """The status after its peers (or those named) were asked; each with its answers and what they mean."""
    asked = {
        peer.name: plan_questions(peer, status.network) for peer in status.peers if names is None or peer.name in names
    }
    answers = await probe_all([target for questions in asked.values() for target in questions.all])
    peers = tuple(
        with_answers(peer, asked[peer.name], answers, status) if peer.name in asked else peer for peer in status.peers
    )
    return msgspec.structs.replace(status, peers=peers)


async def probe_all(targets: Sequence[Target], timeout_s: float = TIMEOUT_S) -> dict[Target, ProbeResult]:
    """Ask all of them; what became of each. It takes at most ``timeout_s`` longer than the sending."""
    wanted = list(dict.fromkeys(targets))
    pace = _Pace()
    parts = await asyncio.gather(
        *(
            _probe_family(family, of_family, timeout_s, pace)
            for family in FAMILIES
            if (of_family := [target for target in wanted if family_of(target.address) == family])
        )
    )
    found = {target: result for part in parts for target, result in part.items()}
    return {target: found[target] for target in wanted}


async def _probe_family(
    family: Family, targets: list[Target], timeout_s: float, pace: _Pace
) -> dict[Target, ProbeResult]:
    try:
        opened = _open_socket(family)
    except OSError as error:
        reason = f"this host gives no socket for echo requests: {error.strerror}; the agent needs CAP_NET_RAW"
        return {target: ProbeResult(address=target.address, outcome="skipped", detail=reason) for target in targets}
    loop = asyncio.get_running_loop()
    with opened:
        run = _Run(family, opened, targets)
        loop.add_reader(opened, run.read)
        try:
            await run.ask(timeout_s, pace)
        finally:
            loop.remove_reader(opened)
    return run.results


def _open_socket(family: Family) -> socket.socket:
    """A raw ICMP socket that lets answers and errors through, or a ping socket; OSError when there is neither."""
    where, protocol = ADDRESS_FAMILY[family], PROTOCOL_NUMBER[family]
    try:
        opened = socket.socket(where, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    except PermissionError:
        opened = socket.socket(where, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)
    else:
        opened.setsockopt(*FILTER_OPTION[family], encode_filter(family, {ECHO_REPLY[family], *ERROR_TYPES[family]}))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    if family == 4:
        opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
    return opened


class _Pace:
    """Spreads what is sent over time."""

    def __init__(self) -> None:
        self._next_s = 0.0

    async def turn(self) -> None:
        """Wait until the next packet may leave."""
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now_s) + 1 / RATE_PER_S
        if self._next_s - now_s > BURST_S:
            await asyncio.sleep(self._next_s - now_s)


class _Run:
    """The targets of one family and their socket. A target's number is its place in the list."""

    def __init__(self, family: Family, opened: socket.socket, targets: list[Target]) -> None:
        self._family: Family = family
        self._socket = opened
        self._targets = targets
        self._word = secrets.token_bytes(8)
        self._identifier = int.from_bytes(self._word[:2], "big")
        self._sent_s: dict[tuple[int, int], float] = {}
        self._pending = dict.fromkeys(range(len(targets)))
        self._finished = asyncio.Event()
        self._time = asyncio.get_running_loop().time
        self.results: dict[Target, ProbeResult] = {}

    async def ask(self, timeout_s: float, pace: _Pace) -> None:
        """Send, wait, send again to those that are silent, wait again."""
        for attempt in range(TRIES):
            for number in list(self._pending):
                await pace.turn()
                if number in self._pending:
                    self._send(number, attempt)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s / TRIES):
                    await self._finished.wait()
        for number in list(self._pending):
            self._settle(number, "silent", detail=f"no answer within {timeout_s:g} s")

    def _settle(
        self,
        number: int,
        outcome: ProbeOutcome,
        *,
        rtt_ms: float | None = None,
        detail: str = "",
        offender: str = "",
    ) -> None:
        """Note what became of a target, once."""
        if number in self._pending:
            del self._pending[number]
            target = self._targets[number]
            self.results[target] = ProbeResult(
                address=target.address, outcome=outcome, rtt_ms=rtt_ms, detail=detail, offender=offender
            )
        if not self._pending:
            self._finished.set()

    # ---- out -----------------------------------------------------------------------------------------------

    def _send(self, number: int, attempt: int) -> None:
        target = self._targets[number]
        body = _BODY.pack(self._word, number, attempt)
        body = body.ljust(target.size_bytes - IP_HEADER_BYTES[self._family] - ICMP_HEADER_BYTES, b"\0")
        packet = encode_echo(self._family, self._identifier, number & _SEQUENCE_MASK, body)
        self._sent_s[number, attempt] = self._time()
        try:
            self._socket.sendmsg([packet], self._ancillary(target), 0, (target.address, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EINTR):  # these pass
                self._settle(number, "unreachable", detail=_refusal(error, target))

    def _ancillary(self, target: Target) -> list[tuple[int, int, bytes]]:
        """The source address, where one is asked for: in_pktinfo of ip(7), in6_pktinfo of ipv6(7)."""
        if not target.source:
            return []
        if self._family == 4:
            return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4x", 0, packed(target.source)))]
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16si", packed(target.source), 0))]

    # ---- in ------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take everything that waits."""
        raw_ipv4 = self._family == 4 and self._socket.type == socket.SOCK_RAW
        while True:
            try:
                data, sender = self._socket.recvfrom(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error that was pending; the packets behind it still count
            message = parse_icmp(data[(data[0] & 15) * 4 :] if raw_ipv4 else data)
            if message is not None:
                self._take(message, sender[0].partition("%")[0])

    def _take(self, message: IcmpMessage, sender: str) -> None:
        if message.type == ECHO_REPLY[self._family]:
            if found := self._which(message.body):
                number, attempt = found
                rtt_ms = (self._time() - self._sent_s[number, attempt]) * 1000
                self._settle(number, "reached", rtt_ms=round(rtt_ms, 3))
            return
        quoted = parse_quoted_echo(self._family, message.body)
        if quoted is None or quoted.identifier != self._identifier:
            return
        # A router may quote no more than the header, and there the sequence number is all that there is.
        found = self._which(quoted.body)
        number = found[0] if found else quoted.sequence
        if number < len(self._targets):
            offender = "" if _is_own(self._family, sender) else sender
            self._settle(number, "unreachable", detail=_words(self._family, message), offender=offender)

    def _which(self, body: bytes) -> tuple[int, int] | None:
        """Target and try that a body stands for, None when it is not ours."""
        if len(body) < _BODY.size:
            return None
        word, number, attempt = _BODY.unpack_from(body)
        return (number, attempt) if word == self._word and (number, attempt) in self._sent_s else None


def _refusal(error: OSError, target: Target) -> str:
    if error.errno == errno.EMSGSIZE:
        return f"{target.size_bytes} bytes are more than the MTU of the link that they leave by"
    if error.errno == errno.EPERM:
        return "a packet filter of this host forbids it"
    return os.strerror(error.errno or 0)


def _words(family: Family, message: IcmpMessage) -> str:
    text = icmp_text(family, message.type, message.code)
    mtu = quoted_mtu(family, message)
    return f"{text}: at most {mtu} bytes fit" if mtu else text


def _is_own(family: Family, address: str) -> bool:
    """Whether an address is one of this host."""
    with socket.socket(ADDRESS_FAMILY[family], socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True
