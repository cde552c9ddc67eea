"""What a watch knows: the keys of one network at one revision, decoded as they come.

Theory of operation: ``replace`` takes a whole listing, ``apply`` the events after it, of which etcd never sends half
a revision. A change costs the decoding of what changed; a snapshot shares all other leases with the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from muslin.model.lease import ClusterSnapshot
from muslin.store.base import END_UNKNOWN, Entry, LeaseMap
from muslin.store.etcd_api import rpc_pb2 as pb
from muslin.wire.flannel_lease import encode_config_key, encode_lease_key


class Mirror:
    """The network below ``prefix``; ``ends`` holds the ends of the etcd leases that are known."""

    def __init__(self, prefix: str, ends: Mapping[int, float]) -> None:
        self.revision = 0
        self.cluster_id = 0
        self.is_behind = False
        """Whether the history after ``revision`` is gone, so that only a listing helps."""
        self._config_key = encode_config_key(prefix)
        self._lease_keys = encode_lease_key(prefix, "")
        self._ends = ends
        self._config: bytes | None = None
        self._leases = LeaseMap()

    def replace(self, listing: pb.RangeResponse) -> None:
        """Forget all and take what the listing says."""
        self._config, self._leases = None, LeaseMap()
        for pair in listing.kvs:
            self._put(pair)
        self.revision, self.cluster_id = listing.header.revision, listing.header.cluster_id
        self.is_behind = False

    def apply(self, events: Iterable[pb.Event]) -> None:
        """Do what the events say. Only they move the revision: a header may be ahead of what was delivered."""
        for event in events:
            if event.type == pb.Event.PUT:
                self._put(event.kv)
            else:
                self._remove(event.kv.key)
            self.revision = event.kv.mod_revision

    def snapshot(self) -> ClusterSnapshot:
        """What is known now."""
        return self._leases.snapshot(self.revision, self._config)

    def _put(self, pair: pb.KeyValue) -> None:
        if pair.key == self._config_key:
            self._config = pair.value
        elif pair.key.startswith(self._lease_keys):
            name = self._name_of(pair.key)
            expires_at = self._ends.get(pair.lease, END_UNKNOWN) if pair.lease else None
            self._leases.put(Entry(name, pair.value, expires_at, pair.mod_revision))

    def _remove(self, key: bytes) -> None:
        if key == self._config_key:
            self._config = None
        elif key.startswith(self._lease_keys):
            self._leases.remove(self._name_of(key))

    def _name_of(self, key: bytes) -> str:
        return key[len(self._lease_keys) :].decode(errors="backslashreplace")
