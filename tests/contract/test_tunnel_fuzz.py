"""A bounded run of the fuzzers of native/, under the address and undefined-behaviour sanitizers, from a kept corpus.

To look longer: `native/build OUT out|in|peers` with CC=clang and the CFLAGS below, then
`OUT -max_total_time=3600 CORPUS`. A finding becomes a file of the corpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
CFLAGS = "-O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
RUN_S = 5

pytestmark = [
    pytest.mark.contract,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("clang"), reason="tunnel fuzzing: no clang"),
]


@pytest.mark.parametrize("kind", ["out", "in", "peers"])
def test_nothing_is_found(kind: str, tmp_path: Path) -> None:
    """Inputs that reach new code are kept for this run only."""
    program, found = tmp_path / kind, tmp_path / "found"
    found.mkdir()
    environment = {**os.environ, "CC": "clang", "CFLAGS": CFLAGS}
    subprocess.run([ROOT / "native" / "build", program, kind], env=environment, check=True)
    assert list((CORPUS / kind).iterdir()), "a corpus to begin with"
    command = [str(program), f"-max_total_time={RUN_S}", "-max_len=8192", str(found), str(CORPUS / kind)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
