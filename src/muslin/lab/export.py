"""A lab as commands: for reading, for comparing, and as a script that rebuilds it without Muslin.

Theory of operation: operations describe themselves as commands; here they get headings, and around them the few
lines that make a script: the tunnel program goes along as a here document, since the script must run alone, and
``down`` takes everything back. Nothing is in the script that the lab itself would not do. Where nodes run agents, the
script starts those: it needs Muslin for them, and for nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from muslin.lab.agent_plan import AGENT_BRIDGE, Agent, Member
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


def command_lines(
    ops: Iterable[Op], tunnels: Sequence[Tunnel] = (), programs: Sequence[str] = (), late_ops: Sequence[Op] = ()
) -> Iterator[str]:
    """The commands under headings, as a person would type them.

    ``programs`` are commands too, that start agents, and ``late_ops`` need what these make.
    """
    heading = ""
    for op in ops:
        if heading_of(op) != heading:
            heading = heading_of(op)
            yield f"# {heading}"
        yield op.describe()
    if tunnels:
        yield "# tunnels: TUN on one side, UDP on the other"
        yield from (describe_tunnel(tunnel) for tunnel in tunnels)
    if programs:
        yield "# agents, and the store that they find each other in"
        yield from programs
    if late_ops:
        yield "# ports of the bridges that the agents have made"
        yield from (op.describe() for op in late_ops)


def shell_script(lab: str, lab_plan: LabPlan, agents: Sequence[Agent] = (), members: Sequence[Member] = ()) -> str:
    """A POSIX shell script: ``up`` (or nothing) builds the lab, ``down`` removes it."""
    ops = creations(lab_plan.state)
    build = _indented(command_lines(op for op in ops if not lab_plan.needs_agent(op)))
    start = "".join(f"    {_start_line(tunnel)}\n" for tunnel in lab_plan.tunnels)
    if agents:
        late = [op for op in ops if lab_plan.needs_agent(op)]
        build += _agent_lines(agents, members, late)
        return f"{_HEAD % lab}{_AGENT_HEAD}up() {{\n{build}}}\n{_tail(lab_plan, agents)}"
    program = _program_lines() if lab_plan.tunnels else ""
    return f"{_HEAD % lab}{program}up() {{\n{build}{start}}}\n{_tail(lab_plan)}"


def _indented(lines: Iterable[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


def _agent_lines(agents: Sequence[Agent], members: Sequence[Member], late_ops: Sequence[Op]) -> str:
    """The programs in the background, silent, and what has to wait for them."""
    commands = [command for member in members for command in member.commands]
    commands += [command for agent in agents for command in agent.commands]
    silent = [re.sub(r" &$", " </dev/null >/dev/null 2>&1 &", command) for command in commands]
    waits = [f"await_bridge {shlex.quote(agent.netns)} {AGENT_BRIDGE}" for agent in agents]
    return _indented(silent) + _indented(waits) + _indented(command_lines((), late_ops=late_ops))


def _tail(lab_plan: LabPlan, agents: Sequence[Agent] = ()) -> str:
    names = "".join(f"{shlex.quote(name)}\n" for name in lab_plan.state.own_netns)
    home = os.path.dirname(agents[0].run_directory) if agents else ""
    files = f"    rm -rf -- {shlex.quote(home)}\n" if agents else ""
    return _TAIL % (names, files)


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

_AGENT_HEAD = """# The agents are those of muslin, which must be there, and with the store etcd that as well.

# await_bridge NAMESPACE LINK: returns once the agent has made it.
await_bridge() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        if ip -n "$1" link show "$2" >/dev/null 2>&1; then return; fi
        sleep 1
    done
    echo "the agent in $1 did not make $2" >&2
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
%s}

case ${1:-up} in
up) up ;;
down) down ;;
*)
    echo "usage: $0 [up|down]" >&2
    exit 2
    ;;
esac
"""
