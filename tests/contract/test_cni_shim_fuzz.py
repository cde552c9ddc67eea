"""Whatever the plugin is given, it ends with success or with one valid error: nothing crashes it, nothing hangs it.

Its scanner is fuzzed by libFuzzer against a naive reader (native/fuzz_json.c), from a kept corpus; the whole plugin by
Hypothesis, compiled with the address and undefined-behaviour sanitizers. To look longer: `native/build OUT json` with
CC=clang and the CFLAGS below, then `OUT -max_total_time=3600 tests/corpus/cni`. A finding becomes a file of the corpus.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muslin.wire.cni_socket import ANSWER_MAX_BYTES
from tests.contract.cni_shim import ADD, NOBODY, ROOT, SANITIZED, Call, agent_at, answer, build, call, missing, raw

CORPUS = ROOT / "tests" / "corpus" / "cni"
CFLAGS = "-O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
RUN_S = 5
EXAMPLES = 150

pytestmark = [pytest.mark.contract, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.mark.skipif(not shutil.which("clang"), reason="CNI fuzzing: no clang")
def test_nothing_is_found_in_the_scanner(tmp_path: Path) -> None:
    """Inputs that reach new code are kept for this run only."""
    program, found = tmp_path / "json", tmp_path / "found"
    found.mkdir()
    environment = {**os.environ, "CC": "clang", "CFLAGS": CFLAGS}
    subprocess.run([ROOT / "native" / "build", program, "json"], env=environment, check=True)
    assert list(CORPUS.iterdir()), "a corpus to begin with"
    command = [str(program), f"-max_total_time={RUN_S}", "-max_len=4096", str(found), str(CORPUS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


# ---- the whole plugin ------------------------------------------------------------------------------------

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
confs = st.fixed_dictionaries(
    {}, optional={"cniVersion": st.sampled_from(["1.0.0", "0.4.0"]) | values, "socket": values, "prevResult": values}
).map(lambda conf: json.dumps(conf).encode())
torn = st.tuples(confs, st.integers(0, 40), st.binary(max_size=3)).map(lambda cut: cut[0][: cut[1]] + cut[2])
inputs = confs | torn | st.binary(max_size=200) | st.just(b'{"a":' + b"[" * 600)

variables = st.dictionaries(
    st.sampled_from(
        ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS", "CNI_X", "CNI_NETNS_OVERRIDE", "LANG"]
    ),
    st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"")) | st.just(b"/proc/self/ns/net"),
)
commands = st.sampled_from([b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS", b"VERSION"]) | st.binary(min_size=1, max_size=8)


def assert_valid(done: Call) -> None:
    """Success, or one error as the specification has it; what a sanitizer says ends with another status."""
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr
    assert done.status in (0, 1), done
    if done.status == 0:
        assert not done.stdout or isinstance(done.document, dict)
        return
    found = json.loads(done.stdout.decode("utf-8", "strict"))
    assert found["cniVersion"] in ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
    assert found["code"] in (4, 5, 6, 7, 11, 50)
    assert found["msg"]
    assert "\0" not in found["msg"]


@settings(max_examples=EXAMPLES)
@given(inputs, variables, commands)
@example(b'{"socket":"/' + b"x" * 106 + b'"}', {}, b"ADD")
def test_whatever_is_asked_without_an_agent(stdin: bytes, given_variables: dict[str, bytes], command: bytes) -> None:
    environment: dict[str, str | bytes] = {**ADD, **given_variables, "CNI_COMMAND": command.replace(b"\0", b"x")}
    assert_valid(call(stdin, environment, build(SANITIZED)))
    assert not os.path.exists(os.path.dirname(NOBODY))


@settings(max_examples=EXAMPLES)
@example(struct.pack("=II", 0, ANSWER_MAX_BYTES + 1) + bytes(ANSWER_MAX_BYTES + 1), True)
@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: bytes(4) + data), st.booleans())
def test_whatever_is_answered(data: bytes, reads: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "run", "cni.sock")
        with agent_at(path, raw(data), reads):
            done = call(json.dumps({"socket": str(path)}).encode(), ADD, build(SANITIZED))
    assert_valid(done)


@settings(max_examples=EXAMPLES)
@given(values)
def test_a_document_is_passed_on_as_it_is_if_it_is_an_object(value: Any) -> None:
    document = json.dumps(value).encode()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "run", "cni.sock")
        with agent_at(path, answer(document)):
            done = call(json.dumps({"socket": str(path)}).encode(), ADD, build(SANITIZED))
    assert_valid(done)
    assert (done.stdout == document) == isinstance(value, dict)
