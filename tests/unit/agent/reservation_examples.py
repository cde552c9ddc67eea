"""Reservations, and a way to compare all that two journals know."""

from __future__ import annotations

from typing import Any

from muslin.agent.reservations import Reservation, Reservations

SUBNETS = ("10.5.3.0/29", "fd00:5:0:3::/64")


def reservation(name: str = "web1", ifname: str = "eth0", **values: Any) -> Reservation:
    return Reservation(container_id=name, ifname=ifname, network="podnet", **values)


def known(journal: Reservations) -> tuple[object, ...]:
    """All of it, as far as it decides what comes next."""
    return (
        sorted(journal.all(), key=str),
        [(pool.subnet, pool.taken, pool.freed()) for pool in journal.pools],
        [pool.choose() if pool.taken < pool.total else None for pool in journal.pools],
    )
