"""Each verb does what its help says, prints data on stdout and talk on stderr, and ends with the right code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.support import (
    SEVERAL_USERS,
    Muslin,
    finish,
    leftovers,
    netns_names,
    netns_of,
    place_apart,
    processes_of,
    read_until,
    routes_of,
)

pytestmark = pytest.mark.lab

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def lab(shared: Muslin) -> str:
    """A lab of step 4 that these tests only look at."""
    return shared.up("--step", 4)


# ---- exec and shell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exec_ends_with_the_childs_code(shared: Muslin, lab: str, code: int) -> None:
    done = shared.inside(lab, "con1.node1", "sh", "-c", f"echo out; echo err >&2; exit {code}", code=code)

    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_exec_of_a_missing_program_is_127_and_of_what_is_no_program_126(
    shared: Muslin, lab: str, tmp_path: Path
) -> None:
    assert "'no-such-program' is not on this machine" in shared.inside(lab, "node1", "no-such-program", code=127).stderr
    file = tmp_path / "file"
    for content, mode, reason in (("", 0o644, "Permission denied"), ("\0\0\0\0", 0o755, "Exec format error")):
        file.write_text(content)
        file.chmod(mode)
        told = shared.inside(lab, "node1", str(file), code=126).stderr
        assert told == f"muslin: '{file}' cannot be executed: {reason}\n"


def test_exec_of_a_program_that_dies_of_a_signal_dies_of_it(shared: Muslin, lab: str) -> None:
    shared.inside(lab, "node1", "sh", "-c", "kill -TERM $$", code=-signal.SIGTERM)


def test_exec_is_inside_of_the_place_with_its_own_sys(shared: Muslin, lab: str) -> None:
    devices = shared.inside(lab, "con1.node1", "ls", "/sys/class/net").stdout.split()
    named = shared.inside(lab, "con1.node1", "ip", "netns", "identify").stdout.strip()

    assert set(devices) == {"lo", "veth11"}
    assert named == netns_of(lab, "con1.node1")
    # Options of the command are not ours, with or without the two hyphens.
    assert shared.lab("exec", "--name", lab, "node2", "ip", "-o", "link").stdout.count("\n") == 6


def test_a_place_that_is_not_there_or_not_clear_is_told_with_those_that_are(shared: Muslin, lab: str) -> None:
    unknown = shared.inside(lab, "con9", "true", code=2).stderr
    unclear = shared.inside(lab, "con1", "true", code=2).stderr

    assert "has no 'con9'" in unknown
    assert "con1.node1" in unknown
    assert "'con1' could be con1.node1 or con1.node2" in unclear


@pytest.mark.parametrize("program", ["/bin/sh", "/bin/bash"])
def test_a_shell_says_in_its_prompt_where_it_is(shared: Muslin, lab: str, program: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shared.command("lab", "shell", "--name", lab, "con2.node2"),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd="/",
        env=shared.environment(SHELL=program, TERM="dumb"),
    )  # fmt: skip
    os.close(theirs)
    try:
        prompt = f"[{lab}: con2.node2] # "
        read_until(ours, lambda text: prompt in text, "the prompt")
        os.write(ours, b"ip -o -4 addr show veth21; exit 5\n")
        read_until(ours, lambda text: "172.16.1.3/24" in text, "the container's address")
        assert process.wait(20) == 5
    finally:
        os.close(ours)


# ---- looking -----------------------------------------------------------------------------------------------


def test_ls_and_inspect_tell_names_sizes_and_processes(shared: Muslin, lab: str) -> None:
    (row,) = shared.json("ls", "--name", lab)["labs"]
    view = shared.json("inspect", "--name", lab)
    only = shared.json("inspect", "con1.node2", "--name", lab)

    told = (row["condition"], row["step"], row["backend"], row["nodes"], row["containers"], row["rootless"])
    assert told == ("up", 4, "udp", 2, 4, False)
    places = {place["name"]: place for place in view["places"]}
    assert set(places) == netns_names(lab)
    assert places["node1"]["tunnel_pid"] == processes_of(lab, "node1")[0]
    tun = next(link for link in places["node1"]["links"] if link["name"] == "tun0")
    assert (tun["kind"], tun["mtu"], tun["addresses"][0]) == ("tun", 1472, "172.16.0.100/16")
    assert "default via 172.16.0.1 dev veth11" in places["con1.node1"]["routes"]
    assert view["drift"] == []
    assert [place["name"] for place in only["places"]] == ["con1.node2"]
    assert shared.lab("ls", "-q").stdout.split() == [lab]


def test_diff_of_step_2_and_3_is_exactly_the_two_new_commands(muslin: Muslin) -> None:
    done = muslin.lab("diff", "--step", 2, "--step", 3)

    assert [line for line in done.stdout.splitlines() if not line.startswith("#")] == [
        "ip netns exec muslin-lab-node1 sysctl -q -w net.ipv4.ip_forward=1",
        "ip -n muslin-lab-node1 route add 172.16.1.0/24 via 10.0.0.20 dev eth0",
    ]
    assert "node2 is new" in done.stderr
    assert "example" in muslin.lab("diff", "--step", 2, code=2).stderr


@pytest.mark.parametrize(
    ("verb", "schema"),
    [
        (["ls"], "muslin.lab-list/v1"),
        (["inspect"], "muslin.lab-inspect/v1"),
        (["check", "--protocol", "icmp"], "muslin.check/v1"),
        (["up", "--step", "4"], "muslin.lab-up/v1"),
        (["up", "--step", "4", "--dry-run"], "muslin.lab-up/v1"),
        (["diff", "--step", "3", "--step", "4"], "muslin.lab-diff/v1"),
    ],
)
def test_documents_are_versioned_and_alone_on_stdout(shared: Muslin, lab: str, verb: list[str], schema: str) -> None:
    as_json = shared.lab(*verb, "--name", lab, "-o", "json").stdout
    as_yaml = shared.lab(*verb, "--name", lab, "-o", "yaml").stdout
    table = shared.lab(*verb, "--name", lab, "-o", "table")

    assert json.loads(as_json)["schema"] == schema
    assert yaml.safe_load(as_yaml)["schema"] == schema
    assert set(yaml.safe_load(as_yaml)) == set(json.loads(as_json))
    assert "schema" not in table.stdout
    assert ESCAPE not in table.stdout + table.stderr


def test_up_and_down_keep_their_talk_off_stdout(muslin: Muslin) -> None:
    name = muslin.new_name()
    raised = muslin.lab("up", "--name", name, "--step", 1, "-o", "json")
    gone = muslin.lab("down", name, "-o", "yaml")

    assert json.loads(raised.stdout)["fresh"] is True
    assert "is up" in raised.stderr
    assert yaml.safe_load(gone.stdout)["labs"][0]["existed"] is True
    assert yaml.safe_load(gone.stdout)["schema"] == "muslin.lab-down/v1"
    assert "is gone" in gone.stderr
    assert muslin.lab("up", "--name", muslin.new_name(), "--step", 1).stdout == ""


def run_on_terminal(muslin: Muslin, *arguments: str, **env: str) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        muslin.command("lab", *arguments),
        stdin=theirs, stdout=theirs, stderr=theirs, env=muslin.environment(TERM="xterm", **env), cwd="/",
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the terminal's other side is closed, all was read
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert process.wait(20) == 0
    return shown.decode()


def test_a_terminal_gets_colour_unless_no_color_asks_for_none(shared: Muslin, lab: str) -> None:
    for verb in (["ls"], ["check", "--name", lab]):
        assert ESCAPE in run_on_terminal(shared, *verb, NO_COLOR="")
        assert ESCAPE not in run_on_terminal(shared, *verb, NO_COLOR="1")


def test_a_reader_that_goes_away_ends_the_command_quietly(muslin: Muslin) -> None:
    process = muslin.start("export", "--step", 4, "--nodes", 20, "--containers", 10)
    with process as done:
        assert done.stdout is not None
        assert done.stderr is not None
        assert os.read(done.stdout.fileno(), 10) == b"#!/bin/sh\n"  # the rest is more than a pipe holds
        done.stdout.close()
        assert done.stderr.read() == ""
    assert process.returncode == 1


def test_options_come_from_the_environment_and_the_command_line_beats_them(muslin: Muslin) -> None:
    env = {"MUSLIN_LAB_UP_STEP": "2"}
    name = muslin.new_name()
    muslin.lab("up", "--name", name, env=env)
    assert muslin.json("ls", "--name", name)["labs"][0]["step"] == 2

    muslin.lab("up", "--name", name, "--step", 1, env=env)
    assert muslin.json("ls", "--name", name)["labs"][0]["step"] == 1


def test_completion_scripts_are_sound_and_know_verbs_labs_and_places(shared: Muslin, lab: str, tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = shared.run("completion", shell).stdout
        assert "_MUSLIN_COMPLETE" in script
    (tmp_path / "bash").write_text(shared.run("completion", "bash", env={"PATH": os.environ["PATH"]}).stdout)
    assert subprocess.run(["bash", "-n", tmp_path / "bash"], check=False).returncode == 0

    def complete(words: str) -> set[str]:
        env = {"_MUSLIN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return {line.partition(",")[2] for line in shared.run(env=env).stdout.splitlines()}

    assert {"up", "down", "check", "exec"} <= complete("muslin lab ")
    assert lab in complete("muslin lab check --name ")
    assert complete(f"muslin lab exec --name {lab} con1") == {"con1.node1", "con1.node2"}


# ---- before and instead of doing ---------------------------------------------------------------------------


@SEVERAL_USERS
def test_a_dry_run_needs_no_privilege_and_changes_nothing(muslin: Muslin) -> None:
    before = set(os.listdir("/proc/sys/net/ipv4/conf")), netns_names("")
    nobody = Muslin(Path("/nonexistent/run"), ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))

    done = nobody.lab("up", "--name", nobody.new_name(), "--step", 4, "--dry-run")

    assert "tuntap add dev tun0 mode tun" in done.stdout
    assert "muslin-tunnel --device=tun0" in done.stdout
    assert not leftovers(muslin.runtime)
    assert (set(os.listdir("/proc/sys/net/ipv4/conf")), netns_names("")) == before


def test_a_dry_run_on_a_living_lab_shows_only_what_is_missing(muslin: Muslin) -> None:
    name = muslin.up("--step", 2)
    routes = routes_of(name, "node1")

    done = muslin.lab("up", "--name", name, "--step", 3, "--dry-run")

    assert f"ip -n {netns_of(name, 'node1')} route add 172.16.1.0/24 via 10.0.0.20 dev eth0" in done.stdout
    assert netns_of(name, "con1.node1") not in done.stdout
    assert routes_of(name, "node1") == routes
    nothing = muslin.lab("up", "--name", name, "--step", 2, "--dry-run")
    assert nothing.stdout == ""
    assert "nothing to do" in nothing.stderr


def test_printed_commands_are_those_of_the_dry_run(muslin: Muslin) -> None:
    name = muslin.new_name()
    options = ("up", "--name", name, "--step", 4)
    planned = [line for line in muslin.lab(*options, "--dry-run").stdout.splitlines() if not line.startswith("#")]

    printed = muslin.lab(*options, "--print-commands").stdout.splitlines()

    assert sorted(printed) == sorted(planned)
    assert len(planned) > 50


def test_pause_runs_one_command_for_each_enter(muslin: Muslin) -> None:
    name = muslin.new_name()
    planned = muslin.lab("up", "--name", name, "--step", 1, "--dry-run").stdout.splitlines()
    count = len([line for line in planned if not line.startswith("#")])

    done = muslin.lab("up", "--name", name, "--step", 1, "--pause", stdin="\n" * count)

    assert done.stderr.count("[Enter]") == count
    muslin.lab("check", "--name", name)


@pytest.mark.parametrize("answers", [0, 1, 12, 20])
def test_pause_takes_everything_back_when_the_answers_end(muslin: Muslin, answers: int) -> None:
    name = muslin.new_name()
    done = muslin.lab("up", "--name", name, "--step", 1, "--pause", stdin="\n" * answers, code=130)

    assert done.stderr.count("[Enter]") == answers + 1
    assert not leftovers(muslin.runtime)


# ---- export ------------------------------------------------------------------------------------------------


def missing_of(name: str, options: dict[str, Any], step: Any) -> list[str]:
    """The engine's own opinion: what it would still do to make this lab what it should be."""
    from muslin.kernel.converge import plan_ops
    from muslin.kernel.linux import LinuxKernel
    from muslin.lab.plan import plan
    from muslin.lab.presets import preset
    from muslin.model.state import Owned

    with LinuxKernel() as kernel:
        _, ops = plan_ops(kernel, plan(name, preset(step, **options)).state, Owned())
    return [op.describe() for op in ops]


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (1, {}),
        (2, {"families": (4, 6)}),
        (3, {"families": (4, 6)}),
        (4, {"underlay": "routed"}),
        (4, {"backend": "vxlan", "families": (4, 6)}),
    ],
)
def test_an_exported_script_run_alone_rebuilds_the_lab(
    muslin: Muslin, step: int, options: dict[str, Any], tmp_path: Path
) -> None:
    name = muslin.new_name()
    words = [word for key in ("underlay", "backend") if key in options for word in (f"--{key}", options[key])]
    words += ["--family", "dual"] if "families" in options else []
    script = tmp_path / "lab.sh"
    script.write_text(muslin.lab("export", "--name", name, "--step", step, *words, "--as", "sh").stdout)
    try:
        subprocess.run(["sh", script, "up"], check=True, capture_output=True, timeout=60, cwd="/")
        assert missing_of(name, options, step) == []
        target = {1: "172.16.0.1", 2: "172.16.0.3"}.get(step, "172.16.1.2")
        source = "node1" if step == 1 else "con1.node1"
        command = ["ip", "netns", "exec", netns_of(name, source), "ping", "-c", "1", "-W", "5", target]
        assert subprocess.run(command, check=False, capture_output=True).returncode == 0
        assert not muslin.runtime.exists()
    finally:
        subprocess.run(["sh", script, "down"], check=True, capture_output=True, timeout=60, cwd="/")
    assert netns_names(name) == set()
    # The tunnels of a script carry the token of the run, which the run's last check looks for.


