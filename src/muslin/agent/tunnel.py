"""The udp backend's tunnel: a process of its own, which outlives the agent and takes new peers while packets fly.

Theory of operation: the tunnel is told three things on its command line, the device, where to listen and the file of
peers. Device and address hardly ever change; then it is replaced. Peers change all the time: the file is replaced and
SIGHUP says so, and the line ``reloaded`` in the log is the proof that they were taken over.

A tunnel survives its agent, ``kill -9`` included. The next agent finds it by the mark in its environment and by its
command line: ours is who reads our file of peers, in our way is who holds our device. One that was told what we would
tell it is adopted, peers and all, the others are ended. One in C that was installed anew since is succeeded by the new
program, which takes device and port from it and has it end: no packet is lost. Only what our own user has started in
our own network namespace counts, since anybody can write a mark. A service manager must leave the tunnel alone as
well: with systemd ``KillMode=process`` in the agent's unit, or a scope of its own; the default ends it with the agent.

It is heard through the log: whole lines, ``{`` begins the counters that SIGUSR1 asks for, and SIGUSR2 by peer. The log
is emptied when it has grown beyond ``LOG_MAX_BYTES``. A tunnel that ends is started again at once, one that keeps
ending or does not start at all after pauses that double.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import threading
import time
from pathlib import Path

from muslin.agent.files import write_whole
from muslin.agent.tunnel_counters import PEERS_LINE, SUMS_LINE, Peers, parse_counters, parse_peers, worth_showing
from muslin.errors import MuslinError
from muslin.kernel import programs
from muslin.kernel.programs import TUNNEL_MARK, Program
from muslin.model.network import Tunnel
from muslin.tunnel.programs import is_python, tunnel_command
from muslin.wire.agent_api import TunnelStatus

READY_TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 5.0
"""10,000 peers take a tunnel without traffic 0.1 s."""
COUNTERS_TIMEOUT_S = 0.5
COUNTERS_AGE_S = 1.0
"""How long the counters that were told last will do."""
LOG_MAX_BYTES = 1 << 20
WORDS_MAX = 300
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""One that has run for as long does not keep ending."""
QUICK_STARTS = 3
"""How often in a row one that was ready is started again at once: its end may be somebody's doing."""


class Pauses:
    """When something that keeps ending may be started again. Times are seconds of any clock that only grows."""

    def __init__(self) -> None:
        self._starts = 0
        self._forgiven = 0
        self._started_at = 0.0

    def left_s(self, now: float) -> float:
        """How long to wait yet: each pause, counted from the latest start, is twice the one before."""
        if self._starts == 0:
            return 0.0
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._starts - 1, 10), LONGEST_PAUSE_S)
        return max(0.0, self._started_at + pause_s - now)

    def note_start(self, now: float) -> None:
        """It is being started."""
        if now - self._started_at >= STEADY_S:
            self._starts = self._forgiven = 0
        self._starts += 1
        self._started_at = now

    def note_ready(self) -> None:
        """It works: should it end, that start is no reason to wait, unless that happened often."""
        if self._forgiven < QUICK_STARTS:
            self._forgiven += 1
            self._starts -= 1


