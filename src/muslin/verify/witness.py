"""The kernel as a witness of one packet: counters, nftables' trace, neighbours, before it was sent and after.

Theory of operation: a ``Witness`` is set up around the sending of a probe. It reads the counters of the places on the
way, and has nftables trace the probe where there is a packet filter at all; afterwards it says what moved, which rule
ended the packet, and which neighbours were asked for in vain (``explain.evidence``). A place that goes meanwhile says
nothing. Nothing of it stays: the tables are gone with the witness, even if we die (``kernel.nft_trace``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from muslin.explain.evidence import Evidence, Unanswered, Verdict, moved
from muslin.explain.filter import Place
from muslin.explain.frames import UNANSWERED, state_name
from muslin.explain.named import NamedSights
from muslin.explain.path import Hop
from muslin.explain.rule_text import rule_text
from muslin.kernel.counters import Counters
from muslin.kernel.nft_trace import NftTrace
from muslin.kernel.sessions import Session, Sessions
from muslin.wire import rtnetlink
from muslin.wire.nft_trace import Decision, table_text
from muslin.wire.packet import Probe
from muslin.wire.rtnetlink import NeighbourRecord
from muslin.wire.sight import Sight


class Witness:
    """What is heard of a packet with these hops from its making on; ``netns_of`` gives a place's own namespace."""

    def __init__(self, network: NamedSights, probe: Probe, hops: Sequence[Hop], netns_of: Callable[[str], str]) -> None:
        self._network = network
        # The place at fault may be one that just passes on what the packet waits for.
        blamed = [hop.drop.netns for hop in hops if hop.drop and hop.drop.netns in network]
        self._places = list(dict.fromkeys([*(hop.netns for hop in hops), *blamed]))
        self._next_hops = {(hop.netns, hop.next_hop) for hop in hops}
        self._sessions = Sessions()
        self._counters: dict[str, Counters] = {}
        self._traces: dict[str, NftTrace] = {}
        self._untraced: list[str] = []
        self._netns_of = netns_of
        try:
            self._open(probe)
        except BaseException:
            self.close()
            raise
        self._before = {place: one.read() for place, one in self._counters.items()}

    def _open(self, probe: Probe) -> None:
        name = f"muslin_trace_{probe.identity}"
        for place in self._places:
            with contextlib.suppress(FileNotFoundError):  # the namespace went
                session = self._sessions.get(self._netns_of(place))
                self._counters[place] = Counters(session)
                sight = self._network[place]
                if sight.nft:
                    self._trace(place, session, name, table_text(name, probe, _ingress_links(sight)))

    def _trace(self, place: str, session: Session, name: str, text: str) -> None:
        try:
            self._traces[place] = NftTrace(session, name, text)
        except OSError as error:  # an older kernel, or no nft: the counters still tell
            self._untraced.append(f"{place}: {error.strerror}")

    def evidence(self) -> Evidence:
        """What was said since."""
        counts = [
            count for place, one in self._counters.items() for count in moved(place, self._before[place], one.read())
        ]
        verdicts = [
            Verdict(place=place, rule=_words(self._network[place], decision))
            for place, one in self._traces.items()
            for decision in one.read()
        ]
        unanswered = [one for place in self._counters for one in self._unanswered(place)]
        return Evidence(
            counts=tuple(counts),
            verdicts=tuple(dict.fromkeys(verdicts)),
            unanswered=tuple(unanswered),
            traced=tuple(self._traces),
            untraced=tuple(self._untraced),
        )

    def _unanswered(self, place: str) -> Iterator[Unanswered]:
        session = self._sessions.get(self._netns_of(place))
        for message in session.netlink.dump(rtnetlink.neighbour_dump()):
            one = rtnetlink.parse_record(message)
            if not isinstance(one, NeighbourRecord) or (place, one.address) not in self._next_hops:
                continue
            if one.state & UNANSWERED:
                link = self._network[place].name_of(one.ifindex)
                yield Unanswered(place=place, link=link, address=one.address, state=state_name(one.state))

    def close(self) -> None:
        """Take everything away."""
        for trace in self._traces.values():
            trace.close()
        for counters in self._counters.values():
            counters.close()
        self._sessions.close()

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ingress_links(sight: Sight) -> Sequence[str]:
    """The links at whose ingress chains stand, in the order of their names; those that went are left out."""
    found: set[str] = set()
    for one in sight.nft:
        chain = one.get("chain", {})
        if chain.get("hook") == "ingress":
            devices = chain.get("dev", ())
            found |= {devices} if isinstance(devices, str) else set(devices)
    return sorted(name for name in found if sight.link(name))


def _words(sight: Sight, decision: Decision) -> str:
    """The rule as a prediction calls it."""
    text = "policy drop"
    if decision.handle is not None:
        rules = (one["rule"] for one in sight.nft if "rule" in one)
        key = (decision.family, decision.table, decision.chain, decision.handle)
        found = (rule for rule in rules if (rule["family"], rule["table"], rule["chain"], rule["handle"]) == key)
        text = next((rule_text(rule["expr"]) for rule in found), f"rule {decision.handle}")
    return Place(family=decision.family, table=decision.table, chain=decision.chain, text=text).words
