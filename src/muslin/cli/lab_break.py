"""``muslin lab break``, ``diagnose`` and ``heal``: a lab broken on purpose, the cause found, and mended."""

from __future__ import annotations

import random
import time
from typing import Any, Literal

import click
import msgspec

from muslin.cli.output import counted, draw_table, emit, output_option, say
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

SHOWN_PAIRS = 4


class FaultRow(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of the catalogue. ``fits``: whether it makes sense in the lab that is up; None without one."""

    name: str
    symptom: str
    fits: bool | None


class FaultList(msgspec.Struct, frozen=True, kw_only=True):
    """What ``break --list -o json`` prints."""

    schema: Literal["muslin.lab-faults/v1"] = "muslin.lab-faults/v1"
    faults: tuple[FaultRow, ...]


class BreakDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``break -o json`` prints: how the exercise stands. ``fault`` is named once it is over or was asked for."""

    schema: Literal["muslin.lab-exercise/v1"] = "muslin.lab-exercise/v1"
    broken: bool
    seed: int
    symptom: str
    hints: tuple[str, ...] = ()
    fault: str = ""
    lesson: str = ""
    score: int
    mended_by_agents: Any = None
    """What the agents of the lab did at once, and after how many seconds; None where they left it to you."""
    passed: dict[str, str] = {}
    """By requirement: how many of its cells the last check proved."""


@click.command("break")
@click.argument("fault", metavar="[FAULT]", required=False)
@name_option
@click.option("--list", "listing", is_flag=True, help="List the catalogue.")
@click.option("--random", "by_dice", is_flag=True, help="Whichever the dice choose among those that fit.")
@click.option("--seed", type=int, help="Of the dice: which fault, and where.")
@click.option("--hint", is_flag=True, help="The next of three hints; each costs 20 points of 100.")
@click.option("--check", "checking", is_flag=True, help="Check whether the lab is mended, and tell the score.")
@click.option("--solve", is_flag=True, help="Give up: name the fault and what there is to learn from it.")
@output_option
def break_(
    fault: str | None,
    name: str,
    listing: bool,
    by_dice: bool,
    seed: int | None,
    hint: bool,
    checking: bool,
    solve: bool,
    output: str,
) -> int:
    """Break the lab, so that you can find out why it no longer works.

    \b
    muslin lab break --random            something breaks; you see what the users would see
    muslin lab break --hint              where to look, then with what, then what it shows
    muslin lab break --check             mended? 100 points less 20 a hint; and what there is to learn
    muslin lab break --solve             the answer, for no points
    muslin lab break no-forwarding       a certain one; in a lab with agents: watch whether they mend it
    muslin lab diagnose                  have the cause told;  muslin lab heal  takes everything back
    """
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    wishes = [bool(fault), by_dice, listing, hint, checking, solve]
    if sum(wishes) != 1:
        raise UsageError("break what?", "give one of: FAULT, --random, --list, --hint, --check, --solve")
    directory = LabDirectory(name)
    if listing:
        return _list(directory, output)
    state = require(directory)
    if fault or by_dice:
        return _break(directory, state, fault, seed, output)
    if checking:
        return _check(directory, state, output)
    return _tell(directory, solve, output)


def _list(directory: Any, output: str) -> int:
    from muslin.lab.fault_catalogue import FAULTS

    state = directory.read()
    rows = tuple(
        FaultRow(name=one.name, symptom=one.symptom, fits=one.fits(state.topology) if state else None) for one in FAULTS
    )
    marks = {True: "yes", False: "no", None: "-"}
    cells: list[tuple[str, ...]] = [(row.name, marks[row.fits], row.symptom) for row in rows]
    emit(FaultList(faults=rows), output, lambda: draw_table(("FAULT", "FITS", "WHAT ONE SEES"), cells))
    return EXIT_OK


def _break(directory: Any, state: Any, name: str | None, seed: int | None, output: str) -> int:
    from muslin.lab.fault_catalogue import FAULTS
    from muslin.lab.faults import choose, inject, undo

    number = seed if seed is not None else random.SystemRandom().randrange(10000)
    chosen = choose(FAULTS, state.topology, name, number)
    with directory.locked():
        broken_at_s = time.time()
        broken = inject(state, directory, chosen, number)
        mended = _watch_agents(directory, state, broken_at_s)
        if mended is not None:
            undo(state, directory)
    if mended is not None:
        _show(broken, output, over=True, agents=mended)
        say(f"to mend it yourself, break a lab without agents: muslin lab break {chosen.name} --seed {number}")
        return EXIT_OK
    _show(broken, output)
    if state.topology.agents is not None:
        say("this is none of the agents' business, so that they leave it to you")
    say("find out why (muslin lab check shows who is hit), mend it, then: muslin lab break --check")
    return EXIT_OK


def _watch_agents(directory: Any, state: Any, broken_at_s: float) -> Any:
    """What the agents of the lab did about it; None where there are none, or where they leave it alone."""
    if state.topology.agents is None:
        return None
    from muslin.lab.agents import Crew
    from muslin.verify.agents_mend import watch

    crew = Crew.of(state.name, directory.path, state.topology)
    return watch(state, {agent.node: agent.socket for agent in crew.agents}, broken_at_s)


def _record(directory: Any) -> tuple[Any, Any]:
    """What is broken and its entry in the catalogue."""
    from muslin.lab.fault_catalogue import FAULTS
    from muslin.lab.faults import read_record

    broken = read_record(directory)
    if broken is None:
        raise UsageError(f"lab {directory.name!r} has not been broken", "break it with: muslin lab break --random")
    return broken, next(one for one in FAULTS if one.name == broken.fault)


def _tell(directory: Any, solve: bool, output: str) -> int:
    """The next hint, or the solution."""
    from muslin.lab.faults import HINTS, write_record

    with directory.locked():
        broken, _ = _record(directory)
        if solve:
            broken = msgspec.structs.replace(broken, given_up=True)
        elif broken.hints_given < HINTS:
            broken = msgspec.structs.replace(broken, hints_given=broken.hints_given + 1)
        else:
            say("there are no more hints; muslin lab break --solve tells the answer")
        write_record(directory, broken)
    _show(broken, output, over=solve)
    return EXIT_OK


def _check(directory: Any, state: Any, output: str) -> int:
    from muslin.cli.lab_check import run_check
    from muslin.lab.faults import remove_record

    broken, _ = _record(directory)
    report = run_check(state)
    passed = {name: f"{total.passed}/{total.of}" for name, total in report.totals.items() if total.of}
    if report.ok:
        with directory.locked():
            remove_record(directory)
    _show(broken, output, over=report.ok, passed=passed, mended=report.ok)
    if not report.ok:
        say("not yet: muslin lab check shows the pairs, muslin lab break --hint where to look")
    return EXIT_OK if report.ok else EXIT_CHECK_FAILED


def _show(
    broken: Any,
    output: str,
    *,
    over: bool = False,
    passed: dict[str, str] | None = None,
    mended: bool = False,
    agents: Any = None,
) -> None:
    from muslin.lab.fault_catalogue import FAULTS

    fault = next(one for one in FAULTS if one.name == broken.fault)
    document = BreakDocument(
        broken=not (mended or agents),
        mended_by_agents=agents,
        seed=broken.seed,
        symptom=fault.symptom,
        hints=fault.hints[: broken.hints_given],
        fault=fault.name if over else "",
        lesson=fault.lesson if over else "",
        score=broken.score,
        passed=passed or {},
    )
    emit(document, output, lambda: _draw(document, mended))


def _draw(document: BreakDocument, mended: bool) -> str:
    lines = [f"what one sees: {document.symptom}  (seed {document.seed})"]
    lines += [f"hint {number}: {words}" for number, words in enumerate(document.hints, start=1)]
    if document.passed:
        lines.append("proved: " + ", ".join(f"{name} {of}" for name, of in document.passed.items()))
    if agents := document.mended_by_agents:
        lines.append(f"the agents have mended it, {agents.after_s:.2f} s after it broke")
        for repair in agents.repairs:
            more = repair.count - len(repair.commands)
            lines += [f"  {repair.node}$ {command}" for command in repair.commands]
            lines += [f"  and {counted(more, 'more command')}"] if more > 0 else []
    if document.fault:
        lines.append(f"it {'is' if document.broken else 'was'} {document.fault}: {document.lesson}")
    if mended:
        lines.append(f"mended: {document.score} points")
    return "\n".join(lines)


@click.command()
@click.argument("source", metavar="[SRC]", required=False)
@click.argument("destination", metavar="[DST]", required=False)
@click.option(
    "--prove", "proving", is_flag=True, help="Send a packet for each cause, and show what the kernel says of it."
)
@name_option
@output_option
def diagnose(source: str | None, destination: str | None, proving: bool, name: str, output: str) -> int:
    """Say why packets are lost or changed: each cause in one sentence, with the commands that mend it.

    Looks at all pairs, or those from SRC to DST. It follows packets through what the kernel holds and sends none.
    With --prove it also sends one for each cause: the kernel's counters and its packet filter's trace then confirm the
    cause, or contradict it (≠); with SRC and DST they may name one that cannot be read. Exit code 1 where there is a
    cause.
    """
    from muslin.kernel.converge import plan_ops
    from muslin.kernel.linux import LinuxKernel
    from muslin.lab.places import question_for
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory
    from muslin.verify.diagnose import diagnose as find_causes
    from muslin.verify.trace import trace

    if bool(source) != bool(destination):
        raise UsageError("from where to where?", "give SRC and DST, or neither for all pairs")
    state = require(LabDirectory(name))
    only = None
    if source and destination:
        only = question_for(state, source, destination)
    prove = (lambda question: trace(state, question)) if proving else None
    with LinuxKernel() as kernel:
        found = find_causes(state, lambda wanted: plan_ops(kernel, wanted, state.owned)[1], only, prove)
    emit(found, output, lambda: _draw_diagnosis(found))
    return EXIT_OK if found.ok else EXIT_CHECK_FAILED


def _draw_diagnosis(found: Any) -> str:
    if found.ok:
        return f"nothing is wrong on the way of {counted(found.pairs, 'pair')}"
    return "\n\n".join(_draw_finding(one) for one in found.findings)


def _draw_finding(finding: Any) -> str:
    shown = ", ".join(finding.pairs[:SHOWN_PAIRS])
    more = f" and {len(finding.pairs) - SHOWN_PAIRS} more" if len(finding.pairs) > SHOWN_PAIRS else ""
    lines = [f"✗ {finding.cause.replace('-', ' ')}: {finding.sentence}", f"  hits {shown}{more}"]
    lines += [f"  ✓ {finding.proof}"] if finding.proof else []
    lines += [f"  ≠ {finding.contradiction}"] if finding.contradiction else []
    lines += [f"  mend: {command}" for command in finding.mend]
    return "\n".join(lines)


@click.command()
@name_option
def heal(name: str) -> int:
    """Take back what `break` broke, and whatever else has drifted: the lab is again what it was raised as."""
    from muslin.lab.faults import read_record, undo
    from muslin.lab.run import require
    from muslin.lab.run import up as raise_again
    from muslin.lab.state import LabDirectory

    directory = LabDirectory(name)
    state = require(directory)
    was_broken = read_record(directory) is not None
    with directory.locked():
        undo(state, directory)
    report = raise_again(directory, state.topology)
    changed = len(report.report.results) + len(report.started)
    words = (
        "was as it should be"
        if not (changed or was_broken)
        else f"is mended ({counted(changed, 'command')})"
        if changed
        else "is mended"
    )
    say(f"lab {name!r} {words}")
    return EXIT_OK
