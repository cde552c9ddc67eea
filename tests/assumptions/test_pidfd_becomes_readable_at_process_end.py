"""A pidfd (pidfd_open(2), Linux 5.3) polls readable once its process has ended, whoever its parent is.

Relied on by ``muslin.lab.processes``, which waits for processes that are not its children, without polling /proc.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

DEADLINE_MS = 10_000


def test_it_is_not_readable_before_and_readable_after() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fd = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        assert poll.poll(0) == []
        assert process.stdin is not None
        process.stdin.close()
        assert poll.poll(DEADLINE_MS) == [(fd, select.POLLIN)]
    finally:
        os.close(fd)
        process.kill()
        process.wait()


GRANDCHILD = """
import os, sys
if pid := os.fork():
    print(pid)
else:
    sys.stdout = None
    os.close(1)
    sys.stdin.read()
    os._exit(0)
"""


def test_it_works_for_a_process_that_is_not_our_child() -> None:
    """A grandchild, whose parent ends at once; it lives until its standard input closes."""
    reading, writing = os.pipe()
    with open(reading) as end, open(writing, "w") as life:
        done = subprocess.run([sys.executable, "-c", GRANDCHILD], stdin=end, stdout=subprocess.PIPE, check=True)
        fd = os.pidfd_open(int(done.stdout))
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(0) == []
            life.close()
            assert poll.poll(DEADLINE_MS) == [(fd, select.POLLIN)]
        finally:
            os.close(fd)