def test_an_exported_topology_raises_the_same_lab_from_stdin(muslin: Muslin) -> None:
    first = muslin.up("--step", 4, "--underlay", "routed", "--nodes", 3)
    text = muslin.lab("export", "--name", first, "--as", "yaml").stdout

    second = muslin.new_name()
    muslin.lab("up", "--name", second, "--topology", "-", stdin=text)

    assert muslin.lab("export", "--name", second, "--as", "yaml").stdout == text
    assert netns_names(second) == netns_names(first)
    assert muslin.json("check", "--name", second, "--sample", 30)["ok"] is True
    as_json = muslin.lab("export", "--name", first, "--as", "json").stdout
    assert muslin.json("up", "--name", second, "--topology", "-", stdin=as_json)["commands"] == []


# ---- going away --------------------------------------------------------------------------------------------


def test_down_of_a_lab_that_is_not_there_is_fine(muslin: Muslin) -> None:
    name = muslin.new_name()

    assert f"there is no lab '{name}': nothing to do" in muslin.lab("down", name).stderr
    assert f"there is no lab '{name}'" in muslin.lab("check", "--name", name, code=2).stderr


def test_down_all_asks_first(muslin: Muslin) -> None:
    names = {muslin.up("--step", 1), muslin.up("--step", 1)}

    refused = muslin.lab("down", "--all", stdin="n\n", code=130)
    assert set(muslin.lab("ls", "-q").stdout.split()) == names
    assert "Take away" in refused.stderr

    gone = muslin.json("down", "--all", "--yes")
    assert {lab["name"] for lab in gone["labs"]} == names
    assert not leftovers(muslin.runtime)


