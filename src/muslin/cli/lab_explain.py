"""``muslin lab explain`` and ``muslin explain``: which way a packet goes, and why."""

from __future__ import annotations

from typing import Any, Literal

import click
import msgspec

from muslin.cli.lab_exec import complete_places
from muslin.cli.output import counted, draw_table, emit, output_option
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError

FAMILY_NUMBERS = {"4": 4, "6": 6, None: None}


def packet_options(function: Any) -> Any:
    """What the packet is like: the same for all verbs that follow one."""
    options = (
        click.option("--family", type=click.Choice(["4", "6"]), help="Which address of a name (default: its first)."),
        click.option("--protocol", type=click.Choice(["icmp", "tcp", "udp"]), default="icmp", show_default=True),
        click.option("--port", type=click.IntRange(1, 65535), help="Of the destination, for tcp and udp."),
        click.option(
            "--size", "size_bytes", type=click.IntRange(28, 65535), default=84, show_default=True,
            help="Of the whole IP packet, in bytes.",
        ),
        click.option(
            "--df/--no-df", "fixed_size", default=True, show_default=True,
            help="Whether it must not be cut. With --no-df a link with a smaller MTU takes it in fragments.",
        ),
        click.option("--ttl", type=click.IntRange(1, 255), default=64, show_default=True, help="To begin with."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _shown_options(function: Any) -> Any:
    function = click.option("--wide", "-w", is_flag=True, help="Also neighbours, sizes, settings and packet filter.")(
        function
    )
    return click.option(
        "--why-not", metavar="[PLACE@]ROUTE", default="", help="Why this route was not taken, such as 'default'."
    )(function)


class PairExplained(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of the matrix that ``check`` checks."""

    source: str
    destination: str
    address: str
    explanation: Any


class AllExplained(msgspec.Struct, frozen=True, kw_only=True):
    """What ``explain --all -o json`` prints."""

    schema: Literal["muslin.explain-all/v1"] = "muslin.explain-all/v1"
    pairs: tuple[PairExplained, ...]


@click.command("explain")
@click.argument("source", metavar="SRC", required=False, shell_complete=complete_places)
@click.argument("destination", metavar="DST", required=False, shell_complete=complete_places)
@click.option("--all", "every", is_flag=True, help="Every pair that `check` checks, a line each.")
@name_option
@packet_options
@_shown_options
@output_option
def lab_explain(
    source: str | None,
    destination: str | None,
    every: bool,
    name: str,
    family: str | None,
    wide: bool,
    output: str,
    **packet: Any,
) -> int:
    """Tell the way of a packet from SRC to DST and of its answer, hop by hop, and why it is this one.

    SRC and DST are names (`con1.node1`, `node2`) or addresses. Nothing is sent: it is computed from what the
    kernel holds, as the kernel does it. Exit code 0: it arrives, and so does the answer; 1: it does not.

    \b
    muslin lab explain con1.node1 con1.node2
    muslin lab explain con1.node1 10.0.0.20 --wide
    muslin lab explain node1 172.16.1.2 --why-not node1@default
    muslin lab explain --all
    """
    from muslin.explain.both import explain as explain_both
    from muslin.lab.places import lab_network, question_for
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory

    if every == bool(source or destination) or (source and not destination):
        raise UsageError("from where to where?", "give SRC and DST, or --all without them")
    check_port(packet)
    state = require(LabDirectory(name))
    if every:
        return _explain_all(state, output)
    assert source is not None
    assert destination is not None
    question = question_for(state, source, destination, FAMILY_NUMBERS[family], **packet)  # type: ignore[arg-type]
    with lab_network(state) as network:
        return show(explain_both(network, question), wide, output)


@click.command("explain")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@packet_options
@_shown_options
@output_option
def explain(source: str, destination: str, family: str | None, wide: bool, output: str, **packet: Any) -> int:
    """Tell the way of a packet from SRC to DST and of its answer, as far as this machine goes.

    SRC and DST are addresses, names of network namespaces (as `ip netns` has them), or `host` for the
    namespace that this runs in. Nothing is sent and nothing is changed. It needs no root; what only root may see
    (the packet filter, other namespaces) is then left out, and named.

    \b
    muslin explain host 10.42.1.7 --wide
    muslin explain 10.42.0.5 10.42.1.7 --why-not default
    """
    from muslin.cli.host_network import closed_namespaces, host_network, host_question
    from muslin.explain.both import explain as explain_both

    check_port(packet)
    with host_network() as network:
        question = host_question(network, source, destination, FAMILY_NUMBERS[family], **packet)  # type: ignore[arg-type]
        told = explain_both(network, question)
    if closed := closed_namespaces():
        inside = f"the inside of {counted(len(closed), 'network namespace')}"
        told = msgspec.structs.replace(told, unseen=(*told.unseen, inside))
    return show(told, wide, output)


def check_port(packet: dict[str, Any]) -> None:
    """UsageError for a port where there are none."""
    if packet["port"] and packet["protocol"] == "icmp":
        raise UsageError("ICMP has no ports", "leave out --port, or give --protocol tcp or udp")


def _explain_all(state: Any, output: str) -> int:
    from muslin.explain.both import Question
    from muslin.explain.both import explain as explain_both
    from muslin.lab.places import lab_network
    from muslin.verify.lab_pairs import HopCounter, endpoints
    from muslin.verify.matrix import all_pairs

    found = []
    with lab_network(state) as network:
        for pair in all_pairs(endpoints(state.name, state.topology), HopCounter(state.topology)):
            source, destination = pair.source.name, pair.destination.name
            told = explain_both(network, Question(netns=source, destination=pair.address, expected=destination))
            found.append(PairExplained(source=source, destination=destination, address=pair.address, explanation=told))
    emit(AllExplained(pairs=tuple(found)), output, lambda: _draw_all(found))
    return EXIT_OK if all(pair.explanation.ok for pair in found) else EXIT_CHECK_FAILED


def _draw_all(pairs: list[PairExplained]) -> str:
    """A line a pair, then each cause of a loss once."""
    rows: list[tuple[str, ...]] = []
    causes: dict[str, int] = {}
    for pair in pairs:
        request, reply = pair.explanation.request, pair.explanation.reply
        drop = request.drop or (reply.drop if reply else None)
        way = " > ".join(hop.netns for hop in request.hops if hop.act != "switches")
        fate = f"✗ {drop.cause} in {drop.netns}" if drop else "answered" if pair.explanation.ok else "leaves"
        if drop:
            causes[drop.sentence] = causes.get(drop.sentence, 0) + 1
        rows.append((pair.source, f"{pair.address} ({pair.destination})", request.source, str(request.ttl), fate, way))
    lines = [draw_table(("FROM", "TO", "SENT AS", "TTL", "FATE", "WAY"), rows)]
    lines += [f"\n✗ {sentence} ({counted(number, 'pair')})" for sentence, number in causes.items()]
    return "\n".join(lines)


def show(explanation: Any, wide: bool, output: str) -> int:
    """Print an explanation; the exit code."""
    from muslin.explain.text import draw

    emit(explanation, output, lambda: draw(explanation, wide))
    failed = "dropped" in (explanation.request.outcome, explanation.reply.outcome if explanation.reply else "")
    return EXIT_CHECK_FAILED if failed else EXIT_OK
