"""``muslin network show``, and what the verbs that change something share with it: reading, naming, warning."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec

from muslin.cli.output import draw_table, emit, output_option, say
from muslin.cli.settings_options import open_store, resolve_settings, store_options
from muslin.errors import EXIT_OK, EXIT_WARNINGS, UsageError
from muslin.model.config import NetworkConfig
from muslin.model.lease import ClusterSnapshot, Lease
from muslin.settings import Value
from muslin.store.base import END_UNKNOWN, Store
from muslin.wire.flannel_config import encode_network_config, parse_network_config

Result = TypeVar("Result")

HINT_SET = """muslin network set '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'"""


class LeaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """One lease. ``expires_at`` is in seconds since the epoch; null for a reservation, and where nobody knows."""

    name: str
    subnets: tuple[str, ...]
    addresses: tuple[str, ...]
    backend: str
    data: dict[str, Any]
    data_v6: dict[str, Any]
    reservation: bool
    expires_at: float | None
    revision: int


class NetworkDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``show -o json`` prints. ``config`` has flannel's keys and every default; null if there is none to read."""

    schema: Literal["muslin.network/v1"] = "muslin.network/v1"
    store: str
    revision: int
    config: dict[str, Any] | None
    leases: tuple[LeaseRow, ...]
    unreadable: tuple[str, ...]
    warnings: tuple[str, ...]


@click.command()
@store_options
@output_option
def show(output: str, **given: Any) -> int:
    """Print the network's configuration and all leases.

    Of a lease in etcd only its own node knows the end. Exit code 4: something there is wrong or missing.
    """
    values = resolve_settings(given)
    document = describe(with_store(values, lambda store: store.snapshot()), store_name(values))
    emit(document, output, lambda: _draw(document))
    return warn(document.warnings)


def describe(snapshot: ClusterSnapshot, store: str) -> NetworkDocument:
    """A snapshot as a document."""
    config, warnings = read_config(snapshot.config)
    garbage = (f"the lease {name} holds garbage: nobody can be reached by it" for name in snapshot.unreadable)
    return NetworkDocument(
        store=store,
        revision=snapshot.revision,
        config=keys_of(config) if config else None,
        leases=tuple(row_of(lease) for lease in snapshot.leases),
        unreadable=snapshot.unreadable,
        warnings=(*warnings, *garbage),
    )


def row_of(lease: Lease) -> LeaseRow:
    """A lease as the documents show it."""
    said = lease.advertisement
    return LeaseRow(
        name=lease.name,
        subnets=lease.subnets,
        addresses=said.addresses,
        backend=said.backend,
        data=said.data,
        data_v6=said.data_v6,
        reservation=lease.expires_at is None,
        expires_at=None if lease.expires_at == END_UNKNOWN else lease.expires_at,
        revision=lease.revision,
    )


def _draw(document: NetworkDocument) -> str:
    facts = {"store": document.store} | {key: shown(value) for key, value in (document.config or {}).items()}
    width = max(len(key) for key in facts) + 2
    rows: list[tuple[str, ...]] = [
        (row.name, ", ".join(row.addresses), row.backend or "-", _end(row)) for row in document.leases
    ]
    rows += [(name, "-", "-", "unreadable") for name in document.unreadable]
    table = draw_table(("LEASE", "NODE", "BACKEND", "ENDS"), rows) or "no leases"
    return "\n".join([*(f"{key.ljust(width)}{text}" for key, text in facts.items()), "", table])


def _end(row: LeaseRow) -> str:
    if row.reservation:
        return "never: reserved"
    return "unknown" if row.expires_at is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(row.expires_at))


# ---- what the verbs share --------------------------------------------------------------------------------


def with_store(
    values: Mapping[str, Value], work: Callable[[Store], Awaitable[Result]], *, may_make: bool = False
) -> Result:
    """Do some work with the store of the settings. ``may_make``: a store file that is not there is made."""
    kind, path = values["store"].value, Path(values["store-path"].value)
    if kind == "memory":
        raise UsageError("the memory store lives within its agent, so nobody else can reach it", "use sqlite or etcd")
    if kind == "sqlite" and not may_make and not path.exists():
        raise UsageError(f"there is no store at {path}", f"name it with --store-path, or make it: {HINT_SET}")

    async def run() -> Result:
        store = open_store(values)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def store_name(values: Mapping[str, Value]) -> str:
    """Which store that is, in a few words."""
    if values["store"].value == "etcd":
        return f"etcd at {', '.join(values['etcd-endpoints'].value)}, below {values['etcd-prefix'].value}"
    return f"{values['store'].value} {values['store-path'].value}"


def read_config(text: bytes | None) -> tuple[NetworkConfig | None, tuple[str, ...]]:
    """The configuration, None if there is none to read, and what is to be said about it."""
    if text is None:
        return None, (f"the store has no configuration yet, so no node can lease a subnet: {HINT_SET}",)
    try:
        config = parse_network_config(text)
    except ValueError as error:
        return None, tuple(f"the network's configuration: {fault}" for fault in str(error).splitlines())
    return config, tuple(f"the configuration's key {key} means nothing and is ignored" for key in config.ignored)


def keys_of(config: NetworkConfig) -> dict[str, Any]:
    """A configuration by flannel's keys, every default spelt out."""
    return msgspec.json.decode(encode_network_config(config), type=dict[str, Any])


def shown(value: Any) -> str:
    """A value of a configuration: words as they are, all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def warn(warnings: Iterable[str]) -> int:
    """Say the warnings; the exit code that they make."""
    told = tuple(dict.fromkeys(warnings))
    for warning in told:
        say(f"warning: {warning}")
    return EXIT_WARNINGS if told else EXIT_OK
