"""Driving labs as a person would: the command line as real processes, and the kernel read back with iproute2.

Each lab of a test run is called ``tTOKEN-N``. The token is that of the run (tests/conftest.py), so what these tests
made is told apart from everything else on the machine, by name, and nothing else is ever touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import muslin


def has_one_user() -> bool:
    """Whether this is a user namespace that maps a single user, in which nobody can become another one."""
    return Path("/proc/self/uid_map").read_text().split()[2:] == ["1"]


SEVERAL_USERS = pytest.mark.skipif(has_one_user(), reason="needs several users: this user namespace has just one")

CHECKOUT = Path(__file__).parents[2]
SOURCE = str(Path(muslin.__file__).parents[1])
NETNS_DIRECTORY = Path("/run/netns")
PATIENCE_S = 20.0
"""How long a condition may take to become true; a healthy machine needs a fraction of it."""

Finished = subprocess.CompletedProcess[str]

SHARED: list[Muslin] = []
"""Labs that outlive a test on purpose."""

_numbers = itertools.count(1)


def run_token() -> str:
    """What the names of this run's labs begin with."""
    return f"t{os.environ['MUSLIN_TEST_RUN'][:6]}"


def new_name() -> str:
    """A lab name that nobody else has."""
    return f"{run_token()}-{next(_numbers)}"


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; AssertionError naming it when it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain until {what}"
        time.sleep(0.01)  # noqa: TID251 - the pause of a wait for a condition


class Muslin:
    """The command line with one runtime directory; ``wrap`` goes ahead of each command (``unshare -m ...``)."""

    def __init__(
        self,
        runtime: Path,
        wrap: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
        source: str = SOURCE,
    ) -> None:
        self.runtime = runtime
        self.wrap = tuple(wrap)
        self.python = tuple(python)
        self.names: list[str] = []
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MUSLIN_LAB")},
            "PYTHONPATH": source,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "",
            "MUSLIN_RUNTIME_DIR": str(runtime),
            "NO_COLOR": "1",
            **(environment or {}),
        }

    def new_name(self) -> str:
        """A name for a lab, which is taken down after the test."""
        self.names.append(new_name())
        return self.names[-1]

    def command(self, *arguments: object, wrap: Sequence[str] = ()) -> list[str]:
        """The words of a whole command."""
        return [*self.wrap, *wrap, *self.python, "-m", "muslin", *map(str, arguments)]

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a command; an empty value takes a variable away."""
        merged = {**self._environment, **extra}
        return {name: value for name, value in merged.items() if value}

    def run(
        self,
        *arguments: object,
        code: int | None = 0,
        stdin: str = "",
        wrap: Sequence[str] = (),
        env: dict[str, str] | None = None,
    ) -> Finished:
        """Run a command to its end; its exit code must be ``code`` (None for any), and no traceback be seen."""
        done = subprocess.run(
            self.command(*arguments, wrap=wrap),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=self.environment(**(env or {})),
            cwd="/",
        )
        check_finished(done, code)
        return done

    def lab(self, *arguments: object, **options: Any) -> Finished:
        """``muslin lab ...``."""
        return self.run("lab", *arguments, **options)

    def json(self, *arguments: object, **options: Any) -> Any:
        """The JSON document that ``muslin lab ... -o json`` prints."""
        return json.loads(self.lab(*arguments, "-o", "json", **options).stdout)

    def start(self, *arguments: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start ``muslin lab ...`` and return at once."""
        return subprocess.Popen(
            self.command("lab", *arguments),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            env=self.environment(**(env or {})),
            cwd="/",
            **options,
        )

    def up(self, *arguments: object, name: str | None = None, code: int = 0) -> str:
        """Raise a lab; its name."""
        name = name or self.new_name()
        self.lab("up", "--name", name, *arguments, code=code)
        return name

    def inside(self, name: str, place: str, *command: str, code: int | None = 0) -> Finished:
        """``lab exec``."""
        return self.lab("exec", "--name", name, place, "--", *command, code=code)

    def state(self, name: str) -> Any:
        """The state file of a lab."""
        return json.loads((self.runtime / name / "state.json").read_text())

    def down_all(self) -> None:
        """Take down every lab whose name was given out."""
        for name in self.names:
            if (self.runtime / name).exists():
                self.lab("down", name)
        self.names.clear()


def check_finished(done: Finished, code: int | None) -> None:
    """Fail with everything that was said, unless the command ended as it should."""
    told = f"{' '.join(done.args)}\n-- exit code {done.returncode}, expected {code}\n{done.stderr}\n--\n"
    told += done.stdout[-2000:]
    assert "Traceback" not in done.stderr, told
    assert "Exception ignored" not in done.stderr, told
    if code is not None:
        assert done.returncode == code, told


def finish(process: subprocess.Popen[str], code: int | None = 0, stdin: str | None = None) -> Finished:
    """Wait for a started command; see ``check_finished``."""
    stdout, stderr = process.communicate(stdin, timeout=60)
    assert isinstance(process.args, list)
    done = Finished([str(word) for word in process.args], process.returncode, stdout, stderr)
    check_finished(done, code)
    return done


# ---- the kernel, read back with other tools ---------------------------------------------------------------


