"""This machine as a network to follow packets through: the namespace that we are in, and all that have names.

Theory of operation: what ``ip netns`` lists (container runtimes put theirs there) and the own namespace, called
``host``. What lies behind a link that leads elsewhere is not known, and said so. An ordinary user may read links,
addresses, routes and neighbours of his own namespace, and neither its packet filter nor other namespaces.
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
    names = {HOST: "", **{name: name for name in netns_door.names() if name != HOST and may_enter(name)}}
    with Sights(tuple(names.values())) as sights:
        yield NamedSights(sights, names)


def may_enter(name: str) -> bool:
    """Whether this process can look into a namespace: that takes root's rights over it, and one that is there."""
    try:
        netns_door.call_in(name, lambda: None)
    except OSError:
        return False
    return True


def closed_namespaces() -> list[str]:
    """The named namespaces that this process may not look into; a name without one behind it is none."""
    return [name for name in netns_door.names() if netns_door.inode_of(name) is not None and not may_enter(name)]


def no_namespace(name: str, hint: str) -> UsageError:
    """The error for a namespace that is not there, or not for this user to look into."""
    if name in closed_namespaces():
        return UsageError(f"looking into the network namespace {name!r} needs root", "run the same as root")
    return UsageError(f"there is no network namespace {name!r}", hint)


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
            raise no_namespace(text, f"there is {known}") from None
        own = [one for one in network[text].local_addresses if not one.startswith(("127.", "fe80", "::1"))]
        fitting = [one for one in own if family in (None, family_of(one))]
        return text, fitting[0] if fitting else None
    owners = _owners(network, address)
    # An address that several have (every lab has the same) names none of them.
    return owners[0] if len(owners) == 1 else None, address


def _owners(network: NamedSights, address: str) -> list[str]:
    sights = ((name, network.get(name)) for name in network)  # one that goes meanwhile has none
    return [name for name, sight in sights if sight is not None and address in sight.local_addresses]
