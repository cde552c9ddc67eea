"""A lab's namespaces as a network to follow packets through, by the names that people give its places.

Theory of operation: what was seen of ``muslin-lab-node1`` is shown as ``node1``, and what lies outside of the lab is
not in it. A place is looked at when a packet first comes there (``kernel.sight``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from muslin.errors import UsageError
from muslin.explain.both import Question, with_packet
from muslin.explain.named import NamedSights
from muslin.kernel.sight import Sights
from muslin.lab.enter import place_names, resolve_place
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.lab.topology import full_name_of
from muslin.model.address import FAMILIES, Family, family_of, parse_address


@contextlib.contextmanager
def lab_network(state: LabState) -> Iterator[NamedSights]:
    """The network of a lab that this process has entered, as it is at this moment."""
    names = {place: netns_of(state.name, place) for place in place_names(state)}
    with Sights(tuple(names.values())) as sights:
        yield NamedSights(sights, names)


def addresses_of(state: LabState) -> dict[str, tuple[str, ...]]:
    """The addresses of each node and container by its name, as the topology has them."""
    topology = state.topology
    found: dict[str, tuple[str, ...]] = {}
    for node in topology.nodes:
        own = [topology.underlay_address_of(node, family) for family in FAMILIES]
        own += [topology.gateway_of(node, family) for family in topology.families]
        found[node.name] = tuple(address for address in own if address)
        found |= {full_name_of(node, one): one.addresses for one in node.containers}
    for router in topology.routers:
        found[router.name] = tuple(address for link in router.links for address in link.addresses)
    return found


def find_end(state: LabState, text: str, family: Family | None) -> tuple[str | None, str | None]:
    """(place, address) of what a person calls an end: a name, or an address; UsageError for neither.

    An address that nobody in the lab should have is fine as a destination: its place is None.
    """
    known = addresses_of(state)
    try:
        address = parse_address(text)
    except ValueError:
        place = resolve_place(state, text)
        own = known.get(place, ())
        fitting = [one for one in own if family in (None, family_of(one))]
        return place, fitting[0] if fitting else None
    return next((place for place, own in known.items() if address in own), None), address


def question_for(
    state: LabState, source: str, destination: str, family: Family | None = None, **more: object
) -> Question:
    """What ``explain SRC DST`` asks; UsageError where an end is unknown or has no address of the family."""
    place, own = find_end(state, source, family)
    if place is None:
        raise UsageError(f"nobody in lab {state.name!r} has the address {source}", _known_words(state))
    target, address = find_end(state, destination, family)
    if address is None:
        what = f"IPv{family} address" if family else "address"
        raise UsageError(f"{target} has no {what}", "give the address itself as destination")
    question = Question(
        netns=place, destination=address, source_address=own if source == own else None, expected=target
    )
    return with_packet(question, **more)


def _known_words(state: LabState) -> str:
    names: Sequence[str] = [f"{place} ({own[0]})" for place, own in addresses_of(state).items() if own]
    return f"it has {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
