"""The network configuration by which a runtime calls the plugin: making one, and knowing one of ours again.

Theory of operation: it is a list of plugins (``conflist``), the first of which is ours. One is ours if its first plugin
is, and its file has the name that we give it; so a file that somebody has copied and made his own stays his.
``cniVersion`` is the oldest version that is offered, as runtimes before CNI 1.1 read nothing else; newer ones take the
highest of ``cniVersions`` that they know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from muslin.errors import UsageError
from muslin.wire.cni_call import WORD
from muslin.wire.cni_error import VERSIONS

PLUGIN = "muslin-cni"
_PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


class NetworkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants; ``socket`` is where the agent takes calls."""

    name: str
    socket: str
    mode: str = "bridge"
    portmap: bool = False
    hairpin: bool = False
    cni_version: str = "1.0.0"


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """Of one plugin in a list, what it is."""

    type: str = ""


class NetworkList(msgspec.Struct, frozen=True, kw_only=True):
    """Of anybody's network configuration, what we look at."""

    name: str = ""
    type: str = ""
    plugins: tuple[Plugin, ...] = ()


def build_network(options: NetworkOptions) -> dict[str, Any]:
    """The configuration; UsageError when a runtime would refuse its name."""
    if not WORD.fullmatch(options.name):
        raise UsageError(
            f"{options.name!r} cannot be the name of a network",
            "expected letters, digits, '_', '.' and '-', the first one a letter or a digit",
        )
    ours: dict[str, Any] = {"type": PLUGIN, "socket": options.socket, "mode": options.mode}
    ours |= {"hairpinMode": True} if options.hairpin else {}
    ours["capabilities"] = {"ips": True, "mac": True, "dns": True}
    return {
        "cniVersion": options.cni_version,
        "cniVersions": list(VERSIONS[VERSIONS.index(options.cni_version) :]),
        "name": options.name,
        "plugins": [ours, *([_PORTMAP] if options.portmap else [])],
    }


def status_request(network: dict[str, Any]) -> dict[str, object]:
    """What a runtime gives our plugin with STATUS, which came with the newest version."""
    return {"cniVersion": VERSIONS[-1], "name": network["name"], **network["plugins"][0]}


def encode_network(network: dict[str, Any]) -> bytes:
    """As it stands in the file."""
    return msgspec.json.format(msgspec.json.encode(network), indent=2) + b"\n"


def file_name(name: str) -> str:
    """The file of a network of ours; runtimes that want one network take the first file by name."""
    return f"10-{name}.conflist"


def parse_network(text: bytes) -> NetworkList | None:
    """Anybody's; None for what is none."""
    try:
        return msgspec.json.decode(text, type=NetworkList)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_ours(name: str, text: bytes) -> bool:
    """Whether a file of this name and content is one that we have written."""
    found = parse_network(text)
    return bool(found and found.plugins[:1] == (Plugin(type=PLUGIN),) and name == file_name(found.name))
