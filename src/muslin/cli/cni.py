"""``muslin cni``: make this host's container runtimes use the agent's network, and have them do so no more.

Theory of operation: a runtime connects a container as soon as it finds a network configuration, and fails it when that
does not work. So nothing is written before the agent is ready to take containers: it says that it is ready and has the
bridge that is asked for, and the plugin itself gets a good answer to STATUS, over the very socket that the
configuration names. Then come the files (``cni_files``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from muslin.cli.cni_files import (
    CniFile,
    Target,
    earlier_network,
    find_ours,
    judge,
    refuse_same_network,
    remove_files,
    write_files,
)
from muslin.cli.cni_network import (
    NetworkOptions,
    build_network,
    encode_network,
    file_name,
    status_request,
)
from muslin.cli.cni_places import Places, find_places
from muslin.cli.cni_program import NAME, ask_plugin_status, find_program
from muslin.cli.main import CONTEXT_SETTINGS, LazyGroup
from muslin.cli.output import counted, emit, output_option, say
from muslin.cli.settings_options import resolve_settings
from muslin.errors import EXIT_OK, MuslinError, UsageError
from muslin.wire.cni import MODES
from muslin.wire.cni_error import VERSIONS

ROOT = Path("/")
"""Below which runtimes have their files."""
PORTMAP = "portmap"
POLL_S = 0.25


class InstallDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``install -o json`` prints."""

    schema: Literal["muslin.cni-install/v1"] = "muslin.cni-install/v1"
    dry_run: bool
    network: dict[str, Any]
    """The network configuration."""
    files: tuple[CniFile, ...]


class UninstallDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``uninstall -o json`` prints."""

    schema: Literal["muslin.cni-uninstall/v1"] = "muslin.cni-uninstall/v1"
    dry_run: bool
    files: tuple[CniFile, ...]


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    lazy={
        "install": ("muslin.cli.cni:install", "Have container runtimes connect containers through the agent."),
        "show": ("muslin.cli.cni_show:show", "List the containers that are connected."),
        "uninstall": ("muslin.cli.cni:uninstall", "Take away what install has written."),
    },
)
def cni() -> None:
    """The plugin by which container runtimes (podman, containerd, CRI-O) use the agent's network."""


def _directory_options(function: Callable[..., Any]) -> Callable[..., Any]:
    directory = click.Path(file_okay=False)
    bins = click.option(
        "--bin-dir", "bin_dirs", multiple=True, type=directory, metavar="DIR",
        help="Where runtimes look for plugins; may be repeated.  [default: by their settings, or /opt/cni/bin]",
    )  # fmt: skip
    confs = click.option(
        "--conf-dir", "conf_dirs", multiple=True, type=directory, metavar="DIR",
        help="Where they look for networks; may be repeated.  [default: by their settings, and /etc/cni/net.d]",
    )  # fmt: skip
    return bins(confs(function))


@click.command()
@_directory_options
@click.option("--name", default="muslin", show_default=True, metavar="NAME", help="The network's name for runtimes.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default=MODES[0],
    show_default=True,
    help="Ports of the agent's bridge, or a route to each container.",
)
@click.option("--socket", metavar="PATH", help="Where the agent takes calls.  [default: cni.sock in its --run-dir]")
@click.option(
    "--portmap/--no-portmap", default=None, help="Publish ports by the plugin portmap (default: if it is beside ours)."
)
@click.option("--hairpin", is_flag=True, help="Let containers reach themselves by a published port.")
@click.option(
    "--cni-version",
    type=click.Choice(VERSIONS),
    default="1.0.0",
    show_default=True,
    help="The oldest version to offer; newer ones are offered beside it.",
)
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0), default=0.0, metavar="S", help="Wait so long for the agent."
)
@click.option("--without-agent", is_flag=True, help="Write without asking the agent, which may not be there yet.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be written.")
@click.option("--print", "only_print", is_flag=True, help="Only print the network configuration.")
@output_option
def install(only_print: bool, output: str, **given: Any) -> int:
    """Have this host's container runtimes connect containers through the agent.

    Writes the plugin muslin-cni and a network configuration where the runtimes look for them, once the agent is ready.
    What is there and not of Muslin's is never overwritten. Run again, it writes what has changed.

    \b
    muslin cni install --wait 60
    muslin cni install --mode routed --bin-dir /usr/lib/cni --conf-dir /etc/cni/net.d
    """
    job = _Job(given)
    if only_print:
        click.echo(encode_network(job.network), nl=False)
        return EXIT_OK
    targets = job.targets()
    files = tuple(map(judge, targets))
    if not given["without_agent"]:
        job.await_agent(given["wait_s"])
    if not given["dry_run"]:
        write_files(targets, _state_directory())
    document = InstallDocument(dry_run=given["dry_run"], network=job.network, files=files)
    emit(document, output, lambda: "\n".join(file.describe() for file in files))
    job.tell_what_comes_before()
    return EXIT_OK


