"""``./run bench explain``: how long it takes to tell the way of a packet, to see it go there, and to say what is wrong.

Theory of operation: the verbs as whole processes, on labs that stay up meanwhile: step 4 as the talk has it, and 20
nodes with 10 containers each. Of ``trace`` what counts is the time on top of the packet's own, so that a plain ping
between the same two containers takes turns with it.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.measure import Figure, figure, interleave, muslin, report, run_once

SMALL = "bench-small"
LARGE = "bench-large"
SHAPES = {
    SMALL: ("--step", "4"),
    LARGE: ("--step", "4", "--nodes", "20", "--containers", "10", "--allow-overlap"),
}
WAY = ("con1.node1", "con1.node2")
FAR_WAY = ("con1.node1", "con10.node20")
TARGETS_S = {
    "20 x 10: explain": 0.3,
    "2 x 2: explain --all (48 pairs)": 1.0,
    "2 x 2: trace": 0.5,
    "20 x 10: trace": 0.5,
}


def measure(turns: int) -> list[Figure]:
    """All figures, in the order of the targets."""
    verbs = {
        "muslin --help": ("--help",),
        "2 x 2: explain": ("lab", "explain", *WAY, "--name", SMALL),
        "2 x 2: explain --all (48 pairs)": ("lab", "explain", "--all", "--name", SMALL),
        "2 x 2: diagnose": ("lab", "diagnose", "--name", SMALL),
        "2 x 2: ping, one packet": ("lab", "exec", "--name", SMALL, WAY[0], "--", "ping", "-c1", "-q", "172.16.1.2"),
        "2 x 2: trace": ("lab", "trace", *WAY, "--name", SMALL),
        "2 x 2: trace --ladder": ("lab", "trace", *WAY, "--ladder", "--name", SMALL),
        "20 x 10: explain": ("lab", "explain", *FAR_WAY, "--name", LARGE),
        "20 x 10: trace": ("lab", "trace", *FAR_WAY, "--name", LARGE),
    }
    samples = interleave(turns, {name: lambda words=words: run_once(muslin(*words)) for name, words in verbs.items()})
    return [figure(name, found, TARGETS_S.get(name)) for name, found in samples.items()]


def main() -> None:
    """Raise the labs, run the rounds, print them."""
    parser = argparse.ArgumentParser(prog="./run bench explain", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="rounds (default 7)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    try:
        for name, shape in SHAPES.items():
            run_once(muslin("lab", "up", "--name", name, *shape))
        figures = measure(options.turns)
    finally:
        for name in SHAPES:
            run_once(muslin("lab", "down", name), expected=(0, 2))
    by_name = {one.name: one.wall_s for one in figures}
    on_top = by_name["2 x 2: trace"] - by_name["2 x 2: ping, one packet"]
    report("explain", figures, [f"trace on top of a ping of the same way: {on_top:.3f} s"], options.output, load_before)


if __name__ == "__main__":
    main()
