"""What every test of the lab ring gets, and what must hold after each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.support import SHARED, Muslin, leftovers, wait_until


def _check_nothing_left(runtime: Path) -> None:
    try:
        # The kernel takes processes and namespaces away in the background.
        wait_until(lambda: not leftovers(runtime), "nothing is left", 5)
    except AssertionError:
        pytest.fail("left behind:\n  " + "\n  ".join(sorted(leftovers(runtime))), pytrace=False)


@pytest.fixture(autouse=True)
def _root_is_needed() -> None:
    if os.geteuid() != 0:
        pytest.skip("these tests make network namespaces and look into them from outside: run them as root")


@pytest.fixture
def muslin(tmp_path: Path) -> Iterator[Muslin]:
    """The command line; all labs that it named are gone after the test, and nothing else is left."""
    one = Muslin(tmp_path / "run")
    yield one
    one.down_all()
    _check_nothing_left(one.runtime)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Muslin]:
    """The same for labs that a module's tests share: each of them must leave its lab as it found it."""
    one = Muslin(tmp_path_factory.mktemp("shared") / "run")
    SHARED.append(one)
    yield one
    one.down_all()
    SHARED.remove(one)
    _check_nothing_left(one.runtime)
