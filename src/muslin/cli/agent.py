"""``muslin agent``: the daemon of one node."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from muslin.cli.settings_options import open_store, resolve_settings, settings_options, unsupported_environment
from muslin.errors import EXIT_OK, UnsupportedError, UsageError
from muslin.settings import Value

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # uapi/linux/capability.h
SWITCH_S = 0.0005
"""A thread that waits for the interpreter gets it after this time, not Python's 5 ms: a container waits with it."""
COLLECT_AFTER = 100_000
"""New containers between two runs of the garbage collector. What 10,000 peers are made of holds no cycles, and walking
it at Python's usual pace took a third of the first pass."""


@click.command()
@settings_options
def agent(**given: Any) -> int:
    """Connect this node's containers with those of all other nodes, and keep it so.

    Leases the node a subnet, writes it to the subnet file for CNI plugins, and keeps routes, neighbours, devices and
    packet filter in agreement with the leases of all nodes. Ending it leaves the network as it is; `muslin uninstall`
    removes it.

    \b
    muslin network set '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
    muslin agent --iface eth0
    muslin status --wait

    Every option can come from the environment or a file; `muslin config show` says where each value is from. The names
    of flanneld's options and of its environment (FLANNELD_IFACE) work where they mean the same.
    """
    return run_agent(resolve_settings(given))


def run_agent(values: dict[str, Value]) -> int:
    """Run an agent with these settings until it is stopped."""
    import asyncio
    import gc

    from muslin.agent.files import StateDirectory, hold_namespace
    from muslin.agent.logs import set_up
    from muslin.agent.notify import Notifier

    of = {name: value.value for name, value in values.items()}
    set_up(of["log-format"], of["log-level"])
    gc.set_threshold(COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_S)
    notifier = Notifier.from_environment(os.environ)
    require_privilege()
    directory = StateDirectory(Path(of["state-dir"]))
    lock = directory.lock()
    try:
        with hold_namespace():
            _warn()
            asyncio.run(_serve(of, values, directory, notifier))
    finally:
        os.close(lock)
    return EXIT_OK


def require_privilege() -> None:
    """UnsupportedError unless this process may change the network of its namespace."""
    if not has_capability(CAP_NET_ADMIN):
        raise UnsupportedError(
            "an agent changes this host's network, which needs the capability CAP_NET_ADMIN",
            "run it as root, or try a lab, which needs no root: muslin lab up --agents",
        )


def has_capability(number: int) -> bool:
    """Whether this process has a capability (capabilities(7)) in its user namespace."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def _warn() -> None:
    import logging

    log = logging.getLogger("muslin.agent")
    for name in unsupported_environment(os.environ):
        log.warning("%s is set, and this agent has no such setting: it is ignored", name)


async def _serve(of: dict[str, Any], values: dict[str, Value], directory: Any, notifier: Any) -> None:
    from muslin.agent.hints import Hints
    from muslin.agent.node import Node
    from muslin.agent.reconcile import Reconciler
    from muslin.agent.service import SOCKET_NAME, Addresses, serve
    from muslin.agent.tunnel import TunnelKeeper
    from muslin.kernel import nft
    from muslin.kernel.linux import LinuxKernel
    from muslin.kernel.watch import Watch
    from muslin.plan.sources import CHECKED, UNCHECKED
    from muslin.tunnel.programs import tunnel_command, why_python

    run_directory = Path(of["run-dir"])
    keeper = TunnelKeeper(run_directory, program=tunnel_command(of["tunnel"]), note=why_python(of["tunnel"]))
    make_directory(run_directory)
    with LinuxKernel() as kernel:
        watch = Watch(("",), kernel.ports, (CHECKED, UNCHECKED))
        try:
            reconciler = Reconciler(
                kernel,
                directory.journal(),
                keeper,
                host_options(of),
                list_table=partial(nft.list_text, ""),
            )
            node = Node(
                node_options(of),
                open_store(values),
                reconciler,
                Hints(watch, lambda hints: node.containers.hear(hints) if node.containers else None),
                directory,
            )
            addresses = Addresses(
                socket=str(run_directory / SOCKET_NAME), healthz_ip=of["healthz-ip"], healthz_port=of["healthz-port"]
            )
            with serve_containers(node, of, kernel.ports) if serves_containers(of["cni"]) else nullcontext():
                await serve(node, addresses, notifier)
        finally:
            watch.close()


def serves_containers(wanted: bool) -> bool:
    """Whether this agent connects containers: it has to enter their namespaces for that (setns(2))."""
    import logging

    able = has_capability(CAP_SYS_ADMIN)
    if wanted and not able:
        logging.getLogger("muslin.agent").warning(
            "container runtimes are not served: it takes the capability CAP_SYS_ADMIN to enter a container's namespace"
        )
    return wanted and able


@contextmanager
def serve_containers(node: Any, of: dict[str, Any], ports: Any) -> Iterator[None]:
    """Give the node someone who serves container runtimes, for as long as the context lasts."""
    import time

    from muslin.agent.attachments import Attachments
    from muslin.agent.cni_server import CniServer
    from muslin.agent.files import CONTAINERS, boot_id
    from muslin.agent.reservations import Reservations
    from muslin.agent.status import facts_of
    from muslin.kernel.linux import LinuxKernel
    from muslin.wire.cni_socket import SOCKET_NAME

    reservations = Reservations.open(Path(of["state-dir"]) / CONTAINERS)
    try:
        with LinuxKernel(ports, removes_quickly=True) as kernel:
            attachments = Attachments(kernel, reservations, boot_id(), time.time)
            facts = partial(facts_of, node, of["bridge"])
            node.containers = CniServer(Path(of["run-dir"]) / SOCKET_NAME, attachments, facts, float(of["resync"]))
            yield
    finally:
        node.containers = None
        reservations.close()


def make_directory(path: Path) -> None:
    """Make a directory for this user alone, unless it is there; UsageError when that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the directory {path} cannot be made: {error.strerror}", "choose one with --run-dir"
        ) from None


