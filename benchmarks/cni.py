"""``./run bench cni``: what attaching a container costs: ours beside Debian's bridge and ptp with host-local.

Theory of operation: containers are namespaces, made before. The contenders take turns in one run, in another order
each turn; what is compared is the ratio of ours to the other of the same run, since machines are shared and noisy. A
turn attaches all containers and takes them away again, at each concurrency; single calls are judged by the median and
the 99th percentile of all turns. The same again with thousands of reservations that were there before, and a longer
run of ADDs, then DELs. Last, what a person waits for: ``podman run`` of a container that ends at once, with our
network, with Debian's, and with none.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.cni_calls import Contender, add_all, delete_all, quantile
from benchmarks.cni_nodes import DEBIAN, OURS, contender, namespaces
from benchmarks.cni_podman import measure_podman

CONTENDERS = ("ours", "bridge", "ptp")
BASELINE = "bridge"
CONCURRENCIES = (1, 4, 16)
RESERVED = 4_000
TARGETS = {
    "ADD p50": 0.30,
    "ADD p99": 0.40,
    "{count} ADDs, 16 at once": 0.35,
    "DEL p50": 0.15,
}
"""Ratio of ours to Debian's bridge with host-local that is wanted at most."""
FLAT_WITHIN = 1.20
"""How much slower ours may be with the reservations than without."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: seconds by contender, the ratio of ours to the baseline, and what is wanted of that."""

    name: str
    seconds: dict[str, float]
    ratio: float | None = None
    target: float | None = None

    @property
    def met(self) -> str:
        """As a word for the table."""
        return "-" if self.target is None or self.ratio is None else "yes" if self.ratio <= self.target else "NO"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed as JSON."""

    schema: Literal["muslin.bench.cni/v1"] = "muslin.bench.cni/v1"
    kernel: str
    cpus: int
    load_before: float
    turns: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class Findings:
    """Seconds by figure and contender, turn by turn."""

    def __init__(self) -> None:
        self.walls: dict[str, dict[str, list[float]]] = {}
        self.singles: dict[str, dict[str, list[float]]] = {}

    def add_wall(self, figure: str, who: str, seconds: float) -> None:
        """One more batch; the median counts."""
        self.walls.setdefault(figure, {}).setdefault(who, []).append(seconds)

    def add_singles(self, figure: str, who: str, seconds: Sequence[float]) -> None:
        """More single calls; the median and the 99th percentile count."""
        self.singles.setdefault(figure, {}).setdefault(who, []).extend(seconds)

    def rows(self, count: int) -> Iterator[Row]:
        """All figures."""
        for figure, found in self.singles.items():
            for word, share in (("p50", 0.5), ("p99", 0.99)):
                name = figure.replace("ADD", f"ADD {word}").replace("DEL", f"DEL {word}")
                yield make_row(name, {who: quantile(one, share) for who, one in found.items()}, count)
        for figure, found in self.walls.items():
            yield make_row(figure, {who: statistics.median(one) for who, one in found.items()}, count)


def make_row(name: str, seconds: dict[str, float], count: int) -> Row:
    """A row with its ratio and target; those with reservations have the same targets."""
    both = "ours" in seconds and BASELINE in seconds
    targets = {figure.format(count=count): target for figure, target in TARGETS.items()}
    return Row(
        name=name,
        seconds=seconds,
        ratio=seconds["ours"] / seconds[BASELINE] if both else None,
        target=targets.get(name.partition(" with ")[0]),
    )


def measure(found: Findings, names: Sequence[str], containers: list[str], options: Options) -> None:
    """All turns. Those with reservations that were there before stand beside the others, as flatness is a ratio too."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = (0, RESERVED) if options.reserved_turns else (0,)
        ready = [(stack.enter_context(contender(name, directory, size)), size) for name in names for size in sizes]
        for one, _ in ready:
            warm_up(one, containers, directory)
        for turn in range(options.turns):
            start = turn % len(ready)
            for one, size in (*ready[start:], *ready[:start]):
                if size and turn >= options.reserved_turns:
                    continue
                suffix = f" with {size} reserved" if size else ""
                measure_turn(found, one, containers[: options.count], suffix, directory)
                if not size:
                    measure_sustained(found, one, containers, directory)


def warm_up(one: Contender, containers: list[str], directory: Path) -> None:
    """The first container, which makes a bridge."""
    add_all(one, containers[:1], 1, directory)
    delete_all(one, containers[:1], 1, directory)


def measure_turn(found: Findings, one: Contender, containers: list[str], suffix: str, directory: Path) -> None:
    """Attach all and take all away, at each concurrency."""
    who = one.name.partition("-")[0]
    for concurrency in CONCURRENCIES:
        added = add_all(one, containers, concurrency, directory)
        deleted = delete_all(one, containers, concurrency, directory)
        if concurrency == 1:
            found.add_singles(f"ADD{suffix}", who, added.each_s)
            found.add_singles(f"DEL{suffix}", who, deleted.each_s)
        found.add_wall(f"{len(containers)} ADDs, {concurrency} at once{suffix}", who, added.wall_s)
        found.add_wall(f"{len(containers)} DELs, {concurrency} at once{suffix}", who, deleted.wall_s)


