"""The door to nftables' trace of one packet in one namespace: a table of ours that marks it, and what is said then.

Theory of operation: the table is made by an ``nft`` that stays (``nft -i``, fed by a pipe), since a table with
``flags owner`` lives as long as the socket that made it: when the pipe is closed, also by our death, nft ends and the
kernel removes the table. What the kernel says of marked packets comes by a multicast group, to a socket that was opened
before. Neither needs more than the rights over the namespace that other tables need.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time

from muslin.kernel import netns as netns_door
from muslin.kernel.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_NETFILTER, SOL_NETLINK, open_socket
from muslin.kernel.nft_sets import has_table
from muslin.kernel.sessions import Session
from muslin.wire import netlink as wire
from muslin.wire.nft_trace import Decision, parse_decision

NFNLGRP_NFTRACE = 9  # uapi/linux/netfilter/nfnetlink.h
RECEIVE_BYTES = 1 << 16
READY_S = 5.0
POLL_S = 0.001
FAMILY = "inet"


class NftTrace:
    """Traces of one namespace until ``close``. OSError, with nft's words, where the table cannot be made."""

    def __init__(self, session: Session, table: str, text: str) -> None:
        self._socket = open_socket(session.netns, NETLINK_NETFILTER)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
        self._socket.setblocking(False)
        self._nft: subprocess.Popen[bytes] | None = None
        try:
            self._nft = netns_door.call_in(session.netns, _start_nft)
            self._make(session, table, text)
        except BaseException:
            self.close()
            raise

    def _make(self, session: Session, table: str, text: str) -> None:
        nft = self._nft
        assert nft is not None
        assert nft.stdin is not None
        assert nft.stdout is not None
        nft.stdin.write(f"{text}\n".encode())
        nft.stdin.flush()
        os.set_blocking(nft.stdout.fileno(), False)
        words, deadline = b"", time.monotonic() + READY_S
        while not has_table(session, FAMILY, table):
            words += nft.stdout.read() or b""
            if nft.poll() is not None or b"Error" in words or time.monotonic() > deadline:
                told = words.decode(errors="replace").partition("\n")[0] or "it said nothing"
                raise OSError(errno.EIO, f"nft made no table to trace with: {told}", session.netns)
            time.sleep(POLL_S)

    def read(self) -> list[Decision]:
        """The rules and policies that have ended marked packets since."""
        found: list[Decision] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                for message in wire.iter_messages(self._socket.recv(RECEIVE_BYTES)):
                    if decision := parse_decision(message):
                        found.append(decision)
        return found

    def close(self) -> None:
        """Have nft end, and with it the table."""
        if self._nft is not None:
            assert self._nft.stdin is not None
            assert self._nft.stdout is not None
            self._nft.stdin.close()
            self._nft.wait()
            self._nft.stdout.close()
        self._socket.close()


def _start_nft() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/"
    )
