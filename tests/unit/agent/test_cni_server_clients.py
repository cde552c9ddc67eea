"""Plugins that are killed, hang or talk nonsense; many at once; DELs that were kept; looks in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import cast

import pytest

from muslin.agent import cni_server
from muslin.agent.attachment_plan import NodeFacts
from muslin.agent.attachments import Attachments
from muslin.agent.cni_server import CniServer
from muslin.errors import MuslinError
from muslin.wire.cni_error import CniError
from muslin.wire.cni_socket import HEADER_BYTES, OWN_NETNS
from tests.contract.asynchronous import asynchronous, until_true
from tests.unit.agent.cni_bench import Bench, Key, open_fds, receive, receive_and_close, request_bytes
from tests.unit.agent.containers import conf_bytes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks and patience in hundredths of a second."""
    for name in ("TICK_S", "IDLE_TICK_S", "REQUEST_S", "TAKEN_S"):
        monkeypatch.setattr(cni_server, name, getattr(cni_server, name) / 100)
    monkeypatch.setattr(cni_server, "LOOK_COST_FACTOR", 0)
    monkeypatch.setattr(cni_server, "ASKED_COST_FACTOR", 0)


# ---- clients that go away --------------------------------------------------------------------------------


@asynchronous
async def test_an_add_whose_plugin_was_killed_before_the_answer_is_taken_back(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        bench.toy.gate.clear()
        with bench.connect() as connection:
            bench.send(connection, request_bytes("ADD", "gone"))
            await until_true(lambda: ("ADD", "gone") in bench.toy.heard)
        bench.toy.gate.set()
        await until_true(lambda: ("DEL", [("gone", "eth0")]) in bench.toy.heard)
        assert bench.toy.known == {}


@asynchronous
async def test_an_add_whose_answer_was_not_read_is_taken_back(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        with bench.connect() as connection:
            bench.send(connection, request_bytes("ADD", "gone"))
            assert await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
        await until_true(lambda: ("DEL", [("gone", "eth0")]) in bench.toy.heard)
        assert bench.toy.known == {}


@pytest.mark.usefixtures("quickly")
def test_an_add_whose_plugin_hangs_is_taken_back(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            with bench.connect() as connection:
                bench.send(connection, request_bytes("ADD", "hangs"))
                await until_true(lambda: ("DEL", [("hangs", "eth0")]) in bench.toy.heard)
            assert bench.toy.known == {}

    body()


@asynchronous
async def test_a_failed_add_and_other_calls_are_not_taken_back(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        bench.toy.refuse["ADD"] = CniError(101, "eth0 is there already", "use another name")
        for command in ("ADD", "STATUS"):
            with bench.connect() as connection:
                bench.send(connection, request_bytes(command, "one"))
                assert await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
        assert (await bench.call("STATUS", flags=0)).exit_status == 0
    assert not [entry for entry in bench.toy.heard if entry[0] == "DEL"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"M",
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 40,
        request_bytes("ADD")[: HEADER_BYTES - 1],
        request_bytes("ADD")[:-1],
        request_bytes("ADD") + b"more",
        request_bytes("ADD")[:12] + b"\xff\xff\xff\xff" + request_bytes("ADD")[16:],
    ],
)
def test_garbage_is_said_and_costs_nobody_anything(bench: Bench, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            before = open_fds()
            for _ in range(5):
                connection = bench.connect()
                with contextlib.suppress(BrokenPipeError):  # it has seen enough before all is sent
                    if data:
                        bench.send(connection, data)
                    connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.to_thread(connection.recv, 1) == b""
                connection.close()
            await until_true(lambda: open_fds() <= before)
            assert (await bench.call("ADD")).exit_status == 0

    with caplog.at_level(logging.WARNING, "muslin.agent"):
        body()
    assert len([one for one in caplog.messages if "came to nothing" in one]) == 5
    assert list(bench.toy.known) == [("one", "eth0")]


@pytest.mark.usefixtures("quickly")
def test_an_answer_that_was_taken_while_others_were_served_counts_however_late_it_is_seen(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            connection = bench.connect()
            bench.send(connection, request_bytes("ADD", "first"))
            assert (await asyncio.to_thread(receive, connection)).exit_status == 0
            bench.toy.gate.clear()
            slow = asyncio.create_task(bench.call("ADD", "slow"))
            await until_true(lambda: ("ADD", "slow") in bench.toy.heard)
            connection.close()
            late = time.monotonic() + 3 * cni_server.TAKEN_S
            await until_true(lambda: time.monotonic() > late)
            bench.toy.gate.set()
            await slow
            await bench.call("STATUS", flags=0)
            assert set(bench.toy.known) == {("first", "eth0"), ("slow", "eth0")}

    body()


@pytest.mark.usefixtures("quickly")
def test_one_that_says_nothing_is_let_go(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            with bench.connect() as connection:
                bench.send(connection, request_bytes("ADD")[:-1])
                assert await asyncio.to_thread(connection.recv, 1) == b""

    body()


@asynchronous
async def test_no_descriptor_is_kept_and_none_beyond_the_first_is_taken(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        await bench.call("ADD")
        before = open_fds()
        data = request_bytes("ADD", "many", stdin=b" " * 500 + conf_bytes())
        for _ in range(20):
            await asyncio.to_thread(bench.exchange, data, 30)
        bench.toy.gate.clear()
        connection = bench.connect()
        heard = len(bench.toy.inodes)
        for start in range(0, len(data), 50):
            bench.send(connection, data[start : start + 50])
        await until_true(lambda: len(bench.toy.inodes) > heard)
        assert open_fds() <= before + 3, "this connection, its other end, and one namespace"
        bench.toy.gate.set()
        await asyncio.to_thread(receive, connection)
        connection.close()
        await until_true(lambda: open_fds() <= before)


# ---- many at once ----------------------------------------------------------------------------------------


@asynchronous
async def test_hundreds_at_once_are_all_served_with_few_descriptors(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        before = open_fds()
        bench.toy.gate.clear()
        connections = [bench.connect() for _ in range(300)]
        for number, connection in enumerate(connections):
            bench.send(connection, request_bytes("ADD", f"c{number}"))
        most = 0
        bench.toy.gate.set()
        reading = asyncio.create_task(asyncio.to_thread(lambda: [receive_and_close(each) for each in connections]))
        while not reading.done():
            most = max(most, open_fds())
            await asyncio.sleep(0)
        answers = await reading
        assert most <= before + 300 + 2 * cni_server.CONNECTIONS_MAX + 1
        assert {answer.exit_status for answer in answers} == {0}
        assert len(bench.toy.known) == 300
        await until_true(lambda: open_fds() <= before)


@asynchronous
async def test_an_end_in_the_middle_lets_calls_under_way_come_to_their_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        bench.toy.gate.clear()
        adding = asyncio.create_task(bench.call("ADD"))
        await until_true(lambda: ("ADD", "one") in bench.toy.heard)
        asyncio.get_running_loop().call_soon(bench.toy.gate.set)
    assert (await adding).exit_status == 0


# ---- the spool -------------------------------------------------------------------------------------------


def dels(bench: Bench) -> list[str]:
    return [key[0] for what, of in bench.toy.heard if what == "DEL" for key in cast("list[Key]", of)]


@asynchronous
async def test_what_was_kept_is_done_in_the_order_of_time_and_then_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in (3, 1, 2):
        bench.toy.known[f"c{number}", "eth0"] = 10.0
        bench.keep(f"c{number}", 100.0 + number)
    bench.keep("unknown", 50.0)
    async with bench.running():
        await until_true(lambda: not os.listdir(bench.spool))
    assert dels(bench) == ["c1", "c2", "c3"]
    assert bench.toy.known == {}


@asynchronous
async def test_a_container_that_was_added_after_the_del_is_another_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.toy.known["again", "eth0"] = 200.0
    bench.keep("again", 100.0)
    async with bench.running():
        await until_true(lambda: not os.listdir(bench.spool))
    assert bench.toy.known == {("again", "eth0"): 200.0}


GARBAGE = {
    "empty": b"",
    "torn": request_bytes("DEL")[:-3],
    "noise": bytes(range(256)),
    "an add": request_bytes("ADD"),
    "no id": request_bytes("DEL", ""),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_in_the_spool_goes_and_stops_nobody(bench: Bench, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    @asynchronous
    async def body() -> None:
        bench.toy.known["one", "eth0"] = bench.toy.known["behind", "eth0"] = 10.0
        bench.keep("", 100.0, GARBAGE[kind])
        bench.keep("behind", 101.0)
        async with bench.running():
            await until_true(lambda: not os.listdir(bench.spool))
        assert dels(bench) == ["behind"]

    with caplog.at_level(logging.WARNING, "muslin.agent"):
        body()
    assert [one for one in caplog.messages if "holds no DEL that can be done" in one]


@asynchronous
async def test_a_del_is_done_whatever_the_configuration_has_become(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number, stdin in enumerate((b"", b"{", b'{"cniVersion": "9.9", "name": 7}')):
        bench.toy.known[f"c{number}", "eth0"] = 10.0
        bench.keep("", 100.0 + number, request_bytes("DEL", f"c{number}", stdin=stdin, flags=OWN_NETNS * number))
    async with bench.running():
        await until_true(lambda: not os.listdir(bench.spool))
    assert bench.toy.known == {}


@pytest.mark.usefixtures("quickly")
def test_other_files_stay_and_those_of_writers_that_died_go(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        bench.toy.known["one", "eth0"] = 10.0
        dead = bench.keep("", 100.0, b"half", ending="tmp")
        living = bench.keep("", time.time() + 3600, b"half", ending="tmp")
        other = bench.spool / "README"
        other.touch()
        (bench.spool / f"{10**19:020d}-7.del").mkdir()
        bench.keep("one", 200.0)
        async with bench.running():
            await until_true(lambda: ("DEL", [("one", "eth0")]) in bench.toy.heard and not dead.exists())
            assert (await bench.call("ADD", "more")).exit_status == 0
        assert living.exists()
        assert other.exists()

    body()


@pytest.mark.usefixtures("quickly")
def test_a_kept_del_that_is_refused_is_tried_again_and_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    @asynchronous
    async def body() -> None:
        for name, at in (("stuck", 100.0), ("behind", 101.0)):
            bench.toy.known[name, "eth0"] = 10.0
            bench.keep(name, at)
        bench.toy.refuse["stuck"] = CniError(102, "Device or resource busy", "wait")
        async with bench.running():
            await until_true(lambda: dels(bench).count("stuck") > 3)
            assert list(bench.toy.known) == [("stuck", "eth0")]
            del bench.toy.refuse["stuck"]
            await until_true(lambda: not os.listdir(bench.spool))
        assert bench.toy.known == {}

    with caplog.at_level(logging.ERROR, "muslin.agent"):
        body()
    assert len([one for one in caplog.messages if "cannot be done yet" in one]) == 1


# ---- looks, and what there is to see ---------------------------------------------------------------------


@asynchronous
async def test_first_what_was_cut_short_is_undone_then_calls_are_taken(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        await bench.call("STATUS", flags=0)
    assert bench.toy.heard[0] == ("recover", None)


def looks(bench: Bench) -> int:
    return bench.toy.heard.count(("look", None))


@pytest.mark.usefixtures("quickly")
def test_a_look_is_had_at_the_start_and_when_something_is_heard(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            await until_true(lambda: looks(bench) == 1)
            bench.server.look_soon()
            await until_true(lambda: looks(bench) == 2)
            bench.toy.troubles = ("a cable cannot be plugged in",)
            bench.server.look_soon()
            await until_true(lambda: looks(bench) > 4)
            assert bench.server.status().troubles == ("a cable cannot be plugged in",)
            bench.toy.troubles = ()
            await until_true(lambda: not bench.server.troubles)

    body()


@pytest.mark.usefixtures("quickly")
def test_what_is_heard_during_a_look_asks_for_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: object) -> tuple[str, ...]:
        bench.toy.heard.append(("look", None))
        if looks(bench) == 1:
            bench.server.look_soon()
        return ()

    monkeypatch.setattr(bench.toy, "look", look)

    @asynchronous
    async def body() -> None:
        async with bench.running():
            await until_true(lambda: looks(bench) == 2)

    body()


@pytest.mark.usefixtures("quickly")
def test_there_is_no_look_while_the_node_is_not_ready_and_none_that_fails_ends_it(bench: Bench) -> None:
    @asynchronous
    async def body() -> None:
        ready, bench.facts = bench.facts, NodeFacts(trouble="not ready: starting")
        bench.toy.refuse["look"] = OSError(105, "No buffer space available")
        async with bench.running():
            assert (await bench.call("STATUS", flags=0)).exit_status == 0
            assert looks(bench) == 0
            bench.facts = ready
            await until_true(lambda: looks(bench) > 0)
            assert (await bench.call("STATUS", flags=0)).exit_status == 0
            await until_true(lambda: "No buffer space available" in "".join(bench.server.status().troubles))
            del bench.toy.refuse["look"]
            await until_true(lambda: not bench.server.troubles)

    body()


@asynchronous
async def test_what_there_is_can_be_seen(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        for name in ("first", "second"):
            await bench.call("ADD", name)
        shown = bench.server.list_all()
        assert [(one.container_id, one.interface, one.network) for one in shown] == [
            ("first", "eth0", "pods"),
            ("second", "eth0", "pods"),
        ]
        status = bench.server.status()
        assert (status.socket, status.bridge, status.free) == (str(bench.path), "cni0", {"10.5.1.0/24": 253})


@asynchronous
async def test_a_second_server_at_the_same_place_is_refused_and_the_first_serves_on(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        with pytest.raises(MuslinError, match="an agent is at"):
            await CniServer(bench.path, cast("Attachments", bench.toy), lambda: bench.facts).run()
        assert (await bench.call("ADD")).exit_status == 0
