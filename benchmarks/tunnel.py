"""``./run bench tunnel``: the tunnel in C beside socat's, the Python text, the kernel's VXLAN, and the bare wire.

Theory of operation: each turn builds each contender's network anew, measures it and takes it away, so that noise of the
machine meets all alike; medians of the turns count. All between two containers on two nodes (``benchmarks.wires``), by
the small load of ``load.c``:

    tcp, tcp8   payload of one TCP stream, and of 8 together; client on CPU 0, server on CPU 1, tunnels where they like
    rr          one byte there and back over TCP; all on CPU 0, tunnels included: steadier than any other placement
    u1400, u64  UDP datagrams that arrive while one socket sends as fast as it can; placed as tcp

CPU time is that of the whole machine (/proc/stat, all but idle), so it counts interrupts, and other work, too. "Off"
means that the wire takes no super-packets (ethtool): the kernel cuts them in the last moment, as for a plain card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.wires import Pair, joined

KINDS = ("node", "vxlan", "socat", "python", "c")
MODES = ("tcp", "tcp8", "rr", "u1400", "u64")
SERVE = {"tcp": "sink", "tcp8": "sink", "rr": "echo", "u1400": "count", "u64": "count"}
LOAD_PORT = "7000"
UNITS = {"tcp": "Gbit/s", "tcp8": "Gbit/s", "rr": "p50 us", "u1400": "kpps", "u64": "kpps", "cpu": "CPU s/GB"}
Figures = dict[tuple[str, str, str], float]
"""Medians by (offloads, contender, what)."""

# What is asked of the tunnel in C: (what, of whom, by which factor); in rr, less is better.
TARGETS = (
    ("tcp", "socat", 25.0),
    ("tcp", "vxlan", 1.0),
    ("tcp", "node", 0.5),
    ("rr", "socat", 0.6),
    ("u1400", "socat", 8.0),
    ("u64", "socat", 3.0),
)


def compile_load(directory: Path) -> Path:
    """The load generator, compiled."""
    program = directory / "load"
    source = ROOT / "benchmarks" / "load.c"
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", program, source], check=True)
    return program


def busy_s() -> float:
    """Seconds that all CPUs together have worked since boot (proc_stat(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measure(pair: Pair, kind: str, mode: str, load: Path, seconds: float) -> dict[str, float]:
    """One measurement: the figure under the name of its mode, and for tcp the CPU seconds for each 10^9 bytes."""
    server, client = (pair.b, pair.a) if kind == "node" else (pair.con2, pair.con1)
    address = "10.0.0.20" if kind == "node" else "172.16.1.2"
    last = {"tcp": ["1"], "tcp8": ["8"], "rr": [], "u1400": ["1400"], "u64": ["64"]}[mode]
    send = {"tcp": "stream", "tcp8": "stream", "rr": "rr", "u1400": "flood", "u64": "flood"}[mode]
    pair.pin_tunnels({0} if mode == "rr" else os.sched_getaffinity(0))
    receiving = server.start(str(load), SERVE[mode], LOAD_PORT, cpu=0 if mode == "rr" else 1)
    assert receiving.stdout is not None
    receiving.stdout.readline()  # ready
    before = busy_s()
    sending = client.start(str(load), send, address, LOAD_PORT, str(seconds), *last, cpu=0)
    sent, words = sending.communicate()
    used_s = busy_s() - before
    got, more = receiving.communicate()
    if sending.returncode or receiving.returncode:
        raise RuntimeError(f"{kind}, {mode}: {words}{more}")
    found = json.loads(sent if mode == "rr" else got)
    if mode == "rr":
        return {mode: found["p50_us"]}
    if mode.startswith("tcp"):
        rate = found["bytes"] * 8 / found["seconds"] / 1e9
        return {mode: rate, "cpu": used_s / (found["bytes"] / 1e9)} if mode == "tcp" else {mode: rate}
    return {mode: found["packets"] / found["seconds"] / 1e3}


def run(kinds: list[str], modes: list[str], wires: list[str], turns: int, seconds: float) -> Figures:
    """All turns; the medians."""
    samples: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        load = compile_load(Path(directory))
        for turn in range(turns):
            for wire in wires:
                for kind in kinds:
                    with joined(kind, offloads=wire == "on") as pair:
                        for mode in modes:
                            for what, value in measure(pair, kind, mode, load, seconds).items():
                                samples.setdefault((wire, kind, what), []).append(value)
                    print(f"turn {turn + 1} of {turns}, offloads {wire}: {kind}", file=sys.stderr)
    return {key: statistics.median(values) for key, values in samples.items()}


def verdicts(figures: Figures, wires: list[str]) -> list[str]:
    """What was asked and what was reached, for each wire."""
    lines = []
    for wire in wires:
        for what, other, factor in TARGETS:
            ours, theirs = figures.get((wire, "c", what)), figures.get((wire, other, what))
            if ours is None or not theirs:
                continue
            met = ours <= factor * theirs if what == "rr" else ours >= factor * theirs
            bound = "at most" if what == "rr" else "at least"
            lines.append(f"offloads {wire}: {what} is {ours / theirs:.2f} x {other}, {bound} {factor:g}: {met}")
        if (one := figures.get((wire, "c", "tcp"))) and (eight := figures.get((wire, "c", "tcp8"))):
            lines.append(f"offloads {wire}: 8 streams are {eight / one:.2f} x one, at least 1: {eight >= one}")
    return lines


def table(figures: Figures, wires: list[str], kinds: list[str]) -> list[str]:
    """The medians, a row for each contender."""
    columns = [what for what in UNITS if any(key[2] == what for key in figures)]
    lines = ["| offloads | path | " + " | ".join(f"{what}, {UNITS[what]}" for what in columns) + " |"]
    lines.append("| --- " * (len(columns) + 2) + "|")
    for wire in wires:
        for kind in kinds:
            cells = [f"{figures[wire, kind, what]:.3g}" if (wire, kind, what) in figures else "-" for what in columns]
            lines.append(f"| {wire} | {kind} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run the turns and print them."""
    parser = argparse.ArgumentParser(prog="./run bench tunnel", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2)")
    parser.add_argument("--only", default=",".join(KINDS), help=f"contenders, of {','.join(KINDS)},c-plain")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {','.join(MODES)}")
    parser.add_argument("--wires", default="on,off", help="with offloads, without, or both (default)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("./run bench tunnel: needs root, for namespaces and their TUN devices")
    if not {0, 1} <= os.sched_getaffinity(0):
        sys.exit("./run bench tunnel: needs CPUs 0 and 1, which it places sender and receiver on")
    kinds, modes, wires = options.only.split(","), options.modes.split(","), options.wires.split(",")
    load_before = os.getloadavg()[0]
    figures = run(kinds, modes, wires, options.turns, options.seconds)
    about = f"Linux {platform.release()}, {os.cpu_count()} CPUs, load before {load_before:.1f}, {options.turns} turns"
    if options.output == "json":
        rows = [{"wire": w, "path": k, "what": what, "median": value} for (w, k, what), value in figures.items()]
        document = {"schema": "muslin.bench-tunnel/v1", "about": about, "figures": rows}
        print(json.dumps({**document, "verdicts": verdicts(figures, wires)}, indent=2))
        return
    print("\n".join([f"tunnel: {about}", *table(figures, wires, kinds), *verdicts(figures, wires)]))


if __name__ == "__main__":
    main()
