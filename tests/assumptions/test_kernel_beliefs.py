"""What we believe of the kernel, as programs: each probe names the code that relies on it.

Everything happens in namespaces of the probe's own, which go with the thread or the name that holds them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from muslin.kernel import netns as netns_door
from muslin.kernel import tun
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.netlink import NetlinkSocket
from muslin.model.kernel import Address, Bridge, Link, Loopback, Route, Veth
from muslin.model.ops import Create, Op, SetLink
from muslin.wire import rtnetlink

pytestmark = pytest.mark.kernel


@pytest.fixture
def names() -> Iterator[list[str]]:
    """Two namespaces, empty but for lo."""
    made = [f"muslin-belief-{os.getpid()}-{end}" for end in "ab"]
    for name in made:
        netns_door.create(name)
    yield made
    for name in made:
        netns_door.delete(name)


def do(*ops: Op) -> list[int]:
    with LinuxKernel() as kernel:
        return [result.errno for result in kernel.apply(ops)]


def cable(one: str, other: str) -> tuple[Link, Link]:
    """Two ends, v0 in ``one`` and v1 in ``other``."""
    return (
        Link(netns=one, name="v0", options=Veth(peer_netns=other, peer="v1"), up=True),
        Link(netns=other, name="v1", options=Veth(peer_netns=one, peer="v0"), up=True),
    )


def test_a_directory_of_proc_sys_net_stays_in_the_namespace_it_was_opened_in(names: list[str]) -> None:
    """kernel.sysctl opens its directories once and uses them from outside."""
    fd = netns_door.call_in(names[0], lambda: os.open("/proc/sys/net/ipv4", os.O_RDONLY | os.O_DIRECTORY))
    with open("/proc/sys/net/ipv4/conf/lo/tag") as file:
        before = file.read()
    try:
        written = os.open("conf/lo/tag", os.O_WRONLY, dir_fd=fd)
        os.write(written, b"4711")
        os.close(written)
        read = os.open("conf/lo/tag", os.O_RDONLY, dir_fd=fd)
        assert os.read(read, 16).strip() == b"4711"
        os.close(read)
    finally:
        os.close(fd)
    with open("/proc/sys/net/ipv4/conf/lo/tag") as file:
        assert file.read() == before


def test_asking_for_one_link_makes_the_kernel_act_on_its_carrier(names: list[str]) -> None:
    """kernel.apply.settle: a bridge works as soon as it was asked for, however busy the link watch was before.

    br0 -- v0 in a, v1 in b
    """
    near, far = cable(*names)
    bridge = Link(netns=names[0], name="br0", options=Bridge(), up=True)
    port = Link(netns=names[0], name="v0", options=near.options, master="br0")
    operations: list[Op] = [Create(bridge), Create(near), SetLink(port, "master")]
    assert do(*operations, SetLink(bridge, "up"), SetLink(near, "up"), SetLink(far, "up")) == [0] * 6
    here, there = NetlinkSocket(names[0]), NetlinkSocket(names[1])
    try:
        end = _link(names[1], "v1").ifindex
        for up in (False, True) * 3:
            assert there.request([rtnetlink.link_set(end, up=up)])[0].errno == 0
            # A list shows what the worker has done so far. It runs once a second, so after the first change: nothing.
            assert _link(names[0], "br0").running == up
            listed = [rtnetlink.parse_record(message) for message in here.dump(rtnetlink.link_dump())]
            (shown,) = (one for one in listed if isinstance(one, rtnetlink.LinkRecord) and one.name == "br0")
            assert shown.running == up
    finally:
        here.close()
        there.close()


def test_both_ends_of_a_veth_come_to_be_in_place_by_one_message(names: list[str]) -> None:
    """kernel.apply creates a cable between two namespaces without moving anything."""
    near, far = cable(*names)
    assert do(Create(near)) == [0]
    links = {name: {link for _, link in netns_door.call_in(name, socket.if_nameindex)} for name in names}
    assert links == {names[0]: {"lo", near.name}, names[1]: {"lo", far.name}}


def _link(netns: str, name: str) -> rtnetlink.LinkRecord:
    conversation = NetlinkSocket(netns)
    try:
        record = rtnetlink.parse_record(conversation.ask(rtnetlink.link_get(name))[0])
    finally:
        conversation.close()
    assert isinstance(record, rtnetlink.LinkRecord)
    return record


def test_a_persistent_tun_device_keeps_its_address_without_a_program(names: list[str]) -> None:
    """backends.udp: killing the tunnel loses packets and no configuration."""
    tun.create(names[0], "tun0")
    device = Link(netns=names[0], name="tun0", options=Loopback(), up=True)
    address = Address(netns=names[0], link="tun0", address="172.16.0.100/16")
    assert do(Create(address), SetLink(device, "up")) == [0, 0]
    shown = subprocess.run(["ip", "-n", names[0], "route"], capture_output=True, text=True, check=True)
    assert "172.16.0.0/16 dev tun0" in shown.stdout


def test_a_file_without_a_mount_is_no_namespace() -> None:
    """kernel.netns: a crash between creating the file and mounting on it leaves just the file, which can go."""
    name = f"muslin-belief-{os.getpid()}-file"
    netns_door.prepare_directory()
    os.close(os.open(netns_door.path_of(name), os.O_CREAT | os.O_EXCL))
    try:
        assert netns_door.inode_of(name) is None
    finally:
        netns_door.delete(name)
    assert name not in netns_door.names()


@pytest.mark.parametrize(
    ("address", "everything", "code"), [("172.16.0.1", "0.0.0.0/0", 0), ("fd16::1", "::/0", errno.EINVAL)]
)
def test_an_own_address_is_a_gateway_for_ipv4_alone(names: list[str], address: str, everything: str, code: int) -> None:
    """plan.attach: the talk's default route via the container itself."""
    near, far = cable(*names)
    bits = 128 if ":" in address else 32
    own = Address(netns=names[1], link="v1", address=f"{address}/{bits}")
    assert do(Create(near), Create(own), SetLink(near, "up"), SetLink(far, "up")) == [0] * 4
    assert do(Create(Route(netns=names[1], destination=everything, via=address, link="v1"))) == [code]


def test_a_pidfd_is_readable_once_its_process_has_ended() -> None:
    """lab.processes waits for processes that are nobody's children here."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    fd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        assert process.stdin is not None
        process.stdin.close()
        deadline = time.monotonic() + 10
        assert poll.poll(1000 * (deadline - time.monotonic()))
    finally:
        process.wait()
        os.close(fd)


def test_a_tun_device_has_a_carrier_only_while_a_program_holds_it(names: list[str]) -> None:
    """Why the exported script waits for LOWER_UP, and why up settles tun0 once its tunnel is ready."""
    tun.create(names[0], "tun0")
    device = Link(netns=names[0], name="tun0", options=Loopback(), up=True)
    assert do(SetLink(device, "up")) == [0]
    assert not _link(names[0], "tun0").lower_up

    def attach() -> int:
        fd = os.open(tun.TUN_PATH, os.O_RDWR)
        fcntl.ioctl(fd, tun.TUNSETIFF, struct.pack("16sH22x", b"tun0", tun.IFF_TUN | tun.IFF_NO_PI))
        return fd

    fd = netns_door.call_in(names[0], attach)
    try:
        assert _link(names[0], "tun0").lower_up
    finally:
        os.close(fd)