@click.command()
@_directory_options
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@output_option
def uninstall(bin_dirs: tuple[str, ...], conf_dirs: tuple[str, ...], dry_run: bool, output: str) -> int:
    """Take away what install has written: the plugin, the network configurations, and directories made for them.

    Looks where install would write and where it did; with --bin-dir or --conf-dir only there. What is not of Muslin's
    stays. Remove the network's containers first: without the plugin a runtime cannot disconnect them. Run again, it
    finds nothing.
    """
    state_directory = _state_directory()
    given = Places(bin_dirs=bin_dirs, conf_dirs=conf_dirs)
    places = given if given != Places() else find_places(ROOT)
    files = find_ours(places.bin_dirs, places.conf_dirs, state_directory, whole=given == Places())
    if not dry_run:
        remove_files(files, state_directory)
    document = UninstallDocument(dry_run=dry_run, files=tuple(files))
    emit(document, output, lambda: "\n".join(file.describe() for file in files))
    if not files:
        say("there is nothing of Muslin's CNI plugin on this host")
    elif not dry_run:
        say(f"removed {counted(len(files), 'file')}")
    return EXIT_OK


class _Job:
    """An installation: what goes where, and whether it can work."""

    def __init__(self, given: dict[str, Any]) -> None:
        found = find_places(ROOT)
        for trouble in found.troubles:
            say(f"warning: {trouble}")
        self.bin_dirs = [Path(os.path.abspath(each)) for each in given["bin_dirs"] or found.bin_dirs]
        self.conf_dirs = [Path(os.path.abspath(each)) for each in given["conf_dirs"] or found.conf_dirs]
        self.socket = _socket(given["socket"])
        self.mode = given["mode"]
        self.network = build_network(
            NetworkOptions(
                name=given["name"],
                socket=self.socket,
                mode=self.mode,
                portmap=_choose_portmap(given["portmap"], self.bin_dirs, map(Path, found.bin_dirs)),
                hairpin=given["hairpin"],
                cni_version=given["cni_version"],
            )
        )

    def targets(self) -> list[Target]:
        """The files; UsageError where a network of this name is there already."""
        program, text = find_program().read_bytes(), encode_network(self.network)
        for path in self._networks():
            refuse_same_network(path.parent, path, self.network["name"])
        plugins = [Target(path=each / NAME, content=program, kind="plugin") for each in self.bin_dirs]
        return plugins + [Target(path=path, content=text, kind="network") for path in self._networks()]

    def await_agent(self, wait_s: float) -> None:
        """Return once the agent takes containers; MuslinError with what is missing when it does not in time."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return self._ask_agent()
            except UsageError:  # waiting does not help
                raise
            except MuslinError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLL_S)

    def tell_what_comes_before(self) -> None:
        """Of each directory in which a runtime that wants one network does not take ours."""
        for path in self._networks():
            earlier = earlier_network(path.parent, path)
            if earlier:
                say(f"note: {earlier} comes before {path.name}: a runtime that wants one network takes that one")

    def _networks(self) -> list[Path]:
        return [each / file_name(self.network["name"]) for each in self.conf_dirs]

    def _ask_agent(self) -> None:
        from muslin.agent_client import SOCKET_NAME, fetch_status

        path = os.path.join(os.path.dirname(self.socket), SOCKET_NAME)
        status = fetch_status(path)
        if not status.ready:
            why = status.problems[0] if status.problems else "it has not programmed its subnet yet"
            raise MuslinError(f"the agent at {path} is not ready: {why}", "wait for it with --wait SECONDS")
        if self.mode == "bridge" and not (status.network and status.network.bridge):
            raise UsageError(
                f"the mode bridge needs a bridge, and the agent at {path} keeps none",
                "start it with one (muslin agent --bridge cni0), or do without: muslin cni install --mode routed",
            )
        ask_plugin_status(find_program(), status_request(self.network))


def _socket(given: str | None) -> str:
    """Where the agent takes calls; UsageError for what can be no socket."""
    from muslin.agent_client import SOCKET_PATH_MAX
    from muslin.wire.cni_socket import SOCKET_NAME

    path = given or os.path.join(resolve_settings({})["run-dir"].value, SOCKET_NAME)
    if not path.startswith("/") or len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise UsageError(
            f"--socket {path} can be no socket of an agent", f"expected / first and at most {SOCKET_PATH_MAX} bytes"
        )
    return path


def _choose_portmap(wanted: bool | None, bin_dirs: list[Path], others: Iterable[Path]) -> bool:
    """Whether the plugin portmap takes part; UsageError when it should and is nowhere."""
    having = [each for each in bin_dirs if (each / PORTMAP).is_file()]
    if wanted and not having and not any((each / PORTMAP).is_file() for each in others):
        raise UsageError(
            f"the plugin portmap is not in {' or '.join(map(str, bin_dirs))}",
            "install it (apt-get install containernetworking-plugins), or leave --portmap out",
        )
    if wanted is None and having and having != bin_dirs:
        lacking = " and ".join(str(each) for each in bin_dirs if each not in having)
        say(f"note: ports are not published, as portmap is in {having[0]} and not in {lacking}; see --portmap")
    return having == bin_dirs if wanted is None else wanted


def _state_directory() -> Path:
    return Path(resolve_settings({})["state-dir"].value)
