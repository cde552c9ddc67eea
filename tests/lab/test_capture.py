"""``lab capture``: what crosses links, as a file and as lines."""

from __future__ import annotations

import signal
import struct
import subprocess
from pathlib import Path

from tests.lab.support import Muslin, finish, read_until
from tests.unit.wire.test_pcapng import blocks, options


def start(muslin: Muslin, *arguments: str) -> subprocess.Popen[str]:
    """A capture that hears already."""
    process = muslin.start("capture", *arguments)
    assert process.stderr is not None
    read_until(process.stderr.fileno(), lambda text: "ends it" in text, "the capture listens")
    return process


def test_all_links_of_a_node_into_one_file(muslin: Muslin, tmp_path: Path) -> None:
    name, file = muslin.up("--step", "4"), tmp_path / "lab.pcapng"
    process = start(muslin, "node1", "--protocol", "icmp", "--count", "8", "--name", name, "-w", str(file),
                    "--host", "172.16.1.2")  # fmt: skip
    muslin.inside(name, "con1.node1", "ping", "-c", "1", "172.16.1.2")
    finish(process)
    found = list(blocks(file.read_bytes()))
    names = [options(body[8:])[2].decode() for kind, body in found if kind == 1]
    assert names == ["node1/veth10", "node1/br0", "node1/tun0", "node1/eth0"]
    packets = [body for kind, body in found if kind == 6]
    assert len(packets) == 8
    lengths = [struct.unpack_from("<I", body, 12)[0] for body in packets]
    carrying = [options(body[20 + length + -length % 4 :]) for body, length in zip(packets, lengths, strict=True)]
    assert b"carries 172.16.0.2 > 172.16.1.2" in [one.get(1) for one in carrying]


def test_the_talks_columns_and_a_pipe(muslin: Muslin) -> None:
    name = muslin.up("--step", "4")
    view = start(muslin, "node1/eth0", "--view", "encap", "--port", "9000", "--name", name)
    pipe = start(muslin, "lan0", "-w", "-", "--count", "2", "--protocol", "udp", "--name", name)
    muslin.inside(name, "con1.node1", "ping", "-c", "1", "172.16.1.2")
    assert view.stdout is not None
    shown = read_until(view.stdout.fileno(), lambda text: text.count("eth:ip:udp:ip:icmp") == 2, "both ways are shown")
    assert "10.0.0.10,172.16.0.2" in shown
    view.send_signal(signal.SIGINT)
    assert "captured 2 packets" in view.communicate(timeout=20)[1]
    assert view.returncode == 0
    assert pipe.stdout is not None
    data = pipe.stdout.buffer.read()  # type: ignore[attr-defined]
    assert [kind for kind, _ in blocks(data)].count(6) == 2
    finish(pipe)


def test_wrong_wishes_are_answered_with_what_there_is(muslin: Muslin) -> None:
    name = muslin.up("--step", "2")
    assert "where should the packets go?" in muslin.lab("capture", "--name", name, code=2).stderr
    told = muslin.lab("capture", "node1/eth9", "--view", "encap", "--name", name, code=2).stderr
    assert "node1 has no link 'eth9'" in told
    told = muslin.lab("capture", "--view", "encap", "--host", "x", "--name", name, code=2).stderr
    assert "--host takes addresses" in told
    told = muslin.lab("capture", "-w", "/nowhere/x", "--name", name, code=2).stderr
    assert "/nowhere/x cannot be written" in told
    done = muslin.lab("capture", "--view", "encap", "--duration", "0.1", "--name", name)
    assert "captured" in done.stderr
