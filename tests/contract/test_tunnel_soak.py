"""A short run of `./run bench soak`: digests, books to the packet, and memory, on a wire that loses and delays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muslin.tunnel.programs import core_path
from tests.contract.tunnel_bench import MARKS

ROOT = Path(__file__).parents[2]
ABSENT = [tool for tool in ("cc", "nft", "tc", "ethtool", "taskset") if not shutil.which(tool)]

pytestmark = [
    *MARKS,
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"tunnel soak: not installed: {', '.join(ABSENT)}"),
    pytest.mark.skipif(not core_path(), reason="the tunnel core is not built; ./run test builds it, given gcc"),
]


def test_a_short_soak_finds_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "3", "--gigabytes", "0.25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "digests equal" in done.stdout
