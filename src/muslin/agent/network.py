"""What this node knows of the network: its configuration, the one before, and the leases of the others.

Theory of operation: ``take`` is given each snapshot of the store. A configuration that cannot be followed is said and
the last good one is kept, as is one that vanished: no slip of an operator's pen takes a network down. When another one
comes that can be served beside the one before (``node_plan.may_linger``), the latter stays as ``previous`` until no
lease follows it any more, and some seconds longer for nodes that have not heard of ours yet. No clock is read here:
``now`` is in seconds of one that nobody can set.
"""

from __future__ import annotations

from muslin.agent.node_plan import may_linger, options_of, speaks
from muslin.agent.reconcile import Wish
from muslin.model.config import NetworkConfig
from muslin.model.lease import ClusterSnapshot, Lease
from muslin.wire.flannel_config import parse_network_config

LINGER_S = 5.0
"""How long a former configuration is served after the last lease that follows it: a peer hears of our new lease by the
store, and until then sends in the old way."""


class Network:
    """``config`` and ``previous`` are those of an earlier run, if there was one and this version understands them."""

    def __init__(self, config: NetworkConfig | None = None, previous: NetworkConfig | None = None) -> None:
        self.config = config if config and _is_understood(config) else None
        self.previous = previous if self.config and previous and _is_understood(previous) else None
        self.snapshot: ClusterSnapshot | None = None
        self.warning = ""
        """What is wrong with the configuration in the store."""
        self._told: bytes | None = None
        self._linger_until: float | None = None

    def take(self, snapshot: ClusterSnapshot) -> bool:
        """Take what the store shows; whether another configuration is followed from now on."""
        self.snapshot = snapshot
        if snapshot.config is None:
            self.warning = "the store holds no configuration of the network" + (
                "; the last one is followed" if self.config else ": write one with: muslin network set FILE"
            )
            self._told = None
            return False
        if snapshot.config == self._told:
            return False
        self._told = snapshot.config
        try:
            config = parse_network_config(snapshot.config)
            options_of(config)
        except ValueError as error:
            kept = "; the one before is followed" if self.config else ""
            self.warning = f"the network's configuration in the store is wrong: {error}{kept}"
            return False
        unknown = ", ".join(config.ignored)
        self.warning = f"the network's configuration has keys that mean nothing: {unknown}" if unknown else ""
        if config == self.config:
            return False
        self._replace(config)
        return True

    def _replace(self, config: NetworkConfig) -> None:
        if self.config is not None:
            self.previous = self.config if may_linger(self.config, config) else None
            self._linger_until = None
        self.config = config

    def let_go(self, own: str, now: float) -> bool:
        """Give the former configuration up when nobody needs it; whether that is so from now on."""
        if self.previous is None or self.config is None or self.snapshot is None:
            return False
        before, present = options_of(self.previous), options_of(self.config)
        for lease in self.others(own):
            if speaks(self.previous.backend, before, lease) and not speaks(self.config.backend, present, lease):
                self._linger_until = None
                return False
        if self._linger_until is None:
            self._linger_until = now + LINGER_S
        if now < self._linger_until:
            return False
        self.previous = None
        return True

    def lingers_s(self, now: float) -> float | None:
        """How long the former configuration is served yet; None while a peer follows it, and without one."""
        if self.previous is None or self._linger_until is None:
            return None
        return max(0.0, self._linger_until - now)

    def others(self, own: str) -> tuple[Lease, ...]:
        """All leases but the own one, of this name."""
        return tuple(lease for lease in self.snapshot.leases if lease.name != own) if self.snapshot else ()

    def wish(self, own: Lease, vtep_mac: str) -> Wish | None:
        """What the kernel should be made to agree with; None while the configuration is not known."""
        if self.config is None or self.snapshot is None:
            return None
        return Wish(
            config=self.config,
            previous=self.previous,
            subnets=own.subnets,
            leases=self.others(own.name),
            vtep_mac=vtep_mac,
        )


def _is_understood(config: NetworkConfig) -> bool:
    """False for what another version has written."""
    try:
        options_of(config)
    except ValueError:
        return False
    return True