def host_options(of: dict[str, Any]) -> Any:
    """What the settings say of this host."""
    from muslin.agent.reconcile import HostOptions
    from muslin.agent.underlay import UnderlayOptions

    for pattern in of["iface-regex"]:
        _check_pattern(pattern)
    return HostOptions(
        name=node_name(of),
        underlay=UnderlayOptions(
            iface=of["iface"],
            iface_regex=of["iface-regex"],
            iface_can_reach=of["iface-can-reach"] or None,
            public_addresses=tuple(address for address in (of["public-ip"], of["public-ipv6"]) if address),
        ),
        bridge=of["bridge"],
        masquerade=of["ip-masq"],
        fully_random=not of["ip-masq-fully-random-disable"],
        forward=of["iptables-forward-rules"],
    )


def _check_pattern(pattern: str) -> None:
    import re

    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--iface-regex {pattern} is no regular expression: {error}") from None


def node_options(of: dict[str, Any]) -> Any:
    """What the settings say of the loop."""
    from muslin.agent.node import NodeOptions
    from muslin.lease.values import Rules

    margin_s = of["lease-renew-margin"] or of["subnet-lease-renew-margin"] * 60
    return NodeOptions(
        name=node_name(of),
        store_kind=of["store"],
        subnet_file=Path(of["subnet-file"]),
        masquerade=of["ip-masq"],
        rules=Rules(ttl_s=float(of["lease-ttl"]), renew_margin_s=float(min(margin_s, of["lease-ttl"] / 2))),
        resync_s=float(of["resync"]),
        network_config=read_network_config(of["network-config"]),
        vtep_mac=read_mac(of["vtep-mac"]),
    )


def read_mac(given: str) -> str:
    """A MAC as the kernel writes it; UsageError for what is none of one interface."""
    from muslin.backends.vxlan import mac_in

    mac = mac_in({"VtepMAC": given})
    if given and not mac:
        raise UsageError(f"--vtep-mac is {given!r}, expected the MAC of one interface", "such as 6a:3f:aa:bb:cc:dd")
    return mac


def node_name(of: dict[str, Any]) -> str:
    """How messages call this node."""
    return of["node-name"] or os.uname().nodename


def read_network_config(given: str) -> bytes:
    """The network's configuration that was given, as text or as @FILE; UsageError when it is wrong."""
    from muslin.agent.node_plan import options_of
    from muslin.wire.flannel_config import parse_network_config

    if not given:
        return b""
    try:
        text = Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()
        options_of(parse_network_config(text))
    except OSError as error:
        raise UsageError(f"--network-config {given}: the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--network-config is wrong: {error}") from None
    return text
