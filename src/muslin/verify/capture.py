"""Capture many links of many namespaces at once, into one file or as lines for people.

Theory of operation: packet sockets (``kernel.tap``) hear all links of the places asked for, from before the first
packet. A ``Wish`` says which frames are wanted: links, addresses, protocol, port, also of packets in others. What
the lab's own store says to its agents is left out unless asked for. Frames become blocks of a pcapng file with an
interface for each link (``node1/eth0``), or a line with source, destination and protocol stack, as the talk shows it
with tshark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from muslin.errors import UsageError
from muslin.kernel.tap import TapFrame
from muslin.lab.enter import resolve_place
from muslin.lab.plan import netns_of
from muslin.lab.state import LabState
from muslin.verify.listening import TUNNEL_PORTS
from muslin.wire.packet import Header, parse_frame

STORE_PORTS = (2379, 2380)  # etcd's client and peer ports, as IANA has them
ETHERTYPE_ARP = b"\x08\x06"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames are wanted; empty means any. ``links`` are (place, link), with link empty for all of a place."""

    links: tuple[tuple[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    protocol: str = ""
    port: int | None = None
    store: bool = False
    """Whether the traffic of the agents' store is wanted too."""

    @property
    def places(self) -> tuple[str, ...]:
        """The places that are listened to."""
        return tuple(dict.fromkeys(place for place, _ in self.links))


class Caught(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that is wanted: ``interface`` is ``node1/eth0``; ``header`` None for what is no IP packet."""

    interface: str
    frame: TapFrame
    header: Header | None


def parse_links(state: LabState, texts: Sequence[str], every: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(place, link) of ``node1`` and ``node1/eth0``; all of ``every`` place without any. UsageError for a stranger."""
    found = []
    for text in texts or every:
        place, _, link = text.partition("/")
        found.append((resolve_place(state, place), link))
    return tuple(found)


def check_links(wish: Wish, present: dict[str, tuple[str, ...]]) -> None:
    """UsageError where a link that is wished for is not there; ``present`` are the links of each place."""
    for place, link in wish.links:
        if link and link not in present.get(place, ()):
            raise UsageError(f"{place} has no link {link!r}", f"it has {', '.join(present.get(place, ())) or 'none'}")


def catch(state: LabState, wish: Wish, frames: Iterator[TapFrame]) -> Iterator[Caught]:
    """The wanted ones among the frames."""
    prefix = netns_of(state.name, "")
    whole = {place for place, link in wish.links if not link}
    for frame in frames:
        place = frame.netns.removeprefix(prefix)
        if place not in whole and (place, frame.link) not in wish.links:
            continue
        header = parse_frame(frame.data, frame.ethernet, TUNNEL_PORTS)
        if _is_wanted(wish, frame, header):
            yield Caught(interface=f"{place}/{frame.link}", frame=frame, header=header)


def _is_wanted(wish: Wish, frame: TapFrame, header: Header | None) -> bool:
    if header is None:
        is_arp = frame.ethernet and frame.data[12:14] == ETHERTYPE_ARP
        return not (wish.hosts or wish.port) and (wish.protocol == "" or (wish.protocol == "arp" and is_arp))
    layers = list(_layers(header))
    if not wish.store and any(port in STORE_PORTS for one in layers for port in _ports(one) if one.protocol == "tcp"):
        return False
    return any(_fits(wish, one) for one in layers)


def _layers(header: Header) -> Iterator[Header]:
    yield header
    if header.inner:
        yield from _layers(header.inner)


def _ports(header: Header) -> tuple[int | None, int | None]:
    return header.source_port, header.destination_port


def _fits(wish: Wish, header: Header) -> bool:
    host = not wish.hosts or header.source in wish.hosts or header.destination in wish.hosts
    protocol = not wish.protocol or header.protocol.removesuffix("v6") == wish.protocol
    return host and protocol and (wish.port is None or wish.port in _ports(header))


def stack_line(caught: Caught) -> tuple[str, str, str, str]:
    """(interface and direction, source, destination, protocol stack): of carried packets both, the outer first."""
    where = f"{caught.interface} {'out' if caught.frame.outgoing else 'in'}"
    if caught.header is None:
        kind = "arp" if caught.frame.data[12:14] == ETHERTYPE_ARP else caught.frame.data[12:14].hex()
        return where, caught.frame.data[6:12].hex(":"), caught.frame.data[0:6].hex(":"), f"eth:{kind}"
    layers = list(_layers(caught.header))
    sources = ",".join(one.source for one in layers)
    return where, sources, ",".join(one.destination for one in layers), caught.header.stack
