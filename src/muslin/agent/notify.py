"""Tell systemd how the agent is: sd_notify(3) by hand, 40 lines in place of a library.

Theory of operation: systemd names a datagram socket in NOTIFY_SOCKET and, where it watches the service, the time within
which it wants to hear WATCHDOG=1. Both variables are taken out of the environment, so that no child speaks for us.
Without them, and wherever sending fails, nothing happens: a service manager that is away must not stop a network.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping


class Notifier:
    """The connection to the service manager, if there is one."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        """Within how many seconds ``alive`` has to be called again; half of that is good practice. None: never."""
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._address = f"\0{address[1:]}" if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """As the service manager asks; it takes its variables out."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        watched = microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if watched else None)

    def ready(self, status: str = "") -> None:
        """The service is up; what depends on it may start."""
        self._send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows."""
        self._send(_status(text))

    def stopping(self, status: str = "") -> None:
        """The service is about to end."""
        self._send("STOPPING=1", *([_status(status)] if status else []))

    def alive(self) -> None:
        """The loop turns; the watchdog need not bite."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
