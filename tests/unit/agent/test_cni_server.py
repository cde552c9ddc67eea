"""The socket that the CNI plugin speaks to: each command, what cannot be, DELs together."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from muslin.errors import MuslinError
from muslin.wire.cni_error import CniError
from muslin.wire.cni_socket import NETNS, OWN_NETNS, Answer
from tests.contract.asynchronous import asynchronous, until_true
from tests.unit.agent.cni_bench import Bench, Key, error_of, receive, request_bytes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---- calls -----------------------------------------------------------------------------------------------


@asynchronous
async def test_each_command_reaches_the_containers_and_is_answered(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        added = await bench.call("ADD")
        assert added.exit_status == 0
        assert json.loads(added.document)["interfaces"] == [{"name": "eth0", "sandbox": "/run/netns/x"}]
        assert bench.toy.inodes == [bench.netns.stat().st_ino]
        prev = json.loads(added.document)
        assert await bench.call("CHECK", prevResult=prev) == Answer(exit_status=0)
        assert await bench.call("STATUS", flags=0) == Answer(exit_status=0)
        valid: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "one", "ifname": "eth0"}]}
        assert await bench.call("GC", flags=0, **valid) == Answer(exit_status=0)
        assert await bench.call("DEL", flags=0) == Answer(exit_status=0)
    heard = [entry for entry in bench.toy.heard if entry[0] not in ("recover", "look")]
    assert heard == [
        ("ADD", "one"),
        ("CHECK", "one"),
        ("STATUS", None),
        ("GC", (("one", "eth0"),)),
        ("DEL", [("one", "eth0")]),
    ]


@asynchronous
async def test_the_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (CniError(100, "10.5.1.2 is taken", "ask for another"), 100, "10.5.1.2 is taken"),
        (MuslinError("the disk is full", "free some space"), 5, "the disk is full"),
        (OSError(28, "No space left on device"), 5, "No space left on device"),
        (RuntimeError("what nobody thought of"), 102, "what nobody thought of"),
    ],
)
def test_what_fails_is_answered_in_the_words_of_the_specification(
    bench: Bench, failure: Exception, code: int, words: str
) -> None:
    @asynchronous
    async def body() -> None:
        bench.toy.refuse["ADD"] = failure
        async with bench.running():
            found = error_of(await bench.call("ADD"))
            assert found[0] == code
            assert words in found[1]
            assert json.loads((await bench.call("ADD", cniVersion="0.4.0")).document)["cniVersion"] == "0.4.0"
            assert (await bench.call("DEL")).exit_status == 0, "it serves on"

    body()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"flags": 0, "netns_errno": 2}, 8, "cannot be entered: No such file or directory"),
        ({"flags": 0, "netns_errno": 22}, 8, "it is no network namespace"),
        ({"flags": 0}, 8, "it is not set"),
        ({"flags": NETNS | OWN_NETNS}, 8, "is the namespace of the plugin itself"),
        ({"environment": {"CNI_IFNAME": "a/b", "CNI_CONTAINERID": ""}}, 4, "CNI_CONTAINERID is missing; CNI_IFNAME"),
        ({"cniVersion": "9.9.9"}, 1, "'9.9.9'"),
        ({"cniVersion": None}, 1, "0.1.0"),
        ({"stdin": b'{"cniVersion": "1.0.0"}'}, 7, "name is missing"),
        ({"mtu": "big"}, 7, "mtu is"),
        ({"mode": "macvlan"}, 7, "mode is"),
        ({"stdin": b"{"}, 6, "is not JSON"),
        ({"stdin": b"[" * 100_000}, 6, ""),
        ({"stdin": b"\xff\xfe"}, 6, ""),
        ({"ipam": {"type": "host-local"}}, 2, "ipam is"),
    ],
)
def test_bad_calls_reach_nobody(bench: Bench, more: dict[str, Any], code: int, words: str) -> None:
    @asynchronous
    async def body() -> None:
        async with bench.running():
            found = error_of(await bench.call("ADD", **more))
            assert found[0] == code
            assert words in found[1]
        assert "ADD" not in [entry[0] for entry in bench.toy.heard]

    body()


@asynchronous
async def test_the_hosts_own_namespace_is_connected_where_that_is_meant(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        more: dict[str, Any] = {"flags": NETNS | OWN_NETNS, "environment": {"CNI_NETNS_OVERRIDE": "TRUE"}}
        assert (await bench.call("ADD", **more)).exit_status == 0


@asynchronous
async def test_a_descriptor_that_did_not_arrive_is_no_fault_of_the_namespace(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        code, words = error_of(await asyncio.to_thread(bench.exchange, request_bytes("ADD"), 0))
        assert code == 11
        assert "did not arrive" in words


@asynchronous
async def test_a_result_that_the_plugin_would_not_take_is_refused_and_taken_back(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        prev = {"cniVersion": "1.1.0", "x": "y" * ((1 << 20) - 300)}
        code, words = error_of(await bench.call("ADD", prevResult=prev, environment={"CNI_NETNS": "/" + "n" * 1000}))
        assert code == 7
        assert "1048576" in words
        assert bench.toy.known == {}


# ---- DELs ------------------------------------------------------------------------------------------------


@asynchronous
async def test_dels_that_wait_together_are_done_together_and_fail_apart(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        bench.toy.gate.clear()
        bench.toy.refuse["c3"] = CniError(102, "ip link delete: Device or resource busy", "wait")
        adding = asyncio.create_task(bench.call("ADD", "slow"))
        await until_true(lambda: ("ADD", "slow") in bench.toy.heard)
        calls = [asyncio.create_task(bench.call("DEL", f"c{number}")) for number in range(4)]
        await until_true(lambda: bench.sent == 5)
        bench.toy.gate.set()
        answers = await asyncio.gather(*calls)
        assert (await adding).exit_status == 0
    batches = [cast("list[Key]", of) for what, of in bench.toy.heard if what == "DEL"]
    assert [len(batch) for batch in batches] == [4]
    assert [answer.exit_status for answer in answers] == [0, 0, 0, 1]
    assert error_of(answers[3]) == (102, "ip link delete: Device or resource busy")


@asynchronous
async def test_nobody_is_left_waiting_when_a_batch_fails_as_a_whole(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        bench.toy.gate.clear()
        bench.toy.refuse["DEL"] = RuntimeError("what nobody thought of")
        adding = asyncio.create_task(bench.call("ADD", "slow"))
        await until_true(lambda: ("ADD", "slow") in bench.toy.heard)
        calls = [asyncio.create_task(bench.call("DEL", f"c{number}")) for number in range(3)]
        await until_true(lambda: bench.sent == 4)
        bench.toy.gate.set()
        assert [error_of(answer)[0] for answer in await asyncio.gather(*calls)] == [102, 102, 102]
        await adding


@asynchronous
async def test_a_del_is_done_before_an_add_of_the_same_container_that_came_after_it(tmp_path: Path) -> None:
    async with Bench(tmp_path).running() as bench:
        bench.toy.gate.clear()
        slow = asyncio.create_task(bench.call("ADD", "slow"))
        await until_true(lambda: ("ADD", "slow") in bench.toy.heard)
        with bench.connect() as first, bench.connect() as second:
            bench.send(first, request_bytes("DEL", "c1"))
            bench.send(second, request_bytes("ADD", "c1"))
            bench.toy.gate.set()
            for connection in (first, second):
                assert (await asyncio.to_thread(receive, connection)).exit_status == 0
        await slow
        assert bench.toy.heard.index(("DEL", [("c1", "eth0")])) < bench.toy.heard.index(("ADD", "c1"))
        assert ("c1", "eth0") in bench.toy.known
