"""Which neighbours a large run gives back."""

from __future__ import annotations

import pytest

from muslin.verify.neighbours import is_learned
from muslin.wire import rtnetlink_neighbour as wire


@pytest.mark.parametrize(
    ("state", "flags", "learned"),
    [
        (wire.NUD_REACHABLE, 0, True),
        (wire.NUD_STALE, 0, True),
        (wire.NUD_INCOMPLETE, 0, False),
        (wire.NUD_PERMANENT, 0, False),
        (wire.NUD_NOARP, 0, False),
        (wire.NUD_REACHABLE, wire.NTF_EXT_LEARNED, False),
    ],
)
def test_only_what_the_kernel_learned_by_itself(state: int, flags: int, learned: bool) -> None:
    record = wire.NeighbourRecord(
        ifindex=2, address="172.16.0.2", mac="02:00:00:00:00:01", state=state, flags=flags, family=2
    )
    assert is_learned(record) is learned
