"""Every setting of the agent, declared once: its flag, environment names, file key, default and help.

Theory of operation: ``SETTINGS`` is the table. The command line makes options of it, the environment is asked for
``MUSLIN_AGENT_NAME`` and, where flannel has the setting too, for ``FLANNELD_NAME``; a configuration file has the
same names as keys. The order is flag, environment, file, default, and ``resolve`` says for each value where it came
from. As for flannel, an empty variable is as good as none. A wrong value is a UsageError that names the place where
it stands. Pure: the texts are handed in.

Of flanneld's options those are here that mean the same (flannel's main.go, 0.28); of its defaults two differ:
``etcd-endpoints`` has not its old port 4001, and ``healthz-ip`` is loopback.
"""

from __future__ import annotations

import difflib
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
    minimum: int | None = None
    maximum: int | None = None
    separator: str = ","
    """What parts a list that stands in one text; empty where a part may hold any character."""

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
    Setting(
        name="etcd-endpoints",
        kind="list",
        default=("http://127.0.0.1:2379",),
        help="URLs of etcd's members, comma-separated.",
        flannel=True,
    ),
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
    Setting(
        name="iface-regex",
        kind="list",
        default=(),
        help="The first interface whose address or name matches this regular expression.",
        flannel=True,
        separator="",
    ),
    Setting(
        name="iface-can-reach",
        kind="text",
        default="",
        help="The interface that the route to this address leaves by.",
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
        minimum=1,
        maximum=1439,
    ),
    Setting(
        name="lease-ttl",
        kind="number",
        default=86400,
        help="How long a lease lasts without renewal, in seconds (flannel's is always a day).",
        minimum=2,
    ),
    Setting(
        name="lease-renew-margin",
        kind="number",
        default=0,
        help="As subnet-lease-renew-margin, which it overrides, in seconds; 0 leaves it to that.",
        minimum=0,
    ),
    Setting(
        name="ip-masq", kind="flag", default=False, help="Translate what containers send to the outside.", flannel=True
    ),
    Setting(
        name="ip-masq-fully-random-disable",
        kind="flag",
        default=False,
        help="Let the kernel keep source ports where it can when it translates, in place of random ones.",
        flannel=True,
    ),
    Setting(
        name="iptables-forward-rules",
        kind="flag",
        default=True,
        help="Accept forwarded packets of the container network (by nftables; the name is flannel's).",
        flannel=True,
    ),
    Setting(name="healthz-ip", kind="text", default="127.0.0.1", help="Address of the health end point.", flannel=True),
    Setting(
        name="healthz-port",
        kind="number",
        default=0,
        help="TCP port of the health end point, 0 for none.",
        flannel=True,
        minimum=0,
        maximum=65535,
    ),
    Setting(name="node-name", kind="text", default="", help="How messages call this node, by default its host name."),
    Setting(
        name="bridge",
        kind="text",
        default="",
        help="A bridge for this node's containers, made and kept with the gateway's address; none unless named.",
    ),
    Setting(
        name="cni",
        kind="flag",
        default=True,
        help="Serve container runtimes: connect and address the containers that the plugin muslin-cni asks for.",
    ),
    Setting(
        name="vtep-mac",
        kind="text",
        default="",
        help="MAC of the vxlan device; by default the one that it had, or a random one. To take flannel's over.",
    ),
    Setting(
        name="state-dir",
        kind="text",
        default="/var/lib/muslin",
        help="What outlives a reboot: last snapshot, saved settings.",
    ),
    Setting(
        name="tunnel",
        kind="text",
        default="c",
        choices=("c", "python"),
        help="The program of the backend udp: in C, where it was built, or in Python, which is slower.",
    ),
    Setting(name="run-dir", kind="text", default="/run/muslin-agent", help="The API's socket and the tunnel's log."),
    Setting(
        name="resync",
        kind="number",
        default=30,
        help="Seconds between looks at the kernel when nothing happens.",
        minimum=1,
    ),
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
    """A resolved setting and where it came from: ``where`` is the flag, the variable or the file."""

    value: Any
    origin: Origin
    where: str = ""


class _Given(msgspec.Struct, frozen=True):
    """Something that somebody wrote, and how to call the place."""

    value: Any
    origin: Origin
    where: str
    title: str


