"""``muslin uninstall``: this host as it was before the agent."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from muslin.cli.output import counted, emit, output_option, say
from muslin.cli.settings_options import open_store, resolve_settings, settings_options
from muslin.errors import EXIT_OK, MuslinError, UsageError

STOP_S = 15.0
"""How long an agent may take to give its lease back and end."""
LET_GO_S = 3.0
"""How long an agent that answers no more may take to end."""
POLL_S = 0.1


class UninstallDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``uninstall -o json`` prints."""

    schema: Literal["muslin.uninstall/v1"] = "muslin.uninstall/v1"
    dry_run: bool
    commands: tuple[str, ...]
    processes: tuple[int, ...]
    files: tuple[str, ...]
    lease: str = ""


@click.command()
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--stop", is_flag=True, help="End a running agent first.")
@click.option("--keep-lease", is_flag=True, help="Leave the lease in the store, for another agent of this host.")
@output_option
@settings_options
def uninstall(dry_run: bool, stop: bool, keep_lease: bool, output: str, **given: Any) -> int:
    """Remove all that an agent made on this host: devices, routes, packet filter, files; settings go back.

    So goes the plugin for container runtimes, if `muslin cni install` has written it. What carries no mark of Muslin's
    is left alone. The lease is given back in the store, unless it is to be kept (a flanneld that is started next takes
    it over). Run again, it finds nothing.
    """
    from muslin.agent.files import StateDirectory
    from muslin.cli.agent import require_privilege

    values = resolve_settings(given)
    require_privilege()
    directory, run_directory = StateDirectory(Path(values["state-dir"].value)), Path(values["run-dir"].value)
    if not dry_run:
        _end_agent(run_directory, stop, release=not keep_lease)
    with nullcontext() if dry_run else _hold():
        lease = _remove(directory, run_directory, output, dry_run)
        if lease is not None and not (dry_run or keep_lease):
            _give_back(values, lease)
    return EXIT_OK


def _remove(directory: Any, run_directory: Path, output: str, dry_run: bool) -> Any:
    """Say what there is and, unless it is a dry run, remove it; the lease that this host held last, if any."""
    from muslin.agent.tunnel import TunnelKeeper
    from muslin.agent.uninstall import Removal
    from muslin.cli.cni_files import find_ours, remove_files
    from muslin.kernel.linux import LinuxKernel

    with LinuxKernel() as kernel:
        removal = Removal(kernel, TunnelKeeper(run_directory), directory, run_directory)
        found = removal.find()
        plugin = find_ours((), (), directory.path)  # as `muslin cni install` has it in this state directory
        document = UninstallDocument(
            dry_run=dry_run,
            commands=tuple(op.describe() for op in found.ops),
            processes=(found.tunnel_pid,) if found.tunnel_pid else (),
            files=(*found.files, *(file.path for file in plugin)),
            lease=found.lease.name if found.lease else "",
        )
        emit(document, output, lambda: _draw(document))
        if not found and not plugin:
            say("there is nothing of Muslin's on this host")
        elif not dry_run:
            remove_files(plugin, directory.path)
            removal.remove()
            what = (counted(len(document.commands), "object"), counted(len(document.files), "file"))
            say(f"removed {' and '.join(what)}")
    return found.lease


def _draw(document: UninstallDocument) -> str:
    lines = [*document.commands, *(f"kill {pid}" for pid in document.processes)]
    return "\n".join([*lines, *(f"rm {path}" for path in document.files)])


def _end_agent(run_directory: Path, stop: bool, release: bool) -> None:
    """An agent that runs would make everything anew. One that gives its lease back takes away what it made."""
    from muslin.agent.service import SOCKET_NAME
    from muslin.agent_client import NoAgentError, fetch_status, post_stop, wait_until_gone

    path = str(run_directory / SOCKET_NAME)
    if not os.path.exists(path):
        return
    try:
        pid = fetch_status(path).pid
    except NoAgentError:
        return
    if not stop:
        raise UsageError(
            f"the agent runs (pid {pid}) and would make everything anew",
            "end it first (systemctl stop muslin-agent), or with this: muslin uninstall --stop",
        )
    post_stop(path, release=release)
    if not wait_until_gone(path, STOP_S):
        raise MuslinError(f"the agent (pid {pid}) did not end within {STOP_S:.0f} s", "end it, and try again")
    say("the agent gave its lease back, took away what it had made, and ended" if release else "the agent has ended")


def _hold() -> Any:
    """What keeps agents from starting meanwhile; UsageError while one runs that is not to be asked at our socket."""
    from muslin.agent.files import hold_namespace

    deadline = time.monotonic() + LET_GO_S
    while True:
        try:
            return hold_namespace()
        except UsageError as error:
            if time.monotonic() > deadline:
                raise UsageError(error.what, "end it first, or name its --run-dir and use --stop") from None
        time.sleep(POLL_S)


def _give_back(values: Any, lease: Any) -> None:
    """Remove the lease from the store; one that cannot be asked keeps it until its end."""
    import asyncio

    from muslin.store.base import LeaseLost, StoreUnavailable

    async def give_back() -> bool:
        store = open_store(values)
        try:
            snapshot = await store.snapshot(deadline_s=5.0)
            addresses = set(lease.advertisement.addresses)
            mine = (one for one in snapshot.leases if one.name == lease.name and one.expires_at is not None)
            held = next((one for one in mine if addresses & set(one.advertisement.addresses)), None)
            if held is not None:
                await store.delete(held)
            return held is not None
        finally:
            await store.close()

    try:
        if asyncio.run(give_back()):
            say(f"gave the lease {lease.name} back")
    except (StoreUnavailable, LeaseLost, MuslinError) as error:
        say(f"warning: the lease {lease.name} stays in the store until it ends: {error.what}")
