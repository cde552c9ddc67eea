"""What net.ipv4.conf.*.forwarding and the like are in a fresh namespace is for the machine's administrator to say.

net.core.devconf_inherit_init_net (Documentation/admin-guide/sysctl/net.rst): 0, the default: IPv4 from the initial
namespace, IPv6 the kernel's defaults; 1: both from the initial one; 2: both the kernel's; 3: both from the creator's.
So a fresh namespace may or may not forward, and ``muslin.plan.node.forwarding`` states it either way. The machine's
own setting is not touched: the probe looks at whatever it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel.syscalls import CLONE_NEWNET, unshare
from tests.assumptions.room import NEEDS_ROOT, Room, inside, room

__all__ = ["room"]
pytestmark = [pytest.mark.kernel, NEEDS_ROOT]

IPV4, IPV6 = "net/ipv4/conf/default/rp_filter", "net/ipv6/conf/default/accept_ra"
KERNEL_DEFAULT = {IPV4: "0", IPV6: "1"}


def read_in_a_fresh_namespace() -> dict[str, str]:
    """In a thread that ends afterwards, and the namespace with it."""
    unshare(CLONE_NEWNET)
    return read_here()


def read_here() -> dict[str, str]:
    return {name: Path(f"/proc/sys/{name}").read_text().strip() for name in (IPV4, IPV6)}


def we_live_in_the_initial_namespace() -> bool:
    """Kernel threads do; where none is seen (a container), we cannot know what the initial one says."""
    try:
        is_kernel_thread = Path("/proc/2/comm").read_text() == "kthreadd\n"
        return is_kernel_thread and Path("/proc/2/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False


def test_the_settings_come_from_where_the_machine_says(room: Room) -> None:
    setting = Path("/proc/sys/net/core/devconf_inherit_init_net")
    if not setting.exists():
        pytest.skip("kernel lacks net.core.devconf_inherit_init_net here: only the initial namespace shows it")
    mode = int(setting.read_text())
    creator = room.netns("creator")
    for name in (IPV4, IPV6):
        inside(creator, "sysctl", "-q", "-w", f"{name}=2")
    found = netns_door.call_in(creator, read_in_a_fresh_namespace)
    if mode in (0, 1) and not we_live_in_the_initial_namespace():
        pytest.skip("kernel lacks a view of the initial network namespace here: a container")
    initial = read_here()
    assert (
        found
        == {
            0: {IPV4: initial[IPV4], IPV6: KERNEL_DEFAULT[IPV6]},
            1: initial,
            2: KERNEL_DEFAULT,
            3: dict.fromkeys((IPV4, IPV6), "2"),
        }[mode]
    )


def test_a_namespace_that_was_told_not_to_forward_does_not(room: Room) -> None:
    netns = room.netns("n")
    for value in ("1", "0"):
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            inside(netns, "sysctl", "-q", "-w", f"{name}={value}")
            assert inside(netns, "sysctl", "-n", name).strip() == value
