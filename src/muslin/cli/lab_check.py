"""``muslin lab check``: the verdict on R1, R2 and R3, with proof."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from muslin.cli.output import emit, output_option, terminal_width, use_color
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

TABLE_ROWS = 12  # what fits beside the heat-map on a small terminal
QUICK = 64  # pairs that are done before a progress line would be read


@click.command()
@name_option
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Check only N pairs, evenly spread.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which sample.")
@click.option("--test", "patterns", multiple=True, metavar="[!]REGEX", help="Only pairs whose title matches (or not).")
@click.option("--protocol", "protocols", multiple=True, type=click.Choice(["icmp", "tcp", "udp"]), help="Only these.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.05, 60), default=1.0, show_default=True, metavar="S")
@click.option("--wide", is_flag=True, help="A row for each pair, with what each end saw.")
@click.option("--heatmap/--no-heatmap", default=None, help="Draw the matrix (default: where it fits).")
@click.option("--junit-file", type=click.Path(dir_okay=False, writable=True), help="Write a JUnit report too.")
@output_option
def check(
    name: str,
    sample: int | None,
    seed: int,
    patterns: tuple[str, ...],
    protocols: tuple[str, ...],
    timeout_s: float,
    wide: bool,
    heatmap: bool | None,
    junit_file: str | None,
    output: str,
) -> int:
    """Prove the three requirements, pair by pair and both ways, by ICMP, TCP and UDP.

    \b
    R1  all containers reach all containers without NAT
    R2  nodes and containers reach each other without NAT
    R3  the address a container has is the address others see

    Exit code 0: all proved; 1: at least one is not.
    """
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory
    from muslin.verify.report import to_junit_xml

    state = require(LabDirectory(name))
    report = run_check(state, sample, seed, patterns, protocols, timeout_s)
    if junit_file:
        with open(junit_file, "wb") as file:
            file.write(to_junit_xml(report))
    emit(report, output, lambda: draw_report(report, wide, heatmap))
    return EXIT_OK if report.ok else EXIT_CHECK_FAILED


def run_check(
    state: Any,
    sample: int | None = None,
    seed: int = 0,
    patterns: tuple[str, ...] = (),
    protocols: tuple[str, ...] = (),
    timeout_s: float = 1.0,
) -> Any:
    """Check a lab that this process has entered; the judged report."""
    from muslin.verify.lab_pairs import HopCounter, endpoints
    from muslin.verify.matrix import all_pairs, sample_pairs
    from muslin.verify.probe import run_checks
    from muslin.verify.verdict import make_report

    pairs = all_pairs(endpoints(state.name, state.topology), HopCounter(state.topology))
    pairs = _matching(pairs, patterns)
    if sample is not None and sample < len(pairs):
        pairs = sample_pairs(pairs, sample, seed)
    begun = time.monotonic()
    chosen: Any = {"protocols": protocols} if protocols else {}
    results = run_checks(pairs, timeout_s=timeout_s, progress=_progress(len(pairs)), **chosen)
    if len(pairs) > QUICK and sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    return make_report(results, time.monotonic() - begun)


def _matching(pairs: Any, patterns: tuple[str, ...]) -> Any:
    import re

    for pattern in patterns:
        negated = pattern.startswith("!")
        try:
            expression = re.compile(pattern.removeprefix("!"))
        except re.error as error:
            raise UsageError(f"--test {pattern!r} is no regular expression: {error}") from None
        pairs = tuple(pair for pair in pairs if bool(expression.search(pair.title)) != negated)
    if not pairs:
        raise UsageError("no pair is left to check", "see the titles in the first column of: muslin lab check")
    return pairs


def _progress(total: int) -> Any:
    if total <= QUICK or not sys.stderr.isatty():
        return None
    return lambda done, of: click.echo(f"\rchecking: {done} of {of} pairs", err=True, nl=False)


def draw_report(report: Any, wide: bool = False, heatmap: bool | None = None) -> str:
    """The report for people: table or heat-map by size, then the verdict."""
    from muslin.verify.report import render_heatmap, render_table, render_verdict

    color, width = use_color(), terminal_width()
    parts = []
    if wide or (len(report.cells) <= TABLE_ROWS and not heatmap):
        parts.append(render_table(report, wide, color=color, width=max(width, 100)))
    if heatmap or (heatmap is None and not wide):
        parts.append(render_heatmap(report, color=color, ascii_only=not color, width=width))
    parts.append(render_verdict(report))
    return "\n\n".join(part.rstrip() for part in parts)
