"""Whether anything is left: on a host after each test, on the machine after all.

Theory of operation: a ``Picture`` is what one sees of a host, or of the machine, part by part; two of them are equal or
differ in named things. A host's is taken when it is idle. The machine's shows the places in which runtimes and plugins
keep their state where nobody gives them another, its links and its packet filter; everything that these tests make
bears the run's token or a host's directory, so what is ours among processes and control groups is told by that.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.containers.hosts import Host, cgroup_parent

Picture = dict[str, frozenset[str]]

MACHINE_DIRECTORIES = (
    "/etc/cni",
    "/opt/cni",
    "/run/containerd",
    "/run/containers",
    "/run/flannel",
    "/run/libpod",
    "/run/muslin-agent",
    "/usr/lib/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/muslin",
)
CGROUPS = Path("/sys/fs/cgroup")
KEPT_BY_HOST_LOCAL = frozenset({"lock", "last_reserved_ip.0", "last_reserved_ip.1"})
OUR_TABLE = " muslin_cni"
"""Of the family that the agent's mode is about: bridge or inet."""
FRAME = re.compile(r" (type|typeof|flags|size) ")
"""What nft says of a set, beside its elements."""
KEPT_LINKS = frozenset({"lo", "eth0", "cni0", "vxlan1"})


def of_host(host: Host) -> Picture:
    """What runtimes and plugins have made on a host and not taken away."""
    links = (line.split(":")[1].split("@")[0].strip() for line in host.run("ip", "-o", "link").splitlines())
    netns = host.path("/run/netns")
    state = host.path("/var/lib/cni")
    files = (one for one in state.rglob("*") if one.is_file() and one.name not in KEPT_BY_HOST_LOCAL)
    rules = _ruleset(host.run("nft", "--stateless", "list", "ruleset"))
    return {
        "links": frozenset(links) - KEPT_LINKS,
        "namespaces": frozenset(one.name for one in netns.iterdir()),
        "files of plugins": frozenset(str(one.relative_to(state)) for one in files),
        "packet filter": frozenset(filter(_is_of_a_container, rules)),
    }


def _is_of_a_container(rule: str) -> bool:
    """Whether a line is more than the frame of the agent's own table, which comes and goes with containers as such."""
    _, ours, inside = rule.partition(OUR_TABLE)
    return not ours or ("set " in inside and not inside.endswith("{") and not FRAME.search(inside))


def of_machine() -> Picture:
    """What the machine has of these things, outside of all hosts."""
    files = (str(one) for directory in MACHINE_DIRECTORIES for one in Path(directory).rglob("*"))
    rules = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True)
    return {
        "files": frozenset(files),
        "links": frozenset(os.listdir("/sys/class/net")),
        "packet filter": _ruleset(rules.stdout),
        "processes": processes_of([]),
        "control groups": frozenset(map(str, cgroups())),
    }


def _ruleset(text: str) -> frozenset[str]:
    """Lines of a rule set, each with the table and chain that it stands in."""
    place: list[str] = []
    found = set()
    for line in map(str.strip, text.splitlines()):
        if line == "}":
            place.pop()
            continue
        found.add(" ".join((*place, line)))
        if line.endswith("{"):
            place.append(line.removesuffix("{").strip())
    return frozenset(found)


def difference(before: Picture, after: Picture) -> str:
    """How they differ, a line each; empty when they do not."""
    lines = []
    for part, was in before.items():
        lines += [f"left: {part}: {one}" for one in sorted(after[part] - was)]
        lines += [f"lost: {part}: {one}" for one in sorted(was - after[part])]
    return "\n".join(lines)


def processes_of(directories: Iterable[Path]) -> frozenset[str]:
    """Processes that live below this run's control group, or see a mount of one of these directories."""
    marks = [str(one) for one in directories]
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            placed = Path(f"/proc/{pid}/cgroup").read_text()
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        except OSError:  # it has ended
            continue
        if f"{cgroup_parent()}/" in placed or any(mark in mounts for mark in marks):
            found.add(f"{pid} {words}")
    return frozenset(found)


def cgroups() -> list[Path]:
    """Control groups of this run, the innermost first."""
    token = cgroup_parent().strip("/")
    found = [directory for top in (CGROUPS, *_hierarchies()) for directory in top.glob(f"{token}/**/")]
    return sorted({one for one in found if one.is_dir()}, key=lambda path: len(path.parts), reverse=True)


def _hierarchies() -> list[Path]:
    """The directories of version 1's controllers; none with version 2 alone."""
    return [one for one in CGROUPS.iterdir() if one.is_dir() and (one / "cgroup.procs").exists()]


def remove_cgroups() -> None:
    """Remove this run's control groups, which a power cut leaves empty; OSError where one is in use."""
    for directory in cgroups():
        directory.rmdir()
