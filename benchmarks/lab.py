"""``./run bench lab``: how long the verbs of the lab take, as whole processes.

Theory of operation: rounds of up, check and down, first of step 4 as the talk has it, then of 20 nodes with 10
containers each. Beside them in the same rounds: the same networks built by the exported shell script, which is what
iproute2 needs for the same work. Memory is the peak of each of our processes, the tunnels included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Figure, Sample, figure, interleave, muslin, peak_memory_mib, report, run_once

LAB = "bench"
SMALL = ("--step", "4")
LARGE = ("--step", "4", "--nodes", "20", "--containers", "10")
TARGETS_S = {
    "muslin --help": 0.15,
    "step 4: up": 1.0,
    "step 4: check (48 x 3)": 2.0,
    "step 4: down": 1.0,
    "20 x 10: up": 8.0,
    "20 x 10: check --sample 2000": 10.0,
    "20 x 10: down": 5.0,
}
MEMORY_TARGET_MIB = 60.0


class Bench:
    """The rounds, and what they leave to be measured while the lab is up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tunnel_memory_mib = 0.0

    def up(self, *shape: str) -> Sample:
        """Raise the lab."""
        sample = run_once(muslin("lab", "up", "--name", LAB, "--allow-overlap", *shape))
        self.tunnel_memory_mib = max([self.tunnel_memory_mib, *map(peak_memory_mib, tunnel_pids())])
        return sample

    def check(self, *words: str) -> Sample:
        """Check it; a failed check fails the benchmark."""
        sample = run_once(muslin("lab", "check", "--name", LAB, *words))
        self.tunnel_memory_mib = max([self.tunnel_memory_mib, *map(peak_memory_mib, tunnel_pids())])
        return sample

    def down(self) -> Sample:
        """Take it away."""
        return run_once(muslin("lab", "down", LAB))

    def script(self, verb: str, *shape: str) -> Sample:
        """The same by the exported script."""
        path = self.directory / f"lab{len(shape)}.sh"
        if not path.exists():
            words = muslin("lab", "export", "--as", "sh", "--name", f"{LAB}-script", *shape)
            path.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
        return run_once(["sh", str(path), verb])


def tunnel_pids() -> list[int]:
    """The tunnel programs of the benchmark's lab."""
    from muslin.kernel.netns import names
    from muslin.lab.processes import running_tunnels

    return [tunnel.pid for tunnel in running_tunnels(name for name in names() if name.startswith(f"muslin-{LAB}-"))]


def measure(bench: Bench, turns: int, large_turns: int) -> list[Figure]:
    """All figures, in the order of the targets."""
    samples = interleave(
        turns,
        {
            "muslin --help": lambda: run_once(muslin("--help")),
            "step 4: up": lambda: bench.up(*SMALL),
            "step 4: check (48 x 3)": bench.check,
            "step 4: down": bench.down,
            "step 4: shell script up": lambda: bench.script("up", *SMALL),
            "step 4: shell script down": lambda: bench.script("down", *SMALL),
        },
    )
    samples |= interleave(
        large_turns,
        {
            "20 x 10: up": lambda: bench.up(*LARGE),
            "20 x 10: check --sample 2000": lambda: bench.check("--sample", "2000"),
            "20 x 10: down": bench.down,
            "20 x 10: shell script up": lambda: bench.script("up", *LARGE),
            "20 x 10: shell script down": lambda: bench.script("down", *LARGE),
        },
    )
    return [figure(name, found, TARGETS_S.get(name)) for name, found in samples.items()]


def main() -> None:
    """Run the rounds and print them."""
    parser = argparse.ArgumentParser(prog="./run bench lab", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="rounds of the small lab (default 7)")
    parser.add_argument("--large-turns", type=int, default=3, help="rounds of the large lab (default 3)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("./run bench lab: needs root, since the shell scripts that it compares with do")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        figures = measure(bench, options.turns, options.large_turns)
    ours = [one.memory_mib for one in figures if "script" not in one.name]
    peak = max(*ours, bench.tunnel_memory_mib)
    notes = [
        f"peak memory of any of our processes: {peak:.1f} MiB (target {MEMORY_TARGET_MIB:g}), "
        f"of a tunnel: {bench.tunnel_memory_mib:.1f} MiB"
    ]
    report("lab", figures, notes, options.output, load_before)


if __name__ == "__main__":
    main()