class TunnelKeeper:
    """Has one tunnel run in a namespace, the own one by default, or none; its files are in ``directory``.

    ``program`` is the command of a tunnel, without arguments; ``note`` is worth a line of the log once it is started.
    ``converge`` is called by one thread at a time, the other methods by any.
    """

    def __init__(
        self, directory: Path, netns: str = "", program: tuple[str, ...] | None = None, note: str = ""
    ) -> None:
        here = Path(os.path.abspath(directory))  # the tunnel's own directory is another
        self._peers_file, self._log = here / "tunnel.peers", here / "tunnel.log"
        self._netns = netns
        self._program, self._note = program or tunnel_command(), note
        self._wanted: Tunnel | None = None
        self._running: Program | None = None
        self._taken: tuple[tuple[str, str], ...] | None = None
        """The peers that the running one is known to have."""
        self._has_looked = False
        """Whether what an earlier agent left is known."""
        self._child: int | None = None
        """The number of the one that this process started."""
        self._tried: tuple[str, ...] = ()
        self._pauses = Pauses()
        self._failure = ""
        self._counters: dict[str, int] = {}
        self._peer_counters: Peers = {}
        self._counters_of: tuple[float, int] | None = None
        self._talking = threading.Lock()

    # ---- what should run -------------------------------------------------------------------------------------

    def converge(self, tunnel: Tunnel | None, now: float | None = None) -> None:
        """Have this tunnel run, with these peers, or none; MuslinError in the tunnel's own words when it will not.

        ``now``: seconds of a clock that only grows, by default ``time.monotonic``.
        """
        self._wanted = tunnel
        try:
            if tunnel is None:
                self._end()
            else:
                self._run(tunnel, time.monotonic() if now is None else now)
        except OSError as error:
            self._failure = error.strerror or str(error)
            attempt = f"tend the tunnel of {tunnel.device}" if tunnel else "end the tunnel"
            raise MuslinError(f"cannot {attempt}: {self._failure}") from error

    def _run(self, tunnel: Tunnel, now: float) -> None:
        if self._running is not None and not self._running.is_alive:
            self._failure = self._last_words()
            self._forget()
        arguments = (f"--device={tunnel.device}", f"--listen={tunnel.listen}", f"--peers={self._peers_file}")
        if self._running is None or not self._fits(self._running, arguments):
            if arguments != self._tried:
                self._pauses, self._tried = Pauses(), arguments
            if self._pauses.left_s(now):
                raise MuslinError(self.check(now))
            self._adopt(tunnel, arguments)
        if self._running is None:
            self._start(tunnel, arguments, now)
        elif self._is_outdated(self._running):
            self._succeed(self._running, tunnel, arguments, now)
        elif self._taken != tunnel.peers:
            self._hand_over_peers(self._running, tunnel)
        _refuse_rival_claims(tunnel)

    def _adopt(self, tunnel: Tunnel, arguments: tuple[str, ...]) -> None:
        """Take over a tunnel that was told the same, if there is one, and end what else is ours or in our way."""
        found = self._find(tunnel.device)
        self._has_looked = True
        fitting = [one for one in found if self._fits(one, arguments) and _can_be_talked_with(one)]
        self._end_all([program for program in found if program not in fitting[:1]])
        if fitting:
            self._running = fitting[0]
            self._taken = None  # an agent may have ended between writing the file and saying so

    def _is_outdated(self, running: Program) -> bool:
        """Whether it is the tunnel in C as it was before it was installed anew: that can be taken over from."""
        try:
            ours, its = os.stat(self._program[0]), os.stat(f"/proc/{running.pid}/exe")
        except OSError:
            return False
        return not is_python(self._program) and not os.path.samestat(ours, its)

    def _fits(self, program: Program, arguments: tuple[str, ...]) -> bool:
        """Whether it is the kind of tunnel that is wanted, and was told the same."""
        return is_python(program.words) == is_python(self._program) and program.words[-len(arguments) :] == arguments

    def _find(self, device: str | None = None) -> list[Program]:
        signs = {f"--peers={self._peers_file}", f"--device={device}"}
        found = programs.find(TUNNEL_MARK, [self._netns])
        return [program for program in found if program.uid == os.getuid() and signs & set(program.arguments)]

    def _start(self, tunnel: Tunnel, arguments: tuple[str, ...], now: float) -> None:
        self._pauses.note_start(now)
        self._peers_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_peers(tunnel)
        with open(self._log, "ab") as log:
            offset_bytes = _end_of_log(log.fileno())
        environment = {TUNNEL_MARK: "1", "PATH": os.environ.get("PATH", os.defpath)}
        pid = programs.start(self._netns, [*self._program, *arguments], environment, str(self._log))
        self._child = pid

        def is_alive() -> bool:
            return programs.started_ticks(pid) is not None

        line = programs.wait_for_line(str(self._log), ("ready ",), is_alive, READY_TIMEOUT_S, offset_bytes)
        self._running = programs.identify(pid, TUNNEL_MARK, self._netns) if line else None
        if self._running is None:
            fate = f"was not ready within {READY_TIMEOUT_S:.0f} s" if is_alive() else "did not start"
            programs.end_processes([pid])
            self._forget()
            self._failure = self._last_words(offset_bytes)
            raise MuslinError(f"the tunnel of {tunnel.device} {fate}: {self._failure}")
        self._pauses.note_ready()
        self._taken = tunnel.peers
        if self._note:
            logging.getLogger("muslin.agent").warning("%s", self._note)

    def _succeed(self, old: Program, tunnel: Tunnel, arguments: tuple[str, ...], now: float) -> None:
        """Start the new program beside the old one, which hands over; where it cannot, in its place."""
        try:
            self._start(tunnel, (f"--take-over={old.pid}", *arguments), now)
        except MuslinError:
            self._end_all([old])
            self._start(tunnel, arguments, now)
        programs.end_processes([old.pid])  # it was told; this waits
        programs.reap(old.pid)

    def _hand_over_peers(self, running: Program, tunnel: Tunnel) -> None:
        self._taken = None
        self._write_peers(tunnel)
        line = self._ask(running, signal.SIGHUP, ("reloaded ", "not reloaded: "), RELOAD_TIMEOUT_S)
        if line is None or not line.startswith("reloaded "):
            reason = f"it did not answer within {RELOAD_TIMEOUT_S:.0f} s" if running.is_alive else self._last_words()
            raise MuslinError(f"the tunnel of {tunnel.device} did not take its peers: {line or reason}")
        self._taken = tunnel.peers

    def _write_peers(self, tunnel: Tunnel) -> None:
        lines = [f"{prefix} {endpoint}\n" for prefix, endpoint in _claims(tunnel).items()]
        write_whole(self._peers_file, "".join(["# Written by the agent.\n", *lines]).encode())

    # ---- its end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._running is None and self._has_looked and not self._peers_file.exists():
            return
        self._end_all(self._find())
        self._has_looked = True
        self._pauses = Pauses()
        self._peers_file.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)

    def _end_all(self, ending: list[Program]) -> None:
        programs.end_processes([program.pid for program in ending])
        self._forget()

    def _forget(self) -> None:
        """Nothing of ours runs any more."""
        if self._child is not None:
            programs.reap(self._child)
        self._running = self._taken = self._child = None

    # ---- what it says ----------------------------------------------------------------------------------------

    def check(self, now: float | None = None) -> str:
        """A sentence when the tunnel should run and does not, else nothing; ``converge`` starts it again."""
        tunnel, running = self._wanted, self._running
        if tunnel is None or (running is not None and running.is_alive):
            return ""
        words = self._failure if running is None else self._last_words()
        pause_s = self._pauses.left_s(time.monotonic() if now is None else now)
        again = f"; it is started again in {pause_s:.0f} s" if pause_s else ""
        return f"the tunnel of {tunnel.device} does not run: {words or 'it was not started yet'}{again}"

    def status(self, now: float | None = None) -> TunnelStatus | None:
        """What it is and has counted; None while none runs. Before one was asked for, the one that was left here."""
        tunnel, running = self._wanted, self._running
        if not self._has_looked:
            return self._left_behind()
        if tunnel is None or running is None or not running.is_alive:
            return None
        self._read_counters(running, time.monotonic() if now is None else now)
        return TunnelStatus(
            pid=running.pid,
            device=tunnel.device,
            listen=tunnel.listen,
            peers=len({endpoint for _, endpoint in tunnel.peers}),
            counters=self._counters,
            peer_counters=self._peer_counters,
        )

    def _left_behind(self) -> TunnelStatus | None:
        for program in self._find():
            told = dict(argument.removeprefix("--").partition("=")[::2] for argument in program.arguments)
            return TunnelStatus(pid=program.pid, device=told.get("device", ""), listen=told.get("listen", ""), peers=0)
        return None

    def _read_counters(self, running: Program, now: float) -> None:
        asked_at, pid = self._counters_of or (0.0, 0)
        if pid == running.pid and now - asked_at < COUNTERS_AGE_S:
            return
        line = self._ask(running, signal.SIGUSR1, (SUMS_LINE,), COUNTERS_TIMEOUT_S)
        self._counters, self._counters_of, self._peer_counters = parse_counters(line or ""), (now, running.pid), {}
        if line and programs.catches(running, signal.SIGUSR2):  # it would end the Python one
            line = self._ask(running, signal.SIGUSR2, (PEERS_LINE,), COUNTERS_TIMEOUT_S)
            self._peer_counters = worth_showing(parse_peers(line or ""))

    def _ask(self, running: Program, number: signal.Signals, starts: tuple[str, ...], timeout_s: float) -> str | None:
        """Send a signal; the line of the log that answers it, None when there is none in time."""
        path = f"/proc/{running.pid}/fd/2"  # and not the log's name, which somebody may have taken away
        with self._talking, contextlib.suppress(OSError):
            with open(path, "r+b") as log:
                offset_bytes = _end_of_log(log.fileno()) if running.is_alive else 0
            if programs.send_signal(running, number):
                return programs.wait_for_line(path, starts, lambda: running.is_alive, timeout_s, offset_bytes)
        return None

    def _last_words(self, offset_bytes: int = 0) -> str:
        lines = programs.read_from(str(self._log), offset_bytes).splitlines()
        words = [line for line in lines if line and not line.startswith("{")]
        return words[-1][:WORDS_MAX] if words else "it said nothing"


