"""Which CNI plugin the runtimes call: ours, or Debian's ``bridge`` with ``host-local``, to develop this harness with.

Theory of operation: everything else is the same for both, so what only ours can do shows as a difference. The variable
MUSLIN_TEST_CNI says ``muslin`` (the default) or ``bridge``. A conflist names the lowest version that libcni 1.1 knows
beside a list for newer runtimes, and ends with Debian's ``portmap``, as it does on real hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from tests.containers.hosts import Host

Test = TypeVar("Test", bound=Callable[..., object])

NETWORK_NAME = "podnet"
DEBIAN_DIRECTORY = Path("/usr/lib/cni")
BIN_DIRECTORY = "/opt/cni/bin"
CONFLIST = "/etc/cni/net.d/10-podnet.conflist"
SOCKET = "/run/muslin-agent/cni.sock"
NAME_VARIABLE = "MUSLIN_TEST_CNI"
DNS = {"nameservers": ["192.0.2.53"], "search": ["pods.example"]}
"""What the conflist says of name servers."""


class Plugin:
    """A plugin by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def is_ours(self) -> bool:
        """Whether it is the one of this project."""
        return self.name == "muslin"

    @property
    def binary(self) -> Path:
        """The program on this machine."""
        return Path(sys.executable).with_name("muslin-cni") if self.is_ours else DEBIAN_DIRECTORY / self.name

    def install(self, host: Host) -> None:
        """Put the plugins where a host's runtimes look."""
        directory = host.path(BIN_DIRECTORY)
        for program in DEBIAN_DIRECTORY.iterdir():
            (directory / program.name).symlink_to(program)
        if self.is_ours:
            shutil.copy2(self.binary, directory)

    def configure(self, host: Host) -> None:
        """Write the conflist of a host whose agent has a subnet."""
        host.path(CONFLIST).write_text(json.dumps(self.conflist(host), indent=1))

    def conflist(self, host: Host) -> dict[str, Any]:
        """The conflist of a host."""
        return {
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": NETWORK_NAME,
            "plugins": [
                self.conf(host),
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def conf(self, host: Host) -> dict[str, Any]:
        """The first plugin's own part."""
        if self.is_ours:
            return {"type": "muslin-cni", "socket": SOCKET, "mode": host.mode, "dns": DNS}
        return {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "mtu": int(host.subnet()["FLANNEL_MTU"]),
            "dns": DNS,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in host.networks()],
                "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in host.networks()],
            },
        }


def ours_only(function: Test) -> Test:
    """Mark a test of something that only our plugin does."""
    reason = "only the plugin of this project does this"
    return pytest.mark.skipif(not chosen().is_ours, reason=reason)(function)  # type: ignore[no-any-return]


def chosen() -> Plugin:
    """The plugin that this run tests."""
    name = os.environ.get(NAME_VARIABLE, "muslin")
    if name not in ("muslin", "bridge"):
        pytest.fail(f"{NAME_VARIABLE}={name}: it can be muslin or bridge", pytrace=False)
    return Plugin(name)
