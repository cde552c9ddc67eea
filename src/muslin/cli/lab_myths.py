"""``muslin lab myths``: what is said and does not hold, each shown live."""

from __future__ import annotations

from typing import Any, Literal

import click
import msgspec

from muslin.cli.output import emit, output_option, say, use_color
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

MYTH_LAB = "myths"


class MythShown(msgspec.Struct, frozen=True, kw_only=True):
    """One myth with its proof; ``holds`` None where it could not be tried."""

    name: str
    claim: str
    truth: str
    lines: tuple[str, ...]
    holds: bool | None


class MythsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``myths -o json`` prints."""

    schema: Literal["muslin.myths/v1"] = "muslin.myths/v1"
    myths: tuple[MythShown, ...]


@click.command()
@click.argument("which", metavar="[MYTH]...", nargs=-1)
@click.option("--list", "only_list", is_flag=True, help="Only list them.")
@click.option("--name", "-n", default=MYTH_LAB, show_default=True, metavar="NAME", help="Name of the throw-away lab.")
@output_option
def myths(which: tuple[str, ...], only_list: bool, name: str, output: str) -> int:
    """Show what is said of such networks and does not hold: the claim, a live measurement, and what holds.

    Each gets a lab of its own, which is taken away afterwards. Exit code 1 where a measurement does not bear the
    correction out.
    """
    from muslin.lab.myths import MYTHS

    unknown = set(which) - {myth.name for myth in MYTHS}
    if unknown:
        raise UsageError(f"there is no myth {sorted(unknown)[0]!r}", f"there is {', '.join(m.name for m in MYTHS)}")
    chosen = [myth for myth in MYTHS if not which or myth.name in which]
    if only_list:
        for myth in chosen:
            click.echo(f"{myth.name:<10} {myth.claim}")
        return EXIT_OK
    shown = []
    for myth in chosen:
        say(f"{myth.name}: raising a lab for it")
        proof = _prove(myth, name)
        shown.append(
            MythShown(name=myth.name, claim=myth.claim, truth=myth.truth, lines=proof.lines, holds=proof.holds)
        )
    emit(MythsDocument(myths=tuple(shown)), output, lambda: "\n\n".join(_draw(one) for one in shown))
    return EXIT_CHECK_FAILED if any(one.holds is False for one in shown) else EXIT_OK


def _prove(myth: Any, name: str) -> Any:
    from muslin.lab.presets import preset
    from muslin.lab.run import down, require, up
    from muslin.lab.state import LabDirectory

    directory = LabDirectory(name)
    if directory.read() is not None:
        raise UsageError(
            f"a lab {name!r} is there already", f"take it away with: muslin lab down {name}, or give another --name"
        )
    try:
        up(directory, preset(myth.step, backend=myth.backend))
        return myth.prove(require(directory))
    finally:
        down(directory)


def _draw(one: MythShown) -> str:
    mark = {True: "✓ measured just now", False: "✗ not borne out here", None: "- not tried"}[one.holds]
    head = click.style(one.name, bold=True) if use_color() else one.name
    return "\n".join(
        [head, f"  said:   {one.claim}", *(f"    {line}" for line in one.lines), f"  holds:  {one.truth}", f"  {mark}"]
    )
