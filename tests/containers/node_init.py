"""Process 1 of a node: waits for its children, as every process 1 must, and for its own end, with which all others end.

Theory of operation: conmon and containerd's shims leave their parents on purpose and become children of process 1; one
that does not reap them leaves zombies, which podman takes for living. Started as a file, without site packages, with
signals blocked; only SIGKILL from outside of the process namespace ends it (pid_namespaces(7)).
"""

import contextlib
import os
import signal


def main() -> None:
    """Reap for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main()
