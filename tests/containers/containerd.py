"""containerd on a host, by ctr(8) and by CRI.

Theory of operation: a host's /run and /var/lib are its own, so containerd runs with its usual paths. A pod has one
container beside the one that holds its namespaces, a web server unless told otherwise. Pods are placed below the
control group of this run, as a kubelet would place them below its own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.containers.cri import Call, gather
from tests.containers.hosts import Host, cgroup_parent
from tests.containers.images import IMAGE, PAUSE
from tests.containers.plugins import BIN_DIRECTORY
from tests.containers.podman import WEB
from tests.lab.support import wait_until

SOCKET = "/run/containerd/containerd.sock"
NAMESPACE = "k8s.io"
"""Where CRI keeps its images and containers."""
CONFIG = f"""\
version = 2
oom_score = 0
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{BIN_DIRECTORY}"
    conf_dir = "/etc/cni/net.d"
"""


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that runs: its sandbox, its container, the address that containerd says it has, and its namespace."""

    name: str
    sandbox: str
    container: str
    address: str
    netns: str
    """As the host sees it."""


class Containerd:
    """The containerd of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where it listens, seen from outside of the host."""
        return self.host.path(SOCKET)

    def start(self) -> None:
        """Start it, and wait until it serves CRI with a network."""
        config = self.host.directory / "containerd.toml"
        config.write_text(CONFIG)
        self.process = self.host.start("containerd", "--config", config, log="containerd")
        wait_until(self.is_ready, f"{self.host.name}: containerd is ready\n{self.host.log('containerd')}")

    def is_ready(self) -> bool:
        """Whether it and its network are."""
        assert self.process is not None
        assert self.process.poll() is None, self.host.log("containerd")
        if not self.socket.exists():
            return False
        (told,) = gather(self.socket, [Call("Status")], tolerant=True)
        return not isinstance(told, Exception) and all(one.status for one in told.status.conditions)

    def end(self) -> None:
        """End it; its containers go on."""
        assert self.process is not None
        self.host.end(self.process)
        self.process = None

    # -- ctr

    def ctr(self, *words: object) -> str:
        """``ctr ...`` where CRI keeps its things; its output."""
        return self.host.run("ctr", "--namespace", NAMESPACE, *words).strip()

    def load(self) -> None:
        """Give it the image."""
        self.ctr("images", "import", self.host.underlay.image)

    def ctr_run(self, name: str, *command: str, options: Sequence[str] = ()) -> str:
        """``ctr run --cni``; its output."""
        placed = ("--cgroup", f"{cgroup_parent()}/ctr-{name}", "--snapshotter", "overlayfs")
        return self.ctr("run", "--cni", *placed, *options, IMAGE, name, *command)

    # -- CRI

    def call(self, method: str, **fields: Any) -> Any:
        """One call; its response."""
        return gather(self.socket, [Call(method, **fields)])[0]

    def run_pods(self, *names: str, **fields: Any) -> list[Pod]:
        """Start pods at once, each with one container; ``fields`` go to all PodSandboxConfigs."""
        configs = [self.config(name, **fields) for name in names]
        sandboxes = gather(self.socket, [Call("RunPodSandbox", config=config) for config in configs])
        ids = [one.pod_sandbox_id for one in sandboxes]
        container = {"metadata": {"name": "web"}, "image": {"image": IMAGE}, "command": list(WEB)}
        creates = [
            Call("CreateContainer", pod_sandbox_id=pod, config=container, sandbox_config=config)
            for pod, config in zip(ids, configs, strict=True)
        ]
        containers = [one.container_id for one in gather(self.socket, creates)]
        gather(self.socket, [Call("StartContainer", container_id=one) for one in containers])
        return [self._describe(*each) for each in zip(names, ids, containers, strict=True)]

    def run_pod(self, name: str, **fields: Any) -> Pod:
        """Start one pod."""
        return self.run_pods(name, **fields)[0]

    def config(self, name: str, **fields: Any) -> dict[str, Any]:
        """A pod's PodSandboxConfig."""
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "tests"}
        placed = {"metadata": metadata, "linux": {"cgroup_parent": cgroup_parent()}, "log_directory": ""}
        return {**placed, **fields}

    def _describe(self, name: str, sandbox: str, container: str) -> Pod:
        told = self.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        namespaces = json.loads(told.info["info"])["runtimeSpec"]["linux"]["namespaces"]
        (netns,) = (one["path"] for one in namespaces if one["type"] == "network")
        return Pod(name=name, sandbox=sandbox, container=container, address=told.status.network.ip, netns=netns)

    def netns(self, pod: Pod) -> str:
        """What ``kernel.netns`` calls a pod's namespace."""
        return self.host.netns(pod.netns.replace("/var/run/", "/run/"))

    def exec(self, pod: Pod, *command: str) -> str:
        """Run a command in a pod's container, which must succeed; its output."""
        told = self.call("ExecSync", container_id=pod.container, cmd=command, timeout=30)
        words = told.stdout.decode() + told.stderr.decode()
        assert told.exit_code == 0, f"{pod.name}: {' '.join(command)}: {told.exit_code}\n{words}"
        return str(told.stdout.decode())

    def stop(self, *pods: Pod) -> None:
        """Stop pods, as often as one likes."""
        gather(self.socket, [Call("StopPodSandbox", pod_sandbox_id=pod.sandbox) for pod in pods])

    def remove(self, *pods: Pod) -> None:
        """Stop and remove pods."""
        self.stop(*pods)
        gather(self.socket, [Call("RemovePodSandbox", pod_sandbox_id=pod.sandbox) for pod in pods])

    def remove_all(self) -> None:
        """Stop and remove all pods."""
        told = self.call("ListPodSandbox")
        calls = [{"pod_sandbox_id": one.id} for one in told.items]
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            gather(self.socket, [Call(method, **fields) for fields in calls])