def netns_of(name: str, place: str) -> str:
    """The namespace of a place of a lab."""
    return f"muslin-{name}-{place}"


def netns_names(name: str) -> set[str]:
    """The places of a lab whose namespaces exist."""
    start = netns_of(name, "")
    found = NETNS_DIRECTORY.iterdir() if NETNS_DIRECTORY.is_dir() else ()
    return {path.name.removeprefix(start) for path in found if path.name.startswith(start)}


def ip_json(name: str, place: str, *words: str) -> Any:
    """``ip -j`` inside of a place."""
    command = ["ip", "-j", "-n", netns_of(name, place), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def sysctl(name: str, place: str, setting: str) -> str:
    """The value of a setting inside of a place."""
    command = ["ip", "netns", "exec", netns_of(name, place), "sysctl", "-n", setting]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def links_of(name: str, place: str) -> dict[str, dict[str, Any]]:
    """Link name to what ``ip -d link`` says of it."""
    return {link["ifname"]: link for link in ip_json(name, place, "-d", "link")}


def addresses_of(name: str, place: str) -> dict[str, set[str]]:
    """Link name to its addresses with length, without loopback's own and link-local ones."""
    return {
        link["ifname"]: {
            f"{info['local']}/{info['prefixlen']}" for info in link["addr_info"] if info["scope"] == "global"
        }
        for link in ip_json(name, place, "addr")
        if link["ifname"] != "lo"
    }


def routes_of(name: str, place: str, family: str = "-4") -> set[str]:
    """The main table, a route as ``DESTINATION [via ADDRESS] dev LINK``."""
    return {
        f"{route['dst']}{' via ' + route['gateway'] if 'gateway' in route else ''} dev {route['dev']}"
        for route in ip_json(name, place, family, "route")
        if not str(route["dst"]).startswith(("fe80", "multicast"))
    }


def processes_of(name: str, place: str) -> list[int]:
    """The processes that live in a place."""
    command = ["ip", "netns", "pids", netns_of(name, place)]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- nothing is left --------------------------------------------------------------------------------------


def leftovers(*runtimes: Path) -> set[str]:
    """What is left of this run's labs, but for the shared ones: namespaces, processes, files."""
    spared = tuple(netns_of(name, "") for one in SHARED for name in one.names)
    names = os.listdir(NETNS_DIRECTORY) if NETNS_DIRECTORY.is_dir() else []
    left = {
        f"namespace {name}"
        for name in names
        if name.startswith(f"muslin-{run_token()}-") and not name.startswith(spared or "\0")
    }
    for runtime in runtimes:
        left |= {f"process {process}" for process in _processes_writing_below(runtime)}
        if runtime.exists():
            left |= {f"file {path}" for path in (runtime, *runtime.rglob("*"))}
    return left


def _processes_writing_below(runtime: Path) -> Iterator[str]:
    """Tunnels write their log below the runtime directory, also after that file was removed."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/2").startswith(f"{runtime}/"):
                yield pid + " " + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


# ---- verdicts ---------------------------------------------------------------------------------------------


def sentences(report: Any) -> list[str]:
    """The sentences of all faults in a check's document."""
    return [fault["sentence"] for cell in report["cells"] for fault in cell["faults"]]


def broken(report: Any) -> set[str]:
    """The requirements that a check's document says are broken."""
    return {word for cell in report["cells"] for fault in cell["faults"] for word in fault["breaks"]}


def totals(report: Any) -> dict[str, tuple[int, int]]:
    """Requirement to (passed, of)."""
    return {name: (total["passed"], total["of"]) for name, total in report["totals"].items()}


def ttls_of(report: Any) -> dict[tuple[str, str], set[int]]:
    """(source, address) to the TTLs that the destination saw, over all protocols."""
    return {
        (cell["result"]["pair"]["source"]["name"], cell["result"]["pair"]["address"]): {
            exchange["ttl"] for exchange in cell["result"]["exchanges"] if "ttl" in exchange
        }
        for cell in report["cells"]
    }


# ---- talking to a process ---------------------------------------------------------------------------------


def read_until(stream: int, wanted: Callable[[str], bool], what: str) -> str:
    """What a file descriptor gives until ``wanted`` likes it."""
    deadline = time.monotonic() + PATIENCE_S
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not wanted(text.decode(errors="replace")):
            assert selector.select(deadline - time.monotonic()), f"waited in vain until {what}; so far: {text!r}"
            chunk = os.read(stream, 4096)
            assert chunk, f"it ended before {what}; so far: {text!r}"
            text += chunk
    return text.decode(errors="replace")


@contextlib.contextmanager
def place_apart(script: str, *unshare: str) -> Iterator[int]:
    """A process in namespaces of its own, prepared by a shell script; its pid, for ``nsenter``."""
    command = ["unshare", *unshare, "sh", "-euc", f"{script}\necho ready\nexec cat >/dev/null"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n", holder.communicate(timeout=5)[1].decode()
        yield holder.pid
    finally:
        if holder.stdin is not None:
            holder.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            holder.wait(5)
        if holder.poll() is None:
            holder.send_signal(signal.SIGKILL)
            holder.wait(5)
        for pipe in (holder.stdout, holder.stderr):
            if pipe is not None:
                pipe.close()
