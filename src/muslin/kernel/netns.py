"""The door to network namespaces: make, name, open, enter, remove.

Theory of operation: a name is a file below /run/netns on which the namespace is bind-mounted, exactly as ip-netns(8)
does it, so that ``ip netns`` and Muslin see the same namespaces. A process with threads must not wander between
namespaces; therefore work inside of one is done by a throw-away thread that enters, opens what is needed (a socket,
a directory of /proc/sys/net) and ends. What it opened stays in that namespace for good, and is then used from
outside. The empty name stands for the namespace that this process runs in. A name that begins with a slash is the path
of a namespace that somebody else has: ``/proc/1234/ns/net``, or ``/proc/self/fd/7`` for a descriptor that was handed
over.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from muslin.kernel.syscalls import (
    CLONE_NEWNET,
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_SHARED,
    mount,
    setns,
    umount,
    unshare,
)

NETNS_DIRECTORY = "/run/netns"

Result = TypeVar("Result")


def path_of(name: str) -> str:
    """The file that holds the namespace ``name``; /proc for the own one, and a path is the name of its file."""
    if name.startswith("/"):
        return name
    return f"{NETNS_DIRECTORY}/{name}" if name else "/proc/self/ns/net"


def names() -> list[str]:
    """The names of all named namespaces, sorted; none when the directory does not exist."""
    try:
        return sorted(os.listdir(NETNS_DIRECTORY))
    except FileNotFoundError:
        return []


def open_netns(name: str) -> int:
    """A file descriptor that stands for the namespace; OSError when there is none of this name."""
    return os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)


def inode_of(name: str) -> int | None:
    """The number by which the kernel knows the namespace (see namespaces(7)), None when there is none."""
    try:
        status = os.stat(path_of(name))
    except FileNotFoundError:
        return None
    # A file left behind by a crash between its creation and the mount is no namespace: nsfs has its own device.
    return status.st_ino if status.st_dev == _device() else None


@functools.cache
def _device() -> int:
    """The device number of the file system of namespaces, which is one for all (nsfs, fs/nsfs.c)."""
    return os.stat("/proc/self/ns/net").st_dev


def in_thread(function: Callable[[], Result]) -> Result:
    """Run ``function`` in a thread of its own, which may leave its namespaces since it ends afterwards."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # handed over to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def call_in(name: str, function: Callable[[], Result]) -> Result:
    """Run ``function`` inside of the namespace and return what it returns; errors pass through.

    Keep it short: open sockets or files, start a process. For the empty name it simply runs.
    """
    if not name:
        return function()
    home = getattr(_wanderer, "home", None)
    if home is None:
        return in_thread(lambda: _enter_and_call(name, function))
    try:
        return _enter_and_call(name, function)
    finally:
        setns(home, CLONE_NEWNET)


_wanderer = threading.local()


@contextlib.contextmanager
def wandering() -> Iterator[None]:
    """Let this thread itself enter namespaces, and come back each time: a tenth of what a throw-away thread takes.

    For a thread that does nothing else. One that could not come back would be lost, and the error says so (setns(2)).
    """
    _wanderer.home = open_netns("")
    try:
        yield
    finally:
        os.close(_wanderer.home)
        del _wanderer.home


def _enter_and_call(name: str, function: Callable[[], Result]) -> Result:
    fd = open_netns(name)
    try:
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)
    return function()


def create(name: str) -> None:
    """Make a namespace and give it a name; FileExistsError when the name is taken."""
    prepare_directory()
    target = path_of(name)
    try:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000))
    except FileExistsError:
        if inode_of(name) is not None:
            raise
        # Just a file, left behind by a crash between its creation and the mount: it serves.

    def bind_new() -> None:
        unshare(CLONE_NEWNET)
        mount("/proc/thread-self/ns/net", target, flags=MS_BIND)

    try:
        in_thread(bind_new)
    except OSError:
        os.unlink(target)
        raise


def delete(name: str) -> None:
    """Take the name away; the namespace itself goes with its last process. FileNotFoundError when unknown."""
    target = path_of(name)
    try:
        umount(target, MNT_DETACH)
    except OSError as error:
        # EINVAL: not a mount point. A crash between creating the file and the mount leaves just the file.
        if error.errno != errno.EINVAL:
            raise
    os.unlink(target)


def directory_exists() -> bool:
    """Whether somebody has made named namespaces before."""
    return os.path.isdir(NETNS_DIRECTORY)


def prepare_directory() -> None:
    """Make the directory of names, shared between mount namespaces, as iproute2 does."""
    try:
        os.makedirs(NETNS_DIRECTORY, mode=0o755)
    except FileExistsError:
        return
    mount(NETNS_DIRECTORY, NETNS_DIRECTORY, flags=MS_BIND | MS_REC)
    mount("", NETNS_DIRECTORY, flags=MS_SHARED | MS_REC)


def remove_directory() -> None:
    """Undo ``prepare_directory`` when no name is left; nothing happens otherwise."""
    if names() or not directory_exists():
        return
    with contextlib.suppress(OSError):
        umount(NETNS_DIRECTORY, MNT_DETACH)
    with contextlib.suppress(OSError):
        os.rmdir(NETNS_DIRECTORY)


def processes_in(inodes: set[int]) -> list[int]:
    """The ids of all visible processes that live in one of these namespaces."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to see
            if os.stat(f"/proc/{entry}/ns/net").st_ino in inodes:
                found.append(int(entry))
    return found
