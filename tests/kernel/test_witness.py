"""What the kernel says of packets: counters and nftables' trace, and that nothing of ours stays.

one (v0 10.1.0.1, v1 of two in it) --- two (v1 10.1.0.2, a rule that drops echo requests)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from muslin.kernel.counters import Counters
from muslin.kernel.nft_sets import has_table
from muslin.kernel.nft_trace import NftTrace
from muslin.kernel.sessions import Sessions
from muslin.kernel.tap import send_body, send_packet
from muslin.wire.nft_trace import Decision, table_text
from muslin.wire.packet import Probe, body_of, encode_probe
from tests.assumptions.room import NEEDS_ROOT, Room, inside, ip, open_room
from tests.lab.support import wait_until

pytestmark = NEEDS_ROOT

PROBE = Probe(source="10.1.0.1", destination="10.1.0.2", identity=4242)
TABLE = "muslin_trace_4242"


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    with open_room() as room:
        yield _cabled(room)


def _cabled(room: Room) -> tuple[str, str]:
    one, two = room.netns("one"), room.netns("two")
    ip(one, f"link add v0 type veth peer name v1 netns {two}")
    for netns, link, address in ((one, "v0", "10.1.0.1/24"), (two, "v1", "10.1.0.2/24")):
        ip(netns, f"addr add {address} dev {link}")
        ip(netns, f"link set {link} up")
        ip(netns, "link set lo up")
    return one, two


def send(netns: str, **more: object) -> None:
    probe = Probe(**{**{name: getattr(PROBE, name) for name in PROBE.__struct_fields__}, **more})
    send_packet(netns, encode_probe(probe), probe.destination)


def test_the_trace_names_what_ends_a_marked_packet_and_its_table_goes(ends: tuple[str, str]) -> None:
    one, two = ends
    rules = "add table ip t; add chain ip t i { type filter hook input priority 0; }; "
    inside(two, "nft", rules + "add rule ip t i icmp type echo-request drop")
    sessions = Sessions()
    trace = NftTrace(sessions.get(two), TABLE, table_text(TABLE, PROBE))
    try:
        assert has_table(sessions.get(two), "inet", TABLE)
        send(one, identity=4243)
        send(one)
        told: list[Decision] = []

        def heard() -> bool:
            told.extend(trace.read())
            return bool(told)

        wait_until(heard, "the kernel tells of the drop")
        assert told == [Decision("ip", "t", "i", 2)], "once, of the probe alone"
    finally:
        trace.close()
    assert not has_table(sessions.get(two), "inet", TABLE)
    sessions.close()


def test_a_table_that_nft_refuses_is_an_error_in_its_words(ends: tuple[str, str]) -> None:
    sessions = Sessions()
    with pytest.raises(OSError, match="nft made no table to trace with: Error: syntax error"):
        NftTrace(sessions.get(ends[0]), TABLE, "add nonsense")
    sessions.close()


def test_the_table_goes_even_when_who_traces_is_killed(ends: tuple[str, str]) -> None:
    program = f"""if True:
        import sys, time
        from muslin.kernel.nft_trace import NftTrace
        from muslin.kernel.sessions import Sessions
        from muslin.wire.nft_trace import table_text
        from muslin.wire.packet import Probe
        probe = Probe(source="10.1.0.1", destination="10.1.0.2", identity=4242)
        trace = NftTrace(Sessions().get({ends[1]!r}), {TABLE!r}, table_text({TABLE!r}, probe))
        print("ready", flush=True)
        sys.stdin.read()
    """
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        sessions = Sessions()
        assert has_table(sessions.get(ends[1]), "inet", TABLE)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not has_table(sessions.get(ends[1]), "inet", TABLE), "the kernel removes the table")
        sessions.close()


def test_counters_are_those_of_their_namespace_at_the_moment(ends: tuple[str, str]) -> None:
    one, two = ends
    sessions = Sessions()
    here, there = (Counters(sessions.get(netns)) for netns in ends)
    before = there.read()
    begun = here.read()["IpInHdrErrors"]
    assert before["v1/rx_dropped"] == 0
    inside(two, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    send(one, source="10.9.0.9")
    name = "TcpExtIPReversePathFilter"
    wait_until(lambda: there.read()[name] == before[name] + 1, "the drop is counted")
    assert here.read()["IpInHdrErrors"] == begun
    for counters in (here, there):
        counters.close()
    sessions.close()


def test_what_may_be_cut_is_cut_by_the_kernel(ends: tuple[str, str]) -> None:
    one, _ = ends
    sessions = Sessions()
    counters = Counters(sessions.get(one))
    before = counters.read()["IpFragCreates"]
    big = Probe(source="10.1.0.1", destination="10.1.0.2", identity=4242, size_bytes=4000, fixed_size=False)
    with pytest.raises(OSError, match="Message too long"):
        send_packet(one, encode_probe(big), big.destination)
    protocol, body = body_of(encode_probe(big))
    send_body(one, big.source, big.destination, protocol, 9, body)
    wait_until(lambda: counters.read()["IpFragCreates"] == before + 3, "three fragments are counted")
    counters.close()
    sessions.close()
