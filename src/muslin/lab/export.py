"""A lab as commands: for reading, for comparing, and as a script that rebuilds it without Muslin.

Theory of operation: operations describe themselves as commands; here they get headings, and around them the few
lines that make a script: the tunnel program goes along as a here document, since the script must run alone, and
``down`` takes everything back. Nothing is in the script that the lab itself would not do.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from muslin.lab.plan import LabPlan
from muslin.lab.processes import describe_tunnel, tunnel_program
from muslin.model.kernel import Sysctl
from muslin.model.network import Tunnel
from muslin.model.ops import Delete, Op, Replace, SetLink
from muslin.plan.diff import creations

_HEADINGS = {
    "Netns": "network namespaces",
    "Link": "links",
    "Address": "addresses",
    "Route": "routes",
    "Nexthop": "next hops",
    "Rule": "policy rules",
    "Neighbour": "neighbour entries",
    "FdbEntry": "forwarding entries: which tunnel end a MAC lies behind",
    "Sysctl": "kernel settings",
    "NftTable": "packet filter tables",
}
_ATTRIBUTES = {
    "mtu": "sizes",
    "mac": "MACs",
    "alias": "names in full",
    "master": "bridge ports",
    "up": "links up",
}


def heading_of(op: Op) -> str:
    """What kind of step an operation is, in a word or two."""
    if isinstance(op, Delete):
        return "remove what is wanted no more"
    if isinstance(op, SetLink):
        return _ATTRIBUTES[op.attribute]
    if isinstance(op.object, Sysctl) and op.object.link:
        return "settings of single links"
    changed = "changed " if isinstance(op, Replace) and not isinstance(op.object, Sysctl) else ""
    return changed + _HEADINGS[type(op.object).__name__]


def command_lines(ops: Iterable[Op], tunnels: Sequence[Tunnel] = ()) -> Iterator[str]:
    """The commands under headings, as a person would type them."""
    heading = ""
    for op in ops:
        if heading_of(op) != heading:
            heading = heading_of(op)
            yield f"# {heading}"
        yield op.describe()
    if tunnels:
        yield "# tunnels: TUN on one side, UDP on the other"
        yield from (describe_tunnel(tunnel) for tunnel in tunnels)


def shell_script(lab: str, lab_plan: LabPlan) -> str:
    """A POSIX shell script: ``up`` (or nothing) builds the lab, ``down`` removes it."""
    build = "".join(f"    {line}\n" for line in command_lines(creations(lab_plan.state)))
    start = "".join(f"    {_start_line(tunnel)}\n" for tunnel in lab_plan.tunnels)
    names = "".join(f"{shlex.quote(name)}\n" for name in lab_plan.state.own_netns)
    program = _program_lines() if lab_plan.tunnels else ""
    return f"{_HEAD % lab}{program}up() {{\n{build}{start}}}\n{_TAIL % names}"


def _program_lines() -> str:
    with open(tunnel_program()) as file:
        return _PROGRAM % file.read()


def _start_line(tunnel: Tunnel) -> str:
    words = " ".join(shlex.quote(word) for word in tunnel.arguments)
    return f"start_tunnel {shlex.quote(tunnel.netns)} {tunnel.device} {words}"


_HEAD = """#!/bin/sh
# Lab '%s', as the commands that build it. Needs root, iproute2, procps (sysctl) and, for a tunnel, python3.
#   sh THIS up      build it (also without a word)
#   sh THIS down    remove it, with all that runs in it
# Without root, in namespaces of your own:
#   unshare -Urnm sh -c 'mount -t tmpfs none /run && sh THIS up && exec sh'
set -eu

"""

_PROGRAM = """# The program behind the TUN device, handed to python3 as text so that no file is left behind.
print_program() {
    cat <<'PYTHON'
%sPYTHON
}

# start_tunnel NAMESPACE DEVICE ARGUMENT...: returns once the program is attached to the device.
start_tunnel() {
    namespace=$1 device=$2
    shift 2
    ip netns exec "$namespace" python3 -c "$(print_program)" "$@" </dev/null >/dev/null 2>&1 &
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        if ip -n "$namespace" link show "$device" | grep -q LOWER_UP; then return; fi
        sleep 0.25
    done
    echo "the tunnel in $namespace did not start" >&2
    exit 1
}

"""

_TAIL = """
names() {
    cat <<'NAMES'
%sNAMES
}

down() {
    for namespace in $(names); do
        if ! [ -e "/run/netns/$namespace" ]; then continue; fi
        for process in $(ip netns pids "$namespace"); do kill "$process" || :; done
        ip netns delete "$namespace"
    done
}

case ${1:-up} in
up) up ;;
down) down ;;
*)
    echo "usage: $0 [up|down]" >&2
    exit 2
    ;;
esac
"""
