"""The door to /proc/sys/net of any namespace.

Theory of operation: which namespace /proc/sys/net shows is decided when its directory is opened, not when a file in
it is written (net/sysctl_net.c looks it up once). So the directories are opened once inside the namespace and used
from outside ever after; tests/assumptions/ holds the probe for this.
"""

from __future__ import annotations

import os

from muslin.kernel import netns as netns_door

ROOTS = ("net/ipv4", "net/ipv6", "net/core", "net/netfilter", "net/bridge")


class SysctlDirectory:
    """The settings of one namespace, by path below /proc/sys."""

    def __init__(self, netns: str) -> None:
        self.netns = netns
        self._roots: dict[str, int] = netns_door.call_in(netns, self._open_roots)

    @staticmethod
    def _open_roots() -> dict[str, int]:
        opened = {}
        for root in ROOTS:
            try:
                opened[root] = os.open(f"/proc/sys/{root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        return opened

    def close(self) -> None:
        """Let the directories go."""
        for fd in self._roots.values():
            os.close(fd)
        self._roots = {}

    def _open(self, name: str, flags: int) -> int:
        for root, fd in self._roots.items():
            if name.startswith(f"{root}/"):
                return os.open(name[len(root) + 1 :], flags | os.O_CLOEXEC, dir_fd=fd)
        raise FileNotFoundError(2, "no such setting in this namespace", f"/proc/sys/{name}")

    def read(self, name: str) -> str:
        """The value of a setting, without the final newline."""
        fd = self._open(name, os.O_RDONLY)
        try:
            return os.read(fd, 4096).decode().rstrip("\n")
        finally:
            os.close(fd)

    def write(self, name: str, value: str) -> None:
        """Set a setting; OSError with the kernel's errno when it refuses."""
        fd = self._open(name, os.O_WRONLY)
        try:
            os.write(fd, f"{value}\n".encode())
        finally:
            os.close(fd)
