"""``muslin lab trace``: one packet, predicted and observed at every link."""

from __future__ import annotations

from typing import Any

import click

from muslin.cli.lab_exec import complete_places
from muslin.cli.lab_explain import FAMILY_NUMBERS, check_port, packet_options
from muslin.cli.output import draw_table, emit, output_option, say, use_color
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

COLUMNS = ("", "PLACE", "LINK", "µs", "TTL", "BYTES", "PACKET", "WHAT IS NEW")


@click.command("trace")
@click.argument("source", metavar="SRC", shell_complete=complete_places)
@click.argument("destination", metavar="DST", shell_complete=complete_places)
@name_option
@packet_options
@click.option("--ladder", "climbs", is_flag=True, help="With TTL 1, 2, 3 ...: who answers, and who should.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.05, 60), default=1.0, show_default=True, metavar="S")
@click.option("--html", "page", metavar="FILE", help="Also write a page that replays it: one file, for mail or class.")
@output_option
def trace(
    source: str,
    destination: str,
    name: str,
    family: str | None,
    climbs: bool,
    timeout_s: float,
    page: str | None,
    output: str,
    **packet: Any,
) -> int:
    """Send one marked packet from SRC to DST and show every link that it and its answer are seen at.

    Prediction and observation stand side by side: ✓ predicted and seen, ≠ where they differ. Listens to all links
    of the lab by itself (no tcpdump), also without root. Exit code 0: all as predicted; 1: not.

    \b
    muslin lab trace con1.node1 con1.node2
    muslin lab trace con1.node1 172.16.1.2 --protocol udp --port 53 --size 1400
    muslin lab trace con1.node1 con1.node2 --size 3000 --no-df
    muslin lab trace con1.node1 con1.node2 --ladder
    """
    from muslin.lab.places import question_for
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory
    from muslin.verify.trace import ladder
    from muslin.verify.trace import trace as send_and_watch

    check_port(packet)
    if page and climbs:
        raise UsageError("a ladder is no replay", "give --html without --ladder")
    state = require(LabDirectory(name))
    question = question_for(state, source, destination, FAMILY_NUMBERS[family], **packet)  # type: ignore[arg-type]
    try:
        if climbs:
            steps = ladder(state, question, timeout_s)
            emit(steps, output, lambda: _draw_ladder(steps))
            return EXIT_OK if steps.ok else EXIT_CHECK_FAILED
        found = send_and_watch(state, question, timeout_s)
    except ValueError as error:
        raise UsageError(f"such a packet cannot be made: {error}", "give another --size") from None
    if page:
        _write_page(found, page)
    emit(found, output, lambda: _draw(found))
    return EXIT_OK if found.ok else EXIT_CHECK_FAILED


@click.command("replay")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--html", "page", metavar="FILE", help="Write a page that replays it instead of playing it here.")
@click.option(
    "--delay", "delay_s", type=click.FloatRange(0, 10), default=0.5, show_default=True, metavar="S",
    help="Between two links, on a terminal.",
)  # fmt: skip
def replay(file: str, page: str | None, delay_s: float) -> int:
    """Play a trace again that was kept with `trace -o json`: here, or as one HTML file that needs nothing else.

    \b
    muslin lab trace con1.node1 con1.node2 -o json > walk.json
    muslin lab replay walk.json
    muslin lab replay walk.json --html walk.html
    """
    import sys
    import time

    from muslin.verify.replay import frames, parse_trace

    try:
        with click.open_file(file, "rb") as opened:
            found = parse_trace(file, opened.read())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if page:
        _write_page(found, page)
        return EXIT_OK
    moving = sys.stdout.isatty()
    for number, picture in enumerate(frames(found)):
        back = "\x1b[2F\x1b[J" if moving and number else ""
        click.echo(f"{back}{picture}")
        if moving:
            time.sleep(delay_s)
    return EXIT_OK


def _write_page(found: Any, page: str) -> None:
    from muslin.verify.replay import html_page

    try:
        with open(page, "w", encoding="utf-8") as opened:
            opened.write(html_page(found))
    except OSError as error:
        raise UsageError(f"{page} cannot be written: {error.strerror}") from None
    say(f"the replay is in {page}")


def _draw(found: Any) -> str:
    may_be_cut = "" if found.fixed_size else ", may be cut"
    packet = f"{found.protocol.upper()}, {found.size_bytes} bytes{may_be_cut}"
    lines = [f"{found.source} → {found.destination}, {packet}"]
    for leg in ("request", "answer", "error"):
        rows: list[tuple[str, ...]] = [_cells(line) for line in found.lines if line.leg == leg]
        if rows:
            lines += ["", click.style(leg, bold=True) if use_color() else leg, draw_table(COLUMNS, rows)]
    lines.append("")
    lines += [f"✗ {found.cause}"] if found.cause else []
    lines += [f"  ✓ {found.proof}"] if found.proof else []
    lines += [f"  ≠ {found.contradiction}"] if found.contradiction else []
    lines += [f"  its packet filter could not be traced in {words}" for words in found.untraced]
    lines += [f"  mend it in {found.mend}"] if found.mend else []
    lines.append(f"the packet {_fate(found)}; {'as predicted' if found.ok else '≠ not as predicted'}")
    return "\n".join(lines)


def _fate(found: Any) -> str:
    if found.answered:
        return "arrives, and so does its answer"
    if not found.arrived or not found.cause:
        return "arrives" if found.arrived else "does not arrive"
    left = any(line.leg == "answer" and line.at_us is not None for line in found.lines)
    return "arrives, and its answer is lost" if left else "gets there, and is dropped"


def _cells(line: Any) -> tuple[str, ...]:
    mark = "≠" if line.differs else "✓" if line.predicted else "·"
    packet = f"{line.source} > {line.destination}"
    if line.outer_source:
        packet = f"[{line.outer_source} > {line.outer_destination}] {packet}"
    new = "; ".join(words for words in (line.fragment, *line.changes, line.differs) if words)
    if not line.predicted and not line.differs:
        new = "a copy that the bridge sends by every port" if line.leg != "error" else new
    return (
        mark,
        line.place,
        f"{line.link} {line.direction}",
        str(line.at_us) if line.at_us is not None else "-",
        str(line.ttl),
        str(line.size_bytes or "-"),
        packet,
        new,
    )


def _draw_ladder(steps: Any) -> str:
    rows: list[tuple[str, ...]] = [
        ("≠" if rung.differs else "✓", str(rung.ttl), rung.predicted or "-", rung.seen or "-", rung.what)
        for rung in steps.rungs
    ]
    return f"{steps.source} → {steps.destination}\n" + draw_table(("", "TTL", "PREDICTED", "HEARD", "WHAT"), rows)
