"""A kernel that refuses nftables as a whole: the begin of the batch is answered, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest

from muslin.kernel import nft_sets
from muslin.kernel.sessions import Session
from muslin.model.kernel import NftElement
from muslin.model.ops import Create
from tests.contract.kernels import NEEDS_ROOT

pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

NOBODY = 65534
ELEMENTS = [NftElement(netns="", family="inet", table="t", set="s", address=f"10.0.0.{n}") for n in range(1, 4)]


def in_child(work: Callable[[], int]) -> int:
    """What the work returns in a process of its own, which may give up its rights."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_each_operation_gets_the_one_answer() -> None:
    def work() -> int:
        signal.alarm(20)  # a conversation that waits for ever is ended by it
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        answers = nft_sets.apply_elements(Session("", 0), [Create(element) for element in ELEMENTS])
        return 0 if [answer.errno for answer in answers] == [errno.EPERM] * 3 else 1

    assert in_child(work) == 0
