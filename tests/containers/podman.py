"""podman on a host, with its CNI back end and runc.

Theory of operation: podman takes CNI when ``netavark`` is not installed, and when it is told so. runc, since crun 1.8
refuses machines with both versions of control groups. The limits are lowered because podman otherwise asks for more
than the machine's own, which takes CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any

from tests.containers.hosts import Host, cgroup_parent
from tests.containers.images import IMAGE, PEER_URL_PATH
from tests.containers.plugins import BIN_DIRECTORY, NETWORK_NAME

CONFIG = f"""\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{BIN_DIRECTORY}"]
default_network = "{NETWORK_NAME}"
"""
WEB = ("httpd", "-f", "-p", "80", "-h", "/www")


class Podman:
    """The podman of one host; it has the image once ``load`` was called."""

    def __init__(self, host: Host) -> None:
        self.host = host
        (host.directory / "containers.conf").write_text(CONFIG)

    def load(self) -> None:
        """Give it the image."""
        self("load", "--quiet", "--input", self.host.underlay.image)

    def __call__(self, *words: object) -> str:
        """``podman ...``, which must succeed; its output without blanks at the ends."""
        return self.host.run("podman", *words).strip()

    def attempt(self, *words: object) -> subprocess.CompletedProcess[str]:
        """``podman ...``, however it ends."""
        return self.host.try_run("podman", *words)

    def run_words(self, name: str, *command: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The words after ``podman`` that start a container which stays; a web server unless told otherwise."""
        placed = (f"--cgroup-parent={cgroup_parent()}", "--name", name, "--stop-timeout=0")
        return ("run", "--detach", *placed, *options, IMAGE, *(command or WEB))

    def start(self, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container; its address."""
        self(*self.run_words(name, *command, options=options))
        return self.address(name)

    def once(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a command in a container of its own; its output."""
        return self("run", "--rm", f"--cgroup-parent={cgroup_parent()}", *options, IMAGE, *command)

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container."""
        ((told),) = json.loads(self("inspect", name))
        return dict(told)

    def network(self, name: str) -> dict[str, Any]:
        """What podman knows of a container's place in our network."""
        return dict(self.inspect(name)["NetworkSettings"]["Networks"][NETWORK_NAME])

    def address(self, name: str) -> str:
        """The address that podman says a container has."""
        return str(self.network(name)["IPAddress"])

    def netns(self, name: str) -> str:
        """What ``kernel.netns`` calls a container's namespace."""
        return self.host.netns(self.inspect(name)["NetworkSettings"]["SandboxKey"])

    def exec(self, name: str, *command: str) -> str:
        """Run a command inside a container; its output."""
        return self("exec", name, *command)

    def names(self) -> set[str]:
        """All containers, ended ones as well."""
        return set(self("ps", "--all", "--format", "{{.Names}}").split())

    def remove(self, *names: str) -> None:
        """Remove containers, whatever their state."""
        self("rm", "--force", "--time=0", *names)

    def remove_all(self) -> None:
        """Remove all containers."""
        if names := self.names():
            self.remove(*names)


def fetch(address: str, path: str = PEER_URL_PATH, port: int = 80, patience_s: int = 5) -> tuple[str, ...]:
    """The words by which a container asks a web server; Debian's busybox dies of wget's own limit, ``-T``."""
    place = f"[{address}]" if ":" in address else address
    return ("timeout", str(patience_s), "wget", "-q", "-O", "-", f"http://{place}:{port}{path}")


def fetch_each(addresses: Iterable[str], port: int = 80) -> tuple[str, ...]:
    """The words by which a container asks many web servers, one after the other, up to the first that fails."""
    return ("sh", "-ec", "; ".join(" ".join(fetch(address, port=port)) for address in addresses))


def seen_as(answer: str) -> str:
    """The address in a server's answer; IPv4 comes as IPv6 maps it (RFC 4291, 2.5.5.2), in brackets."""
    return answer.strip().strip("[]").removeprefix("::ffff:")


def all_seen_as(answers: str) -> list[str]:
    """The addresses in the answers to ``fetch_each``."""
    return [seen_as(line) for line in answers.splitlines()]