def resolve(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Mapping[str, Any] | None = None,
    file_name: str = "the configuration file",
) -> dict[str, Value]:
    """Each setting's value by name; UsageError names the one that is wrong. ``flags`` holds what was given."""
    for key in file or ():
        if key not in BY_NAME:
            near = difflib.get_close_matches(key, BY_NAME, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BY_NAME)}"
            raise UsageError(f"{file_name} has an unknown setting {key!r}", hint)
    values: dict[str, Value] = {}
    titles: dict[str, str] = {}
    for setting in SETTINGS:
        given = _find(setting, flags, environment, file or {}, file_name)
        titles[setting.name] = given.title if given else setting.name
        if given is None:
            values[setting.name] = Value(setting.default, "default")
        else:
            values[setting.name] = Value(_parse(setting, given.value, given.title), given.origin, given.where)
    _check(values, titles)
    return values


def renew_margin_s(values: Mapping[str, Value]) -> float:
    """How long before its end a lease is renewed, in seconds."""
    return float(values["lease-renew-margin"].value or 60 * values["subnet-lease-renew-margin"].value)


def _find(
    setting: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Mapping[str, Any],
    file_name: str,
) -> _Given | None:
    if setting.name in flags:
        return _Given(flags[setting.name], "flag", setting.flag, setting.flag)
    for name in setting.environment:
        if environment.get(name):
            return _Given(environment[name], "environment", name, name)
    if setting.name in file:
        return _Given(file[setting.name], "file", file_name, f"{file_name}: {setting.name}")
    return None


def _parse(setting: Setting, given: Any, title: str) -> Any:
    """The value that ``given`` stands for; UsageError says where it was found."""
    match setting.kind:
        case "list":
            return _parse_list(setting, given, title)
        case "flag":
            return _parse_flag(given, title)
        case "number":
            return _parse_number(given, title)
        case "secret":
            return Secret(str(given))
        case _:
            return _parse_text(given, title)


def _parse_text(given: Any, title: str) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise UsageError(f"{title} is {given!r}, expected a text")
    return str(given)


def _parse_list(setting: Setting, given: Any, title: str) -> tuple[str, ...]:
    texts = [_parse_text(part, title) for part in (given if isinstance(given, list | tuple) else (given,))]
    parts = (part for text in texts for part in (text.split(setting.separator) if setting.separator else (text,)))
    return tuple(part.strip() for part in parts if part.strip())


def _parse_flag(given: Any, title: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(given).lower() not in words:
        raise UsageError(f"{title} is {given!r}, expected true or false")
    return words[str(given).lower()]


def _parse_number(given: Any, title: str) -> int:
    try:
        return int(str(given))
    except ValueError:
        raise UsageError(f"{title} is {given!r}, expected a whole number") from None


def _check(values: Mapping[str, Value], titles: Mapping[str, str]) -> None:
    """Whether each value is one that its setting may have, and whether they agree; UsageError names the first fault.

    Whoever gives only a short TTL is told so rather than given a margin that he has not chosen.
    """
    for setting in SETTINGS:
        value, title = values[setting.name].value, titles[setting.name]
        if setting.choices and value not in setting.choices:
            raise UsageError(f"{title} is {value!r}, expected {' or '.join(setting.choices)}")
        low, high = setting.minimum, setting.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            expected = f"a number from {low} to {high}" if high is not None else f"a number not below {low}"
            raise UsageError(f"{title} is {value}, expected {expected}")
    if not values["etcd-endpoints"].value:
        raise UsageError(f"{titles['etcd-endpoints']} names no endpoint, expected URLs such as http://127.0.0.1:2379")
    margin_s, ttl_s = renew_margin_s(values), values["lease-ttl"].value
    if margin_s >= ttl_s:
        name = "lease-renew-margin" if values["lease-renew-margin"].value else "subnet-lease-renew-margin"
        raise UsageError(
            f"{titles[name]} is {margin_s:g} s, expected less than {titles['lease-ttl']}, {ttl_s} s",
            f"set lease-renew-margin, in seconds; {max(ttl_s // 3, 1)} would do",
        )