def _can_be_talked_with(program: Program) -> bool:
    """Whether its log is a file, and it listens; one that was started a moment ago may need another."""
    try:
        is_file = stat.S_ISREG(os.stat(f"/proc/{program.pid}/fd/2").st_mode)
    except OSError:
        return False
    return is_file and programs.wait_until_it_catches(program, signal.SIGHUP, READY_TIMEOUT_S)


def _end_of_log(fd: int) -> int:
    """The size of a log, in bytes, that has been emptied if it was too long: its writer appends."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes <= LOG_MAX_BYTES:
        return size_bytes
    os.ftruncate(fd, 0)
    return 0


def _claims(tunnel: Tunnel) -> dict[str, str]:
    """Who gets what is for a prefix: the first who claims it, so that one bad lease cannot spoil the file for all."""
    claims: dict[str, str] = {}
    for prefix, endpoint in tunnel.peers:
        claims.setdefault(prefix, endpoint)
    return claims


def _refuse_rival_claims(tunnel: Tunnel) -> None:
    claims = _claims(tunnel)
    for prefix, endpoint in tunnel.peers:
        if claims[prefix] != endpoint:
            raise MuslinError(
                f"{prefix} is claimed by two peers, {claims[prefix]} and {endpoint}; the tunnel follows the first",
                "see which of the two leases should not be there",
            )
