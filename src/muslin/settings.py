"""Every setting of the agent, declared once: its flag, environment names, file key, default and help.

Theory of operation: ``SETTINGS`` is the table. The command line makes options of it, the environment is asked for
``MUSLIN_AGENT_NAME`` and, where flannel has the setting too, for ``FLANNELD_NAME``; a configuration file has the
same names as keys. The order is flag, environment, file, default, and ``resolve`` says for each value where it came
from. Pure: the texts are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from muslin.errors import UsageError
from muslin.model.secret import Secret

Kind = Literal["text", "list", "flag", "number", "secret"]
Origin = Literal["flag", "environment", "file", "default"]

ENVIRONMENT_PREFIX = "MUSLIN_AGENT_"
FLANNEL_PREFIX = "FLANNELD_"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. ``flannel``: flanneld has it under the same name, so its environment variable works too."""

    name: str
    kind: Kind
    default: Any
    help: str
    flannel: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """``--subnet-file``."""
        return f"--{self.name}"

    @property
    def environment(self) -> tuple[str, ...]:
        """The environment variables, ours first."""
        word = self.name.upper().replace("-", "_")
        ours = f"{ENVIRONMENT_PREFIX}{word}"
        return (ours, f"{FLANNEL_PREFIX}{word}") if self.flannel else (ours,)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="store",
        kind="text",
        default="sqlite",
        choices=("sqlite", "etcd", "memory"),
        help="Where the nodes find each other: a file for one machine, etcd for many.",
    ),
    Setting(
        name="store-path", kind="text", default="/var/lib/muslin/store.sqlite", help="The file of the sqlite store."
    ),
    Setting(
        name="network-config",
        kind="text",
        default="",
        help="The network's configuration (flannel's JSON, or @FILE), written to the store if it has none.",
    ),
    Setting(name="etcd-endpoints", kind="text", default="http://127.0.0.1:2379", help="Comma-separated.", flannel=True),
    Setting(name="etcd-prefix", kind="text", default="/coreos.com/network", help="Key prefix.", flannel=True),
    Setting(name="etcd-cafile", kind="text", default="", help="Certificate authority of etcd.", flannel=True),
    Setting(name="etcd-certfile", kind="text", default="", help="Client certificate for etcd.", flannel=True),
    Setting(name="etcd-keyfile", kind="text", default="", help="Key of the client certificate.", flannel=True),
    Setting(name="etcd-username", kind="text", default="", help="User name for etcd.", flannel=True),
    Setting(
        name="etcd-password", kind="secret", default="", help="Password for etcd; prefer the environment.", flannel=True
    ),
    Setting(
        name="iface", kind="list", default=(), help="Interface (name or address) to reach other nodes by.", flannel=True
    ),
    Setting(name="iface-regex", kind="list", default=(), help="The first whose address or name matches.", flannel=True),
    Setting(
        name="iface-can-reach",
        kind="text",
        default="",
        help="The one that the route to this address leaves by.",
        flannel=True,
    ),
    Setting(name="public-ip", kind="text", default="", help="IPv4 address to tell to other nodes.", flannel=True),
    Setting(name="public-ipv6", kind="text", default="", help="IPv6 address to tell to other nodes.", flannel=True),
    Setting(
        name="subnet-file",
        kind="text",
        default="/run/flannel/subnet.env",
        help="Where CNI plugins read the subnet.",
        flannel=True,
    ),
    Setting(
        name="subnet-lease-renew-margin",
        kind="number",
        default=60,
        help="How long before its end a lease is renewed, in minutes.",
        flannel=True,
    ),
    Setting(
        name="ip-masq", kind="flag", default=False, help="Translate what containers send to the outside.", flannel=True
    ),
    Setting(
        name="iptables-forward-rules",
        kind="flag",
        default=True,
        help="Accept forwarded packets of the container network (by nftables; the name is flannel's).",
        flannel=True,
    ),
    Setting(name="healthz-ip", kind="text", default="127.0.0.1", help="Address of the health end point.", flannel=True),
    Setting(name="healthz-port", kind="number", default=0, help="Its TCP port, 0 for none.", flannel=True),
    Setting(name="node-name", kind="text", default="", help="How messages call this node, by default its host name."),
    Setting(
        name="bridge",
        kind="text",
        default="",
        help="A bridge for this node's containers, made and kept with the gateway's address; none unless named.",
    ),
    Setting(
        name="state-dir",
        kind="text",
        default="/var/lib/muslin",
        help="What outlives a reboot: last snapshot, saved settings.",
    ),
    Setting(name="run-dir", kind="text", default="/run/muslin-agent", help="The API's socket and the tunnel's log."),
    Setting(name="resync", kind="number", default=30, help="Seconds between looks at the kernel when nothing happens."),
    Setting(
        name="log-format", kind="text", default="text", choices=("text", "json"), help="Form of the log on stderr."
    ),
    Setting(
        name="log-level",
        kind="text",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="How much to log.",
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


class Value(msgspec.Struct, frozen=True):
    """A resolved setting and where it came from."""

    value: Any
    origin: Origin


def resolve(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any] | None = None
) -> dict[str, Value]:
    """Each setting's value by name; UsageError names the one that is wrong. ``flags`` holds what was given."""
    unknown = sorted(set(file or ()) - set(BY_NAME))
    if unknown:
        raise UsageError(
            f"the configuration file has an unknown setting {unknown[0]!r}", f"known: {', '.join(BY_NAME)}"
        )
    return {setting.name: _resolve_one(setting, flags, environment, file or {}) for setting in SETTINGS}


def _resolve_one(
    setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> Value:
    if setting.name in flags:
        return Value(_parse(setting, flags[setting.name], setting.flag), "flag")
    for name in setting.environment:
        if name in environment:
            return Value(_parse(setting, environment[name], name), "environment")
    if setting.name in file:
        return Value(_parse(setting, file[setting.name], f"the file's {setting.name}"), "file")
    return Value(setting.default, "default")


def _parse(setting: Setting, given: Any, where: str) -> Any:
    """The value that ``given`` stands for; UsageError names where it was found."""
    match setting.kind:
        case "list":
            parts = given.split(",") if isinstance(given, str) else given
            return tuple(str(part).strip() for part in parts if str(part).strip())
        case "flag":
            return _parse_flag(given, where)
        case "number":
            try:
                return int(given)
            except (TypeError, ValueError):
                raise UsageError(f"{where} is {given!r}, expected a whole number") from None
        case "secret":
            return Secret(given)
    if setting.choices and given not in setting.choices:
        raise UsageError(f"{where} is {given!r}, expected {' or '.join(setting.choices)}")
    return str(given)


def _parse_flag(given: Any, where: str) -> bool:
    if isinstance(given, bool):
        return given
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(given).lower() not in words:
        raise UsageError(f"{where} is {given!r}, expected true or false")
    return words[str(given).lower()]
