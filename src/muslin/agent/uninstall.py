"""What an agent has left on this host, and its removal: from the kernel's marks and the state directory alone.

Theory of operation: the kernel is compared with a state in which nothing is wanted, so what goes is what is ours
(``model.state.Owned``), and settings go back to what they were; of containers that runtimes had connected, the cables
that say so and what they may send. Then the tunnel's process and the files. Nothing here
needs the store, the configuration or the settings of the run that made it; so it works after a crash, with other
settings, and twice: the second time there is nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from muslin.agent.attachment_plan import NodeFacts, ours_in, wide_scope
from muslin.agent.files import StateDirectory, read_subnet_env
from muslin.agent.reconcile import SeeingKernel, TunnelDoor
from muslin.errors import MuslinError
from muslin.kernel.base import Kernel
from muslin.kernel.converge import converge, plan_ops
from muslin.model.lease import Lease
from muslin.model.ops import Op, Report
from muslin.model.state import DesiredState
from muslin.plan.diff import diff
from muslin.wire.cni_socket import SOCKET_NAME as CNI_SOCKET_NAME
from muslin.wire.cni_socket import SPOOL_NAME

RUN_FILES = ("agent.sock", CNI_SOCKET_NAME, "tunnel.log", "tunnel.peers", "tunnel.peers.new")


class Leftovers(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to remove."""

    ops: tuple[Op, ...] = ()
    tunnel_pid: int | None = None
    files: tuple[str, ...] = ()
    lease: Lease | None = None
    """The lease that this node held last, as far as the state directory knows: to be given back in the store."""

    def __bool__(self) -> bool:
        return bool(self.ops or self.tunnel_pid or self.files)


class Removal:
    """Finds and removes; ``run_directory`` holds the socket and the tunnel's files."""

    def __init__(self, kernel: Kernel, tunnels: TunnelDoor, directory: StateDirectory, run_directory: Path) -> None:
        self._kernel, self._tunnels = SeeingKernel(kernel), tunnels
        self._directory, self._run_directory = directory, run_directory
        self._journal = directory.journal()

    def find(self) -> Leftovers:
        """All that is ours; changes nothing."""
        _, ops = plan_ops(self._kernel, DesiredState(), self._journal.owned)
        seen = self._kernel.observe(wide_scope((), NodeFacts()))
        tunnel = self._tunnels.status()
        return Leftovers(
            ops=(*diff(DesiredState(), seen, ours_in(seen)), *ops),
            tunnel_pid=tunnel.pid if tunnel else None,
            files=tuple(str(path) for path in self._files()),
            lease=self._directory.read_node().lease,
        )

    def remove(self) -> None:
        """Remove all of it; MuslinError, naming what stayed, when the kernel refuses something."""
        seen = self._kernel.observe(wide_scope((), NodeFacts()))
        containers = self._kernel.apply(diff(DesiredState(), seen, ours_in(seen)))
        report = converge(self._kernel, DesiredState(), self._journal)
        self._tunnels.converge(None)
        report = Report((*containers, *report.results))
        if not report.ok:
            stayed = "\n  ".join(result.describe() for result in (*report.failed, *report.skipped))
            raise MuslinError(f"not everything could be removed:\n  {stayed}", "mend that, and run it again")
        for path in self._files():
            path.unlink(missing_ok=True)
        for directory in (self._directory.path, self._run_directory / SPOOL_NAME, self._run_directory):
            _remove_if_empty(directory)

    def _files(self) -> list[Path]:
        found = self._directory.files()
        found += [path for name in RUN_FILES if (path := self._run_directory / name).exists()]
        # What runtimes have had removed while no agent ran: all that it could undo goes now.
        found += sorted((self._run_directory / SPOOL_NAME).glob("*"))
        node = self._directory.read_node()
        env = read_subnet_env(Path(node.subnet_file)) if node.subnet_file else None
        # A flannel that runs here now may have written its own.
        if env is not None and node.lease is not None and env.subnets == node.lease.subnets:
            found.append(Path(node.subnet_file))
        unfinished = f"{node.subnet_file}.new"
        return [*found, Path(unfinished)] if node.subnet_file and Path(unfinished).exists() else found


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:  # others have files there, or it is not there
        return
