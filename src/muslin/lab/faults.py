"""Break a lab on purpose, so that somebody learns to find out why.

Theory of operation: a ``Fault`` is a way in which real networks break, with what one sees, three hints, and what to
learn from it (the texts are in ``lab.fault_catalogue``). ``injection`` turns it into commands for one place, drawn by a
seeded dice, and the commands that undo what converging would leave alone. What was broken is written into the lab's
directory: so hints, score and healing are there for later calls, and ``down`` takes it along. Where agents run, they
mend what is theirs; whoever breaks such a lab watches them (``verify.agents_mend``).
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from muslin.errors import MuslinError, UsageError
from muslin.explain.path import Cause
from muslin.kernel import netns as netns_door
from muslin.lab.plan import netns_of
from muslin.lab.state import LabDirectory, LabState
from muslin.lab.topology import Topology

RECORD_FILE = "break.json"
HINTS = 3
FULL_SCORE = 100
HINT_COST = 20


class Command(msgspec.Struct, frozen=True):
    """A command for the shell of one place."""

    place: str
    words: str


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """What breaks the lab and, ``undo``, what takes back that which is not the lab's own."""

    commands: tuple[Command, ...]
    undo: tuple[Command, ...] = ()
    ends_tunnel_in: str = ""
    """The place whose tunnel program is ended."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One way to break. ``causes`` are those that a diagnosis may name; ``fits`` says in which labs it makes sense."""

    name: str
    symptom: str
    hints: tuple[str, str, str]
    lesson: str
    causes: tuple[Cause, ...]
    fits: Callable[[Topology], bool]
    inject: Callable[[Topology, random.Random], Injection]


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """What is broken at this moment, as it stands in the lab's directory."""

    schema: Literal["muslin.lab-break/v1"] = "muslin.lab-break/v1"
    fault: str
    seed: int
    undo: tuple[Command, ...] = ()
    hints_given: int = 0
    given_up: bool = False

    @property
    def score(self) -> int:
        """Of 100: each hint costs 20, and whoever has the answer told gets none."""
        return 0 if self.given_up else FULL_SCORE - HINT_COST * self.hints_given


def read_record(directory: LabDirectory) -> Broken | None:
    """What is broken, None when nothing is; MuslinError for a record that cannot be understood."""
    try:
        with open(f"{directory.path}/{RECORD_FILE}", "rb") as file:
            return msgspec.json.decode(file.read(), type=Broken)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise MuslinError(
            f"the record {directory.path}/{RECORD_FILE} of what is broken cannot be understood: {error}",
            f"mend the lab with: muslin lab heal --name {directory.name}",
        ) from None


def write_record(directory: LabDirectory, broken: Broken) -> None:
    """Replace the record."""
    target = f"{directory.path}/{RECORD_FILE}"
    with open(f"{target}.new", "wb") as file:
        file.write(msgspec.json.encode(broken))
    os.rename(f"{target}.new", target)


def remove_record(directory: LabDirectory) -> None:
    """Nothing is broken any more."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory.path}/{RECORD_FILE}")


def choose(faults: Sequence[Fault], topology: Topology, name: str | None, seed: int) -> Fault:
    """The fault of this name, or one by the dice; UsageError where there is none that fits the lab."""
    fitting = [fault for fault in faults if fault.fits(topology)]
    if name is None:
        return random.Random(seed).choice(fitting)
    chosen = next((fault for fault in faults if fault.name == name), None)
    if chosen is None:
        raise UsageError(f"there is no fault {name!r}", f"there is {', '.join(fault.name for fault in faults)}")
    if chosen not in fitting:
        shape = f"step {topology.step}, backend {topology.backend}" if topology.step else f"backend {topology.backend}"
        raise UsageError(
            f"the fault {name!r} makes no sense in this lab ({shape})",
            f"here, take one of {', '.join(fault.name for fault in fitting)}",
        )
    return chosen


def inject(state: LabState, directory: LabDirectory, fault: Fault, seed: int) -> Broken:
    """Break the lab; UsageError where it is broken already. What was done is undone when a command is refused."""
    if read_record(directory) is not None:
        raise UsageError("this lab is broken already", "see muslin lab break --hint, or mend it with: muslin lab heal")
    injection = fault.inject(state.topology, random.Random(seed))
    broken = Broken(fault=fault.name, seed=seed, undo=injection.undo)
    write_record(directory, broken)
    try:
        for command in injection.commands:
            run(state, command)
    except MuslinError:
        undo(state, directory)
        raise
    if injection.ends_tunnel_in:
        from muslin.kernel.programs import end_processes
        from muslin.lab.processes import running_tunnels

        end_processes([one.pid for one in running_tunnels([netns_of(state.name, injection.ends_tunnel_in)])])
    return broken


def undo(state: LabState, directory: LabDirectory) -> None:
    """Take back what converging would leave alone; what is gone already is fine."""
    broken = read_record(directory)
    for command in broken.undo if broken else ():
        with contextlib.suppress(MuslinError):
            run(state, command)
    remove_record(directory)


def run(state: LabState, command: Command) -> None:
    """Run a command in its place; MuslinError with its words when it fails."""

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command.words], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )

    done = netns_door.call_in(netns_of(state.name, command.place), call)
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise MuslinError(
            f"in {command.place}, {command.words!r} failed: {words}",
            "it needs iproute2, nftables and, for checksum-offload, ethtool",
        )
