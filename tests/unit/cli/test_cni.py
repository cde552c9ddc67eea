"""``muslin cni``: files for container runtimes, written when they can work and taken away exactly."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from muslin.agent_client import post_stop
from muslin.cli import cni as verbs
from muslin.cli import cni_program
from muslin.cli.cni_files import RECORD_NAME
from muslin.cli.main import run
from muslin.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_UNSUPPORTED, EXIT_USAGE
from tests.unit.agent.node import FakeNode, make_network, make_status
from tests.unit.cli.agent_at import agent_at
from tests.unit.cli.fake_host import FakeHost, host

__all__ = ["host"]

REFUSES = """echo '{"cniVersion":"1.1.0","code":50,"msg":"no address is free","details":"release some"}'; exit 1"""


class Machine:
    """A root directory with an agent's directories, and a program that passes for the plugin."""

    def __init__(self, root: Path) -> None:
        self.root, self.state, self.run = root, root / "var/lib/muslin", root / "run"
        self.bins, self.confs = root / "opt/cni/bin", root / "etc/cni/net.d"
        self.program = root / "muslin-cni"
        self.run.mkdir(parents=True)
        self.build()

    def build(self, script: str = "exit 0", version: str = "1") -> None:
        self.program.write_text(f"#!/bin/sh\n# {cni_program.MARK.decode()}, {version}\n{script}\n")
        self.program.chmod(0o755)

    @property
    def socket(self) -> str:
        return str(self.run / "agent.sock")

    @property
    def network(self) -> Path:
        return self.confs / "10-muslin.conflist"

    @property
    def plugin(self) -> Path:
        return self.bins / "muslin-cni"

    def put(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def files(self) -> dict[str, str]:
        """What runtimes and the agent find, with the contents."""
        found = [path for top in ("opt", "etc", "usr", "var") for path in (self.root / top).rglob("*")]
        return {str(path.relative_to(self.root)): path.read_text() if path.is_file() else "/" for path in found}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)
    monkeypatch.setattr(verbs, "ROOT", tmp_path)
    monkeypatch.setattr(verbs, "find_program", lambda: found.program)
    monkeypatch.delenv("CONTAINERS_CONF", raising=False)
    for name in [name for name in os.environ if name.startswith(("MUSLIN_AGENT_", "FLANNELD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MUSLIN_AGENT_CONFIG", str(found.put("agent.yaml", "{}")))
    monkeypatch.setenv("MUSLIN_AGENT_RUN_DIR", str(found.run))
    monkeypatch.setenv("MUSLIN_AGENT_STATE_DIR", str(found.state))
    return found


def install(*words: object) -> int:
    return run(["cni", "install", *map(str, words)])


def uninstall(*words: object) -> int:
    return run(["cni", "uninstall", *map(str, words)])


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# ---- the network -------------------------------------------------------------------------------------------


def test_the_network_is_what_runtimes_old_and_new_take(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert install("--print") == EXIT_OK
    capabilities = {"ips": True, "mac": True, "dns": True}
    assert told(capsys) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "muslin",
        "plugins": [
            {
                "type": "muslin-cni",
                "socket": str(machine.run / "cni.sock"),
                "mode": "bridge",
                "capabilities": capabilities,
            }
        ],
    }
    assert machine.files() == {}


def test_options_change_the_network(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.put("opt/cni/bin/portmap", "")
    words = ("--name", "pods", "--mode", "routed", "--socket", "/s/cni.sock", "--hairpin", "--cni-version", "0.3.1")
    assert install("--print", *words) == EXIT_OK
    network = told(capsys)
    assert (network["name"], network["cniVersion"], network["cniVersions"]) == (
        "pods",
        "0.3.1",
        ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    )
    ours, portmap = network["plugins"]
    assert (ours["mode"], ours["socket"], ours["hairpinMode"]) == ("routed", "/s/cni.sock", True)
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}}
    assert install("--print", "--no-portmap") == EXIT_OK
    assert len(told(capsys)["plugins"]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--name", "a b"), "'a b' cannot be the name of a network"),
        (("--name", "../x"), "'../x' cannot be the name"),
        (("--socket", "cni.sock"), "--socket cni.sock can be no socket"),
        (("--socket", "/" + "x" * 107), "can be no socket of an agent"),
        (("--portmap",), "portmap is not in"),
    ],
)
def test_what_cannot_work_is_refused(
    machine: Machine, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    assert install("--without-agent", *words) == EXIT_USAGE
    assert sentence in capsys.readouterr().err
    assert machine.files() == {}


def test_a_portmap_that_not_all_runtimes_would_find_is_left_out_and_said(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.put("usr/lib/cni/portmap", "")
    machine.bins.mkdir(parents=True)
    assert install("--print") == EXIT_OK
    said = capsys.readouterr()
    assert len(json.loads(said.out)["plugins"]) == 1
    assert f"portmap is in {machine.root}/usr/lib/cni and not in {machine.bins}" in said.err
    assert install("--print", "--portmap") == EXIT_OK
    assert len(told(capsys)["plugins"]) == 2


# ---- the agent ---------------------------------------------------------------------------------------------


def ready(**more: Any) -> FakeNode:
    return FakeNode(make_status(network=make_network(bridge="cni0"), **more))


def test_with_a_ready_agent_the_files_are_written(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with agent_at(machine.socket, ready()):
        assert install("-o", "json") == EXIT_OK
    document = told(capsys)
    assert (document["schema"], document["dry_run"]) == ("muslin.cni-install/v1", False)
    assert [(file["path"], file["action"]) for file in document["files"]] == [
        (str(machine.plugin), "write"),
        (str(machine.network), "write"),
    ]
    assert json.loads(machine.network.read_text()) == document["network"]
    assert machine.plugin.read_bytes() == machine.program.read_bytes()
    assert (machine.plugin.stat().st_mode & 0o777, machine.network.stat().st_mode & 0o777) == (0o755, 0o644)


def test_the_plugin_is_asked_as_a_runtime_asks_it(machine: Machine) -> None:
    machine.build(f"cat > {machine.root}/asked; echo $CNI_COMMAND > {machine.root}/command")
    with agent_at(machine.socket, ready()):
        assert install() == EXIT_OK
    asked = json.loads((machine.root / "asked").read_text())
    assert (machine.root / "command").read_text() == "STATUS\n"
    assert asked == {
        "cniVersion": "1.1.0",
        "name": "muslin",
        **json.loads(machine.network.read_text())["plugins"][0],
    }


def test_without_an_agent_nothing_is_written_unless_that_is_said(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install() == EXIT_UNSUPPORTED
    assert f"no agent answers at {machine.socket}" in capsys.readouterr().err
    assert machine.files() == {}
    assert install("--without-agent") == EXIT_OK
    assert machine.network.exists()


@pytest.mark.parametrize(
    ("node", "script", "code", "sentence"),
    [
        (
            FakeNode(make_status(ready=False, problems=("the store is away",))),
            "",
            EXIT_CHECK_FAILED,
            "the store is away",
        ),
        (FakeNode(make_status()), "", EXIT_USAGE, "muslin agent --bridge cni0"),
        (ready(), REFUSES, EXIT_CHECK_FAILED, "no address is free\n  release some"),
        (ready(), "echo no >&2; exit 7", EXIT_CHECK_FAILED, "no container could be added: no"),
        (ready(), "exit 7", EXIT_CHECK_FAILED, "it ended with 7"),
    ],
)
def test_an_agent_that_takes_no_containers_is_not_installed_for(
    machine: Machine, capsys: pytest.CaptureFixture[str], node: FakeNode, script: str, code: int, sentence: str
) -> None:
    machine.build(script)
    with agent_at(machine.socket, node):
        assert install() == code
    assert sentence in capsys.readouterr().err
    assert machine.files() == {}


def test_the_mode_routed_needs_no_bridge(machine: Machine) -> None:
    with agent_at(machine.socket, FakeNode(make_status())):
        assert install("--mode", "routed") == EXIT_OK
    assert json.loads(machine.network.read_text())["plugins"][0]["mode"] == "routed"


def test_an_agent_that_becomes_ready_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(make_status(ready=False))
    pauses: list[float] = []

    def pause(span_s: float) -> None:
        pauses.append(span_s)
        node.now = ready().now

    monkeypatch.setattr(verbs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    with agent_at(machine.socket, node):
        assert install("--wait", "60") == EXIT_OK
    assert len(pauses) == 1
    assert machine.network.exists()


# ---- files that are there ----------------------------------------------------------------------------------


def test_a_dry_run_tells_the_same_and_writes_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert install("--without-agent", "--dry-run", "-o", "json") == EXIT_OK
    dry = told(capsys)
    assert machine.files() == {}
    assert install("--without-agent", "-o", "json") == EXIT_OK
    assert {**told(capsys), "dry_run": True} == dry


def test_run_again_it_writes_what_has_changed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    actions = []
    for words, version in (((), "1"), ((), "1"), (("--hairpin",), "1"), (("--hairpin",), "2")):
        machine.build(version=version)
        assert install("--without-agent", "-o", "json", *words) == EXIT_OK
        actions.append([file["action"] for file in told(capsys)["files"]])
    assert actions == [["write", "write"], ["keep", "keep"], ["keep", "replace"], ["replace", "keep"]]
    assert machine.plugin.read_bytes() == machine.program.read_bytes()
    machine.plugin.chmod(0o644)
    assert install("--without-agent") == EXIT_OK
    assert os.access(machine.plugin, os.X_OK)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("opt/cni/bin/muslin-cni", "#!/bin/sh\n"),
        ("etc/cni/net.d/10-muslin.conflist", '{"name": "muslin", "plugins": [{"type": "bridge"}]}'),
        ("etc/cni/net.d/10-muslin.conflist", '{"name": "other", "plugins": [{"type": "muslin-cni"}]}'),
        ("etc/cni/net.d/10-muslin.conflist", "garbage"),
        ("etc/cni/net.d/20-x.conflist", '{"name": "muslin", "plugins": [{"type": "bridge"}]}'),
        ("etc/cni/net.d/20-x.conf", '{"name": "muslin", "type": "bridge"}'),
    ],
)
def test_what_is_not_ours_is_not_overwritten_nor_removed(
    machine: Machine, capsys: pytest.CaptureFixture[str], path: str, text: str
) -> None:
    machine.put(path, text)
    before = machine.files()
    assert install("--without-agent") == EXIT_USAGE
    assert str(machine.root / path) in capsys.readouterr().err
    assert machine.files() == before
    assert uninstall() == EXIT_OK
    assert machine.files() == before


def test_a_link_is_not_followed(machine: Machine) -> None:
    elsewhere = machine.put("elsewhere", f"{cni_program.MARK.decode()}\n")
    machine.bins.mkdir(parents=True)
    machine.plugin.symlink_to(elsewhere)
    assert install("--without-agent") == EXIT_USAGE
    assert elsewhere.read_text() == f"{cni_program.MARK.decode()}\n"


def test_a_network_that_comes_before_ours_is_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.put("etc/cni/net.d/05-other.conflist", '{"name": "other", "plugins": []}')
    machine.put("etc/cni/net.d/99-last.conflist", "")
    assert install("--without-agent") == EXIT_OK
    assert "05-other.conflist comes before 10-muslin.conflist" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_named_and_no_network_is_written(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    file = machine.put("file", "")
    assert install("--without-agent", "--bin-dir", file / "bin") == EXIT_CHECK_FAILED
    assert f"{file / 'bin'} cannot be made: Not a directory" in capsys.readouterr().err
    assert not machine.network.exists()


def test_without_a_compiler_it_says_what_to_install(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verbs, "find_program", cni_program.find_program)
    monkeypatch.setattr(cni_program, "NAME", "muslin-cni-that-is-nowhere")
    assert install("--without-agent") == EXIT_UNSUPPORTED
    assert "apt-get install gcc libc6-dev" in capsys.readouterr().err
    assert install("--print") == EXIT_OK


# ---- taking it away ----------------------------------------------------------------------------------------


def test_uninstall_leaves_the_machine_as_it_was_and_then_finds_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.put("etc/hosts", "")
    before = machine.files()
    assert install("--without-agent") == EXIT_OK
    assert RECORD_NAME in os.listdir(machine.state)
    capsys.readouterr()
    assert uninstall("--dry-run", "-o", "json") == EXIT_OK
    dry = told(capsys)
    assert machine.network.exists()
    assert uninstall("-o", "json") == EXIT_OK
    assert {**told(capsys), "dry_run": True} == dry
    kinds = [file["kind"] for file in dry["files"]]
    assert kinds[:3] == ["network", "plugin", "record"]
    assert machine.files().keys() - {"var", "var/lib"} == before.keys()
    assert uninstall() == EXIT_OK
    assert "nothing of Muslin's" in capsys.readouterr().err


def test_what_was_written_elsewhere_and_what_others_have_beside_it(machine: Machine) -> None:
    bins, confs = machine.root / "usr/local/a/bin", machine.root / "usr/local/b"
    words = ("--without-agent", "--bin-dir", bins, "--conf-dir", confs)
    assert install(*words) == EXIT_OK
    assert install(*words, "--name", "second") == EXIT_OK
    theirs = machine.put("usr/local/a/bin/portmap", "")
    (confs / "10-muslin.conflist.new").write_text("{")  # as of one that was killed while it wrote
    assert uninstall() == EXIT_OK
    assert {path for path in machine.files() if path.startswith("usr/")} == {
        "usr/local", "usr/local/a", "usr/local/a/bin", "usr/local/a/bin/portmap",
    }  # fmt: skip
    assert theirs.exists()


def test_without_a_record_it_looks_where_install_would_have_written(machine: Machine) -> None:
    machine.bins.mkdir(parents=True)
    assert install("--without-agent") == EXIT_OK
    (machine.state / RECORD_NAME).write_text("{")
    assert uninstall() == EXIT_OK
    assert not machine.network.exists()
    assert not machine.plugin.exists()


def test_with_directories_named_only_those_are_looked_at(machine: Machine) -> None:
    assert install("--without-agent") == EXIT_OK
    assert uninstall("--conf-dir", machine.confs) == EXIT_OK
    assert (machine.network.exists(), machine.plugin.exists()) == (False, True)
    assert uninstall() == EXIT_OK
    assert not machine.plugin.exists()


# ---- a real agent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "code"), [(("--bridge", "cni0"), EXIT_OK), ((), EXIT_USAGE)])
def test_an_agent_tells_whether_it_keeps_a_bridge(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    machine = Machine(tmp_path / "root")
    monkeypatch.setattr(verbs, "ROOT", machine.root)
    monkeypatch.setattr(verbs, "find_program", lambda: machine.program)
    codes: list[int] = []

    def use(_: object) -> None:
        codes.append(install("--socket", host.run / "cni.sock"))
        post_stop(host.socket, release=False)

    host.agent(*words, once_ready=use)
    assert codes == [code]
    assert machine.network.exists() == (code == EXIT_OK)
