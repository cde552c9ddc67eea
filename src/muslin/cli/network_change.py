"""``muslin network set``, ``reserve`` and ``release``: what an operator changes in the store.

Theory of operation: a verb reads one whole snapshot, decides, and writes one thing. What its decision rests on may
change between the two; then the store refuses, because a create wants a free name and a removal the lease that was
read. Only the configuration is written whatever it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from muslin.cli.network_show import LeaseRow, keys_of, read_config, row_of, shown, store_name, warn, with_store
from muslin.cli.output import draw_table, emit, output_option, say
from muslin.cli.settings_options import resolve_settings, store_options
from muslin.errors import EXIT_OK, UsageError
from muslin.lease.sight import lease_named, overlapping
from muslin.model.address import Family, family_of
from muslin.model.config import NetworkConfig
from muslin.model.lease import Advertisement, ClusterSnapshot, Lease
from muslin.store.base import Store
from muslin.wire.flannel_config import parse_network_config
from muslin.wire.flannel_lease import encode_value, parse_name

KEPT = "Muslin's agents keep to the configuration before, or wait where there was none"
HINT_SUBNET = "write 10.5.34.0/24, or 10.5.34.0/24,fd00:5:34::/64 in a network of both families"


# ---- set -------------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True):
    """A key of the configuration whose value is another one now; null where it was not there."""

    key: str
    old: Any
    new: Any


class SetDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``set -o json`` prints."""

    schema: Literal["muslin.network-set/v1"] = "muslin.network-set/v1"
    store: str
    written: bool
    """False if the very same text was there."""
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


@click.command("set")
@click.argument("source", metavar="FILE|JSON|-")
@store_options
@output_option
def set_(source: str, output: str, **given: Any) -> int:
    """Write the network's configuration: flannel's JSON, from a file, from the command line, or from stdin.

    It is checked first, and every fault told. Nodes take a new configuration up by themselves, and those whose
    leases do not fit it move to other subnets. Exit code 4: written, with warnings.

    \b
    muslin network set '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
    """
    values = resolve_settings(given)
    text = _read_source(source)
    try:
        config = parse_network_config(text)
    except ValueError as error:
        raise UsageError("this is no configuration for a network", "\n  ".join(str(error).splitlines())) from None

    async def write(store: Store) -> ClusterSnapshot:
        before = await store.snapshot()
        if before.config != text:
            await store.write_config(text)
        return before

    before = with_store(values, write, may_make=True)
    document = SetDocument(
        store=store_name(values),
        written=before.config != text,
        changes=tuple(_changes(before.config, config)),
        warnings=(*_doubts(config, text), *_misfits(before, config)),
    )
    emit(document, output, lambda: _draw(document.changes))
    say(f"{'written to' if document.written else 'nothing to do, it stands already in'} {document.store}")
    return warn(document.warnings)


