"""What holds for every ring of tests.

* Nothing is left behind. What carries our name on this machine, and every process that the tests started, is
  listed before the first test and after the last; a difference fails the run and is named. Processes are told
  apart by a token in their environment, which children inherit. Everything else has only its name, so beside
  another run of these tests on the same machine (each holds an abstract socket) it is printed and passes.
* A skip is an error where `CI=true`, unless its reason starts with `kernel lacks `: a machine can be given
  any tool or privilege, but not another kernel.
* Hypothesis repeats itself exactly in CI and has no deadline anywhere: two busy cores are no stopwatch.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import settings

IN_CI = os.environ.get("CI") == "true"
ALLOWED_SKIP = "kernel lacks "
TOKEN_NAME = "MUSLIN_TEST_RUN"
RUN_SIGN = "muslin-tests-"
UNSURE = pytest.StashKey[set[str]]()
GRACE_S = 3.0
"""The kernel takes namespaces and their links down in the background, after the last process has gone."""

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if IN_CI else "dev")


# ---- nothing is left behind ------------------------------------------------------------------------------


def is_ours(text: str) -> bool:
    """Whether a name, path or command line carries a mark of this project."""
    return "muslin" in text or "tunnel/reference.py" in text


def list_names(directory: str) -> list[str]:
    """The entries of a directory, none if it is not there or closed to us."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read_text(path: str) -> str:
    """A file's text, empty if it is gone or closed to us."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def list_netns() -> set[str]:
    """Named network namespaces that carry our name."""
    return {f"netns {name}" for name in list_names("/run/netns") if is_ours(name)}


def list_links() -> set[str]:
    """Links of the machine's own namespace whose name or alias carries our name."""
    return {
        f"link {name}"
        for name in list_names("/sys/class/net")
        if is_ours(name) or is_ours(read_text(f"/sys/class/net/{name}/ifalias"))
    }


def list_mounts() -> set[str]:
    """Mounts at a path of ours, where we can see them: those in private namespaces go with these."""
    points = (line.split(" ")[4] for line in read_text("/proc/self/mountinfo").splitlines())
    checkout = str(Path(__file__).parents[1])
    return {f"mount {point}" for point in points if is_ours(point) and not checkout.startswith(point)}


def list_files() -> set[str]:
    """State files of labs and agents, wherever this user's would be."""
    user_directory = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    roots = {Path("/run/muslin"), Path(user_directory, "muslin")}
    return {f"file {path}" for root in roots for path in root.rglob("*") if not path.is_dir()}


def list_nft_tables() -> set[str]:
    """Our tables in the machine's own namespace; without nft, or the right to ask it, none are seen."""
    if shutil.which("nft") is None:
        return set()
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return {f"nft {line}" for line in listed.stdout.splitlines() if is_ours(line)}


def list_forwarding() -> set[str]:
    """Two settings of the machine that a lab might be tempted to change."""
    names = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    return {f"sysctl {name}={read_text(f'/proc/sys/{name}').strip()}" for name in names}


def list_things() -> set[str]:
    """Everything on the machine that carries our name, except processes."""
    listings: list[Callable[[], set[str]]] = [
        list_netns,
        list_links,
        list_mounts,
        list_files,
        list_nft_tables,
        list_forwarding,
    ]
    return set().union(*(listing() for listing in listings))


def list_processes(token: str) -> set[str]:
    """Living processes that this run started; a zombie shows no environment and only waits to be reaped."""
    pids = [
        pid
        for pid in filter(str.isdigit, list_names("/proc"))
        if f"{TOKEN_NAME}={token}" in read_text(f"/proc/{pid}/environ").split("\0")
    ]
    return {f"process {pid}: " + read_text(f"/proc/{pid}/cmdline").replace("\0", " ").strip() for pid in pids}


def announce_run(token: str) -> socket.socket:
    """Show other runs on this machine that this one is alive, for as long as the socket is open."""
    sign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sign.bind(f"\0{RUN_SIGN}{token}")
    return sign


def list_other_runs(token: str) -> set[str]:
    """Tokens of the other runs of these tests that are alive."""
    signs = (line.rpartition(f"@{RUN_SIGN}") for line in read_text("/proc/net/unix").splitlines())
    return {found for _, sign, found in signs if sign and found != token}


def wait_for_leaks(before: set[str], token: str) -> tuple[set[str], set[str]]:
    """Processes and things that are still there, or no longer there, once the grace has passed."""
    deadline = time.monotonic() + GRACE_S
    while True:
        processes = list_processes(token)
        after = list_things()
        leaks = {f"left: {thing}" for thing in after - before} | {f"lost: {thing}" for thing in before - after}
        if not (processes or leaks) or time.monotonic() > deadline:
            return {f"left: {process}" for process in processes}, leaks
        time.sleep(0.05)  # noqa: TID251 - the pause of a wait for a condition


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    token = uuid.uuid4().hex
    # /proc shows a process's environment as it began, so only our children carry the token.
    os.environ[TOKEN_NAME] = token
    with announce_run(token):
        others = list_other_runs(token)
        before = list_things()
        yield
        processes, things = wait_for_leaks(before, token)
        others |= list_other_runs(token)
    del os.environ[TOKEN_NAME]
    if things and others and not IN_CI:
        request.config.stash[UNSURE] = things
        things = set()
    if processes or things:
        pytest.fail("the tests changed the machine:\n  " + "\n  ".join(sorted(processes | things)), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the differences that another run may have made."""
    for thing in sorted(config.stash.get(UNSURE, None) or ()):
        terminalreporter.write_line(f"beside another run, so perhaps not of these tests: {thing}")


# ---- no silent skip --------------------------------------------------------------------------------------


def find_skip_fault(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why this report's skip is not allowed here, if it is one."""
    if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
        return None
    # pytest keeps a skip as (file, line, "Skipped: reason").
    reason = cast("tuple[str, int, str]", report.longrepr)[2].removeprefix("Skipped: ")
    return None if reason.startswith(ALLOWED_SKIP) else f"CI allows no skip, but this one says: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a test's skip into a failure where it is not allowed."""
    report = yield
    if fault := find_skip_fault(report):
        report.outcome, report.longrepr = "failed", fault
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a whole module that skips itself."""
    report = yield
    if fault := find_skip_fault(report):
        report.outcome, report.longrepr = "failed", fault
    return report
