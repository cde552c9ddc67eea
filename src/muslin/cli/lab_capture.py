"""``muslin lab capture``: many links of a lab into one pcapng, or as lines."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import click

from muslin.cli.lab_exec import complete_places
from muslin.cli.output import counted, say
from muslin.cli.topology_options import name_option
from muslin.errors import EXIT_OK, UsageError

VIEW = "{:<24} {:<31} {:<31} {}"


@click.command("capture")
@click.argument("links", metavar="[PLACE[/LINK]]...", nargs=-1, shell_complete=complete_places)
@name_option
@click.option("-w", "--write", "target", metavar="FILE", help="Write pcapng to FILE, - for a pipe into Wireshark.")
@click.option(
    "--view", type=click.Choice(["encap"]), help="Print source, destination and protocol stack of each packet."
)
@click.option("--host", "hosts", multiple=True, metavar="ADDRESS", help="Only from or to this address, also inside.")
@click.option(
    "--protocol", type=click.Choice(["icmp", "tcp", "udp", "arp"]), default=None, help="Only this, also inside."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Only from or to this port, also inside.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N packets.")
@click.option("--duration", "duration_s", type=click.FloatRange(0.05), metavar="S", help="End after S seconds.")
@click.option("--store", is_flag=True, help="Also what the agents' store says (etcd, ports 2379 and 2380).")
def capture(
    links: tuple[str, ...],
    name: str,
    target: str | None,
    view: str | None,
    hosts: tuple[str, ...],
    protocol: str | None,
    port: int | None,
    count: int | None,
    duration_s: float | None,
    store: bool,
) -> int:
    """Capture at links of nodes, containers, routers and segments, all into one file; Ctrl-C ends it.

    Without a place it is all nodes. Each link is an interface of its own in the file (`node1/eth0`). Needs no
    tcpdump and, in a lab without root, no root.

    \b
    muslin lab capture -w lab.pcapng
    muslin lab capture node1/eth0 node1/tun0 --protocol icmp -w - | wireshark -k -i -
    muslin lab capture node1 --view encap
    """
    from muslin.kernel.tap import Taps
    from muslin.lab.places import lab_network
    from muslin.lab.plan import netns_of
    from muslin.lab.run import require
    from muslin.lab.state import LabDirectory
    from muslin.model.address import parse_address
    from muslin.verify.capture import Wish, catch, check_links, parse_links

    if not target and not view:
        raise UsageError("where should the packets go?", "give -w FILE, -w - or --view encap")
    try:
        addresses = tuple(parse_address(host) for host in hosts)
    except ValueError as error:
        raise UsageError(f"--host takes addresses: {error}") from None
    state = require(LabDirectory(name))
    chosen = parse_links(state, links, [node.name for node in state.topology.nodes])
    wish = Wish(links=chosen, hosts=addresses, protocol=protocol or "", port=port, store=store)
    with lab_network(state) as network:
        present = {place: tuple(link.name for link in network[place].links) for place in wish.places}
    check_links(wish, present)
    heard = sum(1 if link else len(present[place]) for place, link in wish.links)
    with Taps(netns_of(state.name, place) for place in wish.places) as taps:
        say(f"capturing at {counted(heard, 'link')}; Ctrl-C ends it")
        deadline_s = time.monotonic() + duration_s if duration_s else None
        caught = catch(state, wish, taps.stream(deadline_s))
        number = _write(caught, state, target, view, count)
    say(f"captured {counted(number, 'packet')}" + (f" into {target}" if target and target != "-" else ""))
    return EXIT_OK


def _write(caught: Any, state: Any, target: str | None, view: str | None, count: int | None) -> int:
    """Write and print until the end; how many packets."""
    from muslin.verify.capture import stack_line
    from muslin.wire.pcapng import PcapngWriter

    writer = PcapngWriter(application="muslin lab capture", comment=f"lab {state.name}")
    file = _open(target)
    number = 0
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if file:
            file.write(writer.begin())
            file.flush()
        if view:
            click.echo(VIEW.format("LINK", "SOURCE", "DESTINATION", "PROTOCOLS"), err=file is not None)
        for one in caught:
            number += 1
            if file:
                file.write(_block(writer, one))
                file.flush()
            if view:
                click.echo(VIEW.format(*stack_line(one)), err=target == "-")
                sys.stdout.flush()
            if number == count:
                break
    except KeyboardInterrupt:  # the way in which a capture ends
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
        if file and target != "-":
            file.close()
    return number


def _open(target: str | None) -> Any:
    if not target:
        return None
    if target == "-":
        if sys.stdout.isatty():
            raise UsageError("pcapng is not for terminals", "pipe it: muslin lab capture -w - | wireshark -k -i -")
        return sys.stdout.buffer
    try:
        return open(target, "wb")
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None


def _block(writer: Any, one: Any) -> bytes:
    inner = one.header.inner if one.header else None
    comment = f"carries {inner.innermost.source} > {inner.innermost.destination}" if inner else ""
    block: bytes = writer.packet(
        one.interface,
        one.frame.data,
        one.frame.at_s,
        ethernet=one.frame.ethernet,
        outgoing=one.frame.outgoing,
        comment=comment,
        about=f"namespace {one.frame.netns}",
    )
    return block
