"""Leases in etcd (version 3 API), key by key and byte by byte as flannel keeps them: for many machines.

Theory of operation: ``wire/flannel_lease`` knows the bytes, ``etcd_api`` the wire. Each change is one transaction
that compares the key's ``mod_revision`` (its ``version`` 0 for a create) and, if that fails, reads what is there
instead. So a retry after a lost answer sees whether it was its own first try that it finds: a create by its etcd
lease, whose number we chose; a renewal by lease and value; a removal by the key being gone.

* **Ends.** A key without an etcd lease is a reservation, ``expires_at`` None. This client knows the ends of leases
  that it wrote itself; those of others are ``END_UNKNOWN``, as asking would cost a call a lease, and etcd removes
  the key anyway. TTLs are whole seconds, rounded up; etcd raises very short ones.
* **Renewing** keeps the etcd lease alive and writes the key only if value or TTL changed: with 1,000 nodes no
  renewal wakes the other 999. A keep-alive of a dead lease is no error in etcd, its answer has TTL 0: LeaseLost.
* **Watching.** One task a watch reads the range from ``config`` to the last lease in a single call, so at one
  revision, then follows it from the next revision on. After a break it first makes sure that it is the same cluster
  and not an older state of it, then resumes after the last event it had; if that history was compacted, it reads
  all again. Foreign keys in that range are skipped.

Left to the caller: a renewal that failed as StoreUnavailable and had been carried out after all has a new revision;
read before trying again. Left to etcd: the lease of a create that nobody learned about lives until its TTL.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from muslin.model.lease import ClusterSnapshot, Lease
from muslin.store.base import (
    DEADLINE_S,
    Backoff,
    Clock,
    StoreUnavailable,
    TroubleTeller,
    encode_lease,
    lease_lost,
    lease_taken,
    went_back,
)
from muslin.store.etcd_api import rpc_pb2 as pb
from muslin.store.etcd_api.client import Call, Compacted, EtcdClient, EtcdRefused
from muslin.store.etcd_api.link import EtcdOptions
from muslin.store.etcd_api.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, PUT, RANGE, TXN
from muslin.store.etcd_api.mirror import Mirror
from muslin.wire.flannel_lease import encode_config_key, encode_lease_key

TTL_SLACK_S = 10
"""An etcd lease is kept if its TTL is at most so much longer than asked for: etcd raises short ones."""
SETTLE_S = 0.01
"""How long a watch waits for more of a burst."""
MAX_LEASE_ID = 2**63 - 1

__all__ = ["EtcdOptions", "EtcdStore"]


class EtcdStore(TroubleTeller):
    """A client of the store below ``options.prefix``."""

    def __init__(self, options: EtcdOptions, *, now: Clock = time.time) -> None:
        super().__init__()
        self._options = options
        self._client = EtcdClient(options)
        self._now = now
        self._ends: dict[int, float] = {}
        """When the etcd leases end that this client granted or kept alive."""
        self._watches: set[asyncio.Event] = set()
        self._closed = False
        self._config_key = encode_config_key(options.prefix)
        lease_keys = encode_lease_key(options.prefix, "")
        self._range_end = lease_keys[:-1] + bytes([lease_keys[-1] + 1])

    # ---- the protocol ------------------------------------------------------------------------------------

    async def snapshot(self, *, deadline_s: float = DEADLINE_S) -> ClusterSnapshot:
        """All leases now."""
        mirror = self._make_mirror()
        mirror.replace(await self._list(Call("read the leases", deadline_s)))
        return mirror.snapshot()

    async def watch(self) -> AsyncIterator[ClusterSnapshot]:
        """A snapshot now and after each change."""
        mirror, news, seen = self._make_mirror(), asyncio.Event(), 0
        self._watches.add(news)
        keeper = asyncio.create_task(self._keep(mirror, news))
        keeper.add_done_callback(lambda _: news.set())
        try:
            while True:
                await news.wait()
                if seen:
                    await asyncio.sleep(SETTLE_S)
                news.clear()
                if self._closed:
                    return
                if keeper.done():
                    keeper.result()
                if mirror.revision > seen:
                    seen = mirror.revision
                    yield mirror.snapshot()
        finally:
            self._watches.discard(news)
            keeper.cancel()
            await asyncio.wait({keeper})

    async def create(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease that ends."""
        name, value = encode_lease(lease)
        call = Call(f"create the lease {name}", deadline_s)
        etcd_lease, expires_at = await self._grant(ttl_s, call)
        revision = await self._write(name, value, etcd_lease, None, call)
        if revision is None:
            await self._revoke(etcd_lease)
            raise lease_taken(name)
        return _with(lease, expires_at, revision)

    async def reserve(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> Lease:
        """File a lease without end."""
        name, value = encode_lease(lease)
        revision = await self._write(name, value, 0, None, Call(f"reserve {name}", deadline_s))
        if revision is None:
            raise lease_taken(name)
        return _with(lease, None, revision)

    async def renew(self, lease: Lease, ttl_s: float, *, deadline_s: float = DEADLINE_S) -> Lease:
        """Move the end; a changed advertisement is a new revision."""
        name, value = encode_lease(lease)
        call = Call(f"renew the lease {name}", deadline_s)
        held = await self._get(name, call)
        if held is None or held.mod_revision != lease.revision:
            raise lease_lost(name)
        etcd_lease, expires_at = await self._extend(name, held.lease, ttl_s, call) if held.lease else (0, None)
        if (held.value, held.lease) == (value, etcd_lease):
            return _with(lease, expires_at, lease.revision)
        revision = await self._write(name, value, etcd_lease, lease.revision, call)
        if revision is None:
            raise lease_lost(name)
        return _with(lease, expires_at, revision)

    async def delete(self, lease: Lease, *, deadline_s: float = DEADLINE_S) -> None:
        """Remove the lease."""
        key = encode_lease_key(self._options.prefix, lease.name)
        call = Call(f"remove the lease {lease.name}", deadline_s)
        removal = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        response = await self._client.call(TXN, _transaction(key, lease.revision, removal), call)
        if not response.succeeded and (_found(response) is not None or not call.unsure):
            raise lease_lost(lease.name)

    async def write_config(self, config: bytes, *, deadline_s: float = DEADLINE_S) -> None:
        """Replace the configuration."""
        request = pb.PutRequest(key=self._config_key, value=config)
        await self._client.call(PUT, request, Call("write the network's configuration", deadline_s))

    async def close(self) -> None:
        """End the watches, close the connection."""
        self._closed = True
        for news in self._watches:
            news.set()
        await self._client.close()

    # ---- calls -------------------------------------------------------------------------------------------

    async def _list(self, call: Call) -> pb.RangeResponse:
        request = pb.RangeRequest(key=self._config_key, range_end=self._range_end)
        return await self._client.call(RANGE, request, call)

    async def _get(self, name: str, call: Call) -> pb.KeyValue | None:
        request = pb.RangeRequest(key=encode_lease_key(self._options.prefix, name))
        found = (await self._client.call(RANGE, request, call)).kvs
        return found[0] if found else None

    async def _write(self, name: str, value: bytes, etcd_lease: int, revision: int | None, call: Call) -> int | None:
        """Put the key if it has this revision (None: is not there); its new revision, None if it had another."""
        key = encode_lease_key(self._options.prefix, name)
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=etcd_lease))
        response = await self._client.call(TXN, _transaction(key, revision, put), call)
        if response.succeeded:
            return response.header.revision
        found = _found(response)
        is_own = found is not None and call.unsure and (found.value, found.lease) == (value, etcd_lease)
        return found.mod_revision if found is not None and is_own else None

    async def _grant(self, ttl_s: float, call: Call) -> tuple[int, float]:
        """A new etcd lease and its end. We choose its number, so that a second try finds the first one's."""
        request = pb.LeaseGrantRequest(TTL=_whole_seconds(ttl_s), ID=random.randint(1, MAX_LEASE_ID))
        began = self._now()
        granted_s = request.TTL
        try:
            granted_s = (await self._client.call(LEASE_GRANT, request, call)).TTL
        except EtcdRefused as refusal:
            if "lease already exists" not in refusal.reason or not call.unsure:
                raise
        self._ends[request.ID] = began + granted_s
        return request.ID, began + granted_s

    async def _extend(self, name: str, etcd_lease: int, ttl_s: float, call: Call) -> tuple[int, float]:
        """Keep an etcd lease alive, or take a new one if its TTL is not the one that is wanted."""
        wanted_s = _whole_seconds(ttl_s)
        began = self._now()
        request = pb.LeaseKeepAliveRequest(ID=etcd_lease)
        ttl_left_s = (await self._client.call(LEASE_KEEP_ALIVE, request, call)).TTL
        if ttl_left_s <= 0:
            raise lease_lost(name)
        if not wanted_s <= ttl_left_s <= wanted_s + TTL_SLACK_S:
            return await self._grant(ttl_s, call)
        self._ends[etcd_lease] = began + ttl_left_s
        return etcd_lease, began + ttl_left_s

    async def _revoke(self, etcd_lease: int) -> None:
        """Give back an etcd lease that no key hangs on; if that fails it ends by itself."""
        self._ends.pop(etcd_lease, None)
        with suppress(StoreUnavailable):
            call = Call("give back an unused etcd lease", self._options.attempt_s, max_tries=1)
            await self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=etcd_lease), call)

    # ---- watching ----------------------------------------------------------------------------------------

    def _make_mirror(self) -> Mirror:
        return Mirror(self._options.prefix, self._ends)

    async def _keep(self, mirror: Mirror, news: asyncio.Event) -> None:
        """Keep the mirror true for ever; while that is not possible, say so and leave it as it is."""
        backoff = Backoff()
        while True:
            try:
                await self._follow(mirror, news, backoff)
            except Compacted:
                mirror.is_behind = True
                continue
            except StoreUnavailable as error:
                if self._closed:
                    return
                self.tell(error.what)
            await asyncio.sleep(backoff.pause_s())

    async def _follow(self, mirror: Mirror, news: asyncio.Event, backoff: Backoff) -> None:
        """Bring the mirror to the present and apply what happens, until something breaks."""
        await self._catch_up(mirror)
        news.set()
        request = pb.WatchCreateRequest(
            key=self._config_key, range_end=self._range_end, start_revision=mirror.revision + 1
        )
        async with aclosing(self._client.watch(request)) as responses:
            async for response in responses:
                if response.created:
                    self.tell(None)
                    backoff.reset()
                mirror.apply(response.events)
                news.set()

    async def _catch_up(self, mirror: Mirror) -> None:
        """Make sure that history goes on after the mirror's revision, or read all anew."""
        call = Call("read the leases", self._options.attempt_s, max_tries=1)
        if mirror.revision and not mirror.is_behind:
            request = pb.RangeRequest(key=self._config_key, count_only=True)
            header = (await self._client.call(RANGE, request, call)).header
            if header.cluster_id == mirror.cluster_id and header.revision >= mirror.revision:
                return
        listing = await self._list(call)
        if listing.header.revision < mirror.revision:
            raise StoreUnavailable(went_back("etcd", mirror.revision, listing.header.revision))
        mirror.replace(listing)


def _transaction(key: bytes, revision: int | None, change: pb.RequestOp) -> pb.TxnRequest:
    """Do the change if the key has that revision (None: is not there), or else read the key."""
    if revision is None:
        condition = pb.Compare(target=pb.Compare.VERSION, key=key, version=0)
    else:
        condition = pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)
    look = pb.RequestOp(request_range=pb.RangeRequest(key=key))
    return pb.TxnRequest(compare=[condition], success=[change], failure=[look])


def _found(response: pb.TxnResponse) -> pb.KeyValue | None:
    """What a failed transaction read in the key's place."""
    found = response.responses[0].response_range.kvs
    return found[0] if found else None


def _whole_seconds(ttl_s: float) -> int:
    return max(math.ceil(ttl_s), 1)


def _with(lease: Lease, expires_at: float | None, revision: int) -> Lease:
    return Lease(subnets=lease.subnets, advertisement=lease.advertisement, expires_at=expires_at, revision=revision)