def test_down_ends_what_was_started_inside_and_no_other_process(muslin: Muslin) -> None:
    name = muslin.up("--step", 1)
    stranger = subprocess.Popen(["sleep", "600"])
    inside = muslin.start("exec", "--name", name, "con.node1", "--", "sh", "-c", "echo in; exec sleep 600")
    assert inside.stdout is not None
    assert inside.stdout.readline() == "in\n"

    muslin.lab("down", name)

    try:
        assert inside.wait(10) == -signal.SIGTERM
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        finish(inside, None)


def test_prune_lists_then_removes_what_no_healthy_lab_accounts_for(muslin: Muslin) -> None:
    # Without --name it looks at all namespaces of the machine, so here /run is one of its own.
    with place_apart("mount -t tmpfs none /run", "-m", "--propagation", "private") as pid:
        apart = Muslin(muslin.runtime, ("nsenter", "-t", str(pid), "-m"))
        healthy, half, lost = apart.up("--step", 1), apart.up("--step", 1), apart.up("--step", 1)
        for name, change in ((half, {"complete": False}), (lost, {"boot_id": "another"})):
            path = apart.runtime / name / "state.json"
            path.write_text(json.dumps({**apart.state(name), **change}))
        orphan = "muslin-gone-node1"
        subprocess.run([*apart.wrap, "ip", "netns", "add", orphan], check=True)
        subprocess.run([*apart.wrap, "ip", "netns", "add", "stranger"], check=True)
        expected = {f"lab '{half}' (half up)", f"lab '{lost}' (lost)", f"namespace {orphan}, of no lab"}

        assert set(apart.lab("prune", "--dry-run").stdout.splitlines()) == expected
        assert apart.lab("prune", stdin="n\n", code=130).stderr.count("Remove these?") == 1
        assert set(apart.lab("prune", "--dry-run").stdout.splitlines()) == expected
        apart.lab("prune", "--yes")
        apart.lab("prune", "--yes")  # the namespaces of a lost lab have lost their owner

        listed = subprocess.run([*apart.wrap, "ip", "netns"], check=True, capture_output=True, text=True).stdout
        names = {line.split()[0] for line in listed.splitlines()}
        assert names == {"stranger", *(netns_of(healthy, place) for place in ("lan0", "node1", "con.node1"))}
        assert apart.lab("ls", "-q").stdout.split() == [healthy]
        assert "nothing to clear away" in apart.lab("prune").stderr
        apart.down_all()


def test_the_demo_tells_all_four_steps_and_cleans_up(muslin: Muslin) -> None:
    done = muslin.lab("demo", "--name", muslin.new_name())

    assert [number for number in re.findall(r"Step (\d):", done.stdout)] == ["1", "2", "3", "4"]
    assert done.stdout.count("PASSED") == 4
    assert "FAILED" not in done.stdout
    assert ESCAPE not in done.stdout
    assert "nothing is left behind" in done.stdout
    assert not leftovers(muslin.runtime)


def test_the_demo_does_not_touch_a_lab_of_its_name(muslin: Muslin) -> None:
    name = muslin.up("--step", 1)

    assert f"a lab '{name}' is there already" in muslin.lab("demo", "--name", name, code=2).stderr
    assert muslin.json("inspect", "--name", name)["drift"] == []


def test_an_interrupted_demo_cleans_up(muslin: Muslin) -> None:
    process = muslin.start("demo", "--name", muslin.new_name(), "--pause", stdin=subprocess.PIPE)
    assert process.stderr is not None
    read_until(process.stderr.fileno(), lambda text: "[Enter]" in text, "the first step is told")
    process.send_signal(signal.SIGINT)

    finish(process, 130)

    assert not leftovers(muslin.runtime)