def measure_sustained(found: Findings, one: Contender, containers: list[str], directory: Path) -> None:
    """All containers, four at once, then all away."""
    who = one.name.partition("-")[0]
    added = add_all(one, containers, 4, directory)
    deleted = delete_all(one, containers, 4, directory)
    found.add_wall(f"sustained: {len(containers)} ADDs", who, added.wall_s)
    found.add_wall(f"sustained: then {len(containers)} DELs", who, deleted.wall_s)


def make_notes(rows: Sequence[Row], sustained: int) -> tuple[str, ...]:
    """What is told beneath the table: rates, and whether ours is flat."""
    by_name = {row.name: row.seconds for row in rows}
    notes = []
    for name, seconds in by_name.items():
        if name.startswith("sustained"):
            rates = ", ".join(f"{who} {sustained / one:.0f}/s" for who, one in seconds.items())
            notes.append(f"{name}: {rates}")
    for name in ("ADD p50", "DEL p50"):
        few, many = by_name.get(name, {}), by_name.get(f"{name} with {RESERVED} reserved", {})
        for who in set(few) & set(many):
            grown = many[who] / few[who]
            wanted = f" (target {FLAT_WITHIN:g}: {'yes' if grown <= FLAT_WITHIN else 'NO'})" if who == "ours" else ""
            notes.append(f"{name} of {who} with {RESERVED} reservations: {grown:.2f} x that with none{wanted}")
    return tuple(sorted(notes))


def print_table(result: Result) -> None:
    """The figures in Markdown, as docs/benchmarks.md has them; milliseconds."""
    print(
        f"cni: Linux {result.kernel}, {result.cpus} CPUs, load before {result.load_before:.1f}, {result.turns} turns; "
        "milliseconds\n"
    )
    shown = list(dict.fromkeys(who for row in result.rows for who in row.seconds))
    print(f"| what | {' | '.join(shown)} | ours / {BASELINE} | target | met |")
    print("| --- " * (len(shown) + 4) + "|")
    for row in result.rows:
        cells = [f"{row.seconds[who] * 1000:.1f}" if who in row.seconds else "-" for who in shown]
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        target = "-" if row.target is None else f"{row.target:.2f}"
        print(f"| {row.name} | {' | '.join(cells)} | {ratio} | {target} | {row.met} |")
    print()
    for note in result.notes:
        print(f"- {note}")


class Options(argparse.Namespace):
    """What the command line says."""

    turns: int
    reserved_turns: int
    count: int
    sustained: int
    podman_turns: int
    contenders: str
    output: str


def parse() -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./run bench cni", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="rounds of all contenders (default 3)")
    parser.add_argument("--reserved-turns", type=int, default=1, help="rounds with reservations; 0: none (default 1)")
    parser.add_argument("--count", type=int, default=200, help="containers of a round (default 200)")
    parser.add_argument("--sustained", type=int, default=300, help="containers of the longer run (default 300)")
    parser.add_argument("--podman-turns", type=int, default=15, help="rounds of podman run; 0 for none (default 15)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="with commas (default: all three)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser.parse_args(namespace=Options())


def check_needs(names: Sequence[str]) -> None:
    """End with a sentence where something is missing."""
    if os.geteuid() != 0:
        sys.exit("./run bench cni: needs root, since plugins do")
    if wrong := set(names) - set(CONTENDERS):
        sys.exit(
            f"./run bench cni: no contender is called {', '.join(sorted(wrong))}; there are {', '.join(CONTENDERS)}"
        )
    if "ours" in names and not OURS.exists():
        sys.exit(f"./run bench cni: {OURS} is missing; ./run compiles it where there is a C compiler")
    if set(names) - {"ours"} and not (DEBIAN / "host-local").exists():
        sys.exit("./run bench cni: needs Debian's plugins. As root: apt-get install containernetworking-plugins")


def main() -> None:
    """Run the rounds and print them."""
    options = parse()
    names = options.contenders.split(",")
    check_needs(names)
    load_before = os.getloadavg()[0]
    found = Findings()
    with namespaces(max(options.count, options.sustained)) as containers:
        measure(found, names, containers, options)
    rows = list(found.rows(options.count))
    if options.podman_turns:
        seconds = measure_podman(options.podman_turns, names)
        rows.append(make_row("podman run --rm", seconds, options.count))
    result = Result(
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)),
        load_before=load_before,
        turns=options.turns,
        rows=tuple(rows),
        notes=make_notes(rows, options.sustained),
    )
    if options.output == "json":
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        print_table(result)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"./run bench cni: {error}")
