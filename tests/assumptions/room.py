"""Namespaces for the probes: made and removed with iproute2, so that a probe depends on nothing of ours but names."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, or to be root in a user namespace")
_serial = itertools.count()


class Room:
    """Some namespaces with names of this probe alone."""

    def __init__(self) -> None:
        self.prefix = f"muslin-mzassume-{os.getpid()}-{next(_serial)}-"
        self.made: list[str] = []

    def netns(self, short: str) -> str:
        """The namespace of this short name, made on first use."""
        name = self.prefix + short
        if name not in self.made:
            subprocess.run(["ip", "netns", "add", name], check=True)
            self.made.append(name)
        return name

    def remove(self) -> None:
        for name in self.made:
            subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        self.made = []


def ip(netns: str, words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", "-n", netns, *words.split()], check=check, capture_output=True, text=True)


def ip_json(netns: str, words: str) -> Any:
    return json.loads(ip(netns, f"-d -j {words}").stdout or "[]")


def inside(netns: str, *words: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", netns, *words], check=True, capture_output=True, text=True)
    return done.stdout


@contextlib.contextmanager
def open_room() -> Iterator[Room]:
    made = Room()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def room() -> Iterator[Room]:
    with open_room() as made:
        yield made
