"""Calling a plugin as a runtime does: with libcni's client from Debian's packages, and bare, without any library.

Theory of operation: both run inside a host, so that a container's namespace, libcni's cache and the agent's socket are
where they are for podman. ``Attachment`` is what a call is about: a container that consists of a namespace alone. The
bare way speaks versions and verbs that Debian's libcni does not know (1.1.0, GC, STATUS).
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.containers.hosts import Host
from tests.containers.plugins import BIN_DIRECTORY, CONFLIST, NETWORK_NAME

GO_SOURCES = Path("/usr/share/gocode")
"""Where Debian's golang-*-dev packages put what GOPATH finds."""
CLIENT = Path(__file__).with_name("libcni_client") / "main.go"


class Attachment(msgspec.Struct, frozen=True):
    """One interface of one container."""

    container: str
    netns: str = ""
    """A path of the host's; empty when it is not known any more."""
    ifname: str = "eth0"


class Answer(msgspec.Struct, frozen=True):
    """How a plugin ended, and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        told = json.loads(self.stdout)
        assert isinstance(told, dict)
        return told

    def succeeded(self) -> Answer:
        """The same, which must be a success."""
        assert self.code == 0, self
        return self


def add_netns(host: Host, name: str) -> str:
    """A container's namespace; its path on the host."""
    host.run("ip", "netns", "add", name)
    return f"/run/netns/{name}"


def call(
    host: Host,
    command: str,
    conf: Mapping[str, Any],
    attachment: Attachment | None = None,
    variables: Mapping[str, str] | None = None,
) -> Answer:
    """Run the plugin that the configuration names, with nothing in its environment but what CNI says."""
    told = {"CNI_COMMAND": command, "CNI_PATH": BIN_DIRECTORY, **(variables or {})}
    if attachment is not None:
        told |= {"CNI_CONTAINERID": attachment.container, "CNI_IFNAME": attachment.ifname}
        told["CNI_NETNS"] = attachment.netns
    words = [f"{name}={value}" for name, value in told.items()]
    done = host.try_run(
        "env",
        "-i",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        *words,
        f"{BIN_DIRECTORY}/{conf['type']}",
        stdin=json.dumps(conf),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def conf_of(host: Host, version: str = "1.0.0", **keys: Any) -> dict[str, Any]:
    """What a runtime gives our plugin, or the one beside it: the conflist's first part, with version and name."""
    return {"cniVersion": version, "name": NETWORK_NAME, **host.plugin.conf(host), **keys}


@functools.cache
def find_go() -> str | None:
    """Debian's go, whose standard library is compiled, or any other."""
    return "/usr/bin/go" if os.access("/usr/bin/go", os.X_OK) else shutil.which("go")


def build_client(directory: Path) -> Path:
    """Compile the client against Debian's libcni."""
    go, program = find_go(), directory / "libcni-client"
    assert go is not None
    with tempfile.TemporaryDirectory() as cache:
        modes = {"GO111MODULE": "off", "GOPATH": str(GO_SOURCES), "CGO_ENABLED": "0", "GOCACHE": cache, "GOFLAGS": ""}
        words = [go, "build", "-o", str(program), str(CLIENT)]
        done = subprocess.run(words, env={**os.environ, **modes}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    return program


class LibcniClient:
    """libcni on one host, with the host's conflist or another one."""

    def __init__(self, program: Path, host: Host) -> None:
        self.program, self.host = program, host

    def __call__(
        self, verb: str, attachment: Attachment, conflist: str = CONFLIST, args: str = "", **capabilities: Any
    ) -> Answer:
        """``add``, ``check`` or ``del``; ``capabilities`` are a runtime's arguments, e.g. ``ips=["10.1.1.1"]``."""
        told = [f"CNI_PATH={BIN_DIRECTORY}", f"CNI_ARGS={args}"]
        if capabilities:
            told.append(f"CAP_ARGS={json.dumps(capabilities)}")
        words = (verb, conflist, attachment.container, attachment.netns, attachment.ifname)
        done = self.host.try_run("env", *told, self.program, *words)
        return Answer(done.returncode, done.stdout, done.stderr)
