"""One connection to one member of an etcd cluster.

Theory of operation: a link is used by calls and watches at the same time. ``retire`` ends it for all of them: what
is under way fails, and whoever was still connecting closes again what it opened. TLS material is read anew for each
link, so that renewed certificates are taken up without a restart.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec
from grpclib.client import Channel

from muslin.model.secret import Secret

CLIENT_PORT = 2379
"""etcd's port for clients, as registered with IANA."""


class EtcdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and who we are. Field names are those of flannel's flags where it has them."""

    endpoints: tuple[str, ...] = (f"http://127.0.0.1:{CLIENT_PORT}",)
    prefix: str = "/coreos.com/network"
    ca_file: str = ""
    """Of those who sign the members' certificates; empty means the system's authorities."""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: Secret = Secret("")
    attempt_s: float = 3.0
    """How long one try of a call may take, connecting included, before the next member is asked."""
    heartbeat_s: float = 5.0
    """A watch that has been silent for so long asks its member whether it is alive."""


def parse_endpoint(endpoint: str) -> tuple[str, int, bool]:
    """Host, port and whether it is TLS; ValueError for what is no endpoint."""
    url = urlsplit(endpoint if "//" in endpoint else f"http://{endpoint}")
    if not url.hostname or url.scheme not in ("http", "https"):
        raise ValueError(f"etcd endpoint {endpoint!r} is not of the form http://host:port or https://host:port")
    return url.hostname, url.port or CLIENT_PORT, url.scheme == "https"


class Link:
    """A connection that is made on first use and closed once."""

    def __init__(self, options: EtcdOptions, endpoint: str) -> None:
        host, port, is_tls = parse_endpoint(endpoint)
        self.endpoint = endpoint
        self._is_retired = False
        self._users = 0
        self._channel = Channel(host, port, ssl=_make_tls(options) if is_tls else None)

    @contextmanager
    def use(self) -> Iterator[Channel]:
        """The connection, for one call or watch."""
        if self._is_retired:
            raise OSError(f"the connection to {self.endpoint} was given up")
        self._users += 1
        try:
            yield self._channel
        finally:
            self._users -= 1
            self._close_late()

    def retire(self) -> None:
        """Fail what is under way and close; the last user closes what it may still have opened."""
        self._is_retired = True
        self._channel.close()

    def _close_late(self) -> None:
        if self._is_retired and not self._users:
            self._channel.close()


def _make_tls(options: EtcdOptions) -> ssl.SSLContext:
    """gRPC's TLS: HTTP/2 is agreed upon in the handshake."""
    context = ssl.create_default_context(cafile=options.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cert_file:
        context.load_cert_chain(options.cert_file, options.key_file or None)
    context.set_alpn_protocols(["h2"])
    return context
