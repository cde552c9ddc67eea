"""This machine as a network to follow packets through: the namespace that we are in, and all that have names.

Theory of operation: what ``ip netns`` lists (container runtimes put theirs there) and the own namespace, called
``host``. What lies behind a link that leads elsewhere is not known, and said so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from muslin.errors import UsageError
from muslin.explain.both import Question, with_packet
from muslin.explain.named import NamedSights
from muslin.kernel import netns as netns_door
from muslin.kernel.sight import Sights
from muslin.model.address import Family, family_of, parse_address

HOST = "host"


@contextlib.contextmanager
def host_network() -> Iterator[NamedSights]:
    """The machine's namespaces, as they are at this moment."""
    names = {HOST: "", **{name: name for name in netns_door.names() if name != HOST}}
    with Sights(tuple(names.values())) as sights:
        yield NamedSights(sights, names)


def host_question(
    network: NamedSights, source: str, destination: str, family: Family | None = None, **more: object
) -> Question:
    """What ``explain SRC DST`` asks on a machine; UsageError for an end that is unknown."""
    place, own = _find(network, source, family)
    if place is None:
        owners = _owners(network, source)
        what = f"{', '.join(owners[:4])} have" if owners else "no namespace on this machine has"
        raise UsageError(f"{what} the address {source}", "give the name of the namespace: see ip netns")
    target, address = _find(network, destination, family)
    if address is None:
        raise UsageError(f"{destination} has no address to go to", "give the address itself as destination")
    question = Question(
        netns=place, destination=address, source_address=own if source == own else None, expected=target
    )
    return with_packet(question, **more)


def _find(network: NamedSights, text: str, family: Family | None) -> tuple[str | None, str | None]:
    try:
        address = parse_address(text)
    except ValueError:
        if text not in network:
            known = ", ".join(list(network)[:8])
            raise UsageError(f"there is no network namespace {text!r}", f"there is {known}") from None
        own = [one for one in network[text].local_addresses if not one.startswith(("127.", "fe80", "::1"))]
        fitting = [one for one in own if family in (None, family_of(one))]
        return text, fitting[0] if fitting else None
    owners = _owners(network, address)
    # An address that several have (every lab has the same) names none of them.
    return owners[0] if len(owners) == 1 else None, address


def _owners(network: NamedSights, address: str) -> list[str]:
    return [name for name in network if address in network[name].local_addresses]
