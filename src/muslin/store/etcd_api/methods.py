"""The methods of etcd that Muslin calls, with the types that go in and come out.

Theory of operation: a table in place of generated stubs, which would bring abstract servers along. A test holds it
to the services of ``rpc.proto``. A keep-alive is a stream in etcd's API; one request and the end of the stream make
it a call.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod

from muslin.store.etcd_api import rpc_pb2 as pb

Request = TypeVar("Request")
Response = TypeVar("Response")


class Method(NamedTuple, Generic[Request, Response]):
    """A method by its path; ``streams`` where both sides are streams."""

    path: str
    request: type[Request]
    response: type[Response]
    streams: bool = False

    async def call(self, channel: Channel, request: Request, metadata: dict[str, str]) -> Response:
        """One request, one response."""
        if not self.streams:
            unary = UnaryUnaryMethod(channel, self.path, self.request, self.response)
            return await unary(request, metadata=metadata)
        stream = StreamStreamMethod(channel, self.path, self.request, self.response)
        responses = await stream([request], metadata=metadata)
        if not responses:
            raise OSError(f"{self.path} ended without an answer")
        return responses[0]


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
PUT = Method("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse, streams=True
)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse, streams=True)
