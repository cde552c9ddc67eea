"""Fixtures of the tunnel contract, which takes more than one file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pytest

from tests.contract.tunnel_bench import TUNNELS, Join, wire_up


@pytest.fixture
def join() -> Iterator[Join]:
    """Give a function that wires `count` nodes; they end with the test."""
    with contextlib.ExitStack() as closing:
        yield functools.partial(wire_up, closing)


@pytest.fixture(params=list(TUNNELS.values()), ids=list(TUNNELS))
def command(request: pytest.FixtureRequest) -> list[str]:
    """Give the command of the tunnel under test, without arguments."""
    if not request.param[0]:
        pytest.skip("the tunnel core is not built; ./run test builds it, given gcc")
    return list(request.param)
