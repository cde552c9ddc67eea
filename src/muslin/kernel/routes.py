"""Which destinations this host has routes to."""

from __future__ import annotations

from muslin.kernel.sessions import Session
from muslin.model.kernel import TABLE_LOCAL
from muslin.wire import rtnetlink
from muslin.wire.rtnetlink import RouteRecord


def routed_prefixes() -> tuple[str, ...]:
    """The destinations of all unicast routes of the own namespace; needs no privilege."""
    session = Session("", 0)
    try:
        records = [rtnetlink.parse_record(message) for message in session.netlink.dump(rtnetlink.route_dump(0))]
    finally:
        session.close()
    return tuple(
        record.destination
        for record in records
        if isinstance(record, RouteRecord) and record.table != TABLE_LOCAL and record.kind == "unicast"
    )
