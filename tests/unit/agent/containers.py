"""A node that container runtimes use, in memory: its kernel, its containers' namespaces, and calls as a runtime makes.

node: cni0 10.5.1.1/24, fd00:10:5:1::1/64 ═══ eth0 of each container      a namespace is a file
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muslin.agent.attachment_plan import Netns, NodeFacts
from muslin.agent.attachments import Attachments
from muslin.agent.reservations import Reservations
from muslin.kernel.fake import FakeKernel
from muslin.model import kernel as model
from muslin.model.kernel import Address, AnyObject, Bridge, Link, Route, Veth, link_key
from muslin.model.ops import Create, Delete, Op
from muslin.plan import sources
from muslin.wire.cni import NetworkConf, parse_conf
from muslin.wire.cni_call import Call, parse_call
from muslin.wire.cni_error import CniError
from muslin.wire.cni_result import Result, encode_result

SUBNETS = ("10.5.1.0/24", "fd00:10:5:1::/64")
FACTS = NodeFacts(subnets=SUBNETS, networks=("10.5.0.0/16", "fd00:10:5::/48"), mtu=1450, bridge="cni0")
ROUTED = msgspec.structs.replace(FACTS, bridge="")
IPV4_ONLY = msgspec.structs.replace(FACTS, subnets=SUBNETS[:1], networks=FACTS.networks[:1])
FIRST_FD = 1000
"""Of the containers' namespaces: no descriptor that a test has open."""
BOOT = "8d0a5f1e-0000-4000-8000-000000000001"


def no_fault(_: Op) -> int:
    """The kernel refuses nothing."""
    return 0


class Node:
    """One node. ``now`` is its clock, ``facts`` is what its agent knows of it."""

    def __init__(self, directory: Path, facts: NodeFacts = FACTS) -> None:
        self.directory, self.facts = directory, facts
        self.kernel = FakeKernel(lambda op: self.refuse(op))
        self.refuse: Callable[[Op], int] = no_fault
        self.now, self.boot_id = 1000.0, BOOT
        self.cache = directory / "cache"
        self.cache.mkdir()
        self._fds: dict[str, int] = {}
        self.make_node()
        self.start()

    def become(self, facts: NodeFacts) -> Node:
        """Another node, with nothing of the first."""
        self.facts = facts
        self._fds.clear()
        self.make_node()
        return self

    def make_node(self) -> None:
        """What the node has of its own, as after a boot."""
        self.kernel.objects.clear()
        family = self.facts.filter_family
        self.put(sources.table("", family))
        if self.facts.bridge:
            self.put(Link(netns="", name=self.facts.bridge, options=Bridge(), mtu=1450, alias="", master="", up=True))

    def start(self) -> None:
        """An agent begins, on what an earlier one wrote down."""
        self.reservations = Reservations.open(self.directory / "containers.db")
        self.attachments = Attachments(self.kernel, self.reservations, self.boot_id, lambda: self.now, self.cache)

    def restart(self) -> None:
        """The agent ends as by kill -9, and another one begins."""
        self.reservations.close()
        self.start()
        self.attachments.recover()

    def reboot(self) -> None:
        """All that the kernel had is gone, and all namespaces with it."""
        for path in self._fds:
            Path(path).unlink(missing_ok=True)
        self._fds.clear()
        self.boot_id = self.boot_id[:-1] + str(int(self.boot_id[-1]) + 1)
        self.make_node()
        self.restart()

    def put(self, obj: AnyObject) -> None:
        self.kernel.objects[obj.key] = obj

    # ---- containers

    def path(self, name: str) -> str:
        """Where the runtime has the namespace of this name."""
        return str(self.directory / name)

    def netns(self, name: str) -> Netns:
        """The namespace of this name, made if it is not there."""
        path = self.path(name)
        if path not in self._fds:
            Path(path).touch()
            self._fds[path] = FIRST_FD + len(self._fds)
            self.kernel.apply([Create(model.Netns(netns=f"/proc/self/fd/{self._fds[path]}"))])
        return Netns(fd=self._fds[path], inode=Path(path).stat().st_ino)

    def lose_netns(self, name: str) -> None:
        """The runtime removes a namespace, and the kernel all that is in it."""
        netns = self.netns(name)
        self.kernel.apply([Delete(model.Netns(netns=netns.name))])
        del self._fds[self.path(name)]
        Path(self.path(name)).unlink()

    def call(self, command: str, container: str, netns: str = "", ifname: str = "eth0", **args: str) -> Call:
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": self.path(netns) if netns else "",
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
        }
        return parse_call(variables)

    def conf(self, call: Call, **keys: Any) -> NetworkConf:
        return parse_conf(conf_bytes(self.facts, **keys), call)

    def add(self, container: str, netns: str = "", ifname: str = "eth0", **keys: Any) -> Result:
        """ADD; the namespace is called as the container unless another is named."""
        place = netns or container
        call = self.call("ADD", container, place, ifname, **keys.pop("args_", {}))
        return self.attachments.add(call, self.conf(call, **keys), self.netns(place), self.facts)

    def delete(self, *containers: str, ifname: str = "eth0") -> None:
        refused = self.attachments.delete([(container, ifname) for container in containers])
        if refused:
            raise AssertionError(refused)

    def check(self, container: str, result: Result, netns: str = "", **keys: Any) -> None:
        place = netns or container
        call = self.call("CHECK", container, place)
        document = json.loads(encode_result(result, "1.1.0"))
        self.attachments.check(call, self.conf(call, prevResult=document, **keys), self.netns(place), self.facts)

    # ---- what there is

    def objects(self) -> set[AnyObject]:
        """Everything but the loopbacks, which stay up once they are."""
        return {obj for obj in self.kernel.objects.values() if not _is_lo(obj)}

    def inside(self, name: str) -> set[AnyObject]:
        """All that is in a container's namespace, but the loopback."""
        netns = self.netns(name).name
        return {obj for obj in self.objects() if obj.netns == netns and not isinstance(obj, model.Netns)}

    def on_node(self) -> set[AnyObject]:
        """All on the node that is of containers."""
        own = (link_key("", self.facts.bridge), sources.table("", "bridge").key, sources.table("", "inet").key)
        return {obj for obj in self.objects() if obj.netns == "" and obj.key not in own}

    def addresses(self, name: str) -> set[str]:
        return {obj.address for obj in self.inside(name) if isinstance(obj, Address)}

    def routes(self, name: str) -> set[tuple[str, str | None]]:
        return {(obj.destination, obj.via) for obj in self.inside(name) if isinstance(obj, Route)}

    def cables(self) -> list[Link]:
        return [obj for obj in self.on_node() if isinstance(obj, Link) and isinstance(obj.options, Veth)]


def conf_bytes(facts: NodeFacts = FACTS, **keys: Any) -> bytes:
    """A network configuration; a key that is None is left out."""
    document = {
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "muslin-cni",
        "mode": "bridge" if facts.bridge else "routed",
        **keys,
    }
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def code_of(work: Callable[[], object]) -> tuple[int, str]:
    """The code and the words of the CniError that this work must end with."""
    with pytest.raises(CniError) as failure:
        work()
    assert failure.value.details, f"{failure.value.msg}: nothing is said of what would mend it"
    return failure.value.code, failure.value.msg


def _is_lo(obj: AnyObject) -> bool:
    return isinstance(obj, Link) and obj.name == "lo"
