"""What this host should have, kept up to date lease by lease: pure, and the same whether built at once or step by step.

Theory of operation: ``node_plan.plan_peers`` is asked for each lease alone, so one more lease costs the same beside
ten others as beside 10,000. Two leases can want one key (the same public address, the same MAC, numbers that hash
alike); what is planned for one then depends on the other. So it is noted which lease wants which keys, and leases that
share a key, directly or through others, are planned together, in the order of their names. The result depends on the
set of leases alone and not on the order in which they came; a test compares both ways.

A ``Change`` says which objects were wanted and which are wanted now. Whoever applies it to a kernel that agreed with
the former gets one that agrees with the latter; whether it did agree only a whole look can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from muslin.agent.node_plan import Host, NodeInputs, NodePlan, plan_own, plan_peers
from muslin.model.kernel import AnyObject, Key, Link
from muslin.model.lease import Lease
from muslin.model.network import Refusal, Tunnel
from muslin.model.state import DesiredState


class Change(msgspec.Struct, frozen=True):
    """What an update changed: objects that were wanted and are no more, or otherwise; and those wanted now."""

    before: tuple[AnyObject, ...] = ()
    after: tuple[AnyObject, ...] = ()
    leases: tuple[str, ...] = ()
    """Names of the leases that came, went or changed."""


class _Claims:
    """Which lease wants which keys, and which keys are wanted by several."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[Key, ...]] = {}
        self._first: dict[Key, str] = {}
        self._shared: dict[Key, set[str]] = {}

    def add(self, name: str, keys: Iterable[Key]) -> None:
        """The lease wants these too."""
        more = tuple(keys)
        for key in more:
            other = self._first.setdefault(key, name)
            if other != name:
                self._shared.setdefault(key, {other}).add(name)
        self._keys[name] = self._keys.get(name, ()) + more

    def remove(self, name: str) -> None:
        """The lease wants nothing any more."""
        for key in self._keys.pop(name, ()):
            others = self._shared.get(key, {name}) - {name}
            if not others:
                self._first.pop(key, None)
                continue
            self._first[key] = min(others)
            if len(others) > 1:
                self._shared[key] = others
            else:
                del self._shared[key]

    def names(self, key: Key) -> set[str]:
        """The leases that want this key."""
        return self._shared.get(key) or ({self._first[key]} if key in self._first else set())

    def rivals(self, name: str) -> set[str]:
        """The leases that share a key with this one, it among them."""
        found = {name}
        if self._shared:
            found.update(*(self._shared[key] for key in self._keys[name] if key in self._shared))
        return found


