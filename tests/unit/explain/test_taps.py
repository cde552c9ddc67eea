"""From a way to sightings, and sightings beside what was seen."""

from __future__ import annotations

import msgspec

from muslin.explain.both import Question, explain
from muslin.explain.taps import Seen, Sighting, compare, sightings
from muslin.wire.packet import Header
from tests.unit.explain.networks import Network, two_nodes
from tests.unit.explain.test_carry import udp


def way(network: Network | None = None) -> list[Sighting]:
    sights = (network or two_nodes()).sights
    return sightings(explain(sights, Question(netns="con1", destination="172.16.1.2")).request, "request")


def seen(one: Sighting, **more: object) -> Seen:
    header = Header(
        source=one.source, destination=one.destination, ttl=one.ttl, size_bytes=84, protocol="icmp",
        mac_source="02:00:00:00:00:01", mac_destination="02:00:00:00:00:02",
    )  # fmt: skip
    return Seen(sighting=one, header=msgspec.structs.replace(header, **more), at_s=0.0)


def test_each_link_is_passed_in_order() -> None:
    assert [(one.place, one.link, "out" if one.outgoing else "in", one.ttl) for one in way()] == [
        ("con1", "veth11", "out", 64),
        ("node1", "veth10", "in", 64), ("node1", "br0", "in", 64), ("node1", "eth0", "out", 63),
        ("lan", "node1", "in", 63), ("lan", "node2", "out", 63),
        ("node2", "eth0", "in", 63), ("node2", "br0", "out", 62), ("node2", "veth10", "out", 62),
        ("con2", "veth11", "in", 62),
    ]  # fmt: skip


def test_what_is_carried_is_seen_inside_of_the_outer_packet() -> None:
    marks = [(one.place, one.link, one.carried) for one in way(udp())]
    assert marks[3:9] == [
        ("node1", "tun0", False), ("node1", "eth0", True), ("lan", "node1", True), ("lan", "node2", True),
        ("node2", "eth0", True), ("node2", "tun0", False),
    ]  # fmt: skip


def test_agreement_tells_what_is_new_at_each_link() -> None:
    predicted = way()
    lines = compare(predicted, [seen(one) for one in predicted])
    assert not any(line.differs for line in lines)
    assert lines[3].changes == ("TTL 64 → 63",)


def test_differences_are_named() -> None:
    predicted = way()
    observed = [seen(one) for one in predicted[:5]]
    observed[3] = seen(predicted[3], ttl=60, source="10.0.0.10")
    stranger = seen(msgspec.structs.replace(predicted[0], place="con9"))
    lines = compare(predicted, [*observed, stranger, msgspec.structs.replace(stranger, copy=True)])
    assert lines[3].differs == (
        "TTL 63 predicted, 60 seen; 172.16.0.2 > 172.16.1.2 predicted, 10.0.0.10 > 172.16.1.2 seen"
    )
    assert [line.differs for line in lines[5:]] == ["predicted, not seen"] * 5 + ["seen, not predicted", ""]
