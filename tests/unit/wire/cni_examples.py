"""Calls and configurations as runtimes make them, traced from podman 4.3 and containerd 1.6 (names shortened)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from muslin.wire.cni_call import Call
from muslin.wire.cni_error import CniError

Outcome = TypeVar("Outcome")

ID = "3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"
NETNS = "/run/netns/netns-6f0ccf5c-7a2f-1f2e"

ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": ID,
    "CNI_NETNS": NETNS,
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}
PODMAN = ADD | {
    "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=web1;K8S_POD_NAME=web1;K8S_POD_INFRA_CONTAINER_ID={ID};"
    "MAC=02:11:22:33:44:55;IP=10.5.3.77"
}


def call(command: Any = "ADD", **args: str) -> Call:
    return Call(command=command, container_id=ID, ifname="eth0", netns=NETNS, args=args)


def conf(**values: Any) -> bytes:
    return msgspec.json.encode({"cniVersion": "1.1.0", "name": "podnet", "type": "muslin-cni"} | values)


def outcome(act: Callable[[], Outcome]) -> Outcome | CniError:
    """What comes of it, or the one exception that may come of it."""
    try:
        return act()
    except CniError as error:
        return error


PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": NETNS}],
    "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}],
}