class Planner:
    """The plan for one value of ``NodeInputs``; other inputs are another planner's."""

    def __init__(self, inputs: NodeInputs) -> None:
        self.inputs = inputs
        self.host = Host(inputs)
        self.own = plan_own(self.host)
        self.wanted: dict[Key, AnyObject] = {obj.key: obj for obj in self.own.objects}
        self.leases: dict[str, Lease] = {}
        """Those planned for, by name."""
        self._own_keys = frozenset(self.wanted)
        self._claims = _Claims()
        self._plans: dict[str, NodePlan] = {}
        """By lease; of leases that are planned together, the first has the plan of all."""
        self._groups: dict[str, tuple[str, ...]] = {}
        """Those planned together, for each of them."""

    @property
    def state(self) -> DesiredState:
        """All objects, the host's own first."""
        return DesiredState(tuple(self.wanted.values()))

    @property
    def devices(self) -> tuple[str, ...]:
        """The links whose traffic is the network's: the host's own, and the one to other nodes."""
        own = (obj.name for obj in self.own.objects if isinstance(obj, Link))
        return (*own, self.inputs.underlay.link)

    @property
    def refusals(self) -> Iterator[Refusal]:
        """Why which peer cannot be served."""
        return (refusal for plan in self._plans.values() for refusal in plan.refusals)

    @property
    def tunnel(self) -> Tunnel | None:
        """The user-space tunnel that has to run, with its peers; None where there is none."""
        if self.own.tunnel is None:
            return None
        peers = (entry for name in sorted(self._plans) for entry in self._plans[name].tunnel_peers)
        return msgspec.structs.replace(self.own.tunnel, peers=tuple(peers))

    def leases_wanting(self, key: Key) -> set[str]:
        """The names of the leases for which an object is wanted."""
        return self._claims.names(key)

    def update(self, leases: Iterable[Lease]) -> Change:
        """Plan for exactly these leases of other nodes."""
        present = {lease.name: lease for lease in leases}
        changed = {name for name, lease in present.items() if not _alike(self.leases.get(name), lease)}
        changed |= self.leases.keys() - present.keys()
        self.leases = present
        was: dict[Key, AnyObject | None] = {}
        affected, bonds = set(changed), list[set[str]]()
        while affected:
            affected |= {name for one in affected for name in self._groups.get(one, ())}
            self._withdraw(affected, was)
            alone = self._plan_alone(affected & present.keys())
            groups = self._components(alone.keys(), bonds)
            if outsiders := set[str]().union(*groups) - affected:
                affected |= outsiders
            elif clash := self._put_all(groups, alone, was):
                bonds.append(clash)
            else:
                break
        return Change(
            tuple(obj for key, obj in was.items() if obj is not None and self.wanted.get(key) != obj),
            tuple(self.wanted[key] for key, obj in was.items() if key in self.wanted and self.wanted[key] != obj),
            tuple(sorted(changed)),
        )

    def _withdraw(self, names: Iterable[str], was: dict[Key, AnyObject | None]) -> None:
        """Forget what is planned for these leases, whole groups of them; ``was`` learns what was wanted before."""
        for name in names:
            for obj in self._plans.pop(name, NodePlan(objects=())).objects:
                if obj.key not in self._own_keys:
                    was.setdefault(obj.key, self.wanted.pop(obj.key, None))
            self._claims.remove(name)
            self._groups.pop(name, None)

    def _plan_alone(self, names: Iterable[str]) -> dict[str, NodePlan]:
        """The plan of each lease as if it were the only one, which is to say the keys that it wants."""
        plans = {name: plan_peers(self.host, [self.leases[name]]) for name in sorted(names)}
        for name, plan in plans.items():
            self._claims.add(name, (obj.key for obj in plan.objects))
        return plans

    def _components(self, names: Iterable[str], bonds: Sequence[set[str]]) -> list[list[str]]:
        """The groups that share keys or are bound together otherwise, each in the order of names."""
        left, groups = set(names), []
        while left:
            group = {min(left)} if bonds else {left.pop()}
            frontier = set(group)
            while frontier:
                near = set[str]().union(*(self._claims.rivals(name) for name in frontier))
                near = near.union(*(bond for bond in bonds if bond & frontier))
                frontier = near - group
                group |= frontier
            left -= group
            groups.append(sorted(group))
        return sorted(groups)

    def _put_all(
        self, groups: Iterable[list[str]], alone: dict[str, NodePlan], was: dict[Key, AnyObject | None]
    ) -> set[str]:
        """Plan the groups; a set of leases when it turns out that they have to be planned together, else empty."""
        for group in groups:
            first, plan = group[0], alone[group[0]]
            if len(group) > 1:
                plan = plan_peers(self.host, [self.leases[name] for name in group])
                self._groups |= dict.fromkeys(group, tuple(group))
                # Together they may want keys that none of them wants alone: numbers that are hashed again.
                self._claims.add(first, (obj.key for obj in plan.objects))
            self._plans[first] = plan
            for obj in plan.objects:
                if len(group) > 1 and (clash := self._claims.names(obj.key) - set(group)):
                    return clash | set(group)
                if obj.key not in self._own_keys:
                    was.setdefault(obj.key, self.wanted.get(obj.key))
                    self.wanted[obj.key] = obj
        return set()


def _alike(one: Lease | None, other: Lease) -> bool:
    """Whether two leases of one name ask for the same; revision and end count for nothing here."""
    return one is other or (one is not None and one.advertisement == other.advertisement)
