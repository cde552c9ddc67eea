"""What a person waits for: ``podman run`` with each network, on a host of the containers' tests.

Theory of operation: the host is that of tests/containers, with podman's whole machinery and an agent; beside the
conflist of one plugin it has one for each other contender, in a subnet of its own. The contenders take turns. The
container ends at once, so that the figure holds one ADD, one DEL and all of podman's own work.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

NONE = "none"
"""podman's word for no network, the floor of all figures."""


def measure_podman(turns: int, names: Sequence[str]) -> dict[str, float]:
    """Median seconds of ``podman run --rm``, by contender and for no network."""
    os.environ.setdefault("MUSLIN_TEST_RUN", uuid.uuid4().hex)
    from tests.containers import audit
    from tests.containers.hosts import Underlay
    from tests.containers.plugins import NETWORK_NAME, Plugin
    from tests.containers.podman import Podman

    plugin = Plugin("muslin" if "ours" in names else "bridge")
    took: dict[str, list[float]] = {name: [] for name in (*names, NONE)}
    with tempfile.TemporaryDirectory() as directory, Underlay(Path(directory)) as underlay:
        host = underlay.new_host(plugin)
        try:
            host.boot()
            host.start_agent()
            for number, name in enumerate(names):
                if name != "ours":
                    conflist = host.path(f"/etc/cni/net.d/2{number}-{name}.conflist")
                    conflist.write_text(json.dumps(debian_conflist(name, number)))
            podman = Podman(host)
            podman.load()
            for turn in range(turns + 1):
                for name in took:
                    network = NETWORK_NAME if name == "ours" else name
                    begun = time.perf_counter()
                    podman.once("true", options=(f"--network={network}",))
                    if turn:  # the first one makes bridges
                        took[name].append(time.perf_counter() - begun)
        finally:
            host.remove()
            audit.remove_cgroups()
    return {name: statistics.median(one) for name, one in took.items()}


def debian_conflist(kind: str, number: int) -> dict[str, object]:
    """Debian's plugin with host-local and portmap, as podman's own conflist has them."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": f"10.21{number}.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    first: dict[str, object] = {"type": kind, "ipam": ipam}
    if kind == "bridge":
        first |= {"bridge": f"bench{number}", "isGateway": True}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": kind, "plugins": [first, portmap]}
