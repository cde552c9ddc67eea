"""Giving back the neighbours (ARP, NDP) that a large run has taught the kernel.

Theory of operation: the kernel has one neighbour table per family for all namespaces of the machine. It takes
gc_thresh3 learned entries, 1024 by default, which only the host's own namespace can change; when it is full,
packets to further neighbours vanish, of everybody on the machine. Under pressure an entry is given up only when
nothing refers to it and it has not changed for 5 s (net/core/neighbour.c, neigh_forced_gc). A reachable entry is
referred to by its own timer and stays so for 15 to 45 s (base_reachable_time), so that in practice the table takes
about 1024 new neighbours in half a minute.

On 20 nodes of 10 containers, all pairs need about 2,820 entries by calculation (1,800 between containers of one
bridge, 400 between containers and their bridges, 380 between nodes, 240 of loopback and TUN devices). Measured there,
by the UDP tunnel: left alone, right after another check, the table reached 1,247 entries and one pair in eight failed;
given back as below it reached 486, and no pair failed.

So a large run deletes what was learned, part by part, in the namespaces that it has just asked; permanent entries
and those of a control plane stay. Neighbours are a cache: who needs one again asks for it, in microseconds.
"""

from __future__ import annotations

from muslin.kernel.netlink import NetlinkSocket
from muslin.wire.rtnetlink_neighbour import (
    NTF_EXT_LEARNED,
    NUD_DELAY,
    NUD_FAILED,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
    NeighbourRecord,
    neighbour_delete,
    neighbour_dump,
    parse_neighbour,
)

# Without NUD_INCOMPLETE: packets wait for that answer.
_LEARNED = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_FAILED


def is_learned(record: NeighbourRecord) -> bool:
    """Whether the kernel found it out by itself, and nobody waits for it."""
    return bool(record.state & _LEARNED) and not record.flags & NTF_EXT_LEARNED


def forget_neighbours(kernel: NetlinkSocket) -> None:
    """Delete the learned neighbours of a namespace."""
    records = [parse_neighbour(message.payload) for message in kernel.dump(neighbour_dump())]
    learned = [one for one in records if isinstance(one, NeighbourRecord) and is_learned(one)]
    kernel.request([neighbour_delete(one.ifindex, one.address) for one in learned])
