"""Errors in words."""

from __future__ import annotations

import errno

from muslin.verify.kernel_errors import icmp_error, own_error, reset_error


def test_a_full_neighbour_table_names_its_remedy() -> None:
    assert "net.ipv4.neigh.default.gc_thresh3" in own_error(errno.ENOBUFS).text
    assert own_error(errno.ENETUNREACH).text == "Network is unreachable"


def test_refusals_are_told_from_other_errors() -> None:
    assert icmp_error(4, 3, 3, "172.16.1.2").refused
    assert not icmp_error(4, 3, 1, "10.0.1.1").refused
    assert reset_error("172.16.1.2").refused
