"""The store of a lab with agents: its etcd members as processes, and what the lab itself writes into it.

Theory of operation: the lab says what the network is like (the configuration), which is all that it takes to switch the
backend of a lab that is up: the agents follow. And it takes away the leases of nodes that are no more, if an agent had
no chance to give its own back. Nothing else in the store is the lab's business. The store's client is loaded late, and
asks from inside of a member's namespace, where etcd is to be found.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import platform
import shutil
from http import HTTPStatus
from typing import Any

import msgspec

from muslin.errors import MuslinError, UnsupportedError
from muslin.kernel import netns as netns_door
from muslin.lab.agent_plan import ETCD_PORT, ETCD_PREFIX, Agent, Member, etcd_endpoints, store_file
from muslin.lab.topology import Topology
from muslin.wire.flannel_config import parse_network_config

HEALTH_S = 1.0
"""How long a member may take to say how it is."""
STORE_S = 30.0
"""How long the store may take to answer: members that have just started elect a leader first."""


def check_available(topology: Topology) -> None:
    """UnsupportedError, naming what to install, where the store of these agents cannot be run."""
    if topology.agents is None:
        return
    from muslin.store import load_store

    load_store(topology.agents.store)
    if topology.agents.store == "etcd":
        etcd_program()


def etcd_program() -> str:
    """The path of the etcd server; UnsupportedError without one."""
    program = shutil.which("etcd")
    if program is None:
        raise UnsupportedError(
            "agents with the etcd store need the program etcd, which is not on this machine",
            "as root: apt-get install etcd-server; or use --store sqlite",
        )
    return program


def etcd_environment() -> dict[str, str]:
    """Nobody's settings for some other etcd; and leave to run on processors that etcd 3.4 would refuse.

    Its makers do not test those, so the one in hand has to be named, in Go's way.
    """
    machine = platform.machine()
    named = {} if machine == "x86_64" else {"ETCD_UNSUPPORTED_ARCH": {"aarch64": "arm64"}.get(machine, machine)}
    return {"PATH": os.environ.get("PATH", os.defpath), **named}


def is_healthy(member: Member) -> bool:
    """Whether a member serves and knows a leader."""

    def ask() -> bool:
        connection = http.client.HTTPConnection(member.address, ETCD_PORT, timeout=HEALTH_S)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read())
            return response.status == HTTPStatus.OK and answer.get("health") in ("true", True)
        finally:
            connection.close()

    with contextlib.suppress(OSError, http.client.HTTPException, msgspec.MsgspecError):
        return netns_door.call_in(member.netns, ask)
    return False


def write_network(directory: str, topology: Topology, agents: tuple[Agent, ...], members: tuple[Member, ...]) -> bool:
    """Have the store say what this lab's network is like, and forget nodes that are no more; whether it was told.

    MuslinError when the store does not answer.
    """
    change = _Change(agents)

    async def make() -> None:
        store = _open(directory, topology)
        try:
            await change.make(store)
        finally:
            await store.close()

    try:
        netns_door.call_in(members[0].netns if members else "", lambda: asyncio.run(make()))
    except MuslinError as error:
        logs = f"see {members[0].log}" if members else ""
        raise MuslinError(f"the store of the lab's agents does not answer: {error.what}", error.hint or logs) from None
    return change.told


def _open(directory: str, topology: Topology) -> Any:
    from muslin.store import load_store

    assert topology.agents is not None
    kind = load_store(topology.agents.store)
    if topology.agents.store == "sqlite":
        return kind(store_file(directory))
    from muslin.store.etcd import EtcdOptions

    return kind(EtcdOptions(endpoints=etcd_endpoints(topology), prefix=ETCD_PREFIX))


class _Change:
    """What the lab writes: the configuration where it is another one, nothing else but removals."""

    def __init__(self, agents: tuple[Agent, ...]) -> None:
        self._config = agents[0].network_config.encode()
        self._subnets = {frozenset(agent.subnets) for agent in agents}
        self.told = False

    async def make(self, store: Any) -> None:
        snapshot = await store.snapshot(deadline_s=STORE_S)
        if not self._says_the_same(snapshot.config):
            await store.write_config(self._config, deadline_s=STORE_S)
            self.told = True
        from muslin.store.base import LeaseLost

        for lease in snapshot.leases:
            if frozenset(lease.subnets) not in self._subnets:
                with contextlib.suppress(LeaseLost):  # it ended by itself meanwhile
                    await store.delete(lease, deadline_s=STORE_S)

    def _says_the_same(self, config: bytes | None) -> bool:
        try:
            return config is not None and parse_network_config(config) == parse_network_config(self._config)
        except ValueError:
            return False
