"""The plugin's end of an agent's CNI socket, and containers that are just noted down."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from muslin.agent.attachment_plan import Netns, NodeFacts
from muslin.agent.attachments import Attachments
from muslin.agent.cni_server import CniServer
from muslin.agent.reservations import Reservation
from muslin.wire.cni import NetworkConf
from muslin.wire.cni_call import Call
from muslin.wire.cni_result import Interface, Result, merge
from muslin.wire.cni_socket import (
    ANSWER_HEADER_BYTES,
    NETNS,
    SPOOLED,
    Answer,
    Request,
    SpoolFile,
    encode_request,
    parse_answer,
)
from tests.contract.asynchronous import until_true
from tests.unit.agent.containers import FACTS, conf_bytes

Key = tuple[str, str]
PATIENCE_S = 20.0


class ToyAttachments:
    """Containers that are noted down. An ADD waits until ``gate`` is open."""

    def __init__(self) -> None:
        self.known: dict[Key, float] = {}
        self.heard: list[tuple[str, object]] = []
        self.inodes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.refuse: dict[str, Exception] = {}
        """By command, or by container."""
        self.count = 0
        self.free = {"10.5.1.0/24": 253}
        self.troubles: tuple[str, ...] = ()

    def _hear(self, what: str, of: object) -> None:
        self.heard.append((what, of))
        if what in self.refuse:
            raise self.refuse[what]

    def recover(self) -> None:
        self._hear("recover", None)

    def look(self, _: NodeFacts) -> tuple[str, ...]:
        self._hear("look", None)
        return self.troubles

    def add(self, call: Call, conf: NetworkConf, netns: Netns, _: NodeFacts) -> Result:
        self._hear("ADD", call.container_id)
        self.inodes.append(os.stat(netns.name).st_ino)
        assert netns.inode == self.inodes[-1]
        assert self.gate.wait(PATIENCE_S)
        self.known[call.container_id, call.ifname] = time.time()
        return merge(conf.prev_result, Result(interfaces=(Interface(name=call.ifname, sandbox=call.netns),)))

    def delete(self, keys: Iterable[Key]) -> dict[Key, Exception]:
        keys = list(keys)
        self._hear("DEL", keys)
        for key in keys:
            if key[0] not in self.refuse:
                self.known.pop(key, None)
        return {key: self.refuse[key[0]] for key in keys if key[0] in self.refuse}

    def delete_older(self, key: Key, at: float) -> Exception | None:
        return self.delete([key]).get(key) if key in self.known and self.known[key] < at else None

    def take_back(self, key: Key) -> None:
        self.delete([key])

    def check(self, call: Call, _conf: NetworkConf, _netns: Netns, _facts: NodeFacts) -> None:
        self._hear("CHECK", call.container_id)

    def collect(self, conf: NetworkConf) -> None:
        self._hear("GC", conf.valid_attachments)

    def status(self, _: NodeFacts) -> None:
        self._hear("STATUS", None)

    def all(self) -> list[Reservation]:
        return [
            Reservation(container_id=name, ifname=ifname, network="pods", at=at, addresses=("10.5.1.2/24",))
            for (name, ifname), at in self.known.items()
        ]


class Bench:
    """A server in a directory, and the plugin's side of its socket."""

    def __init__(self, directory: Path) -> None:
        self.path, self.netns = directory / "cni.sock", directory / "netns"
        self.spool = directory / "cni-spool"
        self.netns.touch()
        self.toy = ToyAttachments()
        self.facts = FACTS
        self.sent = 0
        """Requests that wait for the server, or that it has taken."""
        self.server = CniServer(self.path, cast("Attachments", self.toy), lambda: self.facts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        task = asyncio.create_task(self.server.run())
        try:
            await until_true(lambda: self.path.exists() or task.done())
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not self.path.exists()

    # ---- the plugin's side

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(str(self.path))
        return connection

    def send(self, connection: socket.socket, data: bytes, fds: int = 1) -> None:
        opened = [os.open(self.netns, os.O_RDONLY) for _ in range(fds)]
        try:
            sent = socket.send_fds(connection, [data], opened)
            connection.sendall(data[sent:])
            self.sent += 1
        finally:
            for fd in opened:
                os.close(fd)

    async def call(self, command: str, name: str = "one", **more: Any) -> Answer:
        """A whole call, as the plugin makes it."""
        return await asyncio.to_thread(self.exchange, request_bytes(command, name, **more))

    def exchange(self, data: bytes, fds: int = 1) -> Answer:
        with self.connect() as connection:
            self.send(connection, data, fds)
            return receive(connection)

    def keep(self, name: str, at: float, data: bytes | None = None, ending: str = "del") -> Path:
        """A file in the spool, written at this time in seconds."""
        self.spool.mkdir(exist_ok=True)
        path = self.spool / SpoolFile(at_ns=int(at * 1e9), pid=os.getpid()).name.replace(".del", f".{ending}")
        path.write_bytes(request_bytes("DEL", name, flags=SPOOLED) if data is None else data)
        return path


def request_bytes(command: str, name: str = "one", flags: int = NETNS, **more: Any) -> bytes:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/x",
        "CNI_PATH": "/opt/cni/bin",
        **more.pop("environment", {}),
    }
    errno_ = more.pop("netns_errno", 0)
    stdin = more.pop("stdin", None)
    stdin = conf_bytes(**more) if stdin is None else stdin
    return encode_request(Request(environment=environment, stdin=stdin, flags=flags, netns_errno=errno_))


def receive(connection: socket.socket) -> Answer:
    """The answer, read as the plugin does: not a byte more."""
    header = connection.recv(ANSWER_HEADER_BYTES, socket.MSG_WAITALL)
    document = connection.recv(int.from_bytes(header[4:], sys.byteorder), socket.MSG_WAITALL)
    return parse_answer(header + document)


def receive_and_close(connection: socket.socket) -> Answer:
    with connection:
        return receive(connection)


def error_of(answer: Answer) -> tuple[int, str]:
    assert answer.exit_status == 1
    document = json.loads(answer.document)
    return document["code"], document["msg"]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))
