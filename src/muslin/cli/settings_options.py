"""The settings as options of a verb, the file that holds them, and the store that they name.

Theory of operation: ``settings.SETTINGS`` is the table, and each setting an option without a default, so that what
was given can be told from what was not; ``resolve_settings`` puts flags, environment and file together. Click must
not look into the environment by itself: its own prefix makes ``MUSLIN_AGENT_STORE`` of ``muslin agent --store``,
which is our variable and would pass for a flag.

A setting that is true or false has two options, ``--x`` and ``--no-x``, as click makes one option either a switch or
something that takes a value, and ``--x=false`` is how flannel's users write it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from muslin.errors import UsageError
from muslin.settings import BY_NAME, FLANNEL_PREFIX, SETTINGS, Setting, Value, resolve

if TYPE_CHECKING:
    from muslin.store.base import Store

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_FILE = "/etc/muslin/agent.yaml"
FILE_VARIABLE = "MUSLIN_AGENT_CONFIG"
STORE_SETTINGS = tuple(name for name in BY_NAME if name.startswith(("store", "etcd-")))


# ---- options ---------------------------------------------------------------------------------------------


def settings_options(function: Function) -> Function:
    """``--config`` and an option for every setting; the verb gets them as keywords for ``resolve_settings``."""
    return _add_options(function, BY_NAME)


def store_options(function: Function) -> Function:
    """``--config`` and the options that say where the store is; all other settings come from elsewhere."""
    return _add_options(function, STORE_SETTINGS)


def _add_options(function: Function, names: Collection[str]) -> Function:
    options = [_file_option()]
    for setting in SETTINGS:
        if setting.name in names:
            options += _options_of(setting)
    for option in reversed(options):
        function = option(function)
    return function


def _file_option() -> Callable[[Function], Function]:
    return click.option(
        "--config",
        metavar="FILE",
        envvar=FILE_VARIABLE,
        allow_from_autoenv=False,
        help=f"YAML or JSON with the same names as keys.  [env: {FILE_VARIABLE}; default: {DEFAULT_FILE} if it exists]",
    )


def _options_of(setting: Setting) -> list[Callable[[Function], Function]]:
    common: dict[str, Any] = {"default": None, "allow_from_autoenv": False, "help": _help(setting)}
    match setting.kind:
        case "flag":
            negative = click.option(
                f"--no-{setting.name}", is_flag=True, default=None, allow_from_autoenv=False, help="The opposite."
            )
            switch = click.option(setting.flag, is_flag=False, flag_value="true", metavar="[true|false]", **common)
            return [switch, negative]
        case "list":
            return [click.option(setting.flag, multiple=True, metavar="TEXT", **common)]
        case "number":
            return [click.option(setting.flag, type=int, metavar="NUMBER", **common)]
        case _:
            kind = click.Choice(setting.choices) if setting.choices else str
            metavar = None if setting.choices else "TEXT"
            return [click.option(setting.flag, type=kind, metavar=metavar, **common)]


def _help(setting: Setting) -> str:
    return f"{setting.help}  [env: {', '.join(setting.environment)}{_default(setting)}]"


def _default(setting: Setting) -> str:
    if setting.kind == "secret" or setting.default in ("", ()):
        return ""
    shown = {"flag": str(setting.default).lower()}.get(setting.kind, setting.default)
    return f"; default: {', '.join(shown) if isinstance(shown, tuple) else shown}"


# ---- values ----------------------------------------------------------------------------------------------


def resolve_settings(given: Mapping[str, Any]) -> dict[str, Value]:
    """All settings, from the keywords that ``settings_options`` gave the verb; UsageError names what is wrong."""
    path, file = read_file(given.get("config"))
    return resolve(_flags(given), os.environ, file, path)


def _flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, by the settings' names."""
    flags: dict[str, Any] = {}
    for setting in SETTINGS:
        key = setting.name.replace("-", "_")
        value, is_negated = given.get(key), given.get(f"no_{key}")
        if value not in (None, ()) and is_negated:
            raise UsageError(f"{setting.flag} and --no-{setting.name} exclude each other", "give one of them")
        if is_negated:
            flags[setting.name] = False
        elif value not in (None, ()):
            flags[setting.name] = value
    return flags


def read_file(named: str | None) -> tuple[str, dict[str, Any]]:
    """Name and content of the configuration file, of the usual one if none is named; UsageError if it is no mapping."""
    path = named or DEFAULT_FILE
    try:
        text = Path(path).read_bytes()
    except PermissionError:
        raise
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError):
            return "", {}
        raise UsageError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    import msgspec

    decode = msgspec.json.decode if path.endswith(".json") else msgspec.yaml.decode
    try:
        return path, decode(text, type=dict[str, Any] | None) or {}
    except msgspec.MsgspecError as error:
        raise UsageError(f"the configuration file {path} is not a mapping of settings: {error}") from None


def unsupported_environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The variables of flannel's that are set and mean nothing to Muslin, by name."""
    known = {name for setting in SETTINGS for name in setting.environment}
    theirs = (name for name, value in environment.items() if name.startswith(FLANNEL_PREFIX) and value)
    return tuple(sorted(name for name in theirs if name not in known))


# ---- the store -------------------------------------------------------------------------------------------


def open_store(values: Mapping[str, Value]) -> Store:
    """A client of the store that the settings name; the directory of a store file is made, for its owner alone."""
    from muslin.store import load_store

    kind = values["store"].value
    make: Callable[..., Store] = load_store(kind)
    if kind == "sqlite":
        path = Path(values["store-path"].value)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return make(path)
    return make(_etcd_options(values)) if kind == "etcd" else make()


def _etcd_options(values: Mapping[str, Value]) -> Any:
    from muslin.model.secret import Secret
    from muslin.store.etcd_api.link import EtcdOptions, parse_endpoint

    endpoints = values["etcd-endpoints"].value
    try:
        for endpoint in endpoints:
            parse_endpoint(endpoint)
    except ValueError as error:
        raise UsageError(f"etcd-endpoints: {error}") from None
    return EtcdOptions(
        endpoints=endpoints,
        prefix=values["etcd-prefix"].value,
        ca_file=values["etcd-cafile"].value,
        cert_file=values["etcd-certfile"].value,
        key_file=values["etcd-keyfile"].value,
        username=values["etcd-username"].value,
        password=values["etcd-password"].value or Secret(""),
    )
