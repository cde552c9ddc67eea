"""``./run bench cni_start``: what starting the CNI plugin costs, alone and with a call to an agent that knows nothing.

Theory of operation: a runtime starts a plugin for each call, so its start is paid for with every container. Contenders
take turns, one call each a turn; a call is posix_spawn(3), standard input, and the wait for the end, without a shell.
The agent is a thread of this process that answers at once: what it costs is in ``call``, and not the plugin's.

    version    muslin-cni, VERSION: start, read, answer, end
    call       muslin-cni, STATUS: the same with socket, request and answer
    true       /bin/true: what any program costs that the C library has to be loaded for
    python     an interpreter that does nothing, as a plugin in Python would begin
    bridge     the reference plugin, VERSION, where it is installed
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from muslin.cli.cni_program import find_program
from muslin.wire.cni_socket import HEADER_BYTES, Answer, encode_answer, parse_header

BRIDGES = ("/opt/cni/bin/bridge", "/usr/lib/cni/bridge")
WARM_UP = 5


def answer_calls(listener: socket.socket) -> None:
    """Serve until the listener is shut down."""
    reply = encode_answer(Answer(exit_status=0))
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            data = connection.recv(1 << 16)
            while len(data) < HEADER_BYTES + parse_header(data).body_bytes:
                data += connection.recv(1 << 16)
            connection.sendall(reply)


def contenders(path: str) -> dict[str, tuple[list[str], dict[str, str], bytes]]:
    """Name to (command, environment, standard input)."""
    plugin, conf = str(find_program()), json.dumps({"cniVersion": "1.1.0", "name": "n", "socket": path}).encode()
    version = {"CNI_COMMAND": "VERSION", "CNI_PATH": "/", "CNI_IFNAME": "eth0", "CNI_NETNS": "x"}
    found = {
        "version": ([plugin], version, conf),
        "call": ([plugin], {**version, "CNI_COMMAND": "STATUS"}, conf),
        "true": (["/bin/true"], {}, b""),
        "python": ([sys.executable, "-ISE", "-c", "pass"], {}, b""),
    }
    bridge = next((place for place in BRIDGES if os.access(place, os.X_OK)), None)
    if bridge:
        found["bridge"] = ([bridge], version, conf)
    return found


def time_call(command: list[str], environment: dict[str, str], stdin: bytes, silence: int) -> float:
    """Milliseconds from the start of a process to its end."""
    read_end, write_end = os.pipe()
    os.write(write_end, stdin)
    os.close(write_end)
    streams = [(os.POSIX_SPAWN_DUP2, read_end, 0), (os.POSIX_SPAWN_DUP2, silence, 1)]
    begun = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=streams)
    _, status = os.waitpid(pid, 0)
    span_ms = (time.perf_counter() - begun) * 1000
    os.close(read_end)
    if status:
        raise RuntimeError(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return span_ms


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=300, help="calls of each contender")
    turns = parser.parse_args().turns
    spans: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "wb") as silence:
        path = str(Path(directory, "cni.sock"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(8)
        agent = threading.Thread(target=answer_calls, args=(listener,))
        agent.start()
        try:
            for turn in range(-WARM_UP, turns):
                for name, call in contenders(path).items():
                    span_ms = time_call(*call, silence.fileno())
                    if turn >= 0:
                        spans.setdefault(name, []).append(span_ms)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            agent.join()
            listener.close()
    print(f"{'':<10}{'p50 ms':>8}{'p99 ms':>8}   of {turns} calls, load {os.getloadavg()[0]:.1f}")
    for name, values in spans.items():
        print(f"{name:<10}{statistics.median(values):>8.2f}{statistics.quantiles(values, n=100)[98]:>8.2f}")


if __name__ == "__main__":
    main()
