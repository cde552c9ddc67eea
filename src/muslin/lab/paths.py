"""Where a lab keeps what it must remember.

Theory of operation: below /run/muslin for root, below ``$XDG_RUNTIME_DIR/muslin`` for anybody else: both vanish with
a reboot, as the network does. Where there is no such directory, ``$XDG_STATE_HOME`` (~/.local/state) serves, and the
boot id in the state file tells that the network is gone. Never the working directory, never /tmp.
"""

from __future__ import annotations

import os
import re
from functools import cache

from muslin.errors import UsageError

DEFAULT_LAB = "lab"
_LAB_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")
CAP_NET_ADMIN = 12  # uapi/linux/capability.h
CAP_SYS_ADMIN = 21


def check_lab_name(name: str) -> str:
    """``name``, or UsageError when it cannot be part of a namespace's name."""
    if not _LAB_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a lab",
            "use up to 32 lower-case letters, digits and hyphens, beginning and ending with a letter or digit",
        )
    return name


@cache
def is_privileged() -> bool:
    """Whether namespaces can be made right here: CAP_SYS_ADMIN, CAP_NET_ADMIN and a writable /run.

    Asked once: a process that has entered a rootless lab looks privileged, but its files are where they were.
    """
    needed = 1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN
    return effective_capabilities() & needed == needed and os.access("/run", os.W_OK)


def effective_capabilities() -> int:
    """The effective capability set of this process as a bit mask (proc(5))."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def runtime_directory() -> str:
    """The directory that holds one directory a lab."""
    if override := os.environ.get("MUSLIN_RUNTIME_DIR"):
        return override
    return _default_runtime_directory()


@cache
def _default_runtime_directory() -> str:
    if is_privileged():
        return "/run/muslin"
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}"):
        if candidate and os.path.isdir(candidate) and os.access(candidate, os.W_OK):
            return f"{candidate}/muslin"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/muslin"
