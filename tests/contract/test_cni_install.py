"""From `muslin cni install` to a call of the runtime, with the real plugin: what is installed is what works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from muslin.cli import cni as verbs
from muslin.cli.cni_program import ask_plugin_status, find_program, is_program
from muslin.cli.main import run
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, MuslinError, UnsupportedError
from muslin.wire.cni_error import VERSIONS
from tests.contract.cni_shim import ADD, RESULT, agent_at, answer, build, call, conf, missing
from tests.unit.agent.node import FakeNode, make_network, make_status
from tests.unit.cli.agent_at import agent_at as api_at


def is_built() -> bool:
    try:
        return find_program().exists()
    except UnsupportedError:
        return False


pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not is_built(), reason="the CNI plugin is not built; ./run test builds it, given gcc"),
]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory; agents have their sockets in `run`."""
    monkeypatch.setattr(verbs, "ROOT", tmp_path)
    monkeypatch.delenv("CONTAINERS_CONF", raising=False)
    (tmp_path / "agent.yaml").write_text("{}")
    for name, path in (("CONFIG", "agent.yaml"), ("RUN_DIR", "run"), ("STATE_DIR", "state")):
        monkeypatch.setenv(f"MUSLIN_AGENT_{name}", str(tmp_path / path))
    (tmp_path / "run").mkdir()
    return tmp_path


def install(host: Path, document: bytes, exit_status: int = 0) -> int:
    node = FakeNode(make_status(network=make_network(bridge="cni0")))
    with (
        api_at(str(host / "run" / "agent.sock"), node),
        agent_at(host / "run" / "cni.sock", answer(document, exit_status)),
    ):
        return run(["cni", "install"])


def test_what_is_installed_reaches_the_agent_for_a_runtime(host: Path) -> None:
    assert install(host, b"") == EXIT_OK
    network = json.loads((host / "etc/cni/net.d/10-muslin.conflist").read_text())
    program = host / "opt/cni/bin/muslin-cni"
    # As libcni does: the plugin's part, with the list's name and version.
    stdin = json.dumps({**network["plugins"][0], "name": network["name"], "cniVersion": "1.1.0"}).encode()
    with agent_at(host / "run" / "cni.sock", answer(RESULT)) as agent:
        done = subprocess.run([program], input=stdin, env=ADD, capture_output=True, timeout=30, check=True)
    assert done.stdout == RESULT
    assert agent.seen[0].request.stdin == stdin
    assert run(["cni", "uninstall"]) == EXIT_OK
    assert not program.exists()


def test_an_agent_that_takes_no_containers_is_heard(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = b'{"cniVersion":"1.1.0","code":50,"msg":"no address is free","details":"254 of 254 are taken"}'
    assert install(host, full, 1) == EXIT_CHECK_FAILED
    assert "no container could be added: no address is free\n  254 of 254 are taken" in capsys.readouterr().err
    assert not (host / "etc").exists()


def test_an_agent_without_that_socket_is_heard(host: Path) -> None:
    with pytest.raises(MuslinError, match=f"no agent answers at {host}/run/cni.sock"):
        ask_plugin_status(find_program(), json.loads(conf(host / "run" / "cni.sock")))


def test_the_plugin_knows_the_versions_that_are_offered() -> None:
    done = call(b"", {**ADD, "CNI_COMMAND": "VERSION"})
    assert tuple(done.document["supportedVersions"]) == VERSIONS


def test_every_build_is_known_as_the_plugin() -> None:
    assert is_program(Path(build()))
    assert is_program(find_program())
    assert not is_program(Path("/bin/sh"))
    assert call(b"", {}).stderr.startswith("muslin-cni: connects containers through Muslin's agent")
