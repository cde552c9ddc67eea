"""What all benchmarks share: run whole processes, take medians, print a table or JSON.

Theory of operation: a figure is the wall time of a whole process, as a user waits for it, and its peak memory as
the kernel accounts it (ru_maxrss of wait4(2)). Contenders take turns within one run, since machines are shared and
noisy, and the median of the turns counts.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).resolve().parent.parent


class Sample(msgspec.Struct, frozen=True):
    """One run of one process. ``wall_s`` and ``cpu_s`` in seconds, ``memory_mib`` its peak resident size."""

    wall_s: float
    cpu_s: float
    memory_mib: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of one contender; ``target`` in the unit of ``wall_s`` (or MiB for memory), None without one."""

    name: str
    wall_s: float
    fastest_s: float
    cpu_s: float
    memory_mib: float
    target: float | None = None
    runs: int

    @property
    def met(self) -> str:
        """Whether the target is met, as a word for the table."""
        return "-" if self.target is None else "yes" if self.wall_s <= self.target else "NO"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a benchmark prints as JSON."""

    schema: Literal["muslin.bench/v1"] = "muslin.bench/v1"
    name: str
    kernel: str
    python: str
    cpus: int
    load_before: float
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def muslin(*words: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "muslin", *words]


def run_once(command: Sequence[str], expected: Sequence[int] = (0,)) -> Sample:
    """Run a process to its end; RuntimeError with its words when it ends with an unexpected code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    begun = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode not in expected:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {words.decode()}")
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def figure(name: str, samples: Sequence[Sample], target: float | None = None) -> Figure:
    """The medians of some samples."""
    return Figure(
        name=name,
        wall_s=statistics.median(sample.wall_s for sample in samples),
        fastest_s=min(sample.wall_s for sample in samples),
        cpu_s=statistics.median(sample.cpu_s for sample in samples),
        memory_mib=max(sample.memory_mib for sample in samples),
        target=target,
        runs=len(samples),
    )


def peak_memory_mib(pid: int) -> float:
    """The peak resident size of a living process (VmHWM of proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


def report(name: str, figures: Sequence[Figure], notes: Sequence[str], output: str, load_before: float) -> None:
    """Print the result, as a table for people or JSON for programs."""
    result = Result(
        name=name,
        kernel=platform.release(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        load_before=load_before,
        figures=tuple(figures),
        notes=tuple(notes),
    )
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
        return
    print(f"{name}: Linux {result.kernel}, Python {result.python}, {result.cpus} CPUs, load before {load_before:.1f}")
    rows = [("what", "median s", "fastest s", "CPU s", "peak MiB", "target", "met")]
    rows += [
        (
            one.name,
            f"{one.wall_s:.3f}",
            f"{one.fastest_s:.3f}",
            f"{one.cpu_s:.3f}",
            f"{one.memory_mib:.1f}",
            "-" if one.target is None else f"{one.target:g}",
            one.met,
        )
        for one in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for note in notes:
        print(note)


def interleave(turns: int, contenders: dict[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Let the contenders take turns; their samples by name."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, contender in contenders.items():
            samples[name].append(contender())
    return samples
