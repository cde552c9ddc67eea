"""``muslin config``: what the agent's settings are, and which of flag, environment, file and default said so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import click
import msgspec

from muslin.cli.main import CONTEXT_SETTINGS, LazyGroup
from muslin.cli.output import draw_table, emit, output_option, say
from muslin.cli.settings_options import resolve_settings, settings_options, unsupported_environment
from muslin.errors import EXIT_OK, EXIT_WARNINGS
from muslin.model.secret import Secret
from muslin.settings import Origin, Value


class Row(msgspec.Struct, frozen=True):
    """One setting: ``where`` is the flag, the variable or the file, empty for a default."""

    name: str
    value: Any
    origin: Origin
    where: str


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``show -o json`` prints."""

    schema: Literal["muslin.config/v1"] = "muslin.config/v1"
    settings: tuple[Row, ...]
    ignored: tuple[str, ...]
    """flannel's variables that are set and mean nothing to Muslin."""


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    lazy={"show": ("muslin.cli.config:show", "Print each setting, its value, and where that came from.")},
)
def config() -> None:
    """The agent's settings, from flags, environment, a file and defaults, in this order of precedence."""


@config.command()
@output_option
@settings_options
def show(output: str, **given: Any) -> int:
    """Print each setting, its value, and where that came from.

    It takes the agent's own options, so what it shows for them is what the agent would do with them. Passwords are
    not shown. Exit code 4: a variable of flannel's is set that means nothing to Muslin.

    \b
    muslin config show
    FLANNELD_IP_MASQ=true muslin config show --config ./agent.yaml -o json
    """
    document = describe(resolve_settings(given), os.environ)
    emit(document, output, lambda: _draw(document))
    for name in document.ignored:
        say(f"warning: {name} is set and means nothing to Muslin")
    return EXIT_WARNINGS if document.ignored else EXIT_OK


def describe(values: Mapping[str, Value], environment: Mapping[str, str]) -> ConfigDocument:
    """The document, without secrets."""
    rows = (Row(name, _shown(value.value), value.origin, value.where) for name, value in values.items())
    return ConfigDocument(settings=tuple(rows), ignored=unsupported_environment(environment))


def _shown(value: Any) -> Any:
    return repr(value) if isinstance(value, Secret) and value else "" if isinstance(value, Secret) else value


def _draw(document: ConfigDocument) -> str:
    rows: list[tuple[str, ...]] = [
        (row.name, _as_text(row.value), f"{row.origin} {row.where}".strip()) for row in document.settings
    ]
    return draw_table(("SETTING", "VALUE", "FROM"), rows)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)
