"""A bounded run of the fuzzers of native/, under the address and undefined-behaviour sanitizers, from a kept corpus.

Each target is run by libFuzzer and by AFL++, which look in different ways for new code. To look longer:
`native/build OUT out|in|peers` with CC=clang and CFLAGS as LIBFUZZER_CFLAGS below, then
`OUT -max_total_time=3600 CORPUS`; for AFL++ see native/fuzz_main.c. A finding becomes a file of the corpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
KINDS = ("in", "out", "peers")
CFLAGS = "-O1 -g -fno-sanitize-recover=all"
LIBFUZZER_CFLAGS = f"{CFLAGS} -fsanitize=fuzzer,address,undefined"
RUN_S = 5
PATIENCE_S = 120
AFL = {
    "AFL_USE_ASAN": "1",
    "AFL_USE_UBSAN": "1",
    "AFL_QUIET": "1",
    "AFL_NO_UI": "1",
    # Settings of the machine that would make it faster, which are not ours to change, and a processor of its own.
    "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1",
    "AFL_SKIP_CPUFREQ": "1",
    "AFL_NO_AFFINITY": "1",
}

pytestmark = [pytest.mark.contract, pytest.mark.slow]
needs_clang = pytest.mark.skipif(not shutil.which("clang"), reason="tunnel fuzzing: no clang")
needs_afl = pytest.mark.skipif(not shutil.which("afl-clang-fast"), reason="tunnel fuzzing: no AFL++")


def build(program: Path, kind: str, **environment: str) -> None:
    """Compile a target."""
    subprocess.run([ROOT / "native" / "build", program, kind], env={**os.environ, **environment}, check=True)


def run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fuzzer to its end, with what it says as text."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
@needs_clang
def test_libfuzzer_finds_nothing(kind: str, tmp_path: Path) -> None:
    """Inputs that reach new code are kept for this run only."""
    program, found = tmp_path / kind, tmp_path / "found"
    found.mkdir()
    build(program, kind, CC="clang", CFLAGS=LIBFUZZER_CFLAGS)
    assert list((CORPUS / kind).iterdir()), "a corpus to begin with"
    command = [str(program), f"-max_total_time={RUN_S}", "-max_len=8192", str(found), str(CORPUS / kind)]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("kind", KINDS)
@needs_afl
def test_afl_finds_nothing(kind: str, tmp_path: Path) -> None:
    """An input that ends the target, or keeps it busy, would lie among the crashes or hangs."""
    program, found = tmp_path / kind, tmp_path / "found"
    build(program, f"{kind}-afl", CC="afl-clang-fast", CFLAGS=CFLAGS, **AFL)
    command = ["afl-fuzz", "-V", str(RUN_S), "-G", "8192", "-i", str(CORPUS / kind), "-o", str(found), str(program)]
    done = run(command, tmp_path, **AFL)
    assert done.returncode == 0, done.stdout[-4000:]
    lines = (found / "default" / "fuzzer_stats").read_text().splitlines()
    figures = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert (figures["saved_crashes"], figures["saved_hangs"]) == ("0", "0"), done.stdout[-4000:]
    assert int(figures["execs_done"]) > int(figures["corpus_count"]), "more than the corpus was tried"