def _read_source(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    if source.lstrip().startswith("{"):
        return source.encode()
    try:
        return Path(source).read_bytes()
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(
            f"the configuration {source} cannot be read: {error.strerror}", "give a file, JSON in quotes, or -"
        ) from None


def _changes(before: bytes | None, config: NetworkConfig) -> Iterator[Change]:
    known, _ = read_config(before)
    old, new = keys_of(known) if known else {}, keys_of(config)
    for key in dict.fromkeys((*new, *old)):
        if old.get(key) != new.get(key):
            yield Change(key, old.get(key), new.get(key))


def _draw(changes: tuple[Change, ...]) -> str:
    rows: list[tuple[str, ...]] = [(change.key, _text(change.old), _text(change.new)) for change in changes]
    return draw_table(("KEY", "WAS", "IS"), rows)


def _text(value: Any) -> str:
    return "-" if value is None else shown(value)


def _doubts(config: NetworkConfig, text: bytes) -> Iterator[str]:
    """What is no fault of the configuration, but will not do what it seems to say."""
    from muslin.backends import BACKENDS

    yield from read_config(text)[1]
    if config.backend not in BACKENDS:
        yield f"Muslin has no backend {config.backend!r}, only {', '.join(BACKENDS)}: {KEPT}"
        return
    try:
        ignored = BACKENDS[config.backend].parse_options(config.backend_options).ignored
    except ValueError as error:
        yield from (f"{fault}: {KEPT}" for fault in str(error).splitlines())
    else:
        yield from (f"the backend's option {name} means nothing and is ignored" for name in ignored)


def _misfits(snapshot: ClusterSnapshot, config: NetworkConfig) -> Iterator[str]:
    for lease in snapshot.leases:
        if not config.accepts(lease.subnets):
            kind, end = ("reservation", "stays unused") if lease.expires_at is None else ("lease", "is given up")
            yield f"the {kind} {lease.name} of {_who(lease)} does not fit the network and {end}"


def _who(lease: Lease) -> str:
    return " and ".join(lease.advertisement.addresses)


# ---- reserve ---------------------------------------------------------------------------------------------


class ReserveDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``reserve -o json`` prints."""

    schema: Literal["muslin.network-reserve/v1"] = "muslin.network-reserve/v1"
    store: str
    lease: LeaseRow
    warnings: tuple[str, ...]


@click.command()
@click.argument("subnet", metavar="SUBNET[,SUBNET6]")
@click.option("--public-ip", metavar="IP", help="IPv4 address that the node is reached at, as its agent tells it.")
@click.option("--public-ipv6", metavar="IP", help="The same for IPv6; one of the two is needed.")
@store_options
@output_option
def reserve(subnet: str, public_ip: str | None, public_ipv6: str | None, output: str, **given: Any) -> int:
    """Keep a subnet for the node with this address, without an end.

    The node's agent takes it when it next looks for a lease, and no other node is given it.

    \b
    muslin network reserve 10.5.34.0/24 --public-ip 192.0.2.7
    """
    values = resolve_settings(given)
    given_addresses: dict[Family, str | None] = {4: public_ip, 6: public_ipv6}
    addresses = tuple(_address(text, family) for family, text in given_addresses.items() if text)
    if not addresses:
        raise UsageError("a reservation is for a node: by which address is it reached?", "give --public-ip IP")
    subnets = _subnets(subnet)

    async def write(store: Store) -> tuple[Lease, tuple[str, ...]]:
        snapshot = await store.snapshot()
        config, warnings = read_config(snapshot.config)
        _refuse(subnets, snapshot, config)
        said = Advertisement(addresses=addresses, backend=config.backend if config else "")
        reserved = await store.reserve(Lease(subnets=subnets, advertisement=said))
        return reserved, (*warnings, *_held_instead(snapshot, reserved))

    lease, warnings = with_store(values, write, may_make=True)
    document = ReserveDocument(store=store_name(values), lease=row_of(lease), warnings=warnings)
    emit(document, output, lambda: "")
    say(f"reserved {lease.name} for {_who(lease)}")
    return warn(warnings)


def _address(text: str, family: Family) -> str:
    option = "--public-ip" if family == 4 else "--public-ipv6"
    try:
        encode_value(Advertisement(addresses=(text,), backend=""))
        is_right = family_of(text) == family
    except ValueError:
        is_right = False
    if not is_right:
        raise UsageError(f"{option} is {text!r}, expected an IPv{family} address")
    return text


def _subnets(text: str) -> tuple[str, ...]:
    try:
        return parse_name(_name(text))
    except ValueError as error:
        raise UsageError(f"{text!r} is not what a lease is for: {error}", HINT_SUBNET) from None


def _name(text: str) -> str:
    """The name of a lease, also of one that is called by its subnets."""
    return text.replace("/", "-").replace(",", "&")


def _refuse(subnets: tuple[str, ...], snapshot: ClusterSnapshot, config: NetworkConfig | None) -> None:
    """UsageError for a reservation that nobody could use."""
    for other in overlapping(snapshot, subnets):
        kind = "is reserved for" if other.expires_at is None else "is leased by"
        raise UsageError(f"{other.name} {kind} {_who(other)}", f"muslin network release '{other.name}'")
    if config is not None and not config.accepts(subnets):
        pools = " and ".join(
            f"{pool.network}, subnets of length {pool.subnet_length} from {pool.subnet_min} to {pool.subnet_max}"
            for pool in config.pools
        )
        raise UsageError(f"{', '.join(subnets)} cannot be leased in this network", f"it is {pools}, one of each")


def _held_instead(snapshot: ClusterSnapshot, reserved: Lease) -> Iterator[str]:
    for lease in snapshot.leases:
        if not set(reserved.advertisement.addresses).isdisjoint(lease.advertisement.addresses):
            yield f"the node has {lease.name} now, and keeps that until its agent starts anew"


# ---- release ---------------------------------------------------------------------------------------------


class ReleaseDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``release -o json`` prints."""

    schema: Literal["muslin.network-release/v1"] = "muslin.network-release/v1"
    store: str
    lease: LeaseRow


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@store_options
@output_option
def release(name: str, yes: bool, output: str, **given: Any) -> int:
    """Remove a lease or a reservation, called by its name or by its subnets.

    An agent that is alive takes its subnet again; this is for nodes that are gone for good, and for reservations.

    \b
    muslin network release 10.5.34.0-24
    """
    values = resolve_settings(given)
    lease = _find(with_store(values, lambda store: store.snapshot()), name)
    kind = "reservation" if lease.expires_at is None else "lease"
    if not yes:
        click.confirm(f"Remove the {kind} {lease.name} of {_who(lease)}?", abort=True, err=True)
    with_store(values, lambda store: store.delete(lease))
    emit(ReleaseDocument(store=store_name(values), lease=row_of(lease)), output, lambda: "")
    say(f"removed the {kind} {lease.name} of {_who(lease)}")
    return EXIT_OK


def _find(snapshot: ClusterSnapshot, name: str) -> Lease:
    found = lease_named(snapshot, _name(name))
    if found is not None:
        return found
    if _name(name) in snapshot.unreadable:
        raise UsageError(
            f"the lease {_name(name)} holds garbage, which Muslin neither reads nor removes",
            "remove it with the store's own tools (in etcd: etcdctl del PREFIX/subnets/NAME)",
        )
    names = [lease.name for lease in snapshot.leases]
    hint = f"there are: {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}" if names else "there is none"
    raise UsageError(f"there is no lease {_name(name)}", hint)
