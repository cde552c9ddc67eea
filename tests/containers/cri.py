"""containerd's CRI as a kubelet speaks it: gRPC over containerd's socket.

Theory of operation: the messages are those of cri.proto beside this file, compiled when first asked for. A call is one
short connection in an event loop of its own, so that nothing is left open between tests; ``gather`` makes many at once,
as a kubelet does. A refused call raises GRPCError with containerd's words.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import grpc_tools
from grpc_tools import protoc
from grpclib.client import Channel, UnaryUnaryMethod

PROTO = Path(__file__).with_name("cri.proto")
SERVICE = "/runtime.v1.RuntimeService/"
DEADLINE_S = 60.0


class Message(Protocol):
    """What protobuf generates."""

    def __getattr__(self, name: str) -> Any: ...


@functools.cache
def messages() -> ModuleType:
    """The generated messages."""
    with tempfile.TemporaryDirectory() as directory:
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        words = ["protoc", f"-I{PROTO.parent}", f"-I{well_known}", f"--python_out={directory}", PROTO.name]
        assert protoc.main(words) == 0, f"{PROTO} does not compile"
        spec = importlib.util.spec_from_file_location("cri_pb2", Path(directory, "cri_pb2.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class Call:
    """One call that is to be made: the method's name, and the fields of its request."""

    def __init__(self, method: str, **fields: Any) -> None:
        self.method = method
        self.request = getattr(messages(), f"{method}Request")(**fields)

    async def make(self, channel: Channel) -> Any:
        """Make it; the response."""
        response = getattr(messages(), f"{self.method}Response")
        method: UnaryUnaryMethod[Any, Any] = UnaryUnaryMethod(
            channel, SERVICE + self.method, type(self.request), response
        )
        return await method(self.request, timeout=DEADLINE_S)


def gather(socket: Path, calls: Sequence[Call], *, tolerant: bool = False) -> list[Any]:
    """Make calls at once; their responses in order. ``tolerant``: an exception stands in place of a response."""

    async def make_all() -> list[Any]:
        channel = Channel(path=str(socket))
        try:
            return await asyncio.gather(*(call.make(channel) for call in calls), return_exceptions=tolerant)
        finally:
            channel.close()

    return asyncio.run(make_all())
